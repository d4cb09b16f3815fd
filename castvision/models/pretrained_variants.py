"""Variants for weights that others trained: ``pretrained=True`` fetches timm's, from the Hugging Face hub.

DINOv2 and SigLIP are :class:`CastVisionTransformer`, DINOv3 is timm's ``Eva``, converted. Configurations and
licences are timm's. AugReg's weights are tags of the variants in :mod:`.variants`.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import timm
from timm.layers import LayerNorm
from timm.models import Eva, build_model_with_cfg, eva, generate_default_cfgs, register_model

from castvision.models.cast_vit import CastVisionTransformer
from castvision.models.checkpoint import checkpoint_filter_fn
from castvision.models.convert import convert, option_names, preset
from castvision.models.weights import explained

if TYPE_CHECKING:
    from collections.abc import Sequence


def timm_cfg(name: str) -> dict[str, Any]:
    """The configuration of timm's weights ``name``, for a model that takes any image size."""
    cfg = asdict(timm.get_pretrained_cfg(name))
    for own in ("architecture", "tag", "url", "custom_load", "fixed_input_size"):  # the hub serves all, in one format
        del cfg[own]
    return {**cfg, "fixed_input_size": False}


def _cfgs(architectures: Sequence[str], tags: Sequence[str]) -> dict[str, dict[str, Any]]:
    return {f"cast_{name}.{tag}": timm_cfg(f"{name}.{tag}") for name in architectures for tag in tags}


_SIZES = ("small", "base", "large")
default_cfgs = generate_default_cfgs(
    {
        **_cfgs([f"vit_{size}_patch14_dinov2" for size in _SIZES], ["lvd142m"]),
        **_cfgs([f"vit_{size}_patch14_reg4_dinov2" for size in _SIZES], ["lvd142m"]),
        **_cfgs([f"vit_{size}_patch16_dinov3" for size in _SIZES], ["lvd1689m"]),
        **_cfgs(["vit_large_patch16_dinov3"], ["sat493m"]),
        **_cfgs([f"vit_base_patch16_siglip_{size}" for size in (224, 512)], ["webli", "v2_webli"]),
    }
)

_SMALL = {"embed_dim": 384, "depth": 12, "num_heads": 6}
_BASE = {"embed_dim": 768, "depth": 12, "num_heads": 12}
_LARGE = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
_DINOV2 = {"img_size": 518, "patch_size": 14, "init_values": 1e-5}
_REGISTERS = {**_DINOV2, "reg_tokens": 4, "no_embed_class": True}
_SIGLIP = {"patch_size": 16, "class_token": False, "global_pool": "map"}
_DINOV3 = {
    "img_size": 256, "patch_size": 16, "dynamic_img_size": True, "dynamic_img_pad": True, "qkv_bias": False,
    "init_values": 1e-5, "rope_type": "dinov3", "rope_temperature": 100, "rope_rotate_half": True,
    "use_rot_pos_emb": True, "use_abs_pos_emb": False, "num_reg_tokens": 4, "use_fc_norm": False,
    "norm_layer": partial(LayerNorm, eps=1e-5),
}  # fmt: skip


def create_vit(
    variant: str, pretrained: bool, sizes: dict[str, Any], kwargs: dict[str, Any], **feature_cfg: Any
) -> CastVisionTransformer:
    """A ``CastVisionTransformer`` of these sizes, with ``kwargs`` of the caller before them."""
    with explained(variant, pretrained):
        model: CastVisionTransformer = build_model_with_cfg(
            CastVisionTransformer, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg={"out_indices": 3, "feature_cls": "getter", **feature_cfg}, **{**sizes, **kwargs},
        )  # fmt: skip
    return model


def _vit(variant: str, pretrained: bool, sizes: dict[str, Any], kwargs: dict[str, Any]) -> CastVisionTransformer:
    return create_vit(variant, pretrained, {**preset(kwargs.get("attention")), **sizes}, kwargs)


