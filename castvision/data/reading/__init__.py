"""One reader for images of any size: TIFF in all its forms, zarr, slides, rasters, and ordinary pictures.

`open_image(path)` recognises the file by its content; windows of any level are read without the rest.
"""

from __future__ import annotations

from castvision.data.reading.georeference import Georeference
from castvision.data.reading.opening import open_image, open_mask, read_mask
from castvision.data.reading.reader import ImageReader, Level
from castvision.data.reading.whole import open_array

__all__ = ["Georeference", "ImageReader", "Level", "open_array", "open_image", "open_mask", "read_mask"]
