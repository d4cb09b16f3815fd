from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import castvision
import castvision.heads
from castvision.heads import LinearHead
from castvision.models.segmenter import Segmenter, create_segmenter, feature_layout

TINY_VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4, "img_size": 32, "in_chans": 1}


@pytest.mark.parametrize("head", castvision.heads.__all__)
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
    with pytest.raises(ValueError, match=r"expected head in .*'UpsamplingHead'.* got head='UNetHead'"):
        create_segmenter("vit_tiny_patch16_224", 2, head="UNetHead", model_kwargs=TINY_VIT)
    with pytest.raises(ValueError, match="num_classes=1"):
        create_segmenter("vit_tiny_patch16_224", 1, model_kwargs=TINY_VIT)
    with pytest.raises(ValueError, match=r"out_indices=\[7\]"):
        create_segmenter("vit_tiny_patch16_224", 2, model_kwargs=TINY_VIT, out_indices=[7])
    with pytest.raises(TypeError, match="forward_intermediates"):
        Segmenter(nn.Conv2d(1, 1, 1), LinearHead((1,), (1,), 2))


HIERA = {"img_size": (64, 96), "embed_dim": 24, "num_heads": 1, "stages": (1, 1, 1, 1)}
SWIN = {"strict_img_size": False, "embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
CAST = {"embed_dim": 32, "depth": 4, "num_heads": 2}
BACKBONES = [
    ("resnet18", {"layers": (1, 1, 1, 1)}),
    ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (16, 16, 24, 32)}),
    ("vit_tiny_patch16_224", {**CAST, "dynamic_img_size": True}),
    ("swin_tiny_patch4_window7_224", SWIN),
    ("mobilenetv3_small_100", {}),
    ("efficientnet_b0", {}),
    ("cast_vit_tiny_patch16_224", CAST),
    ("cast_vit_tiny_patch16_pyramid_224", CAST),
    ("hiera_tiny_224", HIERA),
]


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize(("name", "model_kwargs"), BACKBONES)
def test_peers_take_odd_sizes_and_all_heads(name, model_kwargs, features_only):
    size = model_kwargs.get("img_size", (97, 130))
    kwargs = {**model_kwargs, **({"features_only": True} if features_only else {})}
    if features_only and name.startswith("vit"):
        kwargs["out_indices"] = (1, 2, 3)
    model = create_segmenter(name, 3, head="UperHead", head_kwargs={"width": 16}, model_kwargs=kwargs).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, *size)).shape == (1, 3, *size)
        channels, strides = feature_layout(model.backbone, model.out_indices)
        maps = model.features(torch.randn(2, 3, *size))
    for width, stride, feature in zip(channels, strides, maps, strict=True):
        assert feature.shape[:2] == (2, width)
        for cells, pixels in zip(feature.shape[2:], size, strict=True):
            # a convolutional network may add or drop a part of the last cell, a transformer pads to whole patches
            assert -1 < cells - pixels / stride < max(1, 16 / stride)


@pytest.mark.parametrize(
    ("name", "model_kwargs"),
    [
        ("vit_tiny_patch16_224", {"depth": 1}),
        ("swin_tiny_patch4_window7_224", {**SWIN, "strict_img_size": True}),
        ("hiera_tiny_224", {**HIERA, "img_size": (64, 64)}),
    ],
)
def test_a_size_the_backbone_refuses_is_named(name, model_kwargs):
    model = create_segmenter(name, 2, head="LinearHead", model_kwargs=model_kwargs)
    with pytest.raises(ValueError, match=r"got 96×128 .*img_size=\(96, 128\)") as caught:
        model(torch.randn(1, 3, 96, 128))
    assert "\n" not in str(caught.value)


def _bottom_right_padded(images, size):
    batch, mask = torch.full((len(images), images[0].shape[0], *size), 7.0), torch.zeros(len(images), *size).bool()
    for place, image in enumerate(images):
        batch[place, :, : image.shape[1], : image.shape[2]] = image
        mask[place, : image.shape[1], : image.shape[2]] = True
    return batch, mask


@pytest.mark.parametrize("head", castvision.heads.__all__)
@pytest.mark.parametrize("name", ["cast_vit_tiny_patch16_pyramid_224", "cast_vit_atto_patch4_32", "resnet10t"])
def test_an_image_padded_in_a_batch_gives_what_it_gives_alone(name, head):
    kwargs = {"in_chans": 1, **(CAST | {"features_only": True} if "pyramid" in name else {})}
    model = create_segmenter(name, 2, head=head, model_kwargs=kwargs).eval()
    images = [torch.randn(1, *size) for size in ((40, 56), (33, 64), (48, 20), (40, 56))]
    batch, mask = _bottom_right_padded(images, (48, 64))
    with torch.no_grad():
        together = model(batch, mask)
        for logits, image in zip(together, images, strict=True):
            alone = model(image[None])[0]
            torch.testing.assert_close(logits[:, : image.shape[1], : image.shape[2]], alone, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model(batch, torch.ones_like(mask)), model(batch))


