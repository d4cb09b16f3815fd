"""A model as a program of torch (``.pt2``) or ONNX, of any batch, height and width, with its facts inside."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from castvision.export.source import Source, as_text
from castvision.models.context import ContextSegmenter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FACTS = "castvision"
"""Where the facts stand: a file in a ``.pt2``, an entry of the metadata in ONNX."""
TOLERANCE = 1e-4
_LARGEST = 1_900_000_000
"""Bytes of weights: ONNX holds two gigabytes in one file, graph included."""


class MaskedSegmenter(nn.Module):
    """A segmenter that is always told which pixels are real, as a program has no branches.

    Args:
        segmenter: A `castvision.models.Segmenter`.
    """

    def __init__(self, segmenter: nn.Module) -> None:
        super().__init__()
        self.segmenter: Any = segmenter
        self.classes = slice(getattr(segmenter, "num_classes", None))  # centres are beside them

    def forward(self, image: Tensor, pixel_mask: Tensor) -> Tensor:
        """(B, C, height, width) and (B, height, width) bool to logits (B, classes, height, width)."""
        image = image.masked_fill(~pixel_mask[:, None], 0.0)
        logits: Tensor = self.segmenter.head(self.segmenter.features(image, pixel_mask), image)
        return logits[:, self.classes]


class OfWholes(nn.Module):
    """A classifier, or a model of features, whose input is called "image", whatever timm calls it.

    Args:
        model: Of timm or of ours.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, height, width) to (B, num_classes)."""
        logits: Tensor = self.model(image)
        return logits


class Program:
    """A model traced once; both formats are written from it.

    Args:
        source: The model.

    Raises:
        ValueError: A model that a program cannot carry.
    """

    def __init__(self, source: Source) -> None:
        check_program(source)
        self.source, self.parts = source, source.parts
        kind = MaskedSegmenter if self.parts.task == "segmentation" else OfWholes
        self.module: nn.Module = kind(source.model).eval()
        self.exported = _exported(self.module, self.example(self.sizes()[1]), self.parts.fixed_size is not None)

    def sizes(self) -> list[tuple[int, int, int]]:
        """Batch, height and width of the five inputs that an export is checked with."""
        height, width = self.parts.fixed_size or self.parts.input.img_size
        if self.parts.fixed_size is not None:
            return [(batch, height, width) for batch in (1, 2, 3, 4, 5)]
        down, across = self.parts.patch_size
        height, width = -(-height // down) * down, -(-width // across) * across
        added = [(1, 0, 0), (2, 2, 4), (3, 4, 0), (1, 8, 3), (2, 3, 8)]
        return [(batch, height + rows * down, width + columns * across) for batch, rows, columns in added]

    def example(self, size: tuple[int, int, int]) -> tuple[Tensor, ...]:
        """Inputs of a size, the same every time: noise, and for segmenters a mask with a hole in it."""
        batch, height, width = size
        generator = torch.Generator().manual_seed(batch * height + width)
        image = torch.randn(batch, self.parts.input.in_chans, height, width, generator=generator)
        if self.parts.task != "segmentation":
            return (image,)
        mask = torch.ones(batch, height, width, dtype=torch.bool)
        mask[0, -(height // 4) :, : width // 3] = False
        return image, mask

    def checks(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """Five inputs and what the model itself makes of them."""
        for size in self.sizes():
            inputs = self.example(size)
            with torch.no_grad():
                yield inputs, self.module(*inputs)

    def facts(self) -> str:
        """What travels inside the file."""
        return as_text(self.source.facts())

    def write_torch(self, path: Path) -> float:
        """Write a ``.pt2``, read it again and run it.

        Args:
            path: The file.

        Returns:
            The largest difference from the model at five sizes.

        Raises:
            ValueError: It differs by more than `TOLERANCE`.
        """
        # NOTE: by open files: torch warns of names that do not end in .pt2, such as a file's that is not whole yet
        with quiet(), path.open("wb") as file:
            torch.export.save(self.exported, file, extra_files={FACTS: self.facts()})
        with quiet(), path.open("rb") as file:
            program = torch.export.load(io.BytesIO(file.read())).module()
        with torch.no_grad():
            found = [float((program(*inputs) - expected).abs().max()) for inputs, expected in self.checks()]
        return self.checked(found, path)

    def write_onnx(self, path: Path) -> float:
        """Write ONNX and run it in onnxruntime.

        Args:
            path: The file.

        Returns:
            The largest difference from the model at five sizes.

        Raises:
            ImportError: onnx, onnxscript or onnxruntime is missing.
            ValueError: It differs by more than `TOLERANCE`.
        """
        with quiet():
            written = torch.onnx.export(self.exported, dynamo=True, verbose=False)
        if written is None:
            raise RuntimeError("torch wrote no ONNX program")
        written.model.metadata_props[FACTS] = self.facts()
        written.save(str(path))
        return self.checked(self.differences(path), path)

    def differences(self, path: Path) -> list[float]:
        """The largest difference of an ONNX file from the model at each of five sizes."""
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs()]
        found = []
        for inputs, expected in self.checks():
            feeds = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
            found.append(float((torch.from_numpy(session.run(None, feeds)[0]) - expected).abs().max()))
        return found

    def checked(self, differences: list[float], path: Path) -> float:
        """The largest difference of an export from the model, if all are those of rounding.

        Where two clusters are equally near, rounding decides which one a token joins, and outputs move by more than
        `TOLERANCE`: then twice as much is allowed as the model itself moves, at that size, when it is rounded
        otherwise, for either of the two may lie as far from what is exact.

        Args:
            differences: At each of the five sizes.
            path: The export, for the message.

        Raises:
            ValueError: One is larger, or no number.
        """
        allowed = [TOLERANCE] * len(differences)
        if not all(found <= TOLERANCE for found in differences):
            allowed = [max(TOLERANCE, 2 * moved) for moved in self._moved_by_rounding()]
        for found, most in zip(differences, allowed, strict=True):
            if not found <= most:
                name = path.name.removeprefix(".").removesuffix(".part")  # while it is a draft
                raise ValueError(
                    f"{name} gives other outputs than the model: they differ by {found:.2g}, more than the "
                    f"{most:.2g} of rounding"
                )
        return max(differences)

    def _moved_by_rounding(self) -> list[float]:
        """The largest difference of the model's outputs from those in double precision, at each of five sizes."""
        exact, moved = copy.deepcopy(self.module).double(), []
        for inputs, found in self.checks():
            with torch.no_grad():
                expected = exact(*(value.double() if value.is_floating_point() else value for value in inputs))
            moved.append(float((found - expected).abs().max()))
        return moved


