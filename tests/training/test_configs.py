"""Every shipped configuration runs two steps, and in the slow tests an epoch; each is named as the house wants it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from castvision.data.datasets.lra import LRAImage
from castvision.models.segmenter import create_segmenter
from castvision.ops.partitions import window_size_for
from castvision_cli import train as cli
from castvision_cli.early.monitors import check_monitor
from castvision_cli.train import config_folder, config_names, find_config
from tests.data.image_files import save_apart
from tests.training.data.test_classification import TinyCIFAR, write_cifar
from tests.training.data.test_windows import write_rasters
from tests.training.slide_cases import write_bags

SMALL = {
    "PathfinderDataModule": ["--data.train_length", "64", "--data.val_length", "8", "--data.img_size", "32"],
    "MazeDataModule": ["--data.train_length", "64", "--data.val_length", "8"],
    "RegionDataModule": ["--data.train_length", "64", "--data.val_length", "8"],
    "CopyMoveDataModule": ["--data.train_length", "64", "--data.val_length", "8"],
    "PathfinderSegDataModule": ["--data.train_length", "64", "--data.val_length", "8"],
    "LRAImageDataModule": [],
    "ImageFolderDataModule": ["--data.img_size", "32"],
    "SegmentationDataModule": ["--data.img_size", "32", "--model.model_kwargs.img_size", "32"],
    "InstanceDataModule": ["--data.img_size", "32", "--model.model_kwargs.img_size", "32"],
    "MultiLabelCsvDataModule": ["--data.img_size", "32"],
    "SlideDataModule": ["--model.model_kwargs.in_chans", "6"],
    "WindowDataModule": ["--data.size", "32", "--data.train_length", "8", "--model.model_kwargs.img_size", "32"],
    "UnlabelledFolderDataModule": ["--data.img_size", "56", "--model.model_kwargs.pretrained", "false"],
}


def _folder(root: Path, train: int = 8) -> Path:
    for split, count in (("train", train), ("val", 8)):
        for place, name in enumerate(("cat", "dog")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count // 2):
                save_apart(Image.new("RGB", (40, 32), (90 * place, 20 * number % 256, 60)), folder / f"{number}.png")
    return root


def _pairs(root: Path, train: int = 4) -> Path:
    for split, count in (("train", train), ("val", 4)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            mask = Image.new("L", (40, 32), 0)
            mask.paste(1, (number % 16, 4, 20, 30))
            mask.save(root / split / "masks" / f"{number}.png")
            picture = Image.eval(mask, lambda value: 200 * value).convert("RGB")
            save_apart(picture, root / split / "images" / f"{number}.png")
    return root


def _lists(root: Path, train: int = 8) -> Path:
    _folder(root, train)
    for split, count in (("train", train // 2), ("val", 4)):
        places = [(name, number) for name in ("cat", "dog") for number in range(count)]
        lines = [f"{split}/{name}/{number}.png,{int(name == 'cat')},{number % 2}" for name, number in places]
        (root / f"{split}.csv").write_text("\n".join(["path,cat,odd", *lines]) + "\n")
    return root


def _numbered(root: Path, train: int = 8) -> Path:
    """The pairs' masks in the place of masks of objects: one object in each."""
    _pairs(root, train)
    for masks in sorted(root.glob("*/masks")):
        masks.rename(masks.with_name("objects"))
    return root


