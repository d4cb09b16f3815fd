from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from castvision.data import open_array
from castvision.inference.tile_source import Skip
from castvision.inference.token_tiles import FeatureSink, TokenPredictor, check_tile, embed_tokens
from castvision.models.convert import convert
from tests.inference.embedding_cases import feature_model, patch_means, small_vit
from tests.inference.tiling_cases import NoData

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def block_means(image, side=4):
    high, wide = image.shape[0] // side, image.shape[1] // side
    return image.reshape(high, side, wide, side, 3).mean((1, 3)) / 255


def embed(model, image, folder, dtype="float32", reader=None, **options):
    predictor = TokenPredictor(model, 3, (0, 255))
    sink = FeatureSink(folder / "raw", dtype)
    facts = embed_tokens(predictor, open_array(image) if reader is None else reader, sink, **options)
    return sink.read(0, 0, *sink.shape[:2]), facts, sink, predictor


@pytest.mark.parametrize("options", [{}, {"tile": 16}, {"tile": 16, "overlap": 8}, {"tile": 24, "overlap": 0}])
def test_every_token_is_that_of_its_own_pixels(options, tmp_path):
    found, facts, sink, predictor = embed(patch_means(), IMAGE, tmp_path, **options)
    assert found.shape == (10, 14, 3)
    assert found == pytest.approx(block_means(IMAGE), abs=1e-6)
    assert sink.mean == pytest.approx(IMAGE.mean((0, 1)) / 255, abs=1e-6)
    assert facts["tiles"] == (1 if not options else {24: 6, 16: facts["tiles"]}[options["tile"]])
    if not options:
        assert predictor.class_mean == pytest.approx(sink.mean, abs=1e-6)


@pytest.mark.parametrize("tile", [None, 16])
def test_an_image_of_no_whole_patches_is_continued_by_reflection(tile, tmp_path):
    image = IMAGE[:38, :53]
    found, *_ = embed(patch_means(), image, tmp_path, tile=tile)
    mirrored = np.pad(image, ((0, 2), (0, 3), (0, 0)), mode="reflect")
    assert found == pytest.approx(block_means(mirrored), abs=1e-6)


def test_a_whole_image_gives_what_the_model_gives(tmp_path):
    small = feature_model(convert(small_vit()))
    model, parts = small.predictor.model, small.predictor.parts
    image = np.random.default_rng(1).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    found, _, _, predictor = embed(small, image, tmp_path)
    mean, std = (torch.tensor(values)[:, None, None] for values in (parts.input.mean, parts.input.std))
    with torch.inference_mode():
        wanted = model.forward_features((torch.from_numpy(image).permute(2, 0, 1) / 255 - mean)[None] / std)
    assert found.reshape(24, 48) == pytest.approx(wanted[0, 1:].numpy(), abs=1e-5)
    assert predictor.class_mean == pytest.approx(wanted[0, 0].numpy(), abs=1e-5)


def test_no_data_and_masks_leave_holes(tmp_path):
    image = IMAGE.astype(np.float32) / 255
    image[8:12, 4:8] = np.nan
    image[20:22, 20:24] = np.nan  # half a patch: its missing half is the model's mean, which is 0 here
    found, _, sink, _ = embed(patch_means(), image, tmp_path, reader=open_array(image), tile=16)
    assert np.isnan(found[2, 1]).all()
    assert np.isnan(found).sum() == 3
    assert found[5, 5] == pytest.approx(np.nansum(image[20:24, 20:24], (0, 1)) / 16 / 255, abs=1e-6)
    assert sink.count == 139
    mask = np.zeros((10, 14), np.uint8)
    mask[3, 5:8] = 1
    found, facts, *_ = embed(patch_means(), IMAGE, tmp_path, tile=16, overlap=0, skip=Skip(mask))
    assert (~np.isnan(found[..., 0])).tolist() == (mask > 0).tolist()
    assert facts["tiles_skipped"] > 0


def test_nothing_to_embed_is_said(tmp_path):
    with pytest.raises(ValueError, match="holds anything to embed"):
        embed(patch_means(), IMAGE, tmp_path, skip=Skip(np.zeros((2, 2), np.uint8)))


def test_half_precision_is_what_was_computed_rounded_and_refuses_what_it_cannot_hold(tmp_path):
    found, *_ = embed(patch_means(), IMAGE, tmp_path, "float16")
    assert found.dtype == np.float16
    assert found == pytest.approx(block_means(IMAGE).astype(np.float16), abs=1e-3)
    sink = FeatureSink(tmp_path / "raw")
    sink.allocate((1, 1, 2), np.dtype(np.float32), math.nan)
    with pytest.raises(ValueError, match="--dtype float32"):
        sink.write(0, 0, np.array([[[1.0, 70000.0]]], np.float32))


def test_a_picture_takes_every_so_many_tokens(tmp_path):
    *_, sink, _ = embed(patch_means(), IMAGE, tmp_path)
    patches, step = sink.thinned(10**6)
    assert (patches.shape, step) == ((10, 14, 3), 1)
    patches, step = sink.thinned(140)
    assert (patches.shape, step) == ((5, 7, 3), 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 18}, "a multiple of 4, the patch of patch_means, got 18; take 16 or 20"),
        ({"tile": 16, "overlap": 6}, "--overlap a multiple of 4"),
        ({"tile": 16, "overlap": 16}, "--overlap at most about two thirds of --tile 16, got 16"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        embed(patch_means(), IMAGE, tmp_path, **options)


def test_an_image_too_large_to_be_whole_names_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr("castvision.inference.token_tiles._MOST_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"expected --tile for 'array'.*--tile 256"):
        embed(patch_means(), IMAGE, tmp_path)


def test_channels_must_fit():
    with pytest.raises(ValueError, match="with 3 channels for patch_means, got 5; choose some with --bands"):
        TokenPredictor(patch_means(), 5, None)
    check_tile(patch_means(), 8)


def test_memory_is_that_of_a_band_and_not_of_the_image(tmp_path):
    """The reader is asked for windows of a tile, never for more."""
    asked = []

    class Watched(NoData):
        def _read(self, y, x, height, width, level):
            asked.append(height * width)
            return super()._read(y, x, height, width, level)

    embed(patch_means(), IMAGE, tmp_path, reader=Watched(IMAGE), tile=8, overlap=0)
    assert max(asked) == 64
