"""Any data set of torchvision or timm by its name; nothing is fetched unless that is asked for."""

from __future__ import annotations

import difflib
import inspect
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.data.datasets.class_folders import ClassFolders
from castvision.data.datasets.samples import PixelDataset, to_channels
from castvision.data.reading.agreement import check_same_size
from castvision.data.reading.folders import is_stray
from castvision.data.reading.labels import LabelMap
from castvision.errors import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castvision.data.datasets.samples import Transform
    from castvision.data.reading.pixels import Pixels

_FETCHING = ("hfds/", "hfids/", "tfds/", "wds/")
_MODES_WITH_OPACITY = {"LA": "L", "La": "L", "RGBA": "RGB", "RGBa": "RGB", "PA": "RGB"}
_KEPT_MODES = ("L", "RGB", "I", "F")  # with LA and RGBA, whose opacity counts as a channel
_FOLDERS = {"train": ("train", "training"), "validation": ("val", "valid", "validation", "eval", "evaluation")}
_STREAMED = ("hfids/", "tfds/", "wds/")


def open_named(name: str, root: str, *, download: bool = False, **arguments: Any) -> Any:
    """Open a data set.

    Args:
        name: ``torchvision/CLASS``, such as ``torchvision/OxfordIIITPet``, or ``timm/NAME`` with a name of
            ``timm.data.create_dataset``, such as ``timm/torch/cifar10`` or ``timm/`` for a folder.
        root: Where the files are.
        download: Let the library fetch what is missing.
        **arguments: For the class or for ``create_dataset``, such as ``split``.

    Returns:
        A map-style data set of (image, target).

    Raises:
        FileNotFoundError: The files are not there, or damaged.
        ValueError: An unknown name, or an argument the data set does not take.
    """
    library, _, rest = name.partition("/")
    if library not in ("torchvision", "timm"):
        raise ValueError(f"expected name torchvision/CLASS or timm/NAME, got {name=}")
    try:
        return (_open_torchvision if library == "torchvision" else _open_timm)(rest, root, download, arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"cannot open {name}: {one_line(error)}") from error
    except (RuntimeError, OSError) as error:
        hint = "" if download else "; set download: true to fetch it, or check root"
        raise FileNotFoundError(f"cannot open {name} in {root!r}: {one_line(error)}{hint}") from error


def _open_torchvision(name: str, root: str, download: bool, arguments: dict[str, Any]) -> Any:
    make = ClassFolders if name == "ImageFolder" else torchvision_class(name)
    known = inspect.signature(make.__init__).parameters
    own: dict[str, Any] = {"root": root} if "root" in known else {}
    if download:
        own["download"] = True
    return make(**own, **arguments)


def torchvision_class(name: str) -> Any:
    """A class of ``torchvision.datasets``.

    Raises:
        ValueError: There is none of that name; near misses are named.
    """
    from torchvision import datasets

    names = [known for known in datasets.__all__ if inspect.isclass(getattr(datasets, known))]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
        raise ValueError(f"no data set {name!r} in torchvision.datasets, {' or '.join(near) or 'see its list'}?")
    return getattr(datasets, name)


def _open_timm(name: str, root: str, download: bool, arguments: dict[str, Any]) -> Any:
    from timm.data import create_dataset

    if name.lower().startswith(_STREAMED):
        raise ValueError("streamed data sets have no places to draw from; use one that is map-style")
    if name.lower().startswith(_FETCHING) and not download:
        raise ValueError("it may fetch files; set download: true if that is wanted")
    if "/" not in name and "split" in arguments:
        folders = _FOLDERS.get(arguments["split"], (arguments["split"],))
        if not any((Path(root) / folder).is_dir() for folder in folders):  # timm would take the whole root instead
            raise ValueError(f"expected a folder {' or '.join(folders)} in {root!r}, found none")
    arguments = {"input_img_mode": "", **arguments}  # no conversion to 8-bit RGB
    dataset = create_dataset(name, root=root, download=download, **arguments)
    if hasattr(dataset, "_max_retries"):
        dataset._max_retries = 1  # timm would take the next image for one it cannot read
    _leave_out_strays(getattr(dataset, "reader", None))
    return dataset


def _leave_out_strays(reader: Any) -> None:
    """The reader of folders in timm takes hidden files for images and hidden folders for classes."""
    samples, label_of = getattr(reader, "samples", None), getattr(reader, "class_to_idx", None)
    if not isinstance(samples, list) or not isinstance(label_of, dict) or not image_paths(reader):
        return
    kept = [(path, label) for path, label in samples if not _is_stray_below(Path(os.path.relpath(path, reader.root)))]
    emptied = {label for _, label in samples} - {label for _, label in kept}
    names = [name for name in sorted(label_of, key=label_of.__getitem__) if label_of[name] not in emptied]
    label_for = {label_of[name]: label for label, name in enumerate(names)}
    reader.class_to_idx = {name: label for label, name in enumerate(names)}
    reader.samples = [(path, label_for[label]) for path, label in kept]


