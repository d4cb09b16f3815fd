"""Anchors: which rows are exact, and how what they are off is shared."""

from __future__ import annotations

import pytest
import torch

from castvision.ops.near_far import choose_anchors, share_differences
from tests.ops.near_far_cases import make_case
from tests.ops.test_near_far import full_attention


def test_farthest_first_by_hand() -> None:
    """From the middle on, each next one is the farthest from all chosen, in the mean over heads; masked ones never."""
    x = torch.tensor([0.0, 10.0, 1.0, 6.0, 2.0]).view(1, 5, 1, 1)
    assert choose_anchors(x, 4, "farthest", 1, 5, None).tolist() == [[2, 1, 3, 0]]
    mask = torch.tensor([[True, False, True, True, True]])
    assert choose_anchors(x, 3, "farthest", 1, 5, mask).tolist() == [[2, 3, 0]]
    two_heads = torch.cat([x, torch.tensor([0.0, 0.0, 0.0, 0.0, 50.0]).view(1, 5, 1, 1)], 2)
    assert choose_anchors(two_heads, 2, "farthest", 1, 5, None).tolist() == [[2, 4]]
    cancelling = torch.cat([x, -x], 2)
    assert choose_anchors(cancelling, 2, "farthest", 1, 5, None).tolist() == [[2, 0]]


def test_anchors_on_a_grid() -> None:
    x = torch.randn(2, 16, 1, 4)
    assert choose_anchors(x, 4, "grid", 4, 4, None).tolist() == [[0, 3, 12, 15]] * 2
    mask = torch.ones(2, 16, dtype=torch.bool)
    mask[0, 0] = False
    assert choose_anchors(x, 4, "grid", 4, 4, mask).tolist() == [[1, 3, 12, 15], [0, 3, 12, 15]]


def test_an_only_anchor_shares_its_difference_with_all() -> None:
    q, out = torch.randn(1, 6, 2, 4), torch.randn(1, 6, 2, 4)
    exact = torch.randn(1, 1, 2, 4)
    shared = share_differences(q, out, torch.tensor([[2]]), exact, 0.5)
    torch.testing.assert_close(shared, out + (exact - out[:, 2:3]))


def test_differences_are_fitted_by_256_rounds_of_a_gaussian_smoother() -> None:
    q, out, exact = (torch.randn(1, 7, 1, 4, dtype=torch.float64) for _ in range(3))
    anchors, scale = [1, 4, 6], 0.5
    weight = (-torch.cdist(q[0, :, 0], q[0, anchors, 0]).square() * scale / 8).softmax(1)
    difference = exact[0, :3, 0] - out[0, anchors, 0]
    fitted = difference
    for _ in range(255):
        fitted = fitted + difference - weight[anchors] @ fitted
    shared = share_differences(q, out, torch.tensor([anchors]), exact[:, :3], scale)
    torch.testing.assert_close(shared[0, :, 0], out[0, :, 0] + weight @ fitted)


def test_a_difference_linear_in_the_query_is_found() -> None:
    """From a few anchors, for every token: what a kernel average of neighbours cannot do."""
    q = torch.randn(1, 200, 2, 3, dtype=torch.float64)
    lacking = torch.einsum("bnhd,hde->bnhe", q, torch.randn(2, 3, 3, dtype=torch.float64))
    anchors = choose_anchors(q, 40, "farthest", 10, 20, None)
    shared = share_differences(q, torch.zeros_like(q), anchors, lacking[:, anchors[0]], 3**-0.5)
    assert (shared - lacking).square().mean() < 0.02 * lacking.square().mean()


def test_half_precision_is_fitted_in_fp32() -> None:
    """Fitted values are many times the differences and cancel: rounded to half precision they would leave noise."""
    q, out, exact = torch.randn(1, 80, 2, 4), torch.randn(1, 80, 2, 4), torch.randn(1, 30, 2, 4)
    anchors = torch.arange(30)[None]
    expected = share_differences(q.bfloat16().float(), out.bfloat16().float(), anchors, exact.bfloat16().float(), 0.5)
    shared = share_differences(q.bfloat16(), out.bfloat16(), anchors, exact.bfloat16(), 0.5)
    torch.testing.assert_close(shared.float(), expected, rtol=2**-7, atol=2**-6)


@pytest.mark.parametrize("selection", ["farthest", "grid"])
def test_as_many_anchors_as_far_apart_queries_are_full_attention(selection: str) -> None:
    """With every token an anchor, and queries so far apart that each takes its own difference, all rows are exact."""
    case = make_case((3, 4), prefix=1, window_size=2, num_clusters=3, anchors=12, anchor_selection=selection)
    with torch.no_grad():
        case.operands[0] *= 40
    torch.testing.assert_close(case.run(), full_attention(case))


def test_an_anchor_chosen_twice_counts_once() -> None:
    """So an image with fewer tokens than anchors has as many anchors as tokens."""
    q, out, exact = torch.randn(1, 6, 2, 4), torch.randn(1, 6, 2, 4), torch.randn(1, 4, 2, 4)
    once = share_differences(q, out, torch.tensor([[2, 5, 0]]), exact[:, :3], 0.5)
    exact[:, 3] = exact[:, 1]
    torch.testing.assert_close(share_differences(q, out, torch.tensor([[2, 5, 0, 5]]), exact, 0.5), once)
    chosen = choose_anchors(q, 9, "farthest", 2, 3, None)
    assert sorted(set(chosen[0].tolist())) == list(range(6))
