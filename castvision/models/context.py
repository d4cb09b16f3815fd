"""Tiles that know their surroundings: the whole image at low resolution as extra tokens beside a tile's own.

A tile of a large image shows detail and no context. Here the backbone embeds both, the tile and the whole image resized
to a small fixed size. Clusters are formed over the union, so that the tile's tokens attend to the context through them
and the extra tokens cost what they add to N and no more; only the tile's tokens reach the head. Rotary codes give the
context's tokens the place where they truly lie, in the tile's frame and in units of its tokens, and a learned embedding
says that they are coarse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import Tensor, nn

from castvision.layers import CastAttention
from castvision.models.cast_vit import CastVisionTransformer
from castvision.models.extra_tokens import ExtraTokens
from castvision.models.one_size import compile_each_size
from castvision.models.segmenter import Segmenter, create_segmenter, pad_to_patches
from castvision.peers.layer import PeerLayer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from castvision.ops import AttentionOptions


class ContextSegmenter(Segmenter):
    """A `Segmenter` on a CAST backbone that can be shown the whole image beside a tile of it.

    Args:
        backbone: With ``use_rot_pos_emb=True`` and ``pos_embed="none"``: positions must reach beyond the tile.
        head: As for `Segmenter`.
        context_size: (height, width) the whole image is resized to, see `castvision.data.make_context`.
        out_indices: As for `Segmenter`.

    Raises:
        TypeError: Another backbone.
        ValueError: A backbone without rotary positions or with learned ones, one whose attention never reaches from a
            tile to the context (``summaries="none"`` with windows or blocks), or a size below 1.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        *,
        context_size: Sequence[int],
        out_indices: Sequence[int] | None = None,
    ) -> None:
        super().__init__(backbone, head, out_indices=out_indices)
        rows, columns = context_size
        self.context_size = rows, columns
        _check(backbone, self.context_size)
        self.context_embed = nn.Parameter(0.02 * torch.randn(1, 1, int(backbone.embed_dim)))  # type: ignore[arg-type]

    def no_weight_decay(self) -> set[str]:
        """Parameters beside the backbone's that weight decay must not touch."""
        return {"context_embed"}

    def forward(
        self,
        image: Tensor,
        pixel_mask: Tensor | None = None,
        context: Tensor | None = None,
        window: Tensor | None = None,
    ) -> Tensor:
        """Segment tiles.

        Args:
            image: Tiles, (B, in_chans, height, width).
            pixel_mask: True where a tile's pixel is real, (B, height, width) bool; None = everywhere.
            context: The whole image of each tile, (B, in_chans, *context_size), or (1, ...) for tiles of one image.
                None: every tile by itself.
            window: Where the tile lies: its top, left, height and width as fractions of the whole image, (B, 4).

        Returns:
            (B, num_classes, height, width) logits.

        Raises:
            ValueError: A context without windows, the other way round, or shapes that do not fit.
        """
        if context is None and window is None:
            return super().forward(image, pixel_mask)
        compile_each_size(image)
        extra = self._context_tokens(image, context, window)
        if pixel_mask is not None:
            image = image.masked_fill(~pixel_mask[:, None], 0.0)
        logits: Tensor = self.head(self._run(image, pixel_mask, extra=extra), image)
        return logits

    def _context_tokens(self, image: Tensor, context: Tensor | None, window: Tensor | None) -> ExtraTokens:
        batch = image.shape[0]
        if context is None or window is None or window.shape != (batch, 4):
            raise ValueError(
                f"expected context and window together, window ({batch}, 4), got {_shape(context)} and {_shape(window)}"
            )
        if context.shape[0] not in (1, batch) or tuple(context.shape[2:]) != self.context_size:
            raise ValueError(
                f"expected context (1 or {batch}, in_chans, {self.context_size[0]}, {self.context_size[1]}), "
                f"got {_shape(context)}; make_context resizes an image to it"
            )
        backbone: Any = self.backbone
        grid = backbone.patch_embed(pad_to_patches(context, self.patch_size))  # 1 or B, rows, cols, C
        tokens = backbone.norm_pre(backbone.pos_drop(grid.flatten(1, 2) + self.context_embed))
        positions = self._positions((grid.shape[1], grid.shape[2]), (image.shape[2], image.shape[3]), window)
        return ExtraTokens(tokens.expand(batch, -1, -1), backbone.rope.at(positions), (grid.shape[1], grid.shape[2]))

    def _positions(self, grid: tuple[int, int], tile: tuple[int, int], window: Tensor) -> Tensor:
        """(B, rows * cols, 2): centres of the context's tokens, counted in tokens from the tile's first one."""
        axes = []
        for axis in (0, 1):
            patch = self.patch_size[axis]
            centre = (torch.arange(grid[axis], device=window.device) + 0.5) * patch / self.context_size[axis]
            start, extent = window[:, axis, None].float(), window[:, 2 + axis, None].float()
            axes.append((centre - start) / extent * (tile[axis] / patch) - 0.5)  # (B, rows) or (B, cols)
        rows = axes[0][:, :, None].expand(-1, -1, grid[1])
        cols = axes[1][:, None, :].expand(-1, grid[0], -1)
        return torch.stack([rows, cols], dim=3).flatten(1, 2)


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)


