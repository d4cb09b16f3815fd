"""CAST attention on queries, keys and values that are given: the functional front end.

Reference: van Engelenhoven, Strisciuglio, Talavera, *CAST: Clustering Self-Attention using Surrogate Tokens for
Efficient Transformers*, arXiv 2402.04239. This is our reading of it; no official code is public.

    paper          here            shape       meaning
    X W_q, W_k, W_v  q, k, v       B, H, N, D  projections of the tokens
    S              surrogates      H, M, D     learnable surrogate tokens, one per cluster and head
    N_c            M               int         number of clusters
    kappa          K               int         tokens per cluster
    phi            phi             B, N, 1     does a token lean on its query or on its key side?
    A_g            routing score   B, N, M     affinity of tokens and clusters, one clustering for all heads

Differs from the paper in: *joint* mixing (the default) puts the members of a token's own cluster and the summaries of
the others in one softmax, with log n_c added to a summary that stands for n_c tokens; the paper's mixing
(``mixing="surrogate"``) weighs whole clusters by a softmax over surrogates. Prefix tokens, token masks, the Laplace
function's normalisation and the controls (random, window, no summaries) are ours too.
"""

import difflib
from typing import Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from castvision.ops import _reference
from castvision.ops._functions import laplace
from castvision.ops.routing import ASSIGNMENTS, Routing, make_routing

MIXINGS = ("joint", "surrogate")
ACTIVATIONS = ("softmax", "laplace")
ROUTING_SCORES = ("affinity", "linear")
BACKENDS = ("fused", "reference")


def cast_attention(  # noqa: PLR0913 - every option of the mechanism, each with its name
    q: Tensor,
    k: Tensor,
    v: Tensor,
    surrogates: Tensor,
    phi: Tensor,
    *,
    routing: Routing | None = None,
    cluster_size: int | None = None,
    assignment: str = "sa_topk",
    mixing: str = "joint",
    num_prefix_tokens: int = 0,
    q_route: Tensor | None = None,
    k_route: Tensor | None = None,
    token_mask: Tensor | None = None,
    grid_size: tuple[int, int] | None = None,
    scale: float | None = None,
    activation: str = "softmax",
    laplace_norm: bool = False,
    summaries: bool = True,
    routing_score: str = "affinity",
    dropout_p: float = 0.0,
    seed: int = 0,
    backend: str = "fused",
) -> tuple[Tensor, Routing]:
    """Attention inside clusters of tokens, combined with summaries of the other clusters.

    Args:
        q: Queries, (B, H, P + N, D): prefix tokens first.
        k: Keys, (B, H, P + N, D).
        v: Values, (B, H, P + N, D).
        surrogates: Surrogate tokens, (H, M, D).
        phi: Lean of each token, (B, N, 1), any real number; 0 leans on neither side.
        routing: Clusters to use instead of routing anew, for N tokens; positions in it do not count the prefix.
        cluster_size: K, at least ceil(N / M) for a partition. Default: ceil(N / M).
        assignment: "sa_topk" (a partition), "topk" (clusters may overlap), "random" or "window".
        mixing: "joint" (ours) or "surrogate" (the paper's).
        num_prefix_tokens: P, class and register tokens: keys for everyone, never routed.
        q_route: Queries (B, H, P + N, D) for routing and for the paper's mixing, e.g. before rotary positions; None: q.
        k_route: Keys (B, H, P + N, D) for routing and summaries; None: k.
        token_mask: True where a token is real, (B, N) bool; others act as padding and give 0.
        grid_size: (rows, cols) with rows * cols = N, for "window".
        scale: Factor of the logits. Default: D ** -0.5.
        activation: "softmax" or "laplace".
        laplace_norm: Divide Laplace weights by the number of keys.
        summaries: False: attention inside own clusters only (a control).
        routing_score: "affinity" (step 1 of the paper) or "linear", a cheaper definition.
        dropout_p: Dropout of the attention weights (paper's mixing: of those inside clusters), in [0, 1).
        seed: Of dropout and of the "random" assignment.
        backend: "fused" (O(N) memory) or "reference" (dense, slow, obvious; no dropout).

    Returns:
        Output (B, H, P + N, D) in v's dtype, and the routing it used.

    Raises:
        ValueError: A shape, an option or a combination that does not fit; the message says which and what would.
        TypeError: Operands of different dtypes.
    """
    _check_choices(assignment=assignment, mixing=mixing, activation=activation, routing_score=routing_score)
    check_choice("backend", backend, BACKENDS)
    num_tokens = _check_shapes(q, k, v, surrogates, phi, num_prefix_tokens, token_mask)
    if not 0 <= dropout_p < 1 or (dropout_p and backend == "reference"):
        raise ValueError(f"expected 0 <= dropout_p < 1, and 0 for the reference back end, got {dropout_p=} {backend=}")
    p = num_prefix_tokens
    own_q = None if q_route is None else q_route[:, :, p:]
    own_k = None if k_route is None else k_route[:, :, p:]
    if routing is None:
        index = _new_index(
            q[:, :, p:] if own_q is None else own_q, k[:, :, p:] if own_k is None else own_k, surrogates, phi,
            token_mask, cluster_size, assignment, activation, routing_score, grid_size, seed,
        )  # fmt: skip
        routing = make_routing(index, num_tokens, is_partition=assignment != "topk")
    _check_routing(routing, surrogates, num_tokens, q.shape[0])
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if backend == "reference":
        out = _reference.cast_attention(
            q, k, v, surrogates, phi, routing.index, p, own_q, own_k, token_mask,
            scale, mixing, activation, laplace_norm, summaries,
        )  # fmt: skip
        return out, routing
    rows = attend(
        q, k, v, surrogates, phi, routing.index, p, own_q, own_k, token_mask,
        torch.tensor(seed) if dropout_p else None, scale, mixing, activation, laplace_norm, summaries,
        routing.is_partition, dropout_p,
    )  # fmt: skip
    return rows.view(*rows.shape[:2], q.shape[1], q.shape[3]).transpose(1, 2), routing


