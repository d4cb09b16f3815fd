"""Models trained on whole images brought to one size: what prediction and evaluation do with them. Without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from castvision.data import ImageReader
    from castvision.inference.onnx_model import OnnxPredictor
    from castvision.inference.predictor import Predictor

_MOST_PIXELS = 1 << 27


def whole_image(reader: ImageReader, level: int) -> dict[str, Any]:
    """Keywords of `castvision.inference.tiled_inference` for one tile that is the whole image.

    Raises:
        ValueError: An image too large to be read whole.
    """
    size = reader.levels[level]
    if size.height * size.width > _MOST_PIXELS:
        raise ValueError(
            f"the model was trained on whole images, and {reader.name!r} of {size.height} × {size.width} pixels is too "
            "large to be shown as a whole; make it smaller, or let the model work at its own pixels by --tile"
        )
    return {"tile": (size.height, size.width), "overlap": 0, "halo": 0, "batch_size": 1}


def remark_on_size(predictor: Predictor | OnnxPredictor, reader: ImageReader, level: int, fits: bool) -> str | None:
    """What a person is to be told of the size a model is shown an image at; None where it is the image's own."""
    seen, size = predictor.parts.input, reader.levels[level]
    side = max(seen.img_size)
    if seen.resize != "fit" or side == max(size.height, size.width):
        return None
    if fits:
        return f"brought to {side} pixels as in training (--tile: works at the image's own pixels)"
    return f"works at the image's own pixels, but the model was trained on images brought to {side}"
