"""Anchors: some queries get their exact rows, and what near and far got wrong there is shared with queries like them.

With R anchor tokens s, exact rows a_s and approximate rows o_s:

    o_n  +=  sum_s w_ns (a_s - o_s),    w_n = softmax over s of (q_n.q_s - |q_s|^2 / 2) scale / tau,    tau = 1/2

per head: a normalised Gaussian kernel over queries. An *empty* anchor has no difference; its logit is twice the mean,
over anchors, of the logit to the nearest other anchor, so that it takes the queries that are like none. The kernel's
logits need their - |q_n|^2 / 2 then, too.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from castvision.ops.near_far import attend_biased, gather_tokens
from castvision.ops.partitions import cluster_grid, sample_positions
from castvision.ops.softmax import wide_dtype


def choose_anchors(q: Tensor, number: int, selection: str, rows: int, cols: int, token_mask: Tensor | None) -> Tensor:
    """Tokens whose rows are to be exact, (B, R) int64, without a gradient.

    Args:
        q: Queries, (B, N, H, D); the first rows * cols of them make up the grid.
        number: R. Where fewer tokens differ, some are chosen again.
        selection: "farthest": from the middle of the grid on, each the token whose query is farthest from those of all
            chosen, all heads side by side; "grid": a regular grid of positions of about R.
        rows: Of the grid.
        cols: Of the grid.
        token_mask: True where a token is real, (B, N); others are never chosen, unless none is real.
    """
    hidden = torch.zeros_like(q[:, :, 0, 0], dtype=torch.bool)
    if token_mask is not None:
        hidden = ~token_mask
    if selection == "grid":
        down, across = cluster_grid(rows, cols, number)
        return _closest_real(sample_positions(rows, cols, down, across, q), hidden)
    middle = torch.full([1], (rows // 2) * cols + cols // 2, device=q.device)
    newest = _closest_real(middle, hidden)[:, 0]  # B
    x = q.detach().flatten(2).to(wide_dtype(q.dtype))  # B, N, C
    square = x.square().sum(2)
    distance = torch.full_like(square, torch.inf).masked_fill(hidden, -torch.inf)
    chosen = [newest]
    for _ in range(number - 1):
        center = x.gather(1, newest[:, None, None].expand(-1, -1, x.shape[2]))  # B, 1, C
        to_newest = square - 2 * (x @ center.transpose(1, 2))[..., 0] + center.square().sum(2)
        distance = torch.minimum(distance, to_newest)
        newest = distance.argmax(1)
        chosen.append(newest)
    return torch.stack(chosen, 1)


def _closest_real(wanted: Tensor, hidden: Tensor) -> Tensor:
    """For each wanted token (R,) the one nearest in order that is not hidden (B, N): (B, R)."""
    apart = (torch.arange(hidden.shape[1], device=hidden.device) - wanted[:, None]).abs()  # R, N
    return apart.expand(hidden.shape[0], -1, -1).masked_fill(hidden[:, None], hidden.shape[1]).argmin(2)


def correct(q: Tensor, out: Tensor, anchors: Tensor, exact: Tensor, scale: float, empty: bool) -> Tensor:
    """Rows with what the anchors' are off shared among them.

    Args:
        q: Queries, (B, N, H, D).
        out: Approximate rows, (B, N, H, D).
        anchors: Tokens whose rows are known, (B, R).
        exact: Those rows, (B, R, H, D).
        scale: Factor of the attention's logits.
        empty: With an empty anchor.

    Returns:
        (B, N, H, D).
    """
    keys = gather_tokens(q, anchors[:, None])[:, 0]  # B, R, H, D
    difference = exact - gather_tokens(out, anchors[:, None])[:, 0]
    wide = wide_dtype(q.dtype)
    sharpness = 2.0 * scale  # 1 / tau = 2
    bias = -0.5 * sharpness * keys.to(wide).square().sum(-1)  # B, R, H
    if not empty:
        return out + attend_biased(q, keys, difference, bias, sharpness, 0.0)
    heads_first = keys.to(wide).transpose(1, 2)  # B, H, R, D
    apart = torch.cdist(heads_first, heads_first).square()
    itself = torch.eye(apart.shape[-1], dtype=torch.bool, device=q.device)
    nearest = apart.masked_fill(itself, torch.inf).amin(-1)  # B, H, R
    logit = 2 * (-0.5 * sharpness * nearest).mean(-1)  # B, H
    # one more channel brings |q|^2 / 2 to the empty anchor's logit, the same as taking it from all others
    half_square = 0.5 * q.to(wide).square().sum(-1, keepdim=True)
    q = torch.cat([q.to(wide), half_square], -1)
    keys = F.pad(F.pad(keys.to(wide), (0, 1)), (0, 0, 0, 0, 0, 1))
    keys = torch.cat([keys[:, :-1], F.pad(torch.zeros_like(keys[:, -1:, :, :-1]), (0, 1), value=1.0)], 1)
    values = F.pad(difference.to(wide), (0, 1, 0, 0, 0, 1))
    shared = attend_biased(q, keys, values, torch.cat([bias, logit[:, None]], 1), sharpness, 0.0)
    return out + shared[..., :-1].to(out.dtype)