def _dinov3(variant: str, pretrained: bool, sizes: dict[str, Any], kwargs: dict[str, Any]) -> Eva:
    options = {name: kwargs.pop(name) for name in option_names(kwargs.get("attention")) if name in kwargs}
    with explained(variant, pretrained):
        model: Eva = build_model_with_cfg(
            Eva, variant, pretrained, pretrained_filter_fn=eva.checkpoint_filter_fn,
            feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
            **{**_DINOV3, **sizes, **kwargs},
        )  # fmt: skip
    return convert(model, **options)


@register_model
def cast_vit_small_patch14_dinov2(pretrained: bool = False, **kwargs: Any) -> CastVisionTransformer:
    """ViT-S/14 for DINOv2's weights."""
    return _vit("cast_vit_small_patch14_dinov2", pretrained, {**_DINOV2, **_SMALL}, kwargs)


@register_model
def cast_vit_base_patch14_dinov2(pretrained: bool = False, **kwargs: Any) -> CastVisionTransformer:
    """ViT-B/14 for DINOv2's weights."""
    return _vit("cast_vit_base_patch14_dinov2", pretrained, {**_DINOV2, **_BASE}, kwargs)


@register_model
def cast_vit_large_patch14_dinov2(pretrained: bool = False, **kwargs: Any) -> CastVisionTransformer:
    """ViT-L/14 for DINOv2's weights."""
    return _vit("cast_vit_large_patch14_dinov2", pretrained, {**_DINOV2, **_LARGE}, kwargs)


@register_model
def cast_vit_small_patch14_reg4_dinov2(pretrained: bool = False, **kwargs: Any) -> CastVisionTransformer:
    """ViT-S/14 with four registers for DINOv2's weights."""
    return _vit("cast_vit_small_patch14_reg4_dinov2", pretrained, {**_REGISTERS, **_SMALL}, kwargs)


@register_model
def cast_vit_base_patch14_reg4_dinov2(pretrained: bool = False, **kwargs: Any) -> CastVisionTransformer:
    """ViT-B/14 with four registers for DINOv2's weights."""
    return _vit("cast_vit_base_patch14_reg4_dinov2", pretrained, {**_REGISTERS, **_BASE}, kwargs)


@register_model
def cast_vit_large_patch14_reg4_dinov2(pretrained: bool = False, **kwargs: Any) -> CastVisionTransformer:
    """ViT-L/14 with four registers for DINOv2's weights."""
    return _vit("cast_vit_large_patch14_reg4_dinov2", pretrained, {**_REGISTERS, **_LARGE}, kwargs)


@register_model
def cast_vit_small_patch16_dinov3(pretrained: bool = False, **kwargs: Any) -> Eva:
    """ViT-S/16 for DINOv3's weights, with rotary positions."""
    return _dinov3("cast_vit_small_patch16_dinov3", pretrained, _SMALL, kwargs)


@register_model
def cast_vit_base_patch16_dinov3(pretrained: bool = False, **kwargs: Any) -> Eva:
    """ViT-B/16 for DINOv3's weights, with rotary positions."""
    return _dinov3("cast_vit_base_patch16_dinov3", pretrained, _BASE, kwargs)


@register_model
def cast_vit_large_patch16_dinov3(pretrained: bool = False, **kwargs: Any) -> Eva:
    """ViT-L/16 for DINOv3's weights, with rotary positions."""
    return _dinov3("cast_vit_large_patch16_dinov3", pretrained, _LARGE, kwargs)


@register_model
def cast_vit_base_patch16_siglip_224(pretrained: bool = False, **kwargs: Any) -> CastVisionTransformer:
    """ViT-B/16 with attention pooling for SigLIP's weights at 224 px."""
    return _vit("cast_vit_base_patch16_siglip_224", pretrained, {"img_size": 224, **_SIGLIP, **_BASE}, kwargs)


@register_model
def cast_vit_base_patch16_siglip_512(pretrained: bool = False, **kwargs: Any) -> CastVisionTransformer:
    """ViT-B/16 with attention pooling for SigLIP's weights at 512 px."""
    return _vit("cast_vit_base_patch16_siglip_512", pretrained, {"img_size": 512, **_SIGLIP, **_BASE}, kwargs)
