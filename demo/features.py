"""The tab Features: principal components as colours, and how similar all is to a point."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from castvision.visualization.features import enlarged, heat_map, principal_colours, similarity

from .drawing import marked, token_at

if TYPE_CHECKING:
    from torch import Tensor

    from castvision.visualization.pictures import RGB

    from .sessions import Point, Session
    from .studio import Studio


def colours(studio: Studio, session: Session, side: int) -> tuple[RGB, str]:
    """Features of the photograph as colours.

    Args:
        studio: With the model.
        session: Of the page, which keeps the features.
        side: Longer side the model sees, in pixels; smaller photographs are not enlarged.

    Returns:
        The picture, and a line on sizes and time.

    Raises:
        ValueError: No photograph, one that does not fit the model, or too few tokens.
    """
    photograph = session.chosen
    prepared = studio.model.predictor.prepare(photograph.pixels, side)
    start = time.perf_counter()
    patches = studio.model.tokens(prepared).patches[0].cpu()
    seconds = time.perf_counter() - start
    session.patches = patches
    rows, cols = patches.shape[:2]
    seen = " × ".join(str(each) for each in prepared.shape[-2:])
    told = f"{photograph.name}: seen at {seen}, {rows} × {cols} tokens of {patches.shape[-1]} channels, {seconds:.1f} s"
    return in_colours(patches, studio), told


def in_colours(patches: Tensor, studio: Studio, wanted: Tensor | None = None) -> RGB:
    """A picture of principal components, each token a square."""
    picture: RGB = (principal_colours(patches, wanted) * 255).round().byte().numpy()
    return enlarged(picture, max(studio.model.patch))


def heat(studio: Studio, session: Session, point: Point) -> tuple[RGB, str]:
    """How similar every token is to the one at a point.

    Args:
        studio: With the model.
        session: Whose features are there already.
        point: In the photograph.

    Returns:
        The picture, the point marked, and a line on it.

    Raises:
        ValueError: No features yet, or a place outside.
    """
    if session.patches is None:
        raise ValueError("expected features to compare with, none are there yet; press Show features")
    row, col = token_at(point, (session.patches.shape[0], session.patches.shape[1]))
    values = similarity(session.patches, row, col)
    picture = marked(enlarged(heat_map(values.numpy(), high=1.0), max(studio.model.patch)), point)
    low, middle = float(values.min()), float(values.median())
    told = f"token in row {row}, column {col}: cosine 1 with itself (yellow), median {middle:.2f}, least {low:.2f}"
    return picture, told
