"""Pathfinder as torch data sets that make their images when they are asked for: as many as one likes, none stored."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from castvision.data.datasets.batch import ENDLESS, Sample
from castvision.data.synthetic.compiled import SPLITS
from castvision.data.synthetic.dataset import DenseBatch, DenseDataset, SyntheticDataset, scale_images
from castvision.data.synthetic.pathfinder.engine import PathfinderBatch, draw_with_dots, make_batch
from castvision.data.synthetic.pathfinder.masks import JOINING, make_gap_free_masks, make_semantic_masks, paint
from castvision.data.synthetic.pathfinder.search import ORDER, SNAKE, TIP_X, TIP_Y
from castvision.data.synthetic.pathfinder.spec import PathfinderSpec, segmentation_spec

TASKS = ("classify", "join", "three-class")
LINES = ("ink", "gap-free")
FORMS = ("three-class", "one-dot")
CLASS_NAMES = {
    "classify": ("not connected", "connected"),
    "join": ("background", "joining path"),
    "three-class": ("other", "unconnected path", "joining path"),
    "one-dot": ("other", "path"),
}
"""Classes in the order of their labels, by task of `PathfinderDataset` or form of `PathfinderSegDataset`."""


class PathfinderDataset(SyntheticDataset):
    """Images of the Long Range Arena's Pathfinder, with their label or a mask of their paths.

    The images are the classification task's, whatever the target: two dots and nothing on the distractors. For
    segmentation as a task of its own, where dots don't tell which paths are long, see :class:`PathfinderSegDataset`.

    Items are (image, target): image (1, S, S) float32 in [-1, 1]; target for "classify" the label () int64, for "join"
    a mask (S, S) int64 of the path that joins the dots (every image has one), for "three-class" a mask of 0 other, 1 a
    long path that does not join the dots, 2 the path that does.

    Args:
        spec: What to draw.
        task: "classify", "join" or "three-class".
        split: "train", "val", "test" or "written".
        length: Number of images; the default is beyond reach, for training that never sees an image twice.
        seed: Another seed is another set.
        lines: How masks show a path: "ink" its paddles, "gap-free" one unbroken line.
        symmetries: Turn or mirror every image by one of the 8 symmetries of the square, always the same one for an
            index. Labels don't change. The generator itself prefers some directions, so this widens a training set.

    Attributes:
        class_names: In the order of the labels.
        gives_paths: Whether items of "classify" come with their "three-class" mask, as
            (image, target, {}, {"paths": (S, S) int64}); no model is shown the last part, see
            :class:`castvision.data.datasets.batch.Batch`.

    Raises:
        ValueError: An unknown task, split or kind of lines, or a number out of range.
    """

    gives_paths: bool = False

    def __init__(
        self,
        spec: PathfinderSpec,
        task: str = "classify",
        split: str = "train",
        length: int = ENDLESS,
        seed: int = 0,
        *,
        lines: str = "ink",
        symmetries: bool = False,
    ) -> None:
        super().__init__(split, length, seed)
        if task not in TASKS:
            raise ValueError(f"expected task to be one of {', '.join(TASKS)}, got {task=}")
        if lines not in LINES:
            raise ValueError(f"expected lines to be one of {', '.join(LINES)}, got {lines=}")
        self.spec, self.task, self.lines, self.symmetries = spec, task, lines, symmetries
        self.class_names = CLASS_NAMES[task]

    def make_items(self, indices: NDArray[np.int64]) -> list[Sample]:
        """The items of indices in 0..length - 1, (B,)."""
        label = 1 if self.task == "join" else None
        batch = make_batch(self.spec, self.seed, SPLITS[self.split], indices, label)
        parts = [scale_images(batch.images)]
        if self.task == "classify":
            parts.append(torch.from_numpy(batch.labels))
        if self.task != "classify" or self.gives_paths:
            make_masks = make_semantic_masks if self.lines == "ink" else make_gap_free_masks
            masks = torch.from_numpy(make_masks(self.spec, batch))  # B, S, S
            parts.append((masks == JOINING).long() if self.task == "join" else masks.long())
        items = list(zip(*parts, strict=True))
        if self.symmetries:
            chosen = _choose_symmetries(self.seed, SPLITS[self.split], indices)
            items = [tuple(turn(part, which) for part in item) for item, which in zip(items, chosen, strict=True)]
        return [
            (image, target, {}, {"paths": paths[0]}) if paths else (image, target) for image, target, *paths in items
        ]


def _choose_symmetries(seed: int, split: int, numbers: NDArray[np.int64]) -> list[int]:
    """One of the 8 symmetries for each number, by a fixed hash."""
    salt = (seed * 0x9E3779B97F4A7C15 + (split + 1) * 0xD1342543DE82EF95) % 2**64
    value = numbers.astype(np.uint64) * np.uint64(0xBF58476D1CE4E5B9) + np.uint64(salt)
    value = (value ^ (value >> np.uint64(31))) * np.uint64(0x94D049BB133111EB)
    return [int(number) for number in value >> np.uint64(61)]


def turn(value: Tensor, which: int) -> Tensor:
    """Symmetry ``which`` (0..7) of the square on the last two dimensions; a label () stays as it is."""
    if value.ndim < 2:
        return value
    mirrored = value.flip(-1) if which >= 4 else value
    return torch.rot90(mirrored, which % 4, (-2, -1)).contiguous()


class PathfinderSegDataset(DenseDataset):
    """Pathfinder as segmentation: which pixels lie on the path that joins the dots?

    Here every distractor carries a dot as well (a decoy), so that dots don't tell which paths are long; items can come
    with the distance from the dot. Classes as in DLR (Gupta et al. 2022, https://arxiv.org/abs/2203.14343), whose
    geometry :func:`.spec.dlr_spec` gives; the form with one dot is that of the public generator's segmentation task.
    For masks of the Long Range Arena's own images see :class:`PathfinderDataset`.

    ``form="three-class"``: 0 other, 1 a long path that does not join two dots, 2 the path that does. In half of the
    images the dots mark both ends of one path, in the others an end of each; a dot lies at the start of every
    distractor too, unless ``decoys=False``.
    ``form="one-dot"``: one dot at the start of a long path: 0 other, 1 that path, dot included.

    See :class:`DenseDataset` for items and the other arguments.

    Args:
        img_size: Height and width.
        form: "three-class" or "one-dot".
        spec: What to draw, by default ``segmentation_spec(img_size)``.
        decoys: Whether distractors carry dots, by default in the three-class form only; beside one dot they cannot.

    Raises:
        ValueError: An unknown form or split, a spec of another size, decoys beside one dot, or a number out of range.
    """

    def __init__(
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
        self.class_names = CLASS_NAMES[form]

    def make_batch(self, indices: NDArray[np.int64]) -> DenseBatch:
        """Generate the samples of indices in 0..length - 1, (B,)."""
        batch = self._paths(indices)
        is_single = self.form == "one-dot"
        dots = [batch.dots[i, :1] if is_single else all_dots(batch, i, self.decoys) for i in range(len(indices))]
        images = draw_with_dots(self.spec, batch, dots)
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
        batch = self._paths(self.wrap_indices([index]))
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

    def _paths(self, indices: NDArray[np.int64]) -> PathfinderBatch:
        label = 1 if self.form == "one-dot" else None
        return make_batch(self.spec, self.seed, SPLITS[self.split], indices, label)


def all_dots(batch: PathfinderBatch, i: int, decoys: bool) -> NDArray[np.int32]:
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
