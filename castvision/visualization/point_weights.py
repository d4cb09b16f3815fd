"""Where the output of one token comes from: the weight its attention gives to every other token, in any layer.

A layer's attention is linear in its values. Its weights are therefore a derivative, that of the token's row by the
values, and are read off as one: no layer and no kernel need keep them, and whatever they do to a row (a correction by
anchors, the paper's mixing) is in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from castvision.models.evaluating import evaluating, in_this_thread
from castvision.visualization.clusters import ClusterMap, clustered_layers

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class PointWeights:
    """What one token's attention gives, mean over heads; all of it sums to 1.

    Attributes:
        tokens: To each token of the grid, (rows, cols) float32. A correction by anchors can make it less than 0.
        elsewhere: To class and register tokens and to tokens of further grids.
    """

    tokens: Tensor
    elsewhere: float


@dataclass(frozen=True)
class PointShares:
    """The same, by the parts that the layer sees.

    Attributes:
        window: To the tokens of the point's window, one by one.
        clusters: To each cluster's tokens outside that window, (M,) float32.
        unclustered: To tokens of the grid in neither.
        elsewhere: See `PointWeights`.
    """

    window: float
    clusters: Tensor
    unclustered: float
    elsewhere: float


class _Reached(Exception):
    """The layer that was wanted has been given its tokens; nothing behind it need run."""


def weights_of_point(
    model: nn.Module, image: Tensor, cluster_map: ClusterMap, row: int, col: int, **arguments: Any
) -> PointWeights:
    """The weights of one token in one layer.

    Args:
        model: As for `castvision.visualization.cluster_maps`.
        image: (1, C, H, W), as the model takes it.
        cluster_map: The layer, as `cluster_maps` of the same image reports it.
        row: Of the token.
        col: Of the token.
        **arguments: What else the model is given.

    Returns:
        The weights, on the CPU.

    Raises:
        ValueError: A place outside the grid, a layer the model does not have, or one whose values cannot be told apart:
            a local branch, or projections fused in another way.
    """
    rows, cols = cluster_map.grid_size
    if not (0 <= row < rows and 0 <= col < cols):
        raise ValueError(f"expected a token of the {rows} × {cols} grid, got row {row}, column {col}")
    module = clustered_layers(model).get(cluster_map.layer)
    if module is None:
        raise ValueError(f"expected a layer with clusters of this model, got {cluster_map.layer!r}")
    if getattr(module, "local_conv", None) is not None:
        raise ValueError(
            f"expected a layer without a local branch, whose weights are no attention: {cluster_map.layer}"
        )
    inputs, keywords = _input_of(module, model, image, arguments)
    prefix = inputs[0].shape[1] - _grid_tokens(module, inputs[0], keywords)
    weights = _derivative(module, inputs, keywords, prefix + row * cols + col)
    own = weights[prefix : prefix + rows * cols].view(rows, cols)
    return PointWeights(own, float(weights.sum() - own.sum()))


def shares_of_point(weights: PointWeights, cluster_map: ClusterMap, row: int, col: int) -> PointShares:
    """A token's weights summed over its window, and over each cluster outside it.

    Args:
        weights: Of the token, from `weights_of_point`.
        cluster_map: The same layer.
        row: Of the token.
        col: Of the token.

    Returns:
        The sums; of a token in several clusters the first is counted.
    """
    windows, membership = cluster_map.windows, cluster_map.membership
    inside = windows == windows[row, col]
    if windows[row, col] < 0:  # in no window: the token itself
        inside = torch.zeros_like(inside)
        inside[row, col] = True
    left = weights.tokens.masked_fill(inside, 0.0)
    member = membership >= 0
    clusters = torch.zeros(cluster_map.num_clusters)
    clusters.index_add_(0, membership[member], left[member])
    window, unclustered = float(weights.tokens[inside].sum()), float(left[~member].sum())
    return PointShares(window, clusters, unclustered, weights.elsewhere)


def _input_of(
    module: nn.Module, model: nn.Module, image: Tensor, arguments: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the layer is given when the model sees the image."""
    taken: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def take(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        taken.append((args, kwargs))
        raise _Reached

    handle = module.register_forward_pre_hook(in_this_thread(take), with_kwargs=True)
    try:
        with evaluating(model), torch.no_grad():
            model(image, **arguments)
    except _Reached:
        pass
    finally:
        handle.remove()
    if not taken:
        raise ValueError("expected a layer that the model runs on this image, got one that it does not reach")
    return taken[0]


def _grid_tokens(module: Any, x: Tensor, keywords: dict[str, Any]) -> int:
    carried = keywords.get("attn_mask")  # of a converted layer: the grid and the tokens before it
    prefix = int(getattr(carried, "num_prefix_tokens", None) or getattr(module, "num_prefix_tokens", 0) or 0)
    return int(x.shape[1]) - prefix


def _derivative(module: Any, inputs: tuple[Any, ...], keywords: dict[str, Any], place: int) -> Tensor:
    """(P + N,): of the row at ``place`` by all values, in the first channel of each head, mean over heads."""
    source = module.qkv if getattr(module, "qkv", None) is not None else getattr(module, "v_proj", None)
    if source is None:
        raise ValueError(f"expected a layer with a projection of values, got {type(module).__name__}")
    values: list[Tensor] = []
    rows: list[Tensor] = []

    def watch(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        values.append(output.detach().requires_grad_())
        return values[-1]

    def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
        rows.append(args[0])

    handles: list[RemovableHandle] = [
        source.register_forward_hook(in_this_thread(watch)),
        module.norm.register_forward_pre_hook(in_this_thread(keep)),
    ]
    try:
        with evaluating(module), torch.inference_mode(False), torch.enable_grad():
            module(*(_plain(each) for each in inputs), **{name: _plain(each) for name, each in keywords.items()})
            if not values or not rows:
                raise ValueError(
                    f"expected a layer that projects by its module qkv or v_proj, got a {type(module).__name__} that "
                    "does not; its weights cannot be shown"
                )
            wide = int(rows[0].shape[-1])
            heads = int(module.num_heads)
            first = rows[0][0, place].view(heads, wide // heads)[:, 0].sum()
            (found,) = torch.autograd.grad(first, values[0])
    finally:
        for handle in handles:
            handle.remove()
    own = wide // getattr(module, "num_kv_groups", 1)  # several heads of queries may share values
    of_values: Tensor = found[0, :, -own:].reshape(-1, own * heads // wide, wide // heads)[..., 0]
    return of_values.float().sum(1).div(heads).cpu()


def _plain(value: Any) -> Any:
    """Tensors made in inference mode cannot be saved for a backward: their copies can."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value
