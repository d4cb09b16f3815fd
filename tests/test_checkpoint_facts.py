from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file

import castvision
from castvision.checkpoint_facts import is_slide_model, stored_facts

FACTS = {
    "format": 1, "task": "slides", "class_names": ["no", "yes"], "mean": [0.5, 1e-3], "mpp": None, "fit": True,
    "kwargs": {"depth": 2, "sizes": (1, 2)},
}  # fmt: skip


def test_what_torch_reads(tmp_path):
    """The same facts among tensors, parameters, dtypes, an optimiser's state and a state dict with its metadata."""
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content = {
        "state_dict": layer.state_dict(), "optimizer": optimizer.state_dict(), "dtype": torch.bfloat16,
        "parameter": layer.weight, "castvision": FACTS, "size": torch.Size([2]), "order": OrderedDict(a=1),
    }  # fmt: skip
    torch.save(content, tmp_path / "a.ckpt")
    assert stored_facts(tmp_path / "a.ckpt") == FACTS == torch.load(tmp_path / "a.ckpt")["castvision"]
    assert is_slide_model(tmp_path / "a.ckpt")


def test_files_of_others_remember_nothing(tmp_path):
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    torch.save([1], tmp_path / "list.pt")
    torch.save({"castvision": FACTS}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "text.ckpt").write_text("hello")
    with zipfile.ZipFile(tmp_path / "any.zip", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02nonsense")
    for path in tmp_path.iterdir():
        assert stored_facts(path) is None
        assert not is_slide_model(path)
    assert stored_facts(tmp_path / "gone.ckpt") is None
    assert stored_facts(tmp_path) is None


class _Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_no_code_is_run(tmp_path):
    """Neither beside the facts nor in their place."""
    for name, content in (
        ("beside", {"castvision": FACTS, "x": _Attack(str(tmp_path / "made"))}),
        ("instead", {"castvision": _Attack(str(tmp_path / "made"))}),
    ):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))
    assert stored_facts(tmp_path / "beside") == FACTS
    assert stored_facts(tmp_path / "instead") is None
    assert not (tmp_path / "made").exists()


def test_trained_models_of_ours_remember_theirs(tmp_path):
    """In the header of safetensors; a header that is cut short, or another's, holds none."""
    path = next(Path(castvision.__file__).parent.glob("weights/*.safetensors"))
    facts = stored_facts(path)
    assert facts is not None and facts["task"] == "segmentation" and facts["class_names"]
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:50])
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert stored_facts(tmp_path / "cut.safetensors") is stored_facts(tmp_path / "other.safetensors") is None
