"""Clustered attention on queries, keys and values that are given: the front end, for users and layers alike.

It checks, has the clusters formed, and chooses the implementation, here and nowhere else:

    near and far   :mod:`.near_far`, or on a CPU in eager mode :mod:`.streaming`
    the paper's    :mod:`.paper`
    the oracles    :mod:`.reference`, for tests

It keeps no keyword-only arguments, since TorchScript knows none; do give the options by name.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from castvision.ops import near_far, paper, reference, streaming
from castvision.ops.arithmetic import arithmetic_dtype, is_eager, is_exporting, on_cpu
from castvision.ops.options import AttentionOptions, Operands, check_choice
from castvision.ops.partitions import Routing, check_routing, cluster_grid, unpadded, window_index, window_size_for
from castvision.ops.surrogates import form_clusters

BACKENDS = ("fast", "reference")

WORTH_SPLITTING = 128
"""Places off the grid, of an image's windows, from which on it is faster to go through windows by their sizes."""


def cast_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    options: AttentionOptions,
    grid_size: list[int] | None = None,
    num_prefix_tokens: int = 0,
    token_mask: Tensor | None = None,
    q_route: Tensor | None = None,
    k_route: Tensor | None = None,
    surrogate_tokens: Tensor | None = None,
    phi: Tensor | None = None,
    routing: Routing | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    backend: str = "fast",
) -> tuple[Tensor, Routing]:
    """Attention of tokens to their neighbours one by one, and to clusters of all others through summaries.

    ``cast_attention(q, k, v, make_options(), [64, 64])`` is near and far on a grid of 64 x 64 tokens. Differentiable in
    all floating operands; memory O(N) forward and backward in eager mode.

    Args:
        q: Queries, (B, P + N, H, D): prefix tokens first, then the tokens of the grid row by row.
        k: Keys, (B, P + N, H, D).
        v: Values, (B, P + N, H, D).
        options: Which attention, see :func:`castvision.ops.make_options`.
        grid_size: (rows, cols) of the N tokens. Where further grids follow, (rows, cols, rows, cols, …): they take
            part in clusters, and each is a window of its own. None: no grid, windows are runs of ``window_size ** 2``
            tokens.
        num_prefix_tokens: P, class and register tokens: everybody's keys, never clustered; as queries they see all
            tokens.
        token_mask: True where a token is real, (B, N) bool; others change nothing and give 0.
        q_route: Queries (B, N, H, D) for learned surrogates, e.g. before rotary positions; None: those of ``q``.
        k_route: Keys (B, N, H, D) that clusters are formed on; None: those of ``k``.
        surrogate_tokens: (H, M, D) for surrogates="learned", (M, D) for "averaged"; else None.
        phi: Lean of each token, (B, N, 1), for surrogates="learned".
        routing: Clusters to use instead of forming them.
        scale: Factor of the logits. Default: D ** -0.5.
        dropout_p: Dropout of the attention weights, in [0, 1).
        seed: Of assignment="random".
        backend: "fast", or "reference": dense, slow, obvious; no dropout.

    Returns:
        Output (B, P + N, H, D) in v's dtype, and the clusters.

    Raises:
        ValueError: A shape, an option or a routing that does not fit; the message says which and what would.
        TypeError: Operands of different dtypes.
    """
    p = num_prefix_tokens
    if not torch.jit.is_scripting():
        _check(q, k, v, options, grid_size, p, token_mask, surrogate_tokens, phi, dropout_p, backend)
        _check_routes(q, p, q_route, k_route)
        if routing is not None:
            parameters = None if surrogate_tokens is None else surrogate_tokens.shape[-2]
            check_routing(routing, options.assignment, q.shape[0], q.shape[1] - p, parameters)
        if not q.is_meta and torch.is_autocast_enabled(q.device.type):  # it would round routing and sums
            with torch.autocast(q.device.type, enabled=False):
                return cast_attention(
                    q, k, v, options, grid_size, p, token_mask, q_route, k_route, surrogate_tokens, phi, routing, scale,
                    dropout_p, seed, backend,
                )  # fmt: skip
        nobody, given = is_eager() and q.shape[0] == 0, routing
        if nobody:  # one blank image, left out in the end: shapes and gradients are those of other batches
            q, k, v, routing = _blank(q), _blank(k), _blank(v), None
            token_mask, phi, q_route, k_route = (
                None if x is None else _blank(x) for x in (token_mask, phi, q_route, k_route)
            )
    dtype, working = v.dtype, arithmetic_dtype(v)
    q, k, v = q.to(working), k.to(working), v.to(working)
    if token_mask is not None:  # whatever masked tokens hold, NaN too, reaches nobody
        hidden = ~F.pad(token_mask, (p, 0), value=1.0)[:, :, None, None]
        q, k, v = q.masked_fill(hidden, 0.0), k.masked_fill(hidden, 0.0), v.masked_fill(hidden, 0.0)
        blank = ~token_mask[:, :, None]
        if q_route is not None:
            q_route = q_route.masked_fill(blank[..., None], 0.0)
        if k_route is not None:
            k_route = k_route.masked_fill(blank[..., None], 0.0)
        if phi is not None:
            phi = phi.masked_fill(blank, 0.0)
    x, exact_q = _split(q, k, v, p, token_mask, float(q.shape[3]) ** -0.5 if scale is None else scale)
    grid = [1, x.q.shape[1]] if grid_size is None else grid_size
    clusters = routing
    if clusters is None:
        first, second = x.q if q_route is None else q_route, x.k if k_route is None else k_route
        clusters = form_clusters(first, second, options, grid, token_mask, surrogate_tokens, phi, seed)
    chosen = torch.zeros([q.shape[0], 0], dtype=torch.long, device=q.device)
    if options.mixing == "surrogate":
        out = _attend_paper(x, options, q_route, k_route, surrogate_tokens, phi, clusters, dropout_p, backend)
    else:
        out = _attend_near_far(
            x, options, _windows(options, grid, grid_size is not None, clusters, x.q), clusters, dropout_p, backend
        )
        if options.anchors > 0:
            chosen = near_far.choose_anchors(
                x.q, options.anchors, options.anchor_selection, grid[0], grid[1], token_mask
            )
            exact_q = torch.cat([exact_q, near_far.gather_tokens(x.q, chosen[:, None])[:, 0]], 1)
    if p > 0 or options.anchors > 0:
        exact = _attend_to_all(exact_q, k, v, token_mask, p, options, x.scale, dropout_p)
        if options.anchors > 0:
            out = near_far.share_differences(x.q, out, chosen, exact[:, p:], x.scale)
            if token_mask is not None:
                out = out.masked_fill(~token_mask[:, :, None, None], 0.0)
        out = torch.cat([exact[:, :p], out], 1)
    if not torch.jit.is_scripting():
        if nobody:
            labels, index = (None if x is None else x[:0] for x in (clusters.labels, clusters.index))
            return out[:0].to(dtype), clusters._replace(labels=labels, index=index) if given is None else given
    return out.to(dtype), clusters


