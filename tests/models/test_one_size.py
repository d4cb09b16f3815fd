"""Compiled training at a second image size; traces are tested beside the model in test_cast_vit.py."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import timm
import torch
from torch import nn

from castvision import convert
from castvision.models.context import create_context_segmenter
from castvision.models.segmenter import create_segmenter

ATTO = "cast_vit_atto_patch4_32"
KWARGS = {"depth": 1, "in_chans": 1}
CONTEXT = {"context": torch.ones(1, 1, 32, 32), "window": torch.tensor([[0.0, 0.0, 1.0, 1.0]])}
SIZES = ((2, 32, 32), (3, 44, 40))


def make(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    if name == "classifier":
        return timm.create_model(ATTO, num_classes=2, **KWARGS).train(), {}
    if name == "plain attention":
        return timm.create_model(ATTO, num_classes=2, attn_layer="none", **KWARGS).train(), {}
    if name == "converted":
        size = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "num_heads": 2, "dynamic_img_size": True}
        return convert(timm.create_model("vit_tiny_patch16_224", num_classes=2, **size, **KWARGS)).train(), {}
    if name == "segmenter":
        return create_segmenter(ATTO, 2, model_kwargs=KWARGS).train(), {}
    kwargs = {**KWARGS, "use_rot_pos_emb": True, "pos_embed": "none"}
    return create_context_segmenter(ATTO, 2, context_size=(32, 32), model_kwargs=kwargs).train(), CONTEXT


def gradients(run: Any, model: nn.Module, image: torch.Tensor, told: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    model.zero_grad()
    told = {key: value.expand(len(image), *value.shape[1:]) for key, value in told.items()}
    run(image, **told).float().square().sum().backward()
    return [weight.grad for weight in model.parameters() if weight.grad is not None]


def assert_compiled_trains_alike(name: str, backend: Any, sizes: tuple[tuple[int, int, int], ...]) -> None:
    model, told = make(name)
    other = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(other, backend=backend, fullgraph=True)
    for batch, height, width in sizes:
        image = torch.randn(batch, 1, height, width)
        expected, found = gradients(model, model, image, told), gradients(compiled, other, image, told)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "name",
    [
        "plain attention", "segmenter", pytest.param("converted", marks=pytest.mark.slow),
        pytest.param("context segmenter", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_compiled_training_takes_other_sizes(name: str) -> None:
    """A program for each size: no height, no width and no count of clusters is left open to the compiler."""
    opened: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        for node in graph.graph.nodes:
            value = node.meta.get("example_value")
            if isinstance(value, torch.Tensor) and not all(str(size).isdecimal() for size in value.shape[1:]):
                opened.append(f"{node}: {tuple(value.shape)}")
        return graph.forward

    assert_compiled_trains_alike(name, backend, SIZES)
    assert not opened, opened[:5]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a compiler of C++ on a busy machine
@pytest.mark.parametrize("name", ["classifier", "segmenter"])
def test_compiled_training_takes_a_second_size_with_the_default_compiler(name: str) -> None:
    assert_compiled_trains_alike(name, "inductor", SIZES)


def test_a_trace_of_a_converted_model_refuses_other_sizes() -> None:
    model, image = make("converted")[0].eval(), torch.randn(2, 1, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a trace holds as numbers
        traced = torch.jit.trace(model, image, check_trace=False)
    torch.testing.assert_close(traced(image), model(image))
    for size in ((64, 32), (32, 64), (16, 16)):
        with pytest.raises(RuntimeError, match="expanded size"):
            traced(torch.randn(2, 1, *size))
