"""From an array in a file's dtype and units to a model's tensor: one way, in training and in prediction.

Values are scaled (`to_float`, or the limits of `value_limits`), brought to the model's channels, resized where that is
asked for, and normalised. Values that hold no data become 0, the mean, whatever the file says of them. Whoever
feeds a model goes through `to_model_input`; tiles, which are tensors already and whose limits are those of a whole
image, go through the part of it that follows the scaling's limits, `planes_to_input`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from castvision.arrays import namespace
from castvision.data.reading.pixels import grey_of, holds_data, in_channels, unit_limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from castvision.data.reading.pixels import Pixels

Limits = tuple[float, float]


def unit(dtype: np.dtype[Any]) -> float:
    """What values of a dtype are divided by: the largest of unsigned whole numbers, 1 for all others."""
    return float(np.iinfo(dtype).max) if dtype.kind == "u" else 1.0


def to_float(pixels: Pixels) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Unsigned integers become 0..1 (divided by their dtype's largest value), all others keep their values.

    Reflectances, heights and Hounsfield units therefore stay in their own units; mean and std of the data are in the
    same units.

    Args:
        pixels: Any shape, numeric or bool.

    Returns:
        float32, same shape.
    """
    if pixels.dtype.kind == "u":
        return np.divide(pixels, unit(pixels.dtype), dtype=np.float32)
    with np.errstate(over="ignore"):  # a nodata value of float64 may lie beyond float32
        return pixels.astype(np.float32, copy=False)


def value_limits(dtype: np.dtype[Any], parts: Iterable[Pixels], *, keep_units: bool) -> Limits | None:
    """The values of an image that become 0 and 1.

    Args:
        dtype: Of the image.
        parts: The image's values in parts of any shape; read only where the dtype does not decide.
        keep_units: Leave signed and float pixels in their own units.

    Returns:
        (low, high), high > low; None: the values stay as they are.
    """
    return None if keep_units and dtype.kind in "if" else unit_limits(dtype, parts)


def to_model_input(
    image: Pixels,
    in_chans: int,
    mean: Sequence[float],
    std: Sequence[float],
    size: tuple[int, int] | None = None,
    *,
    interpolation: Literal["bilinear", "bicubic"] = "bicubic",
    keep_units: bool = False,
) -> Tensor:
    """Turn pixels into a model's input: range 0..1, channels, size, normalisation.

    Args:
        image: (height, width, channels) or (height, width), any numeric dtype (see `unit_limits` for the range).
        in_chans: Channels the model takes; grey and RGB are turned into one another.
        mean: Per channel, or one for all, in units of 0..1.
        std: Per channel, or one for all, > 0.
        size: (height, width) of the result, with antialiasing; None keeps the image's.
        interpolation: Of the resizing.
        keep_units: Leave signed and float pixels in their own units, which are those of ``mean`` and ``std``.

    Returns:
        (C, height, width) float32, C = in_chans. Values that hold no data (see
        `castvision.data.reading.pixels.holds_data`) are 0, the mean.

    Raises:
        ValueError: Empty image, wrong dimensions, channels, mean/std or size.
        TypeError: Not an array of numbers.
    """
    import torch
    from torch.nn import functional

    def resized(planes: Tensor, to: tuple[int, int]) -> Tensor:
        return functional.interpolate(planes[None], to, mode=interpolation, antialias=True)[0]

    values, limits = _values(image, in_chans, keep_units)
    planes = torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))  # (C, height, width)
    keeps = keep_units and image.dtype.kind in "if"
    return _to_input(planes, in_chans, mean, std, limits, size, resized, keeps)


