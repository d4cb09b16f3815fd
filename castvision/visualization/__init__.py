"""Pictures for people: cluster maps, overlays, plots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from castvision.deferred import deferred

if TYPE_CHECKING:
    from castvision.visualization.clusters import ClusterMap, cluster_maps

__all__ = ["ClusterMap", "cluster_maps"]

__getattr__ = deferred(
    __name__,
    {
        "ClusterMap": "castvision.visualization.clusters",
        "cluster_maps": "castvision.visualization.clusters",
    },
)
