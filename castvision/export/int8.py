"""An ONNX file with weights of 8 bits, for CPUs, and how far it agrees with the file it was made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.export.program import quiet
from castvision.inference.prediction import CLASSIFIER_SIDE
from castvision.inference.predictor import Predictor
from castvision.inference.tile_model import open_for
from castvision.inference.writers.preview import read_reduced

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from castvision.export.program import Program
    from castvision.inference.files import OutputFolder

Pixels = np.ndarray[Any, np.dtype[Any]]
_PRODUCTS = ["MatMul", "Gemm"]
"""What is quantised: a ViT's weights. Convolutions (the stem, heads) lose more and gain no speed in onnxruntime."""


@dataclass(frozen=True)
class Agreement:
    """An 8-bit file beside the 32-bit one.

    Attributes:
        share: Of decisions (of images, or of pixels) that are the same, 0..1.
        inputs: Images that were compared.
        size: Bytes of the 8-bit file.
        original: Bytes of the 32-bit file.
        is_noise: The inputs were no images.
    """

    share: float
    inputs: int
    size: int
    original: int
    is_noise: bool

    def __str__(self) -> str:
        on = f"{self.inputs} images" + (" of noise (--images: on yours)" if self.is_noise else "")
        sizes = f"{self.size / 1e6:.2f} MB in place of {self.original / 1e6:.2f}"
        return f"of the decisions on {on} a share of {self.share:.4f} is that of fp32; {sizes}"


def write_int8(program: Program, folder: OutputFolder, name: str, target: str, images: list[Path]) -> Agreement:
    """Quantise an exported file, and compare the two.

    Args:
        program: The model.
        folder: Where the fp32 file lies.
        name: Of the fp32 file.
        target: Of the file to write.
        images: To compare on; none: eight of noise.

    Returns:
        What was measured.

    Raises:
        ValueError: An image that the model does not take.
    """
    inputs = pictures(program, images) if images else noise(program)
    with folder.draft(target) as draft:
        quantise(folder.path / name, draft)
        return agreement(
            folder.path / name, draft, inputs, several=program.parts.task == "multilabel", is_noise=not images
        )


def noise(program: Program) -> Iterator[dict[str, Pixels]]:
    """Eight inputs without meaning, of the size of training."""
    _, height, width = program.sizes()[0]
    for number in range(8):
        image = np.random.default_rng(number).normal(size=(1, program.parts.input.in_chans, height, width))
        yield feeds_of(program, image.astype(np.float32))


def pictures(program: Program, paths: Iterable[Path]) -> Iterator[dict[str, Pixels]]:
    """Images as prediction shows them to a classifier; a segmenter is shown them as a whole, brought to its size."""
    predictor = Predictor(program.parts)
    side = max(program.parts.input.img_size)
    for path in paths:
        with open_for(predictor, path) as reader:
            pixels = read_reduced(reader, CLASSIFIER_SIDE)
        is_of_wholes = program.parts.task in ("classification", "multilabel")
        shown = predictor.prepare_whole(pixels) if is_of_wholes else predictor.prepare(pixels, side)
        yield feeds_of(program, shown.numpy())


def feeds_of(program: Program, image: Pixels) -> dict[str, Pixels]:
    """The inputs of a session: (1, C, height, width) and, for segmenters, a mask without holes."""
    feeds: dict[str, Pixels] = {"image": image}
    if program.parts.task == "segmentation":
        feeds["pixel_mask"] = np.ones((1, *image.shape[-2:]), dtype=bool)
    return feeds


def quantise(source: Path, target: Path) -> None:
    """Write weights as int8; activations are quantised while it runs (dynamic quantisation).

    Args:
        source: ONNX of fp32.
        target: The file to write.

    Raises:
        ImportError: onnxruntime or onnx is missing.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet():
        quantize_dynamic(str(source), str(target), weight_type=QuantType.QInt8, op_types_to_quantize=_PRODUCTS)
    # the quantiser drops what it does not know
    before, after = onnx.load(str(source), load_external_data=False), onnx.load(str(target))
    known = {entry.key for entry in after.metadata_props}
    for entry in before.metadata_props:
        if entry.key not in known:
            after.metadata_props.add(key=entry.key, value=entry.value)
    onnx.save(after, str(target))


def agreement(
    source: Path, target: Path, inputs: Iterable[dict[str, Pixels]], *, several: bool, is_noise: bool
) -> Agreement:
    """Run both files and compare what they decide.

    Args:
        source: ONNX of fp32.
        target: Of 8 bits.
        inputs: What `run` of an onnxruntime session takes, one image each.
        several: Of several labels for an image each is decided on its own.
        is_noise: The inputs are no images.

    Returns:
        What was measured.
    """
    import onnxruntime

    sessions = [
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]) for path in (source, target)
    ]
    same = total = count = 0
    for feeds in inputs:
        one, other = (session.run(None, feeds)[0] for session in sessions)
        decided = [values > 0 if several else values.argmax(axis=1) for values in (one, other)]
        real = feeds.get("pixel_mask")
        equal = decided[0] == decided[1]
        equal = equal if real is None else equal[real]
        same, total, count = same + int(equal.sum()), total + equal.size, count + 1
    return Agreement(same / max(total, 1), count, target.stat().st_size, source.stat().st_size, is_noise)
