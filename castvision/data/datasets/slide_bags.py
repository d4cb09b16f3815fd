"""Slides as bags of embeddings with a label each: a list in CSV, and a folder of HDF5 files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from castvision.data.datasets.batch import Batch, Sample
from castvision.data.datasets.segmentation import read_rows
from castvision.data.reading.bags import BAG_SUFFIXES, OBJECTIVE, bag_facts, read_bag
from castvision.data.reading.folders import nfc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SPLITS = ("train", "val", "test")
_SLIDE, _LABEL, _PATIENT = ("slide", "slide_id"), "label", ("patient", "case_id")


@dataclass(frozen=True)
class SlideTable:
    """Slides and their labels.

    Attributes:
        paths: Of the HDF5 files.
        labels: Of each slide, a name.
        patients: Whose each slide is; None where the list does not say.
        splits: "train", "val" or "test" of each slide; None where the list does not say.
    """

    paths: list[Path]
    labels: list[str] = field(repr=False)
    patients: list[str] | None = field(default=None, repr=False)
    splits: list[str] | None = field(default=None, repr=False)


def find_bags(folder: str | Path) -> dict[str, Path]:
    """HDF5 files of a folder and those below it, by name: relative, without the ending, "/" between folders.

    Raises:
        FileNotFoundError: No such folder, or none in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"no such folder of embeddings: {str(root)!r}; check the path")
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in BAG_SUFFIXES and path.name[0] != ".")
    if not files:
        raise FileNotFoundError(
            f"no embeddings (*.h5) in {str(root)!r}; write them by castvision embed SLIDES --write tiles"
        )
    return {nfc(path.relative_to(root).with_suffix("").as_posix()): path for path in files}


def read_slide_table(path: str | Path, folder: str | Path) -> SlideTable:
    """Read a list of slides.

    The header names ``slide`` (or ``slide_id``) and ``label``, and may name ``patient`` (or ``case_id``) and ``split``,
    whose values are train, val and test.

    Args:
        path: The CSV file.
        folder: Of the HDF5 files, called as the slides are, with or without the slide's own ending.

    Returns:
        The table.

    Raises:
        FileNotFoundError: No such list or folder, or a slide without embeddings.
        ValueError: A wrong header or value, with the line's number; a slide listed twice.
    """
    path, bags = Path(path), find_bags(folder)
    rows = list(read_rows(path, (_LABEL,)))
    header = rows[0][1]
    slide_column = next((name for name in _SLIDE if name in header), None)
    if slide_column is None:
        raise ValueError(f"{path}, line 1: expected the columns slide, label, got {', '.join(header)}")
    patient_column = next((name for name in _PATIENT if name in header), None)
    found: dict[Path, str] = {}
    for line, row in rows:
        file = _bag_of(row[slide_column], bags)
        if file is None:
            raise FileNotFoundError(
                f"{line}: no embeddings of the slide {row[slide_column]!r} in {str(folder)!r}; embed it, or leave the "
                "line out"
            )
        if file in found:
            raise ValueError(f"{line}: {row[slide_column]!r} stands on {found[file]} already; keep one of the lines")
        if "split" in row and row["split"] not in SPLITS:
            raise ValueError(f"{line}: expected split to be one of {', '.join(SPLITS)}, got {row['split']!r}")
        if patient_column is not None and not row[patient_column]:
            raise ValueError(f"{line}: expected a value in the column {patient_column!r}, got none")
        found[file] = line
    return SlideTable(
        list(found),
        [nfc(row[_LABEL]) for _, row in rows],
        None if patient_column is None else [row[patient_column] for _, row in rows],
        [row["split"] for _, row in rows] if "split" in header else None,
    )


def _bag_of(slide: str, bags: Mapping[str, Path]) -> Path | None:
    """By the name as it stands, then without an ending; then where one of the two names has folders more in front."""
    name = nfc(slide).replace("\\", "/")
    for candidate in (name, name.rpartition(".")[0]):
        if candidate in bags:
            return bags[candidate]
    spelt = [f"/{one}" for one in (name, name.rpartition(".")[0]) if one]
    alike = [
        path
        for known, path in bags.items()
        if any(one.endswith(f"/{known}") or f"/{known}".endswith(one) for one in spelt)
    ]
    return alike[0] if len(alike) == 1 else None


