"""Zarr: plain arrays and OME-Zarr's multiscale images (extra ``large-images``)."""

from __future__ import annotations

import base64
import contextlib
import math
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.data.reading.pixels import Pixels, nodata_number
from castvision.data.reading.reader import ImageReader, make_levels, missing_package
from castvision.data.reading.tiff import MICRONS

if TYPE_CHECKING:
    from pathlib import Path

_MOST_CHANNELS = 64


class ZarrReader(ImageReader):
    """Windows of a zarr folder; only the chunks under a window are read."""

    path: Path

    def _connect(self) -> None:
        try:
            import zarr
        except ImportError as error:
            raise missing_package(self.path, "zarr") from error
        node: Any = zarr.open(str(self.path), mode="r")
        attributes = dict(node.attrs)
        attributes = attributes.get("ome", attributes)
        names = None
        if hasattr(node, "ndim"):
            self._arrays, axes = [node], _plain_axes(node)
        else:
            scales = attributes.get("multiscales")
            if not scales:
                raise ValueError("expected a zarr array or an OME-Zarr image, got a group; name one of its arrays")
            axes = [axis["name"] if isinstance(axis, dict) else axis for axis in scales[0].get("axes", "tczyx")]
            width = axes.index("x") if "x" in axes else -1
            entries = [(entry, node[entry["path"]]) for entry in scales[0]["datasets"]]
            entries.sort(key=lambda one: -one[1].shape[width])  # the largest comes first, by the standard
            self._arrays = [array for _, array in entries]
            self.mpp, self.mpp_y = (_microns(scales[0], entries[0][0], axes, axis) for axis in "xy")
            names = _names(attributes)
        self._axes = axes
        _check(axes, self._arrays[0])
        y, x = axes.index("y"), axes.index("x")
        self.levels = make_levels([(array.shape[y], array.shape[x]) for array in self._arrays])
        self.channels = self._arrays[0].shape[axes.index("c")] if "c" in axes else 1
        self.dtype = self._arrays[0].dtype.newbyteorder("=")
        self.nodata = _nodata(self._arrays[0])
        self.channel_names = names if names is not None and len(names) == self.channels else None

    def _read(self, y: int, x: int, height: int, width: int, level: int) -> Pixels:
        spans = {"y": slice(y, y + height), "x": slice(x, x + width), "c": slice(None)}
        window = np.asarray(self._arrays[level][tuple(spans.get(axis, 0) for axis in self._axes)])
        kept = [axis for axis in self._axes if axis in spans]
        if "c" not in kept:
            kept, window = [*kept, "c"], window[..., None]
        pixels = window.transpose([kept.index(axis) for axis in "yxc"])  # (height, width, channels)
        return np.array(pixels, self.dtype, order="C")


def _nodata(array: Any) -> float | None:
    """By the attributes of climate data; else what chunks hold that were never written, unless it is 0, the default."""
    for one in (array.attrs.get(name) for name in ("_FillValue", "missing_value")):
        number = nodata_number(one)
        if number is None and isinstance(one, str):
            with contextlib.suppress(ValueError, struct.error):  # xarray's form of floats in zarr 3
                number = struct.unpack("<d", base64.b64decode(one, validate=True))[0]
        if number is not None:
            return number
    return nodata_number(array.fill_value.item()) if array.fill_value else None


def _plain_axes(array: Any) -> list[str]:
    """Names of an array's dimensions: its own, or by their number and lengths."""
    names = getattr(array.metadata, "dimension_names", None) or dict(array.attrs).get("_ARRAY_DIMENSIONS")
    if names and {"y", "x"} <= {str(name).lower() for name in names}:
        short = [str(name).lower() for name in names]
        return ["c" if name in ("band", "channel", "channels", "bands") else name for name in short]
    if array.ndim == 2:
        return ["y", "x"]
    if array.ndim == 3 and array.shape[2] <= min(_MOST_CHANNELS, array.shape[0]):
        return ["y", "x", "c"]
    if array.ndim == 3 and array.shape[0] <= _MOST_CHANNELS:
        return ["c", "y", "x"]
    raise ValueError(f"expected (y, x), (y, x, channels) or (channels, y, x), got shape {tuple(array.shape)}")


def _check(axes: list[str], array: Any) -> None:
    if array.dtype.kind not in "buif" or 0 in array.shape:
        raise ValueError(f"expected a non-empty array of real numbers, got {array.dtype}, shape {tuple(array.shape)}")
    stack = [axis for axis, length in zip(axes, array.shape, strict=True) if axis not in "yxc" and length > 1]
    if stack or not {"y", "x"} <= set(axes):
        raise ValueError(f"expected one image, got a stack with axes={axes}, shape {tuple(array.shape)}")


def _microns(image: dict[str, Any], entry: dict[str, Any], axes: list[str], name: str) -> float | None:
    """By the scale of the array, and by that of all arrays, which multiplies it."""
    if name not in axes:
        return None
    steps = [*entry.get("coordinateTransformations", []), *image.get("coordinateTransformations", [])]
    sizes = [float(step["scale"][axes.index(name)]) for step in steps if step.get("type") == "scale"]
    axis = image.get("axes", [None] * len(axes))[axes.index(name)]
    factor = MICRONS.get(axis.get("unit", "")) if isinstance(axis, dict) else None
    return math.prod(sizes) * factor if sizes and factor is not None else None


def _names(attributes: dict[str, Any]) -> tuple[str, ...] | None:
    channels = attributes.get("omero", {}).get("channels", [])
    return tuple(str(channel.get("label", "")) for channel in channels) or None
