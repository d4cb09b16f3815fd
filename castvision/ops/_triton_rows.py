"""What the Triton kernels share: gathering rows of tokens, the members of a cluster, and the sizes of tiles.

A row is one token's part of one head, D numbers; D is padded to a power of two in registers only. Kernels address rows
in 64 bits: a million tokens of width 384 pass 2^31 bytes. Kernels take no annotations but ``constexpr``, which Triton
reads, so these files do without postponed evaluation of annotations.
"""

# ruff: noqa: ANN001, ANN202, PLR0913 - kernels take pointers and sizes, one by one
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def load_rows(pointer, ids, valid, stride, D, BLOCK_D: tl.constexpr):
    """Rows ``ids`` as (rows, BLOCK_D), zero where not valid and beyond D."""
    column = tl.arange(0, BLOCK_D)
    at = pointer + ids.to(tl.int64)[:, None] * stride + column[None, :]
    return tl.load(at, mask=valid[:, None] & (column < D)[None, :], other=0.0)


@triton.jit
def load_row(pointer, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The one row at ``pointer``, (BLOCK_D,) in fp32, zero beyond D."""
    column = tl.arange(0, BLOCK_D)
    return tl.load(pointer + column, mask=column < D, other=0.0).to(tl.float32)


@triton.jit
def store_rows(pointer, ids, valid, stride, rows, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write (rows, BLOCK_D) to the rows ``ids`` that are valid, in the pointer's dtype."""
    column = tl.arange(0, BLOCK_D)
    at = pointer + ids.to(tl.int64)[:, None] * stride + column[None, :]
    tl.store(at, rows.to(pointer.dtype.element_ty), mask=valid[:, None] & (column < D)[None, :])


@triton.jit
def store_row(pointer, row, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write (BLOCK_D,) to the one row at ``pointer``."""
    column = tl.arange(0, BLOCK_D)
    tl.store(pointer + column, row, mask=column < D)


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

    They are the largest that compile without spills (tests/ops/test_triton_compile.py); no GPU has timed them.

    Attributes:
        rows: Rows of a program: queries or keys.
        step: Rows of a step of its loop, on the other side.
        block_d: Head width, padded.
        precision: Of products: fp32 operands are split in three ("tf32x3", about fp32) unless torch allows tf32.
        warps: Warps of a program.
        stages: Steps whose loads are in flight at once.
    """

    rows: int
    step: int
    block_d: int
    precision: str
    warps: int
    stages: int


def query_tiles(like: Tensor, queries: int, keys: int) -> Tiles:
    """For a program that owns queries and streams over keys; ``like`` (…, D) gives dtype and width."""
    heavy = like.dtype == torch.float32 or like.shape[-1] > 64
    return _tiles(like, fit(queries, 64), fit(keys, 32 if heavy else 64), heavy)


def key_tiles(like: Tensor, keys: int, queries: int) -> Tiles:
    """For a program that owns keys and streams over queries: it carries two gradients."""
    row = pad(like.shape[-1]) * like.element_size()
    full = like.dtype == torch.float32
    most = 64 if row <= 128 else 16 if full else 32
    return _tiles(like, fit(keys, most), fit(queries, 32), full or row > 64)


def _tiles(like: Tensor, rows: int, step: int, heavy: bool) -> Tiles:
    narrow = like.dtype != torch.float32 and like.shape[-1] <= 64
    return Tiles(rows, step, pad(like.shape[-1]), dot_precision(like.dtype), 8 if heavy else 4, 3 if narrow else 2)


def pad(head_dim: int) -> int:
    """Head width as the kernels hold it: a power of two, at least what a matrix unit takes."""
    return max(16, int(triton.next_power_of_2(head_dim)))


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