def _blank(x: Tensor) -> Tensor:
    """One image of zeros in place of none."""
    return F.pad(x, [0] * (2 * x.ndim - 1) + [1])


def _split(
    q: Tensor, k: Tensor, v: Tensor, num_prefix_tokens: int, token_mask: Tensor | None, scale: float
) -> tuple[Operands, Tensor]:
    """Operands of the patch tokens, and the queries of the prefix tokens."""
    if num_prefix_tokens == 0:
        return Operands(q, k, v, None, None, token_mask, scale), q[:, :0]
    sizes = [num_prefix_tokens, q.shape[1] - num_prefix_tokens]  # split, since a slice's gradient is all of zeros
    prefix_q, q = q.split_with_sizes(sizes, 1)
    prefix_k, k = k.split_with_sizes(sizes, 1)
    prefix_v, v = v.split_with_sizes(sizes, 1)
    return Operands(q, k, v, prefix_k, prefix_v, token_mask, scale), prefix_q


def _attend_near_far(
    x: Operands, options: AttentionOptions, windows: list[Tensor], routing: Routing, dropout_p: float, backend: str
) -> Tensor:
    center: Tensor | None = None
    if options.summaries == "query_weighted":
        center = near_far.mean_query(x.q, x.token_mask)
    labels = routing.labels
    if options.summaries == "none":
        labels = None
    if not torch.jit.is_scripting():
        if backend == "reference":
            return reference.near_far(x, windows, labels, routing.num_clusters, center)
        if is_eager() and on_cpu(x.q) and dropout_p == 0.0:
            return streaming.near_far(x, windows, labels, routing.num_clusters, center)
    return near_far.near_far(x, windows, labels, routing.num_clusters, center, dropout_p)


