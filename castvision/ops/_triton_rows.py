"""What the Triton kernels share: gathering rows of tokens, the members of a cluster, and the sizes of tiles.

A row is one token's part of one head, D numbers; D is padded to a power of two in registers only. Kernels address rows
in 64 bits: a million tokens of width 384 pass 2^31 bytes. Kernels take no annotations but ``constexpr``, which Triton
reads, so these files do without postponed evaluation of annotations.
"""

# ruff: noqa: ANN001, ANN201, ANN202, PLR0913 - kernels take pointers and sizes, one by one
# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def load_rows(pointer, ids, valid, stride, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows ``ids`` as (rows, BLOCK_D), zero where not valid and beyond D."""
    column = tl.arange(0, BLOCK_D)
    at = pointer + ids.to(tl.int64)[:, None] * stride + column[None, :]
    return tl.load(at, mask=valid[:, None] & (column < D)[None, :], other=0.0)


@triton.jit
def store_rows(pointer, ids, valid, stride, rows, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write (rows, BLOCK_D) to the rows ``ids`` that are valid, in the pointer's dtype."""
    column = tl.arange(0, BLOCK_D)
    at = pointer + ids.to(tl.int64)[:, None] * stride + column[None, :]
    tl.store(at, rows.to(pointer.dtype.element_ty), mask=valid[:, None] & (column < D)[None, :])


@triton.jit
def load_members(index, token_mask, start, K, N, BLOCK: tl.constexpr):
    """Tokens of a cluster's slots from ``start`` on: ids, whether the slot holds a token, and a real one.

    index points to the cluster's K slots, token_mask to the image's N bytes or is None.
    """
    slot = start + tl.arange(0, BLOCK)
    ids = tl.load(index + slot, mask=slot < K, other=N)
    present = ids < N
    real = present
    if token_mask is not None:
        real = tl.load(token_mask + ids, mask=present, other=0) != 0
    return ids, present, real


@triton.jit
def split_program(M, H, BLOCKS):
    """Image, cluster, block and head of this program; heads of the same tokens run side by side."""
    pid = tl.program_id(0).to(tl.int64)
    return pid // (H * BLOCKS * M), pid // (H * BLOCKS) % M, pid // H % BLOCKS, pid % H


class Tiles(NamedTuple):
    """Launch constants that follow from the sizes: no tuning, so that results never depend on timing.

    Attributes:
        block_q: Queries of a program.
        block_k: Keys of a step.
        block_d: Head width, padded.
        precision: Of products: fp32 operands are split in three ("tf32x3", about fp32) unless torch allows tf32.
        warps: Warps of a program (the backward takes 8).
        stages: Steps whose loads are in flight at once.
    """

    block_q: int
    block_k: int
    block_d: int
    precision: str
    warps: int
    stages: int


def choose_tiles(like: Tensor, queries: int, keys: int) -> Tiles:
    """Tiles for rows of ``like`` (…, D), given the number of rows on either side."""
    block_d = max(16, triton.next_power_of_2(like.shape[-1]))
    heavy = block_d * like.element_size() > 128  # bytes of a row: fp32 beyond D = 32, half beyond 64
    block_q, block_k = fit(queries, 64), fit(keys, 32 if heavy else 64)
    return Tiles(block_q, block_k, block_d, dot_precision(like.dtype), 8 if heavy else 4, 2 if heavy else 3)


def fit(length: int, most: int) -> int:
    """The largest power of two in 16…most that pads ``length`` by at most half."""
    size = most
    while size > 16 and 2 * triton.cdiv(length, size) * size > 3 * length:
        size //= 2
    return size


def dot_precision(dtype: torch.dtype) -> str:
    """Name of Triton's precision of products of this dtype."""
    allowed = dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return "tf32" if allowed else "tf32x3"


def with_unit_stride(rows: Tensor) -> Tensor:
    """Rows (…, D) whose D numbers lie side by side; copied only if they do not."""
    return rows if rows.stride(-1) == 1 else rows.contiguous()
