"""Which token went where: the clusters of every CAST layer of any model, on one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from castvision.layers import CastAttention
from castvision.ops import Routing, coverage

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class ClusterMap:
    """Clusters of one layer.

    Attributes:
        layer: Name of the attention module, e.g. "blocks.3.attn".
        grid_size: (rows, cols) of the token grid.
        index: Tokens of each cluster, (M, K) int64, padding = N.
        membership: Each token's first cluster, (rows, cols) int64, -1 for none.
        coverage: Share of tokens in no, one and several clusters.
    """

    layer: str
    grid_size: tuple[int, int]
    index: Tensor
    membership: Tensor
    coverage: tuple[float, float, float]

    @property
    def num_dead_clusters(self) -> int:
        """Clusters without a token."""
        return int((self.index == self.membership.numel()).all(1).sum())


def cluster_maps(model: nn.Module, image: Tensor) -> list[ClusterMap]:
    """Run ``model`` on one image and report the clusters of each of its CAST layers.

    Args:
        model: Any module that contains :class:`castvision.layers.CastAttention` layers given the token grid.
        image: (C, H, W) or (1, C, H, W), as the model takes it.

    Returns:
        One map per CAST layer, in the order they ran; empty for a model without any.

    Raises:
        ValueError: More than one image, or another shape.
    """
    batch = image[None] if image.ndim == 3 else image
    if batch.ndim != 4 or batch.shape[0] != 1:
        raise ValueError(f"expected one image (C, H, W) or (1, C, H, W), got {tuple(image.shape)}")
    found: list[ClusterMap] = []
    handles: list[RemovableHandle] = []
    for name, module in model.named_modules():
        if isinstance(module, CastAttention):
            handles.append(module.register_forward_pre_hook(_ask, with_kwargs=True))
            handles.append(module.register_forward_hook(_Collector(name, found), with_kwargs=True))
    was_training = model.training
    try:
        model.eval()
        with torch.no_grad():
            model(batch)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return found


def _ask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {**kwargs, "return_routing": True}


class _Collector:
    """Takes the routing out of a layer's output and hands the output on."""

    def __init__(self, name: str, found: list[ClusterMap]) -> None:
        self.name, self.found = name, found

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Tensor, Routing]
    ) -> Tensor:
        out, routing = output
        grid = kwargs.get("grid_size") or (1, args[0].shape[1] - module.num_prefix_tokens)
        self.found.append(_make_map(self.name, (int(grid[0]), int(grid[1])), routing))
        return out


def _make_map(name: str, grid: tuple[int, int], routing: Routing) -> ClusterMap:
    num_tokens = grid[0] * grid[1]
    index = routing.index[0].cpu()
    membership = torch.full((num_tokens + 1,), -1)
    for cluster in range(len(index) - 1, -1, -1):
        membership[index[cluster]] = cluster
    none, one, several = coverage(routing, num_tokens)[0].tolist()
    return ClusterMap(name, grid, index, membership[:num_tokens].view(grid), (none, one, several))
