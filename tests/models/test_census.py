"""What a model is said to cost is what it costs."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from castvision.models.census import PeakMemory, census


def test_figures_of_timms_vit_are_those_one_counts_by_hand() -> None:
    row = census("vit_tiny_patch16_224")
    assert (row.input_size, row.grid, row.num_classes) == ((3, 224, 224), (14, 14), 1000)
    assert row.parameters == sum(value.numel() for value in timm.create_model("vit_tiny_patch16_224").parameters())
    tokens, width = 197, 192
    linear = 12 * 12 * width * width * tokens + 196 * 768 * width + 1000 * width
    attention = 12 * 2 * tokens * tokens * width
    assert row.gflops == pytest.approx(2 * (linear + attention) / 1e9, rel=1e-9)
    assert row.memory is not None and 4 * row.parameters < row.memory < 4 * row.parameters + 8e6
    assert row.weights == "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"


def test_operations_and_memory_can_be_left_out() -> None:
    ours, plain = census("cast_vit_pixel_patch1_32"), census("cast_vit_pixel_patch1_32", runs=False)
    assert ours.gflops is not None and plain.gflops is None and plain.memory is None
    assert ours.weights is None and ours.parameters == plain.parameters


def test_memory_is_that_of_what_is_alive_at_once() -> None:
    layers = nn.Sequential(*(nn.Linear(100, 100, bias=False, device="meta") for _ in range(5)))
    peak = PeakMemory(layers.parameters())
    with torch.no_grad(), peak:
        layers(torch.empty(10, 100, device="meta"))
    assert 2 * 4000 <= peak.most <= 3 * 4000 and peak.alive <= 4000
