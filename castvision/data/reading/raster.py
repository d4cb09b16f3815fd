"""Rasters only GDAL reads, such as JPEG 2000, VRT and Erdas Imagine, by rasterio (extra ``large-images``)."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.data.reading.georeference import Georeference, epsg_keys, georeference_of
from castvision.data.reading.pixels import Pixels
from castvision.data.reading.reader import ImageReader, make_levels, missing_package

if TYPE_CHECKING:
    from pathlib import Path


class RasterReader(ImageReader):
    """Windows of all bands; overviews are the levels."""

    path: Path

    def _connect(self) -> None:
        try:
            import rasterio
            from rasterio.errors import NotGeoreferencedWarning, RasterioError
        except ImportError as error:
            raise missing_package(self.path, "rasterio") from error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            try:
                base = self._files.enter_context(rasterio.open(self.path))
                self._levels = [base]
                for level in range(len(base.overviews(1))):
                    self._levels.append(self._files.enter_context(rasterio.open(self.path, overview_level=level)))
            except RasterioError as error:
                raise ValueError(f"GDAL cannot read it: {error}") from error
            if len(set(base.dtypes)) > 1 or np.dtype(base.dtypes[0]).kind not in "buif":
                raise ValueError(f"expected bands of one real type, got {base.dtypes}")
            self.georeference = _georeference(base)
        self.levels = make_levels([(level.height, level.width) for level in self._levels])
        self.channels, self.dtype, self.nodata = base.count, np.dtype(base.dtypes[0]), base.nodata
        if self.georeference is not None and not self.georeference.is_in_degrees:
            self.mpp, self.mpp_y = self.georeference.pixel_sizes
        names = tuple(name or "" for name in base.descriptions)
        self.channel_names = names if all(names) else None

    def _read(self, y: int, x: int, height: int, width: int, level: int) -> Pixels:
        from rasterio.errors import RasterioError
        from rasterio.windows import Window

        try:
            bands = self._levels[level].read(window=Window(x, y, width, height))  # (channels, height, width)
        except RasterioError as error:
            raise ValueError(f"GDAL cannot read it: {error}") from error
        return np.ascontiguousarray(np.moveaxis(bands, 0, -1))


def _georeference(dataset: Any) -> Georeference | None:
    if dataset.crs is None and dataset.transform.is_identity:
        return None
    a, b, c, d, e, f = (float(value) for value in tuple(dataset.transform)[:6])
    crs = dataset.crs
    if crs is None:
        return Georeference((a, b, c, d, e, f))
    code, wkt = crs.to_epsg(), crs.to_wkt()
    if code is None or "COMP" in wkt[:5]:
        return georeference_of((a, b, c, d, e, f), wkt)
    return Georeference((a, b, c, d, e, f), wkt, epsg_keys(code, crs.is_geographic))
