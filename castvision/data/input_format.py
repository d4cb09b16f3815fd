"""What a model's images looked like: what every kind of file that holds a model says of them. Without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Mapping

Resize = Literal["none", "fit", "crop"]


@dataclass(frozen=True)
class InputFormat:
    """What the images looked like that a model was trained on.

    Attributes:
        in_chans: Channels.
        img_size: (height, width).
        mean: Per channel, in units of 0..1, or of the file (``keeps_units``).
        std: Per channel, likewise, > 0.
        keeps_units: Signed and float images come in the file's own units (Kelvin, reflectance); otherwise each image
            is brought to 0..1.
        level: Of the images' pyramids that was read.
        mpp: Microns or ground units per pixel of that level; None where the images state none, or different ones.
        mpp_unit: Of ``mpp``, see `castvision.data.Georeference.unit`; "microns" without a place on the ground.
        resize: How files become ``img_size``: "fit" brings the longer side to it, "crop" resizes and crops as timm
            does, "none" leaves pixels their size.
        bands: Channels read of the files, numbered from 1 on; None = all.
        channel_names: Of those that were read, by the files; None where they state none.
        encoder: Of bags of embeddings: the model that made them; None = not known, or images.
    """

    in_chans: int
    img_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    keeps_units: bool = False
    level: int = 0
    mpp: float | None = None
    mpp_unit: str | None = None
    resize: Resize = "none"
    bands: tuple[int, ...] | None = None
    channel_names: tuple[str, ...] | None = None
    encoder: str | None = None


def input_format(facts: Mapping[str, Any]) -> InputFormat:
    """Read from plain values, as they stand in a checkpoint.

    Raises:
        ValueError: Values that are none.
        KeyError: One is missing.
        TypeError: One is of another kind.
    """
    mpp, mpp_unit, bands, names = (facts.get(key) for key in ("mpp", "mpp_unit", "bands", "channel_names"))
    found = InputFormat(
        in_chans=int(facts["in_chans"]),
        img_size=pair(facts["img_size"]),
        mean=tuple(float(value) for value in facts["mean"]),
        std=tuple(float(value) for value in facts["std"]),
        keeps_units=bool(facts.get("keeps_units", False)),
        level=int(facts.get("level", 0)),
        mpp=None if mpp is None else float(mpp),
        mpp_unit=None if mpp_unit is None else str(mpp_unit),
        resize=_resize(facts.get("resize", "none")),
        bands=None if bands is None else tuple(int(band) for band in bands),
        channel_names=None if names is None else tuple(str(name) for name in names),
        encoder=None if facts.get("encoder") is None else str(facts["encoder"]),
    )
    finite = all(math.isfinite(value) for value in (*found.mean, *found.std))
    if not finite or min(found.std, default=0) <= 0 or min(found.in_chans, *found.img_size) < 1:
        raise ValueError(
            f"expected finite means, deviations > 0 and a size and number of channels >= 1, got mean={found.mean}, "
            f"std={found.std}, img_size={found.img_size}, in_chans={found.in_chans}"
        )
    return found


def _resize(value: Any) -> Resize:
    if value not in get_args(Resize):
        raise ValueError(f"expected resize in {get_args(Resize)}, got {value!r}")
    return value  # type: ignore[no-any-return]


def pair(value: Any) -> tuple[int, int]:
    """(height, width) of two numbers."""
    height, width = value
    return int(height), int(width)
