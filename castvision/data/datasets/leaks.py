"""One image in two splits makes held-out figures too good: the same file found by path, by link and by content."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from castvision.data.datasets.regions import held_out

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

logger = logging.getLogger(__name__)

_PIECE = 4096
_MAX_COMPARED = 200_000
"""Files whose content is compared; of larger sets only paths and links are."""


def same_images(paths: Sequence[Path], splits: Sequence[Hashable] | None = None, *, contents: bool = True) -> list[int]:
    """Which paths are one image: the same file under any name, or files of the same bytes.

    Args:
        paths: Files, or folders that are images (compared by place alone). What is missing is like nothing else.
        splits: The split of each; contents are then compared between splits only. None = between all.
        contents: Compare contents; otherwise a copy of a file is another image.

    Returns:
        For each path the index of the first that is the same image.
    """
    first_of: dict[Any, int] = {}
    places, sizes = [], dict[int, list[int]]()
    for index, path in enumerate(paths):
        place, size = _place(path)
        places.append(first_of.setdefault(place, index))
        if size and places[-1] == index:
            sizes.setdefault(size, []).append(index)
    owners = range(len(paths)) if splits is None else splits
    alike = [some for some in sizes.values() if len({owners[index] for index in some}) > 1]
    if not contents:
        alike = []
    if sum(map(len, alike)) > _MAX_COMPARED:
        logger.warning("%d files are too many to compare their contents; only their paths are compared", len(paths))
        alike = []
    for digest in (_sampled, _whole):
        alike = [group for some in alike for group in _groups(some, paths, digest) if len(group) > 1]
    same = {index: group[0] for group in alike for index in group}
    return [same.get(place, place) for place in places]


def check_apart(splits: Mapping[str, Sequence[Path]], *, contents: bool = True) -> None:
    """Refuse an image that stands in two splits.

    A split of exactly the images of another is no slip but a wish, such as a dry run on a handful of images: it is
    allowed, with a warning that it measures nothing.

    Args:
        splits: Images by split.
        contents: See `same_images`.

    Raises:
        ValueError: There is one; the message names both files and counts the others.
    """
    paths = [path for some in splits.values() for path in some]
    owners = [split for split, some in splits.items() for _ in some]
    images = same_images(paths, owners, contents=contents)
    held = {split: {image for image, owner in zip(images, owners, strict=True) if owner == split} for split in splits}
    both: dict[int, tuple[int, int]] = {}
    first: dict[int, int] = {}
    for index, image in enumerate(images):
        earlier = first.setdefault(image, index)
        if held[owners[earlier]] != held[owners[index]]:
            both.setdefault(image, (earlier, index))
    for split, copy in itertools.combinations(splits, 2):
        if held[split] and held[split] == held[copy]:
            logger.warning(
                "%s holds exactly the images of %s: what is measured on it says nothing of other images", copy, split
            )
    if both:
        one, other = next(iter(both.values()))
        raise ValueError(
            f"expected every image in one split, got the same image in {owners[one]} ({str(paths[one])!r}) and "
            f"{owners[other]} ({str(paths[other])!r}), {len(both)} such image(s) in all: what is measured on them "
            "would be too good; leave it out of one of the splits"
        )


def hold_out_images(paths: Sequence[Path], val_share: float, seed: int) -> list[tuple[str, list[int]]]:
    """`held_out` for image files: all samples of one image go to one split.

    Args:
        paths: The image of each sample.
        val_share: Share of the images held out.
        seed: Of that choice.

    Returns:
        ("train", samples) and ("val", samples).

    Raises:
        ValueError: A share outside (0, 1), or a single image.
    """
    return held_out(len(paths), val_share, seed, kept_together(paths))


def kept_together(paths: Sequence[Path]) -> list[int]:
    """`same_images` for a split: where all are of the same content, as in a dry run, a warning, and files are images.

    Args:
        paths: The image of each sample.

    Returns:
        For each path a number: those of one number go to one split.
    """
    groups = same_images(paths)
    if len(set(groups)) == 1 < len(set(paths)):
        logger.warning("all %d images are of the same content; they are split by their names", len(paths))
        return same_images(paths, contents=False)
    return groups


def _place(path: Path) -> tuple[Any, int]:
    """What is the same for all names of a file, and its size if it is one that can be compared."""
    try:
        status = path.stat()
    except OSError:
        return os.path.abspath(path), 0
    place = (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)
    return place, status.st_size if stat.S_ISREG(status.st_mode) else 0


def _groups(some: Sequence[int], paths: Sequence[Path], digest: Any) -> list[list[int]]:
    found: dict[bytes, list[int]] = {}
    for index in some:
        found.setdefault(digest(paths[index]), []).append(index)
    return list(found.values())


def _sampled(path: Path) -> bytes:
    """Beginning, middle and end, which differ in most files of one size: large images are not read for it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        pieces = []
        for start in (0, size // 2, max(size - _PIECE, 0)):
            file.seek(start)
            pieces.append(file.read(_PIECE))
    return hashlib.sha256(b"".join(pieces)).digest()


def _whole(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
