"""Clustered attention as a module with timm's signature: owns the projections and, for the paper's, the surrogates.

The mathematics stands in :mod:`castvision.ops.near_far` and :mod:`castvision.ops.paper`. Annotations here are those
TorchScript reads (no postponed ones).
"""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from timm.layers import apply_rot_embed_cat, register_notrace_module
from torch import Tensor, nn

from castvision.ops import AttentionOptions, Routing, cast_attention, make_options, resample_surrogates
from castvision.ops.arithmetic import is_eager
from castvision.ops.partitions import cluster_grid
from castvision.ops.surrogates import cluster_sums, resampling_matrix, routing_features

DEFAULT_SURROGATES = 16
"""Surrogates with parameters, where neither their number nor a grid is given."""


@register_notrace_module  # sizes of windows and clusters follow the grid, which FX cannot
class CastAttention(nn.Module):
    """Self-attention to the tokens near by one by one, and to all others through clusters.

    Takes the place of timm's ``Attention``: ``timm.create_model("vit_…", attn_layer=CastAttention)`` works. By
    default it has no parameter but timm's, so weights of a plain ViT load strictly.

    Args:
        dim: C.
        num_heads: H.
        attn_head_dim: D. Default: C // H.
        dim_out: Width of the output. Default: C.
        qkv_bias: Bias of ``qkv`` (and of the gate).
        qk_norm: Normalise queries and keys.
        scale_norm: Normalise the attention output before ``proj``.
        proj_bias: Bias of ``proj``.
        gated: Sigmoid gate on the attention output.
        attn_drop: Dropout of attention weights.
        proj_drop: Dropout of the output.
        norm_layer: For ``qk_norm`` and ``scale_norm``.
        num_prefix_tokens: Class and register tokens in front, which are not clustered.
        local_branch: Add a depthwise 3x3 convolution of the values on the token grid, zero at the start.
        rope_in_routing: Form clusters on queries and keys after rotary positions rather than before: of places more
            than of content. Default: for the paper's attention only.
        learned_scale: A learned factor of the logits per head, 1 at the start.
        freeze_surrogates: Learned surrogates keep their random start (a control).
        grid_size: (rows, cols) at the native size: for the number of surrogates with parameters, and says that
            ``forward`` will be given the grid, as ``local_branch`` and assignment="blocks" need.
        seed: Of assignment="random"; give each layer its own.
        device: Of the parameters.
        dtype: Of the parameters.
        **options: ``attention="near_far"`` or ``"paper"``, and any field of :class:`castvision.ops.AttentionOptions`.

    Raises:
        ValueError: A size below 1, an unknown choice, choices that exclude each other, a grid that is needed and
            missing.
        TypeError: An unknown argument.
    """

    options: AttentionOptions
    surrogate_means: Tensor | None

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        attn_head_dim: int | None = None,
        dim_out: int | None = None,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        gated: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: Callable[..., nn.Module] | None = None,
        num_prefix_tokens: int = 0,
        local_branch: bool = False,
        rope_in_routing: bool | None = None,
        learned_scale: bool = False,
        freeze_surrogates: bool = False,
        grid_size: tuple[int, int] | None = None,
        seed: int = 0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if num_heads < 1 or (attn_head_dim is None and dim % num_heads):
            raise ValueError(f"expected dim divisible by num_heads, got {dim=} {num_heads=}; or give attn_head_dim")
        self.options = make_options(**options)
        if (self.options.assignment == "blocks" or local_branch) and grid_size is None:
            raise ValueError(
                "expected grid_size with assignment='blocks' or local_branch=True, got None; give the token grid as "
                "(rows, cols), and pass it to forward"
            )
        norm = norm_layer or nn.LayerNorm
        self.num_heads = num_heads
        self.head_dim = attn_head_dim or dim // num_heads
        self.attn_dim = num_heads * self.head_dim
        self.scale = self.head_dim**-0.5
        self.num_prefix_tokens = num_prefix_tokens
        self.rope_in_routing = self.options.mixing == "surrogate" if rope_in_routing is None else rope_in_routing
        self.seed = seed

        self.qkv = nn.Linear(dim, 3 * self.attn_dim, bias=qkv_bias, device=device, dtype=dtype)
        self.q_norm = norm(self.head_dim, device=device, dtype=dtype) if qk_norm else nn.Identity()
        self.k_norm = norm(self.head_dim, device=device, dtype=dtype) if qk_norm else nn.Identity()
        self.surrogate_tokens: nn.Parameter | None = None
        self.phi: nn.Linear | None = None
        means: Tensor | None = None
        if self.options.surrogates != "sampled":
            number = self.options.num_clusters or _number_of_surrogates(grid_size)
            self.options = self.options._replace(num_clusters=number)
            if self.options.surrogates == "learned":
                tokens = torch.empty(num_heads, number, self.head_dim, device=device, dtype=dtype)
                self.surrogate_tokens = nn.Parameter(tokens, requires_grad=not freeze_surrogates)
                self.phi = nn.Linear(dim, 1, device=device, dtype=dtype)
            else:
                means = torch.empty(number, self.head_dim, device=device, dtype=torch.float32)
        elif freeze_surrogates:
            raise ValueError(
                "expected surrogates='learned' with freeze_surrogates=True: sampled ones have no parameters"
            )
        self.register_buffer("surrogate_means", means)
        self.log_scale: nn.Parameter | None = None
        if learned_scale:
            self.log_scale = nn.Parameter(torch.empty(num_heads, device=device, dtype=dtype))
        self.local_conv: nn.Conv2d | None = None
        if local_branch:
            self.local_conv = nn.Conv2d(
                self.attn_dim, self.attn_dim, 3, padding=1, groups=self.attn_dim, device=device, dtype=dtype
            )
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = norm(self.attn_dim, device=device, dtype=dtype) if scale_norm else nn.Identity()
        self.gate = nn.Linear(dim, self.attn_dim, bias=qkv_bias, device=device, dtype=dtype) if gated else None
        self.proj = nn.Linear(self.attn_dim, dim_out or dim, bias=proj_bias, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Surrogates N(0, 1), phi, local_conv and log_scale zero; the other layers as their owner says.

        Averaged surrogates are zero until the first batch of training: then those of its first image.
        """
        if self.surrogate_tokens is not None:
            nn.init.normal_(self.surrogate_tokens)
        if self.surrogate_means is not None:
            nn.init.zeros_(self.surrogate_means)
        zero = [*(() if self.phi is None else self.phi.parameters())]
        zero += [*(() if self.local_conv is None else self.local_conv.parameters())]
        for parameter in zero if self.log_scale is None else [*zero, self.log_scale]:
            nn.init.zeros_(parameter)

    @torch.jit.ignore
    def set_num_clusters(self, num_clusters: int | None) -> None:
        """Form another number of clusters; surrogates with parameters are resampled, what was frozen stays frozen."""
        if self.surrogate_tokens is not None and num_clusters is not None:
            with torch.no_grad():
                surrogates = resample_surrogates(self.surrogate_tokens, num_clusters)
            self.surrogate_tokens = nn.Parameter(surrogates, requires_grad=self.surrogate_tokens.requires_grad)
        elif self.surrogate_means is not None and num_clusters is not None:
            self.surrogate_means = resample_surrogates(self.surrogate_means[None], num_clusters)[0]
        self.options = self.options._replace(num_clusters=num_clusters)

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        rope: Tensor | None = None,
        grid_size: list[int] | None = None,
        token_mask: Tensor | None = None,
        routing: Routing | None = None,
        return_routing: bool = False,
    ) -> Tensor:
        """Attend.

        Args:
            x: Tokens, (B, P + N, C).
            attn_mask: Refused: windows and clusters decide who sees whom.
            is_causal: Refused.
            rope: Rotary codes of the N grid tokens, (N, 2D) or (B, 1, N, 2D), or None.
            grid_size: (rows, cols) of the N tokens; where the tokens of several grids follow one another, so do their
                sizes: (rows, cols, rows, cols). None: the tokens are a sequence.
            token_mask: True where a token is real, (B, N) bool, or None.
            routing: Clusters to use instead of forming them.
            return_routing: Give ``(output, routing)``; in eager mode only.

        Returns:
            (B, P + N, dim_out), or the pair.

        Raises:
            ValueError: An attention mask or causal attention was asked for.
        """
        if attn_mask is not None or is_causal:
            raise ValueError("expected no attn_mask and is_causal=False: CAST has no pairwise mask; use token_mask")
        if not torch.jit.is_scripting():
            if is_eager() and x.shape[0] == 0 and not return_routing:  # nobody to form clusters of
                nothing: Tensor = self.proj(self.qkv(x)[..., : self.attn_dim])
                return nothing
        out, clusters = self._attend(x, rope, grid_size, token_mask, routing)
        out = self.norm(out)
        if self.gate is not None:
            out = out * self.gate(x).sigmoid()
        output: Tensor = self.proj_drop(self.proj(out))
        if not torch.jit.is_scripting():
            if return_routing:
                return cast(Tensor, (output, clusters))  # TorchScript wants one type
        return output

    def _attend(
        self,
        x: Tensor,
        rope: Tensor | None,
        grid_size: list[int] | None,
        token_mask: Tensor | None,
        routing: Routing | None,
    ) -> tuple[Tensor, Routing]:
        """Attention before the last projection, (B, P + N, H * D), and the clusters.

        On its own so that queries, keys and values are gone, where nothing saves them, when ``proj`` wants memory.
        """
        batch, length, _ = x.shape
        p = self.num_prefix_tokens
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim).unbind(2)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)  # B, P + N, H, D
        q_route: Tensor | None = None
        k_route: Tensor | None = None
        if rope is not None:
            codes = rope if rope.dim() == 4 else rope[None, None]
            codes = codes.transpose(1, 2)  # B or 1, N, 1, 2D
            if not self.rope_in_routing:
                q_route, k_route = q[:, p:], k[:, p:]
            turned_q = apply_rot_embed_cat(q[:, p:], codes).to(v.dtype)
            turned_k = apply_rot_embed_cat(k[:, p:], codes).to(v.dtype)
            q = torch.cat([q[:, :p], turned_q], 1) if p > 0 else turned_q
            k = torch.cat([k[:, :p], turned_k], 1) if p > 0 else turned_k
        surrogates, phi = self._surrogates(x, length - p, grid_size)
        means = self.surrogate_means
        if means is not None:
            surrogates = self._started(k[:, p:] if k_route is None else k_route, means)
        if self.log_scale is not None:
            factor = self.log_scale.exp()[:, None]  # H, 1
            if q_route is None:
                q_route = q[:, p:]  # clusters are formed without the factor
            q = (q * factor).to(v.dtype)
            if surrogates is not None and self.surrogate_tokens is not None:
                surrogates = surrogates * factor[..., None]
        drop = self.attn_drop.p if self.training else 0.0
        seed = self.seed
        if drop > 0.0:
            seed = int(torch.randint(2147483647, (1,)))
        out, clusters = cast_attention(
            q, k, v, self.options, grid_size, p, token_mask, q_route, k_route, surrogates, phi, routing, self.scale,
            drop, seed,
        )  # fmt: skip
        if self.training and surrogates is not None and self.surrogate_means is not None:
            self._move_means(k[:, p:] if k_route is None else k_route, surrogates, clusters)
        rows = out.flatten(2)
        if phi is not None and surrogates is not None and self.options.mixing == "joint":
            rows = rows + 0.0 * (phi.sum() + surrogates.sum())  # they only choose: zero, not None, as gradients
        if self.local_conv is not None:
            rows = rows + self._local(v[:, p:], grid_size, token_mask)
        return rows, clusters

    def _surrogates(
        self, x: Tensor, num_tokens: int, grid_size: list[int] | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Learned surrogates for this many tokens, and phi (B, N, 1); None where there are none."""
        lean: Tensor | None = None
        if self.phi is not None:
            lean = self.phi(x)[:, self.num_prefix_tokens :]  # sliced after: an export of the slice would fix the batch
        tokens = self.surrogate_tokens
        if tokens is None or lean is None:
            return None, None
        wanted = tokens.shape[1]
        size = self.options.cluster_size
        if size is not None:
            wanted = (num_tokens + size - 1) // size
        elif self.options.assignment == "blocks" and grid_size is not None:
            down, across = cluster_grid(
                grid_size[0], grid_size[1], self.options.num_clusters, self.options.cluster_factor
            )
            wanted = down * across + int(len(grid_size) > 2)  # the tokens of further grids are a block
        if wanted == tokens.shape[1]:
            return tokens, lean
        return torch.einsum("nm,hmd->hnd", resampling_matrix(tokens.detach(), wanted), tokens), lean

    def _started(self, k: Tensor, means: Tensor) -> Tensor:
        """Averaged surrogates, (M, D); as long as there are none, features of the first image's tokens."""
        number, tokens = means.shape[0], k.shape[1]
        evenly = torch.div(torch.arange(number, device=k.device) * tokens, number, rounding_mode="floor")
        return torch.where(means.any(), means, routing_features(k[:1])[0, evenly].to(means.dtype))

    def _move_means(self, k: Tensor, surrogates: Tensor, clusters: Routing) -> None:
        """Averaged surrogates take a step towards the means of those who joined them."""
        means, labels = self.surrogate_means, clusters.labels
        if means is None or labels is None:
            return
        if not torch.jit.is_scripting():
            if is_eager() and torch._C._current_graph_task_id() != -1:
                return  # checkpointing computes the block again, in the backward: the step has been taken
        count, total = cluster_sums(routing_features(k), labels, means.shape[0])
        count, total = count.sum(0), total.sum(0)  # M, 1 and M, D
        moved = torch.lerp((total / count.clamp(min=1.0)).to(means.dtype), surrogates, 0.99)  # a hundredth of the way
        with torch.no_grad():
            means.copy_(torch.where(count > 0, moved, surrogates))

    def _local(self, v: Tensor, grid_size: list[int] | None, token_mask: Tensor | None) -> Tensor:
        """Local branch of the values (B, N, H, D) as (B, P + N, C), zero for the prefix."""
        torch._assert(grid_size is not None, "expected grid_size with local_branch=True")
        rows = v.flatten(2)  # B, N, C
        if token_mask is not None:
            rows = rows.masked_fill(~token_mask[..., None], 0.0)
        sizes = [1, 1]
        if grid_size is not None:
            sizes = grid_size
        parts: list[Tensor] = []
        start = 0
        for i in range(0, len(sizes), 2):
            number = sizes[i] * sizes[i + 1]
            part = rows[:, start : start + number].transpose(1, 2).reshape(-1, self.attn_dim, sizes[i], sizes[i + 1])
            if self.local_conv is not None:
                part = self.local_conv(part)
            parts.append(part.flatten(2).transpose(1, 2))
            start += number
        out = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return nn.functional.pad(out, (0, 0, self.num_prefix_tokens, 0))


def _number_of_surrogates(grid_size: tuple[int, int] | None) -> int:
    if grid_size is None:
        return DEFAULT_SURROGATES
    return max(1, round(math.sqrt(grid_size[0] * grid_size[1])))
