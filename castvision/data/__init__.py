"""Data: the Pathfinder generator, readers of LRA's sets, images of any kind and size. Nothing here needs Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from castvision.data.readers import Georeference as Georeference
    from castvision.data.readers import ImageReader as ImageReader
    from castvision.data.readers import Level as Level
    from castvision.data.readers import open_array as open_array
    from castvision.data.readers import open_image as open_image
    from castvision.data.readers import open_mask as open_mask
    from castvision.data.readers import read_mask as read_mask

_HOMES = {
    "Georeference": "readers",
    "ImageReader": "readers",
    "Level": "readers",
    "open_array": "readers",
    "open_image": "readers",
    "open_mask": "readers",
    "read_mask": "readers",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a part when it is first asked for: `castvision --help` needs none of them."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
