"""MONAI's sliding window over our segmenters, and over a decoder of segmentation_models_pytorch on our backbone."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import castvision  # noqa: F401  # registers the models
from castvision.models import Segmenter
from castvision.models.segmenter import create_segmenter

inferers = pytest.importorskip("monai.inferers")
pytestmark = pytest.mark.slow
LOCAL = {
    "attn_layer": "none", "local_branch": False, "use_rot_pos_emb": False, "stem": "patch", "num_classes": 0,
}  # fmt: skip


class TokenHead(nn.Module):
    """Logits of a pixel from its token alone."""

    def __init__(self, channels: int, stride: int, num_classes: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(channels, num_classes, 1)
        self.stride = stride

    def forward(self, features: list[Tensor], image: Tensor) -> Tensor:
        return F.interpolate(self.score(features[-1]), scale_factor=self.stride)


def image(channels: int, height: int = 72, width: int = 104) -> Tensor:
    return torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(1))


def slide(model: nn.Module, x: Tensor, window: int, **options) -> Tensor:
    return inferers.sliding_window_inference(x, (window, window), 4, model, overlap=0.5, **options)


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@torch.no_grad()
def test_windows_of_a_local_model_equal_the_whole_image(mode):
    torch.manual_seed(0)
    model = Segmenter(timm.create_model("cast_vit_atto_patch4_32", **LOCAL), TokenHead(64, 4, 3)).eval()
    x = image(1)
    torch.testing.assert_close(slide(model, x, 32, mode=mode), model(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_segmenter_in_windows():
    torch.manual_seed(0)
    model = create_segmenter("cast_vit_atto_patch4_32", 3, head="UpsamplingHead").eval()
    x = image(1)
    whole, windows = model(x), slide(model, x, 32)
    assert windows.shape == whole.shape and torch.isfinite(windows).all()
    assert not torch.allclose(windows, whole)  # attention reaches across windows: why a seam figure is worth having
    torch.testing.assert_close(slide(model, x[..., :32, :32], 32), model(x[..., :32, :32]))


@torch.no_grad()
def test_corner_that_one_window_covers_is_the_windows_own():
    torch.manual_seed(0)
    model = create_segmenter("cast_vit_atto_patch4_32", 3, head="LinearHead").eval()
    x = image(1, 64, 64)
    windows = slide(model, x, 32, mode="constant")
    torch.testing.assert_close(windows[..., :16, :16], model(x[..., :32, :32])[..., :16, :16], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_unet_on_our_backbone_in_windows():
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    model = smp.Unet("tu-cast_vit_tiny_patch16_pyramid_224", encoder_weights=None, in_channels=4, classes=3).eval()
    x = image(4, 160, 200)
    windows = slide(model, x, 64, mode="gaussian")
    assert windows.shape == (1, 3, 160, 200) and torch.isfinite(windows).all()
    torch.testing.assert_close(slide(model, x[..., :64, :64], 64), model(x[..., :64, :64]), rtol=1e-4, atol=1e-4)


def test_inferer_object_passes_gradients():
    torch.manual_seed(0)
    model = create_segmenter("cast_vit_atto_patch4_32", 3, head="LinearHead")
    inferer = inferers.SlidingWindowInferer(roi_size=(32, 32), sw_batch_size=2, overlap=0.25)
    inferer(image(1), model).square().mean().backward()
    assert all(value.grad is not None for value in model.backbone.blocks.parameters())
