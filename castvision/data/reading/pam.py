"""What GDAL writes beside an image, into NAME.aux.xml, where the image's own format has no place for it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree

from castvision.data.reading.pixels import nodata_number

if TYPE_CHECKING:
    from pathlib import Path


def pam_of(path: Path) -> ElementTree.Element | None:
    """The content of an image's .aux.xml; None without one.

    Args:
        path: Of the image.

    Raises:
        ValueError: A file that is damaged.
    """
    file = path.with_name(f"{path.name}.aux.xml")
    if not is_there(file):
        return None
    try:
        return ElementTree.fromstring(file.read_bytes())
    except ElementTree.ParseError as error:
        raise not_of_gdal(file.name, error) from None


def nodata_beside(path: Path, bands: int, inside: float | None = None) -> tuple[float | None, ...] | None:
    """The nodata values that an image's .aux.xml states, which go before the file's own, as in GDAL.

    Args:
        path: Of the image.
        bands: Of the image, as stored.
        inside: What the file itself states, for the bands that the .aux.xml leaves out.

    Returns:
        One for each band, None for a band without; None where the .aux.xml states none at all.

    Raises:
        ValueError: A file that is damaged.
    """
    root = pam_of(path)
    if root is None:
        return None
    stated = {
        band.get("band"): value
        for band in root.findall("PAMRasterBand")
        if (value := nodata_number(band.findtext("NoDataValue"))) is not None
    }
    return tuple(stated.get(str(number), inside) for number in range(1, bands + 1)) if stated else None


def is_there(file: Path) -> bool:
    """Whether there is such a file; none has a name that is too long for the file system."""
    try:
        return file.is_file()
    except OSError:
        return False


def not_of_gdal(name: str, error: Exception) -> ValueError:
    """The error for an .aux.xml with other content."""
    return ValueError(f"expected what GDAL writes in {name!r}, got other ({error}); correct or remove it")
