"""Pictures for people: cluster maps, overlays, titled figures."""

from castvision.visualization.clusters import ClusterMap, cluster_maps

__all__ = ["ClusterMap", "cluster_maps"]