@dataclass(frozen=True)
class BagFormat:
    """What bags must have in common.

    Attributes:
        channels: Of the embeddings.
        encoder: The model's name, then what the file says of how it embedded: tokens pooled, a digest of the weights.
            None where no file says so.
        mpp: Microns or ground units a pixel of the tiles, as stated or of the magnification, if that is; likewise.
    """

    channels: int
    encoder: str | None
    mpp: float | None


def common_format(paths: Sequence[Path]) -> BagFormat:
    """What files of embeddings have in common; their features are not read.

    Raises:
        FileNotFoundError: A file that is missing.
        ValueError: Embeddings of different models or scales, or a file that cannot be read.
        ImportError: Without h5py.
    """
    wanted = bag_format(paths[0])
    for path in paths[1:]:
        found = bag_format(path)
        difference = differing(found, wanted)
        if difference is not None:
            raise ValueError(
                f"expected embeddings of one model at one scale, got {difference} in {str(path)!r} and those listed "
                f"before it, such as {str(paths[0])!r}; embed all slides alike"
            )
        encoder = max(found.encoder, wanted.encoder, key=lambda stated: len(stated or ""))  # the one that says more
        wanted = BagFormat(wanted.channels, encoder, found.mpp if wanted.mpp is None else wanted.mpp)
    return wanted


def bag_format(path: Path) -> BagFormat:
    """Of one file; see `common_format`."""
    (_, channels), attributes = bag_facts(path)
    mpp, encoder = attributes.get("target_mpp"), attributes.get("encoder")
    if mpp is None and attributes.get("target_magnification"):  # all that TRIDENT says of the scale
        mpp = OBJECTIVE / float(attributes["target_magnification"])
    how = {"pool": "pooled by", "weights": "weights"}
    stated = [encoder, *(f"{told} {attributes[name]}" for name, told in how.items() if name in attributes)]
    made = None if encoder is None else ", ".join(map(str, stated))
    return BagFormat(channels, made, None if mpp is None else float(mpp))


def differing(found: BagFormat, wanted: BagFormat) -> str | None:
    """In what two formats differ, for people; what one of them does not state is no difference."""
    if found.channels != wanted.channels:
        return f"{found.channels} and {wanted.channels} channels"
    if found.encoder is not None and wanted.encoder is not None:
        less, more = sorted((found.encoder, wanted.encoder), key=len)
        if less != more and not more.startswith(f"{less}, "):
            return f"the models {found.encoder} and {wanted.encoder}"
    if found.mpp is not None and wanted.mpp is not None and abs(found.mpp / wanted.mpp - 1) > 0.1:
        return f"{found.mpp:g} and {wanted.mpp:g} a pixel"
    return None


class SlideBags(Dataset[Sample]):
    """Items are (embeddings (N, C) float32, label () int64); N differs.

    Args:
        paths: HDF5 files.
        labels: A class for each.
        max_tiles: A bag of more is a random choice of so many, another at every call; None = all.
    """

    def __init__(self, paths: Sequence[Path], labels: Sequence[int], max_tiles: int | None = None) -> None:
        self.paths, self.labels, self.max_tiles = list(paths), list(labels), max_tiles

    def __len__(self) -> int:
        """Number of slides."""
        return len(self.paths)

    def name(self, index: int) -> str:
        """The file's path."""
        return str(self.paths[index])

    def __getitem__(self, index: int) -> Sample:
        """One slide."""
        features = torch.from_numpy(read_bag(self.paths[index]).features)
        if self.max_tiles is not None and len(features) > self.max_tiles:
            features = features[torch.randperm(len(features))[: self.max_tiles]]
        return features, torch.tensor(self.labels[index])


def pad_bags(samples: Sequence[Sample]) -> Batch:
    """A batch of bags of different lengths: (B, the longest, C), 0 in the padding; the extra ``mask`` says where."""
    parts = [Batch(*sample) for sample in samples]
    lengths = [len(part.image) for part in parts]
    bags = parts[0].image.new_zeros(len(parts), max(lengths), parts[0].image.shape[1])
    for place, part in enumerate(parts):
        bags[place, : lengths[place]] = part.image
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    extras: dict[str, Any] = {"mask": mask}
    return Batch(bags, torch.stack([part.target for part in parts]), extras)
