from __future__ import annotations

import timm
import torch

import castvision  # noqa: F401  # registers the models
from castvision.training.clusters import cluster_figures


def test_a_partition_covers_every_token_once():
    model = timm.create_model("cast_vit_atto_patch4_32", depth=2)
    figures = cluster_figures(model, torch.randn(2, 1, 32, 32), torch.ones(2, 32, 32, dtype=torch.int64))
    for layer in ("blocks.0.attn", "blocks.1.attn"):
        assert figures[f"clusters/{layer}/in_one"] == 1
        assert figures[f"clusters/{layer}/in_none"] == figures[f"clusters/{layer}/dead"] == 0
        assert figures[f"clusters/{layer}/foreground_in_none"] == 0


def test_topk_leaves_orphans():
    torch.manual_seed(0)
    model = timm.create_model("cast_vit_atto_patch4_32", depth=1, assignment="topk", num_clusters=2, cluster_size=4)
    figures = cluster_figures(model, torch.randn(1, 1, 32, 32), torch.ones(1, 32, 32, dtype=torch.int64))
    none, one, several = (figures[f"clusters/blocks.0.attn/{name}"] for name in ("in_none", "in_one", "in_several"))
    assert none >= 1 - 8 / 64
    assert abs(none + one + several - 1) < 1e-6
    assert figures["clusters/blocks.0.attn/foreground_in_none"] == none


def test_labels_have_no_foreground_and_other_models_no_clusters():
    model = timm.create_model("cast_vit_atto_patch4_32", depth=1)
    assert not any(
        "foreground" in name for name in cluster_figures(model, torch.randn(1, 1, 32, 32), torch.tensor([1]))
    )
    assert (
        cluster_figures(timm.create_model("resnet10t", in_chans=1), torch.randn(1, 1, 32, 32), torch.tensor([1])) == {}
    )
