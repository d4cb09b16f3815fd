"""The data of a run, listed and partly read before torch and Lightning are imported, by what the data modules use.

Only small data sets are looked at, since they are looked at twice. Of more than a few images the first ones are read:
the data module reads on.
"""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from castvision_cli.early.light import silently, without_models
from castvision_cli.early.signatures import flags_in

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from castvision.data.datasets.samples import PixelDataset

PACKAGE = "castvision.training"
_MOST_FILES = 20_000
_MOST_BYTES = 1 << 24
"""Of a list, and of the images that are read: a fraction of a second."""
_SAMPLES = 64
"""Images that are read, at most."""


def check_data(words: Sequence[str], contents: Sequence[Mapping[str, Any]]) -> None:
    """Refuse data that the data module of a run would refuse.

    Args:
        words: The command line.
        contents: Of the configurations.

    Raises:
        ValueError: What is wrong, as the data module says it; OSError likewise.
    """
    name, given = data_of(words, contents)
    look = _LOOKS.get(name.removeprefix(f"{PACKAGE}."))
    if look is None or not _is_plain(given) or not _is_small(Path(given["root"])):
        return
    with without_models(), silently():
        try:
            look(given)
        except (TypeError, LookupError, AttributeError):
            return  # an argument of another type: jsonargparse says so


def data_of(words: Sequence[str], contents: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The data module's class and arguments; those of a part of one are "pixels.bands"."""
    name, given = "", dict[str, Any]()
    for content in contents:
        section = content.get("data")
        if isinstance(section, dict):
            name = str(section.get("class_path") or name)
            given |= section.get("init_args") or {}
    for flag, value in flags_in(words):
        part, _, key = flag.partition(".")
        if part == "data" and key in ("", "class_path"):
            name = str(value)
        elif part == "data":
            given[key.removeprefix("init_args.")] = value
    pixels = given.get("pixels")
    return name, {**{f"pixels.{key}": value for key, value in (pixels or {}).items()}, **given}


def _is_plain(given: Mapping[str, Any]) -> bool:
    """Whether YAML read what was meant: names such as "no" and "1" are text, which others see to later."""
    is_text = all(isinstance(name, str) for name in given.get("class_names") or ())
    return isinstance(given.get("root"), str) and is_text


def _is_small(root: Path) -> bool:
    """Whether a folder, and those in it, or a list is looked through in less time than an import takes."""
    if root.is_file():
        return root.stat().st_size <= _MOST_BYTES
    left = _MOST_FILES
    for _, folders, files in os.walk(root):
        left -= len(folders) + len(files)
        if left < 0:
            return False
    return root.is_dir()


def called(function: Callable[..., Any], given: Mapping[str, Any], **more: Any) -> Any:
    """A function's result for those of its arguments that the data module is given."""
    known = inspect.signature(function).parameters
    return function(**{key: value for key, value in given.items() if key in known and value is not None}, **more)


def _look_at_class_folders(given: Mapping[str, Any]) -> None:
    from castvision.data.datasets.checking import check_batch_size
    from castvision.data.datasets.class_folders import open_class_folders
    from castvision.data.datasets.samples import load_pixels

    images = [Path(path) for path, _ in called(open_class_folders, given)["train"].samples]
    check_batch_size(len(images), given.get("batch_size") or 1)
    read = 0
    for path in images[:_SAMPLES]:
        read += path.stat().st_size
        if read <= _MOST_BYTES:
            load_pixels(path)


def _look_at_pairs(given: Mapping[str, Any]) -> None:
    from castvision.data.datasets.segmentation import open_pairs

    splits, labels = called(open_pairs, given, checked=_SAMPLES)
    _read_some(splits, labels.class_names, given)


def _look_at_objects(given: Mapping[str, Any]) -> None:
    from castvision.data.datasets.objects import open_objects

    splits, labels = called(open_objects, given)
    _read_some(splits, labels.class_names, given)


def _look_at_coco(given: Mapping[str, Any]) -> None:
    from castvision.data.datasets.coco import open_coco

    files = [Path(given["root"], name) for name in given["annotations"].values()]
    if sum(file.stat().st_size for file in files if file.is_file()) <= _MOST_BYTES:
        splits, names = called(open_coco, given)
        _read_some(splits, names, given)


def _look_at_tables(given: Mapping[str, Any]) -> None:
    from castvision.data.datasets.multilabel import open_label_tables

    splits, names = called(open_label_tables, given)
    _read_some(splits, names, given)


def _look_at_windows(given: Mapping[str, Any]) -> None:
    from castvision.data.datasets.sources import ClassIndex, whole_images
    from castvision.data.datasets.window_folders import open_sources
    from castvision.data.reading.labels import check_classes_found

    if given.get("vector") is not None:
        return
    sources, _, names = called(open_sources, {**given, "context_size": None})
    if names is not None and sum(height * width for height, width in sources.sizes) <= _MOST_BYTES:
        counts = ClassIndex(sources, whole_images(sources)).counts
        check_classes_found(counts, names, f"the masks in {given['root']!r}")
    sources.close()


_LOOKS: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
    "CocoDataModule": _look_at_coco,
    "ImageFolderDataModule": _look_at_class_folders,
    "InstanceDataModule": _look_at_objects,
    "MultiLabelCsvDataModule": _look_at_tables,
    "SegmentationDataModule": _look_at_pairs,
    "WindowDataModule": _look_at_windows,
}
"""By the data module that a configuration names."""


def _read_some(splits: Mapping[str, PixelDataset], class_names: Sequence[str], given: Mapping[str, Any]) -> None:
    """Read all of a few samples, or the first one of each split: which classes there are, not all of them tell.

    Raises:
        ValueError: One that cannot be used; OSError likewise.
    """
    from castvision.data.datasets.checking import check_batch_size, check_samples, set_channels

    check_batch_size(len(splits["train"]), given.get("batch_size") or 1)
    set_channels(splits, given.get("pixels.in_chans"), given.get("pixels.bands"))
    images = [Path(dataset.name(index)) for dataset in splits.values() for index in range(len(dataset))]
    if len(images) <= _SAMPLES and sum(path.stat().st_size for path in images) <= _MOST_BYTES:
        check_samples(splits, given.get("pixels.check") or None, class_names)
    else:
        for dataset in splits.values():
            dataset.read(0)
