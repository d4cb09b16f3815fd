"""Backbones in timm's registry, and what is built on them."""

from castvision.models import variants as variants
from castvision.models.cast_vit import CastVisionTransformer
from castvision.models.checkpoint import checkpoint_filter_fn
from castvision.models.context import ContextSegmenter
from castvision.models.pyramid import FeaturePyramid
from castvision.models.segmenter import Segmenter

__all__ = [
    "CastVisionTransformer",
    "ContextSegmenter",
    "FeaturePyramid",
    "Segmenter",
    "checkpoint_filter_fn",
]
