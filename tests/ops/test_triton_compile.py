"""Every Triton kernel, as it is launched, compiles for three generations of GPUs: no spills, registers, shared memory.

No GPU is needed: launches are stopped after compilation, for a target that a stand-in for the driver names.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from castvision.ops import _affinity, _problem, _triton
from castvision.ops._problem import Options, Problem

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton interprets in this process", allow_module_level=True)

SHARED = {80: 99 << 10, 90: 227 << 10, 100: 227 << 10}  # bytes of a program; 8.6 and 8.9 run what 8.0 compiles


class Driver:
    """A device of the architecture ``arch``, as far as the compiler asks."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch, 32)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Compiled]]:
    """Names and artefacts of what would have been launched."""
    from triton.runtime.jit import JITFunction

    kernels: list[Compiled] = []
    launch = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        log = io.StringIO()
        with contextlib.redirect_stdout(log):
            kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        if log.getvalue():  # else it was compiled before
            kernels.append(Compiled(self.__name__, kernel.metadata.shared, *usage(log.getvalue()), kernel.asm["ptx"]))

    monkeypatch.setattr(JITFunction, "run", run)
    with triton.knobs.cache.scope(), triton.knobs.nvidia.scope():
        triton.knobs.cache.dir = str(tmp_path / "cache")
        triton.knobs.nvidia.dump_ptxas_log = True
        yield kernels


class Compiled(NamedTuple):
    """A kernel as ptxas reports it: bytes of shared memory, registers of a thread, bytes that it spills; its PTX."""

    name: str
    shared: int
    registers: int
    spilled: int
    ptx: str


def usage(log: str) -> tuple[int, int]:
    registers = re.search(r"Used (\d+) registers", log)
    assert registers, log
    return int(registers[1]), sum(int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", log))


def launch_all(head_dim: int, dtype: torch.dtype, mixing: str, *, own_route: bool = False) -> None:
    """Forward and backward with a prefix and a mask, and routing; 128 clusters of 128. Numbers are never read."""
    size, heads = 128, 2
    q, k, v = torch.empty(1, size * size, 3, heads, head_dim, dtype=dtype).permute(2, 0, 3, 1, 4)
    surrogates, phi = torch.empty(heads, size, head_dim), torch.empty(1, size * size, 1)
    prefix, mask = torch.empty(1, heads, 1, head_dim, dtype=dtype), torch.ones(1, size * size, dtype=torch.bool)
    index = torch.empty(1, size, size, dtype=torch.long)
    options = Options(0.1, mixing, "softmax", False, True, True, 0.0)
    route = (q, k) if own_route else (None, None)
    problem = Problem(q, k, v, surrogates, phi, index, prefix, prefix, *route, mask, options)
    assert _triton._unsupported(problem) is None
    out, lse = _triton.forward(problem)
    _triton.backward(problem, torch.empty_like(out), out, lse)


def check(kernels: list[Compiled], arch: int) -> None:
    over = [k for k in kernels if k.spilled or k.registers > 255 or k.shared > SHARED[arch]]
    assert not over, f"over the budget: {[k[:4] for k in over]}"


def compile_on(arch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime import driver

    monkeypatch.setattr(driver, "_active", Driver(arch))
    monkeypatch.setattr(_problem, "arithmetic_dtype", lambda x: x.dtype)  # as on CUDA, not fp32 for half precision


@pytest.mark.parametrize(("mixing", "more"), [("joint", set()), ("surrogate", {"_mixing_gradient"})])
def test_default_size_on_hopper(
    mixing: str, more: set[str], compiled: list[Compiled], monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_on(90, monkeypatch)
    launch_all(64, torch.bfloat16, mixing)
    assert {kernel.name for kernel in compiled} == more | {
        "_summarise", "_attend", "_query_gradient", "_shared_gradient", "_member_gradient"
    }  # fmt: skip
    check(compiled, 90)


def test_routing_on_hopper(compiled: list[Compiled], monkeypatch: pytest.MonkeyPatch) -> None:
    compile_on(90, monkeypatch)
    route(64, 128)
    assert {kernel.name for kernel in compiled} == {"_affinity", "_wish_all", "_choose_all", "_place_rest"}
    check(compiled, 90)


def test_routing_without_a_table_on_hopper(compiled: list[Compiled], monkeypatch: pytest.MonkeyPatch) -> None:
    compile_on(90, monkeypatch)
    monkeypatch.setattr(_affinity, "WORKSPACE", 0)
    route(64, 256, masked=True)
    assert {kernel.name for kernel in compiled} == {"_totals", "_wish_all", "_choose_all", "_place_rest"}
    check(compiled, 90)
    check_scores_agree(compiled)


def route(head_dim: int, num_clusters: int, *, masked: bool = False) -> None:
    q = torch.empty(1, 6, num_clusters**2, head_dim, dtype=torch.bfloat16)
    surrogates, phi = torch.empty(6, num_clusters, head_dim), torch.empty(1, num_clusters**2, 1)
    mask = torch.ones(1, num_clusters**2, dtype=torch.bool) if masked else None
    _triton.partition(q, q, surrogates, phi, mask, num_clusters)


def check_scores_agree(kernels: list[Compiled]) -> None:
    """Both kernels that work scores out do so by the same instructions: a token's scores are the same bits in both."""
    pattern = r"\b((?:mma|wgmma|fma|mul|add|sub|div|rcp|ex2|cvt)\.[\w.:]*(?:f32|tf32)[\w.]*)"
    wish, rest = (
        Counter(re.findall(pattern, kernel.ptx)) for kernel in kernels if kernel.name in ("_wish_all", "_place_rest")
    )
    assert wish == rest
    assert any("mma" in name for name in wish)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mixing", ["joint", "surrogate"])
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_attention_on_all_architectures(
    arch: int, mixing: str, compiled: list[Compiled], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Head widths 32, 64 and 128, in every dtype that the architecture takes."""
    compile_on(arch, monkeypatch)
    for head_dim in (32, 64, 128):
        launch_all(head_dim, torch.bfloat16, mixing)
        launch_all(head_dim, torch.float16, mixing, own_route=True)
        if arch >= 90 and head_dim <= 64:
            launch_all(head_dim, torch.float32, mixing)
    check(compiled, arch)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_routing_on_all_architectures(arch: int, compiled: list[Compiled], monkeypatch: pytest.MonkeyPatch) -> None:
    """K = M of 128 and 256."""
    compile_on(arch, monkeypatch)
    for num_clusters in (128, 256):
        route(64, num_clusters)
    check(compiled, arch)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_routing_without_a_table(
    arch: int, head_dim: int, masked: bool, compiled: list[Compiled], monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_on(arch, monkeypatch)
    monkeypatch.setattr(_affinity, "WORKSPACE", 0)
    route(head_dim, 256, masked=masked)
    check(compiled, arch)
    check_scores_agree(compiled)
