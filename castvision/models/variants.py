"""Models to be trained from scratch, and AugReg's: ``timm.create_model(name)`` works once castvision is imported."""

from __future__ import annotations

from typing import Any

from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.models import generate_default_cfgs, register_model

from castvision.models.cast_vit import CastVisionTransformer
from castvision.models.convert import preset
from castvision.models.pretrained_variants import create_vit, timm_cfg
from castvision.models.pyramid import FeaturePyramid
from castvision.models.shipped import FOLDER


def _cfg(size: int = 224, chans: int = 3, first_conv: str = "patch_embed.proj", classes: int = 1000) -> dict[str, Any]:
    colour = chans == 3
    return {
        "url": "", "num_classes": classes, "input_size": (chans, size, size), "pool_size": None, "crop_pct": 0.9,
        "interpolation": "bicubic", "fixed_input_size": False, "first_conv": first_conv, "classifier": "head",
        "mean": IMAGENET_INCEPTION_MEAN if colour else (0.5,) * chans,
        "std": IMAGENET_INCEPTION_STD if colour else (0.5,) * chans, "license": "apache-2.0",
    }  # fmt: skip


_GREY: dict[str, Any] = {"chans": 1, "first_conv": "patch_embed.proj.0", "classes": 2}
_SIZES = ("tiny", "small", "base")
_AUGREG = "augreg_in21k_ft_in1k"
default_cfgs = generate_default_cfgs(
    {
        **{f"cast_vit_{s}_patch16_224.{_AUGREG}": timm_cfg(f"vit_{s}_patch16_224.{_AUGREG}") for s in _SIZES},
        **{f"cast_vit_{s}_patch{p}{form}_224.untrained*": _cfg()
           for s in _SIZES for p in (16, 8) for form in ("", "_pyramid")},
        "cast_vit_atto_patch4_32.pathfinder32_join": {
            **_cfg(32, **{**_GREY, "classes": 0}), "file": str(FOLDER / "pathfinder32_join.safetensors"),
        },
        "cast_vit_atto_patch4_32.untrained*": _cfg(32, **_GREY),
        "cast_vit_pixel_patch1_32.untrained": _cfg(32, **_GREY),
        "cast_vit_pixel_patch2_128.untrained": _cfg(128, **_GREY),
        "cast_vit_pixel_patch1_128.untrained": _cfg(128, **_GREY),
        "cast_vit_pixel_patch4_256.untrained": _cfg(256, **_GREY),
    }
)  # fmt: skip


def _create(variant: str, pretrained: bool, sizes: dict[str, Any], kwargs: dict[str, Any]) -> CastVisionTransformer:
    feature_cfg: dict[str, Any] = {}
    if "_pyramid_" in variant:
        feature_cfg = {"out_indices": (0, 1, 2, 3), "feature_cls": FeaturePyramid}
        stride = kwargs.pop("output_stride", None) if kwargs.get("features_only") else None
        if stride and "feature_cls" not in kwargs:
            feature_cfg["output_stride"] = stride
    if _tag(kwargs.get("pretrained_cfg")) == _AUGREG:
        sizes = {**preset(kwargs.get("attention")), **sizes}
    return create_vit(variant, pretrained, sizes, kwargs, **feature_cfg)


def _tag(pretrained_cfg: Any) -> str:
    """Of the weights named with a model, as timm hands it on: the tag alone, or their whole configuration."""
    if isinstance(pretrained_cfg, dict):
        return str(pretrained_cfg.get("tag", ""))
    return str(getattr(pretrained_cfg, "tag", pretrained_cfg) or "")


_TINY = {"embed_dim": 192, "depth": 12, "num_heads": 3}
_SMALL = {"embed_dim": 384, "depth": 12, "num_heads": 6}
_BASE = {"embed_dim": 768, "depth": 12, "num_heads": 12}
_PIXEL = {
    "in_chans": 1, "embed_dim": 192, "depth": 6, "num_heads": 6, "class_token": False,
    "global_pool": "max", "pos_embed": "none", "use_rot_pos_emb": True, "stem": "conv", "local_branch": True,
}  # fmt: skip
_ATTO = {**_PIXEL, "embed_dim": 64, "depth": 4, "num_heads": 4, "mlp_ratio": 2.0, "global_pool": "avg"}


@register_model
def cast_vit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> CastVisionTransformer:
    """ViT-Ti/16 with clustered attention."""
    return _create("cast_vit_tiny_patch16_224", pretrained, {"patch_size": 16, **_TINY}, kwargs)


@register_model
def cast_vit_tiny_patch16_pyramid_224(pretrained: bool = False, **kwargs: Any) -> CastVisionTransformer:
    """ViT-Ti/16 with clustered attention; ``features_only`` gives strides 4, 8, 16, 32."""
    return _create("cast_vit_tiny_patch16_pyramid_224", pretrained, {"patch_size": 16, **_TINY}, kwargs)


