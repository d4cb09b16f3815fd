"""Rasters only GDAL reads, such as JPEG 2000, VRT and Erdas Imagine, by rasterio (extra ``large-images``)."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.data.reading.georeference import Georeference, epsg_keys, georeference_of
from castvision.data.reading.pixels import Decoded, Mask, Pixels, nodata_number, resolve_missing
from castvision.data.reading.reader import ImageReader, make_levels, missing_package
from castvision.data.reading.references import check_references

if TYPE_CHECKING:
    from pathlib import Path


class RasterReader(ImageReader):
    """Windows of all bands; overviews are the levels; GDAL says which values are missing, band by band."""

    path: Path
    _marks_missing = True

    def _connect(self) -> None:
        try:
            import rasterio
            from rasterio.errors import NotGeoreferencedWarning, RasterioError
        except ImportError as error:
            raise missing_package(self.path, "rasterio") from error
        check_references(self.path)
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
        self._palette = None if self.options.is_mask else _palette(base)
        is_alpha_last = base.colorinterp[-1].name == "alpha"
        self._has_alpha = base.count in (2, 4) and is_alpha_last
        self._hides = is_alpha_last and not self._has_alpha  # see castvision.data.reading.tiff_samples.hides_by_opacity
        values = {repr(nodata_number(value)): nodata_number(value) for value in base.nodatavals}
        self.nodata = values.popitem()[1] if len(values) == 1 and self._palette is None else None
        self._spread = 1 if self.options.is_mask or self._palette is not None else _spread(base)
        if self.nodata is not None and self._spread > 1:
            self.nodata *= self._spread
        flags = [{flag.name for flag in some} for some in base.mask_flag_enums]
        # a band whose mask is the opacity is not missing by it: opacity may be kept as a channel
        self._masked_bands = [number for number, some in enumerate(flags, 1) if not some & {"all_valid", "alpha"}]
        probe = self._convert(np.zeros((1, 1, base.count), base.dtypes[0]), None)
        self.channels, self.dtype = probe.shape[-1], probe.dtype
        if self.georeference is not None and not self.georeference.is_in_degrees:
            self.mpp, self.mpp_y = self.georeference.pixel_sizes
        names = tuple(name or "" for name in base.descriptions)
        if not all(names) and {"red", "green", "blue"} <= {colour.name for colour in base.colorinterp}:
            names = tuple(colour.name for colour in base.colorinterp)
        self.channel_names = names if all(names) and len(names) == self.channels else None

    @property
    def has_gaps(self) -> bool:
        """Whether the file can say that pixels are missing."""
        drops_alpha = self._has_alpha and self.options.alpha == "white"
        return bool(self._masked_bands) or drops_alpha or self._hides or super().has_gaps

    def _read(self, y: int, x: int, height: int, width: int, level: int) -> Pixels:
        from rasterio.errors import RasterioError
        from rasterio.windows import Window

        window, is_known = Window(x, y, width, height), None
        try:
            bands = self._levels[level].read(window=window)  # (channels, height, width)
            if self._masked_bands:
                masks = self._levels[level].read_masks(self._masked_bands, window=window)
                is_known = np.ones((height, width, len(bands)), np.bool_)
                is_known[..., [number - 1 for number in self._masked_bands]] = np.moveaxis(masks, 0, -1) != 0
        except RasterioError as error:
            raise ValueError(f"GDAL cannot read it: {error}") from error
        if self._hides:
            is_opaque = np.broadcast_to(bands[-1][..., None] > 0, (height, width, len(bands)))
            is_known = is_opaque if is_known is None else is_known & is_opaque
        return self._convert(np.ascontiguousarray(np.moveaxis(bands, 0, -1)), is_known)

    def _convert(self, bands: Pixels, is_known: Mask | None) -> Pixels:
        """Bands (height, width, bands) to what `castvision.data.open_image` promises; labels stay as they are."""
        if self.options.is_mask:
            return bands
        if self._palette is not None:
            bands = self._palette[bands[..., 0]]
        if self._spread > 1:
            bands = bands * np.uint8(self._spread)
        has_alpha = self._has_alpha or self._palette is not None
        return resolve_missing(Decoded(bands, "straight" if has_alpha else "none", 1, is_known), self._alpha)

    @property
    def _alpha(self) -> str:
        return "white" if self._palette is not None else self.options.alpha


def _palette(dataset: Any) -> Pixels | None:
    """The colours (n, 4) uint8, with opacity, whose indices the one band is, if it has a palette."""
    if dataset.count != 1 or dataset.colorinterp[0].name != "palette" or dataset.dtypes[0] not in ("uint8", "uint16"):
        return None
    colours = dataset.colormap(1)
    table = np.zeros((np.iinfo(dataset.dtypes[0]).max + 1, 4), np.uint8)
    table[list(colours)] = list(colours.values())
    return table


def _spread(dataset: Any) -> int:
    """What brings samples of fewer than 8 bits to 0..255, as in TIFF and PNG."""
    bits = dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", "8")
    is_small = dataset.dtypes[0] == "uint8" and bits.isdecimal() and 0 < int(bits) < 8
    return 255 // (2 ** int(bits) - 1) if is_small else 1


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
