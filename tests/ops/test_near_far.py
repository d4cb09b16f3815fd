"""Near and far: every implementation gives what the dense oracle gives, and the facts that the definition promises."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from castvision.ops import attention, cast_attention, chunks, make_options, near_far
from castvision.ops.partitions import unpadded, window_index
from castvision.ops.surrogates import nearest, routing_features, sample_surrogates
from tests.ops.near_far_cases import Case, make_case, routing_of

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
SUMMARIES = pytest.mark.parametrize("summaries", ["mean", "query_weighted"])


@pytest.fixture(
    params=["streamed", "without padding", "by chunks of one window", "as on a GPU", "a window at a time", "at once"]
)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The implementations: by chunks as they come, by the smallest ones, as accelerators have it, the plain form."""
    if request.param == "without padding":
        monkeypatch.setattr(attention, "WORTH_SPLITTING", 1)
    if request.param == "by chunks of one window":
        for name in ("WORKSPACE", "LEAST_WORKSPACE", "SMALL_IMAGES"):
            monkeypatch.setattr(chunks, name, 1)
    if request.param == "as on a GPU":
        monkeypatch.setattr(near_far, "on_cpu", lambda x: False)
    if request.param in ("as on a GPU", "a window at a time"):
        monkeypatch.setattr(near_far, "WORKSPACE", 1)
    if request.param in ("as on a GPU", "a window at a time", "at once"):
        monkeypatch.setattr(attention, "on_cpu", lambda x: False)
    return str(request.param)


def full_attention(case: Case) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in case.operands)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


@pytest.mark.usefixtures("form")
@SUMMARIES
@pytest.mark.parametrize(
    ("grid", "window", "clusters"),
    [((4, 4), 2, 3), ((5, 7), 3, 6), ((1, 6), 2, 2), ((3, 3), 3, 4), ((1, 1), 2, 1), ((4, 3), 2, 40)],
)
def test_equals_the_oracle(grid: tuple[int, int], window: int, clusters: int, summaries: str) -> None:
    for prefix, masked, shift, loud in itertools.product((0, 2), (False, True), (False, True), (False, True)):
        case = make_case(
            grid, prefix=prefix, masked=masked, loud=loud, window_size=window, num_clusters=clusters,
            summaries=summaries, shift_windows=shift,
        )  # fmt: skip
        weight = torch.randn(case.operands[0].shape, dtype=torch.float64)
        expected, expected_grads = case.gradients(weight, backend="reference")
        out, grads = case.gradients(weight)
        torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-10)
        for got, wanted in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-9)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(
    "options",
    [
        {"neighborhood": "cluster", "assignment": "sa_topk"}, {"summaries": "none"}, {"assignment": "blocks"},
        {"assignment": "random"}, {"neighborhood": "cluster", "assignment": "blocks"},
    ],
    ids=str,
)  # fmt: skip
def test_controls_equal_the_oracle(options: dict[str, Any]) -> None:
    case = make_case((5, 7), prefix=1, masked=True, num_clusters=6, **options)
    weight = torch.randn(case.operands[0].shape, dtype=torch.float64)
    expected, expected_grads = case.gradients(weight, backend="reference")
    out, grads = case.gradients(weight)
    torch.testing.assert_close(out, expected)
    for got, wanted in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.usefixtures("form")
@SUMMARIES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_lower_precision(dtype: torch.dtype, summaries: str) -> None:
    """Errors stay within a few roundings of the dtype, measured against float64 on the same rounded operands."""
    case = make_case((6, 7), prefix=1, window_size=3, num_clusters=6, summaries=summaries, dtype=dtype)
    weight = torch.randn(case.operands[0].shape).to(dtype)
    out, grads = case.gradients(weight)
    assert out.dtype == dtype
    case.operands = [x.detach().double().requires_grad_() for x in case.operands]
    expected, expected_grads = case.gradients(weight.double(), backend="reference")
    tolerance = 30 * torch.finfo(dtype).eps
    assert (out.double() - expected).abs().max() <= tolerance * expected.abs().max()
    for got, wanted in zip(grads, expected_grads, strict=True):
        assert (got.double() - wanted).abs().max() <= 2 * tolerance * wanted.abs().max()


@SUMMARIES
def test_gradcheck_with_anchors(summaries: str) -> None:
    """Through summaries, the mean query, exact rows and the fit over anchors."""
    case = make_case((3, 4), prefix=1, window_size=2, num_clusters=4, summaries=summaries, anchors=3, batch=1)

    def run(*operands: Tensor) -> Tensor:
        case.operands = list(operands)
        return case.run()

    assert torch.autograd.gradcheck(run, tuple(case.operands))


