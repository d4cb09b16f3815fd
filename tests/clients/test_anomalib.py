"""anomalib's PatchCore on our feature maps (`pip install anomalib`; it holds jsonargparse below today's)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import castvision  # noqa: F401  # registers the models

model_file = pytest.importorskip("anomalib.models.image.patchcore.torch_model")
pytestmark = pytest.mark.slow


def images(batch: int = 4) -> Tensor:
    """Flat grey with a little noise."""
    return 0.02 * torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "layers"),
    [("cast_vit_tiny_patch16_224", ["blocks.2", "blocks.5"]), ("cast_vit_tiny_patch8_pyramid_224", ["blocks.5"])],
)
def test_patchcore_marks_the_corner_that_differs(name, layers):
    torch.manual_seed(0)
    model = model_file.PatchcoreModel(layers=layers, backbone=name, pre_trained=False).train()
    model(images())
    model.subsample_embedding(1.0)
    model.eval()
    odd = images(1)
    odd[..., :16, :16] = 3.0
    normal, found = model(images()[:1]), model(odd)
    assert found.pred_score > normal.pred_score
    corner, rest = found.anomaly_map[..., :16, :16].mean(), found.anomaly_map[..., 32:, 32:].mean()
    assert corner > rest
