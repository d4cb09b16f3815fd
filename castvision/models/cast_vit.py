"""A vision transformer with CAST attention: timm's ViT, its contract and its state-dict keys, for any image size.

Differs from timm's ``VisionTransformer``: blocks are :class:`castvision.layers.CastBlock`; images of any size are
taken at run time (padded to whole patches, position embeddings resampled); rotary 2-D positions are an option.
Annotations of scripted methods are those TorchScript reads (no postponed ones).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import PatchEmbed, register_notrace_function, resample_abs_pos_embed
from timm.models import VisionTransformer, checkpoint
from torch import Tensor, nn
from torch.nn import functional as F

from castvision.layers import CastAttention, CastBlock, ConvStem, RotaryPositions
from castvision.layers.block import ATTN_LAYERS
from castvision.models.checkpoint import checkpoint_filter_fn as checkpoint_filter_fn
from castvision.models.extra_tokens import ExtraTokens, append_extra
from castvision.models.intermediates import as_intermediates
from castvision.models.one_size import compile_each_size, constant_in_a_trace, of_one_size_in_a_trace
from castvision.models.timm_private import feature_take_indices
from castvision.ops import AttentionOptions, check_choice
from castvision.ops.options import ATTENTIONS
from castvision.peers import PEERS
from castvision.peers.registry import OPTIONS as PEER_OPTIONS

STEMS: dict[str, Callable[..., nn.Module]] = {"patch": PatchEmbed, "conv": ConvStem}


@register_notrace_function  # whether to resample depends on the grid's size, which FX cannot follow
def _resample(pos_embed: Tensor, grid: Tensor, old_size: tuple[int, int], num_prefix_tokens: int) -> Tensor:
    """Position embedding (1, P + N', C) for the token map (B, rows, cols, C)."""
    size = [grid.shape[1], grid.shape[2]]
    out: Tensor = resample_abs_pos_embed(pos_embed, size, list(old_size), num_prefix_tokens)
    return out


class CastVisionTransformer(VisionTransformer):  # type: ignore[misc]
    """Vision transformer with clustered attention.

    Args:
        img_size: Native (height, width); other sizes work at run time, windows and clusters follow the image.
        patch_size: Pixels per token and axis.
        in_chans: Image channels.
        num_classes: Classes of the head, 0 for none.
        global_pool: "token", "avg", "avgmax", "max", "map" or "" (no pooling).
        embed_dim: C.
        depth: Number of blocks.
        num_heads: H.
        mlp_ratio: Hidden width of the MLPs over C.
        qkv_bias: Bias of ``qkv``.
        class_token: Have a class token.
        pos_embed: "learn" or "none".
        reg_tokens: Number of register tokens; None: none, but as many as ``attention`` needs.
        dynamic_img_size: Only True is useful; accepted since clients pass it.
        dynamic_img_pad: Pad images to whole patches; False refuses other sizes.
        use_rot_pos_emb: Rotary 2-D positions on queries and keys.
        stem: "patch" (one convolution) or "conv" (3x3 convolutions).
        attn_layer: "cast"; for comparisons "full" or "none", which take no options of clustered attention.
        local_branch: Depthwise convolution beside attention.
        rope_in_routing: Form clusters after rotary positions: of places more than of content. Default: for the paper's
            attention, as there; not for near and far.
        learned_scale: A learned factor of the logits per head.
        freeze_surrogates: Learned surrogates keep their start (a control).
        **arguments: ``attention="near_far"`` or ``"paper"`` and any field of :class:`castvision.ops.AttentionOptions`
            (``window_size``, ``num_clusters``, ``anchors``, …), one for all blocks or a list with one per block;
            ``shift_windows=True`` shifts those of every other block. Or ``attention`` is a word of
            :data:`castvision.peers.PEERS` ("smyrf", "xcit", …), for all blocks, with that peer's options. All others
            are timm's ``VisionTransformer``'s; unknown ones raise TypeError there.

    Raises:
        ValueError: An option or a size that does not fit.
        TypeError: An unknown argument.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        class_token: bool = True,
        pos_embed: str = "learn",
        reg_tokens: int | None = None,
        dynamic_img_size: bool = True,
        dynamic_img_pad: bool = True,
        use_rot_pos_emb: bool = False,
        stem: str = "patch",
        attn_layer: str = "cast",
        local_branch: bool = False,
        rope_in_routing: bool | None = None,
        learned_scale: bool = False,
        freeze_surrogates: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **arguments: Any,
    ) -> None:
        known = dict.fromkeys((*AttentionOptions._fields, *PEER_OPTIONS))
        options = {name: arguments.pop(name) for name in known if name in arguments}
        of_layers = dict(
            rope_in_routing=rope_in_routing,
            learned_scale=learned_scale or None,
            freeze_surrogates=freeze_surrogates or None,
        )
        _check(stem, attn_layer, {**options, **of_layers}, dynamic_img_size, arguments)
        peer = _peer_of(options)
        grid = _grid_size(img_size, patch_size)
        shared = dict(
            local_branch=local_branch, rope_in_routing=rope_in_routing, learned_scale=learned_scale,
            freeze_surrogates=freeze_surrogates, grid_size=grid,
        )  # fmt: skip
        if peer is not None:
            shared = _peer_arguments(peer, shared)
        if reg_tokens is None:
            reg_tokens = 0 if peer is None else PEERS[peer].reg_tokens
        super().__init__(
            img_size=img_size, patch_size=patch_size, in_chans=in_chans, num_classes=num_classes,
            global_pool=global_pool, embed_dim=embed_dim, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias, class_token=class_token, pos_embed=pos_embed, reg_tokens=reg_tokens,
            dynamic_img_size=True, dynamic_img_pad=dynamic_img_pad, embed_layer=STEMS[stem], attn_layer=attn_layer,
            block_fn=partial(
                _make_block, num_prefix_tokens=int(class_token) + reg_tokens, shared=shared,
                per_block=options_per_block(options, depth), peer=peer,
            ),
            device=device, dtype=dtype, **arguments,
        )  # fmt: skip
        self._has_default_clusters = options.get("num_clusters") is None
        self.rope = RotaryPositions(embed_dim // num_heads, device=device) if use_rot_pos_emb else None
        if peer is not None and PEERS[peer].reg_tokens and self.reg_token is not None:
            nn.init.trunc_normal_(self.reg_token, std=0.02)  # timm's 1e-6 would start them all alike

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay must not touch."""
        own = {"blocks.*.attn.surrogate_tokens", "blocks.*.attn.log_scale"}
        return own.union(super().no_weight_decay())

    def set_input_size(
        self, img_size: tuple[int, int] | None = None, patch_size: tuple[int, int] | None = None
    ) -> None:
        """Make the model as if built for another native size.

        Position embeddings and, unless their number was given, learned surrogates are resampled.
        """
        super().set_input_size(img_size=img_size, patch_size=patch_size)
        if not self._has_default_clusters:
            return
        rows, cols = self.patch_embed.grid_size
        for module in self.modules():
            if isinstance(module, CastAttention) and module.options.surrogates != "sampled":
                module.set_num_clusters(max(1, round((rows * cols) ** 0.5)))

    def _tokens(self, x: Tensor) -> tuple[Tensor, Tensor | None, list[int]]:
        """Tokens (B, P + N, C) with positions, rotary codes (N, 2D) or None, and the grid (rows, cols)."""
        if not torch.jit.is_scripting():
            check_images(x, self.in_chans)
            x = of_one_size_in_a_trace(x)
            compile_each_size(x)
        x = self.patch_embed(x)  # B, rows, cols, C
        grid = [x.shape[1], x.shape[2]]
        if not torch.jit.is_scripting():
            grid = constant_in_a_trace(grid)
        rope: Tensor | None = None
        if self.rope is not None:
            rope = self.rope(x)
        return self.norm_pre(self.patch_drop(self._pos_embed(x))), rope, grid

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Flatten the token map (B, rows, cols, C), add positions, put prefix tokens in front: (B, P + N, C)."""
        batch = x.shape[0]
        prefix = []
        if self.cls_token is not None:
            prefix.append(self.cls_token.expand(batch, -1, -1))
        if self.reg_token is not None:
            prefix.append(self.reg_token.expand(batch, -1, -1))
        tokens = x.flatten(1, 2)
        skipped = 0 if self.no_embed_class else self.num_prefix_tokens
        if self.pos_embed is not None:
            pos_embed = _resample(self.pos_embed, x, self.patch_embed.grid_size, skipped)
            pos_embed = pos_embed.expand(batch, -1, -1)  # export would tie the batch to "not 1" by broadcasting
            if skipped > 0:  # its first rows are the prefix tokens'
                tokens = tokens + pos_embed[:, skipped:]
                prefix = [torch.cat(prefix, 1) + pos_embed[:, :skipped]]
            else:
                tokens = tokens + pos_embed
        out: Tensor = self.pos_drop(torch.cat(prefix + [tokens], 1))  # noqa: RUF005 - TorchScript knows no unpacking
        return out

    def forward_features(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        token_mask: Tensor | None = None,
    ) -> Tensor:
        """Features (B, P + N, C) of images (B, in_chans, height, width); token_mask: (B, N) bool, True where real."""
        refuse_masks(attn_mask, is_causal)
        mask: Tensor | None = None
        if isinstance(token_mask, Tensor):  # under FX an argument is never None, but it is no tensor either
            mask = token_mask
        x, rope, grid = self._tokens(x)
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x, rope, grid, mask)
            else:
                x = block(x, rope, grid, mask)
        out: Tensor = self.norm(x)
        return out

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        token_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, num_classes) of images (B, in_chans, height, width); pooled over real tokens.

        Raises:
            ValueError: A mask of tokens with attention pooling, which has none.
        """
        if isinstance(token_mask, Tensor) and self.attn_pool is not None:
            raise ValueError("expected no token_mask with global_pool='map', which has none; use another global_pool")
        tokens = self.forward_features(x, attn_mask, is_causal, token_mask)
        if isinstance(token_mask, Tensor):
            first = 0 if self.pool_include_prefix else self.num_prefix_tokens
            tokens = _mean_where_masked(tokens, token_mask, self.num_prefix_tokens, first)
        out: Tensor = self.forward_head(tokens)
        return out

    @torch.jit.ignore
    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        token_mask: Tensor | None = None,
        extra: ExtraTokens | None = None,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]] | dict[str, Any]:
        """Features after chosen blocks, as timm's: (features, intermediates), intermediates alone, or a dict.

        Intermediates are (B, C, rows, cols) for "NCHW" and (B, N, C) for "NLC". ``extra`` tokens run beside the image's
        through all blocks and appear in no intermediate.

        Raises:
            ValueError: An unknown ``output_fmt``.
        """
        check_choice("output_fmt", output_fmt, ("NCHW", "NLC"))
        refuse_masks(attn_mask, is_causal)
        take, last = feature_take_indices(len(self.blocks), indices)
        x, rope, grid = self._tokens(x)
        length = x.shape[1]
        if extra is not None:
            x, rope, grid, token_mask = append_extra(x, rope, grid, token_mask, extra)
        taps = []
        for i, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            x = (
                checkpoint(block, x, rope, grid, token_mask)
                if self.grad_checkpointing
                else block(x, rope, grid, token_mask)
            )
            if i in take:
                taps.append(self.norm(x) if norm else x)
        features = None if intermediates_only else self.norm(x[:, :length])
        prefix = self.num_prefix_tokens if return_prefix_tokens else 0
        taps = [y[:, self.num_prefix_tokens - prefix : length] for y in taps]
        return as_intermediates(taps, features, prefix, grid, output_fmt, output_dict)


