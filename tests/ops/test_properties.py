"""Whatever may be asked of clustered attention: it equals its dense oracle, and what it may not see changes nothing."""

from __future__ import annotations

from contextlib import ExitStack
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from castvision.ops import Routing, attention, chunks, near_far
from tests.ops.property_cases import OF_TOKENS, Drawn, cases

FEW = settings(max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
PARTS = 8
MANY = settings(FEW, max_examples=10_000 // PARTS, derandomize=False, print_blob=True)
SPOILT = st.sampled_from([float("nan"), float("inf"), -float("inf")])


def implementation(form: str) -> ExitStack:
    """Inside, near and far is computed in that form, see `tests.ops.test_near_far.form`."""
    stack = ExitStack()
    if form == "by chunks of one window":
        for name in ("WORKSPACE", "LEAST_WORKSPACE", "SMALL_IMAGES"):
            stack.enter_context(patch.object(chunks, name, 1))
    if form == "as on a GPU":
        stack.enter_context(patch.object(near_far, "on_cpu", lambda x: False))
    if form in ("as on a GPU", "a window at a time"):
        stack.enter_context(patch.object(near_far, "WORKSPACE", 1))
    if form in ("as on a GPU", "a window at a time", "at once"):
        stack.enter_context(patch.object(attention, "on_cpu", lambda x: False))
    return stack


def magnitudes(case: Drawn) -> dict[str, float]:
    """How large the terms of each result are, which cancel and round: tolerances are relative to these."""
    most = {name: float(x.double().abs().max()) if x.numel() else 0.0 for name, x in case.operands.items()}
    weight, value = float(case.weight.abs().sum()) + 1e-3, most["v"] + 1e-3
    if case.options.activation == "laplace" and not case.options.laplace_norm:  # sums over keys, and sums of these
        value *= case.weight.shape[1] ** 2
    through_logits = 4 * weight * value * case.scale
    query, key = (max(most[n], most.get(f"{n}_route", 0), most.get("surrogate_tokens", 0)) + 1e-3 for n in ("q", "k"))
    either = 4 * max(query, key)
    return {
        "out": value, "v": weight, "q": through_logits * key, "q_route": through_logits * key,
        "k": through_logits * query, "k_route": through_logits * query, "surrogate_tokens": through_logits * either,
        "phi": through_logits * either**2,
    }  # fmt: skip


def remainders(case: Drawn, routing: Routing) -> Tensor:
    """Z outside a window over Z of the cluster, of every window, cluster and head: 1 where nothing is taken away."""
    options, prefix = case.options, case.arguments["num_prefix_tokens"]
    q, k = (case.operands[name][:, prefix:].double() for name in ("q", "k"))
    mask = case.arguments.get("token_mask")
    if options.summaries != "query_weighted" or routing.labels is None or not len(q):
        return torch.ones(1)
    number, tokens = routing.num_clusters, q.shape[1]
    if mask is not None:
        q, k = (x.masked_fill(~mask[..., None, None], 0) for x in (q, k))
    e, _ = near_far.exponents(k, near_far.mean_query(q, mask), routing.labels, number, case.scale)
    whole = torch.zeros(len(q), number + 1, e.shape[2], dtype=e.dtype)
    whole = whole.scatter_add(1, routing.labels[..., None].expand_as(e), e)[:, :number]
    grid = case.arguments["grid_size"]
    found = []
    for windows in attention._windows(options, grid or [1, tokens], grid is not None, routing, q):
        for members in windows.expand(len(q), -1, -1).unbind(1):
            inside = torch.zeros(len(q), tokens + 1, dtype=torch.bool).scatter(1, members, True)[:, :tokens]
            member = torch.nn.functional.one_hot(routing.labels, number + 1)[..., :number] * inside[..., None]
            found.append((whole - torch.einsum("bnm,bnh->bmh", member.double(), e)) / whole.clamp(min=1e-300))
    return torch.stack(found)


def is_comparable(case: Drawn, routing: Routing) -> bool:
    """Whether rounding cannot change which tokens are anchors, or whether a remainder counts as resolved."""
    dtype = case.operands["q"].dtype
    if dtype == torch.float64:
        return True
    rounding = 64 * torch.finfo(dtype).eps * (1 + case.magnitude)
    if bool(((remainders(case, routing) / 1e-3).log().abs() < rounding).any()):
        return False
    if not case.options.anchors or not len(case.operands["q"]):
        return True
    prefix, mask, grid = (case.arguments.get(name) for name in ("num_prefix_tokens", "token_mask", "grid_size"))
    q = case.operands["q"][:, prefix:]
    rows, cols = (grid or [1, q.shape[1]])[:2]
    chosen = [
        near_far.choose_anchors(x, case.options.anchors, case.options.anchor_selection, rows, cols, mask)
        for x in (q, q.double())
    ]
    return torch.equal(*chosen)


def check_against_oracle(case: Drawn) -> None:
    _, routing = case.run()
    with implementation(case.form):
        got = case.gradients(routing=routing)
    exact = {name: x.double() for name, x in case.operands.items()}
    expected = case.gradients(exact, routing=routing, backend="reference")
    rounding = 8 * torch.finfo(case.operands["q"].dtype).eps * (1 + case.magnitude)
    if case.options.anchors:
        rounding *= 256  # rounds of the fit over anchors
    check_means(case, got["out"])
    comparable, limits = is_comparable(case, routing), magnitudes(case)
    for name, wanted in expected.items():
        assert got[name].shape == wanted.shape
        assert bool(torch.isfinite(got[name]).all()), name
        if comparable and wanted.numel():
            assert float((got[name].double() - wanted).abs().max()) <= rounding * limits[name], name
    mask = case.arguments.get("token_mask")
    if mask is not None:
        prefix = case.arguments["num_prefix_tokens"]
        for name in ("out", *(name for name in OF_TOKENS if name in got)):
            rows = got[name][:, prefix if got[name].shape[1] > mask.shape[1] else 0 :]
            assert not bool(rows[~mask].any()), f"{name} of masked tokens"


def check_means(case: Drawn, out: Tensor) -> None:
    """Rows of near and far are means of values, however large the logits are."""
    v, mask = case.operands["v"].double(), case.arguments.get("token_mask")
    if case.options.attention != "near_far" or case.options.anchors or not len(v):
        return
    real = torch.ones(v.shape[:2], dtype=torch.bool)
    if mask is not None:
        real = torch.nn.functional.pad(mask, (v.shape[1] - mask.shape[1], 0), value=True)
    hidden, slack = ~real[..., None, None], v.abs().max() * (8 * torch.finfo(out.dtype).eps + 1e-3)
    low, high = v.masked_fill(hidden, torch.inf).amin(1), v.masked_fill(hidden, -torch.inf).amax(1)
    inside = (out.double() >= low[:, None] - slack) & (out.double() <= high[:, None] + slack)
    assert bool((inside | hidden).all())


def check_masked_tokens(case: Drawn, value: float) -> None:
    """What they hold reaches nothing, neither clusters nor a gradient."""
    mask = case.arguments.get("token_mask")
    if mask is None:
        return
    with implementation(case.form):
        blank, filled = (case.gradients(case.with_tokens(~mask, held)) for held in (0.0, value))
    for name, wanted in blank.items():
        assert torch.equal(filled[name], wanted), name


def check_spoilt_image(case: Drawn, value: float, share: float) -> None:
    """The other images' outputs and gradients have the bits that they have beside a sound one."""
    batch = len(case.operands["v"])
    tokens = case.operands["v"].shape[1] - case.arguments["num_prefix_tokens"]
    where = torch.zeros(batch, tokens, dtype=torch.bool)
    where[-1] = torch.rand(tokens, generator=torch.Generator().manual_seed(0)) < share
    where[-1, 0] = True
    with implementation(case.form):
        sound, spoilt = case.gradients(), case.gradients(case.with_tokens(where, value))
    for name in ("out", *(name for name in OF_TOKENS if name in sound)):
        assert torch.equal(spoilt[name][:-1], sound[name][:-1]), name


@FEW
@given(cases())
def test_equals_the_oracle(case: Drawn) -> None:
    check_against_oracle(case)


@FEW
@given(cases(is_masked=True), SPOILT)
def test_masked_tokens_may_hold_anything(case: Drawn, value: float) -> None:
    check_masked_tokens(case, value)


@FEW
@given(cases(least_images=2), SPOILT, st.sampled_from([0.0, 0.5, 1.0]))
def test_an_image_with_nan_spoils_only_itself(case: Drawn, value: float, share: float) -> None:
    check_spoilt_image(case, value, share)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(PARTS))  # for as many cores
@MANY
@given(case=cases(), value=SPOILT, share=st.sampled_from([0.0, 0.5, 1.0]))
def test_ten_thousand_calls(part: int, case: Drawn, value: float, share: float) -> None:
    check_against_oracle(case)
    check_masked_tokens(case, value)
    if len(case.operands["v"]) > 1:
        check_spoilt_image(case, value, share)
