"""Images with a mask each: the class of every pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from castvision.data.datasets.samples import PixelDataset, load_pixels
from castvision.data.reading.labels import check_same_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castvision.data.datasets.samples import Transform
    from castvision.data.datasets.segmentation_files import Pair
    from castvision.data.reading.images import Pixels
    from castvision.data.reading.labels import LabelMap


class SegmentationDataset(PixelDataset):
    """Items are (image (C, height, width) float32, mask (height, width) int64 with 255 = ignored).

    Args:
        pairs: See `castvision.data.datasets.segmentation_files.find_pairs`.
        labels: From the masks' labels to classes.
        transform: See `PixelDataset`.
        in_chans: See `PixelDataset`.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        labels: LabelMap,
        *,
        transform: Transform | None = None,
        in_chans: int | None = None,
    ) -> None:
        self.pairs = list(pairs)
        self.labels = labels
        self.transform = transform
        self.in_chans = in_chans

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    def name(self, index: int) -> str:
        """The image's path."""
        return str(self.pairs[index].image)

    def read(self, index: int) -> tuple[Pixels, Pixels]:
        """See `PixelDataset.read`."""
        pair = self.pairs[index]
        pixels = load_pixels(pair.image, self.in_chans)
        mask = self.labels.read(pair.mask)
        check_same_size(pixels, mask, str(pair.image), str(pair.mask))
        return pixels, mask
