"""The generator draws the public generator's distribution, the same image for the same key."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from castvision.data.synthetic.pathfinder import PathfinderSpec, engine, make_pathfinder
from castvision.data.synthetic.pathfinder.engine import make_batch
from castvision.data.synthetic.pathfinder.tables import make_tables

# mean and standard deviation of one image over images of the public generator: share > 25, mean grey, share > 200,
# share > 25 in the top quarter, share > 25 in the centre half, grey levels
PUBLIC = {
    (32, 6): (1500, [(0.0949, 0.0126), (12.96, 1.74), (0.01412, 0.00368),
                    (0.0905, 0.0479), (0.1636, 0.0398), (60.5, 6.4)]),
    (32, 14): (1500, [(0.1520, 0.0162), (20.16, 2.03), (0.01587, 0.00444),
                    (0.1456, 0.0547), (0.2174, 0.0529), (64.2, 7.5)]),
    (128, 14): (120, [(0.05645, 0.00202), (7.871, 0.296), (0.01342, 0.00104),
                    (0.0554, 0.0159), (0.0713, 0.0132), (172.6, 4.4)]),
    (256, 14): (300, [(0.0171, 0.0003), (2.953, 0.054), (0.00768, 0.00018),
                    (0.0111, 0.0065), (0.0333, 0.0074), (202.9, 8.1)]),
}  # fmt: skip


HASHES = [
    (32, 14, "lra", "adadef8c3d3785f0"),
    (32, 14, "clean", "41c6e800fae04f75"),
    (32, 6, "clean", "228ff682e8a8edfb"),
    (64, 9, "lra", "3ebf8eb5d6ee8a88"),
    (128, 14, "lra", "1bd3c688adb3af67"),
    (256, 14, "lra", "37801c065db1b9ad"),
    (96, 6, "lra", "670df505627142d1"),
]


def statistics(images: np.ndarray) -> np.ndarray:
    """Six statistics of every image, (B, 6)."""
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


@pytest.mark.parametrize(("size", "contour_length"), list(PUBLIC))
def test_images_have_the_distribution_of_the_public_generator(size: int, contour_length: int) -> None:
    count = 2000
    ours = statistics(make_batch(PathfinderSpec.lra(size, contour_length, "lra"), 0, 3, np.arange(count)).images)
    number, public = PUBLIC[size, contour_length]
    for column, (mean, deviation) in zip(ours.T, public, strict=True):
        error = math.sqrt(column.var() / count + deviation**2 / number)
        assert abs(column.mean() - mean) / error < 4


@pytest.mark.parametrize(
    ("size", "margin", "mode", "expected"),
    [(32, 1, "lra", 30), (64, 1, "lra", 95), (128, 2, "lra", 354), (128, 3, "lra", 360),
     (256, 3, "lra", 360), (32, 1, "clean", 360)],
)  # fmt: skip
def test_the_border_fault_refuses_known_directions(size: int, margin: int, mode: str, expected: int) -> None:
    """At 32 px only -150 to -121 degrees can start a chain."""
    works = np.flatnonzero(make_tables(PathfinderSpec.lra(size, mode=mode), margin).seed_works)
    assert len(works) == expected
    if expected == 30:
        assert (works[0] - 180, works[-1] - 180) == (-150, -121)


@pytest.mark.parametrize(("mode", "low", "high"), [("lra", 1.0, 1.3), ("clean", 4.4, 4.8)])
def test_the_border_fault_leaves_out_most_distractors(mode: str, low: float, high: float) -> None:
    """Of five at 32 px, 1.1 are placed with it and 4.6 without."""
    spec = PathfinderSpec.lra(32, mode=mode)
    batch = make_batch(spec, 0, 0, np.arange(1000))
    assert low < ((batch.counts - 2 * spec.contour_length) / spec.distractor_length).mean() < high


def test_continued_paddles_keep_clear_of_all_older_ones() -> None:
    """Nowhere do two halos add up to 1.8; starts, the newest paddle of each path and path one's last are exceptions."""
    spec = PathfinderSpec.lra(64, 6)
    halo = make_tables(spec, 1).halo
    reach, edge = halo.shape[1] // 2, 20
    batch = make_batch(spec, 0, 0, np.arange(60))
    for paddles, count in zip(batch.paddles, batch.counts, strict=True):
        canvases = np.zeros((count, 64 + 2 * edge, 64 + 2 * edge), np.uint16)
        for canvas, (_, _, y, x, _, _, stamp) in zip(canvases, paddles, strict=False):
            rows, columns = (slice(p + edge - reach, p + edge + reach + 1) for p in (y, x))
            canvas[rows, columns] = halo[stamp]
        for row in range(2, count):
            snake, order = paddles[row, :2]
            if order > 0:
                older = [r for r in range(row - (2 if snake < 2 else 1)) if not (snake >= 2 and r == 10)]
                assert (canvases[older].max(0, initial=0) + canvases[row]).max() < 459


def test_paths_turn_by_less_than_their_continuity_allows() -> None:
    spec = PathfinderSpec.lra(64, 6)
    circle = make_tables(spec, 1).circle
    for paddles in make_batch(spec, 0, 0, np.arange(100)).paddles:
        for path in (paddles[0:12:2], paddles[1:12:2]):
            offsets = circle[path[1:, 6] - 360]
            headings = np.concatenate([np.radians(path[:1, 6] - 180.0), np.arctan2(offsets[:, 0], offsets[:, 1])])
            turns = (np.diff(headings) + math.pi) % (2 * math.pi) - math.pi
            assert np.abs(turns).max() < math.radians(90 / spec.continuity)


@pytest.mark.parametrize(("size", "contour_length", "mode", "expected"), HASHES)
def test_the_first_images_never_change(size: int, contour_length: int, mode: str, expected: str) -> None:
    """A change here makes another data set: results on the old one no longer compare."""
    batch = make_batch(PathfinderSpec.lra(size, contour_length, mode), 0, 0, np.arange(64))
    digest = hashlib.sha256(batch.images.tobytes() + batch.labels.astype(np.uint8).tobytes())
    assert digest.hexdigest()[:16] == expected


def test_splits_and_seeds_share_no_image() -> None:
    spec = PathfinderSpec.lra(32, 6)
    images = [make_batch(spec, seed, split, np.arange(300)).images for seed in (0, 1) for split in range(4)]
    flat = np.concatenate(images).reshape(2400, -1)
    assert len(np.unique(flat, axis=0)) == 2400


def test_labels_paths_and_margins_are_drawn_evenly() -> None:
    batch = make_batch(PathfinderSpec.lra(128, 6), 0, 0, np.arange(2000))
    for choice in (batch.labels, batch.paths, batch.margins):
        assert abs(choice.mean() - 0.5) < 4 * 0.5 / math.sqrt(2000)


def test_paths_that_cannot_fit_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "MAX_TRIES", 200)
    with pytest.raises(ValueError, match=r"no room for two paths of 32 paddles at 32 pixels.*lower contour_length"):
        make_pathfinder(PathfinderSpec.lra(32, 32), 0, "train", 0)
