"""Pictures for people: cluster maps, overlays, plots."""

from castvision.visualization.clusters import ClusterMap, cluster_maps

__all__ = ["ClusterMap", "cluster_maps"]