def _is_stray_below(path: Path) -> bool:
    return is_stray(path.name) or any(is_stray(part, is_folder=True) for part in path.parts[:-1])


def image_paths(source: Any) -> list[Path]:
    """The file of each item, where the data set keeps a list of them under one of the usual names; else none."""
    for holder in (source, getattr(source, "reader", None)):
        for name in ("samples", "imgs", "_samples", "_image_files", "images", "_images"):
            items = getattr(holder, name, None)
            if not isinstance(items, list) or not items or len(items) != len(source):
                continue
            firsts = [item[0] if isinstance(item, tuple) else item for item in items]
            if all(isinstance(first, (str, Path)) for first in firsts) and os.path.isfile(firsts[0]):
                return [Path(first) for first in firsts]
    return []


class NamedDataset(PixelDataset):
    """Another library's data set with our items; its target decides: a number, a list of zeros and ones, or a mask.

    Args:
        source: Map-style, items (image, target): PIL images, arrays, or tensors (C, height, width).
        name: For messages.
        labels: From labels to classes; for masks and for numbers.
        indices: Which items; None for all.
        transform: See `PixelDataset`.
        in_chans: See `PixelDataset`.
    """

    def __init__(
        self,
        source: Any,
        name: str,
        labels: LabelMap,
        indices: Sequence[int] | None = None,
        *,
        transform: Transform | None = None,
        in_chans: int | None = None,
    ) -> None:
        self.source = source
        self.title = name
        self.labels = labels
        self.indices = range(len(source)) if indices is None else list(indices)
        self.transform = transform
        self.in_chans = in_chans

    def __len__(self) -> int:
        """Number of items."""
        return len(self.indices)

    def name(self, index: int) -> str:
        """The data set's name and the item's index."""
        return f"{self.title}[{self.indices[index]}]"

    def read(self, index: int) -> tuple[Pixels, Pixels]:
        """See `PixelDataset.read`."""
        name = self.name(index)
        try:
            item = self.source[self.indices[index]]
        except (OSError, RuntimeError, SyntaxError) as error:
            raise ValueError(f"cannot read {name}: {one_line(error)}; replace the file or leave it out") from error
        if not isinstance(item, tuple) or len(item) != 2:
            raise ValueError(f"expected (image, target) from {name}, got {type(item).__name__}")
        pixels = _pixels(item[0], name)
        target = self._target(item[1], name)
        if target.ndim == 2:
            check_same_size(pixels, target, name, f"the mask of {name}")
        return to_channels(pixels, self.in_chans, name), target

    def _target(self, target: Any, name: str) -> Pixels:
        if isinstance(target, (tuple, dict, str)) or target is None:
            raise ValueError(
                f"expected one target from {name}: a class, zeros and ones, or a mask; got {type(target).__name__}; "
                "choose one kind of target by the data set's arguments"
            )
        values = _label_pixels(target, self.labels.has_colours)
        if values.ndim == 0:
            return self.labels.apply(values.reshape(1, 1), name).astype(np.int64).reshape(())
        if values.ndim == 1:
            if len(values) != len(self.labels.class_names) or not np.isin(values, (0, 1)).all():
                raise ValueError(f"expected {len(self.labels.class_names)} zeros and ones from {name}, got {target}")
            return values.astype(np.float32)
        return self.labels.apply(values, name)


def _label_pixels(target: Any, has_colours: bool) -> Pixels:
    """A target as stored; of a picture the palette's indices (or colours, if labels are colours), without opacity."""
    mode = getattr(target, "mode", None)  # PIL's images have one
    if isinstance(mode, str) and (mode in _MODES_WITH_OPACITY or (has_colours and mode == "P")):
        target = target.convert(_MODES_WITH_OPACITY.get(mode, "RGB"))
    return np.asarray(target)


def _pixels(image: Any, name: str) -> Pixels:
    """(height, width, channels); tensors come channels first."""
    mode = getattr(image, "mode", None)  # PIL's images have one
    if isinstance(mode, str) and not mode.startswith(_KEPT_MODES):
        image = image.convert("L" if mode == "1" else "RGB")
    try:
        pixels = np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"cannot read {name}: {one_line(error)}; replace the file or leave it out") from error
    if not isinstance(image, np.ndarray) and hasattr(image, "permute") and pixels.ndim == 3:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.size == 0 or pixels.dtype.kind not in "buif":
        raise ValueError(f"expected an image from {name}, got {type(image).__name__} of {pixels.shape=}")
    return pixels
