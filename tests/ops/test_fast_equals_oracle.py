"""The fused back end gives what the dense oracle gives, forward and backward, over ragged sizes and every option."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import library

from castvision.ops import cast_attention
from tests.ops.cases import make_case

SIZES = [  # N, M, K, P: ragged, empty clusters, K = 1, K = N, M = 1, M > N
    (10, 7, 2, 0), (10, 7, 2, 2), (16, 14, 2, 0), (5, 8, 1, 0), (12, 1, 12, 1), (9, 9, 1, 0), (13, 4, 4, 1),
    (30, 3, 10, 0),
]  # fmt: skip
FUNCTIONS = [("softmax", False), ("laplace", False), ("laplace", True)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mixing", ["joint", "surrogate"])
@pytest.mark.parametrize("assignment", ["sa_topk", "topk", "random"])
def test_float64_forward_and_backward(size: tuple[int, int, int, int], mixing: str, assignment: str) -> None:
    num_tokens, num_clusters, cluster_size, prefix = size
    for (activation, norm), summaries, masked, own in itertools.product(
        FUNCTIONS, (True, False), (False, True), (False, True)
    ):
        case = make_case(
            num_tokens, num_clusters, cluster_size, prefix=prefix, own_route=own, masked=masked, mixing=mixing,
            assignment=assignment, activation=activation, laplace_norm=norm, summaries=summaries,
        )  # fmt: skip
        weight = torch.randn(2, 2, prefix + num_tokens, 4, dtype=torch.float64)
        expected, expected_grads = case.gradients("reference", weight)
        out, grads = case.gradients("fused", weight)
        torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-10)
        for name, grad in expected_grads.items():
            torch.testing.assert_close(grads[name], grad, rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("mixing", ["joint", "surrogate"])
@pytest.mark.parametrize(("grid", "windows"), [((4, 4), 4), ((5, 3), 6), ((1, 7), 4)])
def test_windows(grid: tuple[int, int], windows: int, mixing: str) -> None:
    """Ragged windows at the edge leave padding inside the index, not only at the end of it."""
    num_tokens = grid[0] * grid[1]
    size = {(4, 4): 4, (5, 3): 4, (1, 7): 2}[grid]
    case = make_case(
        num_tokens, windows, size, prefix=1, mixing=mixing, assignment="window", grid_size=grid, masked=True
    )
    weight = torch.randn(2, 2, num_tokens + 1, 4, dtype=torch.float64)
    expected, expected_grads = case.gradients("reference", weight)
    out, grads = case.gradients("fused", weight)
    torch.testing.assert_close(out, expected)
    for name, grad in expected_grads.items():
        torch.testing.assert_close(grads[name], grad)


@pytest.mark.usefixtures("small_workspace")
@pytest.mark.parametrize("mixing", ["joint", "surrogate"])
@pytest.mark.parametrize("assignment", ["sa_topk", "topk"])
def test_small_chunks_change_nothing(mixing: str, assignment: str) -> None:
    case = make_case(30, 5, 8, prefix=1, masked=True, mixing=mixing, assignment=assignment)
    weight = torch.randn(2, 2, 31, 4, dtype=torch.float64)
    expected, expected_grads = case.gradients("reference", weight)
    out, grads = case.gradients("fused", weight)
    torch.testing.assert_close(out, expected)
    for name, grad in expected_grads.items():
        torch.testing.assert_close(grads[name], grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mixing", ["joint", "surrogate"])
@pytest.mark.parametrize("assignment", ["sa_topk", "topk"])
def test_lower_precision(dtype: torch.dtype, mixing: str, assignment: str) -> None:
    """Errors stay within a few roundings of the dtype, measured against float64 on the same rounded operands."""
    case = make_case(40, 5, 8, prefix=1, mixing=mixing, assignment=assignment, dtype=dtype)
    weight = torch.randn(2, 2, 41, 4, dtype=torch.float64).to(dtype)
    out, grads = case.gradients("fused", weight)
    exact = make_case(40, 5, 8, prefix=1, mixing=mixing, assignment=assignment)
    exact.operands = {n: x.detach().double().requires_grad_() for n, x in case.operands.items()}
    exact.options = case.options
    expected, expected_grads = exact.gradients("reference", weight.double())
    tolerance = 30 * torch.finfo(dtype).eps
    assert (out.double() - expected).abs().max() <= tolerance * expected.abs().max()
    for name, grad in expected_grads.items():
        error = (grads[name].double() - grad).abs().max()
        assert error <= 2 * tolerance * grad.abs().max(), f"{name}: {error}"


@pytest.mark.parametrize("mixing", ["joint", "surrogate"])
@pytest.mark.parametrize("assignment", ["sa_topk", "topk"])
def test_gradcheck(mixing: str, assignment: str) -> None:
    case = make_case(7, 3, 3, prefix=1, mixing=mixing, assignment=assignment)
    names = list(case.operands)

    def run(*operands: torch.Tensor) -> torch.Tensor:
        case.operands = dict(zip(names, operands, strict=True))
        return case.run("fused")[0]

    assert torch.autograd.gradcheck(run, tuple(case.operands.values()))


def test_bitwise_repeatable() -> None:
    case = make_case(64, 8, 8, dtype=torch.float32)
    weight = torch.randn(2, 2, 64, 4)
    first, first_grads = case.gradients("fused", weight)
    for _ in range(20):
        out, grads = case.gradients("fused", weight)
        assert torch.equal(out, first)
        assert all(torch.equal(grads[n], first_grads[n]) for n in grads)


def test_dropout_keeps_the_mean_and_repeats_its_mask_in_the_backward() -> None:
    case = make_case(12, 3, 4)
    plain, _ = case.run("fused")
    drawn = torch.stack([case.run("fused", dropout_p=0.3, seed=s)[0].detach() for s in range(400)])
    assert (drawn.mean(0) - plain).abs().max() < 6 * drawn.std(0).max() / 20

    def run(v: torch.Tensor) -> torch.Tensor:
        case.operands["v"] = v
        return case.run("fused", dropout_p=0.3, seed=5)[0]

    assert torch.autograd.gradcheck(run, (case.operands["v"],))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
def test_operators_obey_the_rules_of_torch_library() -> None:
    case = make_case(10, 3, 4, prefix=1, dtype=torch.float32)
    o = {n: x.detach() for n, x in case.operands.items()}
    q, k, v = (o[n][:, :, 1:].clone().requires_grad_() for n in ("q", "k", "v"))
    index = case.options["routing"].index
    prefix = (o["k"][:, :, :1].clone(), o["v"][:, :, :1].clone())
    library.opcheck(
        torch.ops.castvision.attend.default,
        (q, k, v, o["surrogates"].clone().requires_grad_(), o["phi"], index, *prefix, None, None, None, None,
         0.5, "joint", "softmax", False, True, True, 0.0),
    )  # fmt: skip
    library.opcheck(
        torch.ops.castvision.route.default,
        (q.detach(), k.detach(), o["surrogates"], o["phi"], None, 4, "sa_topk", "softmax", "affinity"),
    )


@pytest.mark.parametrize("mixing", ["joint", "surrogate"])
@pytest.mark.parametrize("assignment", ["sa_topk", "topk"])
def test_dropout_over_several_chunks_has_the_gradient_of_its_own_masks(mixing, assignment, small_workspace):
    generator = torch.Generator().manual_seed(0)
    q, k, v, weight, step = (torch.randn(2, 2, 30, 4, generator=generator, dtype=torch.float64) for _ in range(5))
    surrogates, phi = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64), torch.zeros(2, 30, 1).double()
    v.requires_grad_()
    how = {"mixing": mixing, "assignment": assignment, "dropout_p": 0.3, "seed": 3}
    out, routing = cast_attention(q, k, v, surrogates, phi, **how)
    (out * weight).sum().backward()
    with torch.no_grad():  # linear in v: the difference is exact
        ahead = cast_attention(q, k, v + step, surrogates, phi, routing=routing, **how)[0]
        behind = cast_attention(q, k, v - step, surrogates, phi, routing=routing, **how)[0]
    torch.testing.assert_close(((ahead - behind) * weight).sum() / 2, (v.grad * step).sum())
