"""The paper's attention equals its dense oracle, forward and backward, and keeps what the mathematics promises."""

import logging
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from castvision.ops import arithmetic, cast_attention, make_options, paper, reference
from castvision.ops.options import AttentionOptions, Operands
from castvision.ops.paper import paper_attention
from castvision.ops.paper_routing import learned_clusters
from tests.ops.test_paper_attend import Largest

SIZES = [  # N, M, K, P: ragged, empty clusters, K = 1, K = N, M = 1, N = 1, M > N
    (10, 7, 2, 0), (10, 7, 2, 2), (16, 14, 2, 0), (5, 8, 1, 1), (12, 1, 12, 1), (9, 9, 1, 0), (13, 4, 4, 1),
    (1, 1, 1, 0), (1, 3, 1, 1),
]  # fmt: skip
FUNCTIONS = [("softmax", False), ("laplace", False), ("laplace", True)]
ASSIGNMENTS = ["topk", "sa_topk", "random"]


@dataclass
class Case:
    """Operands of one call by name, and the rest of it."""

    operands: dict[str, Tensor]
    index: Tensor
    is_partition: bool
    token_mask: Tensor | None = None
    options: AttentionOptions = field(default_factory=lambda: AttentionOptions(mixing="surrogate"))

    def run(self, oracle: bool = False, dropout_p: float = 0.0, seed: int = 0) -> Tensor:
        o = self.operands
        x = Operands(o["q"], o["k"], o["v"], o.get("prefix_k"), o.get("prefix_v"), self.token_mask, 0.5)
        own, routes = (o["surrogates"], o["phi"], self.index), (o.get("q_route"), o.get("k_route"))
        if oracle:
            return reference.paper_attention(x, *own, *routes, self.options)
        torch.manual_seed(seed)
        return paper_attention(x, *own, self.is_partition, *routes, self.options, dropout_p)

    def gradients(self, oracle: bool = False, **dropout: Any) -> dict[str, Tensor]:
        """Output and gradients of every operand."""
        out = self.run(oracle, **dropout)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        loss = (out * weight.to(out.dtype)).sum()
        grads = torch.autograd.grad(loss, list(self.operands.values()), allow_unused=True, materialize_grads=True)
        return {"out": out.detach(), **dict(zip(self.operands, grads, strict=True))}


