"""Tiles that are shown the whole image."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch.nn import functional

from castvision.data.reading import open_image
from castvision.inference import tiled_inference
from castvision.inference.sinks import FileSink
from castvision.inference.tile_source import Skip
from castvision.models.context import create_context_segmenter

RNG = np.random.default_rng(0)


def test_windows_say_where_tiles_lie():
    seen = []

    def predictor(batch, context, window):
        assert context.shape == (1, 1, 4, 4)
        seen.extend(window.tolist())
        return batch

    image = RNG.normal(size=(64, 80)).astype(np.float32)
    options = {"tile": 32, "overlap": 16, "batch_size": 2, "output": "image", "context_size": (4, 4)}
    result = tiled_inference(image, predictor, **options)
    np.testing.assert_array_equal(result.values[..., 0], image)
    np.testing.assert_allclose(seen[:3], [[0, 0, 0.5, 0.4], [0, 0.2, 0.5, 0.4], [0, 0.4, 0.5, 0.4]], rtol=1e-6)
    np.testing.assert_allclose(seen[-1], [0.5, 0.6, 0.5, 0.4], rtol=1e-6)


def test_every_tile_knows_what_only_the_whole_image_shows():
    """The sign of the brightest cue decides all pixels; most tiles hold none of it."""
    image = np.zeros((96, 96), np.float32)
    image[3:13, 5:15] = -4

    def predictor(batch, context, window):
        strongest = context.flatten()[context.abs().argmax()]
        scores = torch.stack([strongest.expand(batch[:, 0].shape), -strongest.expand(batch[:, 0].shape)], 1)
        return scores

    for sign, label in ((1, 1), (-1, 0)):
        assert (tiled_inference(sign * image, predictor, tile=32, overlap=8, context_size=(8, 8)).labels == label).all()


def test_a_context_segmenter_is_such_a_predictor():
    torch.manual_seed(0)
    kwargs = {"depth": 2, "in_chans": 1}
    model = create_context_segmenter("cast_vit_atto_patch4_32", 2, context_size=(16, 16), model_kwargs=kwargs).eval()
    image = RNG.normal(size=(50, 70)).astype(np.float32)
    options = {"tile": 32, "overlap": 8, "output": "probabilities"}
    with_context = tiled_inference(image, model, context_size=model.context_size, **options).values
    alone = tiled_inference(image, model, **options).values
    assert with_context.shape == (50, 70, 2)
    assert np.abs(with_context - alone).max() > 1e-4


@pytest.mark.parametrize("size", [(60, 70), (6, 7), (7, 9), (61, 71), (240, 280)])
def test_a_mask_of_another_size_is_laid_over_the_image(size):
    """A pixel is what the mask holds at its middle; masks that are larger than the image lay half a pixel aside."""
    mask = RNG.integers(0, 2, size, dtype=np.uint8)
    rows, cols = (((np.arange(side) + 0.5) * own / side).astype(int) for side, own in zip((60, 70), size, strict=True))
    found = tiled_inference(np.ones((60, 70, 2), np.float32), lambda x: x, tile=32, overlap=8, skip=Skip(mask))
    np.testing.assert_array_equal(found.labels != 255, mask[np.ix_(rows, cols)] > 0)


def test_a_mask_says_nothing_where_it_holds_no_data(tmp_path):
    """Where it is transparent, or nodata: such pixels came as white, or as the number of nodata, which is > 0."""
    inside = np.zeros((20, 30), bool)
    inside[4:9, 10:25] = True
    white = np.full((20, 30, 3), 255, np.uint8)
    Image.fromarray(np.dstack([white, np.where(inside, 255, 0).astype(np.uint8)])).save(tmp_path / "drawn.png")
    tags = [(42113, "s", 4, "255", True)]
    tifffile.imwrite(tmp_path / "nodata.tif", np.where(inside, 1, 255).astype(np.uint8), extratags=tags)
    for name in ("drawn.png", "nodata.tif"):
        with open_image(tmp_path / name) as mask:
            found = tiled_inference(np.ones((20, 30, 2), np.float32), lambda x: x, tile=32, overlap=8, skip=Skip(mask))
        np.testing.assert_array_equal(found.labels != 255, inside)


@pytest.mark.parametrize(("kind", "size"), [("flips", (6, 8)), ("d4", (8, 8))])
def test_context_and_windows_are_turned_along_with_the_tiles(kind, size):
    """What the context holds at each pixel's place: the same in every view, if all three are turned alike."""

    def predictor(batch, context, window):
        rows, columns = batch.shape[2:]
        y = window[:, :1] + window[:, 2:3] * (torch.arange(rows) + 0.5) / rows
        x = window[:, 1:2] + window[:, 3:] * (torch.arange(columns) + 0.5) / columns
        places = torch.stack([x[:, None].expand(-1, rows, -1), y[:, :, None].expand(-1, -1, columns)], dim=3)
        return functional.grid_sample(context.expand(len(batch), -1, -1, -1), 2 * places - 1, align_corners=False)

    image = RNG.normal(size=(48, 80)).astype(np.float32)
    options = {"tile": 32, "overlap": 16, "output": "image", "context_size": size}
    plain, averaged = (tiled_inference(image, predictor, tta=tta, **options).values for tta in ("none", kind))
    assert plain.std() > 0.03
    np.testing.assert_allclose(averaged, plain, atol=1e-5)