def _mean_where_masked(tokens: Tensor, token_mask: Tensor, num_prefix_tokens: int, first: int) -> Tensor:
    """Tokens (B, P + N, C) whose mean and largest values, from ``first`` on, the masked ones do not change.

    They hold the mean of the others.
    """
    real = F.pad(token_mask, (num_prefix_tokens, 0), value=1.0)[:, :, None]
    number = real[:, first:].sum(1, keepdim=True).clamp(min=1)
    mean = tokens.masked_fill(~real, 0.0)[:, first:].sum(1, keepdim=True) / number
    return torch.where(real, tokens, mean.to(tokens.dtype))


def _make_block(
    depth: int,
    num_prefix_tokens: int,
    shared: dict[str, Any],
    per_block: list[dict[str, Any]],
    peer: str | None,
    **timm_arguments: Any,
) -> CastBlock:
    """The block at a depth, with its own options."""
    attn_kwargs = {**shared, **per_block[depth]}
    if peer is not None:
        options = {name: value for name, value in per_block[depth].items() if name != "attention"}
        attn_kwargs = {**shared, "attention": peer, "options": options}
    return CastBlock(depth=depth, num_prefix_tokens=num_prefix_tokens, attn_kwargs=attn_kwargs, **timm_arguments)


def options_per_block(options: dict[str, Any], depth: int) -> list[dict[str, Any]]:
    """Options of each block from options of the model, where a list names one per block."""
    blocks: list[dict[str, Any]] = [{} for _ in range(depth)]
    for name, value in options.items():
        values = [value] * depth if isinstance(value, str) or not isinstance(value, Sequence) else list(value)
        if len(values) != depth:
            raise ValueError(f"expected one {name} or one per block ({depth}), got {len(values)}: {values}")
        if name == "shift_windows" and value is True:
            values = [bool(i % 2) for i in range(depth)]
        for block, one in zip(blocks, values, strict=True):
            block[name] = one
    return blocks