@pytest.mark.usefixtures("form")
@DTYPES
@pytest.mark.parametrize("summaries", ["mean", "query_weighted", "none"])
@pytest.mark.parametrize("anchors", [0, 3])
def test_weights_sum_to_one(dtype: torch.dtype, summaries: str, anchors: int) -> None:
    case = make_case((5, 6), prefix=1, window_size=2, num_clusters=5, summaries=summaries, anchors=anchors, dtype=dtype)
    case.operands[2] = torch.ones_like(case.operands[2])
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(case.run(), case.operands[2], rtol=8 * eps, atol=8 * eps)


@pytest.mark.usefixtures("form")
def test_a_query_equal_to_the_mean_query_gets_full_attention() -> None:
    """Whatever the clusters: so with all queries equal every row is exact."""
    case = make_case((5, 6), window_size=2, num_clusters=4, summaries="query_weighted")
    with torch.no_grad():
        case.operands[0][:] = case.operands[0][:, :1].clone()
    torch.testing.assert_close(case.run(), full_attention(case))
    case = make_case((5, 6), window_size=2, num_clusters=4, summaries="query_weighted", batch=1)
    with torch.no_grad():
        q = case.operands[0]
        q[0, 7] = q[0, [n for n in range(30) if n != 7]].mean(0)  # which makes it the mean of all
    torch.testing.assert_close(case.run()[0, 7], full_attention(case)[0, 7])


@pytest.mark.usefixtures("form")
@SUMMARIES
def test_equals_full_attention_where_it_must(summaries: str) -> None:
    """A window that holds all tokens; as many clusters as tokens; equal keys inside every cluster. Prefix included."""
    for options in ({"window_size": 6, "num_clusters": 3}, {"window_size": 2, "num_clusters": 30}):
        case = make_case((5, 6), prefix=2, summaries=summaries, **options)
        torch.testing.assert_close(case.run(), full_attention(case))
    case = make_case((5, 6), window_size=2, num_clusters=4, summaries=summaries)
    labels = case.arguments["routing"].labels
    with torch.no_grad():
        for b in range(2):
            for n in range(30):
                same = (labels[b] == labels[b, n]).nonzero()[0, 0]
                case.operands[1][b, n] = case.operands[1][b, same].clone()
    torch.testing.assert_close(case.run(), full_attention(case))


def test_a_hand_computed_case() -> None:
    """Four tokens in a row, windows of two, two clusters {0, 2} and {1, 3}, one head of width one."""
    q = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 4, 1, 1)
    k = torch.tensor([0.0, 0.0, 1.0, 2.0]).view(1, 4, 1, 1)
    v = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)
    options = make_options(window_size=2, num_clusters=2)
    out, _ = cast_attention(q, k, v, options, [1, 4], routing=routing_of([[0, 1, 0, 1]], 2), scale=1.0)
    # of cluster 0 token 2 is outside the first window, of cluster 1 token 3: one member each, log 1 = 0
    weights = torch.tensor([0.0, 0.0, 1.0, 2.0]).softmax(0)
    assert out[0, 0].item() == pytest.approx(float(weights @ v[0, :, 0, 0]))
    assert out[0, 1].item() == pytest.approx(2.5)  # a query of zero weighs all tokens alike
    # with one cluster, its three members outside the window of one token are one key: their mean, standing for three
    options = make_options(window_size=1, num_clusters=1)
    out, _ = cast_attention(q, k, v, options, [1, 4], routing=routing_of([[0, 0, 0, 0]], 1), scale=1.0)
    weights = torch.tensor([0.0, 1.0 + torch.tensor(3.0).log()]).softmax(0)
    assert out[0, 0].item() == pytest.approx(float(weights @ torch.tensor([1.0, 3.0])))


