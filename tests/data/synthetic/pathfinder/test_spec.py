"""Every size has the geometry of the Long Range Arena, and what cannot be drawn is refused."""

from __future__ import annotations

import math

import pytest

from castvision.data.synthetic.pathfinder import PathfinderDataset, PathfinderSpec, make_pathfinder
from castvision.data.synthetic.pathfinder.spec import segmentation_spec


@pytest.mark.parametrize("size", [24, 40, 96, 512])
def test_other_sizes_scale_the_geometry(size: int) -> None:
    spec = PathfinderSpec.lra(size, 6)
    sample = make_pathfinder(spec, 0, "train", 0)
    assert sample.image.shape == (size, size) and sample.image.max() == 255
    if size == 512:
        double = PathfinderSpec.lra(256, 6)
        assert (spec.paddle_length, spec.seed_distance, spec.padding) == (10, 54, 44)
        assert spec.marker_radius == 2 * double.marker_radius and spec.continuity == double.continuity


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PathfinderSpec.lra(8), "img_size"),
        (lambda: PathfinderSpec.lra(32, mode="clear"), "clear"),
        (lambda: PathfinderDataset(PathfinderSpec.lra(32), "joined"), "joined"),
        (lambda: PathfinderDataset(PathfinderSpec.lra(32), split="dev"), "dev"),
        (lambda: make_pathfinder(PathfinderSpec.lra(32), -1, "train", 0), "seed"),
        (lambda: make_pathfinder(PathfinderSpec.lra(32), 0, "train", 2**63), "index"),
        (lambda: make_pathfinder(PathfinderSpec.lra(32), 0, "train", 0, label=2), "label"),
        (lambda: PathfinderDataset(PathfinderSpec.lra(32), lines="dots"), "lines"),
        (lambda: PathfinderDataset(PathfinderSpec.lra(32), length=0), "length"),
        (lambda: PathfinderSpec.lra(32, 1), "contour_length"),
        (lambda: PathfinderSpec(paddle_thickness=0.7), "multiple of 0.5"),
        (lambda: PathfinderSpec(paddle_margins=()), "margin"),
        (lambda: PathfinderSpec(continuity=math.nan), "continuity"),
        (lambda: PathfinderSpec(seed_distance=9), "seed_distance"),
        (lambda: PathfinderSpec(num_distractors=300), "253"),
    ],
)
def test_bad_input_is_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("size", [32, 64, 96, 256, 512, 1024, 2048])
def test_paths_are_about_as_long_as_the_image_is_wide(size: int) -> None:
    spec = segmentation_spec(size)
    margin = spec.paddle_margins[0]
    length = spec.contour_length * spec.paddle_length + 2 * (spec.contour_length - 1) * margin
    assert 0.55 < length / size < 1.2
    assert spec.mode == "clean" and spec.img_size == size
