"""The building block: output and log-sum-exp, their gradients, and what nobody may see."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from castvision.ops import paper
from castvision.ops.paper import attend, gate, laplace

ACTIVATIONS = pytest.mark.parametrize("activation", ["softmax", "laplace"])
BIASES = pytest.mark.parametrize("bias", ["none", "keys", "groups", "queries"])
G, H, Q, S, D = 3, 2, 5, 7, 4


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def operands(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    return draw(G, H, Q, D, dtype=dtype), draw(G, H, S, D, seed=1, dtype=dtype), draw(G, H, S, D, seed=2, dtype=dtype)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that an operation made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def make_bias(kind: str) -> Tensor | None:
    shape = {"keys": (1, 1, 1, S), "groups": (G, 1, 1, S), "queries": (G, H, Q, S)}.get(kind)
    if shape is None:
        return None
    bias = draw(*shape).detach()
    bias[..., 2] = -torch.inf
    bias[-1, :, -1] = -torch.inf if kind != "keys" else 0.0  # a row, or a group, that sees nothing
    return bias


def definition(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, activation: str) -> tuple[Tensor, Tensor]:
    logits = q @ k.mT
    count = torch.ones_like(logits) if bias is None else bias.exp().expand_as(logits)
    if activation == "laplace":
        return (laplace(logits) * count) @ v, logits.new_zeros(logits.shape[:3])
    total = (logits.exp() * count).sum(-1)
    seen = torch.where(total > 0, total, 1.0)
    return (logits.exp() * count / seen[..., None]) @ v, torch.where(total > 0, seen.log(), -torch.inf)


def at_once(*args: object) -> tuple[Tensor, Tensor]:
    """The plain operations that compile and export see."""
    compiling = torch.compiler.is_compiling
    torch.compiler.is_compiling = lambda: True
    try:
        return attend(*args)
    finally:
        torch.compiler.is_compiling = compiling


FORMS = pytest.mark.parametrize("form", [attend, at_once])


@pytest.mark.parametrize("workspace", [1 << 20, 40])
@FORMS
@BIASES
@ACTIVATIONS
def test_equals_the_definition(
    form: Callable[..., tuple[Tensor, Tensor]], bias: str, activation: str, workspace: int, monkeypatch
) -> None:
    """Forward and backward through both results; with a small workspace by chunks of groups and of queries."""
    monkeypatch.setattr(paper, "WORKSPACE", workspace)
    inputs, added = operands(), make_bias(bias)
    weight, lse_weight = draw(G, H, Q, D, seed=3), draw(G, H, Q, seed=4)
    results = []
    for function in (form, definition):
        out, lse = function(*inputs, added, activation)
        loss = (out * weight).sum() + (torch.where(lse.isinf(), 0, lse).cos() * lse_weight).sum()
        results.append((out, lse, *torch.autograd.grad(loss, inputs)))
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-11)


@FORMS
@ACTIVATIONS
def test_gradcheck(form: Callable[..., tuple[Tensor, Tensor]], activation: str) -> None:
    assert torch.autograd.gradcheck(lambda *x: form(*x, make_bias("keys"), activation), operands())


@FORMS
@ACTIVATIONS
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_hidden_keys_may_hold_anything(form: Callable[..., tuple[Tensor, Tensor]], activation: str, poison: float):
    inputs, bias = operands(), make_bias("groups")
    clean = form(*inputs, bias, activation)
    clean_grads = torch.autograd.grad(clean[0].square().sum(), inputs)
    with torch.no_grad():
        for x in inputs[1:]:
            x[:, :, 2] = poison
            x[-1] = poison  # the group that sees nothing
    results = form(*inputs, bias, activation)
    assert all(torch.equal(a, b) for a, b in zip(results, clean, strict=True))
    grads = torch.autograd.grad(results[0].square().sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(grads, clean_grads, strict=True))
    assert not grads[0][-1].any() and not results[0][-1].any()
    assert activation == "laplace" or bool(results[1][-1].isneginf().all())


@FORMS
@ACTIVATIONS
def test_a_group_of_nan_spoils_only_itself(form: Callable[..., tuple[Tensor, Tensor]], activation: str) -> None:
    inputs = operands()
    clean = form(*inputs, None, activation)[0]
    with torch.no_grad():
        for x in inputs:
            x[1] = torch.nan
    out = form(*inputs, None, activation)[0]
    grads = torch.autograd.grad(out.sum(), inputs)
    assert torch.equal(out[[0, 2]], clean[[0, 2]]) and bool(out[1].isnan().all())
    assert all(bool(g[[0, 2]].isfinite().all()) for g in grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_of_ten_thousand(dtype: torch.dtype) -> None:
    q, k, v = operands(dtype)
    scale = 1e4 / float((q @ k.mT).detach().abs().max())
    out, lse = attend(q * scale, k, v, None)
    torch.testing.assert_close(lse, (q * scale @ k.mT).logsumexp(-1))
    torch.testing.assert_close(out, (q * scale @ k.mT).softmax(-1) @ v, rtol=1e-3, atol=1e-3)
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(out.sum() + lse.sum(), (q, k, v)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@FORMS
def test_lower_precision(form: Callable[..., tuple[Tensor, Tensor]], dtype: torch.dtype) -> None:
    inputs = operands(dtype)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    out, lse = form(*inputs, None, "softmax")
    expected, expected_lse = definition(*exact, None, "softmax")
    assert out.dtype == dtype and lse.dtype == torch.float32
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=tolerance, atol=tolerance)
    for mine, grad in zip(
        torch.autograd.grad(out.float().sum() + lse.sum(), inputs),
        torch.autograd.grad(expected.sum() + expected_lse.sum(), exact),
        strict=True,
    ):
        torch.testing.assert_close(mine.double(), grad, rtol=4 * tolerance, atol=4 * tolerance)


def test_expanded_keys_and_values_of_another_dtype() -> None:
    q, k, v = operands(torch.float32)
    out, _ = attend(q, k[:1].expand_as(k), v[:1].expand_as(v).bfloat16(), None)
    assert out.dtype == torch.bfloat16
    expected, _ = attend(q, k[:1].repeat(G, 1, 1, 1), v[:1].repeat(G, 1, 1, 1), None)
    torch.testing.assert_close(out.float(), expected, rtol=0.02, atol=0.02)
    grads = torch.autograd.grad(out.float().sum(), (q, k, v))
    assert [g.shape for g in grads] == [q.shape, k.shape, v.shape] and not grads[1][1:].any()


def attend_with_seed(seed: int, *arguments: object) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return attend(*arguments)


@ACTIVATIONS
def test_dropout_keeps_the_mean(activation: str) -> None:
    inputs = [x.detach() for x in operands()]
    plain, plain_lse = attend(*inputs, None, activation)
    drawn = [attend_with_seed(seed, *inputs, None, activation, 0.3) for seed in range(400)]
    outs = torch.stack([out for out, _ in drawn])
    assert ((outs.mean(0) - plain).abs() / outs.std(0)).max() < 5 / math.sqrt(400)
    assert torch.equal(drawn[0][1], plain_lse)
    assert torch.equal(attend_with_seed(7, *inputs, None, activation, 0.3)[0], drawn[7][0])
    one = attend_with_seed(1, *inputs[:2], torch.ones_like(inputs[2]), None, "softmax", 0.3)[0]
    assert one.unique().numel() > 10  # several weights were dropped, others grew


@pytest.mark.parametrize("workspace", [1 << 20, pytest.param(40, marks=pytest.mark.slow)])
@ACTIVATIONS
def test_backward_replays_dropout(activation: str, workspace: int, monkeypatch) -> None:
    monkeypatch.setattr(paper, "WORKSPACE", workspace)
    assert torch.autograd.gradcheck(
        lambda *x: attend_with_seed(5, *x, make_bias("queries"), activation, 0.3)[0], operands()
    )


def test_memory_does_not_grow_with_the_weights() -> None:
    q, k, v = draw(1, 2, 4096, 4), draw(1, 2, 1024, 4), draw(1, 2, 1024, 4)
    with Largest() as spy:
        out, lse = attend(q, k, v, None)
        (out.sum() + lse.sum()).backward()
    assert spy.elements <= paper.WORKSPACE < q.shape[2] * k.shape[2]


class Block(nn.Module):
    def __init__(self, activation: str) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
        bias = torch.zeros_like(hidden, dtype=q.dtype).masked_fill(hidden, -math.inf)[:, None, None]
        out, lse = attend(q, k, v, bias, self.activation)
        return out + lse.masked_fill(lse.isneginf(), 0.0)[..., None]


@ACTIVATIONS
@pytest.mark.parametrize("how", ["script", "trace", "compile", "export"])
def test_graphs_equal_eager(activation: str, how: str) -> None:
    inputs, block = operands(torch.float32), Block(activation)
    hidden = torch.zeros(G, S, dtype=torch.bool)
    hidden[0, 3], hidden[1] = True, True
    if how == "export":
        several = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
        shapes = (several, several, several, {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC})
        run = torch.export.export(block, (*inputs, hidden), dynamic_shapes=shapes).module()
    elif how == "compile":
        run = torch.compile(block, fullgraph=True, backend="eager")
    else:
        run = torch.jit.script(block) if how == "script" else torch.jit.trace(block, (*inputs, hidden))
    expected = block(*inputs, hidden)
    grads = torch.autograd.grad(expected.square().sum(), inputs)
    for _ in range(3):  # TorchScript optimises from the second call on
        out = run(*inputs, hidden)
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(torch.autograd.grad(out.square().sum(), inputs), grads)


def test_functions() -> None:
    x = torch.linspace(-3, 3, 13, dtype=torch.float64, requires_grad=True)
    assert laplace(torch.tensor(math.sqrt(0.5))).item() == pytest.approx(0.5)
    assert torch.autograd.gradcheck(laplace, x)
    assert gate(x).min() > 1 and gate(torch.zeros(1)).item() == pytest.approx(1 + math.log(2))
