"""Damaged safetensors through every command that takes a model: one line, exit code 2, nothing written."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import timm
from PIL import Image
from safetensors.torch import save_file

from castvision_cli import main

ATTO = "cast_vit_atto_patch4_32"
COMMANDS = {
    "predict": ["predict", "{image}", "--model", "{model}", "--output", "{out}"],
    "evaluate": ["evaluate", "--images", "{image}", "--model", "{model}", "--output", "{out}"],
    "embed": ["embed", "{image}", "--model", "{model}", "--output", "{out}"],
    "demo": ["demo", "{image}", "--model", "{model}", "--output", "{out}"],
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A model in timm's layout, and an image."""
    folder = tmp_path_factory.mktemp("sound")
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(folder / "image.png")
    model = timm.create_model(ATTO, num_classes=2, depth=1)
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {"architecture": ATTO, "num_classes": 2, "model_args": {"depth": 1, "in_chans": 1}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def with_header(data, change):
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def first(header):
    return next(name for name in header if name != "__metadata__")


DAMAGE = {
    "cut": lambda data: data[: len(data) // 2],
    "cut by a byte": lambda data: data[:-1],
    "header cut": lambda data: data[:100],
    "empty": lambda data: b"",
    "length huge": lambda data: struct.pack("<Q", 2**63) + data[8:],
    "length zero": lambda data: bytes(8) + data[8:],
    "header no map": lambda data: struct.pack("<Q", 4) + b"[1] " + data[12:],
    "shape huge": lambda data: with_header(data, lambda h: h[first(h)].update(shape=[2**40, 2**40])),
    "unknown type": lambda data: with_header(data, lambda h: h[first(h)].update(dtype="X9")),
    "offsets outside": lambda data: with_header(data, lambda h: h[first(h)].update(data_offsets=[2**40, 2**41])),
    "entry a number": lambda data: with_header(data, lambda h: h.update({first(h): 3})),
    "name missing": lambda data: with_header(data, lambda h: h.update(other=h.pop(first(h)))),
}


CASES = [("predict", form, damage) for damage in DAMAGE for form in ("file", "folder")]
CASES += [
    (command, "folder", damage) for command in ("evaluate", "embed", "demo") for damage in ("cut", "unknown type")
]


@pytest.mark.parametrize(("command", "form", "damage"), CASES)
def test_one_line(sound, tmp_path, capsys, command, form, damage):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_bytes((sound / "config.json").read_bytes())
    weights = tmp_path / "model/model.safetensors"
    weights.write_bytes(DAMAGE[damage]((sound / "model.safetensors").read_bytes()))
    places = {
        "image": sound / "image.png",
        "model": weights if form == "file" else tmp_path / "model",
        "out": tmp_path / "out",
    }
    code = main([word.format(**places) for word in COMMANDS[command]])
    told = capsys.readouterr().err
    assert code == 2 and told.count("\n") == 1 and str(tmp_path / "model") in told, told
    assert not (tmp_path / "out").exists()