@pytest.mark.parametrize("name", ["cast_vit_atto_patch4_32", "resnet10t"])
def test_what_masked_pixels_hold_makes_no_difference(name):
    model = create_segmenter(name, 2, model_kwargs={"in_chans": 1}).eval()
    image, mask = torch.randn(3, 1, 32, 32), torch.ones(3, 32, 32).bool()
    mask[0, 5:18, 9:30] = False
    mask[1] = False
    with torch.no_grad():
        first = model(image, mask)
        second = model(image.masked_fill(~mask[:, None], torch.nan), mask)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert first.isfinite().all()


def test_tokens_without_a_real_pixel_are_no_members_of_clusters():
    model = create_segmenter("cast_vit_atto_patch4_32", 2).eval()
    seen = []
    for block in model.backbone.blocks:
        block.attn.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["token_mask"]), with_kwargs=True
        )
    mask = torch.ones(1, 32, 32).bool()
    mask[0, 3:12, 4:17] = False  # whole patches: rows 1 and 2, columns 1 to 3
    model(torch.randn(1, 1, 32, 32), mask)
    expected = torch.ones(8, 8).bool()
    expected[1:3, 1:4] = False
    assert len(seen) == 4
    assert all(torch.equal(token_mask.view(8, 8), expected) for token_mask in seen)


@pytest.mark.parametrize("size", [(32, 32), (40, 48)])
@pytest.mark.parametrize("attn_layer", ["cast", "full"])
def test_what_stands_in_the_padding_of_training_images_makes_no_difference(attn_layer, size):
    """Anywhere in them, as augmentation leaves it; one image is padding throughout."""
    model = create_segmenter("cast_vit_atto_patch4_32", 2, model_kwargs={"attn_layer": attn_layer}).train()
    mask = torch.zeros(3, *size).bool()
    mask[0, 9:28, 5:30], mask[1, :, 11:] = True, True
    image, results = torch.randn(3, 1, *size), []
    for _ in range(2):
        model.zero_grad()
        torch.manual_seed(0)
        logits = model(torch.where(mask[:, None], image, torch.randn(image.shape) * 9), mask)
        logits[mask[:, None].expand_as(logits)].square().mean().backward()
        results.append((logits, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
        assert logits.isfinite().all()
        assert all(grad.isfinite().all() for grad in results[-1][1].values())
        torch.randn(7)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    unmasked = model(image)[mask[:, None].expand_as(logits)]
    assert not torch.allclose(unmasked, results[0][0][mask[:, None].expand_as(logits)])


def test_a_batch_runs_as_one_in_training_and_at_the_size_of_the_backbone():
    """A backbone of one size could not run images without their padding, and batch normalisation not one by one."""
    mask = torch.zeros(3, 32, 32).bool()
    mask[0, :20], mask[1, :, :9], mask[2] = True, True, True
    vit = create_segmenter("vit_tiny_patch16_224", 2, model_kwargs=TINY_VIT)
    convolutional = create_segmenter("resnet10t", 2, model_kwargs={"in_chans": 1})
    for model in (vit.eval(), vit.train(), convolutional.train()):
        calls = []
        hook = model.head.register_forward_pre_hook(lambda _, args, calls=calls: calls.append(args[1].shape))
        first, second = torch.randn(2, 3, 1, 32, 32)
        torch.manual_seed(0)
        logits = model(first, mask)
        torch.manual_seed(0)
        torch.testing.assert_close(model(torch.where(mask[:, None], first, second), mask), logits, rtol=0, atol=0)
        assert calls == [(3, 1, 32, 32)] * 2
        hook.remove()


def test_masked_batches_train():
    model = create_segmenter("cast_vit_atto_patch4_32", 2)
    batch, mask = _bottom_right_padded([torch.randn(1, 17, 30), torch.randn(1, 32, 9)], (32, 32))
    logits = model(batch, mask)
    logits[mask[:, None].expand_as(logits)].square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_an_image_of_another_dtype_is_not_called_one_of_a_wrong_size():
    """As numpy's floats become; the error told to create the backbone for the image's size."""
    model = create_segmenter("cast_vit_atto_patch4_32", 2, model_kwargs={"depth": 1}).eval()
    with pytest.raises(RuntimeError, match="double"):
        model(torch.zeros(1, 1, 40, 40, dtype=torch.float64))
