"""The commonest mistakes are said before torch is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from castvision_cli.early_checks import (
    check_model,
    check_output,
    check_paths_of_run,
    check_run_folder,
    check_sources,
    read_config,
)

LIGHT = """
import sys
from castvision_cli import main
assert main(sys.argv[1:]) == 2
heavy = {"castvision", "torch", "timm", "lightning", "jsonargparse", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("predict gone.png --model a.ckpt --output out", "no such image or folder: 'gone.png'"),
        ("predict text.png --model gone.ckpt --output out", "expected an image, got text in 'text.png'"),
        ("predict photo.png --model gone.ckpt --output out", "no such checkpoint or folder: 'gone.ckpt'"),
        ("predict photo.png --model text.ckpt --output out", "cannot read checkpoint 'text.ckpt'"),
        ("predict photo.png --model noise.ckpt --output out", "cannot read checkpoint 'noise.ckpt', is it damaged?"),
        ("predict photo.png --model short.safetensors --output out", "cannot read checkpoint 'short.safetensors', is"),
        ("evaluate --model gone.ckpt --images . --output out", "no such checkpoint or folder: 'gone.ckpt'"),
        ("demo gone.jpg --model cast_vit_tiny_patch16_224 --output out", "no such image or folder: 'gone.jpg'"),
        ("train --config bad.yaml", "cannot read the configuration 'bad.yaml'"),
        ("train --config image_folder --data.root gone", "no such folder or list: 'gone'"),
        ("train --config quickstart --run_dir done", "'done' holds a finished run; choose another --run_dir"),
        ("train --config image_folder --data.root done", "'runs/image_folder' holds a finished run; choose another"),
        ("train --config quickstart --trainer.max_epoch 2", "did you mean trainer.max_epochs?"),
        ("train --config quickstart --run-dir x", "did you mean run_dir?"),
        ("train --config quickstart --init-from gone.ckpt", "expected a checkpoint at 'gone.ckpt'"),
        ("data show --config quickstart --output a.png --data.imgsize 3", "did you mean data.img_size?"),
    ],
)
def test_nothing_heavy_is_imported_for_it(tmp_path, arguments, message):
    (tmp_path / "text.png").write_text("hello\n")
    (tmp_path / "text.ckpt").write_text("hello\n")
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n")
    (tmp_path / "bad.yaml").write_text("model: [1\n")
    (tmp_path / "noise.ckpt").write_bytes(b"\xff\x00\x13" * 100)
    (tmp_path / "short.safetensors").write_bytes((500).to_bytes(8, "little") + b'{"a": 1}')
    for run in ("done", "runs/image_folder"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "metrics.json").write_text("{}")
    path = [*sys.path, str(Path(__file__).parents[2])]
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *arguments.split()], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={"PYTHONPATH": ":".join(path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_what_may_be_right_is_let_through(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "new.ckpt")
    torch.save({"a": torch.zeros(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file({"a": torch.zeros(2)}, tmp_path / "b.safetensors")
    for name in ("new.ckpt", "old.pth", "b.safetensors"):
        check_model(str(tmp_path / name))
    check_run_folder(["--run_dir", str(tmp_path)], [Path("done.yaml")], [{"run_dir": "done"}])
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
