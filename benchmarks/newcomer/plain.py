"""Thirty lines of PyTorch, as a newcomer writes them: the same backbone, AdamW, a half cosine, no tricks."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import timm
import torch
from torch import nn
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex, MultilabelAveragePrecision

import castvision  # noqa: F401  # registers the models


def train(path: str, model_name: str, steps: int, batch_size: int, seed: int, lr: float) -> float:
    """Train on ``arrays.npz`` and judge the held-out images: accuracy, average precision or mean IoU, all 0..1."""
    torch.manual_seed(seed)
    data = {name: torch.from_numpy(values) for name, values in np.load(path).items()}
    images, held = data["images"].float(), data["held_images"].float()
    mean, std = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
    images, held = (images - mean) / std, (held - mean) / std
    targets, truth = (data[name] if data[name].ndim == 2 else data[name].long() for name in ("targets", "held_targets"))
    is_dense, is_multi = targets.ndim == 3, targets.ndim == 2
    classes = targets.shape[1] if is_multi else int(targets.max()) + 1
    kwargs: dict[str, Any] = {"in_chans": images.shape[1], "img_size": images.shape[-1]}
    backbone: Any = timm.create_model(model_name, num_classes=0 if is_dense else classes, **kwargs)
    head = nn.Conv2d(backbone.num_features, classes, 1)

    def logits(batch: torch.Tensor) -> torch.Tensor:
        if not is_dense:
            return backbone(batch)  # type: ignore[no-any-return]
        tokens = backbone.forward_features(batch)[:, backbone.num_prefix_tokens :]
        grid = tokens.mT.unflatten(2, backbone.patch_embed.grid_size)
        return functional.interpolate(head(grid), size=batch.shape[-2:], mode="bilinear")

    loss_of = nn.BCEWithLogitsLoss() if is_multi else nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.cat([torch.randperm(len(images)) for _ in range(1 + steps * batch_size // len(images))])
    for chosen in torch.split(order[: steps * batch_size], batch_size):
        optimizer.zero_grad()
        loss_of(logits(images[chosen]), targets[chosen]).backward()
        optimizer.step()
        schedule.step()
    backbone.eval()
    with torch.inference_mode():
        found = torch.cat([logits(part) for part in torch.split(held, 32)])
    if is_multi:
        return float(MultilabelAveragePrecision(classes)(found.sigmoid(), truth.long()))
    if is_dense:
        return float(MulticlassJaccardIndex(classes)(found.argmax(1), truth))
    return float(MulticlassAccuracy(classes, average="micro")(found, truth))


if __name__ == "__main__":
    path, model_name, steps, batch_size, seed, lr = sys.argv[1:]
    print(json.dumps(train(path, model_name, int(steps), int(batch_size), int(seed), float(lr))))
