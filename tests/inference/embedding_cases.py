"""What the tests of embeddings share: a backbone whose features are known, and small ViTs with weights."""

from __future__ import annotations

import timm
import torch
from torch import nn
from torch.nn import functional

from castvision.inference.feature_model import FeatureModel
from castvision.inference.predictor import describe

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3, "num_classes": 0}


class PatchMeans(nn.Module):
    """A token is the mean of its patch; the class token that of the image. Nothing else is seen."""

    num_prefix_tokens, embed_dim, in_chans, num_classes = 1, 3, 3, 0

    def __init__(self, patch: int = 4) -> None:
        super().__init__()
        self.patch_embed = nn.Identity()
        self.patch_embed.patch_size, self.patch_embed.img_size = (patch, patch), (4 * patch, 4 * patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 3))
        self.pretrained_cfg = {
            "input_size": (3, 4 * patch, 4 * patch), "mean": (0, 0, 0), "std": (1, 1, 1), "interpolation": "bicubic",
        }  # fmt: skip

    def forward_features(self, images):
        patches = functional.avg_pool2d(images, self.patch_embed.patch_size).flatten(2).mT
        return torch.cat([patches.mean(1, keepdim=True), patches], 1)


def patch_means(patch: int = 4) -> FeatureModel:
    return feature_model(PatchMeans(patch), "patch_means")


def feature_model(model, name="small") -> FeatureModel:
    return FeatureModel(describe(model, name, None))


def small_vit(name: str = "vit_tiny_patch16_224", **arguments):
    torch.manual_seed(0)
    return timm.create_model(name, **{**SMALL, **arguments}).eval()
