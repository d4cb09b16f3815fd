"""Whole slides by openslide (extra ``large-images``): formats whose tiles overlap or lie in several files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from castvision.data.reading.pixels import Decoded, Pixels, resolve_missing
from castvision.data.reading.reader import ImageReader, make_levels, missing_package

if TYPE_CHECKING:
    from pathlib import Path


class SlideReader(ImageReader):
    """Windows of a slide: RGB, 8 bit; what was not scanned is white, and missing."""

    path: Path
    has_gaps = True

    def _connect(self) -> None:
        try:
            import openslide
        except ImportError as error:
            raise missing_package(self.path, "openslide") from error
        try:
            self._slide = self._files.enter_context(openslide.OpenSlide(str(self.path)))
        except openslide.OpenSlideError as error:
            raise ValueError(f"openslide does not know it: {error}") from error
        self.levels = make_levels([(height, width) for width, height in self._slide.level_dimensions])
        self.channels, self.dtype = 3, np.dtype(np.uint8)
        across, down = (
            self._slide.properties.get(name) for name in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)
        )
        self.mpp = None if across is None else float(across)
        self.mpp_y = None if down is None else float(down)

    def _read(self, y: int, x: int, height: int, width: int, level: int) -> Pixels:
        import openslide

        factor = self.levels[level].downsample
        corner = round(x * factor), round(y * factor)  # of level 0, as openslide wants it
        try:
            region = np.array(self._slide.read_region(corner, level, (width, height)))
        except openslide.OpenSlideError as error:
            raise ValueError(str(error)) from error
        return resolve_missing(Decoded(region, "straight"), "white")
