"""Copy-move: a region of a texture was copied to another place of the same image; mark both.

What marks them is that they are alike, wherever they lie: no window and no neighbourhood tells. A copy has an outline
where it was laid over what was there; so have the decoys, regions of the same form from another texture, which are not
marked. With ``tones`` every region is as much lighter or darker than what it lies on as no other one but its copy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from castvision.data.datasets.batch import ENDLESS
from castvision.data.synthetic.compiled import SOURCES, below, entry_kernel, kernel, next_bits
from castvision.data.synthetic.dataset import DenseBatch, DenseDataset, check_range

OCTAVES = 4
"""Layers of a texture: smooth noise whose points lie 2, 4, 8, … pixels apart."""
MAX_DECOYS = 3
_TRIES = 200  # places of all regions tried with one size of them


class Canvas(NamedTuple):
    """Memory of one image of S x S pixels."""

    rng: NDArray[np.uint64]  # (2,)
    points: NDArray[np.int32]  # (S // 2 + 2, S // 2 + 2): noise of an octave
    texture: NDArray[np.int32]  # (S, S)
    other: NDArray[np.int32]  # (S, S): the texture of the decoys
    places: NDArray[np.int64]  # (2 + MAX_DECOYS, 2): centres of source, copy and decoys
    tones: NDArray[np.int32]  # (1 + MAX_DECOYS,): what is added to the source, and to each decoy


class CopyMoveDataset(DenseDataset):
    """A texture, a region of which lies on it a second time; the target is both: 0 other, 1 copied.

    Regions are ellipses with half axes of a twelfth to a sixth of the image; none of them touch.
    See :class:`DenseDataset` for items and the other arguments; distances are straight, from the middle of the source.

    Args:
        img_size: Height and width, at least 32.
        decoys: Regions of the same form with another texture, 0..3, which are not marked. Without any, an outline
            tells where the copy is.
        tones: Give each region a grey level of its own, which its copy shares: it is then seen at once where regions
            are, and asked for which two are alike.

    Raises:
        ValueError: An unknown split, or a number out of range.
        TypeError: A number that should be whole and isn't.
    """

    class_names = ("other", "copied")

    def __init__(
        self,
        img_size: int = 64,
        decoys: int = 1,
        tones: bool = False,
        split: str = "train",
        length: int = ENDLESS,
        seed: int = 0,
    ) -> None:
        super().__init__(img_size, split, length, seed)
        check_range("img_size", img_size, 32, 1 << 14)
        check_range("decoys", decoys, 0, MAX_DECOYS)
        self.decoys, self.tones = decoys, tones

    def make_batch(self, indices: NDArray[np.int64]) -> DenseBatch:
        """Generate the samples with these numbers, (B,)."""
        return self._with_copies(indices)[0]

    def distance(self, index: int) -> NDArray[np.float32]:
        """How far every pixel is from the middle of the source, in a straight line.

        Returns:
            (S, S) float32, in pixels.
        """
        (y, x) = self.make_batch(self.wrap_indices([index])).dots[0]
        rows, columns = np.indices((self.img_size, self.img_size))
        distance: NDArray[np.float32] = np.hypot(rows - y, columns - x).astype(np.float32)
        return distance

    def shift(self, index: int) -> tuple[int, int]:
        """(down, right) from the source to its copy, in pixels."""
        batch, copies = self._with_copies(self.wrap_indices([index]))
        down, right = (copies[0] - batch.dots[0]).tolist()
        return down, right

    def _with_copies(self, indices: NDArray[np.int64]) -> tuple[DenseBatch, NDArray[np.int64]]:
        """Samples, and the middles (B, 2) of their copies."""
        size, count = self.img_size, len(indices)
        shape = (count, size, size)
        batch = DenseBatch(np.empty(shape, np.uint8), np.zeros(shape, np.uint8), np.empty((count, 2), np.int64))
        copies = np.empty((count, 2), np.int64)
        canvas = Canvas(
            np.zeros(2, np.uint64),
            np.empty((size // 2 + 2, size // 2 + 2), np.int32),
            np.empty((size, size), np.int32),
            np.empty((size, size), np.int32),
            np.empty((2 + MAX_DECOYS, 2), np.int64),
            np.zeros(1 + MAX_DECOYS, np.int32),
        )
        _generate(canvas, self.start_streams(indices), self.decoys, self.tones, batch, copies)
        return batch, copies


@kernel
def add_texture(canvas: Canvas, picture: np.ndarray) -> None:
    """Fill a picture with smooth noise, whole numbers throughout: every machine makes the same."""
    size = picture.shape[0]
    picture[:] = 0
    for octave in range(OCTAVES):
        step = 2 << octave
        points = size // step + 2
        for y in range(points):
            for x in range(points):
                canvas.points[y, x] = np.int32(next_bits(canvas.rng) >> np.uint64(44))  # 20 bits
        for y in range(size):
            row, down = y // step, y % step
            for x in range(size):
                column, right = x // step, x % step
                above = canvas.points[row, column] * (step - right) + canvas.points[row, column + 1] * right
                below_ = canvas.points[row + 1, column] * (step - right) + canvas.points[row + 1, column + 1] * right
                picture[y, x] += np.int32((above * (step - down) + below_ * down) // (step * step))


@kernel
def place(canvas: Canvas, count: int) -> tuple[int, int]:
    """Choose the half axes (vertical, horizontal), which it returns, and the middles of regions that do not touch."""
    size = canvas.texture.shape[0]
    least, most = max(2, size // 12), max(3, size // 6)
    while True:
        tall, wide = least + below(canvas.rng, most - least + 1), least + below(canvas.rng, most - least + 1)
        for _ in range(_TRIES):
            is_free = True
            for i in range(count):
                canvas.places[i, 0] = tall + below(canvas.rng, size - 2 * tall)
                canvas.places[i, 1] = wide + below(canvas.rng, size - 2 * wide)
                for j in range(i):
                    down = abs(canvas.places[i, 0] - canvas.places[j, 0])
                    right = abs(canvas.places[i, 1] - canvas.places[j, 1])
                    if down <= 2 * tall + 1 and right <= 2 * wide + 1:  # not even touching
                        is_free = False
            if is_free:
                return tall, wide


@kernel
def choose_tones(canvas: Canvas) -> None:
    """Two lighter and two darker levels in any order: a texture varies by a third of the least difference."""
    for i in range(len(canvas.tones)):
        canvas.tones[i] = np.int32((i - 2 + i // 2) << 20)  # -2, -1, 1, 2
    for i in range(len(canvas.tones)):
        j = i + below(canvas.rng, len(canvas.tones) - i)
        canvas.tones[i], canvas.tones[j] = canvas.tones[j], canvas.tones[i]


@kernel
def draw(canvas: Canvas, axes: tuple[int, int], count: int, image: np.ndarray, target: np.ndarray) -> None:
    """Copy the first region to the second place, the other texture to the others, and stretch to 0..255."""
    tall, wide = axes
    size, texture, places, tones = canvas.texture.shape[0], canvas.texture, canvas.places, canvas.tones
    for y in range(-tall, tall + 1):
        for x in range(-wide, wide + 1):
            if y * y * wide * wide + x * x * tall * tall > tall * tall * wide * wide:
                continue
            texture[places[0, 0] + y, places[0, 1] + x] += tones[0]
            texture[places[1, 0] + y, places[1, 1] + x] = texture[places[0, 0] + y, places[0, 1] + x]
            target[places[0, 0] + y, places[0, 1] + x] = 1
            target[places[1, 0] + y, places[1, 1] + x] = 1
            for i in range(2, count):
                decoy = canvas.other[places[i, 0] + y, places[i, 1] + x] + tones[i - 1]
                texture[places[i, 0] + y, places[i, 1] + x] = decoy
    low, high = texture[0, 0], texture[0, 0]
    for y in range(size):
        for x in range(size):
            low, high = min(low, texture[y, x]), max(high, texture[y, x])
    for y in range(size):
        for x in range(size):
            image[y, x] = (np.int64(texture[y, x]) - low) * 255 // max(1, high - low)


@entry_kernel
def _generate(
    canvas: Canvas,
    streams: NDArray[np.uint64],
    decoys: int,
    tones: bool,
    batch: DenseBatch,
    copies: NDArray[np.int64],
    sources: int = SOURCES,
) -> None:
    for i in range(len(streams)):
        canvas.rng[:] = streams[i]
        add_texture(canvas, canvas.texture)
        add_texture(canvas, canvas.other)
        axes = place(canvas, 2 + decoys)
        if tones:
            choose_tones(canvas)
        batch.dots[i] = canvas.places[0]
        copies[i] = canvas.places[1]
        draw(canvas, axes, 2 + decoys, batch.images[i], batch.targets[i])