def test_where_there_is_no_data_is_told_and_turned_along():
    """A corner of NaN: a mask in every view of the batches that hold some of it, and none in the others."""
    image = RNG.normal(size=(48, 112)).astype(np.float32)
    image[30:, :9] = np.nan
    seen = []

    def predictor(batch, pixel_mask=None):
        seen.append(pixel_mask is not None)
        if pixel_mask is not None:
            assert torch.equal(batch[:, 0] != 0, pixel_mask)
        return batch

    options = {"tile": 32, "overlap": 8, "output": "image", "batch_size": 1}
    result = tiled_inference(image, predictor, mask_nodata=True, tta="d4", **options)
    np.testing.assert_array_equal(result.values[..., 0], image)
    assert np.reshape(seen, (2, 5, 8)).all(axis=2).tolist() == [[True, *4 * [False]]] * 2
    assert np.reshape(seen, (2, 5, 8)).any(axis=2).sum() == 2


def test_beyond_a_short_image_there_is_no_data_for_a_predictor_that_is_told():
    """As in the padding of training; it was shown the image's reflection. Others are shown that still."""
    image = np.ones((20, 32), np.float32)
    image[0] = np.nan
    seen = []

    def predictor(batch, pixel_mask=None):
        seen.append((batch, pixel_mask))
        return batch

    for told in (True, False):
        tiled_inference(image, predictor, tile=32, overlap=8, output="image", mask_nodata=told)
    (padded, mask), (reflected, no_mask) = seen
    assert (~mask[0]).all(dim=1).nonzero()[:, 0].tolist() == [0, *range(20, 32)]
    assert mask.shape == (1, 32, 32)
    assert no_mask is None
    assert not padded[0, 0, 20:].any()
    assert reflected[0, 0, 20:].all()


def test_what_does_not_go_together(tmp_path):
    image = np.zeros((40, 40), np.float32)
    with pytest.raises(ValueError, match=r"square context .*context_size=\(4, 6\); tta='flips' works"):
        tiled_inference(image, lambda batch, **kw: batch, tile=32, overlap=8, tta="d4", context_size=(4, 6))
    with pytest.raises(ValueError, match="context_size >= 1"):
        tiled_inference(image, lambda batch, **kw: batch, tile=32, overlap=8, context_size=(0, 4))
    options = {"tile": 32, "overlap": 8, "output": "image"}
    sink = FileSink(tmp_path / "x")
    tiled_inference(image, lambda batch, **kw: batch, context_size=(4, 4), sink=sink, **options)
    with pytest.raises(ValueError, match="context_size"):
        tiled_inference(image, lambda batch: batch, sink=FileSink(tmp_path / "x", resume=True), **options)