def attend(  # noqa: PLR0913 - traced by FX and TorchScript, which want plain arguments
    q: Tensor,
    k: Tensor,
    v: Tensor,
    surrogates: Tensor,
    phi: Tensor,
    index: Tensor,
    num_prefix_tokens: int,
    q_route: Optional[Tensor],  # noqa: UP045
    k_route: Optional[Tensor],  # noqa: UP045
    token_mask: Optional[Tensor],  # noqa: UP045
    seed: Optional[Tensor],  # noqa: UP045
    scale: float,
    mixing: str,
    activation: str,
    laplace_norm: bool,
    summaries: bool,
    is_partition: bool,
    dropout_p: float,
) -> Tensor:
    """The fused back end without checks, as rows (B, P + N, C); arguments as :func:`cast_attention` explains them.

    q_route and k_route come without their prefix tokens.
    """
    prefix_k: Optional[Tensor] = None  # noqa: UP045
    prefix_v: Optional[Tensor] = None  # noqa: UP045
    own_q, own_k, own_v = q, k, v
    if num_prefix_tokens > 0:
        prefix_k, prefix_v = k[:, :, :num_prefix_tokens], v[:, :, :num_prefix_tokens]
        own_q, own_k, own_v = q[:, :, num_prefix_tokens:], k[:, :, num_prefix_tokens:], v[:, :, num_prefix_tokens:]
    out: Tensor = torch.ops.castvision.attend(
        own_q, own_k, own_v, surrogates, phi, index, prefix_k, prefix_v, q_route, k_route, token_mask, seed,
        scale, mixing, activation, laplace_norm, summaries, is_partition, dropout_p,
    )[0].flatten(2)  # fmt: skip
    if num_prefix_tokens > 0:
        first = attend_prefix(
            q[:, :, :num_prefix_tokens], k, v, token_mask, num_prefix_tokens, scale, activation, laplace_norm, dropout_p
        )
        out = torch.cat([first.transpose(1, 2).flatten(2), out], dim=1)
    return out


def attend_prefix(  # noqa: PLR0913
    q: Tensor,
    k: Tensor,
    v: Tensor,
    token_mask: Optional[Tensor],  # noqa: UP045
    num_prefix_tokens: int,
    scale: float,
    activation: str,
    laplace_norm: bool,
    dropout_p: float,
) -> Tensor:
    """Prefix queries (B, H, P, D) attend to all P + N tokens with plain f; (B, H, P, D)."""
    seen: Optional[Tensor] = None  # noqa: UP045
    if token_mask is not None:
        seen = F.pad(token_mask, (num_prefix_tokens, 0), value=1.0)[:, None, None]  # B, 1, 1, P + N
    if activation == "softmax":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout_p, scale=scale)
    logits = q @ k.transpose(-1, -2) * scale
    weight = laplace(logits if logits.dtype == torch.float64 else logits.float())
    if laplace_norm:
        weight = weight / k.shape[2] if seen is None else weight / seen.sum(-1, keepdim=True)
    if seen is not None:
        weight = weight * seen
    return F.dropout(weight, dropout_p).to(v.dtype) @ v


