"""Mean and standard deviation of each channel of images of any size, and what is done with them."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from castvision.data.reading import ImageReader, open_image
from castvision.data.reading.pixels import Pixels, holds_data, mark_missing
from castvision.data.transforms.model_input import to_model_input, unit
from castvision.files import draft

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator

    from torch import Tensor


@dataclass(frozen=True)
class ChannelStatistics:
    """What is subtracted from each channel, and what it is divided by.

    Both are in units of 0..1 for unsigned whole numbers (a value divided by the largest of its dtype, so that 8-bit and
    16-bit copies of an image agree), and in the file's own units for floats and signed numbers.

    Args:
        mean: One for each channel, or one for all.
        std: As many, > 0.

    Raises:
        ValueError: Different lengths, none, numbers that are not finite, or a std <= 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"expected one mean and one std a channel, got {self.mean=}, {self.std=}")
        if not np.isfinite([*self.mean, *self.std]).all() or min(self.std) <= 0:
            raise ValueError(f"expected finite means and std > 0, got {self.mean=}, {self.std=}")

    @classmethod
    def of(
        cls, images: Iterable[ImageReader | str | os.PathLike[str]], *, window: int = 1024, level: int = 0
    ) -> ChannelStatistics:
        """Measure images, window by window; nodata and non-finite values are left out.

        Args:
            images: Readers (they stay open) or paths.
            window: Height and width of what is read at once.
            level: Of all images. Smaller copies have a smaller std.

        Raises:
            ValueError: No values at all, or different numbers of channels.
        """
        running = RunningStatistics()
        for image in images:
            with nullcontext(image) if isinstance(image, ImageReader) else open_image(image) as reader:
                for pixels in stream_windows(reader, window, level):
                    running.add(pixels)
        return running.result()

    def normalise(self, pixels: Pixels, nodata: float | None = None) -> Tensor:
        """Pixels to a model's input, see `to_model_input`.

        Args:
            pixels: (height, width, C), numbers as a file holds them; what holds no data becomes 0, the mean.
            nodata: Values that hold none beside those that are marked or not finite.

        Returns:
            (C, height, width) float32.

        Raises:
            ValueError: Another number of channels.
        """
        if len(self.mean) not in (1, pixels.shape[-1]):
            raise ValueError(f"expected {len(self.mean)} channels as in the statistics, got {pixels.shape=}")
        if nodata is not None:
            pixels = mark_missing(np.ma.getdata(pixels), holds_data(pixels, nodata))
        return to_model_input(pixels, pixels.shape[-1], self.mean, self.std, keep_units=True)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a small JSON file, whole or not at all."""
        with draft(Path(path)) as temporary:
            temporary.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: No such file.
            ValueError: Something else in it.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(*(tuple(float(value) for value in content[key]) for key in ("mean", "std")))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"expected mean and std as JSON lists in {str(path)!r}: {error}") from error


class Units:
    """Whether images agree in what their values are, see `ChannelStatistics`; nothing is seen yet.

    Floats and signed numbers from -1 to 2 are taken for shares of 0..1, as whole numbers become.
    """

    def __init__(self) -> None:
        self._shares, self._own = "", ""

    def add(self, pixels: Pixels) -> None:
        """Take in an image.

        Args:
            pixels: Any shape; values that are marked as missing or not finite do not count.

        Raises:
            ValueError: Unsigned whole numbers beside numbers in units of their own.
        """
        if pixels.dtype.kind in "bu":
            self._shares = self._shares or str(pixels.dtype)
        elif not self._own:
            known = np.ma.getdata(pixels)[holds_data(pixels)]
            low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
            self._own = f"{pixels.dtype} from {low:g} to {high:g}" if low < -1 or high > 2 else ""
        if self._shares and self._own:
            raise ValueError(
                f"expected images with values of one unit, got some of {self._shares}, which become 0..1, and some of "
                f"{self._own}, which stay as they are; write all of them in one type"
            )


class RunningStatistics:
    """Mean and variance of values that come in parts (Chan, Golub and LeVeque 1979), in float64."""

    def __init__(self) -> None:
        self.count: Any = 0
        self.mean: Any = 0.0
        self.squares: Any = 0.0  # sum of squared distances from the mean
        self.units = Units()

    def add(self, pixels: Pixels, nodata: float | None = None) -> None:
        """Take in a window.

        Args:
            pixels: (height, width, C); values that are marked as missing or not finite do not count.
            nodata: Other values that do not.

        Raises:
            ValueError: Another number of channels than before, or values of another unit.
        """
        self.units.add(pixels)
        channels = pixels.shape[-1]
        if np.ndim(self.count) and len(self.count) != channels:
            raise ValueError(f"expected {len(self.count)} channels as in the images before, got {channels}")
        is_valid = holds_data(pixels, nodata).reshape(-1, channels)
        values = np.ma.getdata(pixels).reshape(-1, channels).astype(np.float64) / unit(pixels.dtype)
        count = is_valid.sum(axis=0)
        mean = np.where(is_valid, values, 0).sum(axis=0) / np.maximum(count, 1)
        squares = (np.where(is_valid, values - mean, 0) ** 2).sum(axis=0)
        total = self.count + count
        distance = mean - self.mean
        share = count / np.maximum(total, 1)
        self.squares = self.squares + squares + distance**2 * self.count * share
        self.mean = self.mean + distance * share
        self.count = total

    def result(self) -> ChannelStatistics:
        """Of everything so far; the std of a channel that never varies is 1.

        Raises:
            ValueError: A channel without a single value.
        """
        if not np.ndim(self.count) or (self.count == 0).any():
            raise ValueError(f"expected values in every channel, got counts {self.count}; are all pixels nodata?")
        std = np.sqrt(self.squares / self.count)
        std = np.where(std > 1e-12 * np.maximum(np.abs(self.mean), 1e-300), std, 1.0)
        return ChannelStatistics(tuple(self.mean.tolist()), tuple(std.tolist()))


def stream_windows(reader: ImageReader, window: int, level: int = 0) -> Iterator[Pixels]:
    """All pixels of a level, missing ones marked, in windows of at most ``window`` × ``window``."""
    whole = reader.levels[level]
    for y in range(0, whole.height, window):
        for x in range(0, whole.width, window):
            yield reader.read_masked(y, x, min(window, whole.height - y), min(window, whole.width - x), level)
