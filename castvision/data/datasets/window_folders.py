"""Folders of images, with masks or labels on the ground, as sources of windows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from castvision.data.datasets.leaks import check_apart
from castvision.data.datasets.sources import ImageSources
from castvision.data.reading.folders import ALL_SUFFIXES, images_by_name
from castvision.data.reading.labels import LabelMap, numbered, read_class_names
from castvision.data.reading.reader import alpha_for

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from castvision.data.datasets.sources import Pair
    from castvision.data.datasets.vector_labels import VectorLabels

SPLITS = ("train", "val", "test")


def find_pairs(root: str | Path) -> list[Pair]:
    """Images and masks of one name.

    Args:
        root: The folder that holds ``images`` and ``masks``.

    Returns:
        (image, mask), sorted by name; those in sub-folders too, by the same path in both.

    Raises:
        FileNotFoundError: A folder that is missing or empty.
        ValueError: Two files of one name in a folder, or names without a partner.
    """
    images, masks = (images_by_name(Path(root) / folder, ALL_SUFFIXES) for folder in ("images", "masks"))
    if not images:
        raise FileNotFoundError(f"expected images in {str(Path(root) / 'images')!r}, found none")
    alone = sorted(images.keys() ^ masks.keys())
    if alone:
        raise ValueError(
            f"expected an image and a mask of every name in {str(root)!r}, got only one of each of: "
            f"{', '.join(alone[:8])}"
        )
    return [(image, masks[name]) for name, image in images.items()]


def find_sources(root: str | Path, *, with_masks: bool = True) -> tuple[list[Pair], list[str] | None]:
    """Images of a folder with ``images`` (and ``masks``), or of its folders ``train``, ``val`` and ``test``.

    Args:
        root: The folder.
        with_masks: Whether there are masks; otherwise they are None.

    Returns:
        (image, mask), and the split of each, if folders name them.

    Raises:
        FileNotFoundError: A folder that is missing or empty.
        ValueError: See `find_pairs`; also one image in two splits.
    """
    root = Path(root)
    folders = {split: root / split for split in SPLITS if (root / split / "images").is_dir()}
    if not folders:
        return _pairs(root, with_masks), None
    if not {"train", "val"} <= set(folders):
        raise FileNotFoundError(f"expected train/images and val/images in {str(root)!r}, got {', '.join(folders)} only")
    found = {split: _pairs(folder, with_masks) for split, folder in folders.items()}
    check_apart({split: [Path(image) for image, _ in pairs] for split, pairs in found.items()})
    return [pair for pairs in found.values() for pair in pairs], [split for split in found for _ in found[split]]


def _pairs(root: Path, with_masks: bool) -> list[Pair]:
    if with_masks:
        return find_pairs(root)
    images = images_by_name(root / "images", ALL_SUFFIXES)
    if not images:
        raise FileNotFoundError(f"expected images in {str(root / 'images')!r}, found none")
    return [(image, None) for image in images.values()]


def open_sources(
    root: str | Path,
    *,
    level: int = 0,
    context_size: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    label_map: Mapping[int | str, int | str] | None = None,
    in_chans: int | None = None,
    bands: Sequence[int] | None = None,
    vector: VectorLabels | None = None,
) -> tuple[ImageSources, list[str] | None, list[str] | None]:
    """The images and masks of `find_sources`, opened and checked.

    Args:
        root: The folder.
        level: Of the images, that is read.
        context_size: See `ImageSources`.
        class_names: In the order of the labels; None = those of ``classes.txt``, or of the labels on the ground.
        label_map: From labels in masks to classes, see `LabelMap`.
        in_chans: Channels that the images must have; None = as they come.
        bands: Channels to read; None = all.
        vector: Labels as polygons and points, in place of masks.

    Returns:
        The sources, the split of each image if folders name them, and the classes' names where anything says them.

    Raises:
        FileNotFoundError: See `find_sources`.
        ValueError: See there, `ImageSources` and `LabelMap`; other channels, or a label map beside `vector`.
    """
    if vector is not None and label_map is not None:
        raise ValueError("expected no label_map with vector labels: name their classes in vector.classes")
    pairs, owners = find_sources(root, with_masks=vector is None)
    names = list(class_names or ()) or read_class_names(Path(root) / "classes.txt") or numbered(label_map)
    if vector is not None:
        features, crs = vector.read(Path(root))
        names = names or vector.class_names(features)
        images = [Path(image) for image, _ in pairs]
        pairs = list(zip(images, vector.masks(features, crs, images, names), strict=True))
    labels = None if names is None else LabelMap(names, label_map)
    sources = ImageSources(
        pairs,
        level=level,
        num_classes=None if names is None else len(names),
        labels=None if labels is None or labels.mapping is None else labels,
        alpha=alpha_for(in_chans),
        bands=bands,
        context_size=context_size,
    )
    if in_chans not in (None, sources.channels):
        raise ValueError(f"expected images of in_chans={in_chans} channels, got {sources.channels}; choose bands")
    return sources, owners, names
