"""Polygons and points on the ground as masks of images, drawn window by window when they are read."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.data.datasets.coco_shapes import fill_polygon
from castvision.data.reading.folders import nfc
from castvision.data.reading.opening import open_image
from castvision.data.reading.reader import ImageReader, Level, Options
from castvision.data.reading.vector import Feature, is_beyond_degrees, moved, read_features
from castvision.ignored import IGNORED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from castvision.data.reading.pixels import Pixels
    from castvision.data.reading.vector import Points

logger = logging.getLogger(__name__)

_LARGE = 16.0  # square pixels


@dataclass(frozen=True)
class VectorLabels:
    """Vector labels for images with a place on the ground.

    Args:
        path: The file, relative to the data's folder: GeoJSON, or with the extra ``vector`` GeoPackage, shapefile and
            others.
        attribute: Whose values are the classes.
        classes: From values to class names, or to "ignore"; None = values are class names.
        unlabelled: What ground without labels is: "ignore", or a class.
        point_radius: Of the disc that a point stands for, in pixels of the image; 0 = the pixel it lies in.
        crs: The coordinate system of the labels, such as "EPSG:32633", where the file states none or a wrong one;
            "image" = that of each image, or its pixels (x to the right, y down), if it has none.
        layer: Of a file of several layers.

    Raises:
        ValueError: A negative radius.
    """

    path: str
    attribute: str
    classes: dict[str, str] | None = None
    unlabelled: str = "ignore"
    point_radius: float = 0.0
    crs: str | None = None
    layer: str | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.point_radius) and self.point_radius >= 0):
            raise ValueError(f"expected point_radius >= 0, got {self.point_radius}")

    def read(self, root: Path) -> tuple[list[Feature], str]:
        """The features, their values class names, and the coordinate system ("image" for each image's own).

        Raises:
            ValueError: A value that ``classes`` does not name, or no coordinate system; see also `read_features`.
        """
        path = root / self.path
        features, stated = read_features(path, self.attribute, self.layer)
        if self.classes is not None:
            table = {nfc(str(value)): nfc(name) for value, name in self.classes.items()}
            if unknown := sorted({one.value for one in features} - table.keys()):
                raise ValueError(
                    f"expected values {', '.join(sorted(table)[:8])} of {self.attribute!r} in {str(path)!r}, got "
                    f"{', '.join(unknown[:8])}; name their classes, or 'ignore', in classes"
                )
            features = [Feature(table[one.value], one.rings) for one in features]
        if self.crs is None and stated is None and path.suffix.lower() not in (".geojson", ".json"):
            raise ValueError(f"{path} states no coordinate system; say it: crs: EPSG:CODE, or crs: image")
        if self.crs is None and stated is None and is_beyond_degrees(features):
            raise ValueError(
                f"{path} states no coordinate system, so GeoJSON's degrees are meant, but coordinates are larger; say "
                "the system: crs: EPSG:CODE, or crs: image"
            )
        return features, self.crs or stated or "EPSG:4326"

    def class_names(self, features: Sequence[Feature]) -> list[str]:
        """The classes: that of ground without labels, then the others by name."""
        outside = [] if self.unlabelled == "ignore" else [nfc(self.unlabelled)]
        return [*outside, *sorted({one.value for one in features} - {"ignore", *outside})]

    def masks(
        self, features: Sequence[Feature], crs: str, images: Sequence[Path], class_names: Sequence[str]
    ) -> list[VectorMask]:
        """A mask for each image.

        Args:
            features: See `read`.
            crs: Likewise.
            images: The images.
            class_names: In the order of the labels.

        Raises:
            ValueError: A value that is no class, an image without a place, or no label on any image.
        """
        label_of = {**{nfc(name): label for label, name in enumerate(class_names)}, "ignore": IGNORED}
        for name in (nfc(self.unlabelled), *(one.value for one in features)):
            if name not in label_of:
                raise ValueError(
                    f"expected classes {', '.join(list(class_names)[:8])} or ignore in {self.path!r}, got {name!r}; "
                    "name it in classes or class_names"
                )
        if len(class_names) < 2:
            raise ValueError(
                f"expected two classes or more, got {', '.join(class_names)} alone in {self.path!r}; say what ground "
                "without labels is, such as unlabelled: background"
            )
        known: dict[str, list[Feature]] = {}
        placed, drawn = np.zeros(len(features), bool), np.zeros(len(features), bool)
        masks = []
        for image in images:
            mask, is_on, is_drawn = self._mask(features, crs, image, label_of, known)
            placed |= is_on
            drawn |= is_drawn
            masks.append(mask)
        if placed.any() and not drawn.any():
            raise ValueError(
                f"expected labels of {self.path!r} that cover the middle of a pixel, found {placed.sum()} that are too "
                "small; give points with point_radius, or wider polygons (buffer)"
            )
        if (lost := placed & ~drawn).any():
            logger.warning("%d labels of %s are so small that they cover no pixel's middle", lost.sum(), self.path)
        if not placed.any():
            raise ValueError(
                f"expected labels of {self.path!r} on the images, found none of {len(features)} there (coordinate "
                f"system {crs[:60]}); check the coordinate systems, or say crs"
            )
        if not placed.all():
            logger.warning("%d of %d labels of %s lie on no image", (~placed).sum(), len(placed), self.path)
        return masks

    def _mask(
        self,
        features: Sequence[Feature],
        crs: str,
        image: Path,
        label_of: Mapping[str, int],
        known: dict[str, list[Feature]],
    ) -> tuple[VectorMask, Any, Any]:
        with open_image(image) as reader:
            place, size = reader.georeference, (reader.height, reader.width)
        transform = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0) if place is None else place.transform
        here = list(features)
        if crs != "image":
            own = None if place is None else (f"EPSG:{place.epsg}" if place.epsg else place.to_wkt())
            if own is None:
                raise ValueError(
                    f"expected an image with a coordinate system, got {str(image)!r} without (or one that takes "
                    "rasterio to read); write it into the file, or say crs: image if the labels have its coordinates"
                )
            here = known[own] = known.get(own) or moved(features, crs, own)
        a, b, c, d, e, f = transform
        to_pixels = np.linalg.inv(np.array([[a, b], [d, e]]))
        areas = [
            Area(label_of[one.value], tuple((ring - (c, f)) @ to_pixels.T for ring in one.rings), self.point_radius)
            for one in here
        ]
        is_on = np.array([area.meets(0, 0, *size) for area in areas])
        is_drawn = np.array([is_here and area.covers(size) for area, is_here in zip(areas, is_on, strict=True)])
        kept = [area for area, is_here in zip(areas, is_on, strict=True) if is_here]
        kept.sort(key=lambda area: -area.size)
        return VectorMask(f"{self.path} on {image}", size, kept, label_of[nfc(self.unlabelled)]), is_on, is_drawn


class Area:
    """One polygon or disc in pixels of an image.

    Args:
        label: Its class.
        rings: (n, 2) of x and y.
        radius: Of a point's disc, in pixels.
    """

    def __init__(self, label: int, rings: tuple[Points, ...], radius: float) -> None:
        self.label, self.rings, self.radius = label, rings, radius
        self.is_point = len(rings) == 1 and len(rings[0]) == 1
        if self.is_point and radius == 0:  # all of the pixel it lies in
            self.low = np.floor(rings[0][0])
            self.high = self.low + 1
        else:
            reach = radius if self.is_point else 0.0
            self.low, self.high = rings[0].min(axis=0) - reach, rings[0].max(axis=0) + reach
        self.size = 0.0 if self.is_point else float(np.abs(_signed_area(rings[0])))

    def meets(self, y: int, x: int, height: int, width: int) -> bool:
        """Whether the box around it overlaps a window."""
        return bool((self.low < (x + width, y + height)).all() and (self.high > (x, y)).all())

    def covers(self, size: tuple[int, int]) -> bool:
        """Whether it covers any pixel of an image (height, width); of larger areas that is taken for granted."""
        if self.size > _LARGE:
            return True
        corner = np.maximum(np.floor(self.low), 0).astype(int)
        width, height = np.minimum(np.ceil(self.high), size[::-1]).astype(int) - corner
        here = np.full((max(height, 1), max(width, 1)), IGNORED, np.uint8)
        Area(0, self.rings, self.radius).draw(here, int(corner[1]), int(corner[0]))
        return bool((here == 0).any())

    def draw(self, mask: Pixels, y: int, x: int) -> None:
        """Paint it into a window (height, width) whose first pixel is at row ``y`` and column ``x``."""
        left, top = np.maximum(np.floor(self.low - (x, y)), 0).astype(int)
        right, bottom = np.minimum(np.ceil(self.high - (x, y)), mask.shape[::-1]).astype(int)
        if right <= left or bottom <= top:
            return
        here = mask[top:bottom, left:right]
        if not self.is_point:
            inside = np.zeros(here.shape, bool)
            for ring in self.rings:
                if len(ring) >= 3:
                    inside ^= fill_polygon((ring - (x + left, y + top)).ravel().tolist(), here.shape)
            here[inside] = self.label
        elif self.radius == 0:
            here[:] = self.label
        else:
            column, row = self.rings[0][0] - (x + left, y + top) - 0.5
            rows, columns = np.ogrid[: here.shape[0], : here.shape[1]]
            here[(rows - row) ** 2 + (columns - column) ** 2 <= self.radius**2] = self.label


def _signed_area(ring: Points) -> float:
    x, y = (ring - ring[0]).T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


@dataclass(frozen=True)
class VectorMask:
    """The mask of an image that is drawn from areas; what a path is to other masks.

    Attributes:
        name: For messages.
        size: (height, width) of the image.
        areas: From the largest to the smallest: the smallest on a pixel is its class.
        unlabelled: The class of all else.
    """

    name: str
    size: tuple[int, int]
    areas: list[Area]
    unlabelled: int

    def __str__(self) -> str:
        return self.name

    def open(self) -> VectorReader:
        """As an image of class numbers."""
        return VectorReader(self)


class VectorReader(ImageReader):
    """Windows of (height, width, 1) uint8, drawn when they are read.

    Args:
        mask: What to draw.
    """

    def __init__(self, mask: VectorMask) -> None:
        self.mask = mask
        super().__init__(None, Options(is_mask=True))

    def _connect(self) -> None:
        self.levels = (Level(*self.mask.size, 1.0),)
        self.channels = 1
        self.dtype = np.dtype(np.uint8)

    @property
    def name(self) -> str:
        """The labels' file and the image."""
        return self.mask.name

    def _read(self, y: int, x: int, height: int, width: int, level: int) -> Pixels:
        labels = np.full((height, width), self.mask.unlabelled, np.uint8)
        for area in self.mask.areas:
            if area.meets(y, x, height, width):
                area.draw(labels, y, x)
        return labels[..., None]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.mask,)
