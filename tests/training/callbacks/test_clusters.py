from __future__ import annotations

import pytest
import timm
import torch

import castvision  # noqa: F401  # registers the models
from castvision.training.callbacks.clusters import cluster_metrics
from castvision.visualization.clusters import cluster_maps


def test_clusters_of_free_sizes():
    torch.manual_seed(0)
    model = timm.create_model("cast_vit_atto_patch4_32", depth=2)
    images = torch.randn(2, 1, 32, 32)
    figures = cluster_metrics(model, images, torch.ones(2, 32, 32, dtype=torch.int64))
    sizes = [[layer.cluster_sizes for layer in cluster_maps(model, image)] for image in images]
    assert set(figures) == {f"clusters/blocks.{i}.attn/{name}" for i in (0, 1) for name in ("dead", "largest")}
    for place in (0, 1):
        largest = [float(one[place].max()) / (64 / len(one[place])) for one in sizes]
        assert figures[f"clusters/blocks.{place}.attn/largest"] == pytest.approx(sum(largest) / 2)


def test_equal_tokens_fall_into_one_cluster():
    model = timm.create_model("cast_vit_atto_patch4_32", depth=1)
    torch.nn.init.zeros_(model.blocks[0].attn.qkv.weight)
    figures = cluster_metrics(model, torch.zeros(1, 1, 32, 32), torch.tensor([1]))
    clusters = cluster_maps(model, torch.zeros(1, 32, 32))[0].num_clusters
    assert figures == {"clusters/blocks.0.attn/dead": clusters - 1, "clusters/blocks.0.attn/largest": clusters}


def test_a_balanced_partition_covers_every_token_once():
    model = timm.create_model("cast_vit_atto_patch4_32", depth=1, assignment="sa_topk", num_clusters=4)
    figures = cluster_metrics(model, torch.randn(2, 1, 32, 32), torch.ones(2, 32, 32, dtype=torch.int64))
    names = {"in_none": 0, "in_one": 1, "in_several": 0, "dead": 0, "largest": 1, "foreground_in_none": 0}
    assert figures == {f"clusters/blocks.0.attn/{name}": value for name, value in names.items()}


def test_windows_alone_have_no_clusters():
    model = timm.create_model("cast_vit_atto_patch4_32", depth=1, summaries="none")
    assert cluster_metrics(model, torch.randn(1, 1, 32, 32), torch.tensor([1])) == {}


def test_topk_leaves_orphans():
    torch.manual_seed(0)
    model = timm.create_model("cast_vit_atto_patch4_32", depth=1, attention="paper", num_clusters=2, cluster_size=4)
    figures = cluster_metrics(model, torch.randn(1, 1, 32, 32), torch.ones(1, 32, 32, dtype=torch.int64))
    none, one, several = (figures[f"clusters/blocks.0.attn/{name}"] for name in ("in_none", "in_one", "in_several"))
    assert none >= 1 - 8 / 64
    assert abs(none + one + several - 1) < 1e-6
    assert figures["clusters/blocks.0.attn/foreground_in_none"] == none


def test_labels_have_no_foreground_and_other_models_no_clusters():
    model = timm.create_model("cast_vit_atto_patch4_32", depth=1, attention="paper")
    assert not any(
        "foreground" in name for name in cluster_metrics(model, torch.randn(1, 1, 32, 32), torch.tensor([1]))
    )
    assert (
        cluster_metrics(timm.create_model("resnet10t", in_chans=1), torch.randn(1, 1, 32, 32), torch.tensor([1])) == {}
    )
