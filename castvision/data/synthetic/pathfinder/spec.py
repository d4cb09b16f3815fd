"""What a Pathfinder image is made of: sizes, lengths and contrasts, with LRA's own values.

Long Range Arena (Tay et al. 2021, https://arxiv.org/abs/2011.04006) drew its sets with the public generator of Linsley
et al. (https://github.com/drewlinsley/pathfinder, MIT). :meth:`PathfinderSpec.lra` gives the parameters that its data
set's documentation states, for every resolution that LRA has, and the same geometry scaled for every other one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from castvision.data.synthetic.dataset import check_range

Mode = Literal["lra", "clean"]
"""``"lra"`` keeps the border fault of the public generator's dilation, as LRA's images have it; ``"clean"`` doesn't."""

SUPERSAMPLING = 2
"""Paddles and dots are drawn this many times larger, then reduced."""

LARGEST = 1 << 13
"""Pixels along a side."""

_MOST_DISTRACTORS = 253  # instance masks are 8-bit, and hold the background and both paths too

_SEGMENTATION_LENGTHS = {32: 6, 64: 9, 128: 14, 256: 14, 512: 28, 1024: 40}
"""Paddles of a long path by image size, which make it 0.6 to 1.2 times as long as the image is wide."""


@dataclass(frozen=True)
class PathfinderSpec:
    """All parameters of a family of Pathfinder images; lengths in pixels.

    Two long paths of ``contour_length`` short bars ("paddles") and some short distractor paths lie on black. Two dots
    mark ends: of one path (label 1, connected) or of both (label 0).

    Attributes:
        img_size: Height and width, 24 to 8192.
        contour_length: Paddles in each long path (LRA: 6 easy, 9 intermediate, 14 hard), 2 to ``img_size``.
        distractor_length: Paddles in a distractor.
        num_distractors: Distractors tried; those that find no room are left out.
        paddle_length: Length of a paddle.
        paddle_thickness: Its thickness, a multiple of 0.5.
        paddle_margins: Gaps around a paddle; one is drawn for each image.
        padding: Width of the border that stays empty.
        seed_distance: Distance between the starts of the two paths; path one starts 2x this away from the border.
        marker_radius: Radius of the two dots, a multiple of 0.5.
        continuity: A path turns by less than 90 / continuity degrees at each paddle; at least 1 is usual.
        path_contrast: Brightness of the long paths, before each image is stretched to 0..255.
        distractor_contrast: Brightness of the distractors; the dots have 1.
        mode: ``"lra"`` (with the public generator's border fault) or ``"clean"`` (more distractors, a harder task).

    Raises:
        ValueError: If a value is out of range or the parts cannot fit into the image.
    """

    img_size: int = 32
    contour_length: int = 14
    distractor_length: int = 4
    num_distractors: int = 5
    paddle_length: int = 2
    paddle_thickness: float = 0.5
    paddle_margins: tuple[int, ...] = (1,)
    padding: int = 1
    seed_distance: int = 7
    marker_radius: float = 1.5
    continuity: float = 1.0
    path_contrast: float = 1.5
    distractor_contrast: float = 2.0
    mode: Mode = "lra"

    def __post_init__(self) -> None:
        """Check every field."""
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode must be 'lra' or 'clean', got mode={self.mode!r}")
        minimum = {
            "img_size": 24,
            "contour_length": 2,
            "distractor_length": 1,
            "num_distractors": 0,
            "paddle_length": 1,
            "padding": 1,
            "seed_distance": 1,
        }
        for name, least in minimum.items():
            _check_whole(name, getattr(self, name), least)
        if self.num_distractors > _MOST_DISTRACTORS:
            raise ValueError(f"num_distractors must be at most {_MOST_DISTRACTORS}, got {self.num_distractors}")
        if not self.paddle_margins:
            raise ValueError("paddle_margins must hold at least one margin, got paddle_margins=()")
        for margin in self.paddle_margins:
            _check_whole("paddle_margins", margin, 1)
        for name in ("paddle_thickness", "marker_radius"):
            _check_half_steps(name, getattr(self, name))
        for name in ("continuity", "path_contrast", "distractor_contrast"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {name}={value!r}")
        check_range("img_size", self.img_size, 24, LARGEST)
        check_range("contour_length", self.contour_length, 2, self.img_size)
        self._check_room()

    def _check_room(self) -> None:
        """Path one's first paddle, with its margin, must fit into the central square where paths start."""
        inner = self.img_size - 4 * self.seed_distance
        if inner < self.paddle_length:
            raise ValueError(
                f"the first path starts at least 2 * seed_distance pixels from the border, which leaves a square of "
                f"{inner} pixels for a paddle of {self.paddle_length}; lower seed_distance={self.seed_distance} or "
                f"raise img_size={self.img_size}"
            )
        if 2 * (self.padding + max(self.paddle_margins) + self.paddle_length) >= self.img_size:
            raise ValueError(f"padding={self.padding} leaves no room for paddles in img_size={self.img_size}")

    @staticmethod
    def lra(img_size: int, contour_length: int = 14, mode: Mode = "lra") -> PathfinderSpec:
        """LRA's parameters for a resolution; for sizes that LRA lacks, the same geometry scaled.

        32, 64, 128 and 256 are LRA's own columns. Any other size takes the largest of them that is not above it (32
        below 32) and multiplies paddle length, thickness, margins, padding, seed distance and dot radius by the ratio
        of the sizes, rounded (thickness and radius to half pixels, the seed distance down). A distractor has a third
        of a path's paddles; how many there are follows from LRA's budget of distractor paddles at that resolution.

        Args:
            img_size: Height and width, at least 24.
            contour_length: Paddles in each long path.
            mode: See :class:`PathfinderSpec`.

        Raises:
            ValueError: If an argument is out of range.
        """
        _check_whole("img_size", img_size, 24)
        _check_whole("contour_length", contour_length, 2)
        reference = _LRA[max((size for size in _LRA if size <= img_size), default=32)]
        ratio = img_size / reference.img_size
        distractor_length = max(1, contour_length // 3)

        def whole(value: float) -> int:
            return max(1, math.floor(value * ratio + 0.5))

        def halves(value: float) -> float:
            return max(1, math.floor(value * ratio * 2 + 0.5)) / 2

        return replace(
            reference,
            img_size=img_size,
            contour_length=contour_length,
            distractor_length=distractor_length,
            num_distractors=reference.num_distractors // distractor_length,
            paddle_length=max(2, whole(reference.paddle_length)),
            paddle_thickness=halves(reference.paddle_thickness),
            paddle_margins=tuple(dict.fromkeys(whole(margin) for margin in reference.paddle_margins)),
            padding=whole(reference.padding),
            seed_distance=math.floor(reference.seed_distance * ratio),
            marker_radius=halves(reference.marker_radius),
            mode=mode,
        )


def segmentation_spec(img_size: int, contour_length: int | None = None) -> PathfinderSpec:
    """The default geometry of Pathfinder as segmentation: the Long Range Arena's, scaled.

    Paths are 0.6 to 1.2 times as long as the image is wide. Below 1024 pixels it is ``PathfinderSpec.lra(...,
    mode="clean")``, from 64 on with six distractors or more. At 1024 the paddles stay as large as at 512, the paths get
    longer and the distractors more; above, everything grows with the image.

    Args:
        img_size: Height and width, at least 32.
        contour_length: Paddles in a long path, by default 6 from 32 pixels on, 9 from 64, 14 from 128, 28 from 512 and
            40 from 1024.

    Raises:
        ValueError: Out of range.
    """
    check_range("img_size", img_size, 32, LARGEST)
    least = max(size for size in _SEGMENTATION_LENGTHS if size <= img_size)
    length = _SEGMENTATION_LENGTHS[least] if contour_length is None else contour_length
    spec = PathfinderSpec.lra(img_size, length, "clean")
    if img_size < 1024:
        return replace(spec, num_distractors=max(spec.num_distractors, 6)) if img_size >= 64 else spec
    ratio = img_size / 1024
    half = PathfinderSpec.lra(round(512 * ratio), length, "clean")
    return replace(half, img_size=img_size, distractor_length=length // 4, num_distractors=30)


def dlr_spec(img_size: int) -> PathfinderSpec:
    """The geometry of the three sets of DLR (Gupta et al. 2022, https://arxiv.org/abs/2203.14343).

    Radii are those to the nearest half pixel.

    Args:
        img_size: 128, 256 or 512.

    Raises:
        ValueError: Another size.
    """
    sizes = {
        128: PathfinderSpec(128, 14, 4, 16, 5, 1.5, (2, 3), 1, 22, 2.0, 1.8, 0.9, 0.9, "clean"),
        256: PathfinderSpec(256, 16, 4, 16, 8, 2.0, (4,), 1, 27, 4.0, 2.2, 1.0, 1.0, "clean"),
        512: PathfinderSpec(512, 12, 4, 18, 22, 6.0, (7,), 1, 40, 9.0, 2.5, 1.0, 1.0, "clean"),
    }
    if img_size not in sizes:
        raise ValueError(f"expected img_size to be one of {', '.join(map(str, sizes))}, got {img_size=}")
    return sizes[img_size]


def _check_whole(name: str, value: object, least: int) -> None:
    """A whole number, at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {name}={value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {name}={value}")


def _check_half_steps(name: str, value: float) -> None:
    """A positive multiple of half a pixel, which supersampling by two can draw."""
    if not (math.isfinite(value) and value > 0 and float(value * SUPERSAMPLING).is_integer()):
        raise ValueError(f"{name} must be a positive multiple of 0.5, got {name}={value!r}")


# From the docstrings of long-range-arena's lra_benchmarks/data/pathfinder.py, which give the number of paddles of all
# distractors together: that many distractors of one paddle each.
_LRA = {
    32: PathfinderSpec(32, 14, 1, 20, 2, 0.5, (1,), 1, 7, 1.5, 1.0, 1.5, 2.0),
    64: PathfinderSpec(64, 14, 1, 22, 5, 1.0, (1,), 1, 12, 2.5, 1.8, 0.8, 0.8),
    128: PathfinderSpec(128, 14, 1, 35, 5, 1.5, (2, 3), 1, 20, 3.0, 1.8, 0.9, 0.9),
    256: PathfinderSpec(256, 14, 1, 30, 5, 2.0, (3,), 22, 27, 5.0, 1.8, 1.0, 1.0),
}
