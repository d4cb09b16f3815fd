"""transformers: ``TimmBackbone`` under UperNet, ``TimmWrapper`` for classification, and their saved folders."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from timm.models import save_for_hf

import castvision

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow
PYRAMID = "cast_vit_tiny_patch16_pyramid_224"
ROTARY = "cast_vit_atto_patch4_32"  # has buffers that are computed, not stored


def make_uper_net(**options):
    torch.manual_seed(0)
    backbone = transformers.TimmBackboneConfig(
        backbone=PYRAMID, use_pretrained_backbone=False, out_indices=[0, 1, 2, 3], **options
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=32, auxiliary_in_channels=192, auxiliary_channels=32, num_labels=5
    )
    return transformers.UperNetForSemanticSegmentation(config)


def images(channels: int = 3, size: int = 64) -> torch.Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_backbone_gives_four_levels():
    config = transformers.TimmBackboneConfig(
        backbone=PYRAMID, use_pretrained_backbone=False, out_indices=[0, 1, 2, 3], num_channels=6
    )
    backbone = transformers.TimmBackbone(config).eval()
    assert backbone.channels == [192] * 4
    maps = backbone(images(6)).feature_maps
    assert [tuple(level.shape[1:]) for level in maps] == [(192, 16, 16), (192, 8, 8), (192, 4, 4), (192, 2, 2)]
    ours = timm.create_model(PYRAMID, features_only=True, in_chans=6).eval()
    ours.load_state_dict(backbone._backbone.state_dict())
    assert all(torch.equal(theirs, level) for theirs, level in zip(maps, ours(images(6)), strict=True))


def test_uper_net_trains_the_whole_backbone():
    model = make_uper_net()
    labels = torch.randint(5, (2, 64, 64), generator=torch.Generator().manual_seed(2))
    output = model(images(), labels=labels)
    assert output.logits.shape == (2, 5, 64, 64)
    output.loss.backward()
    untrained = [name for name, value in model.backbone.named_parameters() if value.grad is None]
    assert untrained == []


@torch.no_grad()
def test_uper_net_saved_and_loaded_is_the_same(tmp_path):
    model = make_uper_net().eval()
    model.save_pretrained(tmp_path)
    loaded = transformers.UperNetForSemanticSegmentation.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(images()).logits, model(images()).logits)


def make_wrapper(name: str, cls=None, **options):
    torch.manual_seed(0)
    config = transformers.TimmWrapperConfig(architecture=name, num_labels=5, model_args=options or None)
    return (cls or transformers.TimmWrapperForImageClassification)(config)


@pytest.mark.parametrize(("name", "channels"), [("cast_vit_tiny_patch16_224", 3), (ROTARY, 1)])
def test_wrapper_classifies_and_shows_hidden_states(name, channels):
    model = make_wrapper(name).eval()
    x = images(channels)
    output = model(x, labels=torch.tensor([0, 4]), output_hidden_states=True)
    assert output.logits.shape == (2, 5)
    assert torch.equal(output.logits, model.timm_model(x))
    assert len(output.hidden_states) == len(model.timm_model.blocks)
    chosen = model(x, output_hidden_states=[1, -1]).hidden_states
    assert torch.equal(chosen[0], output.hidden_states[1]) and torch.equal(chosen[1], output.hidden_states[-1])
    output.loss.backward()
    assert all(value.grad is not None for value in model.parameters())


def enable(model) -> None:
    """Under the name of today (since 5.24), else of yesterday."""
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()


def test_wrapper_checkpoints_without_changing_gradients():
    model = make_wrapper(ROTARY).train()
    gradients = []
    for checkpoints in (False, True):
        if checkpoints:
            enable(model)
            assert model.timm_model.grad_checkpointing
        model.zero_grad()
        model(images(1), labels=torch.tensor([0, 4])).loss.backward()
        gradients.append(model.timm_model.blocks[0].attn.qkv.weight.grad.clone())
    torch.testing.assert_close(*gradients)


@torch.no_grad()
def test_wrapper_model_gives_tokens_and_their_pool():
    model = make_wrapper(ROTARY, transformers.TimmWrapperModel).eval()
    output = model(images(1, 32))
    assert output.last_hidden_state.shape == (2, 64, 64)
    pooled = model.timm_model.forward_head(model.timm_model.forward_features(images(1, 32)), pre_logits=True)
    torch.testing.assert_close(output.pooler_output, pooled)


@pytest.mark.parametrize(("name", "channels"), [("cast_vit_tiny_patch16_224", 3), (ROTARY, 1)])
@torch.no_grad()
def test_wrapper_saved_and_loaded_is_the_same(tmp_path, name, channels):
    model = make_wrapper(name, num_clusters=4).eval()
    model.save_pretrained(tmp_path)
    loaded = transformers.TimmWrapperForImageClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(images(channels)).logits, model(images(channels)).logits)


@torch.no_grad()
def test_a_folder_written_by_timm_loads_without_its_doubled_class_count(tmp_path):
    """timm 1.0.31 writes num_classes a second time, into model_args, which transformers hands over twice."""
    torch.manual_seed(0)
    model = timm.create_model(ROTARY, num_classes=5).eval()
    save_for_hf(model, tmp_path, safe_serialization=True)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["model_args"].pop("num_classes", None)
    file.write_text(json.dumps(config))
    loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(images(1)).logits, model(images(1)))


@torch.no_grad()
def test_a_timm_wrapper_is_converted_and_reverted(tmp_path):
    name = "vit_tiny_patch16_224"
    small = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 64}
    config = transformers.TimmWrapperConfig(architecture=name, model_args=small, num_labels=3)
    model = transformers.TimmWrapperForImageClassification(config).eval()
    expected, keys = model(images()).logits, list(model.state_dict())
    assert castvision.convert(model, num_clusters=16) is model
    torch.testing.assert_close(model(images()).logits, expected, rtol=1e-5, atol=1e-5)
    castvision.convert(castvision.revert(model))
    assert model(images(size=128)).logits.shape == (2, 3) and list(model.state_dict()) == keys
    model.save_pretrained(tmp_path)
    again = transformers.TimmWrapperForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(again(images()).logits, castvision.revert(model)(images()).logits)