def _new_index(  # noqa: PLR0913
    q: Tensor,
    k: Tensor,
    surrogates: Tensor,
    phi: Tensor,
    token_mask: Tensor | None,
    cluster_size: int | None,
    assignment: str,
    activation: str,
    routing_score: str,
    grid_size: tuple[int, int] | None,
    seed: int,
) -> Tensor:
    num_tokens, num_clusters = q.shape[2], surrogates.shape[1]
    least = -(-num_tokens // num_clusters)
    size = least if cluster_size is None else cluster_size
    if not 1 <= size <= num_tokens or (size < least and assignment in ("sa_topk", "random")):
        raise ValueError(
            f"expected 1 <= cluster_size <= N, and M * cluster_size >= N for a partition, got cluster_size={size}, "
            f"N={num_tokens}, M={num_clusters}; give at least {least} or leave it out"
        )
    if assignment == "window":
        if grid_size is None or grid_size[0] * grid_size[1] != num_tokens:
            raise ValueError(f"expected grid_size=(rows, cols) with rows * cols = {num_tokens}, got {grid_size=}")
    if assignment in ("window", "random"):
        rows, cols = grid_size or (0, 0)
        return torch.ops.castvision.fixed_clusters(q, num_clusters, size, rows, cols, seed, assignment)  # type: ignore[no-any-return]
    return torch.ops.castvision.route(  # type: ignore[no-any-return]
        q, k, surrogates, phi, token_mask, size, assignment, activation, routing_score
    )


def check_choice(name: str, value: str, options: tuple[str, ...]) -> None:
    """Raise a ValueError that lists the options, and the nearest, unless ``value`` is one of them."""
    if value in options:
        return
    near = difflib.get_close_matches(str(value), options, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"expected {name} to be one of {', '.join(options)}, got {value!r}{hint}")


def _check_choices(assignment: str, mixing: str, activation: str, routing_score: str) -> None:
    check_choice("assignment", assignment, ASSIGNMENTS)
    check_choice("mixing", mixing, MIXINGS)
    check_choice("activation", activation, ACTIVATIONS)
    check_choice("routing_score", routing_score, ROUTING_SCORES)


def _check_shapes(  # noqa: PLR0913
    q: Tensor, k: Tensor, v: Tensor, surrogates: Tensor, phi: Tensor, num_prefix_tokens: int, token_mask: Tensor | None
) -> int:
    if q.ndim != 4 or q.shape != k.shape or q.shape != v.shape:
        raise ValueError(
            f"expected q, k, v of one shape (B, H, N, D), got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if not q.is_floating_point() or not q.dtype == k.dtype == v.dtype:
        raise TypeError(f"expected q, k, v of one floating dtype, got {q.dtype}, {k.dtype}, {v.dtype}; cast them first")
    num_tokens = q.shape[2] - num_prefix_tokens
    if num_prefix_tokens < 0 or num_tokens < 1:
        raise ValueError(f"expected 0 <= num_prefix_tokens < {q.shape[2]} tokens, got {num_prefix_tokens=}")
    if surrogates.ndim != 3 or surrogates.shape[0] != q.shape[1] or surrogates.shape[2] != q.shape[3]:
        raise ValueError(f"expected surrogates (H={q.shape[1]}, M, D={q.shape[3]}), got {tuple(surrogates.shape)}")
    if surrogates.shape[1] < 1:
        raise ValueError("expected at least one surrogate token, got M=0")
    if phi.shape != (q.shape[0], num_tokens, 1):
        raise ValueError(f"expected phi ({q.shape[0]}, {num_tokens}, 1), got {tuple(phi.shape)}")
    if token_mask is not None and (token_mask.shape != (q.shape[0], num_tokens) or token_mask.dtype != torch.bool):
        raise ValueError(
            f"expected token_mask ({q.shape[0]}, {num_tokens}) bool, got {tuple(token_mask.shape)} {token_mask.dtype}"
        )
    return num_tokens


def _check_routing(routing: Routing, surrogates: Tensor, num_tokens: int, batch: int) -> None:
    index = routing.index
    if index.ndim != 3 or index.shape[0] != batch or index.shape[1] != surrogates.shape[1]:
        raise ValueError(
            f"expected a routing with index (B={batch}, M={surrogates.shape[1]}, K), got {tuple(index.shape)}; "
            "resample the surrogates to as many clusters (resample_surrogates)"
        )
    if routing.inverse is not None and routing.inverse.shape[1] != num_tokens:
        raise ValueError(f"expected a routing of N={num_tokens} tokens, got one of {routing.inverse.shape[1]}")
    if routing.offsets is not None and routing.offsets.shape[1] != num_tokens + 1:
        raise ValueError(f"expected a routing of N={num_tokens} tokens, got one of {routing.offsets.shape[1] - 1}")