def _attend_paper(
    x: Operands,
    options: AttentionOptions,
    q_route: Tensor | None,
    k_route: Tensor | None,
    surrogates: Tensor | None,
    phi: Tensor | None,
    routing: Routing,
    dropout_p: float,
    backend: str,
) -> Tensor:
    index, out = routing.index, x.q
    torch._assert(surrogates is not None and phi is not None and index is not None, "expected surrogates and phi")
    if surrogates is not None and phi is not None and index is not None:
        if not torch.jit.is_scripting():
            if backend == "reference":
                return reference.paper_attention(x, surrogates, phi, index, q_route, k_route, options)
        partition = options.assignment != "topk"
        out = paper.paper_attention(x, surrogates, phi, index, partition, q_route, k_route, options, dropout_p)
    return out


def _windows(
    options: AttentionOptions, grid: list[int], has_grid: bool, routing: Routing, like: Tensor
) -> list[Tensor]:
    """Index of whom each token sees one by one, (1 or B, W, K) for each size of window; together a partition of N."""
    index = routing.index
    if options.neighborhood == "cluster" and index is not None:
        return [index]
    rows, cols = grid[0], grid[1]
    given = options.window_size
    size = window_size_for(rows, cols) if given is None else given
    height, width = size, size
    if not has_grid:
        height, width = 1, size * size
    num_tokens = like.shape[1]
    first = window_index(rows, cols, height, width, options.shift_windows, like)
    windows = [torch.where(first == rows * cols, num_tokens, first)[None]]
    if not torch.jit.is_scripting():
        if is_eager() and on_cpu(like) and first.numel() - rows * cols >= WORTH_SPLITTING:
            windows = unpadded(windows[0][0], num_tokens)
    start = rows * cols
    for i in range(2, len(grid), 2):
        number = grid[i] * grid[i + 1]
        windows.append(torch.arange(start, start + number, device=like.device)[None, None])
        start += number
    return windows


