from __future__ import annotations

import numpy as np
import pytest
import torch

from castvision.ops import make_options
from castvision.visualization.clusters import ClusterMap
from castvision.visualization.pictures import (
    background_class,
    cluster_colours,
    cluster_text,
    display_picture,
    layer_name,
    overlay_clusters,
    overlay_labels,
    resize_labels,
)


def cluster_map(membership, windows=None, clusters=4, coverage=(0.0, 1.0, 0.0), layer="blocks.0.attn", **options):
    membership = torch.as_tensor(membership)
    sizes = membership.flatten().add(1).bincount(minlength=clusters + 1)[1:]
    if windows is None:
        size, windows = None, membership
    else:
        windows = torch.as_tensor(windows)
        size = tuple(int((windows[0, 0] == line).sum()) for line in (windows[:, 0], windows[0]))
    grid = tuple(membership.shape)
    return ClusterMap(layer, make_options(**options), grid, membership, windows, size, sizes, coverage)


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
    np.testing.assert_array_equal(resize_labels(np.arange(9)[None], (1, 3)), [[1, 4, 7]])  # not shifted to one side
    np.testing.assert_array_equal(resize_labels(np.arange(2)[None], (1, 3)), [[0, 1, 1]])


def test_colours_are_stable_and_distinguishable():
    colours = cluster_colours(512)
    np.testing.assert_array_equal(cluster_colours(8), colours[:8])
    assert len(np.unique(colours, axis=0)) == 512
    np.testing.assert_array_equal(cluster_colours(600)[512:], colours[:88])
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


def test_white_lines_between_windows_leave_the_tints():
    picture = np.full((64, 96, 3), 128, np.uint8)
    membership = [[0, 1, 2], [3, 0, 0]]
    plain = overlay_clusters(picture, cluster_map(membership))
    lined = overlay_clusters(picture, cluster_map(membership, windows=[[0, 0, 1], [0, 0, 1]]))
    white = (lined == 255).all(-1)
    assert white[:, 64 - 1 : 64 + 1].all()
    assert white.sum() == 2 * 64
    far = np.abs(np.arange(96) - 63.5) > 2
    np.testing.assert_array_equal(lined[:, far], plain[:, far])


def test_windows_are_tinted_where_there_are_no_clusters():
    none = cluster_map([[-1] * 4] * 4, windows=np.kron([[0, 1], [2, 3]], np.ones((2, 2), np.int64)), clusters=0)
    middles = overlay_clusters(np.full((64, 64, 3), 128, np.uint8), none)[8::16, 8::16]
    assert len(np.unique(middles.reshape(-1, 3), axis=0)) == 4
    np.testing.assert_array_equal(middles[0, 0], middles[1, 1])


SQUARES = np.kron([[0, 1]], np.ones((2, 2), np.int64))
ROWS = [[0, 1, 2, 3], [0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (cluster_map(ROWS, SQUARES), "4 content clusters, windows of 2 × 2"),
        (cluster_map(ROWS, SQUARES, shift_windows=True), "4 content clusters, shifted windows of 2 × 2"),
        (cluster_map(ROWS, SQUARES, 1024), "1,024 content clusters, windows of 2 × 2\n1,020 without a token"),
        (cluster_map(ROWS, SQUARES, assignment="random"), "4 random clusters, windows of 2 × 2"),
        (cluster_map([[0] * 4], [[0, 0, 1, 1]], 1, assignment="blocks"), "1 block, windows of 1 × 2"),
        (
            cluster_map([[-1] * 4] * 2, SQUARES, 0, (1.0, 0.0, 0.0), summaries="none"),
            "no clusters, windows of 2 × 2",
        ),
        (
            cluster_map([[0, -1, 1, 3]], None, 4, (0.25, 0.5, 0.25), attention="paper"),
            "4 content clusters\n1 without a token, 0.25 of tokens in none, 0.25 in several",
        ),
        (
            cluster_map(ROWS, None, 4, (0.0, 0.999, 0.001), attention="paper"),
            "4 content clusters\n0.001 of tokens in several",
        ),
    ],
)
def test_windows_and_clusters_in_words(given, text):
    assert cluster_text(given) == text


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


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["background", "road"], 0), (["Background ", "a", "b"], 0), (["void", "a"], 0), (["ground", "house"], None),
        (["house", "background"], None), (["class 0", "class 1"], 0), (["class 0", "class 1", "class 2"], None),
    ],
)  # fmt: skip
def test_only_a_class_named_so_is_background(names, expected):
    assert background_class(names) == expected
