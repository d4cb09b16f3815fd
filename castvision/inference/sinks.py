"""Where the output of tiled inference goes: an array in memory, or a file that a killed run is continued from."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from castvision.files import draft, naming

if TYPE_CHECKING:
    from collections.abc import Mapping

Pixels = np.ndarray[Any, np.dtype[Any]]
_CHUNK = 1 << 24


class Sink(Protocol):
    """Takes the output of `castvision.inference.tiled_inference` in rectangles.

    A sink of your own has these four methods; they are called in this order.
    """

    def resume(self, settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Compare the settings with an earlier run's; return the state it last committed, None = begin anew."""

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any], fill: float) -> None:
        """Make room for (height, width) or (height, width, channels); what is never written is ``fill`` (nodata)."""

    def write(self, y: int, x: int, block: Pixels) -> None:
        """Take (height, width[, channels]) at row y and column x; no pixel comes twice in one run."""

    def commit(self, state: Mapping[str, Any]) -> None:
        """A band is complete: keep the state (JSON) so that a later run can go on from here."""


class ArraySink:
    """Keeps the output in memory, in ``array``."""

    def __init__(self) -> None:
        self.array: Pixels = np.empty(0)

    def resume(self, settings: Mapping[str, Any]) -> None:
        """Nothing outlives the process."""

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any], fill: float) -> None:
        """See `Sink`."""
        self.array = np.full(shape, fill, dtype)

    def write(self, y: int, x: int, block: Pixels) -> None:
        """See `Sink`."""
        self.array[y : y + block.shape[0], x : x + block.shape[1]] = block

    def commit(self, state: Mapping[str, Any]) -> None:
        """See `Sink`."""


class FileSink:
    """Keeps the output in a plain file of rows, and beside it (``.json``) how far the run has come.

    The whole file is written once at the beginning, so that a full disk is found before the work, not after it.

    Args:
        path: Of the file; its folder exists.
        resume: Go on from what is there, if it is there.
    """

    def __init__(self, path: str | Path, *, resume: bool = False) -> None:
        self.path = Path(path)
        self.state_path = self.path.with_name(f"{self.path.name}.json")
        self.shape: tuple[int, ...] = ()
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)
        self._is_resuming = resume
        self._settings: dict[str, Any] = {}

    def resume(self, settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """See `Sink`.

        Raises:
            ValueError: The file there belongs to a run with other settings, or its state is damaged.
        """
        self._settings = json.loads(json.dumps(settings))
        if not (self._is_resuming and self.state_path.is_file() and self.path.is_file()):
            self.discard()
            return None
        try:
            saved = json.loads(self.state_path.read_text(encoding="utf-8"))
            earlier, layout, state = saved["settings"], saved["layout"], saved["state"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"cannot resume from {str(self.state_path)!r}: damaged; delete it to begin anew"
            ) from error
        changed = sorted(key for key in {*earlier, *self._settings} if earlier.get(key) != self._settings.get(key))
        if changed:
            told = ", ".join(f"{key} was {earlier.get(key)!r}, is {self._settings.get(key)!r}" for key in changed)
            raise ValueError(f"cannot resume {str(self.path)!r}: {told}; use the same settings, or delete it")
        self.shape, self.dtype = tuple(layout["shape"]), np.dtype(layout["dtype"])
        return state  # type: ignore[no-any-return]

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any], fill: float) -> None:
        """See `Sink`.

        Raises:
            OSError: No space left, or not allowed; the message names the file.
        """
        self.shape, self.dtype = shape, np.dtype(dtype)
        total = math.prod(shape)
        chunk = np.full(min(_CHUNK // self.dtype.itemsize, total), fill, self.dtype).tobytes()
        left = total * self.dtype.itemsize
        with naming(self.path), self.path.open("wb") as file:
            while left:
                left -= file.write(memoryview(chunk)[:left])

    def write(self, y: int, x: int, block: Pixels) -> None:
        """See `Sink`."""
        width, pixel = self.shape[1], math.prod(self.shape[2:]) * self.dtype.itemsize
        rows = np.ascontiguousarray(block, self.dtype)
        with naming(self.path), self.path.open("r+b") as file:
            for index, row in enumerate(rows, start=y):
                file.seek((index * width + x) * pixel)
                file.write(row.tobytes())

    def commit(self, state: Mapping[str, Any]) -> None:
        """See `Sink`."""
        layout = {"shape": list(self.shape), "dtype": self.dtype.str}
        content = json.dumps({"settings": self._settings, "layout": layout, "state": dict(state)})
        with draft(self.state_path) as temporary:
            temporary.write_text(content, encoding="utf-8")

    def read(self, y: int, x: int, height: int, width: int, step: int = 1) -> Pixels:
        """A window of the output, cut where the output ends.

        Args:
            y: First row.
            x: First column.
            height: Rows to cover.
            width: Columns to cover.
            step: Of each ``step`` rows and columns take the middle one.

        Returns:
            (ceil(height / step), ceil(width / step)[, channels]).
        """
        height, width = min(height, self.shape[0] - y), min(width, self.shape[1] - x)
        pixel = math.prod(self.shape[2:]) * self.dtype.itemsize
        rows, cols = middles(height, step), middles(width, step)
        result = np.empty((len(rows), len(cols), *self.shape[2:]), self.dtype)
        with self.path.open("rb", buffering=0) as file:
            for index, row in enumerate(rows.tolist()):
                file.seek(((y + row) * self.shape[1] + x) * pixel)
                line = np.frombuffer(file.read(width * pixel), self.dtype).reshape(width, *self.shape[2:])
                result[index] = line[cols]
        return result

    def argmax(self) -> FileSink:
        """The most probable class of each pixel of (height, width, classes), in a file beside this one.

        Pixels without data (NaN) become the dtype's largest.
        """
        height, width, classes = self.shape
        labels = FileSink(self.path.with_name(f"{self.path.name}.argmax"))
        dtype = label_dtype(classes)
        nodata = np.iinfo(dtype).max
        labels.allocate((height, width), dtype, nodata)
        rows = max(1, _CHUNK // (width * classes * 4))
        for y in range(0, height, rows):
            values = self.read(y, 0, rows, width)
            best = values.argmax(axis=-1).astype(dtype)
            labels.write(y, 0, np.where(np.isnan(values[..., 0]), nodata, best).astype(dtype))
        return labels

    def discard(self) -> None:
        """Delete the file and its state."""
        self.path.unlink(missing_ok=True)
        self.state_path.unlink(missing_ok=True)


def label_dtype(classes: int) -> np.dtype[Any]:
    """The smallest unsigned integer with room for all classes and nodata."""
    return np.dtype(np.uint8 if classes <= 255 else np.uint16)


def middles(length: int, step: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The middle pixel of each run of ``step`` pixels; the last run may be shorter.

    Args:
        length: Pixels in all.
        step: Of a run.
    """
    return np.minimum(np.arange(0, length, step) + step // 2, length - 1)
