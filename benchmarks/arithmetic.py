"""Floating-point operations, two for a multiply-add: the floor of time, and what torch's counter cannot follow."""

from __future__ import annotations

import math

from castvision.ops import AttentionOptions
from castvision.ops.partitions import cluster_grid, window_size_for


def most_square(tokens: int) -> tuple[int, int]:
    """The grid (rows, cols) of N tokens that is nearest to a square, rows <= cols."""
    rows = next(rows for rows in range(math.isqrt(tokens), 0, -1) if tokens % rows == 0)
    return rows, tokens // rows


def attend_flops(tokens: int, near: int, far: int, width: int) -> int:
    """Attention of N queries to so many neighbours and summaries each: the scores and the weighted sum."""
    return 4 * tokens * (near + far) * width


def route_flops(tokens: int, clusters: int, head_dim: int, passes: int) -> int:
    """Scores of N head means with M surrogates, as often as tokens join the nearest."""
    return 2 * passes * tokens * clusters * head_dim


def near_far_flops(
    rows: int, cols: int, width: int, num_heads: int, options: AttentionOptions, num_prefix_tokens: int = 0
) -> int:
    """Near and far on a grid of tokens, routing included, projections not.

    A token sees prefix tokens, its window of w² and M summaries. R anchors cost 2 R more: N keys for each of them, and
    R keys for each of N. Sums over clusters are left out: they are additions, a few for each number.

    Raises:
        ValueError: Not near and far over nearest clusters.
    """
    if options.neighborhood != "window" or options.assignment != "nearest":
        raise ValueError(f"expected windows and nearest clusters, got {options.neighborhood} and {options.assignment}")
    tokens, prefix = rows * cols, num_prefix_tokens
    size = options.window_size or window_size_for(rows, cols)
    clusters = math.prod(cluster_grid(rows, cols, options.num_clusters))
    seen = attend_flops(tokens, prefix + size**2, clusters + 2 * options.anchors, width)
    to_all = attend_flops(prefix, prefix + tokens, 0, width)
    return seen + to_all + route_flops(tokens, clusters, width // num_heads, 1 + options.refinements)


def layer_flops(tokens: int, width: int, num_heads: int, options: AttentionOptions) -> int:
    """A layer on the most square grid: near and far, and the projections to q, k, v and back."""
    return 8 * tokens * width**2 + near_far_flops(*most_square(tokens), width, num_heads, options)


def operand_bytes(tokens: int, width: int, itemsize: int) -> int:
    """What every attention layer holds: its input, q, k, v and its output."""
    return 5 * tokens * width * itemsize