def make_case(
    num_tokens: int = 13, num_clusters: int = 4, cluster_size: int = 4, prefix: int = 0, *, assignment: str = "topk",
    masked: bool = False, own_route: bool = False, dtype: torch.dtype = torch.float64, heads: int = 2, **options: Any,
) -> Case:  # fmt: skip
    """Random operands of two images, D = 4; of a masked case's second image no token is real."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    operands = {name: draw(2, num_tokens, heads, 4) for name in ("q", "k", "v")}
    operands |= {"surrogates": draw(heads, num_clusters, 4), "phi": draw(2, num_tokens, 1)}
    if prefix:
        operands |= {name: draw(2, prefix, heads, 4) for name in ("prefix_k", "prefix_v")}
    if own_route:
        operands |= {name: draw(2, num_tokens, heads, 4) for name in ("q_route", "k_route")}
    mask = None
    if masked:
        mask = torch.rand(2, num_tokens, generator=generator) > 0.3
        mask[1] = False
    if assignment == "random":
        places = max(num_clusters * cluster_size, num_tokens)
        order = torch.stack([torch.randperm(places, generator=generator) for _ in range(2)]).clamp(max=num_tokens)
        index = order[:, : num_clusters * cluster_size].view(2, num_clusters, cluster_size)
    else:
        o = {name: x.detach() for name, x in operands.items()}
        routed = (o.get("q_route", o["q"]), o.get("k_route", o["k"]), o["surrogates"], o["phi"], mask)
        index = learned_clusters(*routed, cluster_size, assignment)
    chosen = AttentionOptions(mixing="surrogate", **{"summaries": "surrogate_weighted", **options})
    return Case(operands, index, assignment != "topk", mask, chosen)


def assert_equal_gradients(case: Case, **tolerance: float) -> None:
    mine, expected = case.gradients(), case.gradients(oracle=True)
    for name, value in expected.items():
        torch.testing.assert_close(mine[name], value, **tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("summaries", ["surrogate_weighted", "none"])
@pytest.mark.parametrize(("activation", "norm"), FUNCTIONS)
def test_equals_the_oracle(size, assignment: str, summaries: str, activation: str, norm: bool) -> None:
    for masked, own_route in ((False, False), (True, True)):
        case = make_case(
            *size, assignment=assignment, masked=masked, own_route=own_route, activation=activation, laplace_norm=norm,
            summaries=summaries,
        )  # fmt: skip
        assert_equal_gradients(case, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("activation", ["softmax", "laplace"])
def test_small_chunks_change_nothing(assignment: str, activation: str, monkeypatch) -> None:
    monkeypatch.setattr(paper, "WORKSPACE", 64)
    case = make_case(30, 5, 8, 1, assignment=assignment, masked=True, activation=activation)
    assert_equal_gradients(case, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("assignment", ["topk", "sa_topk"])
@pytest.mark.parametrize("activation", ["softmax", "laplace"])
@pytest.mark.parametrize("slow_half", [False, True])
def test_lower_precision(dtype: torch.dtype, assignment: str, activation: str, slow_half: bool, monkeypatch) -> None:
    """Errors stay within a few roundings of the dtype, measured against float64 on the same rounded operands."""
    monkeypatch.setattr(arithmetic, "_HALF_IS_SLOW", slow_half)
    case = make_case(40, 5, 8, 1, assignment=assignment, dtype=dtype, activation=activation, own_route=True)
    results = case.gradients()
    assert all(x.dtype == dtype for x in results.values())
    case.operands = {name: x.detach().double().requires_grad_() for name, x in case.operands.items()}
    for name, expected in case.gradients(oracle=True).items():
        error = (results[name].double() - expected).abs().max() / expected.abs().max()
        assert error <= 16 * torch.finfo(dtype).eps, name


def test_half_precision_without_arithmetic_is_told_once(monkeypatch, caplog) -> None:
    monkeypatch.setattr(arithmetic, "_HALF_IS_SLOW", True)
    arithmetic._warn_of_half.cache_clear()
    with caplog.at_level(logging.WARNING, "castvision"):
        for _ in range(2):
            make_case(dtype=torch.bfloat16).run()
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("assignment", ["topk", "sa_topk"])
@pytest.mark.parametrize("options", [{}, {"activation": "laplace"}, {"summaries": "none"}], ids=str)
def test_gradcheck(assignment: str, options: dict[str, Any]) -> None:
    case = make_case(7, 3, 3, 1, assignment=assignment, heads=1, **options)
    names = list(case.operands)

    def run(*operands: Tensor) -> Tensor:
        case.operands = dict(zip(names, operands, strict=True))
        return case.run()

    assert torch.autograd.gradcheck(run, tuple(case.operands.values()), fast_mode=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("size", [(10, 7, 2), (16, 14, 2), (5, 8, 1), (13, 4, 4)], ids=str)
def test_weights_sum_to_one(assignment: str, size: tuple[int, int, int], dtype: torch.dtype) -> None:
    case = make_case(*size, assignment=assignment, dtype=dtype)
    ones = case.operands["v"] = torch.ones_like(case.operands["v"])
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(case.run(), ones, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("assignment", ["topk", "sa_topk"])
@pytest.mark.parametrize("prefix", [0, 2])
def test_one_cluster_is_full_attention(assignment: str, prefix: int, dtype: torch.dtype) -> None:
    case = make_case(9, 1, 9, prefix, assignment=assignment, dtype=dtype)
    o = case.operands
    keys, values = o["k"], o["v"]
    if prefix:
        keys, values = torch.cat([o["prefix_k"], keys], 1), torch.cat([o["prefix_v"], values], 1)
    expected = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (o["q"], keys, values)), scale=0.5)
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(case.run(), expected.transpose(1, 2), rtol=tolerance, atol=tolerance)
    grads = case.gradients()
    assert grads["surrogates"].abs().max() < 8 * tolerance and grads["phi"].abs().max() < 8 * tolerance


def test_four_tokens_by_hand() -> None:
    """Clusters {0, 1} and {2, 3}, D = 1, phi = 0, surrogates 0: summaries are plain means."""
    q, k, v = (torch.tensor(x).double().view(1, 4, 1, 1) for x in ([1, 0, 2, -1], [0.5, -0.5, 1, 3], [1, 2, 3, 5]))
    zero, phi = torch.zeros(1, 2, 1).double(), torch.zeros(1, 4, 1).double()
    index = torch.tensor([[[0, 1], [2, 3]]])
    x = Operands(q, k, v, None, None, None, 1.0)
    intra = (math.exp(0.5) + 2 * math.exp(-0.5)) / (math.exp(0.5) + math.exp(-0.5))
    out = paper_attention(x, zero, phi, index, True, None, None, AttentionOptions(), 0.0)
    assert out[0, 0, 0, 0].item() == pytest.approx(0.5 * intra + 0.5 * 4)


@pytest.mark.parametrize("assignment", ["topk", "sa_topk"])
def test_order_of_clusters_does_not_matter(assignment: str) -> None:
    case = make_case(12, 4, 3, assignment=assignment, masked=True)
    expected, order = case.run(), torch.tensor([2, 0, 3, 1])
    case.operands["surrogates"], case.index = case.operands["surrogates"][:, order], case.index[:, order]
    torch.testing.assert_close(case.run(), expected)


@pytest.mark.parametrize("assignment", ["topk", "sa_topk"])
def test_permutation_equivariant(assignment: str) -> None:
    case = make_case(12, 4, 3, assignment=assignment)
    expected, order = case.run(), torch.randperm(12, generator=torch.Generator().manual_seed(1))
    for name in ("q", "k", "v", "phi"):
        case.operands[name] = case.operands[name][:, order]
    case.index = learned_clusters(*(case.operands[n] for n in ("q", "k", "surrogates", "phi")), None, 3, assignment)
    torch.testing.assert_close(case.run(), expected[:, order])


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("activation", ["softmax", "laplace"])
@pytest.mark.parametrize("summaries", ["surrogate_weighted", "none"])
@pytest.mark.parametrize("poison", [1e30, torch.nan, torch.inf])
def test_masked_tokens_may_hold_anything(assignment: str, activation: str, summaries: str, poison: float) -> None:
    case = make_case(
        11, 3, 5, 1, assignment=assignment, masked=True, own_route=True, activation=activation, summaries=summaries
    )
    expected = case.gradients()
    hidden = ~case.token_mask
    assert not expected["out"][hidden].any()
    with torch.no_grad():
        for name in ("q", "k", "v", "phi", "q_route", "k_route"):
            case.operands[name][hidden] = poison
    for name, value in case.gradients().items():
        assert torch.equal(value, expected[name]), name
        if name in ("q", "k", "v", "phi", "q_route", "k_route"):
            assert not value[hidden].any()


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("activation", ["softmax", "laplace"])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_an_image_with_nan_spoils_only_itself(assignment: str, activation: str, poison: float) -> None:
    case = make_case(11, 3, 5, 1, assignment=assignment, activation=activation)
    expected = case.gradients()
    with torch.no_grad():
        for name in ("q", "k", "v", "phi"):
            case.operands[name][1, -1] = poison
    spoilt = case.gradients()
    for name in set(expected) - {"surrogates"}:
        assert torch.equal(spoilt[name][0], expected[name][0]), name
    assert spoilt["out"][1, -1].isnan().any()


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_a_batch_gives_what_its_images_give_alone(assignment: str) -> None:
    case = make_case(11, 3, 5, 1, assignment=assignment)
    out, index = case.run(), case.index
    operands = case.operands
    for b in range(2):
        case.operands = {n: x if n == "surrogates" else x[b : b + 1] for n, x in operands.items()}
        case.index = index[b : b + 1]
        torch.testing.assert_close(case.run(), out[b : b + 1])


@pytest.mark.parametrize("assignment", ["topk", "sa_topk"])
@pytest.mark.parametrize("summaries", ["surrogate_weighted", "none"])
def test_logits_of_ten_thousand(assignment: str, summaries: str) -> None:
    case = make_case(13, 4, 4, 1, assignment=assignment, summaries=summaries)
    with torch.no_grad():
        for name in ("surrogates", "q", "k"):
            case.operands[name] *= 100
    assert_equal_gradients(case, rtol=1e-6, atol=1e-6)
    case.operands = {name: x.detach().float().requires_grad_() for name, x in case.operands.items()}
    assert all(bool(x.isfinite().all()) for x in case.gradients().values())
    case.operands |= {name: torch.ones_like(case.operands[name]) for name in ("v", "prefix_v")}
    if summaries != "none" or assignment != "topk":
        torch.testing.assert_close(case.run(), case.operands["v"])


def test_a_token_without_a_cluster() -> None:
    """It mixes the summaries alone; without summaries it gives zeros. Also in an incomplete partition."""
    for is_partition in (False, True):
        case = make_case(6, 2, 3)
        case.index, case.is_partition = torch.tensor([[0, 2, 6], [4, 6, 6]]).expand(2, 2, 3), is_partition
        assert_equal_gradients(case)
        case.options = case.options._replace(summaries="none")
        assert_equal_gradients(case)
        out = case.run()
        assert not out[:, [1, 3, 5]].any() and bool(out[:, [0, 2, 4]].all())


@pytest.mark.parametrize("assignment", ["topk", "sa_topk"])
def test_bitwise_repeatable(assignment: str) -> None:
    case = make_case(64, 8, 8, assignment=assignment, dtype=torch.float32)
    first = case.gradients()
    for _ in range(5):
        assert all(torch.equal(value, first[name]) for name, value in case.gradients().items())


def test_dropout() -> None:
    """Acts on step 3, keeps the mean, and the backward replays its mask, over chunks too."""
    case = make_case(12, 3, 4, 1, assignment="sa_topk")
    plain = case.run().detach()
    drawn = torch.stack([case.run(dropout_p=0.3, seed=seed).detach() for seed in range(300)])
    assert ((drawn.mean(0) - plain).abs() / drawn.std(0)).max() < 5 / math.sqrt(300)
    assert torch.equal(case.run(dropout_p=0.3, seed=4), drawn[4]) and not torch.equal(drawn[3], drawn[4])


@pytest.mark.parametrize("workspace", [1 << 20, 64])
@pytest.mark.parametrize("assignment", ["topk", "sa_topk"])
def test_backward_replays_dropout(assignment: str, workspace: int, monkeypatch) -> None:
    monkeypatch.setattr(paper, "WORKSPACE", workspace)
    case = make_case(30, 4, 8, 1, assignment=assignment)
    ahead = torch.randn(case.operands["v"].shape, dtype=torch.float64)
    grad = case.gradients(dropout_p=0.3, seed=3)["v"]
    value, results = case.operands["v"], []
    for sign in (1, -1):  # linear in v: the difference is exact
        case.operands["v"] = value + sign * ahead
        results.append(case.run(dropout_p=0.3, seed=3).detach())
    weight = torch.randn(results[0].shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    torch.testing.assert_close(((results[0] - results[1]) * weight).sum() / 2, (grad * ahead).sum())


@pytest.mark.parametrize("assignment", ["topk", "random"])
def test_memory_is_linear_in_tokens(assignment: str, monkeypatch) -> None:
    """Nothing is larger than rows of all tokens, keys with the prefix included, or the workspace."""
    monkeypatch.setattr(paper, "WORKSPACE", 1 << 14)
    num_tokens, num_clusters, size, heads = 1024, 64, 16, 2
    case = make_case(num_tokens, num_clusters, size, 1, assignment=assignment, dtype=torch.float32, heads=heads)
    rows = 2 * (num_tokens + num_clusters) * heads * 4
    with Largest() as spy:
        case.gradients()
    assert spy.elements <= max(rows, 1 << 14) < heads * num_tokens * num_clusters


class Layer(nn.Module):
    """The smallest layer around it; TorchScript needs the annotation of a named tuple."""

    options: AttentionOptions

    def __init__(self, assignment: str, options: AttentionOptions) -> None:
        super().__init__()
        self.assignment, self.options = assignment, options
        self.qkv, self.phi = nn.Linear(8, 24), nn.Linear(8, 1)
        self.surrogates = nn.Parameter(torch.randn(2, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], x.shape[1], 3, 2, 4).unbind(2)
        prefix_k, prefix_v = k[:, :1], v[:, :1]
        q, k, v, phi, mask = q[:, 1:], k[:, 1:], v[:, 1:], self.phi(x[:, 1:]), x[:, 1:, 0] > -1
        size = (q.shape[1] + 3) // 4
        index = learned_clusters(q, k, self.surrogates, phi, mask, size, self.assignment)
        operands = Operands(q, k, v, prefix_k, prefix_v, mask, 0.5)
        partition = self.assignment != "topk"
        return paper_attention(operands, self.surrogates, phi, index, partition, None, None, self.options, 0.0)


SOFTMAX, LAPLACE = AttentionOptions(), AttentionOptions(activation="laplace", laplace_norm=True)


@pytest.mark.parametrize(
    ("how", "assignment", "options"),
    [(how, *rest) for how in ("script", "compile", "export") for rest in (("sa_topk", SOFTMAX), ("topk", LAPLACE))]
    + [(how, "topk", AttentionOptions(summaries="none")) for how in ("script", "meta")],
)
def test_graphs_equal_eager(how: str, assignment: str, options: AttentionOptions) -> None:
    torch.manual_seed(0)
    layer, x, other = (
        Layer(assignment, options).double(),
        torch.randn(2, 14, 8).double(),
        torch.randn(3, 27, 8).double(),
    )
    if how == "meta":
        assert layer.to("meta")(x.to("meta")).shape == (2, 13, 2, 4)
        return
    if how == "export":
        shapes = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
        run = torch.export.export(layer, (x,), dynamic_shapes=shapes).module()
    else:
        run = torch.jit.script(layer) if how == "script" else torch.compile(layer, fullgraph=True, backend="eager")
    for batch in (x, other, x):  # TorchScript optimises from the second call on
        expected, out = layer(batch), run(batch)
        torch.testing.assert_close(out, expected)
        if how != "export":  # its module has parameters of its own
            torch.testing.assert_close(
                torch.autograd.grad(out.square().sum(), list(layer.parameters())),
                torch.autograd.grad(expected.square().sum(), list(layer.parameters())),
            )


@pytest.mark.parametrize("assignment", ["topk", "sa_topk"])
def test_autocast_rounds_nothing(assignment: str) -> None:
    case = make_case(13, 4, 4, assignment=assignment, dtype=torch.float32)
    q, k, v, surrogates, phi = case.operands.values()

    def run() -> Tensor:
        options = make_options("paper", assignment=assignment)
        return cast_attention(q, k, v, options, surrogate_tokens=surrogates, phi=phi)[0]

    exact = run()
    with torch.autocast("cpu", torch.bfloat16):
        out = run()
    assert torch.equal(out, exact)
    for mine, expected in zip(
        *(torch.autograd.grad(x.sum(), list(case.operands.values())) for x in (out, exact)), strict=True
    ):
        assert torch.equal(mine, expected)
