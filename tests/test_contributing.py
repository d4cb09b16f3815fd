"""CONTRIBUTING.md says which files an addition touches: one of each is added to a copy of the house and used."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("castvision", "castvision_cli", "configs")
ROW = re.compile(r"^\| (an? [^|]+?) \| ((?:`[^`|]+`(?:, )?)+) \|$", re.MULTILINE)

HEAD = '''
"""One vote of all pixels."""

from torch import nn


class PoolHead(nn.Module):
    def __init__(self, channels, strides, num_classes):
        super().__init__()
        self.classifier = nn.Conv2d(sum(channels), num_classes, kernel_size=1)

    def forward(self, features, image):
        return self.classifier(features[0].mean((2, 3), keepdim=True)).expand(-1, -1, *image.shape[-2:])
'''
DATASET = '''
"""Horizontal stripes."""

import torch
from torch.utils.data import Dataset


class StripesDataset(Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        target = (torch.arange(32)[:, None] + index).div(4, rounding_mode="floor").remainder(2).expand(32, 32)
        return target[None].float(), target.contiguous()
'''
DATA_MODULE = '''
"""Stripes to train on."""

from castvision.data.datasets.stripes import StripesDataset
from castvision.training.data.data_module import ImageDataModule


class StripesDataModule(ImageDataModule):
    task_kind = "segmentation"

    def __init__(self, batch_size: int = 4) -> None:
        super().__init__(["dark", "bright"], 1, (32, 32), (0.5,), (0.5,))
        self.batch_size, self.num_workers = batch_size, 0

    def dataset(self, split):
        return StripesDataset()
'''
ATTENTION = '''
"""Every token gets the mean of all."""

from torch import nn


class MeanAttention(nn.Module):
    def __init__(self, dim, **shared):
        super().__init__()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, rope=None, grid_size=None, token_mask=None):
        return self.proj(x.mean(1, keepdim=True)).expand_as(x)
'''
VARIANT = '''

@register_model
def cast_vit_femto_patch4_32(pretrained: bool = False, **kwargs: Any) -> CastVisionTransformer:
    """Smaller than the smallest."""
    sizes = {"img_size": 32, "patch_size": 4, **_ATTO, "depth": 1}
    return _create("cast_vit_femto_patch4_32", pretrained, sizes, kwargs)
'''
COMMAND = '''
"""Says how many words it was given."""


def main(arguments):
    print(len(arguments))
    return 0
'''
CONFIG = """\
model:
  class_path: SegmentationTask
  init_args:
    model_name: cast_vit_femto_patch4_32
    num_classes: 2
    model_kwargs: {attn_layer: mean}
    head: PoolHead
data:
  class_path: StripesDataModule
trainer: {max_steps: 2, accelerator: cpu, enable_progress_bar: false}
"""


class House:
    """A copy of the package, its commands and configurations, that remembers what it was."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in FOLDERS:
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        self.before = self.files()

    def files(self) -> dict[str, str]:
        kept = [path for name in FOLDERS for path in (self.folder / name).rglob("*") if path.suffix in (".py", ".yaml")]
        return {path.relative_to(self.folder).as_posix(): path.read_text(encoding="utf-8") for path in kept}

    def write(self, path: str, text: str) -> None:
        assert not (self.folder / path).exists()
        (self.folder / path).write_text(text.lstrip("\n"), encoding="utf-8")

    def change(self, path: str, *edits: tuple[str, str]) -> None:
        """Replace patterns that must occur once each."""
        text = (self.folder / path).read_text(encoding="utf-8")
        for pattern, replacement in edits:
            assert len(re.findall(pattern, text, re.MULTILINE)) == 1, f"{path}: expected {pattern!r} once"
            text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
        (self.folder / path).write_text(text, encoding="utf-8")

    def append(self, path: str, text: str) -> None:
        file = self.folder / path
        file.write_text(file.read_text(encoding="utf-8") + text, encoding="utf-8")

    def touched(self) -> set[str]:
        now = self.files()
        return {path for path in now.keys() | self.before.keys() if now.get(path) != self.before.get(path)}

    def restore(self) -> None:
        for path in self.touched():
            if path in self.before:
                (self.folder / path).write_text(self.before[path], encoding="utf-8")
            else:
                (self.folder / path).unlink()

    def run(self, *arguments: str) -> str:
        """Standard output of ``castvision …`` in this house."""
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "CASTVISION_TRACEBACK": "1"}
        source = "import sys; from castvision_cli import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", source, *arguments]
        result = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout


