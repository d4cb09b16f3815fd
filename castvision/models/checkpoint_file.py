"""Files of weights on disk: written whole, read without running what is in them, damage refused in one line."""

from __future__ import annotations

import json
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from castvision.errors import CheckpointError, one_line
from castvision.files import draft

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PROGRAMS = {".onnx": "ONNX, which castvision predict runs", ".pt2": "torch.export, which torch.export.load runs"}
"""What `castvision export` writes beside checkpoints."""


def write(content: Mapping[str, Any], path: str | Path) -> None:
    """Write a file that `read` reads; while it is written, what was there before stays whole.

    Args:
        content: Tensors and plain values.
        path: The file; its folder is made.

    Raises:
        OSError: It cannot be written, such as no space left; it names the file.
    """
    path = Path(path)
    with draft(path, is_durable=True) as temporary, temporary.open("wb") as file:
        try:
            torch.save(dict(content), file)
        except RuntimeError as error:  # torch's writer, after an error of the system
            cause = error.__cause__ or error.__context__
            raise cause if isinstance(cause, OSError) else OSError(f"cannot write {str(path)!r}: {error}") from error


def read(path: str | Path, *, is_mapped: bool = False) -> Any:
    """Read a file of torch's; no code in it is run.

    Args:
        path: The file, of any version of torch, or safetensors; of those a dict with "state_dict" and what
            `write_safetensors` added.
        is_mapped: Leave tensors on disk until they are used, and do not look for damage in them.

    Raises:
        FileNotFoundError: No such file.
        CheckpointError: Damaged, or not such a file.
    """
    with reading(path):
        if Path(path).suffix == ".safetensors":
            with safe_open(str(path), "pt") as file:
                facts = {key: json.loads(text) for key, text in (file.metadata() or {}).items() if key != "format"}
                return {**facts, "state_dict": {key: file.get_tensor(key) for key in file.keys()}}
        if not is_mapped:
            check_intact(path)
        return torch.load(path, map_location="cpu", mmap=is_mapped or None, weights_only=True)


def write_safetensors(weights: Mapping[str, Tensor], facts: Mapping[str, Any], path: Path) -> None:
    """Write weights in safetensors' format, with facts beside them; `read` gives both.

    Args:
        weights: Name to tensor.
        facts: Plain values by key.
        path: The file; its folder exists.

    Raises:
        OSError: It cannot be written.
    """
    told = {key: json.dumps(value) for key, value in facts.items()}
    with draft(path, is_durable=True) as temporary:
        save_file({key: value.contiguous() for key, value in weights.items()}, temporary, {"format": "pt", **told})


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Whatever a reader raises inside becomes one `CheckpointError` that names the file.

    Raises:
        FileNotFoundError: No such file.
        CheckpointError: Anything else, such as a program that `castvision export` wrote of a checkpoint.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected a checkpoint at {str(path)!r}, found no such file; check the path")
    if (kind := _PROGRAMS.get(Path(path).suffix)) is not None:
        raise CheckpointError(
            f"expected weights that can be rebuilt into a model, got a program of {kind}: {str(path)!r}; give the "
            "checkpoint that it was exported from"
        )
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # a reader of damaged bytes raises anything
        raise CheckpointError(f"cannot read checkpoint {str(path)!r}, is it damaged? {one_line(error, 200)}") from error


def check_intact(path: str | Path) -> None:
    """Compare the checksums that torch writes beside every tensor; torch itself does not.

    Files of torch are zip archives since 1.6, and each of their parts has a checksum (CRC-32): one flipped bit in
    anything that is read is found. Other files (older ones, safetensors) have none.

    Args:
        path: The file.

    Raises:
        CheckpointError: Damaged.
    """
    with reading(path):
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    if damaged is not None:
        raise CheckpointError(
            f"the checkpoint {str(path)!r} is damaged: the checksum of its part {damaged!r} is another one; copy it "
            "again, or take an older checkpoint"
        )


def check_finite(weights: Mapping[str, Any], path: str | Path) -> None:
    """Refuse weights that answer every image with NaN.

    Args:
        weights: Name to tensor; what is no tensor of floating point is left out.
        path: Of the file, for the message.

    Raises:
        CheckpointError: NaN or infinite values; it names some.
    """
    floats = {key: value for key, value in weights.items() if isinstance(value, Tensor) and value.is_floating_point()}
    bad = [key for key, value in floats.items() if value.numel() and not bool(torch.isfinite(value).all())]
    if bad:
        raise CheckpointError(
            f"expected finite weights in {str(path)!r}, got NaN or infinity in {len(bad)} of {len(floats)}, such as "
            f"{bad[0]}; take an earlier checkpoint"
        )
