"""timm's models around converted attention: theirs in all, but that the grid of every image reaches the blocks.

A model changes its class (see :mod:`.convert`), so these have no ``__init__``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from timm.layers import RotaryEmbeddingDinoV3
from timm.models import Eva, VisionTransformer, checkpoint
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import checkpoint_filter_fn as eva_filter_fn
from timm.models.vision_transformer import checkpoint_filter_fn as vit_filter_fn
from torch import Tensor, nn
from torch.nn import functional as F

from castvision.layers.converted_attention import TokenGrid
from castvision.models.cast_vit import check_images, refuse_masks
from castvision.models.intermediates import as_intermediates
from castvision.models.one_size import compile_each_size, constant_in_a_trace, of_one_size_in_a_trace
from castvision.models.timm_private import feature_take_indices
from castvision.ops import check_choice
from castvision.ops.arithmetic import is_eager, is_exporting

if TYPE_CHECKING:
    from collections.abc import Sequence


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """A checkpoint's weights adapted to a converted model as timm does for the original, by its own function."""
    adapt = eva_filter_fn if isinstance(model, Eva) else vit_filter_fn
    adapted: dict[str, Tensor] = adapt(state_dict, model)
    return adapted


class _Converted:
    """What the converted models share."""

    def forward_features(self: Any, x: Tensor, attn_mask: None = None, is_causal: bool = False) -> Tensor:
        """Features (B, P + N, C) of images (B, in_chans, height, width).

        Raises:
            ValueError: Images of other channels, sides that are no multiples of the patch, or a mask.
        """
        refuse_masks(attn_mask, is_causal)
        x, ropes, grid = self._tokens(x)
        for block, rope in zip(self.blocks, ropes, strict=True):
            x = self._through(block, x, rope, grid)
        out: Tensor = self.norm(x)
        return out

    def forward_intermediates(
        self: Any,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: None = None,
        is_causal: bool = False,
    ) -> Any:
        """Features after chosen blocks, as timm's; see :func:`castvision.models.intermediates.as_intermediates`."""
        check_choice("output_fmt", output_fmt, ("NCHW", "NLC"))
        refuse_masks(attn_mask, is_causal)
        take, last = feature_take_indices(len(self.blocks), indices)
        x, ropes, grid = self._tokens(x)
        taps = []
        for i, (block, rope) in enumerate(zip(self.blocks, ropes, strict=True)):
            if stop_early and i > last:
                break
            x = self._through(block, x, rope, grid)
            if i in take:
                taps.append(self.norm(x) if norm else x)
        prefix = self.num_prefix_tokens if return_prefix_tokens else 0
        taps = [tokens[:, self.num_prefix_tokens - prefix :] for tokens in taps]
        features = None if intermediates_only else self.norm(x)
        return as_intermediates(taps, features, prefix, grid, output_fmt, output_dict)

    def _tokens(self: Any, x: Tensor) -> tuple[Tensor, Sequence[Tensor | None], TokenGrid]:
        """Tokens (B, P + N, C) with positions, rotary codes for each block, and the grid."""
        check_images(x, self.in_chans)
        _check_size(x, self.patch_embed)
        x = of_one_size_in_a_trace(x)
        compile_each_size(x)
        x = self.patch_embed(x)  # B, rows, cols, C
        rows, cols = constant_in_a_trace([x.shape[1], x.shape[2]])
        grid = TokenGrid(rows, cols, self.num_prefix_tokens)
        empty = is_eager() and isinstance(x, Tensor) and x.shape[0] == 0  # which timm reshapes to any size
        x = self._pos_embed(F.pad(x, (0, 0, 0, 0, 0, 0, 0, 1)) if empty else x)
        rope: Tensor | None = None
        if isinstance(self, Eva):
            x, rope = x
        x = x[:0] if empty else x
        per_block = rope is not None and getattr(self, "rope_mixed", False)
        ropes = [rope[i] if rope is not None and per_block else rope for i in range(len(self.blocks))]
        return self.norm_pre(x), ropes, grid

    def _through(self: Any, block: nn.Module, x: Tensor, rope: Tensor | None, grid: TokenGrid) -> Tensor:
        arguments: dict[str, Any] = {"attn_mask": grid}
        if isinstance(self, Eva):
            arguments["rope"] = rope
        out: Tensor = checkpoint(block, x, **arguments) if self.grad_checkpointing else block(x, **arguments)
        return out


def _check_size(x: Any, patch_embed: Any) -> None:
    """Say what timm would assert; FX hands a proxy, of which nothing can be asked."""
    if not isinstance(x, Tensor):
        return
    ratio = patch_embed.feat_ratio(as_scalar=False)
    if not patch_embed.dynamic_img_pad and (x.shape[2] % ratio[0] or x.shape[3] % ratio[1]):
        raise ValueError(
            f"expected images with sides divisible by the patch, {ratio[0]} x {ratio[1]} pixels, got "
            f"{x.shape[2]} x {x.shape[3]}; resize or pad them, or create the model with dynamic_img_pad=True"
        )


class ConvertedDinoV3Positions(RotaryEmbeddingDinoV3):  # type: ignore[misc]
    """timm's rotary positions of DINOv3, of any grid in an export too.

    timm's own make floats of the grid's sides there, so that a graph kept the positions of the image it was made with.
    """

    def _create_embed(self, feat_shape: Sequence[int], no_aug: bool = False) -> Tensor:
        if not is_exporting() or self.normalize_coords != "separate":
            eager: Tensor = super()._create_embed(feat_shape, no_aug)
            return eager
        sides = [torch.arange(n, device=self.periods.device) for n in feat_shape]
        sides = [2 * (side.float() + 0.5 + self.grid_offset) / n - 1 for side, n in zip(sides, feat_shape, strict=True)]
        axes = torch.meshgrid(sides, indexing="ij")
        coordinates = torch.stack(axes[::-1] if self.grid_indexing == "xy" else axes, -1).flatten(0, 1)
        return torch.cat(self._get_pos_embed_from_coords(coordinates), -1)


class ConvertedVisionTransformer(_Converted, VisionTransformer):  # type: ignore[misc]
    """timm's ``VisionTransformer``, converted."""


class ConvertedDistilled(_Converted, VisionTransformerDistilled):  # type: ignore[misc]
    """timm's ``VisionTransformerDistilled`` (DeiT), converted."""


class ConvertedEva(_Converted, Eva):  # type: ignore[misc]
    """timm's ``Eva`` (EVA-02, DINOv3, …), converted."""


CONVERTED: dict[type, type] = {
    VisionTransformer: ConvertedVisionTransformer,
    VisionTransformerDistilled: ConvertedDistilled,
    Eva: ConvertedEva,
    RotaryEmbeddingDinoV3: ConvertedDinoV3Positions,
}
"""timm's classes of models and positions, and what each becomes."""
