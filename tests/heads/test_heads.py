from __future__ import annotations

import pytest
import torch

from castvision.heads import LinearHead, UpsamplingHead

HEADS = [LinearHead, UpsamplingHead]


def _features(size, channels, strides, batch=2):
    return [
        torch.randn(batch, width, -(-size[0] // stride), -(-size[1] // stride))
        for width, stride in zip(channels, strides, strict=True)
    ]


@pytest.mark.parametrize("head_class", HEADS)
@pytest.mark.parametrize("size", [(32, 32), (48, 16), (37, 53)])
@pytest.mark.parametrize(("channels", "strides"), [((12,), (4,)), ((8, 16, 24), (4, 8, 16)), ((6,), (1,))])
def test_logits_have_the_images_size(head_class, size, channels, strides):
    head = head_class(channels, strides, num_classes=3, in_chans=2)
    image = torch.randn(2, 2, *size)
    assert head(_features(size, channels, strides), image).shape == (2, 3, *size)


@pytest.mark.parametrize("head_class", HEADS)
def test_every_parameter_learns(head_class):
    head = head_class((8, 16), (4, 8), num_classes=2)
    head(_features((16, 24), (8, 16), (4, 8)), torch.randn(2, 3, 16, 24)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


@pytest.mark.parametrize("head_class", HEADS)
def test_images_of_a_batch_do_not_see_each_other(head_class):
    head = head_class((8,), (4,), num_classes=2).eval()
    features, image = _features((16, 16), (8,), (4,)), torch.randn(2, 3, 16, 16)
    together = head(features, image)
    alone = head([features[0][:1]], image[:1])
    torch.testing.assert_close(together[:1], alone)


def test_upsampling_head_keeps_a_tokens_values_in_its_own_pixels():
    head = UpsamplingHead((8,), (4,), num_classes=2).eval()
    features, image = _features((16, 16), (8,), (4,), batch=1), torch.zeros(1, 3, 16, 16)
    changed = [features[0].clone()]
    changed[0][0, :, 1, 2] += torch.randn(8)
    moved = (head(features, image) - head(changed, image)).abs().sum(dim=1)[0] > 1e-7
    rows, cols = moved.nonzero().unbind(dim=1)
    # its 4×4 pixels, and one more around them by the 3×3 convolution after
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (3, 8, 7, 12)


def test_upsampling_head_sees_single_pixels():
    head = UpsamplingHead((8,), (8,), num_classes=2).eval()
    features, image = _features((16, 16), (8,), (8,), batch=1), torch.zeros(1, 3, 16, 16)
    bright = image.clone()
    bright[0, :, 5, 5] = 1
    moved = (head(features, image) - head(features, bright)).abs().sum(dim=1)[0] > 1e-7
    assert moved[3:8, 3:8].all()
    assert moved.sum() == 25


@pytest.mark.parametrize("head_class", HEADS)
@pytest.mark.parametrize(
    ("channels", "strides", "num_classes"), [((), (), 2), ((8,), (4, 8), 2), ((8,), (0,), 2), ((8,), (4,), 0)]
)
def test_impossible_sizes_are_refused(head_class, channels, strides, num_classes):
    with pytest.raises(ValueError, match=r"expected .* got"):
        head_class(channels, strides, num_classes)


def test_options_are_checked():
    with pytest.raises(ValueError, match="dropout=1"):
        LinearHead((8,), (4,), 2, dropout=1.0)
    with pytest.raises(ValueError, match="pixel_channels=0"):
        UpsamplingHead((8,), (4,), 2, pixel_channels=0)
