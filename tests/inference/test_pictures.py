from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from castvision.inference.pictures import (
    cluster_colours,
    coverage_text,
    display_picture,
    layer_name,
    overlay_clusters,
    overlay_labels,
    resize_labels,
)


def cluster_map(membership, clusters=4, coverage=(0.0, 1.0, 0.0), layer="blocks.0.attn"):
    membership = torch.as_tensor(membership)
    tokens = membership.numel()
    index = torch.full((clusters, tokens), tokens)
    for cluster in range(clusters):
        members = (membership.flatten() == cluster).nonzero().flatten()
        index[cluster, : len(members)] = members
    return SimpleNamespace(
        layer=layer, grid_size=tuple(membership.shape), index=index, membership=membership, coverage=coverage
    )


def test_small_images_are_enlarged_without_smoothing():
    image = np.arange(32 * 32, dtype=np.uint8).reshape(32, 32, 1)
    picture = display_picture(image, min_side=384)
    assert picture.shape == (384, 384, 3)
    np.testing.assert_array_equal(picture[::12, ::12, 0], image[..., 0])
    np.testing.assert_array_equal(picture[11::12, 11::12, 2], image[..., 0])


def test_large_images_are_reduced_and_keep_their_shape():
    picture = display_picture(np.zeros((3000, 1000, 3), np.uint8), max_side=600)
    assert picture.shape == (600, 200, 3)
    assert display_picture(np.zeros((9, 5000, 3), np.uint8), max_side=1000).shape == (2, 1000, 3)


def test_16_bit_images_are_stretched_to_be_seen():
    image = np.linspace(0, 4095, 400 * 400).reshape(400, 400, 1).astype(np.uint16)
    picture = display_picture(image)
    assert picture.min() == 0
    assert picture.max() == 255


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 1, None]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_channels_shown(channels, shown):
    image = np.random.default_rng(0).integers(0, 256, (400, 400, channels), dtype=np.uint8)
    picture = display_picture(image)
    for place, channel in enumerate(shown):
        np.testing.assert_array_equal(picture[..., place], 0 if channel is None else image[..., channel])


def test_no_picture_of_nothing():
    with pytest.raises(ValueError, match="non-empty"):
        display_picture(np.zeros((0, 4, 3), np.uint8))


def test_labels_are_resized_by_hand():
    labels = np.array([[0, 1], [2, 3]])
    np.testing.assert_array_equal(
        resize_labels(labels, (4, 6)), [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1], [2, 2, 2, 3, 3, 3], [2, 2, 2, 3, 3, 3]]
    )
    np.testing.assert_array_equal(resize_labels(resize_labels(labels, (6, 8)), (2, 2)), labels)


def test_colours_are_stable_and_distinguishable():
    colours = cluster_colours(256)
    np.testing.assert_array_equal(cluster_colours(8), colours[:8])
    assert len(np.unique(colours, axis=0)) == 256
    np.testing.assert_array_equal(cluster_colours(300)[256:], colours[:44])
    first = colours[:16].astype(int)
    distance = np.abs(first[:, None] - first[None]).sum(-1) + 1000 * np.eye(16, dtype=int)
    assert distance.min() > 60
    with pytest.raises(ValueError, match="count=0"):
        cluster_colours(0)


def test_overlay_tints_outlines_and_keeps_the_picture_visible():
    rows = np.linspace(0, 255, 64).astype(np.uint8)
    picture = np.broadcast_to(rows[:, None, None], (64, 64, 3)).copy()
    labels = np.zeros((64, 64), np.int64)
    labels[:, 32:] = 1
    result = overlay_labels(picture, labels, line=2)
    for column, label in ((10, 0), (50, 1)):
        inside = result[:, column].astype(int)
        assert (np.diff(inside.sum(-1)) >= 0).all()  # the picture's ramp is still a ramp
        assert inside[-1].sum() - inside[0].sum() > 150
        hue = cluster_colours(2)[label].argmax()
        assert inside[30].argmax() == hue
    dark = result[40, 31:33].astype(int).sum(-1)
    assert (dark < 0.5 * result[40, [20, 45]].astype(int).sum(-1)).all()


def test_tokens_in_no_cluster_are_darkened_and_a_background_is_left_alone():
    picture = np.full((40, 40, 3), (200, 100, 50), np.uint8)
    labels = np.full((40, 40), -1)
    labels[:, 20:] = 0
    result = overlay_labels(picture, labels)
    assert result[5, 5].max() < 60
    assert (result[5, 5] == result[5, 5, 0]).all()
    np.testing.assert_array_equal(overlay_labels(picture, labels, untinted=0)[5, 35], (200, 100, 50))


def test_opacity_0_and_1():
    picture = np.full((40, 40, 3), 255, np.uint8)
    labels = np.zeros((40, 40), np.int64)
    np.testing.assert_array_equal(overlay_labels(picture, labels, opacity=0), picture)
    np.testing.assert_array_equal(overlay_labels(picture, labels, opacity=1)[0, 0], cluster_colours(1)[0])


def test_overlay_errors():
    picture = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="one size"):
        overlay_labels(picture, np.zeros((4, 5), np.int64))
    with pytest.raises(ValueError, match="opacity=2"):
        overlay_labels(picture, np.zeros((4, 4), np.int64), opacity=2)
    with pytest.raises(ValueError, match="line=0"):
        overlay_labels(picture, np.zeros((4, 4), np.int64), line=0)


def test_cluster_overlay_follows_the_token_grid():
    picture = np.full((64, 96, 3), 128, np.uint8)
    result = overlay_clusters(picture, cluster_map([[0, 1, 2], [3, -1, 0]]))
    middles = result[16::32, 16::32].astype(int)
    np.testing.assert_array_equal(middles[0, 0], middles[1, 2])
    assert len({tuple(colour) for colour in middles.reshape(-1, 3)}) == 5
    assert middles[1, 1].max() < 60


def test_coverage_in_words():
    everything = cluster_map([[0, 1], [2, 2]])
    assert coverage_text(everything) == "100% of 4 tokens in 3 clusters"
    some = cluster_map([[0, -1], [1, 1]], coverage=(0.25, 0.5, 0.25))
    assert coverage_text(some) == "75% of 4 tokens in 2 clusters, 25% in several"
    almost = cluster_map([[0, 1], [2, 2]], coverage=(0.001, 0.999, 0.0))
    assert coverage_text(almost).startswith("99.9% of 4")


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        ("blocks.3.attn", "blocks.3"),
        ("backbone.blocks.3.attn", "blocks.3"),
        ("backbone.model.blocks.0.attn", "blocks.0"),
    ],
)
def test_layer_names(layer, name):
    assert layer_name(cluster_map([[0]], layer=layer)) == name
