"""Whether images and masks agree: masks in size, or shape, and place; images in the order of their channels.

Pixels of a mask are laid on those of its image by their number. Where both files say where they lie, they must say the
same, or every label would be of other ground than the pixels beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castvision.data.reading.labels import ClassReader
    from castvision.data.reading.pixels import Pixels
    from castvision.data.reading.reader import ImageReader

_TOLERANCE = 1.01
"""How far corners may lie apart, in pixels of the coarser file: half of one is the old quarrel whether coordinates mean
a pixel's corner or its middle."""

_DEFAULT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""Pixels are ground units from 0 on."""


def check_same_size(pixels: Pixels, mask: Pixels, image_name: str, mask_name: str) -> None:
    """Refuse a mask of another size than its image.

    Raises:
        ValueError: Sizes differ; the message names both.
    """
    if pixels.shape[:2] != mask.shape[:2]:
        sizes = [f"{shape[0]} × {shape[1]}" for shape in (pixels.shape, mask.shape)]
        raise ValueError(
            f"expected image and mask of one size, got {image_name!r} with {sizes[0]} (height × width) and "
            f"{mask_name!r} with {sizes[1]}; export the mask again at the image's size"
        )


def check_same_order(names: Sequence[str] | None, image: ImageReader) -> None:
    """Refuse an image whose channels are those that are wanted, by their names, in another order.

    Other names say nothing: one band has many. Nor do names that come twice.

    Args:
        names: Of the channels as they are wanted; None = they are not known.
        image: With the channels that are to be read.

    Raises:
        ValueError: The message says which bands to choose.
    """
    if names is None or image.channel_names is None:
        return
    wanted, found = ([name.strip().casefold() for name in some] for some in (names, image.channel_names))
    if len(set(found)) == len(found) and wanted != found and sorted(wanted) == sorted(found):
        told = [", ".join(some) for some in (names, image.channel_names)]
        bands = ",".join(str(found.index(name) + 1) for name in wanted)
        hint = f"read them as bands {bands}" if image.options.bands is None else "choose other bands"
        raise ValueError(f"expected the channels {told[0]} in this order in {image.name!r}, got {told[1]}; {hint}")


def check_area(mask: ImageReader | ClassReader, image: ImageReader) -> None:
    """Refuse a mask, of any size, that is to be laid over the whole image and lies elsewhere or has other proportions.

    Raises:
        ValueError: See `check_same_place`; or sides differ by more than a pixel of the coarser file.
    """
    check_same_place(mask, image)
    down, across = mask.height / image.height, mask.width / image.width
    if abs(down - across) > max(1.0, down, across) * (1 / image.height + 1 / image.width):
        raise ValueError(
            f"expected a mask in the proportions of its image {image.name!r}, {image.height} × {image.width} (height × "
            f"width), got {mask.height} × {mask.width} in {mask.name!r}; export it again over the whole image"
        )


def check_same_place(mask: ImageReader | ClassReader, image: ImageReader) -> None:
    """Refuse a mask that lies elsewhere on the ground than its image; where one of them does not say, nothing is known.

    Raises:
        ValueError: Corners lie more than a pixel of the coarser file apart; the message says how far.
    """
    to_ground, image_to_ground = _place(mask), _place(image)
    if to_ground is None or image_to_ground is None:
        return
    corners = np.array([(x, y) for x in (0, 1) for y in (0, 1)]).T  # as shares of the sides
    from_corner = to_ground[:, :2] @ (corners * [[mask.width], [mask.height]])
    moved = from_corner + (to_ground - image_to_ground)[:, 2:]  # large coordinates go before anything is divided
    there = np.linalg.pinv(image_to_ground[:, :2]) @ moved
    apart = np.abs(there - corners * [[image.width], [image.height]]).max(axis=1)
    coarser = [max(1.0, image.width / mask.width), max(1.0, image.height / mask.height)]
    if not (apart <= _TOLERANCE * np.array(coarser)).all():  # NaN is no agreement
        systems = [one.georeference and one.georeference.crs for one in (image, mask)]
        differ = f" (coordinate systems {systems[0]} and {systems[1]})" if systems[0] != systems[1] else ""
        raise ValueError(
            f"expected {mask.name!r} to lie where its image {image.name!r} does, got corners up to {apart.max():.4g} "
            f"pixels of the image apart{differ}; warp it to the image's extent and grid (gdalwarp), or take its place "
            "out of the file if that is wrong (gdal_edit.py -unsetgt)"
        )


def _place(one: ImageReader | ClassReader) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """From columns, rows and 1 to the ground, (2, 3); None where that is not stated, or was left at its default."""
    ground = one.georeference
    if ground is None or (not ground.has_crs and tuple(map(abs, ground.transform)) == _DEFAULT):
        return None
    return np.array(ground.transform).reshape(2, 3)