def _peer_of(options: dict[str, Any]) -> str | None:
    """The peer that ``attention`` names, None for ours; refuses what does not go together."""
    attention = options.get("attention")
    if isinstance(attention, str) and attention in PEERS:
        return attention  # whose options the blocks check
    if not isinstance(attention, str) and any(each in PEERS for each in attention or ()):
        raise ValueError(f"expected one word for all blocks where a peer is among them, got attention={attention}")
    if isinstance(attention, str):
        check_choice("attention", attention, (*ATTENTIONS, *PEERS))
    foreign = [name for name in options if name not in AttentionOptions._fields]
    if foreign:
        whose = [word for word, peer in PEERS.items() if foreign[0] in peer.options]
        raise ValueError(
            f"expected no {foreign[0]} with attention={attention or 'near_far'!r}, got {options[foreign[0]]!r}; "
            f"it belongs to {', '.join(whose)}"
        )
    return None


def _peer_arguments(peer: str, shared: dict[str, Any]) -> dict[str, Any]:
    """What blocks of a peer are given of the model's arguments."""
    for name in ("rope_in_routing", "learned_scale", "freeze_surrogates"):
        if shared[name]:
            raise ValueError(f"expected no {name} with attention={peer!r}, got {name}={shared[name]!r}; leave it out")
    return {"local_branch": shared["local_branch"]}


