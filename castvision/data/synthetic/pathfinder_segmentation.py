"""Pathfinder as segmentation: which pixels lie on the path that joins the dots?

The paths are those of :mod:`.pathfinder`; here every distractor carries a dot as well (a decoy), so that
dots don't tell which paths are long. Classes as in DLR (Gupta et al. 2022, https://arxiv.org/abs/2203.14343), whose
geometry :func:`dlr_spec` gives; the form with one dot is that of the public generator's segmentation task.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from castvision.data.synthetic.dataset import ENDLESS, FOLDER, DenseBatch, DenseDataset, check_range
from castvision.data.synthetic.pathfinder.chains import NUM_COLUMNS, ORDER, SNAKE, TIP_X, TIP_Y, Work
from castvision.data.synthetic.pathfinder.compiled import entry_kernel, sources_digest
from castvision.data.synthetic.pathfinder.drawing import draw_image
from castvision.data.synthetic.pathfinder.engine import Batch, make_batch, make_work
from castvision.data.synthetic.pathfinder.masks import JOINING, make_semantic_masks, paint
from castvision.data.synthetic.pathfinder.sample import SPLITS
from castvision.data.synthetic.pathfinder.spec import PathfinderSpec
from castvision.data.synthetic.pathfinder.tables import Tables, make_tables

FORMS = ("three-class", "one-dot")
_LENGTHS = {32: 6, 64: 9, 128: 14, 256: 14, 512: 28, 1024: 40}
"""Paddles of a long path by image size, which make it 0.6 to 1.2 times as long as the image is wide."""


def segmentation_spec(img_size: int, contour_length: int | None = None) -> PathfinderSpec:
    """The default geometry: the Long Range Arena's, scaled, with paths 0.6 to 1.2 times as long as the image is wide.

    Below 1024 pixels it is ``PathfinderSpec.lra(..., mode="clean")``, from 64 on with six distractors or more. At 1024
    the paddles stay as large as at 512, the paths get longer and the distractors more; above, everything grows with the
    image.

    Args:
        img_size: Height and width, at least 32.
        contour_length: Paddles in a long path; None = 6 at 32 pixels, 9 at 64, 14 at 128 and 256, 28 at 512, 40 above.

    Raises:
        ValueError: Out of range.
    """
    check_range("img_size", img_size, 32, 1 << 13)
    length = _LENGTHS[max(size for size in _LENGTHS if size <= img_size)] if contour_length is None else contour_length
    spec = PathfinderSpec.lra(img_size, length, "clean")
    if img_size < 1024:
        return replace(spec, num_distractors=max(spec.num_distractors, 6)) if img_size >= 64 else spec
    ratio = img_size / 1024
    half = PathfinderSpec.lra(round(512 * ratio), length, "clean")
    return replace(half, img_size=img_size, distractor_length=length // 4, num_distractors=30)


def dlr_spec(img_size: int) -> PathfinderSpec:
    """The geometry of DLR's three sets, radii to the nearest half pixel.

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