def check_program(source: Source) -> None:
    """Refuse what a program cannot carry.

    Raises:
        ValueError: A model that wants context, or one too large for a file of ONNX.
    """
    if isinstance(source.model, ContextSegmenter):
        raise ValueError(
            "a program holds no context: this model wants the whole image beside each tile; train without "
            "context_size, or give castvision predict the checkpoint itself"
        )
    size = sum(value.numel() * value.element_size() for value in source.model.state_dict().values())
    if size > _LARGEST:
        raise ValueError(
            f"expected a model of at most {_LARGEST / 1e9:.1f} GB for one file, got {size / 1e9:.1f} GB; export it "
            "by --format hf, or give castvision predict the checkpoint itself"
        )


def check_onnx_is_here() -> None:
    """Refuse before minutes of tracing.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is missing.
    """
    from importlib.util import find_spec

    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ImportError(f"ONNX needs {', '.join(missing)}: pip install 'castvision[export]'")


def _exported(module: nn.Module, example: tuple[Tensor, ...], is_fixed: bool) -> torch.export.ExportedProgram:
    dynamic = torch.export.Dim.DYNAMIC
    shapes = []
    for value in example:
        axes = [0] if is_fixed else [0, value.ndim - 2, value.ndim - 1]
        shapes.append(dict.fromkeys(axes, dynamic))
    with quiet():
        return torch.export.export(module, example, dynamic_shapes=tuple(shapes), strict=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters warn of their own insides, of which a user can change nothing; what matters is measured afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