@register_model
def cast_vit_tiny_patch8_224(pretrained: bool = False, **kwargs: Any) -> CastVisionTransformer:
    """ViT-Ti/8 with clustered attention."""
    return _create("cast_vit_tiny_patch8_224", pretrained, {"patch_size": 8, **_TINY}, kwargs)


@register_model
def cast_vit_tiny_patch8_pyramid_224(pretrained: bool = False, **kwargs: Any) -> CastVisionTransformer:
    """ViT-Ti/8 with clustered attention; ``features_only`` gives strides 4, 8, 16, 32."""
    return _create("cast_vit_tiny_patch8_pyramid_224", pretrained, {"patch_size": 8, **_TINY}, kwargs)


@register_model
def cast_vit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> CastVisionTransformer:
    """ViT-S/16 with clustered attention."""
    return _create("cast_vit_small_patch16_224", pretrained, {"patch_size": 16, **_SMALL}, kwargs)


@register_model
def cast_vit_small_patch16_pyramid_224(pretrained: bool = False, **kwargs: Any) -> CastVisionTransformer:
    """ViT-S/16 with clustered attention; ``features_only`` gives strides 4, 8, 16, 32."""
    return _create("cast_vit_small_patch16_pyramid_224", pretrained, {"patch_size": 16, **_SMALL}, kwargs)


@register_model
def cast_vit_small_patch8_224(pretrained: bool = False, **kwargs: Any) -> CastVisionTransformer:
    """ViT-S/8 with clustered attention."""
    return _create("cast_vit_small_patch8_224", pretrained, {"patch_size": 8, **_SMALL}, kwargs)


@register_model
def cast_vit_small_patch8_pyramid_224(pretrained: bool = False, **kwargs: Any) -> CastVisionTransformer:
    """ViT-S/8 with clustered attention; ``features_only`` gives strides 4, 8, 16, 32."""
    return _create("cast_vit_small_patch8_pyramid_224", pretrained, {"patch_size": 8, **_SMALL}, kwargs)


@register_model
def cast_vit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> CastVisionTransformer:
    """ViT-B/16 with clustered attention."""
    return _create("cast_vit_base_patch16_224", pretrained, {"patch_size": 16, **_BASE}, kwargs)


@register_model
def cast_vit_base_patch16_pyramid_224(pretrained: bool = False, **kwargs: Any) -> CastVisionTransformer:
    """ViT-B/16 with clustered attention; ``features_only`` gives strides 4, 8, 16, 32."""
    return _create("cast_vit_base_patch16_pyramid_224", pretrained, {"patch_size": 16, **_BASE}, kwargs)


@register_model
def cast_vit_base_patch8_224(pretrained: bool = False, **kwargs: Any) -> CastVisionTransformer:
    """ViT-B/8 with clustered attention."""
    return _create("cast_vit_base_patch8_224", pretrained, {"patch_size": 8, **_BASE}, kwargs)


@register_model
def cast_vit_base_patch8_pyramid_224(pretrained: bool = False, **kwargs: Any) -> CastVisionTransformer:
    """ViT-B/8 with clustered attention; ``features_only`` gives strides 4, 8, 16, 32."""
    return _create("cast_vit_base_patch8_pyramid_224", pretrained, {"patch_size": 8, **_BASE}, kwargs)


@register_model
def cast_vit_atto_patch4_32(pretrained: bool = False, **kwargs: Any) -> CastVisionTransformer:
    """Grey 32 px images, 64 tokens: small enough to learn in minutes on a CPU."""
    return _create("cast_vit_atto_patch4_32", pretrained, {"img_size": 32, "patch_size": 4, **_ATTO}, kwargs)


@register_model
def cast_vit_pixel_patch1_32(pretrained: bool = False, **kwargs: Any) -> CastVisionTransformer:
    """Pathfinder-32: one token a pixel, 1,024 tokens."""
    return _create("cast_vit_pixel_patch1_32", pretrained, {"img_size": 32, "patch_size": 1, **_PIXEL}, kwargs)


@register_model
def cast_vit_pixel_patch2_128(pretrained: bool = False, **kwargs: Any) -> CastVisionTransformer:
    """Path-X (128 px) behind a stem of stride 2: 4,096 tokens."""
    return _create("cast_vit_pixel_patch2_128", pretrained, {"img_size": 128, "patch_size": 2, **_PIXEL}, kwargs)


@register_model
def cast_vit_pixel_patch1_128(pretrained: bool = False, **kwargs: Any) -> CastVisionTransformer:
    """Path-X (128 px), one token a pixel: 16,384 tokens."""
    return _create("cast_vit_pixel_patch1_128", pretrained, {"img_size": 128, "patch_size": 1, **_PIXEL}, kwargs)


@register_model
def cast_vit_pixel_patch4_256(pretrained: bool = False, **kwargs: Any) -> CastVisionTransformer:
    """Path-256 behind a stem of stride 4: 4,096 tokens."""
    return _create("cast_vit_pixel_patch4_256", pretrained, {"img_size": 256, "patch_size": 4, **_PIXEL}, kwargs)
