"""The tab Clusters: windows and content clusters of each layer, and what a point gives its weight to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from castvision.visualization.pictures import cluster_colours, cluster_text, layer_name, overlay_clusters
from castvision.visualization.point_weights import shares_of_point, weights_of_point

from .drawing import lit, marked, table, token_at

if TYPE_CHECKING:
    from castvision.visualization import ClusterMap
    from castvision.visualization.pictures import RGB

    from .sessions import Point, Session
    from .studio import Studio

_LISTED = 12


def find(studio: Studio, session: Session, side: int) -> str:
    """Run the model on the photograph and keep the clusters of all its layers.

    Args:
        studio: With the model.
        session: Of the page.
        side: Longer side the model sees, in pixels.

    Returns:
        A line on sizes.

    Raises:
        ValueError: No photograph, one that does not fit the model, or a model without clusters.
    """
    photograph, predictor = session.chosen, studio.model.predictor
    if not predictor.parts.has_clusters:
        raise ValueError(
            f"expected a model with clusters, got {studio.model.name}, which has full attention; start the demo with "
            "--attention near_far"
        )
    session.prepared = predictor.prepare(photograph.pixels, side)
    session.maps = predictor.cluster_maps(session.prepared)
    session.point = None
    seen = " × ".join(str(each) for each in session.prepared.shape[-2:])
    rows, cols = session.maps[0].grid_size
    return f"{photograph.name}: seen at {seen}, {rows} × {cols} tokens, {len(session.maps)} layers with clusters"


def layer(session: Session, number: int) -> ClusterMap:
    """A layer's map, counted from 1 on.

    Raises:
        ValueError: No clusters yet, or no such layer.
    """
    if not session.maps:
        raise ValueError("expected clusters, none are there yet; press Show clusters")
    if not 1 <= number <= len(session.maps):
        raise ValueError(f"expected a layer from 1 to {len(session.maps)}, got {number}")
    return session.maps[number - 1]


def overlay(session: Session, number: int) -> tuple[RGB, str]:
    """One layer's clusters laid over the photograph, and a line on them."""
    chosen = layer(session, number)
    picture = overlay_clusters(session.chosen.picture, chosen)
    return picture, f"{layer_name(chosen)}: {' '.join(cluster_text(chosen).split())}"


def weights(studio: Studio, session: Session, number: int, point: Point) -> tuple[RGB, str]:
    """What the token at a point gives its weight to in a layer.

    Args:
        studio: With the model.
        session: With maps.
        number: Of the layer, from 1 on.
        point: In the photograph.

    Returns:
        The photograph with the point's window framed and its clusters lit by their weight, and a table (HTML).

    Raises:
        ValueError: No clusters yet, a place outside, or a layer whose weights cannot be told.
    """
    chosen = layer(session, number)
    row, col = token_at(point, chosen.grid_size)
    if session.prepared is None:
        raise ValueError("expected clusters, none are there yet; press Show clusters")
    found = weights_of_point(studio.model.predictor.model, session.prepared, chosen, row, col)
    session.point = point
    shares = shares_of_point(found, chosen, row, col)
    picture = marked(lit(session.chosen.picture, chosen, shares, row, col), point)
    colours = cluster_colours(max(chosen.num_clusters, 1)).tolist()
    order = shares.clusters.argsort(descending=True).tolist()
    own = int(chosen.membership[row, col])
    rows: list[list[str | tuple[int, ...]]] = []
    inside = chosen.windows == chosen.windows[row, col]
    outside = chosen.membership[~inside & (chosen.membership >= 0)].bincount(minlength=len(order)).tolist()
    rows.append([(255, 255, 255), "its window", f"{int(inside.sum()):,}", f"{shares.window:.3f}"])
    for cluster in order[:_LISTED]:
        name = f"cluster {cluster}{', its own' if cluster == own else ''}"
        rows.append([tuple(colours[cluster]), name, f"{outside[cluster]:,}", f"{shares.clusters[cluster]:.3f}"])
    if len(order) > _LISTED:
        rest = float(shares.clusters[order[_LISTED:]].sum())
        rows.append([(), f"{len(order) - _LISTED:,} more clusters", "", f"{rest:.3f}"])
    if shares.unclustered:
        rows.append([(), "tokens in no cluster", "", f"{shares.unclustered:.3f}"])
    if shares.elsewhere:
        rows.append([(), "class and register tokens", "", f"{shares.elsewhere:.3f}"])
    caption = (
        f"{layer_name(chosen)}, token in row {row}, column {col}: the weight of its window's tokens, and of each "
        "cluster's tokens outside it; mean over heads, their sum is 1"
    )
    return picture, table(["", "what", "tokens", "weight"], rows, caption)
