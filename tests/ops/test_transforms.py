"""Attention under what torch has beside plain backward: ``torch.func`` and gradients of gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from castvision.layers import CastAttention
from tests.ops.near_far_cases import make_case

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's own, under vmap

OPTIONS = pytest.mark.parametrize(
    "options",
    [{}, {"summaries": "query_weighted", "anchors": 3}, {"attention": "paper"}, {"surrogates": "averaged"}],
    ids=str,
)


def make(options: dict[str, Any], seed: int = 0) -> CastAttention:
    torch.manual_seed(seed)
    layer = CastAttention(8, num_heads=2, num_prefix_tokens=1, grid_size=(5, 6), num_clusters=4, **options)
    return layer.double().eval()


def attend(layer: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = layer(x, grid_size=[5, 6])
    return out


@OPTIONS
def test_gradients_of_each_image(options: dict[str, Any]) -> None:
    layer, x = make(options), torch.randn(3, 31, 8, dtype=torch.float64)
    parameters = {name: value.detach() for name, value in layer.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        out: Tensor = functional_call(layer, parameters, (image[None],), {"grid_size": [5, 6]})
        return out.square().sum()

    found = vmap(grad(loss), (None, 0))(parameters, x)
    for i, image in enumerate(x):
        layer.zero_grad()
        attend(layer, image[None]).square().sum().backward()
        for name, parameter in layer.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(found[name][i], parameter.grad)


@OPTIONS
def test_an_ensemble_in_one_call(options: dict[str, Any]) -> None:
    layers, x = [make(options), make(options, seed=1)], torch.randn(2, 31, 8, dtype=torch.float64)
    state = stack_module_state(layers)  # type: ignore[arg-type]
    with torch.no_grad():
        found = vmap(lambda *each: functional_call(layers[0], each, (x,), {"grid_size": [5, 6]}))(*state)
        for one, layer in zip(found, layers, strict=True):
            torch.testing.assert_close(one, attend(layer, x))


@OPTIONS
def test_forward_derivatives(options: dict[str, Any]) -> None:
    layer, x = make(options), torch.randn(1, 31, 8, dtype=torch.float64)
    along, step = torch.randn_like(x), 1e-6
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():  # torch's fused kernels have none
        _, found = jvp(lambda tokens: attend(layer, tokens), (x,), (along,))
        wanted = (attend(layer, x + step * along) - attend(layer, x - step * along)) / (2 * step)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("summaries", ["mean", "query_weighted"])
def test_gradients_of_gradients(summaries: str) -> None:
    case = make_case((3, 4), prefix=1, masked=True, window_size=2, num_clusters=4, summaries=summaries)

    def run(*operands: Tensor) -> Tensor:
        case.operands = list(operands)
        return case.run()

    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(run, case.operands, fast_mode=True)


@pytest.mark.parametrize("summaries", ["mean", "query_weighted"])
@pytest.mark.parametrize("is_shared", [False, True])
def test_gradients_are_the_same_where_they_can_be_differentiated(summaries: str, is_shared: bool) -> None:
    """The mean query is made of the queries, and keys may be: what flows through those is counted once."""
    case = make_case((3, 4), prefix=1, window_size=2, num_clusters=4, summaries=summaries)

    def gradients(**options: Any) -> tuple[Tensor, ...]:
        q, k, v = case.operands
        operands = (q, v) if is_shared else (q, k, v)
        made = make_case((3, 4), prefix=1, window_size=2, num_clusters=4, summaries=summaries)
        made.operands = [q, q * 2, v] if is_shared else [q, k, v]
        return torch.autograd.grad(made.run().square().sum(), operands, **options)

    with sdpa_kernel(SDPBackend.MATH):
        for found, wanted in zip(gradients(create_graph=True), gradients(), strict=True):
            torch.testing.assert_close(found, wanted)
