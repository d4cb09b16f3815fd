"""The commonest mistakes are said before torch is imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from castvision.models.shipped import shipped_names
from castvision_cli.early.paths import (
    check_model,
    check_output,
    check_paths_of_run,
    check_run_folder,
    check_sources,
    read_config,
)
from castvision_cli.early.values import check_value, model_names

LIGHT = """
import sys
from castvision_cli import main
assert main(sys.argv[1:]) == 2
heavy = {"castvision.models", "torch", "timm", "lightning", "jsonargparse", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("predict gone.png --model a.ckpt --output out", "no such image or folder: 'gone.png'"),
        ("predict text.png --model gone.ckpt --output out", "expected an image, got text in 'text.png'"),
        ("predict good.png --model gone.ckpt --output out", "no such checkpoint or folder: 'gone.ckpt'"),
        ("predict good.png --model text.ckpt --output out", "cannot read checkpoint 'text.ckpt'"),
        ("predict good.png --model noise.ckpt --output out", "cannot read checkpoint 'noise.ckpt', is it damaged?"),
        ("predict good.png --model short.safetensors --output out", "cannot read checkpoint 'short.safetensors', is"),
        ("evaluate --model gone.ckpt --images . --output out", "no such checkpoint or folder: 'gone.ckpt'"),
        ("demo gone.jpg --model cast_vit_tiny_patch16_224 --output out", "no such image or folder: 'gone.jpg'"),
        ("train --config bad.yaml", "cannot read the configuration 'bad.yaml'"),
        ("train --config endless.yaml", "expected a configuration that ends in 'endless.yaml', got an alias"),
        ("train --config image_folder --data.root gone", "no such folder or list: 'gone'"),
        ("train --config quickstart --run_dir done", "'done' holds a finished run; choose another --run_dir"),
        ("train --config image_folder --data.root classes", "'runs/image_folder' holds a finished run; choose another"),
        ("train --config quickstart --trainer.max_epoch 2", "did you mean trainer.max_epochs?"),
        ("train --config quickstart --run_dir bad.yaml/run", "expected a folder for the output, got a file"),
        ("train --config quickstart --run-dir x", "did you mean run_dir?"),
        ("train --config quickstart --init-from gone.ckpt", "expected a checkpoint at 'gone.ckpt'"),
        ("train --config quickstart --model.head Foo", "expected head in ['FpnHead', 'LinearHead', 'MlpHead', 'UperH"),
        ("train --config quickstart --model.model_name vit_tinny", "unknown model model_name='vit_tinny', did you"),
        (
            "train --config quickstart --trainer.max_epochs abc",
            "expected trainer.max_epochs to be int or null, got 'abc'",
        ),
        ("train --config quickstart --trainer.precision bf61", "expected trainer.precision to be 64 or 32 or 16 or"),
        (
            "train --config quickstart --trainer.fast_dev_run=[1]",
            "expected trainer.fast_dev_run to be int or bool, got",
        ),
        ("train --config quickstart --data.batch_size=0", "expected data.batch_size >= 1, got 0"),
        ("train --config quickstart --model.optimizer.init_args.lr=x", "expected model.optimizer.lr >= 0, got 'x'"),
        ("train --config quickstart --trainer.accelerator=gppu", "got 'gppu', did you mean gpu?"),
        (
            "train --config quickstart --trainer.max_time=soon",
            "max_time as DD:HH:MM:SS, above zero, got 'soon'",
        ),
        ("train --config quickstart --ema 2", "expected 0 < ema < 1, got 2"),
        ("train --config quickstart --data MazDataModule", "unknown class 'MazDataModule' as data: did you mean MazeD"),
        (
            "train --config quickstart --init-from flipped.ckpt",
            "the checkpoint 'flipped.ckpt' is damaged: the checksum",
        ),
        ("train --config image_folder --data.root empty", "no images in 'empty': the folder is empty; check data.root"),
        (
            "train --config image_folder --data.root done",
            "expected a folder 'done/train' with one folder for each class",
        ),
        ("train --config segmentation_folder --data.root done", "found no images and masks in 'done'; expected one of"),
        ("predict good.png --model flipped.ckpt --output out", "the checkpoint 'flipped.ckpt' is damaged"),
        (
            "predict cut.png --model vit_tiny_patch16_224 --output out",
            "cannot read image 'cut.png': image file is trunc",
        ),
        ("predict empty --model vit_tiny_patch16_224 --output out", "no images in 'empty': the folder is empty"),
        ("embed good.png --model vit_tinny --output out", "unknown model 'vit_tinny', did you mean"),
        ("convert vit_tinny --output out", "unknown model 'vit_tinny', did you mean"),
        ("models vit_tinny", "unknown model 'vit_tinny', did you mean"),
        ("data show --config quickstart --output a.png --data.imgsize 3", "did you mean data.img_size?"),
    ],
)
def test_nothing_heavy_is_imported_for_it(tmp_path, arguments, message):
    (tmp_path / "text.png").write_text("hello\n")
    (tmp_path / "text.ckpt").write_text("hello\n")
    (tmp_path / "bad.yaml").write_text("model: [1\n")
    (tmp_path / "empty" / "folder").mkdir(parents=True)
    Image.effect_noise((64, 64), 50).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    torch.save({"weights": torch.zeros(500)}, tmp_path / "good.ckpt")
    content = bytearray((tmp_path / "good.ckpt").read_bytes())
    content[content.index(bytes(2000)) + 1000] ^= 1
    (tmp_path / "flipped.ckpt").write_bytes(content)
    (tmp_path / "endless.yaml").write_text("data: &a\n  init_args: {x: [*a]}\n")
    (tmp_path / "noise.ckpt").write_bytes(b"\xff\x00\x13" * 100)
    (tmp_path / "short.safetensors").write_bytes((500).to_bytes(8, "little") + b'{"a": 1}')
    for folder in ("train", "val"):
        (tmp_path / "classes" / folder / "a").mkdir(parents=True)
    (tmp_path / "classes" / "train" / "a" / "x.png").touch()
    for run in ("done", "runs/image_folder"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "metrics.json").write_text("{}")
    path = [*sys.path, str(Path(__file__).parents[3])]
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *arguments.split()], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={"PYTHONPATH": ":".join(path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *usage, line = done.stderr.splitlines()
    assert message in line and all(each.startswith(("usage:", " ")) for each in usage)


def test_what_may_be_right_is_let_through(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "new.ckpt")
    torch.save({"a": torch.zeros(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file({"a": torch.zeros(2)}, tmp_path / "b.safetensors")
    names = ["new.ckpt", "old.pth", "b.safetensors"]
    for name in [*(str(tmp_path / name) for name in names), "hf-hub:timm/any", "vit_small_patch14_dinov2.lvd142m"]:
        check_model(name)
    check_run_folder("fit", ["--run_dir", str(tmp_path)], Path("done.yaml"), [{"run_dir": "done"}])
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n")
    (tmp_path / "b.png").write_text("text")
    check_sources([tmp_path, str(tmp_path / "*.png")])
    check_sources([tmp_path / "b.png", tmp_path / "a.png"])  # one that can be read: the other is named at the end
    check_model("cast_vit_tiny_patch16_224")
    check_output(tmp_path / "new", is_open=False)
    check_output(tmp_path, is_open=True)
    check_paths_of_run(["--data.root", str(tmp_path)], [{"data": {"init_args": {"root": "gone"}}}])
    check_paths_of_run(["--data.download", "true"], [{"data": {"init_args": {"root": "gone"}}}])


def test_folders_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match="name a new one or pass --overwrite"):
        check_output(tmp_path, is_open=False)
    with pytest.raises(NotADirectoryError, match="got a file"):
        check_output(tmp_path / "file", is_open=True)
    with pytest.raises(FileNotFoundError, match=r"found no config\.json"):
        check_model(str(tmp_path))
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ValueError, match="expected sections"):
        read_config(tmp_path / "list.yaml")


def test_names_of_models_are_those_that_are_registered():
    timms = {name.split(".")[0] for name in timm.list_models()}
    assert {*timms, "tv_resnext50_32x4d"} <= model_names()
    assert all(timm.is_model(name) for name in model_names() - {*shipped_names()})


@pytest.mark.parametrize(
    ("annotation", "right", "wrong"),
    [
        ("int", [1, "2", 1e3], ["a", 1.5, True, None, [1]]),
        ("float | None", [1, "1e-3", 2.5, None], ["a", False, {}]),
        ("Optional[Union[int, bool]]", [3, "yes", None], ["a", 2.5]),
        ("Literal['a', 1]", ["a", 1], ["b", 2, None]),
        ("str", ["a", 1, False], [[1], {}]),
        ("int | Sequence[int]", [1, [1], "3"], ["anything", [[1]]]),
        ("list[int]", [[1, "2"], "[1, 2]"], [1, "anything", ["a"], {}]),
        ("dict[str, Any] | None", [{}, None, "{a: 1}"], [1, "anything", []]),
        ("tuple[int, int]", [[1, 2]], [1, [1], [1, 2, 3], "a"]),
        ("tuple[int, ...]", [[1], [1, 2, 3]], [1, ["a"]]),
        ("SomeClass", ["anything", {}, 1], []),
    ],
)
def test_values_are_judged_by_annotations(annotation, right, wrong):
    tree = ast.parse(annotation, mode="eval").body
    for value in right:
        check_value("model.any", value, tree)
    for value in wrong:
        with pytest.raises(ValueError, match=r"expected model\.any to be"):
            check_value("model.any", value, tree)