@pytest.mark.usefixtures("form")
@SUMMARIES
def test_invariances(summaries: str) -> None:
    """Images do not see each other, the order of clusters is nothing, masked tokens change nothing (NaN neither)."""
    case = make_case((5, 6), prefix=1, window_size=2, num_clusters=6, summaries=summaries, anchors=2)
    alone = Case([x[1:] for x in case.operands], case.options, {**case.arguments, "routing": None})
    torch.testing.assert_close(case.run(routing=None)[1:], alone.run())
    routing = case.arguments["routing"]
    order = torch.randperm(routing.num_clusters)
    torch.testing.assert_close(case.run(routing=routing._replace(labels=order[routing.labels])), case.run())
    case = make_case((5, 6), prefix=1, masked=True, window_size=2, num_clusters=6, summaries=summaries, anchors=2)
    expected, hidden = case.run(), ~F.pad(case.arguments["token_mask"], (1, 0), value=True)
    assert not expected[hidden].any()
    weight = torch.randn(case.operands[0].shape, dtype=torch.float64)
    expected_grads = case.gradients(weight)[1]
    case.operands = [x.detach().masked_fill(hidden[..., None, None], torch.nan).requires_grad_() for x in case.operands]
    out, grads = case.gradients(weight)
    torch.testing.assert_close(out, expected)
    for got, wanted in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(got[~hidden], wanted[~hidden])
        assert not got[hidden].any()


def test_nan_in_one_image_spoils_no_other() -> None:
    case = make_case((5, 6), window_size=2, anchors=2, summaries="query_weighted")
    expected = case.run(routing=None)[1]
    case.operands = [x.detach().clone() for x in case.operands]
    case.operands[1][0, 3] = torch.nan
    torch.testing.assert_close(case.run(routing=None)[1], expected)


@pytest.mark.usefixtures("form")
def test_one_token_that_outweighs_its_cluster() -> None:
    """Its remainder is a small difference of large sums: masked by count, never by Z; nothing is NaN in fp32."""
    for masked_by_count, labels in ((True, [[0] + [1] * 15]), (False, [[0] * 16])):
        q, k, v = (torch.randn(1, 16, 1, 4, dtype=torch.float64) for _ in range(3))
        k[0, 0], q = 60.0, q + 3  # exponent 60 * 4 * 3 / 2 = 360 above the others
        options = make_options(window_size=2, num_clusters=2, summaries="query_weighted")
        case = Case(
            [x.requires_grad_() for x in (q, k, v)], options, {"grid_size": [4, 4], "routing": routing_of(labels, 2)}
        )
        expected, expected_grads = case.gradients(torch.ones_like(q), backend="reference")
        out, grads = case.gradients(torch.ones_like(q))
        torch.testing.assert_close(out, expected)
        for got, wanted in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-8)
        case.operands = [x.detach().float().requires_grad_() for x in case.operands]
        assert torch.isfinite(case.gradients(torch.ones(1, 16, 1, 4))[0]).all(), masked_by_count


def test_further_grids_are_windows_of_their_own_and_take_part_in_clusters() -> None:
    """Tokens of a context: among themselves one by one, to the tile's through summaries, and the other way round."""
    q, k, v = (torch.randn(1, 16 + 6, 2, 4, dtype=torch.float64) for _ in range(3))
    options = make_options(window_size=2, num_clusters=22)
    arguments = {"grid_size": [4, 4, 2, 3], "routing": routing_of([list(range(22))], 22)}
    case = Case([x.requires_grad_() for x in (q, k, v)], options, arguments)
    torch.testing.assert_close(case.run(), full_attention(case))  # every token its own cluster
    alone = Case(case.operands, make_options(window_size=2, summaries="none"), {"grid_size": [4, 4, 2, 3]})
    expected = full_attention(Case([x[:, 16:] for x in case.operands], options))
    torch.testing.assert_close(alone.run()[:, 16:], expected)
    grads = case.gradients(torch.ones_like(q))[1]
    torch.testing.assert_close(grads, case.gradients(torch.ones_like(q), backend="reference")[1])


def test_without_a_grid_windows_are_runs_of_tokens() -> None:
    case = make_case((1, 10), window_size=2, summaries="none")
    out = case.run(grid_size=None, routing=None)
    for start in range(0, 10, 4):  # 2 ** 2 tokens each
        part = Case([x[:, start : start + 4] for x in case.operands], case.options)
        torch.testing.assert_close(out[:, start : start + 4], full_attention(part))


