from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from castvision.inference.sinks import ArraySink, FileSink
from castvision.inference.tile_source import Skip
from castvision.inference.tiled import tiled_inference
from tests.inference.tiling_cases import RNG, LocalNet, NoData, identity, run, whole


@pytest.mark.parametrize("size", [(1, 1), (7, 90), (32, 32), (33, 52), (53, 31), (100, 77), (150, 161)])
@pytest.mark.parametrize(("tile", "overlap", "halo"), [(32, 0, 0), (32, 16, 0), (32, 12, 6), (33, 17, 5), (48, 45, 22)])
def test_identity_gives_the_image_back_exactly(size, tile, overlap, halo):
    image = RNG.normal(size=(*size, 2)).astype(np.float32)
    for tta in ("none", "d4"):
        result = run(image, identity, tile=tile, overlap=overlap, halo=halo, output="image", tta=tta, batch_size=3)
        np.testing.assert_array_equal(result.values, image)
    assert result.seam is None or (result.seam.labels == result.seam.difference == 0)


def test_identity_on_a_long_thin_image_of_16_bits():
    image = RNG.integers(0, 65536, (100_000, 10), dtype=np.uint16)
    result = tiled_inference(image, identity, tile=256, overlap=16, output="image", batch_size=8)
    np.testing.assert_array_equal(result.values[..., 0], image)
    assert result.seam.pixels == (result.tiles_run - 1) * 8 * 10


def test_identity_with_tiles_that_are_not_square():
    image = RNG.normal(size=(70, 100)).astype(np.float32)
    for tta in ("flips", "d4"):
        result = run(image, identity, tile=(16, 40), overlap=4, halo=1, output="image", tta=tta)
        np.testing.assert_array_equal(result.values[..., 0], image)


@pytest.mark.parametrize("size", [(32, 32), (71, 100), (90, 33)])
def test_local_network_equals_the_whole_image(size):
    image = RNG.normal(size=(*size, 3)).astype(np.float32)
    net = LocalNet()
    expected = whole(net, image)
    result = run(image, net, overlap=10, halo=net.radius, output="image")
    np.testing.assert_allclose(result.values, expected.permute(1, 2, 0), atol=1e-5)
    probabilities = run(image, net, overlap=8, halo=net.radius, output="probabilities").values
    np.testing.assert_allclose(probabilities, expected.softmax(0).permute(1, 2, 0), atol=1e-5)


def test_too_small_a_halo_shows_in_the_seam_figure():
    image = RNG.normal(size=(100, 100, 3)).astype(np.float32)
    net = LocalNet()
    exact = run(image, net, overlap=10, halo=net.radius).seam
    cut = run(image, net, overlap=10, halo=0).seam
    assert exact.difference < 1e-6
    assert cut.difference > 1e-3
    assert cut.labels > exact.labels == 0


def test_seam_figure_of_known_tiles():
    """Tiles that say class 0 and class 1 in turn differ in every compared pixel."""
    calls = []

    def alternating(batch):
        calls.append(len(batch))
        scores = torch.zeros(1, 2, *batch.shape[2:])
        scores[:, (len(calls) - 1) % 2] = 1
        return scores

    result = run(np.zeros((32, 52)), alternating, batch_size=1, activation="none")
    assert (result.seam.labels, result.seam.difference, result.seam.pixels) == (1.0, 1.0, 6 * 32)
    np.testing.assert_array_equal(result.labels[0], [0] * 26 + [1] * 26)  # low at 23, halfway through 6


def test_online_argmax_equals_argmax_of_the_blended_probabilities():
    image = RNG.normal(size=(81, 95, 3)).astype(np.float32)
    net = LocalNet()
    result = run(image, net)
    probabilities = run(image, net, output="probabilities").values
    np.testing.assert_array_equal(result.labels, probabilities.argmax(-1))
    assert result.labels.dtype == np.uint8
    np.testing.assert_array_equal(result.class_pixels, np.bincount(result.labels.ravel(), minlength=5))
    assert run(image, net, output="probabilities").class_pixels == result.class_pixels
    chosen = [probabilities.max(-1)[result.labels == number] for number in range(5)]
    mean = [values.mean() if values.size else np.nan for values in chosen]
    np.testing.assert_allclose(result.class_probability, mean, rtol=1e-6)


