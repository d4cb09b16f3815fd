"""The scalar functions of CAST: the two attention functions f and the gate.

Reference: van Engelenhoven et al., CAST, arXiv 2402.04239; the Laplace function is MEGA's (arXiv 2209.10655, eq. 16).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

MASKED = -3e4
"""Logit of a key that must not be seen: finite in every dtype, and exp() of it is exactly 0."""

LAPLACE_MEAN = math.sqrt(0.5)
LAPLACE_STD = math.sqrt(0.25 / math.pi)


def laplace(x: Tensor) -> Tensor:
    """Elementwise f(x) = (1 + erf((x - mean) / (std * sqrt 2))) / 2, in (0, 1)."""
    # 1 / (std sqrt 2) = sqrt(2 pi), written out since TorchScript reads no globals
    return torch.erf((x - 0.7071067811865476) * 2.5066282746310002).add(1).mul(0.5)


def laplace_derivative(x: Tensor) -> Tensor:
    """Derivative of :func:`laplace`: the normal density with its mean and standard deviation."""
    z = (x - LAPLACE_MEAN) / LAPLACE_STD
    return torch.exp(-0.5 * z * z) * (1 / (LAPLACE_STD * math.sqrt(2 * math.pi)))


def gate(x: Tensor) -> Tensor:
    """softplus(x) + 1: at least 1, so that it can only sharpen the logits it multiplies."""
    return F.softplus(x) + 1