def to_input_array(
    image: Pixels,
    in_chans: int,
    mean: Sequence[float],
    std: Sequence[float],
    size: tuple[int, int] | None = None,
    *,
    keep_units: bool = False,
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """`to_model_input` without torch: the same values, but for rounding where an image is resized.

    Args:
        image: See `to_model_input`.
        in_chans: See `to_model_input`.
        mean: See `to_model_input`.
        std: See `to_model_input`.
        size: See `to_model_input`; resized bicubically.
        keep_units: See `to_model_input`.

    Returns:
        (C, height, width) float32.

    Raises:
        ValueError: See `to_model_input`.
        TypeError: See `to_model_input`.
    """
    values, limits = _values(image, in_chans, keep_units)
    planes: Any = np.ascontiguousarray(values.transpose(2, 0, 1))
    keeps = keep_units and image.dtype.kind in "if"
    found: Any = _to_input(planes, in_chans, mean, std, limits, size, resized_planes, keeps)
    return found  # type: ignore[no-any-return]


def resized_planes(planes: Any, size: tuple[int, int], resample: int = Image.Resampling.BICUBIC) -> Any:
    """(C, height, width) float32 at another size, by Pillow, with antialiasing as torch has it."""
    height, width = size
    made = [Image.fromarray(np.asarray(plane, np.float32)).resize((width, height), resample) for plane in planes]
    return np.stack([np.asarray(plane, dtype=np.float32) for plane in made])


def _values(image: Pixels, in_chans: int, keep_units: bool) -> tuple[Pixels, Limits | None]:
    """(height, width, C), NaN where there is no data, and the values that become 0 and 1; None = they are scaled."""
    if not isinstance(image, np.ndarray):
        raise TypeError(f"expected a numpy array (height, width, channels), got {type(image).__name__}")
    if image.dtype.kind not in "buif":
        raise TypeError(f"expected an array of real numbers, got {image.dtype=}")
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.size == 0:
        raise ValueError(f"expected a non-empty image (height, width, channels), got {image.shape=}")
    is_scaled = not keep_units and image.dtype.kind not in "bu"
    limits = value_limits(image.dtype, [image], keep_units=False) if is_scaled else None
    image = in_channels(image, in_chans)
    is_known, plain = holds_data(image), np.ma.getdata(image)
    if limits is None:
        values: Pixels = to_float(plain)
    else:
        values = plain.astype(np.float32 if image.dtype.itemsize < 4 else np.float64)
    if not is_known.all():
        values = np.where(is_known, values, values.dtype.type(np.nan))
    return values, limits


def _to_input(
    planes: Tensor,
    in_chans: int,
    mean: Sequence[float],
    std: Sequence[float],
    limits: Limits | None,
    size: tuple[int, int] | None,
    resized: Callable[[Tensor, tuple[int, int]], Tensor],
    keeps_units: bool,
) -> Tensor:
    """(C, height, width) to a model's input, of torch or numpy."""
    planes, is_known_plane = _with_mean(_scaled(planes, in_chans, limits, False), in_chans, mean)
    if size is not None and tuple(size) != tuple(planes.shape[-2:]):
        if min(size) < 1:
            raise ValueError(f"expected size (height, width) >= 1, got {size=}")
        planes = resized(planes, (size[0], size[1]))
        planes = planes if keeps_units else namespace(planes).clip(planes, 0, 1)
        is_known_plane = None
    return _normalised(planes, in_chans, mean, std, is_known_plane)


def planes_to_input(
    planes: Tensor,
    in_chans: int,
    mean: Sequence[float],
    std: Sequence[float],
    limits: Limits | None,
    is_whole: bool = False,
) -> Tensor:
    """The same for values that are a tensor, on any device.

    Args:
        planes: (..., channels, height, width), float; NaN where there is no data.
        in_chans: See `to_model_input`.
        mean: See `to_model_input`.
        std: See `to_model_input`.
        limits: The values that become 0 and 1, see `value_limits`; None = they are in the units of the mean.
        is_whole: They are stored as whole numbers, to which the grey of RGB is rounded, too.

    Returns:
        (..., in_chans, height, width) float32; 0 where there is no data.

    Raises:
        ValueError: Channels, mean or std that do not fit.
    """
    planes, is_known = _with_mean(_scaled(planes, in_chans, limits, is_whole), in_chans, mean)
    return _normalised(planes, in_chans, mean, std, is_known)


def _scaled(planes: Tensor, in_chans: int, limits: Limits | None, is_whole: bool) -> Tensor:
    """In the units of the mean, with the model's channels."""
    xp, planes = namespace(planes), _with_channels(planes, in_chans, is_whole)
    return xp.asarray(planes, dtype=xp.float32) if limits is None else _to_unit(planes, *limits)


def _with_channels(planes: Tensor, in_chans: int, is_whole: bool) -> Tensor:
    """As `castvision.data.reading.pixels.in_channels`, bit for bit; NaN where there is no data."""
    xp = namespace(planes)
    channels = planes.shape[-3]
    if channels == in_chans:
        return planes
    if (channels, in_chans) == (1, 3):
        broadcast: Tensor = xp.broadcast_to(planes, (*planes.shape[:-3], 3, *planes.shape[-2:]))
        return broadcast
    if (channels, in_chans) != (3, 1):
        raise ValueError(
            f"expected an image with {in_chans} channels for this model, got {channels}; "
            f"select channels, or create the model with in_chans={channels}"
        )

    def grey(values: Tensor) -> Tensor:
        found: Tensor = grey_of(*(values[..., band, None, :, :] for band in range(3)))
        return found

    is_known = xp.isfinite(planes)
    if is_known.all():
        made = grey(planes)
    else:  # that of the bands there are; NaN without any
        none, nan = (xp.asarray(value, dtype=planes.dtype, device=planes.device) for value in (0.0, float("nan")))
        count, share = is_known.sum(-3)[..., None, :, :], grey(xp.asarray(is_known, dtype=planes.dtype))
        made = grey(xp.where(is_known, planes, none))
        made = xp.where(count < 3, made / xp.where(count > 0, share, nan), made)
    return xp.round(made) if is_whole else made


def _to_unit(planes: Tensor, low: float, high: float) -> Tensor:
    xp = namespace(planes)
    if low and not str(planes.device).startswith("mps"):  # which has no float64
        planes = xp.asarray(planes, dtype=xp.float64)
    # NOTE: a tensor and no number: CUDA would multiply by a number's reciprocal, and round otherwise than a CPU
    span = xp.asarray([high - low], dtype=planes.dtype, device=planes.device)
    scaled = (planes - low if low else planes) / span
    clipped: Tensor = xp.asarray(xp.clip(scaled, 0, 1), dtype=xp.float32)  # NaN stays
    return clipped


def _with_mean(planes: Tensor, in_chans: int, mean: Sequence[float]) -> tuple[Tensor, Tensor | None]:
    """Planes with the mean in place of what is not finite, and where that is not so; None = nowhere."""
    xp = namespace(planes)
    is_known = xp.isfinite(planes)
    if is_known.all():
        return planes, None
    return xp.where(is_known, planes, _per_channel(mean, in_chans, "mean", planes)), is_known


def _normalised(
    planes: Tensor, in_chans: int, mean: Sequence[float], std: Sequence[float], is_known: Tensor | None
) -> Tensor:
    shift, scale = (_per_channel(values, in_chans, name, planes) for values, name in ((mean, "mean"), (std, "std")))
    if (scale <= 0).any():
        raise ValueError(f"expected std > 0, got {std=}")
    normalised = (planes - shift) / scale
    return normalised if is_known is None else normalised * is_known


def _per_channel(values: Sequence[float], in_chans: int, name: str, like: Tensor) -> Tensor:
    xp = namespace(like)
    tensor: Tensor = xp.asarray(list(values), dtype=xp.float32, device=like.device)
    if len(tensor) not in (1, in_chans):
        raise ValueError(
            f"expected {name} of length 1 or {in_chans} (in_chans), got {len(tensor)} values: {tuple(values)}"
        )
    return tensor.reshape(-1, 1, 1)