def test_more_than_255_classes_are_counted_in_16_bits():
    result = run(np.full((20, 20), 290.0), lambda batch: F.one_hot(batch[:, 0].long(), 300).permute(0, 3, 1, 2).float())
    assert result.labels.dtype == np.uint16
    assert (result.labels == 290).all()


def test_test_time_views_of_an_equivariant_predictor_change_nothing():
    image = RNG.normal(size=(70, 70, 3)).astype(np.float32)
    kernel = torch.ones(3, 1, 3, 3) / 8

    def blur(batch):
        return F.conv2d(batch, kernel, padding=1, groups=3)

    plain = run(image, blur, output="image").values
    for tta in ("flips", "d4"):
        np.testing.assert_allclose(run(image, blur, output="image", tta=tta).values, plain, atol=1e-6)


def test_views_are_turned_back():
    """A predictor that marks the upper left quarter of what it sees: over all views every pixel is marked equally."""

    def corner(batch):
        marked = torch.zeros_like(batch)
        marked[..., : batch.shape[2] // 2, : batch.shape[3] // 2] = 1
        return marked

    for tta in ("flips", "d4"):
        values = run(np.zeros((32, 32)), corner, output="image", tta=tta).values
        np.testing.assert_allclose(values, 0.25)
    seen = []
    run(
        np.arange(9.0).reshape(3, 3),
        lambda view: seen.append(view) or view,
        tile=3,
        overlap=0,
        halo=0,
        output="image",
        tta="d4",
    )
    assert len({view.numpy().tobytes() for view in seen}) == 8


def test_bf16_runs_the_predictor_under_autocast():
    seen = []
    net = LocalNet()
    net.layers[-1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    image = RNG.normal(size=(40, 40, 3)).astype(np.float32)
    low = run(image, net, precision="bf16", output="probabilities").values
    full = run(image, net, output="probabilities").values
    assert seen[0] == torch.bfloat16
    assert seen[-1] == torch.float32
    assert 0 < np.abs(low - full).max() < 0.02


@pytest.mark.parametrize(
    ("size", "expected"), [((52, 152), [4, 3, 4, 3]), ((152, 52), [4, 4, 4, 2]), ((152, 9), [4, 3])]
)
def test_batches_are_as_full_as_bands_allow(size, expected):
    sizes = []
    run(np.zeros(size), lambda batch: sizes.append(len(batch)) or batch, batch_size=4, output="image")
    assert sizes == expected


def test_nodata_and_what_is_not_finite_stays_nodata():
    image = RNG.uniform(1, 2, (90, 90)).astype(np.float32)
    image[:40, :40] = np.nan
    image[80, 80] = np.inf
    image[60, 10:20] = -9999
    reader = NoData(image[..., None])
    seen = []
    result = run(reader, lambda batch: seen.append(batch) or batch, output="image")
    missing = ~np.isfinite(image) | (image == -9999)
    np.testing.assert_array_equal(np.isnan(result.values[..., 0]), missing)
    np.testing.assert_array_equal(result.values[..., 0][~missing], image[~missing])
    assert result.tiles_skipped == 1
    assert all(((batch == 0) | (batch >= 1)).all() for batch in seen)
    labels = run(reader, lambda batch: torch.cat([batch, -batch], 1)).labels
    np.testing.assert_array_equal(labels == 255, missing)


def test_mask_of_another_size_and_share_of_foreground():
    image = RNG.uniform(1, 2, (128, 128)).astype(np.float32)
    mask = np.zeros((16, 16), np.uint8)
    mask[2:9, 4:9] = 1
    inside = np.kron(mask, np.ones((8, 8))) > 0
    every = run(image, identity, output="image", skip=Skip(mask=mask))
    np.testing.assert_array_equal(every.values[..., 0], np.where(inside, image, np.nan))
    assert every.tiles_skipped > 0
    some = run(image, identity, output="image", skip=Skip(mask=mask, min_foreground=0.5))
    assert every.tiles_run > some.tiles_run > 0
    kept = ~np.isnan(some.values[..., 0])
    assert 0 < kept.sum() < inside.sum()
    np.testing.assert_array_equal(some.values[kept, 0], image[kept])


def test_blank_tiles_and_neighbours_of_skipped_ones():
    image = RNG.uniform(0, 1, (128, 160)).astype(np.float32)
    image[40:, 50:] = 7.0
    result = run(image, identity, output="image", skip=Skip(blank=0.0))
    assert result.tiles_skipped > 4
    left_out = np.isnan(result.values[..., 0])
    assert (image[left_out] == 7).all()
    assert left_out.sum() > 4000
    np.testing.assert_array_equal(result.values[~left_out, 0], image[~left_out])
    assert run(image, identity, output="image").tiles_skipped == 0


def test_everything_skipped():
    result = run(np.full((70, 70), np.nan, np.float32), identity)
    assert (result.labels == 255).all()
    assert (result.tiles_run, result.seam) == (0, None)


def test_progress_counts_tiles():
    seen = []
    run(np.zeros((52, 52)), identity, output="image", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_monai_style_predictor_with_a_module_on_its_device():
    net = LocalNet().eval()
    image = RNG.integers(0, 256, (70, 60, 3), dtype=np.uint8)
    assert tiled_inference(image, net, tile=64, overlap=16).labels.shape == (70, 60)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 0}, "at least one pixel"),
        ({"overlap": 32}, "2 \\* halo <= overlap < tile"),
        ({"overlap": 30, "halo": 2}, "less overlap"),
        ({"halo": 7}, "halo=7"),
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"tta": "d8"}, "expected tta in"),
        ({"output": "mask"}, "expected output in"),
        ({"level": 1}, r"level in 0\.\.0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        run(np.zeros((40, 40)), identity, **options)


def test_wrong_predictors_and_pixels():
    image = np.zeros((40, 40))
    with pytest.raises(TypeError, match="return a tensor, got tuple"):
        run(image, lambda batch: (batch,))
    with pytest.raises(ValueError, match="of the same size, got"):
        run(image, lambda batch: batch[..., ::2])
    with pytest.raises(TypeError, match="complex64"):
        run(np.zeros((4, 4), np.complex64), identity)
    with pytest.raises(TypeError, match=r"got a Tensor; give np\.asarray"):
        run(torch.zeros(3, 40, 40), identity)
    with pytest.raises(ValueError, match="min_foreground"):
        Skip(min_foreground=2)
    with pytest.raises(ValueError, match="blank"):
        Skip(blank=-1)


@pytest.mark.parametrize(
    "options", [{}, {"output": "probabilities"}, {"output": "image", "activation": "softmax"}, {"activation": "none"}]
)
def test_one_logit_is_no_choice_between_classes(options):
    """All was class 0 with a probability of 1."""
    with pytest.raises(ValueError, match=r"two classes or more, got one channel.*torch.cat"):
        run(np.zeros((40, 40), np.float32), identity, **options)


def test_one_logit_as_two_classes_or_by_its_values():
    image = RNG.normal(size=(40, 40)).astype(np.float32)
    wanted = torch.sigmoid(torch.from_numpy(image))
    both = run(image, lambda x: torch.cat([torch.zeros_like(x), x], 1), output="probabilities").values
    torch.testing.assert_close(torch.from_numpy(both[..., 1]), wanted)
    alone = run(image, torch.sigmoid, output="probabilities", activation="none").values
    torch.testing.assert_close(torch.from_numpy(alone[..., 0]), wanted)


def test_no_space_left_names_the_file(tmp_path):
    sink = FileSink("/dev/full")
    with pytest.raises(OSError, match=r"No space left.*/dev/full"):
        sink.allocate((8, 8), np.dtype(np.uint8), 255)
    assert ArraySink().array.size == 0