def _check(backbone: nn.Module, context_size: tuple[int, int]) -> None:
    if not isinstance(backbone, CastVisionTransformer):
        raise TypeError(f"expected a cast_vit_* backbone without features_only, got {type(backbone).__name__}")
    if backbone.rope is None or backbone.pos_embed is not None:
        raise ValueError(
            "expected a backbone whose positions reach beyond the tile; create it with use_rot_pos_emb=True and "
            "pos_embed='none'"
        )
    layers = [block.attn for block in backbone.blocks]
    if any(isinstance(layer, PeerLayer) for layer in layers):
        raise ValueError(
            "expected attention='near_far' for tiles with context, got another paper's, which takes the tokens of one "
            "grid; leave context_size out, or attention"
        )
    if not backbone.num_prefix_tokens and all(
        isinstance(layer, CastAttention) and not _reaches_other_grids(layer.options) for layer in layers
    ):
        raise ValueError(
            "expected blocks in which a tile's tokens attend to the context's, got summaries='none' in all, without "
            "clusters that hold both; choose summaries='mean' or 'query_weighted'"
        )
    if min(context_size) < 1:
        raise ValueError(f"expected context_size >= 1, got {context_size=}")


def _reaches_other_grids(options: AttentionOptions) -> bool:
    """Whether a tile's tokens attend to the context's: a window holds tokens of one grid, and so does a block."""
    shares_clusters = options.neighborhood == "cluster" and options.assignment != "blocks"
    return options.summaries != "none" or options.anchors > 0 or shares_clusters


def create_context_segmenter(
    model_name: str,
    num_classes: int,
    *,
    context_size: Sequence[int],
    head: str = "UpsamplingHead",
    model_kwargs: Mapping[str, Any] | None = None,
    head_kwargs: Mapping[str, Any] | None = None,
    out_indices: Sequence[int] | None = None,
) -> ContextSegmenter:
    """Build backbone and head by name, for tiles with context.

    Args:
        model_name: A ``cast_vit_*`` model.
        num_classes: Logits per pixel.
        context_size: See `ContextSegmenter`.
        head: A class of `castvision.heads`.
        model_kwargs: For ``timm.create_model``, beside rotary positions instead of learned ones.
        head_kwargs: For the head, see `create_segmenter`.
        out_indices: See `create_segmenter`.

    Returns:
        The segmenter, untrained unless ``model_kwargs`` says ``pretrained: True``.

    Raises:
        ValueError: See `create_segmenter` and `ContextSegmenter`.
        TypeError: See there.
    """
    name = model_name.split(".")[0]
    if timm.is_model(name) and not name.startswith("cast_vit_"):
        raise TypeError(f"expected a cast_vit_* backbone for tiles with context, got {model_name!r}")
    arguments = {"use_rot_pos_emb": True, "pos_embed": "none", **(model_kwargs or {})}
    plain = create_segmenter(
        model_name, num_classes, head=head, model_kwargs=arguments, head_kwargs=head_kwargs, out_indices=out_indices
    )
    return ContextSegmenter(plain.backbone, plain.head, context_size=context_size, out_indices=plain.out_indices)
