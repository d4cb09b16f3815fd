"""A label for each slide, learned from the embeddings of its tiles: the data module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.data.datasets.labelled_split import split_labelled
from castvision.data.datasets.leaks import check_apart, same_images
from castvision.data.datasets.slide_bags import SPLITS, SlideBags, common_format, pad_bags, read_slide_table
from castvision.data.reading.folders import nfc
from castvision.training.data.data_module import ImageDataModule, Pairs

if TYPE_CHECKING:
    from castvision.data.datasets.slide_bags import SlideTable


class SlideDataModule(ImageDataModule):
    """A list of slides and their labels, and the embeddings that ``castvision embed --write tiles`` wrote.

    Slides of one patient, and files of the same content, go to one split; each split has its share of every class. A
    column ``split`` in the list is followed instead, and refused where a patient stands in two.

    Args:
        root: The list; see `castvision.data.datasets.slide_bags.read_slide_table`.
        features: The folder of HDF5 files; None = the list's own.
        class_names: In order; None = the labels of the list in alphabetical order.
        val_share: Share of the slides held out to choose the checkpoint, where the list has no splits.
        test_share: Share held out for the end; 0 = none.
        max_tiles: Tiles of a training slide at once, a random choice of more; held-out slides are seen whole.
        batch_size: Slides a step and process.
        num_workers: Loader processes.
        seed: Of the order of the slides, and of the split.

    Raises:
        FileNotFoundError: No list, no folder, or a slide without embeddings.
        ValueError: A line that cannot be used, embeddings of different models, a patient or a file in two splits, or a
            number out of range.
        ImportError: Without h5py.
    """

    task_kind = "slides"
    collate = staticmethod(pad_bags)

    def __init__(  # the signature is the configuration
        self,
        root: str,
        features: str | None = None,
        class_names: list[str] | None = None,
        val_share: float = 0.2,
        test_share: float = 0.0,
        max_tiles: int = 4096,
        batch_size: int = 8,
        num_workers: int = 4,
        seed: int = 0,
    ) -> None:
        self.load_by(batch_size, num_workers, seed)
        if max_tiles < 1:
            raise ValueError(f"expected max_tiles >= 1, got {max_tiles=}")
        if not 0 < val_share < 1 or not 0 <= test_share < 1 - val_share:
            raise ValueError(
                f"expected 0 < val_share and 0 <= test_share with a sum < 1, got {val_share=}, {test_share=}"
            )
        table = read_slide_table(root, Path(root).parent if features is None else features)
        names = sorted(set(table.labels)) if class_names is None else [nfc(name) for name in class_names]
        unknown = sorted(set(table.labels) - set(names))
        if unknown:
            raise ValueError(
                f"expected the labels {', '.join(names)} in {root!r}, got {', '.join(unknown[:8])}; add them "
                "to class_names, or correct the list"
            )
        self.format = common_format(table.paths)
        super().__init__(names, self.format.channels, (1, 1), (0.0,), (1.0,))
        labels = [names.index(label) for label in table.labels]
        shares = {"train": 1 - val_share - test_share, "val": val_share, "test": test_share}
        self._splits = {
            split: SlideBags(
                [table.paths[index] for index in chosen],
                [labels[index] for index in chosen],
                max_tiles if split == "train" else None,
            )
            for split, chosen in _split(table, labels, len(names), shares, seed).items()
        }

    @property
    def held_out_batch_size(self) -> int:
        """One: held-out slides are seen whole, and of any length."""
        return 1

    def dataset(self, split: str) -> Pairs:
        """A split's slides.

        Raises:
            FileNotFoundError: No slides for testing.
        """
        if split not in self._splits:
            raise FileNotFoundError(f"expected slides for {split}, got none; give test_share, or a column split")
        return self._splits[split]

    def description(self) -> dict[str, Any]:
        """Plain values for the checkpoint, with the model that embedded the slides, and their scale."""
        return {**super().description(), "encoder": self.format.encoder, "mpp": self.format.mpp}


def _split(
    table: SlideTable, labels: list[int], classes: int, shares: dict[str, float], seed: int
) -> dict[str, list[int]]:
    """Numbers of each split's slides."""
    if table.splits is None:
        present = np.eye(classes, dtype=bool)[labels]
        wanted = {split: share for split, share in shares.items() if share > 0}
        return split_labelled(present, wanted, seed, _kept_together(table))
    splits = {split: [i for i, own in enumerate(table.splits) if own == split] for split in SPLITS}
    splits = {split: chosen for split, chosen in splits.items() if chosen}
    missing = [split for split in ("train", "val") if split not in splits]
    if missing:
        raise ValueError(f"expected slides with the split train and with val in the list, got none of {missing[0]}")
    check_apart({split: [table.paths[index] for index in chosen] for split, chosen in splits.items()})
    first: dict[str, str] = {}
    for patient, split in zip(table.patients or [], table.splits, strict=table.patients is not None):
        if first.setdefault(patient, split) != split:
            raise ValueError(
                f"expected every patient in one split, got {patient!r} in {first[patient]} and {split}: what is "
                "measured on such slides would be too good; move them to one"
            )
    return splits


def _kept_together(table: SlideTable) -> list[int]:
    """A number for each slide: those of one patient, and files of one content, have the same."""
    group = same_images(table.paths)
    first: dict[str, int] = {}
    for index, patient in enumerate(table.patients or []):
        other = first.setdefault(patient, index)
        old, new = group[index], group[other]
        group = [new if each == old else each for each in group]
    return group
