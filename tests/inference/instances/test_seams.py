"""Objects that cross several tiles and corners of tiles, from an image to the files: as if there were no tiles."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch

from castvision.inference.files import OutputFolder
from castvision.inference.instances.finding import InstanceOptions
from castvision.inference.prediction import Options, PredictionRun
from castvision.inference.predictor import load_model
from tests.inference.instances.map_cases import blobs, discs, in_bands_of

SMALL = {"tile": (32, 32), "overlap": 8, "halo": 2}
WHOLE = {"tile": (288, 320), "overlap": 0, "halo": 0}


class Pixelwise(torch.nn.Module):
    """What it says of a pixel depends on that pixel alone: the image is the answer."""

    num_classes = 3

    def forward(self, image, pixel_mask=None):
        return 9 * image[:, :3]

    def with_centres(self, image, pixel_mask=None):
        return torch.cat([self(image).softmax(1), image[:, 3:]], dim=1)


def run_of(segmenter, folder, tiles, channels=3, **options):
    predictor = load_model(segmenter)
    same = {"in_chans": channels, "mean": (0.0,) * channels, "std": (1.0,) * channels, "keeps_units": True}
    predictor.parts = replace(predictor.parts, input=replace(predictor.parts.input, **same))
    predictor.model = Pixelwise()
    more = {"batch_size": 3, "precision": "fp32", "tta": "none", "context_size": None, "mask_nodata": True}
    return PredictionRun(predictor, OutputFolder(folder), Options({**tiles, **more}, overlay=False, **options))


def results_of(segmenter, image, folder, tiles, **options):
    run = run_of(segmenter, folder, tiles, **options)
    record = run.predict(image, "x")
    return {path.name: path.read_bytes() for path in (folder / "instances").iterdir()}, record


def one_hot(labels):
    return (labels[..., None] == np.arange(3)).astype(np.float32)


@pytest.mark.parametrize(("how", "probabilities"), [("components", False), ("watershed", True)])
def test_tiles_leave_no_trace_in_any_file(tmp_path, monkeypatch, segmenter, how, probabilities):
    """The same bytes from tiles of 32 pixels, read in bands of 5 rows, as from one tile: map, COCO, GeoJSON, table."""
    labels = np.pad(discs(), ((0, 20), (0, 17)))
    labels[120:150] = 2  # a bar across ten tiles, over the discs
    labels[200:230, 40:80] = 255
    pixels = one_hot(labels)
    pixels[labels == 255] = np.nan
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb")
    options = {"instances": InstanceOptions(how), "probabilities": probabilities}
    expected, record = results_of(segmenter, tmp_path / "x.tif", tmp_path / "whole", WHOLE, **options)
    in_bands_of(monkeypatch, 5, labels.shape[1])
    found, again = results_of(segmenter, tmp_path / "x.tif", tmp_path / "tiled", SMALL, **options)
    assert record["tiles_run"] == 1
    assert again["tiles_run"] > 100
    assert found == expected
    assert again["instances"] == record["instances"]
    assert record["instances"]["classes"]["dot"] >= 1
    assert record["instances"]["count"] > (20 if how == "components" else 40)
    ids = tifffile.imread(tmp_path / "tiled/instances/x.tif")
    assert not ids[labels == 255].any()
    assert not ids[labels == 0].any()
    assert ids[(labels == 1) | (labels == 2)].all()


def test_centres_and_offsets_leave_no_trace_either(tmp_path, monkeypatch, segmenter):
    """Perfect centres and offsets of objects of which many touch give the objects back, tiles or not."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:280, :317]
    points = np.stack([rng.permutation(np.arange(5, 275, 9))[:30], rng.permutation(np.arange(5, 310, 10))[:30]], axis=1)
    distances = (y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2
    nearest = distances.argmin(axis=-1)
    inside = distances.min(axis=-1) <= 25**2
    inside[100:130, 100:140] = False
    labels = np.where(inside, 1 + nearest % 2, 0)
    heat = np.exp(-distances.min(axis=-1) / 128)
    offsets = [(points[nearest, axis] - place) for axis, place in ((0, y), (1, x))]
    pixels = np.concatenate([one_hot(labels), np.stack([heat, *offsets], axis=-1)], axis=-1).astype(np.float32)
    pixels[:20, :60] = np.nan
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="minisblack", planarconfig="contig")
    monkeypatch.setattr("castvision.inference.predictor.Predictor.gives_centres", True)
    options = {"instances": InstanceOptions("centres"), "channels": 6, "probabilities": True}
    expected, record = results_of(segmenter, tmp_path / "x.tif", tmp_path / "whole", WHOLE, **options)
    in_bands_of(monkeypatch, 5, 317)
    found, again = results_of(segmenter, tmp_path / "x.tif", tmp_path / "tiled", SMALL, **options)
    assert again["tiles_run"] > 100
    assert again["instances"] == record["instances"]
    ids = tifffile.imread(tmp_path / "tiled/instances/x.tif")
    np.testing.assert_array_equal(ids, tifffile.imread(tmp_path / "whole/instances/x.tif"))
    for name in ("x.geojson", "x.csv", "x.json"):  # all but the scores, of probabilities that were blended
        assert len(found[name]) == pytest.approx(len(expected[name]), rel=1e-3)
    is_known = ~np.isnan(pixels[..., 0])
    assert not ids[~is_known | ~inside].any()
    centres_known = [number for number, (row, column) in enumerate(points) if is_known[row, column]]
    for number in centres_known:
        own = inside & is_known & (nearest == number)
        assert len(np.unique(ids[own])) == 1
    assert record["instances"]["count"] >= len(centres_known)
    assert record["classes"][1]["pixels"] == (labels[is_known] == 1).sum()
    assert record["classes"][1]["probability"] == pytest.approx(np.exp(9) / (np.exp(9) + 2), abs=1e-5)
    rows = json.loads((tmp_path / "tiled/instances/x.json").read_text())["annotations"]
    assert all(0.9 < each["score"] <= 1 for each in rows)


def test_ragged_classes_with_gaps(tmp_path, monkeypatch, segmenter):
    labels = blobs((200, 210))
    pixels = one_hot(labels)
    pixels[labels == 255] = np.nan
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb")
    options = {"instances": InstanceOptions("components", things=("dot", "background"), min_area=4)}
    expected, record = results_of(segmenter, tmp_path / "x.tif", tmp_path / "whole", WHOLE, **options)
    in_bands_of(monkeypatch, 3, 210)
    found, _ = results_of(segmenter, tmp_path / "x.tif", tmp_path / "tiled", SMALL, **options)
    assert found == expected
    assert set(record["instances"]["classes"]) == {"background", "dot"}
    assert record["instances"]["pixels_in_none"] > 0