def test_memory_grows_with_the_tokens_and_not_with_their_square() -> None:
    """No tensor of the forward or the backward pass is near H * N * M elements."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else (out,):
                if isinstance(x, Tensor):
                    self.elements = max(self.elements, x.untyped_storage().nbytes() // max(1, x.element_size()))
            return out

    for summaries in ("mean", "query_weighted"):
        q, k, v = (torch.randn(1, 128 * 128, 2, 16, requires_grad=True) for _ in range(3))
        with Largest() as spy:
            out, routing = cast_attention(q, k, v, make_options(summaries=summaries, anchors=8), [128, 128])
            out.sum().backward()
        assert routing.num_clusters == 256
        assert spy.elements <= 2 * (q.numel() + (1 << 17)) < 2 * 128**2 * 256 / 4


@pytest.mark.parametrize(("refinements", "centers"), [(0, [0.0, 1.1, 9.0]), (1, [0.05, 1.05, 9.5])])
def test_sampled_surrogates_by_hand(refinements: int, centers: list[float]) -> None:
    features = torch.tensor([0.0, 0.1, 1.0, 1.1, 10.0, 9.0])[None, :, None]
    surrogates, usable = sample_surrogates(features, torch.tensor([0, 3, 5]), refinements, None)
    assert surrogates[0, :, 0].tolist() == pytest.approx(centers)
    assert usable.all()
    assert nearest(features, surrogates, usable).tolist() == [[0, 0, 1, 1, 2, 2]]


def test_masked_tokens_give_no_start_and_join_nothing() -> None:
    features = torch.tensor([5.0, 0.0, 1.0, 9.0])[None, :, None]
    mask = torch.tensor([[False, True, True, True]])
    surrogates, usable = sample_surrogates(features, torch.tensor([0, 1, 3]), 1, mask)
    assert usable.tolist() == [[False, True, True]]
    assert surrogates[0, 1:, 0].tolist() == [0.5, 9.0]
    blank = torch.zeros(1, 4, 1)  # identical tokens: all join the first
    labels = nearest(blank, blank[:, :2], torch.ones(1, 2, dtype=torch.bool))
    assert labels.tolist() == [[0, 0, 0, 0]]


def test_features_are_head_means_without_a_gradient() -> None:
    k = torch.randn(1, 3, 2, 4, requires_grad=True, dtype=torch.bfloat16)
    features = routing_features(k)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    torch.testing.assert_close(features, k.detach().float().mean(2))


def test_dropout_drops_whole_weights_and_keeps_the_mean() -> None:
    case = make_case((4, 4), window_size=2, num_clusters=4, dtype=torch.float32)
    case.operands[2] = torch.ones_like(case.operands[2])
    torch.manual_seed(0)
    drawn = torch.stack([case.run(dropout_p=0.5).detach() for _ in range(200)])
    assert drawn.mean() == pytest.approx(1.0, abs=0.02)
    assert drawn.std() > 0.1


def test_windows_tile_the_grid() -> None:
    like = torch.empty(0)
    index = window_index(3, 5, 2, 2, False, like)
    assert index.tolist()[0] == [0, 1, 5, 6]
    assert index.tolist()[2] == [4, 15, 9, 15]  # ragged at the right
    assert index.tolist()[3] == [10, 11, 15, 15]  # and below
    for shift in (False, True):
        members = window_index(3, 5, 2, 2, shift, like).flatten()
        assert sorted(members[members < 15].tolist()) == list(range(15))
    assert window_index(3, 5, 2, 2, True, like).tolist()[0] == [15, 15, 15, 0]


def test_windows_without_padding_are_the_same_windows() -> None:
    like = torch.empty(0)
    found = unpadded(window_index(3, 5, 2, 2, False, like), 15)
    assert [index.tolist() for index in found] == [
        [[[14]]],
        [[[4, 9], [10, 11], [12, 13]]],
        [[[0, 1, 5, 6], [2, 3, 7, 8]]],
    ]
    for shift in (False, True):
        index = window_index(19, 21, 8, 8, shift, like)
        split = [window.tolist() for one in unpadded(index, 19 * 21) for window in one[0]]
        assert sorted(split) == sorted([token for token in window if token < 19 * 21] for window in index.tolist())


def test_large_ragged_grids_go_without_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """And give what they give with it, to the last digits."""
    case = make_case((19, 21), prefix=1, masked=True, window_size=8, num_clusters=9)
    weight = torch.randn(case.operands[0].shape, dtype=torch.float64)
    sizes: list[list[int]] = []
    real = attention.streaming.near_far
    monkeypatch.setattr(
        attention.streaming,
        "near_far",
        lambda x, windows, *rest: sizes.append([w.shape[2] for w in windows]) or real(x, windows, *rest),
    )
    out, grads = case.gradients(weight)
    monkeypatch.setattr(attention, "WORTH_SPLITTING", 10**9)
    expected, expected_grads = case.gradients(weight)
    assert sizes == [[15, 24, 40, 64], [64]]
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    for got, wanted in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


def test_more_anchors_than_tokens_are_all_tokens() -> None:
    case = make_case((4, 5), anchors=20, num_clusters=4)
    more = make_case((4, 5), anchors=100_000, num_clusters=4)  # whose fit would take terabytes
    torch.testing.assert_close(more.run(), case.run())
