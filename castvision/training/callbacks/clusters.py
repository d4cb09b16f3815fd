"""Sizes of clusters, and tokens left out, in each CAST block: in the logs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.nn import functional

from castvision.ignored import IGNORED
from castvision.visualization.clusters import cluster_maps, clustered_layers

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from castvision.visualization.clusters import ClusterMap


class ClusterStatistics(Callback):
    """After each round of held-out images: the clusters of a few of them. Says nothing of models without clusters.

    Logged for each block, as ``clusters/LAYER/…``: ``dead`` (clusters without a token) and ``largest`` (tokens of the
    largest cluster over the mean, N / M). Except for "nearest", which leaves no token out, also ``in_none``,
    ``in_one``, ``in_several`` (shares of tokens), and for segmentation ``foreground_in_none``: of the tokens on some
    object, the share in no cluster.

    Args:
        num_images: How many held-out images are looked at, by each process.
    """

    def __init__(self, num_images: int = 8) -> None:
        if num_images < 1:
            raise ValueError(f"expected num_images >= 1, got {num_images=}")
        self.num_images = num_images
        self._found: dict[str, float] = {}

    def on_validation_batch_start(  # Lightning's hook
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Look at the first images, by the weights that are validated: at the end of a round averages are gone."""
        backbone = getattr(pl_module, "backbone", None)
        if batch_idx == 0 and backbone is not None and not trainer.sanity_checking:
            self._found = cluster_metrics(backbone, batch[0][: self.num_images], batch[1][: self.num_images])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means over the images."""
        pl_module.log_dict(self._found, sync_dist=True)
        self._found = {}


def cluster_metrics(backbone: torch.nn.Module, images: Tensor, targets: Tensor) -> dict[str, float]:
    """What `ClusterStatistics` logs.

    Args:
        backbone: Any model.
        images: (B, C, height, width).
        targets: (B,) labels, or (B, height, width) masks with 0 = background.

    Returns:
        Means over the images, by name; empty for a model without clusters.
    """
    if not clustered_layers(backbone):
        return {}
    values: dict[str, list[float]] = {}
    with torch.no_grad():
        for image, target in zip(images, targets, strict=True):
            for clusters in cluster_maps(backbone, image):
                for name, value in _metrics(clusters, target).items():
                    values.setdefault(f"clusters/{clusters.layer}/{name}", []).append(value)
    return {name: sum(found) / len(found) for name, found in values.items()}


def _metrics(clusters: ClusterMap, target: Tensor) -> dict[str, float]:
    if not clusters.num_clusters:
        return {}
    largest = float(clusters.cluster_sizes.max()) * clusters.num_clusters / clusters.membership.numel()
    metrics = {"dead": float(clusters.num_dead_clusters), "largest": largest}
    if clusters.options.assignment == "nearest":
        return metrics
    metrics |= dict(zip(("in_none", "in_one", "in_several"), clusters.coverage, strict=True))
    if target.ndim == 2:
        is_object = ((target > 0) & (target != IGNORED)).float()[None, None]
        on_object = functional.adaptive_max_pool2d(is_object, clusters.grid_size)[0, 0] > 0  # (rows, cols)
        orphans = (clusters.membership.to(target.device) < 0) & on_object
        metrics["foreground_in_none"] = float(orphans.sum() / on_object.sum().clamp(min=1))
    return metrics
