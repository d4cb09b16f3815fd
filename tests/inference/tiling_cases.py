"""What the tests of tiled inference share: predictors, and a call with small tiles."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from castvision.data.reading.whole import ArrayReader
from castvision.inference.tiled import tiled_inference

RNG = np.random.default_rng(0)


def identity(batch):
    return batch


def run(image, predictor, **options):
    return tiled_inference(image, predictor, **{"tile": 32, "overlap": 12, "halo": 3, **options})


class NoData(ArrayReader):
    nodata = -9999.0


class LocalNet(nn.Module):
    """Three convolutions with zero padding: each output sees four pixels around it."""

    radius = 4

    def __init__(self, classes=5):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 5, padding=2), nn.GELU(), nn.Conv2d(8, 8, 3, padding=1), nn.GELU(),
            nn.Conv2d(8, classes, 3, padding=1),
        )  # fmt: skip

    def forward(self, image):
        return self.layers(image)


def whole(net, image):
    with torch.inference_mode():
        return net(torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None])[0]
