from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import castvision  # noqa: F401  # registers the models
from castvision.heads import LinearHead
from castvision.models.segmenter import Segmenter, create_segmenter, feature_layout

TINY_VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4, "img_size": 32, "in_chans": 1}


@pytest.mark.parametrize("head", ["LinearHead", "UpsamplingHead"])
@pytest.mark.parametrize(
    ("model_name", "model_kwargs"),
    [
        ("vit_tiny_patch16_224", TINY_VIT),
        ("cast_vit_atto_patch4_32", {}),
        ("resnet10t", {"in_chans": 1}),
        (
            "cast_vit_tiny_patch8_pyramid_224",
            {"features_only": True, "embed_dim": 32, "depth": 4, "num_heads": 2, "in_chans": 1},
        ),
        ("vit_tiny_patch16_224", {**TINY_VIT, "depth": 3, "features_only": True}),
    ],
)
def test_any_backbone_with_any_head(head, model_name, model_kwargs):
    model = create_segmenter(model_name, 3, head=head, model_kwargs=model_kwargs)
    logits = model(torch.randn(2, 1, 32, 32))
    assert logits.shape == (2, 3, 32, 32)
    logits.square().sum().backward()
    unused = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    if not model_kwargs.get("features_only") and model_name != "resnet10t":
        assert unused == []


@pytest.mark.parametrize("size", [(32, 48), (37, 29)])
def test_any_image_size(size):
    model = create_segmenter("cast_vit_atto_patch4_32", 2).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 1, *size)).shape == (1, 2, *size)


def test_layout_of_an_isotropic_and_a_hierarchical_backbone():
    assert feature_layout(timm.create_model("vit_tiny_patch16_224", **TINY_VIT)) == ([32], [4])
    assert feature_layout(timm.create_model("vit_tiny_patch16_224", **TINY_VIT), [0, -1]) == ([32, 32], [4, 4])
    assert feature_layout(timm.create_model("resnet10t"))[1] == [4, 8, 16, 32]


def test_head_gets_what_was_asked_for():
    model = create_segmenter(
        "vit_tiny_patch16_224",
        2,
        head="LinearHead",
        model_kwargs=TINY_VIT,
        head_kwargs={"dropout": 0.3},
        out_indices=[0, 1],
    )
    assert model.head.dropout.p == 0.3
    assert model.head.classifier.in_channels == 64
    assert model.out_indices == [0, 1]


def test_blocks_nobody_looks_at_are_gone():
    model = create_segmenter("vit_tiny_patch16_224", 2, model_kwargs=TINY_VIT, out_indices=[0])
    assert len(model.backbone.blocks) == 1


def test_errors_at_the_door():
    with pytest.raises(ValueError, match=r"expected head in .*'UpsamplingHead'.* got head='UperHead'"):
        create_segmenter("vit_tiny_patch16_224", 2, head="UperHead", model_kwargs=TINY_VIT)
    with pytest.raises(ValueError, match="num_classes=1"):
        create_segmenter("vit_tiny_patch16_224", 1, model_kwargs=TINY_VIT)
    with pytest.raises(ValueError, match=r"out_indices=\[7\]"):
        create_segmenter("vit_tiny_patch16_224", 2, model_kwargs=TINY_VIT, out_indices=[7])
    with pytest.raises(TypeError, match="forward_intermediates"):
        Segmenter(nn.Conv2d(1, 1, 1), LinearHead((1,), (1,), 2))
