from __future__ import annotations

import math
import os
import random
import signal
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from castvision.errors import CheckpointError
from castvision.inference.predictor import load_model
from castvision.models import checkpoint_file
from castvision.models.checkpoint import load_state_dict
from castvision.models.recipe import InputFormat, Recipe, load, save

KWARGS = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 4, "img_size": 16}
FACTS = InputFormat(3, (16, 16), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small checkpoint, its recipe and its model."""
    model = timm.create_model("vit_tiny_patch16_224", num_classes=2, **KWARGS)
    recipe = Recipe("classification", "vit_tiny_patch16_224", 2, ("a", "b"), model_kwargs=KWARGS, input=FACTS)
    path = tmp_path_factory.mktemp("made") / "made.ckpt"
    save(path, recipe, model)
    return path, recipe, model


def same(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return first == second


def flipped(raw, bit):
    changed = bytearray(raw)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_flipped_bit_of_a_tensor_is_found(made, tmp_path):
    path, *_ = made
    raw, damaged = path.read_bytes(), tmp_path / "damaged.ckpt"
    with zipfile.ZipFile(path) as archive:
        part = max(archive.infolist(), key=lambda each: each.file_size)
        content = archive.read(part)
    start = raw.index(content)
    for bit in random.Random(0).sample(range(8 * start, 8 * (start + len(content))), 20):
        damaged.write_bytes(flipped(raw, bit))
        torch.load(damaged, weights_only=True)  # torch sees nothing
        for reader in (load, load_state_dict, checkpoint_file.read):
            with pytest.raises(CheckpointError, match="is damaged: the checksum"):
                reader(damaged)


def test_a_flipped_bit_anywhere_is_found_or_changes_nothing(tmp_path):
    """Beside the tensors a file holds names, sizes and padding."""
    content = {"weight": torch.randn(3), "castvision": {"std": [0.5], "names": ["a"]}}
    path, damaged = tmp_path / "small.ckpt", tmp_path / "damaged.ckpt"
    checkpoint_file.write(content, path)
    raw, found, bits = path.read_bytes(), 0, random.Random(0)
    tried = range(0, len(raw), 7)
    for byte in tried:
        damaged.write_bytes(flipped(raw, 8 * byte + bits.randrange(8)))
        try:
            assert same(checkpoint_file.read(damaged), content), byte
        except CheckpointError as error:
            assert "\n" not in str(error)
            found += 1
    assert found > len(tried) / 3


def test_files_without_checksums_still_load(tmp_path):
    state = {"weight": torch.randn(2, 2)}
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "weights.safetensors")
    assert same(checkpoint_file.read(tmp_path / "old.pt"), state)
    for name in ("old.pt", "weights.safetensors"):
        assert same(load_state_dict(tmp_path / name), state)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(made, tmp_path, value):
    _, recipe, model = made
    path, state = tmp_path / "bad.ckpt", model.state_dict()
    kept = state["blocks.0.mlp.fc1.weight"][0, 0].clone()
    state["blocks.0.mlp.fc1.weight"][0, 0] = value
    save(path, recipe, model)
    state["blocks.0.mlp.fc1.weight"][0, 0] = kept
    for reader in (load, load_model, load_state_dict):
        with pytest.raises(CheckpointError, match=r"finite weights in .*bad\.ckpt.*1 of \d+, such as blocks\.0\.mlp"):
            reader(path)


@pytest.mark.parametrize("change", [{"std": [0.25, 0.0, 0.25]}, {"std": [math.nan] * 3}, {"mean": [math.inf] * 3},
                                    {"std": []}, {"img_size": [0, 16]}, {"in_chans": 0}])  # fmt: skip
def test_statistics_that_no_data_have_are_refused(made, tmp_path, change):
    path, *_ = made
    content = checkpoint_file.read(path)
    content["castvision"] |= change
    checkpoint_file.write(content, tmp_path / "bad.ckpt")
    with pytest.raises(CheckpointError, match=r"expected finite means, deviations > 0.*" + next(iter(change))):
        load(tmp_path / "bad.ckpt")


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """The system refuses to write beyond a limit, as it does on a full disk."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "last.ckpt"
    checkpoint_file.write({"weight": torch.ones(8)}, path)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
        with pytest.raises(OSError, match=r"cannot write.*last\.ckpt"):
            checkpoint_file.write({"weight": torch.ones(1 << 18)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.ckpt"]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no way to see what is flushed")
def test_the_file_and_its_folder_are_flushed_around_the_move(tmp_path, monkeypatch):
    order = []
    flush, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: (order.append(os.readlink(f"/proc/self/fd/{handle}")), flush(handle))
    )
    monkeypatch.setattr("pathlib.Path.replace", lambda self, to: (order.append("move"), replace(self, to)))
    checkpoint_file.write({"weight": torch.ones(8)}, tmp_path / "last.ckpt")
    assert order == [str(tmp_path / ".last.ckpt.part"), "move", str(tmp_path)]


@pytest.mark.parametrize(("name", "kind"), [("model.pt2", "torch.export"), ("model.onnx", "ONNX")])
def test_what_was_exported_is_no_checkpoint(tmp_path, name, kind):
    """It is not damaged either."""
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("model/archive_format", "pt2")
    for read in (checkpoint_file.read, *([load_state_dict] if name.endswith("pt2") else [])):
        with pytest.raises(CheckpointError, match=f"got a program of {kind}.*give the checkpoint that it was exported"):
            read(tmp_path / name)
