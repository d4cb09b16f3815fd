from __future__ import annotations

import numpy as np
import pytest
import tifffile
import torch

from castvision.data import open_array, open_image
from castvision.data.datasets.slide_bags import bag_format
from castvision.data.reading.bags import read_bag
from castvision.inference.slide_tiles import TileOptions, cut, embed_tiles
from castvision.inference.tile_source import TileSource
from tests.inference.embedding_cases import feature_model, patch_means, small_vit

pytest.importorskip("h5py")
IMAGE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def pyramid(path, image=IMAGE, mpp=0.25):
    """Two levels, the second half as large, with a scale."""
    small = image.reshape(image.shape[0] // 2, 2, -1, 2, 3).mean((1, 3)).astype(np.uint8)
    how = {"tile": (16, 16), "photometric": "rgb", "resolution": (1e4 / mpp,) * 2, "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as writer:
        writer.write(image, subifds=1, **how)
        writer.write(small, subfiletype=1, tile=(16, 16), photometric="rgb")
    return path


def tile_means(image, side):
    high, wide = image.shape[0] // side, image.shape[1] // side
    means = image[: high * side, : wide * side].reshape(high, side, wide, side, 3).mean((1, 3))
    return means.reshape(-1, 3) / 255


def embed(reader, folder, tile=16, model=None, tissue=None, mask=None, progress=lambda done, total: None, **options):
    facts = embed_tiles(
        model or patch_means(), reader, folder / "a.h5", "a", TileOptions(tile, **options), tissue=tissue, mask=mask,
        progress=progress,
    )  # fmt: skip
    return read_bag(folder / "a.h5"), facts


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_tiles_are_embedded_with_where_they_lie(pool, tmp_path):
    told = []
    bag, facts = embed(open_array(IMAGE), tmp_path, pool=pool, batch_size=5, progress=lambda *done: told.append(done))
    assert bag.features == pytest.approx(tile_means(IMAGE, 16), abs=1e-6)
    assert bag.coords.tolist() == [[x, y] for y in range(0, 64, 16) for x in range(0, 96, 16)]
    assert facts == {"tiles": 24, "tiles_skipped": 0, "level": 0, "mpp": None}
    assert told[-1] == (24, 24)


def test_the_layout_is_what_clam_and_trident_read(tmp_path):
    import h5py

    with open_image(pyramid(tmp_path / "slide.tif")) as reader:
        embed(reader, tmp_path, mpp=0.5, pool="class+mean")
    with h5py.File(tmp_path / "a.h5") as file:
        assert set(file) == {"features", "coords"}
        assert (file["features"].shape, file["features"].dtype) == ((6, 6), np.float32)
        assert (file["coords"].shape, file["coords"].dtype.kind) == ((6, 2), "i")
        attributes = dict(file["coords"].attrs)
        assert file["features"].attrs["encoder"] == "patch_means"
    assert {key: attributes[key] for key in ("patch_size", "patch_size_level0", "patch_level", "overlap", "name")} == {
        "patch_size": 16, "patch_size_level0": 32, "patch_level": 1, "overlap": 0, "name": "a",
    }  # fmt: skip
    assert (attributes["level0_magnification"], attributes["target_magnification"]) == (40, 20)
    assert attributes["target_mpp"] == 0.5
    assert attributes["level0_mpp"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("mpp", "level", "side"),
    [(None, 0, 16), (0.25, 0, 16), (0.252, 0, 16), (0.5, 1, 16), (0.375, 0, 24), (0.75, 1, 24), (0.2, 0, 13)],
)
def test_tiles_come_from_the_coarsest_level_that_is_fine_enough(mpp, level, side, tmp_path):
    with open_image(pyramid(tmp_path / "slide.tif")) as reader:
        placed = cut(reader, TileOptions(16, mpp=mpp))
    assert (placed.level, placed.side, placed.step) == (level, side, side)


def test_tiles_are_brought_to_the_scale(tmp_path):
    smooth = np.broadcast_to(np.linspace(20, 230, 96)[None, :, None], (64, 96, 3)).astype(np.uint8).copy()
    with open_image(pyramid(tmp_path / "slide.tif", smooth)) as reader:
        bag, facts = embed(reader, tmp_path, mpp=0.375)
    assert facts["mpp"] == 0.375
    assert bag.coords.tolist() == [[x, y] for y in (0, 24) for x in (0, 24, 48, 72)]
    assert bag.features == pytest.approx(tile_means(smooth[:48], 24), abs=2e-3)
    assert bag.tile_side == 24


def test_a_file_says_how_it_was_made_so_that_others_are_told_apart(tmp_path):
    """Weights of another training have the same name and as many channels; so has another pooling."""
    torch.manual_seed(0)
    models = [feature_model(small_vit(img_size=32, patch_size=8, dynamic_img_size=True)) for _ in range(2)]
    torch.nn.init.normal_(models[1].predictor.model.cls_token)
    formats = []
    for model, pool in ((models[0], "class"), (models[0], "class"), (models[1], "class"), (models[0], "mean")):
        embed(open_array(IMAGE), tmp_path, model=model, pool=pool)
        formats.append(bag_format(tmp_path / "a.h5"))
    assert formats[0] == formats[1]
    assert len({each.encoder for each in formats}) == 3
    assert {each.encoder.split(", ")[0] for each in formats} == {"small"}


def test_overlap_is_a_smaller_step(tmp_path):
    bag, _ = embed(open_array(IMAGE), tmp_path, overlap=8)
    assert bag.coords[:3].tolist() == [[0, 0], [8, 0], [16, 0]]
    assert len(bag.features) == 7 * 11


def test_tiles_without_tissue_mask_or_data_are_left_out(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(
        TileSource, "read", lambda self, tile, own=TileSource.read: read.append(tile) or own(self, tile)
    )
    tissue = np.zeros((32, 48), bool)
    tissue[8:16, 16:24] = True  # the tile at x 32, y 16
    tissue[8:16, 24:25] = True  # an eighth of its neighbour
    bag, facts = embed(open_array(IMAGE), tmp_path, tissue=tissue)
    assert bag.coords.tolist() == [[32, 16]]
    assert facts["tiles_skipped"] == 23
    assert len(read) == 1, "tiles of glass are not even read"
    bag, _ = embed(open_array(IMAGE), tmp_path, tissue=tissue, min_foreground=0.0)
    assert bag.coords.tolist() == [[32, 16], [48, 16]]
    bag, _ = embed(open_array(IMAGE), tmp_path, mask=open_array(tissue.astype(np.uint8)))
    assert bag.coords.tolist() == [[32, 16]]
    gap = IMAGE.astype(np.float32)
    gap[:, 16:] = np.nan
    bag, _ = embed(open_array(gap), tmp_path)
    assert bag.coords.tolist() == [[0, y] for y in range(0, 64, 16)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 18}, "--tile a multiple of 4"),
        ({"tile": 80}, "an image of at least one tile, 80 × 80 pixels of level 0, got 64 × 96"),
        ({"mpp": 0.5}, "'array' does not state how large its pixels are; leave out --mpp"),
        ({"overlap": 16}, "smaller than the tile of 16 pixels, got 16"),
        ({"tissue": np.zeros((4, 4), bool)}, "no tile of 'array' holds enough to embed"),
    ],
)
def test_what_cannot_be_done_is_said(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        embed(open_array(IMAGE), tmp_path, **options)


def test_a_model_without_a_class_token_has_the_mean(tmp_path):
    model = patch_means()
    model.has_class_token = False
    with pytest.raises(ValueError, match="--pool mean for patch_means, which has no class token"):
        embed(open_array(IMAGE), tmp_path, model=model)
    bag, _ = embed(open_array(IMAGE), tmp_path, model=model, pool="mean")
    assert bag.features == pytest.approx(tile_means(IMAGE, 16), abs=1e-6)