def _attend_to_all(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    token_mask: Tensor | None,
    num_prefix_tokens: int,
    options: AttentionOptions,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """Exact rows of some queries, (B, R, H, D), over all P + N tokens."""
    seen: Tensor | None = None
    if token_mask is not None:
        seen = F.pad(token_mask, (num_prefix_tokens, 0), value=1.0)[:, None, None]  # B, 1, 1, P + N
        if num_prefix_tokens == 0:  # an image without a real token: finite numbers that nobody looks at
            seen = seen | ~seen.any(-1, keepdim=True)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if options.activation == "softmax":
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout_p, scale=scale)
        return out.transpose(1, 2)
    logits = q @ k.transpose(-1, -2) * scale
    weight = paper.laplace(logits if logits.dtype == torch.float64 else logits.float())
    number = torch.full([1, 1, 1, 1], k.shape[2], device=q.device)
    if seen is not None:
        weight = weight.masked_fill(~seen, 0.0)
        number = seen.sum(-1, keepdim=True)
    if options.laplace_norm:
        weight = weight / number
    return (F.dropout(weight, dropout_p).to(v.dtype) @ v).transpose(1, 2)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    options: AttentionOptions,
    grid_size: list[int] | None,
    num_prefix_tokens: int,
    token_mask: Tensor | None,
    surrogate_tokens: Tensor | None,
    phi: Tensor | None,
    dropout_p: float,
    backend: str,
) -> None:
    """Shapes, dtypes and what the options ask for; nothing that depends on data."""
    check_choice("backend", backend, BACKENDS)
    if q.ndim != 4 or q.shape != k.shape or q.shape != v.shape:
        raise ValueError(
            f"expected q, k, v of one shape (B, N, H, D), got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if not q.is_floating_point() or not q.dtype == k.dtype == v.dtype:
        raise TypeError(f"expected q, k, v of one floating dtype, got {q.dtype}, {k.dtype}, {v.dtype}; cast them first")
    batch, length, heads, head_dim = q.shape
    num_tokens = length - num_prefix_tokens
    if num_prefix_tokens < 0 or num_tokens < 1:
        raise ValueError(f"expected 0 <= num_prefix_tokens < {length} tokens, got {num_prefix_tokens=}")
    if grid_size is not None:
        _check_grid(grid_size, num_tokens)
    if token_mask is not None and (token_mask.shape != (batch, num_tokens) or token_mask.dtype != torch.bool):
        raise ValueError(
            f"expected token_mask ({batch}, {num_tokens}) bool, got {tuple(token_mask.shape)} {token_mask.dtype}"
        )
    if not 0 <= dropout_p < 1 or (dropout_p and backend == "reference"):
        raise ValueError(f"expected 0 <= dropout_p < 1, and 0 for the reference back end, got {dropout_p=} {backend=}")
    shapes = {"learned": (heads, "M", head_dim), "averaged": ("M", head_dim), "sampled": None}
    wanted = shapes[options.surrogates]
    given = None if surrogate_tokens is None else tuple(surrogate_tokens.shape)
    if (wanted is None) != (given is None) or (
        wanted is not None
        and given is not None
        and (len(given) != len(wanted) or given[-1] != head_dim or given[:-2] != wanted[:-2])
    ):
        raise ValueError(f"expected surrogate_tokens {wanted} with surrogates={options.surrogates!r}, got {given}")
    if options.surrogates == "learned" and (phi is None or phi.shape != (batch, num_tokens, 1)):
        got = None if phi is None else tuple(phi.shape)
        raise ValueError(f"expected phi ({batch}, {num_tokens}, 1) with surrogates='learned', got {got}")
    if surrogate_tokens is not None and options.assignment == "blocks":
        rows, cols = (1, num_tokens) if grid_size is None else grid_size[:2]
        down, across = cluster_grid(rows, cols, options.num_clusters, options.cluster_factor)
        further = int(grid_size is not None and len(grid_size) > 2)  # the tokens of all further grids are one block
        if down * across + further != surrogate_tokens.shape[-2]:
            raise ValueError(
                f"expected as many surrogate tokens as blocks, {down} x {across}{' + 1' * further}, got "
                f"{surrogate_tokens.shape[-2]}; resample_surrogates makes them"
            )
    if options.cluster_size is not None and options.assignment in ("sa_topk", "random"):
        number = None if surrogate_tokens is None else int(surrogate_tokens.shape[-2])
        _check_room(options, [1, num_tokens] if grid_size is None else grid_size, num_tokens, number)


def _check_routes(q: Tensor, num_prefix_tokens: int, q_route: Tensor | None, k_route: Tensor | None) -> None:
    shape = (q.shape[0], q.shape[1] - num_prefix_tokens, q.shape[3])
    for name, x in (("q_route", q_route), ("k_route", k_route)):
        if x is not None and (x.ndim != 4 or (x.shape[0], x.shape[1], x.shape[3]) != shape):
            raise ValueError(
                f"expected {name} (B={shape[0]}, N={shape[1]}, H, D={shape[2]}), without prefix tokens, got "
                f"{tuple(x.shape)}"
            )


def _check_room(options: AttentionOptions, grid: list[int], num_tokens: int, num_surrogates: int | None) -> None:
    size = options.cluster_size
    if size is None or is_exporting():  # it may not branch on sizes
        return
    clusters = num_surrogates
    if clusters is None:
        clusters = math.prod(cluster_grid(grid[0], grid[1], options.num_clusters, options.cluster_factor))
    if clusters * size < num_tokens:
        raise ValueError(
            f"expected clusters * cluster_size >= N={num_tokens}, room for all, got {clusters} * {size}; "
            "leave cluster_size out"
        )


def _check_grid(grid_size: list[int], num_tokens: int) -> None:
    numbers = list(grid_size)
    total = sum(a * b for a, b in zip(numbers[::2], numbers[1::2], strict=False))
    if len(numbers) < 2 or len(numbers) % 2 or min(numbers) < 1 or total != num_tokens:
        raise ValueError(
            f"expected grid_size=(rows, cols) with rows * cols = {num_tokens}, or pairs of them that add up to it, "
            f"got {grid_size}"
        )
