"""Both mixings in Triton give what the dense float64 oracle gives, forward and backward, on ragged sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from castvision.ops import _fused, _triton_backward
from castvision.ops._problem import Options, Problem
from tests.ops.cases import Case, make_case
from tests.ops.interpreted.conftest import Kernels

MIXINGS = pytest.mark.parametrize("mixing", ["joint", "surrogate"])
ROUNDINGS = {torch.float32: 30, torch.bfloat16: 10, torch.float16: 10}


def check(case: Case, kernels: Kernels, dtype: torch.dtype = torch.float32) -> None:
    """Errors against float64 on the same rounded operands, in roundings of the dtype."""
    operands = {name: x.detach().to(dtype).requires_grad_() for name, x in case.operands.items()}
    weight = torch.randn(operands["q"].shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = Case({name: x.detach().double().requires_grad_() for name, x in operands.items()}, case.options)
    expected, expected_grads = exact.gradients("reference", weight.double())
    with kernels():
        out, grads = Case(operands, case.options).gradients("fused", weight)
    tolerance = ROUNDINGS[dtype] * torch.finfo(dtype).eps
    assert out.dtype == dtype
    assert (out.double() - expected).abs().max() <= tolerance * expected.abs().max()
    for name, grad in expected_grads.items():
        error = (grads[name].double() - grad).abs().max()
        assert error <= 2 * tolerance * grad.abs().max().clamp(min=0.1), f"{name}: {error}"


def one_image(case: Case, heads: int = 1) -> Case:
    """The first image and the first heads: a program of the interpreter takes milliseconds."""
    o, routing = case.operands, case.options["routing"]
    operands = {n: x[:1] if n == "phi" else x[:heads] if n == "surrogates" else x[:1, :heads] for n, x in o.items()}
    options = case.options | {"routing": routing._replace(index=routing.index[:1], inverse=routing.inverse[:1])}
    return Case(operands, options)


def wider(case: Case, head_dim: int) -> Case:
    """Heads ``head_dim`` wide."""
    for name, x in case.operands.items():
        if name != "phi":
            case.operands[name] = torch.randn(*x.shape[:-1], head_dim, dtype=x.dtype) * 1.5 / head_dim**0.25
    return case


@MIXINGS
@pytest.mark.parametrize("size", [(10, 7, 2, 2), (5, 8, 1, 0), (12, 1, 12, 1), (41, 2, 21, 0), (13, 3, 5, 0)], ids=str)
def test_ragged_sizes(size: tuple[int, int, int, int], mixing: str, kernels: Kernels) -> None:
    """Padding slots, empty clusters, K = 1, K = N, M > N, several blocks of queries and keys."""
    num_tokens, num_clusters, cluster_size, prefix = size
    check(one_image(make_case(num_tokens, num_clusters, cluster_size, prefix=prefix, mixing=mixing)), kernels)


@MIXINGS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype, mixing: str, kernels: Kernels) -> None:
    check(wider(one_image(make_case(19, 3, prefix=1, mixing=mixing)), 24), kernels, dtype)


@MIXINGS
def test_several_images_and_heads_with_a_mask(mixing: str, kernels: Kernels) -> None:
    """The second image has no real token: its output is zero, not NaN."""
    check(make_case(9, 3, prefix=2, masked=True, mixing=mixing), kernels)


@MIXINGS
@pytest.mark.parametrize(
    "options",
    [
        {"own_route": True},
        {"summaries": False, "own_route": True, "prefix": 1},
        {"assignment": "window", "grid_size": (3, 3), "cluster_size": 4},
    ],
    ids=str,
)
def test_options(options: dict[str, Any], mixing: str, kernels: Kernels) -> None:
    check(one_image(make_case(9, 4, scale=0.3, mixing=mixing, **options), heads=2), kernels)


@MIXINGS
def test_heads_that_are_no_power_of_two(mixing: str, kernels: Kernels) -> None:
    check(wider(one_image(make_case(9, 2, mixing=mixing)), 48), kernels)


@MIXINGS
def test_operands_as_views_of_one_projection(mixing: str, kernels: Kernels) -> None:
    """As `qkv` lays them out, and with an output gradient that is expanded."""
    case = one_image(make_case(9, 2, dtype=torch.float32, mixing=mixing), heads=2)
    qkv = torch.randn(1, 9, 3, 2, 4, requires_grad=True)
    results = []
    for backend in ("fused", "reference"):
        case.operands |= dict(zip("qkv", qkv.permute(2, 0, 3, 1, 4), strict=True))
        with kernels():
            results.append(torch.autograd.grad(case.run(backend)[0].sum(), qkv)[0])
    torch.testing.assert_close(*results)


@MIXINGS
def test_spans_add_up_and_gradients_repeat_bit_by_bit(
    mixing: str, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shared keys' gradients are summed over spans of tokens: several, several again, and one."""
    case = one_image(make_case(140, 2, dtype=torch.float32, mixing=mixing))
    weight = torch.randn(1, 1, 140, 4)
    with kernels():
        first, several = case.gradients("fused", weight)
        again, repeated = case.gradients("fused", weight)
        monkeypatch.setattr(_triton_backward, "MOST_SPANS", 1)
        _, one = case.gradients("fused", weight)
    assert torch.equal(first, again)
    for name, grad in several.items():
        assert torch.equal(grad, repeated[name])
        torch.testing.assert_close(grad, one[name], msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("options", [{"assignment": "topk"}, {"activation": "laplace"}])
def test_what_the_kernels_leave_to_plain_torch(options: dict[str, Any], kernels: Kernels) -> None:
    case = make_case(9, 3, dtype=torch.float32, **options)
    with kernels():
        torch.testing.assert_close(case.run("fused")[0], case.run("reference")[0])


@MIXINGS
def test_the_operators_reach_the_kernels(mixing: str, kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """With plain torch's path gone, forward and backward still work, and the log-sum-exp is there."""
    case = one_image(make_case(9, 3, dtype=torch.float32))
    o = {name: x.detach() for name, x in case.operands.items()}
    options = Options(0.5, mixing, "softmax", False, True, True, 0.0)
    index = case.options["routing"].index
    problem = Problem(
        o["q"], o["k"], o["v"], o["surrogates"], o["phi"], index, None, None, None, None, None, options
    )  # fmt: skip
    for path in ("_packed", "_merged"):
        monkeypatch.delattr(f"castvision.ops.{path}.forward")
        monkeypatch.delattr(f"castvision.ops.{path}.backward")
    with kernels():
        out, lse = _fused.forward(problem, 0)
        grads = _fused.backward(problem, torch.ones_like(out), out, lse, 0)
    lse = lse[0, :, 0] / 1.4426950408889634
    if mixing == "joint":
        assert (lse >= (o["q"] @ o["k"].transpose(2, 3) * 0.5)[0, 0].diagonal() - 1e-5).all()
    else:
        logits = (o["q"] @ o["surrogates"].transpose(1, 2))[0, 0] * 0.5 * (F.softplus(o["phi"][0]) + 1)
        torch.testing.assert_close(lse, logits.logsumexp(-1))
    assert all(grads[name] is not None for name in ("q", "k", "v", "phi", "surrogates"))
