"""Which colour means what, beside pictures of masks: the same colours and words in every plot and every overlay."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.visualization.pictures import RGB, cluster_colours

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from matplotlib.figure import Figure, SubFigure
    from PIL.ImageFont import FreeTypeFont

MOST_ENTRIES = 20
"""Classes a legend names; of more it says how many there are."""
_WHITE, _GREY, _BLACK = (255, 255, 255), (128, 128, 128), (0, 0, 0)
_DARKENED = (38, 38, 38)


@dataclass(frozen=True)
class Entry:
    """A line of a legend.

    Attributes:
        text: What the colour stands for.
        colour: As the overlay has it; None = the picture is left as it is.
    """

    text: str
    colour: tuple[int, int, int] | None


def shorten(text: str, length: int) -> str:
    """Cut the middle out of a text longer than ``length``: a file's name keeps its beginning and its end.

    Bytes of it that are no text, which no font can draw, are shown as "�".
    """
    text = "".join(letter if letter.isprintable() or letter.isspace() else "\ufffd" for letter in text)
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def class_entries(
    labels: Iterable[int], names: Sequence[str], untinted: int | None, darkened: str = "ignored"
) -> list[Entry]:
    """The legend of masks drawn by `castvision.visualization.pictures.overlay_labels`.

    Args:
        labels: Those that occur, in the order of the legend; below 0 = what is drawn dark.
        names: One for each class.
        untinted: The class the overlay leaves as it is.
        darkened: What labels below 0 are.

    Returns:
        An entry for each class, at most `MOST_ENTRIES` and one that counts the others; last what is dark.
    """
    present = list(dict.fromkeys(int(label) for label in labels))
    classes = [label for label in present if label >= 0]
    colours = [tuple(colour) for colour in cluster_colours(max([*classes, 0]) + 1).tolist()]
    entries = [
        Entry(shorten(names[label], 26), None if label == untinted else colours[label])
        for label in classes[:MOST_ENTRIES]
    ]
    if len(classes) > MOST_ENTRIES:
        entries.append(Entry(f"and {len(classes) - MOST_ENTRIES} more", None))
    return entries + ([Entry(darkened, _DARKENED)] if len(classes) < len(present) else [])


def add_legend(figure: Figure | SubFigure, entries: Sequence[Entry]) -> None:
    """Put a legend to the right of everything in a plot.

    Args:
        figure: With constrained layout, which makes room for it.
        entries: Its lines, from above; without any there is no legend.
    """
    from matplotlib.patches import Patch

    if not entries:
        return
    handles = [
        Patch(
            facecolor="none" if entry.colour is None else "#{:02x}{:02x}{:02x}".format(*entry.colour),
            edgecolor="0.5",
            label=entry.text,
        )
        for entry in entries
    ]
    legend = figure.legend(handles=handles, loc="outside right upper", fontsize=9, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)


def with_legend(picture: RGB, entries: Sequence[Entry]) -> RGB:
    """Put a legend to the right of a picture, whose own pixels stay where they are.

    Args:
        picture: (height, width, 3) uint8.
        entries: Its lines, from above; without any there is no legend.

    Returns:
        (height', width', 3) uint8: the picture in the upper left corner, white beside it and, where the legend is
        higher, below it.
    """
    from PIL import Image, ImageDraw

    if not entries:
        return picture
    height, width = picture.shape[:2]
    size = int(min(max(max(height, width) / 50, 11), 24))
    font, step = _font(size), size * 3 // 2
    wide = 3 * size + max(int(font.getlength(entry.text)) for entry in entries)
    sheet = np.full((max(height, size + step * len(entries)), width + wide, 3), 255, np.uint8)
    sheet[:height, :width] = picture
    canvas = Image.fromarray(sheet)
    draw = ImageDraw.Draw(canvas)
    for row, entry in enumerate(entries):
        x, y = width + size // 2, size // 2 + row * step
        draw.rectangle((x, y, x + size, y + size), fill=entry.colour or _WHITE, outline=_GREY)
        draw.text((x + size * 3 // 2, y + size // 2), entry.text, fill=_BLACK, font=font, anchor="lm")
    drawn: np.ndarray[Any, np.dtype[np.uint8]] = np.asarray(canvas)
    return drawn


@lru_cache
def _font(size: int) -> FreeTypeFont:
    """The font of the plots, which has more letters than Pillow's own."""
    from pathlib import Path

    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
