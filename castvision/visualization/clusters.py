"""Whom each token attends to: the windows and clusters of every layer with clusters of any model, on one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from castvision.layers import CastAttention
from castvision.layers.converted_attention import CONVERTED, TokenGrid
from castvision.models.evaluating import evaluating, in_this_thread
from castvision.ops import AttentionOptions, Routing, coverage
from castvision.ops.partitions import labels_of, window_index, window_size_for

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class ClusterMap:
    """Windows and clusters of one layer.

    Attributes:
        layer: Name of the attention module, e.g. "blocks.3.attn".
        options: What kind of attention it is.
        grid_size: (rows, cols) of the image's token grid.
        membership: Each token's cluster, the first of several, (rows, cols) int64, -1 for none.
        windows: Each token's window, whose tokens it attends to one by one, (rows, cols) int64, -1 for none. Where it
            attends to those of its cluster instead, the same as ``membership``.
        window_size: (rows, cols) of a whole window; None where the windows are the clusters.
        cluster_sizes: Tokens in each cluster, (M,) int64, tokens beside the image's included; M = 0 for a layer without
            clusters (``summaries="none"``).
        coverage: Share of the image's tokens in no, one and several clusters.
    """

    layer: str
    options: AttentionOptions
    grid_size: tuple[int, int]
    membership: Tensor
    windows: Tensor
    window_size: tuple[int, int] | None
    cluster_sizes: Tensor
    coverage: tuple[float, float, float]

    @property
    def num_clusters(self) -> int:
        """M, the number of clusters."""
        return len(self.cluster_sizes)

    @property
    def num_dead_clusters(self) -> int:
        """Clusters without a token."""
        return int((self.cluster_sizes == 0).sum())


def clustered_layers(model: nn.Module) -> dict[str, Any]:
    """The attention layers of a model that form clusters, by name: of ours, and of converted models of timm's."""
    kinds = (CastAttention, *CONVERTED.values())
    found: dict[str, Any] = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    return {name: module for name, module in found.items() if module.options is not None}


def cluster_maps(model: nn.Module, image: Tensor, **arguments: Any) -> list[ClusterMap]:
    """Run ``model`` on one image and report the windows and clusters of each of its layers that have them.

    Args:
        model: Any module that contains :class:`castvision.layers.CastAttention` layers given the token grid, or that
            :func:`castvision.convert` changed.
        image: (C, H, W) or (1, C, H, W), as the model takes it.
        **arguments: What else the model is given.

    Returns:
        One map per layer with clusters, in the order they ran; empty for a model without any.

    Raises:
        ValueError: More than one image, or another shape.
    """
    batch = image[None] if image.ndim == 3 else image
    if batch.ndim != 4 or batch.shape[0] != 1:
        raise ValueError(f"expected one image (C, H, W) or (1, C, H, W), got {tuple(image.shape)}")
    found: list[ClusterMap] = []
    handles: list[RemovableHandle] = []
    for name, module in clustered_layers(model).items():
        collect = _Collector(name, module.options, found)
        handles.append(module.register_forward_pre_hook(in_this_thread(_ask), with_kwargs=True))
        handles.append(module.register_forward_hook(in_this_thread(collect), with_kwargs=True))
    try:
        with evaluating(model), torch.no_grad():
            model(batch, **arguments)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _ask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {**kwargs, "return_routing": True}


class _Collector:
    """Takes the routing out of a layer's output and hands the output on."""

    def __init__(self, name: str, options: AttentionOptions, found: list[ClusterMap]) -> None:
        self.name, self.options, self.found = name, options, found

    def __call__(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Tensor, Routing]
    ) -> Tensor:
        out, routing = output
        carried = kwargs.get("attn_mask")  # of a converted layer: the grid and the tokens before it
        grid: list[int] | None = kwargs.get("grid_size")
        mask: Tensor | None = kwargs.get("token_mask")
        if isinstance(carried, TokenGrid):
            grid = [carried.rows, carried.cols]
            num_tokens = carried.rows * carried.cols
        else:
            num_tokens = args[0].shape[1] - module.num_prefix_tokens
        is_real = torch.ones(num_tokens, dtype=torch.bool) if mask is None else mask[0].cpu()
        self.found.append(_make_map(self.name, self.options, grid, routing, is_real))
        return out


def _make_map(
    name: str, options: AttentionOptions, grid_size: list[int] | None, routing: Routing, is_real: Tensor
) -> ClusterMap:
    """The map of a batch's first image; is_real: (N,) bool."""
    rows, cols = (int(side) for side in (grid_size or (1, len(is_real)))[:2])
    own = rows * cols  # tokens of further grids follow them
    has_windows = options.neighborhood == "window"
    sizes, first, shares = _clusters(routing, len(is_real), own)
    if has_windows and options.summaries == "none":  # nobody attends to them
        sizes, first, shares = sizes[:0], torch.full_like(first, -1), (1.0, 0.0, 0.0)
    size = None
    windows = first
    if has_windows:
        side = options.window_size or window_size_for(rows, cols)
        size = (side, side) if grid_size else (1, side * side)
        index = window_index(rows, cols, *size, options.shift_windows, is_real)
        windows = labels_of(index[None], own)[0].masked_fill(~is_real[:own], -1)
    grid = (rows, cols)
    return ClusterMap(name, options, grid, first.view(grid), windows.view(grid), size, sizes, shares)


def _clusters(routing: Routing, num_tokens: int, own: int) -> tuple[Tensor, Tensor, tuple[float, float, float]]:
    """Sizes of all clusters (M,), and of the first ``own`` tokens the first cluster (own,) and the coverage."""
    clusters = routing.num_clusters
    if routing.labels is not None:
        labels = routing.labels[:1].cpu()
        sizes = labels[0].bincount(minlength=clusters + 1)[:clusters]
        first = labels[0, :own].masked_fill(labels[0, :own] == clusters, -1)
        routing = routing._replace(labels=labels[:, :own])
    else:
        index = routing.index[:1].cpu()  # type: ignore[index] # one of the two is there
        sizes = (index[0] < num_tokens).sum(1)
        first = torch.full((num_tokens + 1,), -1)
        for cluster in range(clusters - 1, -1, -1):
            first[index[0, cluster]] = cluster
        first = first[:own]
        routing = routing._replace(index=index.clamp(max=own))
    none, one, several = coverage(routing, own)[0].tolist()
    return sizes, first, (none, one, several)
