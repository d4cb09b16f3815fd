"""Tiles that are shown the whole image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from castvision.data import open_array
from castvision.inference import tiled_inference
from castvision.inference.sinks import FileSink
from castvision.inference.surroundings import read_overview
from castvision.inference.tile_source import Skip, TileSource
from castvision.models import make_context
from castvision.models.context import create_context_segmenter

RNG = np.random.default_rng(0)


def overview(image: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    return read_overview(TileSource(open_array(image), 0, Skip()), size)


def test_the_overview_of_a_small_image_is_its_context():
    image = RNG.integers(0, 256, (90, 60, 3), dtype=np.uint8)
    expected = make_context(torch.from_numpy(image).permute(2, 0, 1)[None].float(), (16, 8))
    torch.testing.assert_close(overview(image, (16, 8)), expected)


def test_a_large_one_is_read_by_bands(monkeypatch):
    image = np.kron(RNG.normal(size=(8, 6)), np.ones((40, 50))).astype(np.float32)  # constant over 40 x 50 pixels
    expected = make_context(torch.from_numpy(image)[None, None], (4, 3))
    whole = overview(image, (4, 3))
    monkeypatch.setattr("castvision.inference.surroundings._BAND_VALUES", 5000)
    torch.testing.assert_close(overview(image, (4, 3)), whole)
    torch.testing.assert_close(whole, expected, rtol=0, atol=0.03 * float(expected.std()))


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


def test_what_does_not_go_together(tmp_path):
    image = np.zeros((40, 40), np.float32)
    with pytest.raises(ValueError, match="tta='none'"):
        tiled_inference(image, lambda batch, **kw: batch, tile=32, overlap=8, tta="flips", context_size=(4, 4))
    with pytest.raises(ValueError, match="context_size >= 1"):
        tiled_inference(image, lambda batch, **kw: batch, tile=32, overlap=8, context_size=(0, 4))
    options = {"tile": 32, "overlap": 8, "output": "image"}
    sink = FileSink(tmp_path / "x")
    tiled_inference(image, lambda batch, **kw: batch, context_size=(4, 4), sink=sink, **options)
    with pytest.raises(ValueError, match="context_size"):
        tiled_inference(image, lambda batch: batch, sink=FileSink(tmp_path / "x", resume=True), **options)
