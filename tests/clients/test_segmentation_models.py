"""segmentation_models_pytorch: every decoder it has, on our backbones by their ``tu-`` names."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor

import castvision  # noqa: F401  # registers the models

smp = pytest.importorskip("segmentation_models_pytorch")
pytestmark = pytest.mark.slow
ENCODER = "tu-cast_vit_tiny_patch16_pyramid_224"
DECODERS = (
    "Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN", "DeepLabV3", "DeepLabV3Plus", "UPerNet",
    "Segformer", "DPT",
)  # fmt: skip
# DPT takes the whole classifier, as of any timm ViT
UNUSED_BY_DPT = {f"model.{layer}.{kind}" for layer in ("norm", "head") for kind in ("weight", "bias")}
DILATED = {"DeepLabV3": (8, 16), "DeepLabV3Plus": (8, 16), "PAN": (16,)}


def make(decoder: str, encoder: str = ENCODER, **options):
    torch.manual_seed(0)
    return getattr(smp, decoder)(encoder_name=encoder, encoder_weights=None, classes=5, **options)


def images(channels: int = 3, batch: int = 2, size: tuple[int, int] = (64, 96)) -> Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))


def test_no_decoder_is_left_out():
    assert {cls.__name__ for cls in smp.MODEL_ARCHITECTURES_MAPPING.values()} == set(DECODERS)


@pytest.mark.parametrize("channels", [3, 6])
@pytest.mark.parametrize("decoder", DECODERS)
def test_decoder_trains_the_whole_backbone(decoder, channels):
    model = make(decoder, in_channels=channels)
    size = (128, 160) if decoder == "PAN" else (64, 96)  # PAN halves its coarsest map three times
    logits = model(images(channels, size=size))
    assert logits.shape == (2, 5, *size) and torch.isfinite(logits).all()
    logits.square().mean().backward()
    untrained = {name for name, value in model.encoder.named_parameters() if value.grad is None}
    assert untrained == (UNUSED_BY_DPT if decoder == "DPT" else set())


@pytest.mark.parametrize(
    ("decoder", "stride"), [(decoder, stride) for decoder, strides in DILATED.items() for stride in strides]
)
@torch.no_grad()
def test_output_stride_reaches_the_backbone(decoder, stride):
    model = make(decoder, encoder_output_stride=stride).eval()
    x = images(size=(128, 160))
    features = model.encoder(x)
    assert [128 // feature.shape[-2] for feature in features[2:]] == [min(r, stride) for r in (4, 8, 16, 32)]
    assert model(x).shape == (2, 5, 128, 160)


@torch.no_grad()
def test_decoder_is_given_our_own_features():
    encoder = make("Unet").encoder.eval()
    ours = timm.create_model(ENCODER.removeprefix("tu-"), features_only=True).eval()
    ours.load_state_dict(encoder.model.state_dict())
    x = images()
    for theirs, feature in zip(encoder(x)[2:], ours(x), strict=True):
        assert torch.equal(theirs, feature)


@pytest.mark.parametrize("encoder", ["tu-cast_vit_tiny_patch8_pyramid_224", "tu-cast_vit_tiny_patch16_pyramid_224"])
@torch.no_grad()
def test_any_size_its_decoder_takes(encoder):
    model = make("FPN", encoder).eval()
    for size in ((32, 32), (64, 160), (224, 224)):
        assert model(images(batch=1, size=size)).shape == (1, 5, *size)


@torch.no_grad()
def test_arguments_of_the_backbone_pass_through():
    model = make("Unet", num_clusters=2, assignment="window").eval()
    attention = model.encoder.model.model.blocks[0].attn
    assert attention.assignment == "window"
    assert model(images()).shape == (2, 5, 64, 96)


@torch.no_grad()
def test_dense_transformer_takes_the_isotropic_backbone_too():
    model = make("DPT", "tu-cast_vit_tiny_patch16_224").eval()
    assert model(images(size=(224, 224), batch=1)).shape == (1, 5, 224, 224)


@torch.no_grad()
def test_saved_and_loaded_model_is_the_same(tmp_path):
    model = make("Unet").eval()
    model.save_pretrained(tmp_path / "unet")
    loaded = smp.from_pretrained(tmp_path / "unet").eval()
    assert torch.equal(loaded(images()), model(images()))
