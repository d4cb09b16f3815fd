"""What the mathematics promises, for both mixings where not said otherwise."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from castvision.ops import cast_attention, coverage, make_routing, resample_surrogates
from tests.ops.cases import make_case

MIXINGS = pytest.mark.parametrize("mixing", ["joint", "surrogate"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
ASSIGNMENTS = pytest.mark.parametrize("assignment", ["sa_topk", "topk", "random"])


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """A few roundings of the dtype."""
    return {"rtol": 30 * torch.finfo(dtype).eps, "atol": 30 * torch.finfo(dtype).eps}


@DTYPES
@MIXINGS
@ASSIGNMENTS
@pytest.mark.parametrize("size", [(10, 7, 2), (16, 14, 2), (5, 8, 1), (13, 4, 4)])
def test_weights_sum_to_one(mixing: str, assignment: str, size: tuple[int, int, int], dtype: torch.dtype) -> None:
    case = make_case(*size, mixing=mixing, assignment=assignment, dtype=dtype)
    case.operands["v"] = torch.ones_like(case.operands["v"])
    torch.testing.assert_close(case.run("fused")[0], case.operands["v"], **tolerance(dtype))


@DTYPES
@MIXINGS
@pytest.mark.parametrize("prefix", [0, 2])
def test_one_cluster_is_full_attention(mixing: str, prefix: int, dtype: torch.dtype) -> None:
    case = make_case(9, 1, 9, prefix=prefix, mixing=mixing, dtype=dtype)
    o = case.operands
    expected = F.scaled_dot_product_attention(o["q"], o["k"], o["v"])
    torch.testing.assert_close(case.run("fused")[0], expected, **tolerance(dtype))


@DTYPES
def test_joint_with_single_token_clusters_is_full_attention(dtype: torch.dtype) -> None:
    case = make_case(9, 9, 1, dtype=dtype)
    o = case.operands
    expected = F.scaled_dot_product_attention(o["q"], o["k"], o["v"])
    torch.testing.assert_close(case.run("fused")[0], expected, **tolerance(dtype))


@DTYPES
def test_joint_equals_full_attention_when_keys_are_equal_inside_clusters(dtype: torch.dtype) -> None:
    case = make_case(12, 3, 4, dtype=dtype)
    index = case.options["routing"].index
    with torch.no_grad():
        for b in range(2):
            for members in index[b]:
                case.operands["k"][b, :, members] = case.operands["k"][b, :, members[:1]].clone()
        case.operands["phi"].zero_()
    o = case.operands
    expected = F.scaled_dot_product_attention(o["q"], o["k"], o["v"])
    torch.testing.assert_close(case.run("fused")[0], expected, **tolerance(dtype))


@DTYPES
@MIXINGS
def test_order_of_clusters_does_not_matter(mixing: str, dtype: torch.dtype) -> None:
    case = make_case(12, 4, 3, mixing=mixing, dtype=dtype)
    expected, routing = case.run("fused")
    order = torch.tensor([2, 0, 3, 1])
    case.operands["surrogates"] = case.operands["surrogates"][:, order]
    shuffled = make_routing(routing.index[:, order], 12, is_partition=True)
    torch.testing.assert_close(case.run("fused", routing=shuffled)[0], expected, **tolerance(dtype))


@MIXINGS
@pytest.mark.parametrize("assignment", ["sa_topk", "topk"])
def test_permutation_equivariant(mixing: str, assignment: str) -> None:
    case = make_case(12, 4, 3, mixing=mixing, assignment=assignment)
    del case.options["routing"]
    expected, _ = case.run("fused")
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    for name in ("q", "k", "v"):
        case.operands[name] = case.operands[name][:, :, order]
    case.operands["phi"] = case.operands["phi"][:, order]
    torch.testing.assert_close(case.run("fused")[0], expected[:, :, order])


@MIXINGS
@pytest.mark.parametrize("assignment", ["sa_topk", "topk"])
def test_gradients_are_zero_not_none_where_they_cannot_act(mixing: str, assignment: str) -> None:
    case = make_case(6, 1, 6, mixing=mixing, assignment=assignment)
    out, _ = case.run("fused")
    grads = torch.autograd.grad(out.square().sum(), [case.operands["surrogates"], case.operands["phi"]])
    assert all(g.abs().max() < 1e-12 for g in grads)


@MIXINGS
@ASSIGNMENTS
def test_padding_and_neighbours_change_nothing(mixing: str, assignment: str) -> None:
    """A batch gives what its images give alone, and poisoned values of masked tokens do not leak."""
    case = make_case(11, 3, 5, mixing=mixing, assignment=assignment)
    mask = torch.ones(2, 11, dtype=torch.bool)
    mask[0, 7:] = False
    routing = case.options["routing"]
    out, _ = case.run("fused", token_mask=mask)
    assert out[0, :, 7:].abs().max() == 0
    with torch.no_grad():
        case.operands["v"][0, :, 7:] = 1e6
        case.operands["k"][0, :, 7:] = 50.0
    torch.testing.assert_close(case.run("fused", token_mask=mask)[0], out)
    for b in range(2):
        alone = {n: x[b : b + 1] if n != "surrogates" else x for n, x in case.operands.items()}
        own = make_routing(routing.index[b : b + 1], 11, is_partition=routing.is_partition)
        single, _ = cast_attention(
            alone["q"], alone["k"], alone["v"], alone["surrogates"], alone["phi"], routing=own, mixing=mixing,
            token_mask=mask[b : b + 1],
        )  # fmt: skip
        torch.testing.assert_close(single, out[b : b + 1])


@DTYPES
@MIXINGS
def test_an_image_without_real_tokens_gives_zero(mixing: str, dtype: torch.dtype) -> None:
    case = make_case(8, 2, 4, mixing=mixing, masked=True, dtype=dtype)
    assert case.run("fused")[0][1].abs().max() == 0


def test_four_tokens_by_hand() -> None:
    """Two clusters {0, 1} and {2, 3}, D = 1, phi = 0, surrogates 0: summaries are plain means."""
    q = torch.tensor([1.0, 0.0, 2.0, -1.0], dtype=torch.float64).view(1, 1, 4, 1)
    k = torch.tensor([0.5, -0.5, 1.0, 3.0], dtype=torch.float64).view(1, 1, 4, 1)
    v = torch.tensor([1.0, 2.0, 3.0, 5.0], dtype=torch.float64).view(1, 1, 4, 1)
    zero = torch.zeros(1, 2, 1, dtype=torch.float64)
    routing = make_routing(torch.tensor([[[0, 1], [2, 3]]]), 4, is_partition=True)
    phi = torch.zeros(1, 4, 1, dtype=torch.float64)
    joint, _ = cast_attention(q, k, v, zero, phi, routing=routing, scale=1.0)
    # token 0: members e^.5, e^-.5; the other cluster's mean key 2 counts twice, its mean value is 4
    z = math.exp(0.5) + math.exp(-0.5) + 2 * math.exp(2.0)
    assert joint[0, 0, 0, 0].item() == pytest.approx((math.exp(0.5) + 2 * math.exp(-0.5) + 8 * math.exp(2.0)) / z)
    paper, _ = cast_attention(q, k, v, zero, phi, routing=routing, scale=1.0, mixing="surrogate")
    intra = (math.exp(0.5) + 2 * math.exp(-0.5)) / (math.exp(0.5) + math.exp(-0.5))
    assert paper[0, 0, 0, 0].item() == pytest.approx(0.5 * intra + 0.5 * 4)


def test_resampled_surrogates() -> None:
    surrogates = torch.randn(2, 3, 4)
    assert torch.equal(resample_surrogates(surrogates, 3), surrogates)
    assert torch.equal(resample_surrogates(surrogates, 5), surrogates[:, [0, 1, 2, 0, 1]])
    pairs = torch.cat([surrogates, surrogates + 1e-3], 1)
    fewer = resample_surrogates(pairs, 3)
    matched = torch.cdist(fewer.transpose(0, 1).flatten(1), (surrogates + 5e-4).transpose(0, 1).flatten(1)).amin(1)
    assert matched.max() < 1e-5
    assert torch.isfinite(resample_surrogates(torch.zeros(1, 6, 2), 4)).all()


def test_coverage_counts_tokens() -> None:
    routing = make_routing(torch.tensor([[[0, 1], [1, 2]]]), 5, is_partition=False)
    assert coverage(routing, 5).tolist() == [pytest.approx([0.4, 0.4, 0.2])]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixing": "joit"}, "did you mean 'joint'"),
        ({"assignment": "window"}, "grid_size"),
        ({"cluster_size": 1}, "at least 3"),
        ({"cluster_size": 99}, "cluster_size <= N"),
        ({"num_prefix_tokens": 11}, "num_prefix_tokens"),
        ({"dropout_p": 1.5}, "dropout_p"),
        ({"token_mask": torch.ones(2, 3)}, "token_mask"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str) -> None:
    x = torch.randn(2, 2, 11, 4)
    with pytest.raises(ValueError, match=message):
        cast_attention(x, x, x, torch.randn(2, 4, 4), torch.zeros(2, 11, 1), **change)


def test_mixed_dtypes_are_refused() -> None:
    x = torch.randn(1, 1, 4, 4)
    with pytest.raises(TypeError, match="cast them first"):
        cast_attention(x, x.double(), x, torch.randn(1, 2, 4), torch.zeros(1, 4, 1))
