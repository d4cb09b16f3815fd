"""Training of a small head on the tokens of a frozen backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def fit_head(x: Tensor, y: Tensor, kind: str, classes: int | None = None, seed: int = 0, steps: int = 300) -> nn.Module:
    """A head from tokens to logits of their cells.

    Args:
        x: Tokens to train on, (N, C).
        y: What their cells are, (N, cells): 0.0 or 1.0, or int64 below ``classes``.
        kind: "linear", or "mlp" with one hidden layer of 128.
        classes: Their number; None: a logit for yes.
        seed: Of the head's first weights.
        steps: Of AdamW on all tokens at once.

    Returns:
        The head, to (N, cells) or (N, classes, cells); it normalises by mean and deviation of the tokens it was trained
        on.
    """
    torch.manual_seed(seed)
    width, cells = x.shape[1], y.shape[1]
    norm = nn.BatchNorm1d(width, affine=False)
    with torch.no_grad():
        norm.running_mean, norm.running_var = x.mean(0), x.var(0)
    norm.eval()
    x = norm(x)
    hidden = [nn.Linear(width, 128), nn.GELU()] if kind == "mlp" else []
    head = nn.Sequential(*hidden, nn.Linear(128 if hidden else width, cells * (classes or 1)))
    if classes is not None:
        head.append(nn.Unflatten(1, (classes, cells)))
    measure = F.binary_cross_entropy_with_logits if classes is None else F.cross_entropy
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(steps):
        loss = measure(head(x), y)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return nn.Sequential(norm, head)


def in_tokens(cells: Tensor, side: int) -> Tensor:
    """Cells as they lie in the picture, (rows * side, cols * side), by token: (rows, cols, side²)."""
    rows, cols = cells.shape[0] // side, cells.shape[1] // side
    return cells.reshape(rows, side, cols, side).transpose(1, 2).flatten(2)
