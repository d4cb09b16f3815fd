from __future__ import annotations

import pytest
import torch
from torch import nn

import castvision.heads
from castvision.heads import FpnHead, LinearHead, MlpHead, UperHead, UpsamplingHead
from castvision.heads.features import resample
from castvision.heads.uper import mean_regions

HEADS = [getattr(castvision.heads, name) for name in castvision.heads.__all__]


def _features(size, channels, strides, batch=2):
    return [
        torch.randn(batch, width, -(-size[0] // stride), -(-size[1] // stride))
        for width, stride in zip(channels, strides, strict=True)
    ]


def image_channels(head_class, number):
    """For the head that looks at the image itself; the others take no such argument."""
    return {"in_chans": number} if head_class is UpsamplingHead else {}


@pytest.mark.parametrize("head_class", HEADS)
@pytest.mark.parametrize("size", [(32, 32), (48, 16), (37, 53), (1, 1)])
@pytest.mark.parametrize(
    ("channels", "strides"),
    [((12,), (4,)), ((8, 16, 24), (4, 8, 16)), ((6,), (1,)), ((8, 8, 8), (8, 8, 8)), ((8, 4, 6), (16, 4, 6))],
)
def test_logits_have_the_images_size(head_class, size, channels, strides):
    head = head_class(channels, strides, num_classes=3, **image_channels(head_class, 2))
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


def _upsampling_head(strides, *, silent):
    head = UpsamplingHead((8,), strides, num_classes=2).eval()
    for parameter in head.classifier[silent].parameters():
        torch.nn.init.zeros_(parameter)
    return head


def test_upsampling_head_keeps_a_tokens_values_in_its_own_pixels():
    head = _upsampling_head((4,), silent="coarse")
    features, image = _features((16, 16), (8,), (4,), batch=1), torch.zeros(1, 3, 16, 16)
    changed = [features[0].clone()]
    changed[0][0, :, 1, 2] += torch.randn(8)
    moved = (head(features, image) - head(changed, image)).abs().sum(dim=1)[0] > 1e-7
    rows, cols = moved.nonzero().unbind(dim=1)
    # its 4×4 pixels, and one more around them by the 3×3 convolution after
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (3, 8, 7, 12)


def test_upsampling_head_without_its_coarse_map():
    head, whole = UpsamplingHead((8,), (4,), num_classes=2, coarse=False), _upsampling_head((4,), silent="coarse")
    whole.load_state_dict(head.state_dict(), strict=False)
    features, image = _features((16, 16), (8,), (4,), batch=1), torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(head.eval()(features, image), whole(features, image))
    assert list(head.classifier) == ["fine"]


def test_upsampling_heads_coarse_map_is_the_linear_heads():
    head, linear = _upsampling_head((4,), silent="fine"), LinearHead((8,), (4,), num_classes=2).eval()
    linear.classifier.load_state_dict(head.classifier["coarse"].state_dict())
    features, image = _features((18, 16), (8,), (4,), batch=2), torch.randn(2, 3, 18, 16)
    torch.testing.assert_close(head(features, image), linear(features, image))


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
    for head_class in (FpnHead, MlpHead, UperHead):
        with pytest.raises(ValueError, match="width=0"):
            head_class((8,), (4,), 2, width=0)
        with pytest.raises(ValueError, match="dropout=-1"):
            head_class((8,), (4,), 2, dropout=-1)
    with pytest.raises(ValueError, match="dropout=1"):
        LinearHead((8,), (4,), 2, dropout=1.0)
    with pytest.raises(ValueError, match="pixel_channels=0"):
        UpsamplingHead((8,), (4,), 2, pixel_channels=0)


@pytest.mark.parametrize("head_class", HEADS)
def test_one_image_at_a_time_trains_as_it_evaluates(head_class):
    head = head_class((8, 16), (4, 8), num_classes=2)
    features, image = _features((16, 24), (8, 16), (4, 8), batch=1), torch.randn(1, 3, 16, 24)
    torch.testing.assert_close(head.train()(features, image), head.eval()(features, image))


@pytest.mark.parametrize("head_class", HEADS)
def test_the_order_of_the_levels_does_not_matter(head_class):
    torch.manual_seed(0)
    head = head_class((8, 8), (4, 8), num_classes=2).eval()
    torch.manual_seed(0)
    turned = head_class((8, 8), (8, 4), num_classes=2).eval()
    features, image = _features((16, 24), (8, 8), (4, 8)), torch.randn(2, 3, 16, 24)
    assert turned(features[::-1], image).shape == (2, 2, 16, 24)
    if head_class in (FpnHead, MlpHead, UperHead):
        torch.testing.assert_close(head(features, image), turned(features[::-1], image))


def test_upper_levels_reach_every_pixel_of_uper_and_only_their_surroundings_of_fpn():
    features, image = _features((64, 64), (8, 8), (4, 8), batch=1), torch.zeros(1, 3, 64, 64)
    changed = [features[0], features[1].clone()]
    changed[1][0, :, 0, 0] += torch.randn(8)
    for head_class, is_global in ((UperHead, True), (FpnHead, False), (MlpHead, False)):
        head = head_class((8, 8), (4, 8), num_classes=2).eval()
        moved = (head(features, image) - head(changed, image)).abs().sum(dim=1)[0] > 1e-9
        assert moved[0, 0]
        assert bool(moved[-1, -1]) == is_global


@pytest.mark.parametrize("pooled", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (6, 5), (13, 9), (56, 97)])
def test_regions_are_those_of_adaptive_pooling(size, pooled):
    maps = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(mean_regions(maps, pooled), nn.functional.adaptive_avg_pool2d(maps, pooled))


def test_a_padded_map_is_cut_and_not_stretched():
    ramp = torch.arange(10.0).repeat(1, 1, 3, 1)  # cell i covers pixels 4 i … 4 i + 3, centre 4 i + 1.5
    pixels = resample(ramp, 4, 1, (9, 37))
    assert pixels.shape == (1, 1, 9, 37)
    torch.testing.assert_close(pixels[0, 0, 0, 2:36], (torch.arange(2.0, 36) - 1.5) / 4)
    assert resample(ramp, 4, 1, (13, 41)).shape == (1, 1, 13, 41)  # of a backbone that dropped the last row and column


@pytest.mark.parametrize("head_class", HEADS)
def test_an_export_takes_any_size(head_class):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.levels = nn.ModuleList(nn.Conv2d(1, 8, 3, stride, 1) for stride in (4, 8))
            self.head = head_class((8, 8), (4, 8), 3, **image_channels(head_class, 1))

        def forward(self, image):
            return self.head([level(image) for level in self.levels], image)

    model = Model().eval()
    auto = torch.export.Dim.AUTO
    exported = torch.export.export(
        model, (torch.randn(2, 1, 97, 131),), dynamic_shapes=({0: auto, 2: auto, 3: auto},)
    ).module()
    for shape in ((2, 1, 97, 131), (1, 1, 64, 72), (3, 1, 224, 33), (1, 1, 72, 104)):
        image = torch.randn(shape)
        torch.testing.assert_close(exported(image), model(image))
