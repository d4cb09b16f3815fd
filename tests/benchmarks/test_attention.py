from __future__ import annotations

from benchmarks.attention import _whole_from_one_head, count_flops
from benchmarks.record import Key, single_measurement
from benchmarks.subjects import create_model


def test_one_head_times_six_and_the_projections():
    head = single_measurement(Key("layer", "sdpa-head", 65536), 10.0)
    rest = single_measurement(Key("layer", "no-core", 65536), 3.0)
    (whole,) = _whole_from_one_head([head, rest])
    assert (whole.key.subject, whole.value, whole.repeats) == ("sdpa", 63.0, 0)
    assert whole.note == "one head timed, times 6, plus the projections"
    assert _whole_from_one_head([rest]) == []


def test_flops_of_models_by_hand():
    tokens, width = 196, 192
    linear = 12 * 2 * (tokens + 1) * 12 * width**2 + 2 * tokens * 3 * 16**2 * width + 2 * width * 1000
    full, _ = count_flops(Key("model", "vit_tiny_patch16_224", 224))
    assert full == linear + 12 * 4 * (tokens + 1) ** 2 * width
    ours, parameters = count_flops(Key("model", "cast_vit_tiny_patch16_224", 224))
    # 14 x 14 tokens: windows of 4 x 4, 5 x 6 clusters, the class token seen by all and seeing all
    clusters = 4 * tokens * (1 + 16 + 30) * width + 2 * 2 * tokens * 30 * 64
    assert ours == linear + 12 * (clusters + 4 * (tokens + 1) * width)
    assert parameters == sum(p.numel() for p in create_model("cast_vit_tiny_patch16_224", 224).parameters())


def test_a_vit_of_timms_is_measured_converted():
    tokens, width = 196, 192
    full, parameters = count_flops(Key("model", "vit_tiny_patch16_224+full", 224))
    assert (full, parameters) == count_flops(Key("model", "vit_tiny_patch16_224", 224))
    ours, _ = count_flops(Key("model", "vit_tiny_patch16_224+near_far", 224))
    # windows of 4 x 4, 5 x 6 clusters for 2 sqrt(196), 144 anchors twice, the class token seen by all and seeing all
    clusters = 4 * tokens * (1 + 16 + 30 + 288) * width + 2 * 2 * tokens * 30 * 64
    fit = 2 * 144**2 * (9 * width + 7 * 144 * 3)
    core = clusters + fit + 4 * (tokens + 1) * width
    assert full - ours == 12 * (4 * (tokens + 1) ** 2 * width - core)
