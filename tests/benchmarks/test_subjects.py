from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import castvision.ops.attention
import castvision.ops.surrogates
from benchmarks.record import Key
from benchmarks.subjects import (
    VARIANTS,
    ValueAttention,
    attend_flops,
    blank_share,
    layer_flops,
    make_subject,
    most_square,
    near_far_flops,
    route_flops,
    variant_options,
)
from castvision.layers import CastAttention
from castvision.ops import make_options


@pytest.mark.parametrize("phase", ["forward", "training"])
@pytest.mark.parametrize(
    ("level", "name"),
    [
        *((level, name) for level in ("op", "layer") for name in (*VARIANTS, "sdpa", "sdpa-head")),
        ("layer", "sdpa-thin"), ("layer", "no-core"), ("block", "cast"), ("block", "no-core"),
    ],
)  # fmt: skip
def test_runs_on_inputs_that_are_new_each_time_and_in_the_same_memory(level, name, phase):
    subject = make_subject(Key(level, name, 64, phase=phase))
    seen = []
    for _ in range(2):
        with subject.ready():
            subject.run()
        seen.append((subject.inputs[0].data_ptr(), subject.inputs[0].detach().clone()))
    assert seen[0][0] == seen[1][0]
    assert not torch.equal(seen[0][1], seen[1][1])
    has_gradient = [leaf.grad is not None for leaf in subject.inputs]
    assert has_gradient == [phase == "training"] * len(has_gradient)


def test_core_removed_is_the_projections_of_the_values():
    layer = ValueAttention(12, 3, qkv_bias=True)
    x = torch.randn(1, 5, 12)
    values = F.linear(x, layer.qkv.weight[24:], layer.qkv.bias[24:])
    torch.testing.assert_close(layer(x), layer.proj(values))


def test_blank_images_repeat_one_token():
    subject = make_subject(Key("layer", "routing", 64, inputs="75% blank"))
    with subject.ready():
        subject.run()
    distinct = subject.inputs[0][0].unique(dim=0)
    assert len(distinct) == 16
    assert [blank_share(name) for name in ("random", "0% blank", "100% blank")] == [0.0, 0.0, 1.0]


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="expected a level of op"):
        make_subject(Key("tiles", "cast", 64))
    with pytest.raises(ValueError, match="subject of level layer, got 'sdpa-flash'"):
        make_subject(Key("layer", "sdpa-flash", 64))
    with pytest.raises(ValueError, match="expected cast or no-core"):
        make_subject(Key("block", "sdpa", 64))


def test_options_of_our_variants():
    assert make_options(**variant_options("cast", 1024)) == make_options()
    assert make_options(**variant_options("cast-anchors", 1024)) == make_options(anchors=64)
    paper = make_options("paper", assignment="sa_topk", num_clusters=32)
    assert make_options(**variant_options("cast-paper", 1024)) == paper


@pytest.mark.parametrize(
    ("tokens", "grid"), [(65536, (256, 256)), (1 << 20, (1024, 1024)), (2048, (32, 64)), (7, (1, 7)), (1, (1, 1))]
)
def test_most_square_grid(tokens, grid):
    assert most_square(tokens) == grid


@pytest.mark.parametrize("level", ["op", "layer", "block"])
def test_ours_attends_on_the_grid(level, monkeypatch):
    seen = []
    real = castvision.ops.attention.window_index

    def look(rows, cols, *rest):
        seen.append((rows, cols))
        return real(rows, cols, *rest)

    monkeypatch.setattr("castvision.ops.attention.window_index", look)
    subject = make_subject(Key(level, "cast", 32))
    with subject.ready():
        subject.run()
    assert seen == [(4, 8)]


def test_routing_subject_forms_the_clusters_of_the_layer(monkeypatch):
    subject = make_subject(Key("layer", "routing", 64))
    made = []
    real = castvision.ops.surrogates.form_clusters

    def keep(*operands):
        made.append(real(*operands))
        return made[-1]

    monkeypatch.setattr("benchmarks.subjects.form_clusters", keep)
    with subject.ready():
        subject.run()
    assert isinstance(subject.module, CastAttention)
    _, routing = subject.module(subject.inputs[0], grid_size=[8, 8], return_routing=True)
    assert torch.equal(made[0].labels, routing.labels)


def test_arithmetic_of_a_small_layer():
    # N = 16 on 4 x 4: windows of 2 x 2, M = 8 as 3 x 3 = 9; C = 6, two heads of width 3
    assert route_flops(16, 9, 3, 2) == 2 * 2 * 16 * 9 * 3
    assert attend_flops(16, 4, 9, 6) == 2 * 2 * 16 * (4 + 9) * 6
    near_far = 2 * 2 * 16 * (4 + 9) * 6 + 2 * 2 * 16 * 9 * 3
    assert near_far_flops(4, 4, 6, 2, make_options()) == near_far
    assert (
        near_far_flops(4, 4, 6, 2, make_options(anchors=5))
        == near_far + 2 * (2 * 2 * 5 * 16 * 6) + 18 * 25 * 6 + 14 * 125 * 2
    )
    assert layer_flops(16, 6, 2, make_options()) == near_far + 4 * 2 * 16 * 6 * 6
    with pytest.raises(ValueError, match="expected windows and nearest clusters"):
        near_far_flops(4, 4, 6, 2, make_options("paper"))