def _slides(root: Path, train: int = 16) -> Path:
    return write_bags(root, ["a", "b"] * (train * 5 // 8))  # a fifth of them is held out


EPOCH = 2000
"""Training images of the slow test."""
GENERATED = {name for name, flags in SMALL.items() if "--data.train_length" in flags}
WRITERS = {
    "WindowDataModule": write_rasters,
    "ImageFolderDataModule": _folder,
    "SegmentationDataModule": _pairs,
    "InstanceDataModule": _numbered,
    "MultiLabelCsvDataModule": _lists,
    "SlideDataModule": _slides,
    "UnlabelledFolderDataModule": _folder,
}


def _flags(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, train: int | None = None) -> list[str]:
    """Data and a small model for a configuration; all else is as shipped.

    Args:
        name: Of the configuration.
        folder: For the data and the run.
        monkeypatch: Of the test.
        train: Training images that are written; None = a handful.
    """
    content = yaml.safe_load(find_config(name).read_text())
    module = content["data"]["class_path"]
    flags = list(SMALL[module])
    if module == "SlideDataModule":
        pytest.importorskip("h5py")
    if module in WRITERS:
        is_by_image = module != "WindowDataModule"  # which draws any number of windows from a few rasters
        counts = () if train is None or not is_by_image else (train,)
        flags += ["--data.root", str(WRITERS[module](folder / "data", *counts))]
    if module == "LRAImageDataModule":
        monkeypatch.setattr(LRAImage, "source", TinyCIFAR)
        write_cifar(folder, *(() if train is None else (train + 223,)))  # a tenth of them is held out
        flags += ["--data.root", str(folder)]
    if module == "SlideDataModule":
        flags += ["--data.features", str(folder / "data")]
    elif not name.endswith("_cnn"):
        flags += ["--model.model_kwargs.depth", "1"]
    if (
        not name.endswith("_cnn")
        and module != "SlideDataModule"
        and "atto" not in content["model"]["init_args"]["model_name"]
    ):
        flags += ["--model.model_kwargs.embed_dim", "32", "--model.model_kwargs.num_heads", "2"]
    return [*flags, "--data.num_workers", "0", "--trainer.accelerator", "cpu"]


@pytest.mark.parametrize("name", config_names())
def test_two_steps(name, tmp_path, monkeypatch):
    content = yaml.safe_load(find_config(name).read_text())
    flags = [*_flags(name, tmp_path, monkeypatch), "--data.batch_size", "4"]
    flags += ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "1"]
    assert cli.main(["--config", name, "--run_dir", str(tmp_path / "run"), *flags]) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["training"]["steps"] == 2
    assert torch.load(tmp_path / "run/best.ckpt", weights_only=True)["castvision"]["model_name"]
    is_control = name.startswith("quickstart_")
    arguments = content["model"]["init_args"]
    has_clusters = (arguments["model_name"].startswith("cast_") or "attention" in arguments) and not is_control
    assert bool(metrics["clusters"]) == has_clusters
    for metric in metrics["last"]:  # early checks know all metrics of our tasks
        check_monitor(content["model"]["class_path"], "EarlyStopping", {"monitor": metric})


PRECISIONS = ("64-true", "32-true", "bf16-true", "bf16-mixed")
"""All that Lightning offers on a CPU, beside 16-true; bf16, 32 and 64 are other names of these."""


def _slow_unless(is_fast: bool, *values: str):
    return pytest.param(*values, marks=[] if is_fast else pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        # a fused optimiser, and gradients that are clipped
        _slow_unless(name == "quickstart" and precision != "32-true", name, precision)
        for name in config_names()
        for precision in PRECISIONS
    ],
)
def test_every_precision_trains(name, precision, tmp_path, monkeypatch):
    flags = [*_flags(name, tmp_path, monkeypatch), "--data.batch_size", "4", "--trainer.precision", precision]
    flags += ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "1"]
    assert cli.main(["--config", name, "--run_dir", str(tmp_path / "run"), *flags]) == 0
    weights = torch.load(tmp_path / "run/best.ckpt", weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", config_names())
def test_a_full_epoch(name, tmp_path, monkeypatch):
    """2,000 images through what a configuration does to images: what fails for one in a thousand shows here."""
    module = yaml.safe_load(find_config(name).read_text())["data"]["class_path"]
    flags = _flags(name, tmp_path, monkeypatch, EPOCH)
    for flag in ("--data.train_length", "--data.batch_size"):
        while flag in flags:  # a handful of images, as the test of two steps has them
            del flags[flags.index(flag) : flags.index(flag) + 2]
    if module in GENERATED:
        flags += ["--data.train_length", str(EPOCH)]
    flags += ["--data.batch_size", "16", "--trainer.max_epochs", "1", "--trainer.max_steps", "-1"]
    assert cli.main(["--config", name, "--run_dir", str(tmp_path / "run"), *flags]) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["training"]["steps"] == EPOCH // 16


@pytest.mark.parametrize("name", config_names())
def test_a_configuration_is_short_and_says_how_to_run_it(name):
    lines = (config_folder() / f"{name}.yaml").read_text().splitlines()
    assert 8 <= len(lines) <= 40
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert f"castvision train --config {name}" in header


@pytest.mark.parametrize(
    ("name", "difference"),
    [("quickstart_no_summaries", {"summaries": "none"}), ("quickstart_no_attention", {"attn_layer": "none"})],
)
def test_a_control_differs_from_the_quick_start_by_its_attention_only(name, difference):
    model, control = (yaml.safe_load(find_config(each).read_text()) for each in ("quickstart", name))
    assert control["model"]["init_args"].pop("model_kwargs") == difference
    assert model == control


def test_the_quick_start_counts_images_and_looks_beyond_a_window():
    content = yaml.safe_load(find_config("quickstart").read_text())
    assert "max_time" not in content["trainer"]  # a clock would give each machine another result
    grid = create_segmenter(content["model"]["init_args"]["model_name"], 2).backbone.patch_embed.grid_size
    assert (window_size_for(*grid), grid) == (4, (8, 8))


@pytest.mark.parametrize("name", [name for name in config_names() if name.endswith("_cnn")])
def test_a_small_cnn_sees_35_pixels(name):
    arguments = yaml.safe_load(find_config(name).read_text())["model"]["init_args"]
    kwargs = {"model_name": arguments["model_name"], "num_classes": 2, "model_kwargs": arguments["model_kwargs"]}
    model = create_segmenter(**kwargs, head=arguments["head"], out_indices=arguments["out_indices"]).eval()
    for parameter in model.backbone.parameters():
        if parameter.ndim == 1:  # timm starts every residual branch at zero, where it sees nothing
            torch.nn.init.ones_(parameter)
    reach = torch.zeros(64, 64, dtype=torch.bool)
    for _ in range(20):  # a unit that is off hides what it sees
        noise = torch.randn(1, 1, 64, 64, requires_grad=True)
        model(noise)[0, 1, 32, 32].backward()
        reach |= noise.grad[0, 0] != 0
    rows = reach.any(1).nonzero()
    assert rows.max() - rows.min() + 1 == 35


@pytest.mark.parametrize("name", [name for name in config_names() if name.endswith("_cnn")])
def test_a_small_cnn_trains_on_what_its_model_trains_on(name):
    control, model = (yaml.safe_load(find_config(each).read_text()) for each in (name, name.removesuffix("_cnn")))
    assert control["data"] == model["data"] and control["trainer"] == model["trainer"]
    assert control["model"]["init_args"]["optimizer"] == model["model"]["init_args"]["optimizer"]


def test_names_are_found_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("quickstart").is_file()
    assert find_config("quickstart.yaml") == find_config("quickstart")
    Path("quickstart").write_text("here")
    assert find_config("quickstart").read_text() == "here"
    with pytest.raises(FileNotFoundError, match="did you mean pathx128"):
        find_config("pathx-128")
