"""torchgeo's Lightning tasks, one training step each, on our backbones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import castvision  # noqa: F401  # registers the models

trainers = pytest.importorskip("torchgeo.trainers")
lightning = pytest.importorskip("lightning")
pytestmark = pytest.mark.slow
PYRAMID = "tu-cast_vit_tiny_patch16_pyramid_224"


def train_one_step(task, target: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Parameters before and after one step on two random scenes of 13 bands (classification) or masks."""
    generator = torch.Generator().manual_seed(0)
    labels = {
        "label": torch.randint(5, (2,), generator=generator),
        "mask": torch.randint(5, (2, 64, 64), generator=generator),
    }
    scenes = torch.randn(2, 13, 64, 64, generator=generator)
    samples = [{"image": scenes[i], target: labels[target][i]} for i in range(2)]
    before = copy.deepcopy(dict(task.named_parameters()))
    trainer = lightning.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1,
    )  # fmt: skip
    loader = DataLoader(samples, batch_size=2)
    trainer.fit(task, loader, loader)
    assert all(torch.isfinite(trainer.callback_metrics[name]) for name in ("train_loss", "val_loss"))
    return before, dict(task.named_parameters())


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_classification_of_13_bands():
    task = trainers.ClassificationTask("cast_vit_tiny_patch16_224", in_channels=13, num_classes=5)
    names = changed(*train_one_step(task, "label"))
    assert {"model.patch_embed.proj.weight", "model.blocks.0.attn.qkv.weight", "model.head.weight"} <= names


def test_linear_probe_leaves_the_backbone_alone():
    task = trainers.ClassificationTask("cast_vit_tiny_patch16_224", in_channels=13, num_classes=5, freeze_backbone=True)
    assert changed(*train_one_step(task, "label")) == {"model.head.weight", "model.head.bias"}


@pytest.mark.parametrize("decoder", ["unet", "deeplabv3+", "upernet", "segformer", "dpt"])
def test_segmentation_of_13_bands(decoder):
    task = trainers.SemanticSegmentationTask(decoder, PYRAMID, in_channels=13, num_classes=5)
    names = changed(*train_one_step(task, "mask"))
    assert any(name.endswith("patch_embed.proj.weight") for name in names)
    assert any(name.startswith("model.decoder.") for name in names)


def test_segmentation_with_a_frozen_backbone():
    task = trainers.SemanticSegmentationTask("unet", PYRAMID, in_channels=13, num_classes=5, freeze_backbone=True)
    names = changed(*train_one_step(task, "mask"))
    assert names and not any(name.startswith("model.encoder.") for name in names)
    assert isinstance(task.model.encoder, nn.Module)
