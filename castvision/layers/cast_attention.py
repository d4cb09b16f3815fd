"""CAST attention as a module with timm's signature: owns the projections, the surrogate tokens and phi.

Reference: CAST, arXiv 2402.04239; the mathematics and the map of symbols are in :mod:`castvision.ops.attention`.
Annotations here are those TorchScript reads (no postponed ones).
"""

import math
from collections.abc import Callable
from typing import List, Optional, Tuple, cast  # noqa: UP035 - TorchScript reads these annotations

import torch
from timm.layers import apply_rot_embed_cat, register_notrace_function
from torch import Tensor, nn

from castvision.ops import ASSIGNMENTS, Routing, make_routing, resample_surrogates, window_size
from castvision.ops.attention import ACTIVATIONS, MIXINGS, ROUTING_SCORES, attend, check_choice


@register_notrace_function
def _limit(cluster_size: int, num_tokens: int) -> int:
    return min(cluster_size, num_tokens)


class CastAttention(nn.Module):
    """Self-attention inside learned clusters of tokens, joined with summaries of the other clusters.

    Takes the place of timm's ``Attention``: ``timm.create_model("vit_…", attn_layer=CastAttention)`` works, and weights
    of a plain ViT load into ``qkv``, ``q_norm``, ``k_norm`` and ``proj`` as they are.

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
        num_clusters: M, number of surrogate tokens; K is then ceil(N / M).
        cluster_size: K instead: as many clusters as N tokens need, with surrogates resampled from the M trained ones.
        assignment: "sa_topk", "topk", "random" or "window".
        mixing: "joint" (ours) or "surrogate" (the paper's).
        num_prefix_tokens: Class and register tokens in front, which are not clustered.
        local_branch: Add a depthwise 3x3 convolution of the values on the token grid, zero at the start.
        rope_in_routing: Route (and summarise) by queries and keys after rotary positions rather than before.
        activation: "softmax" or "laplace".
        laplace_norm: Divide Laplace weights by the number of keys.
        summaries: False: attention inside own clusters only (a control).
        routing_score: "affinity" or "linear".
        learned_scale: A learned factor of the logits per head, 1 at the start.
        freeze_surrogates: Surrogates keep their random start (a control).
        grid_size: Any (rows, cols): says that ``forward`` will be given the grid, as "window" and local_branch need.
        seed: Of the "random" assignment; give each layer its own.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: A size below 1, an unknown option, a grid that is needed and missing.
    """

    def __init__(  # noqa: PLR0913 - timm's signature and ours
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
        num_clusters: int = 16,
        cluster_size: int | None = None,
        assignment: str = "sa_topk",
        mixing: str = "joint",
        num_prefix_tokens: int = 0,
        local_branch: bool = False,
        rope_in_routing: bool = True,
        activation: str = "softmax",
        laplace_norm: bool = False,
        summaries: bool = True,
        routing_score: str = "affinity",
        learned_scale: bool = False,
        freeze_surrogates: bool = False,
        grid_size: tuple[int, int] | None = None,
        seed: int = 0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check(dim, num_heads, attn_head_dim, num_clusters, cluster_size)
        check_choice("assignment", assignment, ASSIGNMENTS)
        check_choice("mixing", mixing, MIXINGS)
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("routing_score", routing_score, ROUTING_SCORES)
        if (assignment == "window" or local_branch) and grid_size is None:
            raise ValueError(
                "expected grid_size with assignment='window' or local_branch=True, got None; give the token grid as "
                "(rows, cols), and pass it to forward"
            )
        norm = norm_layer or nn.LayerNorm
        self.num_heads = num_heads
        self.head_dim = attn_head_dim or dim // num_heads
        self.attn_dim = num_heads * self.head_dim
        self.scale = self.head_dim**-0.5
        self.num_prefix_tokens = num_prefix_tokens
        self.num_clusters = num_clusters
        self.cluster_size = cluster_size
        self.assignment, self.mixing = assignment, mixing
        self.activation, self.laplace_norm = activation, laplace_norm
        self.summaries, self.routing_score = summaries, routing_score
        self.rope_in_routing = rope_in_routing
        self.resamples = cluster_size is not None or assignment == "window"
        self.seed = seed

        self.qkv = nn.Linear(dim, 3 * self.attn_dim, bias=qkv_bias, device=device, dtype=dtype)
        self.q_norm = norm(self.head_dim, device=device, dtype=dtype) if qk_norm else nn.Identity()
        self.k_norm = norm(self.head_dim, device=device, dtype=dtype) if qk_norm else nn.Identity()
        surrogates = torch.empty(num_heads, num_clusters, self.head_dim, device=device, dtype=dtype)
        self.surrogate_tokens = nn.Parameter(surrogates, requires_grad=not freeze_surrogates)
        self.phi = nn.Linear(dim, 1, device=device, dtype=dtype)
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
        """Surrogates N(0, 1), phi, local_conv and log_scale zero; the other layers as their owner says."""
        nn.init.normal_(self.surrogate_tokens)
        nn.init.zeros_(self.phi.weight)
        nn.init.zeros_(self.phi.bias)
        if self.log_scale is not None:
            nn.init.zeros_(self.log_scale)
        if self.local_conv is not None:
            for parameter in self.local_conv.parameters():
                nn.init.zeros_(parameter)

    @torch.jit.ignore
    def set_num_clusters(self, num_clusters: int) -> None:
        """Resample the surrogate tokens to another number; what was frozen stays frozen."""
        with torch.no_grad():
            surrogates = resample_surrogates(self.surrogate_tokens, num_clusters)
        self.surrogate_tokens = nn.Parameter(surrogates, requires_grad=self.surrogate_tokens.requires_grad)
        self.num_clusters = num_clusters

    def forward(  # noqa: PLR0913 - timm's arguments, then ours
        self,
        x: Tensor,
        attn_mask: Optional[Tensor] = None,  # noqa: UP045
        is_causal: bool = False,
        rope: Optional[Tensor] = None,  # noqa: UP045
        grid_size: Optional[List[int]] = None,  # noqa: UP006, UP045
        token_mask: Optional[Tensor] = None,  # noqa: UP045
        routing: Optional[Routing] = None,  # noqa: UP045
        return_routing: bool = False,
    ) -> Tensor:
        """Attend.

        Args:
            x: Tokens, (B, P + N, C).
            attn_mask: Refused: clusters decide who sees whom.
            is_causal: Refused.
            rope: Rotary codes of the N grid tokens, (N, 2D) or (B, 1, N, 2D), or None.
            grid_size: (rows, cols) of the N tokens, where the layer was made for one; where the tokens of several grids
                follow one another, the sizes do too: (rows, cols, rows, cols).
            token_mask: True where a token is real, (B, N) bool, or None.
            routing: Clusters to use instead of routing anew.
            return_routing: Give ``(output, routing)``; in eager mode only.

        Returns:
            (B, P + N, dim_out), or the pair.

        Raises:
            ValueError: An attention mask or causal attention was asked for.
        """
        if isinstance(attn_mask, Tensor) or (isinstance(is_causal, bool) and is_causal):
            raise ValueError("expected no attn_mask and is_causal=False: CAST has no pairwise mask; use token_mask")
        out, index = self._attend(x, rope, grid_size, token_mask, routing)
        out = self.norm(out)
        if self.gate is not None:
            out = out * self.gate(x).sigmoid()
        output: Tensor = self.proj_drop(self.proj(out))
        if not torch.jit.is_scripting():
            if return_routing:
                num_tokens = x.shape[1] - self.num_prefix_tokens
                used = make_routing(index, num_tokens, is_partition=self.assignment != "topk")
                return cast(Tensor, (output, routing or used))  # TorchScript wants one type
        return output

    def _attend(
        self,
        x: Tensor,
        rope: Optional[Tensor],  # noqa: UP045
        grid_size: Optional[List[int]],  # noqa: UP006, UP045
        token_mask: Optional[Tensor],  # noqa: UP045
        routing: Optional[Routing],  # noqa: UP045
    ) -> Tuple[Tensor, Tensor]:  # noqa: UP006
        """Attention before the last projection, (B, P + N, H * D), and the index (B, M, K).

        On its own so that queries, keys and values are gone, where nothing saves them, when ``proj`` wants memory.
        """
        batch, length, _ = x.shape
        p = self.num_prefix_tokens
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim).unbind(2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # B, H, P + N, D
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        q_route, k_route = q[:, :, p:], k[:, :, p:]
        q_own: Optional[Tensor] = None  # noqa: UP045
        k_own: Optional[Tensor] = None  # noqa: UP045
        if rope is not None:
            q_turned, k_turned = apply_rot_embed_cat(q_route, rope), apply_rot_embed_cat(k_route, rope)
            if self.rope_in_routing:
                q_route, k_route = q_turned, k_turned
            else:
                q_own, k_own = q_route, k_route
            q = torch.cat([q[:, :, :p], q_turned], 2) if p > 0 else q_turned
            k = torch.cat([k[:, :, :p], k_turned], 2) if p > 0 else k_turned
        phi = self.phi(x)[:, p:]  # sliced after: an export of the slice would be tied to a batch other than 1
        surrogates, cluster_size = self._clusters(length - p, grid_size)
        if routing is not None:
            index = routing.index
        else:
            index = self._route(q_route, k_route, surrogates, phi, grid_size, token_mask, cluster_size)
        if self.log_scale is not None:  # the operator's scale is fixed: fold the learned factor into its operands
            factor = self.log_scale.exp()[:, None, None]
            q_own = q_route if q_own is None else q_own
            q, surrogates = (q * factor).to(v.dtype), surrogates * factor
        drop = self.attn_drop.p if self.training else 0.0
        seed: Optional[Tensor] = None  # noqa: UP045
        if drop > 0.0:
            seed = torch.randint(2147483647, (1,))
        out: Tensor = attend(
            q, k, v, surrogates, phi, index, p, q_own, k_own, token_mask, seed, self.scale, self.mixing,
            self.activation, self.laplace_norm, self.summaries, self.assignment != "topk", drop,
        )  # fmt: skip
        if self.local_conv is not None:
            out = out + self._local(v[:, :, p:], grid_size, token_mask)
        return out, index

    def _clusters(self, num_tokens: int, grid_size: Optional[List[int]]) -> Tuple[Tensor, int]:  # noqa: UP006, UP045
        """Surrogates (H, M, D) for this many tokens, and K."""
        surrogates = self.surrogate_tokens
        trained = surrogates.shape[1]
        if not self.resamples:
            return surrogates, (num_tokens + trained - 1) // trained
        size = (num_tokens + trained - 1) // trained
        if self.cluster_size is not None:
            size = _limit(self.cluster_size, num_tokens)
        wanted = (num_tokens + size - 1) // size
        if self.assignment == "window":
            torch._assert(grid_size is not None, "expected grid_size with assignment='window'")
            if grid_size is not None:
                height, width = window_size(grid_size[0], grid_size[1], size)
                down, across = (grid_size[0] + height - 1) // height, (grid_size[1] + width - 1) // width
                wanted = down * across
        matrix = torch.ops.castvision.resampling_matrix(surrogates.detach(), wanted)
        return torch.einsum("nm,hmd->hnd", matrix, surrogates), size

    def _route(  # noqa: PLR0913 - the operands of routing
        self,
        q: Tensor,
        k: Tensor,
        surrogates: Tensor,
        phi: Tensor,
        grid_size: Optional[List[int]],  # noqa: UP006, UP045
        token_mask: Optional[Tensor],  # noqa: UP045
        cluster_size: int,
    ) -> Tensor:
        """Index (B, M, K) of this layer's assignment."""
        if self.assignment == "window" or self.assignment == "random":
            rows, cols = 0, 0
            if grid_size is not None:
                rows, cols = grid_size[0], grid_size[1]
            fixed: Tensor = torch.ops.castvision.fixed_clusters(
                q, surrogates.shape[1], cluster_size, rows, cols, self.seed, self.assignment
            )
            return fixed
        index: Tensor = torch.ops.castvision.route(
            q, k, surrogates, phi, token_mask, cluster_size, self.assignment, self.activation, self.routing_score
        )
        return index

    def _local(
        self,
        v: Tensor,
        grid_size: Optional[List[int]],  # noqa: UP006, UP045
        token_mask: Optional[Tensor],  # noqa: UP045
    ) -> Tensor:
        """Local branch of the values (B, H, N, D) as (B, P + N, C), zero for the prefix."""
        torch._assert(grid_size is not None, "expected grid_size with local_branch=True")
        if token_mask is not None:
            v = v * token_mask[:, None, :, None]
        sizes: List[int] = [1, 1]  # noqa: UP006
        if grid_size is not None:
            sizes = grid_size
        if len(sizes) == 2:
            out = self._local_on_grid(v, sizes[0], sizes[1])
        else:
            parts: List[Tensor] = []  # noqa: UP006
            start = 0
            for i in range(0, len(sizes), 2):
                number = sizes[i] * sizes[i + 1]
                parts.append(self._local_on_grid(v.narrow(2, start, number), sizes[i], sizes[i + 1]))
                start += number
            out = torch.cat(parts, 1)
        return nn.functional.pad(out, (0, 0, self.num_prefix_tokens, 0)) if self.num_prefix_tokens > 0 else out

    def _local_on_grid(self, v: Tensor, rows: int, cols: int) -> Tensor:
        """Values (B, H, rows * cols, D) of one grid as (B, rows * cols, C)."""
        grid = v.transpose(2, 3).reshape(v.shape[0], self.attn_dim, rows, cols)  # B, C, rows, cols
        conv = self.local_conv
        if conv is not None:
            grid = conv(grid)
        return grid.flatten(2).transpose(1, 2)


def _check(dim: int, num_heads: int, attn_head_dim: int | None, num_clusters: int, cluster_size: int | None) -> None:
    if num_heads < 1 or (attn_head_dim is None and dim % num_heads):
        raise ValueError(f"expected dim divisible by num_heads, got {dim=} {num_heads=}; or give attn_head_dim")
    if num_clusters < 1:
        raise ValueError(f"expected num_clusters >= 1, got {num_clusters=}; about sqrt(N) is a good number")
    if cluster_size is not None and cluster_size < 1:
        raise ValueError(f"expected cluster_size >= 1 or None, got {cluster_size=}")


def default_num_clusters(num_tokens: int) -> int:
    """round(sqrt(N)): clusters and cluster size grow alike, near the cheapest choice."""
    return max(1, round(math.sqrt(num_tokens)))
