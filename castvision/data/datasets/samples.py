"""Map-style data sets of image files: what they share, from a file's pixels to a model's tensors.

Reading and checking files needs no torch; it is imported with the first tensor. A map-style data set is to torch what
has ``__getitem__`` and ``__len__``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

import numpy as np

from castvision.data.reading.opening import open_image
from castvision.data.reading.pixels import Pixels, check_size, in_channels, is_empty
from castvision.data.reading.reader import UnreadableImageError, alpha_for
from castvision.data.transforms.model_input import to_model_input
from castvision.ignored import IGNORED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from castvision.data.datasets.batch import Sample
    from castvision.data.reading import ImageReader


class Transform(Protocol):
    """What a data set does with the pixels it read; see `castvision.data.transforms.augmentation.SampleTransform`."""

    def image(self, pixels: Pixels) -> Tensor:
        """(height, width, C) in the file's dtype to (C, height', width') float32."""

    def pair(self, pixels: Pixels, mask: Pixels) -> Sample:
        """The same, and (height, width) uint8 labels to (height', width') int64; with extras where it pads."""


class PlainTransform:
    """(height, width, C) of any dtype to (C, height, width) float32, see `to_model_input`; nothing else changes."""

    def image(self, pixels: Pixels) -> Tensor:
        """(C, height, width) float32."""
        return to_model_input(pixels, pixels.shape[-1], (0.0,), (1.0,), keep_units=True)

    def pair(self, pixels: Pixels, mask: Pixels) -> tuple[Tensor, Tensor]:
        """(C, height, width) float32 and (height, width) int64."""
        import torch

        return self.image(pixels), torch.from_numpy(np.where(is_empty(pixels), IGNORED, mask.astype(np.int64)))


class PixelDataset(ABC):
    """Template: a subclass reads pixels and target of one sample, the transform makes them tensors.

    Items are (image, target): image (C, height, width) float32; target (height, width) int64 with 255 = ignored, or
    the label () int64, or (classes,) float32 zeros and ones. Masks whose transform pads come with the extra
    ``pixel_mask``, (height, width) bool, True where there is an image.

    Attributes:
        transform: From pixels to tensors; None = `PlainTransform`.
        in_chans: Channels images are brought to (grey and RGB are turned into one another); None = as they come.
        bands: See `load_pixels`.
    """

    transform: Transform | None = None
    in_chans: int | None = None
    bands: Sequence[int] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def read(self, index: int) -> tuple[Pixels, Pixels]:
        """Read one sample as stored.

        Returns:
            (height, width, C) in the file's dtype, a masked array where values are missing (see
            `castvision.data.reading.pixels`), and the target: (height, width) uint8, () int64 or (classes,) float32.

        Raises:
            ValueError: Pixels or target cannot be used; the message names the file.
        """

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call a sample in messages and captions."""

    def __getitem__(self, index: int) -> Sample:
        """One sample as tensors."""
        import torch

        pixels, target = self.read(index)
        transform = self.transform or PlainTransform()
        if target.ndim == 2:
            return transform.pair(pixels, target)
        return transform.image(pixels), torch.from_numpy(np.array(target))


def load_pixels(path: str | Path, in_chans: int | None = None, bands: Sequence[int] | None = None) -> Pixels:
    """Read one image for training: nothing cut, as many channels as wanted, what is missing marked.

    Args:
        path: The file; see `castvision.data.open_image`.
        in_chans: Channels of the result. 2 and 4 keep an opacity channel (such as the infra-red that many 4-band TIFFs
            declare so); for others it is composed over white. None = as it comes.
        bands: Channels to take, in this order, numbered from 1 on; opacity is one like the others then. None = all.

    Returns:
        (height, width, C), the file's dtype; a masked array where values are missing.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not an image, damaged, too large, or of other channels; the message names it.
    """
    with open_pixels(path, in_chans, bands) as reader:
        return to_channels(whole_pixels(reader), in_chans, reader.name)


def open_pixels(path: str | Path, in_chans: int | None = None, bands: Sequence[int] | None = None) -> ImageReader:
    """Open an image as `load_pixels` reads it; close it, or use ``with``."""
    return open_image(path, alpha=alpha_for(in_chans), bands=bands)


def whole_pixels(reader: ImageReader) -> Pixels:
    """All of an open image, what is missing marked.

    Args:
        reader: The image.

    Returns:
        (height, width, C), the file's dtype; a masked array where values are missing.

    Raises:
        ValueError: Damaged, or too large; the message names it.
    """
    try:
        check_size(reader.height, reader.width)
    except ValueError as error:
        raise UnreadableImageError(f"cannot read image {reader.name!r}: {error}") from None
    return reader.read_masked(0, 0, reader.height, reader.width)


def to_channels(pixels: Pixels, in_chans: int | None, name: str) -> Pixels:
    """Grey to RGB or RGB to grey where another number of channels is wanted, in the same dtype.

    Args:
        pixels: (height, width, channels).
        in_chans: Channels of the result; None = as they are.
        name: Of the image, for the message.

    Raises:
        ValueError: Other numbers of channels.
    """
    if in_chans is None or pixels.shape[-1] == in_chans:
        return pixels
    try:
        return in_channels(pixels, in_chans)
    except ValueError:
        raise ValueError(
            f"expected {in_chans} channel(s) in {name!r} as in the images before it, got {pixels.shape[-1]}; "
            "give all images the same channels, or set in_chans to the number meant"
        ) from None


def check_files(paths: list[Path]) -> None:
    """Refuse missing and empty files before anything is read.

    Raises:
        FileNotFoundError: A file that is missing.
        ValueError: A file without content.
    """
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"expected an image file at {str(path)!r}, found none; check the list or the path")
        if path.stat().st_size == 0:
            raise ValueError(f"the file {str(path)!r} is empty (0 bytes); remove it or fetch it again")