class PathfinderSegDataset(DenseDataset):
    """Pathfinder with a class for each pixel.

    ``form="three-class"``: 0 other, 1 a long path that does not join two dots, 2 the path that does. In half of the
    images the dots mark both ends of one path, in the others an end of each; a dot lies at the start of every
    distractor too, unless ``decoys=False``.
    ``form="one-dot"``: one dot at the start of a long path: 0 other, 1 that path, dot included.

    See :class:`DenseDataset` for items and the other arguments.

    Args:
        img_size: Height and width.
        form: "three-class" or "one-dot".
        spec: What to draw; None = ``segmentation_spec(img_size)``.
        decoys: Whether distractors carry dots; None = in the three-class form only. With one dot there is no other.
        split: "train", "val" or "test".
        length: Number of images.
        seed: Another seed is another set.

    Raises:
        ValueError: An unknown form or split, a spec of another size, decoys beside one dot, or a number out of range.
    """

    def __init__(  # noqa: PLR0913 - the options of a data set
        self,
        img_size: int = 512,
        form: str = "three-class",
        spec: PathfinderSpec | None = None,
        split: str = "train",
        length: int = ENDLESS,
        seed: int = 0,
        *,
        decoys: bool | None = None,
    ) -> None:
        super().__init__(img_size, split, length, seed)
        if form not in FORMS:
            raise ValueError(f"expected form to be one of {', '.join(FORMS)}, got {form=}")
        self.spec = segmentation_spec(img_size) if spec is None else spec
        if self.spec.img_size != img_size:
            raise ValueError(f"expected a spec of {img_size=}, got {self.spec.img_size=}")
        if decoys and form == "one-dot":
            raise ValueError("expected no decoys beside one dot, which alone tells the path; got decoys=True")
        self.form = form
        self.decoys = form == "three-class" if decoys is None else decoys

    @property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override] # depends on the form
        """In the order of the classes."""
        return ("other", "path") if self.form == "one-dot" else ("other", "unconnected path", "joining path")

    def make_batch(self, indices: NDArray[np.int64]) -> DenseBatch:
        """Generate the samples with these numbers, (B,)."""
        batch = self._paths(indices)
        is_single = self.form == "one-dot"
        dots = [batch.dots[i, :1] if is_single else all_dots(batch, i, self.decoys) for i in range(len(indices))]
        images = _redraw(self.spec, batch, dots)
        targets = make_semantic_masks(self.spec, batch)
        if is_single:
            targets = (targets == JOINING).astype(np.uint8)
            for target, (dot,) in zip(targets, dots, strict=True):
                add_disc(target, dot, self.spec.marker_radius)
        return DenseBatch(images, targets, batch.dots[:, 0].astype(np.int64))

    def distance(self, index: int) -> NDArray[np.float32]:
        """How far along its path a pixel lies from the dot that marks the path.

        Returns:
            (S, S) float32: paddles since the dot times the length of a paddle and its gap, in pixels; infinite on
            everything but the long paths, and on a long path without a dot.
        """
        batch = self._paths(self._numbers([index]))
        paddles = batch.paddles
        used = np.arange(paddles.shape[1]) < batch.counts[:, None]
        path = batch.paths[:, None]
        order, snake, last = paddles[..., ORDER], paddles[..., SNAKE], self.spec.contour_length - 1
        passed = np.where(used & (snake == path), order, -1)
        if batch.labels[0] == 0:  # the second dot lies at the end of the other path
            passed = np.where(used & (snake == 1 - path), last - order, passed)
        step = self.spec.paddle_length + 2 * self.spec.paddle_margins[int(batch.margins[0])]
        canvas = np.full(batch.images.shape, np.inf, np.float32)
        paint(self.spec, batch, passed * float(step), canvas)
        distance: NDArray[np.float32] = canvas[0]
        return distance

    def _paths(self, indices: NDArray[np.int64]) -> Batch:
        label = 1 if self.form == "one-dot" else None
        return make_batch(self.spec, self.seed, SPLITS[self.split], indices, label)


def all_dots(batch: Batch, i: int, decoys: bool) -> NDArray[np.int32]:
    """The two dots of a sample, then one at the start of each distractor: (D, 2)."""
    paddles = batch.paddles[i, : batch.counts[i]]
    starts = paddles[(paddles[:, SNAKE] >= 2) & (paddles[:, ORDER] == 0)]
    return np.concatenate([batch.dots[i], starts[:, [TIP_Y, TIP_X]]]) if decoys else batch.dots[i]


def add_disc(target: NDArray[np.uint8], centre: NDArray[np.int32], radius: float) -> None:
    """Set the pixels within ``radius`` of a dot to 1."""
    size = len(target)
    reach = int(np.ceil(radius))
    rows, columns = (np.arange(max(0, c - reach), min(size, c + reach + 1)) for c in centre.tolist())
    near = (rows[:, None] - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2
    target[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1][near] = 1


def _redraw(spec: PathfinderSpec, batch: Batch, dots: list[NDArray[np.int32]]) -> NDArray[np.uint8]:
    """Draw the images of a batch again with other dots."""
    images = np.zeros_like(batch.images)
    counts = np.array([len(places) for places in dots])
    padded = np.zeros((len(dots), int(counts.max(initial=1)), 2), np.int32)
    for row, places in zip(padded, dots, strict=True):
        row[: len(places)] = places
    for which, margin in enumerate(spec.paddle_margins):
        tables = make_tables(spec, margin)
        chosen = np.flatnonzero(batch.margins == which)
        _draw_images(tables, make_work(tables, batch.paddles.shape[1]), batch, chosen, (padded, counts), images)
    return images


def _build_draw_images(sources: int) -> Callable[..., None]:
    @entry_kernel
    def draw_images(
        tables: Tables,
        work: Work,
        batch: Batch,
        chosen: NDArray[np.int64],
        dots: tuple[NDArray[np.int32], NDArray[np.int64]],
        images: NDArray[np.uint8],
    ) -> None:
        if sources < 0:  # never; see sources_digest
            return
        places, counts = dots
        for i in chosen:
            for row in range(batch.counts[i]):
                for column in range(NUM_COLUMNS):
                    work.paddles[row, column] = batch.paddles[i, row, column]
            draw_image(tables, work, batch.counts[i], places[i, : counts[i]], images[i])

    return draw_images


_draw_images = _build_draw_images(sources_digest(FOLDER))