def _grid_size(img_size: int | tuple[int, int], patch_size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    down, across = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    if min(height, width, down, across) < 1:
        raise ValueError(f"expected img_size and patch_size >= 1, got {img_size=} {patch_size=}")
    return -(-height // down), -(-width // across)


def _check(
    stem: str, attn_layer: str, options: dict[str, Any], dynamic_img_size: bool, timm_arguments: dict[str, Any]
) -> None:
    check_choice("stem", stem, tuple(STEMS))
    check_choice("attn_layer", attn_layer, tuple(ATTN_LAYERS))
    given = [name for name, value in options.items() if value is not None]
    if attn_layer != "cast" and given:
        name = given[0]
        raise ValueError(
            f"expected attn_layer='cast' with {name}={options[name]!r}, got {attn_layer=}; leave one of them out"
        )
    if not dynamic_img_size:
        raise ValueError("expected dynamic_img_size=True: these models take any image size; leave it out")
    if timm_arguments.get("patch_drop_rate"):
        raise ValueError("expected patch_drop_rate=0: dropped tokens would tear the grid that clusters rely on")


def check_images(x: Any, in_chans: int) -> None:
    """Refuse what the stem would refuse in its own words; FX hands a proxy, of which nothing can be asked."""
    if not isinstance(x, Tensor):
        return
    if x.ndim != 4 or x.shape[1] != in_chans:
        raise ValueError(
            f"expected images (B, {in_chans}, height, width), got {tuple(x.shape)}; "
            "convert the images, or create the model with in_chans of their channels"
        )
    if not x.is_floating_point():
        raise TypeError(f"expected floating-point images, got {x.dtype}; scale and normalise them first")


def refuse_masks(attn_mask: Tensor | None, is_causal: bool) -> None:
    """Raise a ValueError where timm's full attention would mask pairs of tokens."""
    if isinstance(attn_mask, Tensor) or (isinstance(is_causal, bool) and is_causal):
        raise ValueError(
            "expected no attn_mask and is_causal=False: clusters have no pairwise mask; use token_mask if taken"
        )
