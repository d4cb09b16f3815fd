"""The generator draws the public generator's distribution, the same image for the same key, with exact masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from castvision.data.pathfinder import PathfinderDataset, PathfinderSpec, make_pathfinder
from castvision.data.pathfinder.engine import make_batch

# mean and standard deviation of one image over images of the public generator: share > 25, mean grey, share > 200,
# share > 25 in the top quarter, share > 25 in the centre half, grey levels
PUBLIC = {
    (32, 6): (1500, [(0.0949, 0.0126), (12.96, 1.74), (0.01412, 0.00368), (0.0905, 0.0479), (0.1636, 0.0398), (60.5, 6.4)]),  # noqa: E501
    (32, 14): (1500, [(0.1520, 0.0162), (20.16, 2.03), (0.01587, 0.00444), (0.1456, 0.0547), (0.2174, 0.0529), (64.2, 7.5)]),  # noqa: E501
    (128, 14): (120, [(0.05645, 0.00202), (7.871, 0.296), (0.01342, 0.00104), (0.0554, 0.0159), (0.0713, 0.0132), (172.6, 4.4)]),  # noqa: E501
    (256, 14): (300, [(0.0171, 0.0003), (2.953, 0.054), (0.00768, 0.00018), (0.0111, 0.0065), (0.0333, 0.0074), (202.9, 8.1)]),  # noqa: E501
}  # fmt: skip


def figures(images: np.ndarray) -> np.ndarray:
    """The six figures of every image, (B, 6)."""
    size = images.shape[1]
    quarter, half = size // 4, slice(size // 4, size - size // 4)
    return np.stack(
        [
            (images > 25).mean((1, 2)),
            images.mean((1, 2)),
            (images > 200).mean((1, 2)),
            (images[:, :quarter] > 25).mean((1, 2)),
            (images[:, half, half] > 25).mean((1, 2)),
            np.array([len(np.unique(image)) for image in images]),
        ],
        1,
    )


def compare(size: int, contour_length: int, count: int = 2000) -> tuple[list[float], float]:
    """|z| of the first five figures, and the relative difference of the number of grey levels."""
    spec = PathfinderSpec.lra(size, contour_length, "lra")
    ours = figures(make_batch(spec, 0, 3, np.arange(count)).images)
    number, public = PUBLIC[size, contour_length]
    z = []
    for column, (mean, deviation) in zip(ours.T[:5], public, strict=False):
        error = math.sqrt(column.var() / count + deviation**2 / number)
        z.append(abs(column.mean() - mean) / error)
    return z, ours[:, 5].mean() / public[5][0] - 1


@pytest.mark.parametrize("contour_length", [6, 14])
def test_distribution_at_32_px(contour_length: int) -> None:
    """Geometry and brightness agree; the number of grey levels is 2 to 3 percent lower, from rounding while drawing."""
    z, levels = compare(32, contour_length)
    assert max(z) < 4
    assert abs(levels) < 0.04


@pytest.mark.slow
@pytest.mark.parametrize("size", [128, 256])
def test_distribution_at_larger_sizes(size: int) -> None:
    z, levels = compare(size, 14)
    assert max(z) < 4
    assert abs(levels) < 0.04


def test_a_key_gives_one_image_however_it_is_asked_for() -> None:
    data = PathfinderDataset(PathfinderSpec.lra(32, 6, "clean"), "three-class", seed=5)
    together = data.__getitems__([7, 3, 11])
    for (image, mask), index in zip(together, [7, 3, 11], strict=True):
        alone_image, alone_mask = data[index]
        assert torch.equal(image, alone_image) and torch.equal(mask, alone_mask)
    other = PathfinderDataset(PathfinderSpec.lra(32, 6, "clean"), "three-class", split="val", seed=5)
    assert not torch.equal(other[7][0], data[7][0])


def test_masks_fit_the_label_and_the_dots() -> None:
    spec = PathfinderSpec.lra(32, 6, "clean")
    for index in range(30):
        sample = make_pathfinder(spec, 0, "train", index)
        long_paths = (sample.instances == 1) | (sample.instances == 2)
        assert set(np.unique(sample.semantic)) == ({0, 1, 2} if sample.label else {0, 1})
        assert (sample.semantic[long_paths] > 0).all()
        assert (sample.image[sample.semantic > 0] > 0).all()
        assert 0 <= sample.ordinal[sample.semantic > 0].min() and sample.ordinal.max() == 1
        if sample.label:
            for y, x in sample.dots:
                assert sample.gap_free[y, x] == 2


def test_forcing_the_label_keeps_the_paths() -> None:
    spec = PathfinderSpec.lra(32, 6)
    joined, apart = (make_pathfinder(spec, 0, "train", 4, label=label) for label in (1, 0))
    assert (joined.label, apart.label) == (1, 0)
    assert np.array_equal(joined.semantic > 0, apart.semantic > 0)


def test_join_marks_one_path_of_every_image() -> None:
    data = PathfinderDataset(PathfinderSpec.lra(32, 6), "join", length=64)
    masks = torch.stack([mask for _, mask in data.__getitems__(range(64))])
    assert (masks.flatten(1).sum(1) > 0).all() and masks.unique().tolist() == [0, 1]
    with pytest.raises(IndexError, match="below 64"):
        data[64]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PathfinderSpec.lra(8), "img_size"),
        (lambda: PathfinderSpec.lra(32, mode="clear"), "clear"),
        (lambda: PathfinderDataset(PathfinderSpec.lra(32), "joined"), "joined"),
        (lambda: PathfinderDataset(PathfinderSpec.lra(32), split="dev"), "dev"),
        (lambda: make_pathfinder(PathfinderSpec.lra(32), -1, "train", 0), "seed"),
    ],
)
def test_bad_input_is_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
