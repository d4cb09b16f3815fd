"""Masks predicted beside labels: where a token lies, what is learned, and that the model itself stays as it is."""

from __future__ import annotations

import json

import pytest
import timm
import torch

from castvision.data.datasets.batch import Batch
from castvision.training.tasks.classification import ClassificationTask, Mixing
from castvision.training.tasks.masks import TokenMasks
from castvision_cli import train as cli

SIZES = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 4, "img_size": 32, "in_chans": 1}


def _task(name="vit_tiny_patch16_224", **options):
    return ClassificationTask(name, num_classes=2, model_kwargs=SIZES, **options)


def test_a_token_stands_for_its_patch():
    model = timm.create_model("vit_tiny_patch16_224", **SIZES, reg_tokens=2)  # a class token and two more
    head = TokenMasks(model, 3)
    features = torch.zeros(1, 3 + 64, 16)
    features[0, 3 + 8 * 2 + 5] = 1  # third row, sixth column
    with torch.no_grad():
        head.project.weight.zero_()
        head.project.weight[1] = 1
        head.project.bias.zero_()
    logits = head(features, (8, 8))
    assert logits.shape == (1, 3, 8, 8)
    assert logits[0, 1, 2, 5] == 16 and logits.count_nonzero() == 1
    assert head(features, (32, 32))[0, 1].argmax() // 32 in range(8, 12)


def test_the_loss_is_the_labels_plus_the_weighted_masks():
    torch.manual_seed(0)
    task = _task(mask_weight=0.5)
    image, label = torch.randn(4, 1, 32, 32), torch.tensor([0, 1, 1, 0])
    paths = torch.randint(0, 3, (4, 32, 32))
    found = task.training_loss(Batch(image, label, {}, {"paths": paths}))
    features = task.model.forward_features(image)
    masks = torch.nn.functional.cross_entropy(task.mask_head(features, (32, 32)), paths)
    torch.testing.assert_close(found, task.loss(task(image), label) + 0.5 * masks)
    found.backward()
    assert all(parameter.grad is not None for parameter in task.parameters())


def test_what_predicts_masks_learns_and_is_no_part_of_the_model(tmp_path):
    flags = {
        "--model": "ClassificationTask", "--model.model_name": "cast_vit_atto_patch4_32", "--model.num_classes": "2",
        "--model.model_kwargs.depth": "1", "--model.mask_weight": "1.0", "--data": "PathfinderDataModule",
        "--data.contour_length": "6", "--data.gives_paths": "true", "--data.train_length": "16",
        "--data.val_length": "8", "--data.test_length": "8", "--data.batch_size": "8", "--data.num_workers": "0",
        "--trainer.accelerator": "cpu", "--run_dir": str(tmp_path),
    }  # fmt: skip
    words = [word for flag in flags.items() for word in flag]
    assert cli.main(["fit", *words]) == 0 and cli.main(["test", *words]) == 0
    assert "acc1" in str(json.loads((tmp_path / "test_metrics.json").read_text())["figures"])
    state = torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"]
    assert {name for name in state if "mask_head" in name} == {"mask_head.project.weight", "mask_head.project.bias"}
    task = ClassificationTask.load_from_checkpoint(tmp_path / "best.ckpt")
    assert task.mask_head is None
    assert json.loads((tmp_path / "metrics.json").read_text())["model"]["parameters"] == sum(
        parameter.numel() for parameter in task.model.parameters()
    )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mask_weight": -1.0}, "mask_weight >= 0"),
        ({"mask_weight": 1.0, "mixing": Mixing(mixup=0.2)}, "0 where images are mixed"),
    ],
)
def test_weights_are_checked(options, match):
    with pytest.raises(ValueError, match=match):
        _task(**options)


def test_a_model_without_tokens_and_data_without_masks_are_refused():
    with pytest.raises(ValueError, match="got ResNet; leave mask_weight out"):
        ClassificationTask("resnet10t", num_classes=2, mask_weight=1.0)
    with pytest.raises(ValueError, match="gives_paths: true"):
        _task(mask_weight=1.0).training_loss(Batch(torch.zeros(2, 1, 32, 32), torch.tensor([0, 1])))