def add_head(house: House) -> None:
    house.write("castvision/heads/pool.py", HEAD)
    house.change(
        "castvision/heads/__init__.py",
        (r"^__all__ = \[", r"from castvision.heads.pool import PoolHead\n\n\g<0>"),
        (r"^__all__ = \[", r'\g<0>"PoolHead", '),
    )


def add_data(house: House) -> None:
    house.write("castvision/data/datasets/stripes.py", DATASET)
    house.write("castvision/training/data/stripes.py", DATA_MODULE)
    house.append("castvision/training/__init__.py", "from castvision.training.data.stripes import StripesDataModule\n")


def add_attention(house: House) -> None:
    house.write("castvision/layers/mean.py", ATTENTION)
    house.change(
        "castvision/layers/block.py",
        (r"^from castvision.ops import", r"from castvision.layers.mean import MeanAttention\n\g<0>"),
        (r"^ATTN_LAYERS: .* = \{", r'\g<0>"mean": MeanAttention, '),
    )


def add_variant(house: House) -> None:
    path = "castvision/models/variants.py"
    house.change(path, (r'^( +"cast_vit_)atto(_patch4_32\.untrained\*": .+)$', r"\g<0>\n\1femto\2"))
    house.append(path, VARIANT)


def add_command(house: House) -> None:
    house.write("castvision_cli/count.py", COMMAND)
    path = "castvision_cli/__init__.py"
    is_by_module = "VERBS = {" in (house.folder / path).read_text(encoding="utf-8")
    entry = '"count"' if is_by_module else 'lambda rest: _main_of("castvision_cli.count")(rest)'
    house.change(
        path,
        (r"^VERBS.* = \{$", rf'\g<0>\n    "count": {entry},'),
        (r"\n\ncastvision VERB --help", r"\n  count             how many words   castvision count a b\g<0>"),
    )


def add_configuration(house: House) -> None:
    house.write("configs/stripes.yaml", CONFIG)


ADDITIONS = {
    "a head": (add_head, {"pool"}),
    "a data set and its data module": (add_data, {"stripes"}),
    "an attention layer": (add_attention, {"mean"}),
    "a model variant": (add_variant, {"femto"}),
    "a command": (add_command, {"count"}),
    "a configuration": (add_configuration, {"stripes"}),
}


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def promises() -> dict[str, set[str]]:
    """What CONTRIBUTING.md says: which files each addition touches."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return {what: set(re.findall(r"`([^`]+)`", files)) for what, files in ROW.findall(text)}


def test_every_promise_is_tried():
    assert promises().keys() == ADDITIONS.keys()


@pytest.mark.parametrize("what", ADDITIONS)
def test_an_addition_touches_the_files_named_and_goes_without_a_trace(what: str, house: House):
    add, (name,) = ADDITIONS[what]
    add(house)
    assert house.touched() == {path.replace("NAME", name) for path in promises()[what]}
    house.restore()
    assert not house.touched()


def test_additions_are_found_by_their_names_and_train(house: House):
    """All in one run: head, data, attention and variant by the names in a configuration found by its own."""
    for add, _ in ADDITIONS.values():
        add(house)
    assert house.run("count", "one", "two") == "2\n"
    assert "count" in house.run("--help")
    house.run("train", "--config", "stripes", "--run_dir", "run")
    results = json.loads((house.folder / "run/metrics.json").read_text(encoding="utf-8"))
    assert results["training"]["steps"] == 2
    assert results["model"]["name"] == "cast_vit_femto_patch4_32"
    of_data = {"in_chans": 1, "img_size": 32}
    assert results["model"]["kwargs"] == {"attn_layer": "mean", **of_data}
    assert results["class_names"] == ["dark", "bright"]
    names = torch.load(house.folder / "run/best.ckpt", weights_only=True)["state_dict"].keys()
    assert {"model.backbone.blocks.0.attn.proj.weight", "model.head.classifier.weight"} <= names
    assert not any("qkv" in name for name in names)
