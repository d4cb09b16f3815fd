from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from skimage import data as photographs

from castvision.data import Georeference, open_image
from castvision.data.reading.whole import read_image
from castvision.data.transforms.model_input import to_model_input
from castvision.inference.predictor import load_model
from castvision_cli import main
from castvision_cli.predict import main as predict
from tests.inference.prediction_cases import ATTO, NAMES, files_of, pixels_of, table_of


def test_a_photograph_gives_mask_overlay_table_and_polygons(tmp_path, segmenter, photo, capsys):
    out = tmp_path / "out"
    assert main(["predict", str(photo), "--model", str(segmenter), "--output", str(out), "--geojson"]) == 0
    assert files_of(out) == [
        "masks/astronaut.png", "overlays/astronaut.png", "polygons/astronaut.geojson", "predictions.csv",
        "records/astronaut.json", "run.json", "summary.json",
    ]  # fmt: skip
    mask = pixels_of(out / "masks/astronaut.png")
    assert mask.shape == (150, 110)
    assert len(np.unique(mask)) > 1
    counts = np.bincount(mask.ravel(), minlength=3)
    assert [int(row["pixels"]) for row in table_of(out)] == counts.tolist()
    assert [row["name"] for row in table_of(out)] == NAMES
    features = json.loads((out / "polygons/astronaut.geojson").read_text())["features"]
    assert sum(f["properties"]["pixels"] for f in features) == counts[1:].sum()
    told = capsys.readouterr().out
    assert "megapixels/s" in told
    assert "tiles disagree on" in told


def test_one_tile_is_what_the_model_says_of_the_prepared_image(tmp_path, segmenter):
    pixels = photographs.astronaut()[:32, 200:232]
    for name, image in {"bytes": pixels, "floats": (pixels / 8 - 3).astype(np.float32), "grey": pixels[..., 0]}.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", image, photometric="rgb" if image.ndim == 3 else "minisblack")
        out = tmp_path / name
        assert predict([str(tmp_path / f"{name}.tif"), "--model", str(segmenter), "--output", str(out)]) == 0
        loaded = load_model(segmenter)
        seen = loaded.parts.input
        prepared = to_model_input(read_image(tmp_path / f"{name}.tif"), 3, seen.mean, seen.std)
        with torch.inference_mode():
            expected = loaded.model(prepared[None])[0].argmax(0)
        np.testing.assert_array_equal(pixels_of(out / f"masks/{name}.png"), expected)


@pytest.mark.parametrize("tile", [64, 96])
def test_a_tile_larger_than_in_training_is_the_whole_image(tmp_path, segmenter, tile):
    """A model of images of 32 pixels works on 64 at once, also where the tile reaches beyond the image."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    flags = [str(tmp_path / "photo.png"), "--model", str(segmenter), "--output", str(tmp_path / "out")]
    assert predict([*flags, "--tile", str(tile)]) == 0
    loaded = load_model(segmenter)
    assert loaded.parts.input.img_size == (32, 32)
    with torch.inference_mode():
        expected = loaded.model(loaded.prepare(pixels))[0].argmax(0)
    np.testing.assert_array_equal(pixels_of(tmp_path / "out/masks/photo.png"), expected)


def test_a_model_trained_on_the_files_units_gets_them(tmp_path, segmenter):
    content = torch.load(segmenter, weights_only=True)
    content["castvision"] |= {"keeps_units": True, "mean": [285.0] * 3, "std": [10.0] * 3}
    torch.save(content, tmp_path / "kelvin.ckpt")
    kelvin = np.random.default_rng(1).normal(285, 10, (32, 32, 3)).astype(np.float32)
    tifffile.imwrite(tmp_path / "kelvin.tif", kelvin, photometric="rgb")
    out = tmp_path / "out"
    assert predict([str(tmp_path / "kelvin.tif"), "--model", str(tmp_path / "kelvin.ckpt"), "--output", str(out)]) == 0
    loaded = load_model(tmp_path / "kelvin.ckpt")
    prepared = loaded.prepare(kelvin)
    torch.testing.assert_close(prepared[0], torch.from_numpy((kelvin.transpose(2, 0, 1) - 285) / 10))
    with torch.inference_mode():
        expected = loaded.model(prepared)[0].argmax(0)
    np.testing.assert_array_equal(pixels_of(out / "masks/kelvin.png"), expected)


def geotiff(path, bands=3, nodata=True):
    """Twelve-band-like imagery: 16 bits, tiled, georeferenced."""
    rng = np.random.default_rng(0)
    image = rng.integers(1, 65536, (200, 230, bands), dtype=np.uint16)
    image[:60] = 0
    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633)
    tags = [
        (33550, "d", 3, (10.0, 10.0, 0.0), True), (33922, "d", 6, (0, 0, 0, 5e5, 4.6e6, 0), True),
        (34735, "H", 16, keys, True), (42113, "s", 2, "0", True),
    ]  # fmt: skip
    extra = ["unspecified"] * (bands - 1)
    tifffile.imwrite(path, image, tile=(64, 64), photometric="minisblack", planarconfig="contig", extrasamples=extra,
                     extratags=tags, metadata=None)  # fmt: skip
    return image


def test_a_geotiff_keeps_its_place_and_its_nodata(tmp_path, segmenter):
    geotiff(tmp_path / "field.tif")
    out = tmp_path / "out"
    arguments = ["--geojson", "--probabilities", "--tta", "flips"]
    assert predict([str(tmp_path / "field.tif"), "--model", str(segmenter), "--output", str(out), *arguments]) == 0
    with open_image(tmp_path / "field.tif") as image, open_image(out / "masks/field.tif") as mask:
        assert mask.georeference == image.georeference
        assert mask.georeference.crs == "EPSG:32633"
        labels = mask.read(0, 0, 200, 230)[..., 0]
        assert mask.nodata == 255
    assert (labels[:60] == 255).all()
    assert labels[60:].max() < 3
    with open_image(out / "probabilities/field.tif") as reader:
        values = reader.read(0, 0, 200, 230)
        assert reader.georeference.transform[0] == 10
    assert np.isnan(values[:60]).all()
    np.testing.assert_array_equal(values[60:].argmax(-1), labels[60:])
    np.testing.assert_allclose(values[60:].sum(-1), 1, atol=1e-5)
    rows = table_of(out)
    assert sum(int(row["pixels"]) for row in rows) == 140 * 230
    assert float(rows[0]["area"]) == pytest.approx(int(rows[0]["pixels"]) * 100, rel=1e-5)
    content = json.loads((out / "polygons/field.geojson").read_text())
    assert content["crs"]["properties"]["name"].endswith("32633")
    xs = [x for f in content["features"] for x, _ in f["geometry"]["coordinates"][0]]
    assert 500_000 <= min(xs) < max(xs) <= 502_300


def pyramid(path):
    """Like a slide: three levels, half a micron per pixel."""
    image = np.asarray(Image.fromarray(photographs.astronaut()).resize((384, 256)))
    with tifffile.TiffWriter(path) as writer:
        for step in (1, 2, 4):
            writer.write(image[::step, ::step], tile=(64, 64), photometric="rgb", subfiletype=int(step > 1),
                         metadata=None, resolution=(2e4 / step, 2e4 / step), resolutionunit="CENTIMETER")  # fmt: skip


def test_the_level_is_chosen_by_scale(tmp_path, segmenter, capsys):
    pyramid(tmp_path / "slide.tif")
    source = [str(tmp_path / "slide.tif"), "--model", str(segmenter), "--no-overlay"]
    for mpp, size, area in (("0.5", (256, 384), 0.25), ("1.1", (128, 192), 1.0), ("4", (64, 96), 4.0)):
        assert predict([*source, "--output", str(tmp_path / mpp), "--mpp", mpp]) == 0
        assert pixels_of(tmp_path / mpp / "masks/slide.png").shape == size
        row = table_of(tmp_path / mpp)[0]
        assert float(row["area"]) == pytest.approx(int(row["pixels"]) * area, rel=1e-3)
    capsys.readouterr()
    assert predict([*source, "--output", str(tmp_path / "x"), "--mpp", "9"]) == 2
    assert "no level" in capsys.readouterr().err


def test_polygons_and_masks_of_a_lower_level_lie_in_the_full_image(tmp_path, segmenter, capsys):
    pyramid(tmp_path / "slide.tif")
    arguments = [str(tmp_path / "slide.tif"), "--model", str(segmenter), "--no-overlay", "--geojson", "--mpp", "2"]
    assert predict([*arguments, "--output", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out/polygons/slide.geojson").read_text())
    assert "pixels of the full image" in content["description"]
    assert "4 × 4" in content["description"]
    points = np.array([p for f in content["features"] for ring in f["geometry"]["coordinates"] for p in ring])
    assert points.min() >= 0
    assert (points % 4 == 0).all()
    assert points.max(0).tolist() == [384, 256]


@pytest.mark.parametrize(
    ("transform", "area"),
    [((0.5, 0, 0, 0, -2, 0), 1.0), ((0.4, 0.3, 0, 0.3, -0.4, 0), 0.25), ((0, 2, 0, 0.5, 0, 0), 1.0)],
)
@pytest.mark.parametrize(("model_type", "unit"), [(1, "square ground units"), (2, "square degrees")])
def test_areas_of_pixels_that_are_no_squares(tmp_path, segmenter, transform, area, model_type, unit):
    keys = (1, 1, 0, 3, 1024, 0, 1, model_type, 1025, 0, 1, 1, 3072 if model_type == 1 else 2048, 0, 1, 4326)
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    tags = Georeference(transform, None, keys).extratags()
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", extratags=tags, metadata=None)
    out = tmp_path / "out"
    assert predict([str(tmp_path / "a.tif"), "--model", str(segmenter), "--output", str(out), "--no-overlay"]) == 0
    rows = table_of(out)
    assert sum(int(row["pixels"]) for row in rows) == 2000
    assert sum(float(row["area"]) for row in rows) == pytest.approx(2000 * area, rel=1e-4)
    assert {row["area_unit"] for row in rows} == {unit}
    with open_image(out / "masks/a.tif") as mask:
        assert mask.georeference.transform == pytest.approx(transform)


def test_degrees_are_not_taken_for_microns(tmp_path, segmenter, capsys):
    keys = (1, 1, 0, 3, 1024, 0, 1, 2, 1025, 0, 1, 1, 2048, 0, 1, 4326)
    tags = Georeference((0.5, 0, 7, 0, -0.5, 47), None, keys).extratags()
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((40, 50, 3), np.uint8), photometric="rgb", extratags=tags)
    arguments = [str(tmp_path / "a.tif"), "--model", str(segmenter), "--no-overlay"]
    assert predict([*arguments, "--output", str(tmp_path / "x"), "--mpp", "0.5"]) == 2
    assert "in degrees" in capsys.readouterr().err
    assert predict([*arguments, "--output", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out/summary.json").read_text())["images"][0]["mpp"] is None


def test_a_system_without_code_stands_beside_the_polygons(tmp_path, segmenter):
    rasterio = pytest.importorskip("rasterio")
    crs = rasterio.crs.CRS.from_proj4("+proj=laea +lat_0=51 +lon_0=9 +x_0=10 +y_0=20 +ellps=GRS80 +units=m")
    image = np.random.default_rng(0).integers(0, 256, (3, 40, 50), np.uint8)
    place = rasterio.Affine(10, 0, 5e5, 0, -10, 6e6)
    how = {"width": 50, "height": 40, "count": 3, "dtype": "uint8", "crs": crs, "transform": place}
    for name, driver in (("a.tif", "GTiff"), ("b.jp2", "JP2OpenJPEG")):
        with rasterio.open(tmp_path / name, "w", driver=driver, **how) as dataset:
            dataset.write(image)
        out = tmp_path / name[0]
        arguments = [str(tmp_path / name), "--model", str(segmenter), "--output", str(out), "--no-overlay"]
        assert predict([*arguments, "--geojson"]) == 0
        content = json.loads((out / f"polygons/{name[0]}.geojson").read_text())
        assert "crs" not in content
        assert ".wkt" in content["description"]
        written = rasterio.crs.CRS.from_wkt((out / f"polygons/{name[0]}.wkt").read_text())
        assert written.to_dict()["proj"] == "laea"
        with rasterio.open(out / f"masks/{name[0]}.tif") as mask:
            assert mask.crs.to_dict()["lat_0"] == 51
            assert mask.transform == place


def with_scale(checkpoint, target, **facts):
    content = torch.load(checkpoint, weights_only=True)
    content["castvision"] |= facts
    torch.save(content, target)
    return str(target)


@pytest.mark.parametrize(
    ("facts", "options", "level", "told"),
    [
        ({"level": 1, "mpp": 1.0, "mpp_unit": "microns"}, [], 1, "level 1 at 1 microns a pixel, as in training"),
        ({"level": 0, "mpp": 0.5, "mpp_unit": "microns"}, [], 0, None),
        ({"level": 2, "mpp": 1.0, "mpp_unit": "microns"}, ["--mpp", "0.5"], 0, "trained at 1 microns"),
        ({"level": 0, "mpp": 0.35, "mpp_unit": "microns"}, [], 0, "trained at 0.35 microns"),
        ({"level": 1, "mpp": 10.0, "mpp_unit": "ground units"}, [], 1, "the image states 0.5 microns a pixel"),
        ({"level": 1}, [], 1, "the model was trained on level 1"),
        ({"level": 3}, [], 0, "works on level 0; the model was trained on level 3"),
        ({}, [], 0, None),
    ],
)
def test_a_model_works_at_the_scale_it_was_trained_at_or_says_so(
    tmp_path, segmenter, capsys, facts, options, level, told
):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    pyramid(tmp_path / "images/slide.tif")
    mask = np.random.default_rng(0).integers(0, 3, (256, 384), np.uint8)
    Image.fromarray(mask).save(tmp_path / "masks/slide.png")
    model = with_scale(segmenter, tmp_path / "m.ckpt", **facts)
    arguments = ["--model", model, *options]
    source = [str(tmp_path / "images/slide.tif"), "--no-overlay"]
    assert predict([*source, "--output", str(tmp_path / "p"), *arguments]) == 0
    images = ["--images", str(tmp_path / "images"), "--masks", str(tmp_path / "masks")]
    assert main(["evaluate", *images, "--output", str(tmp_path / "e"), *arguments]) == 0
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "p/summary.json").read_text())["images"][0]
    measured = json.loads((tmp_path / "e/metrics.json").read_text())
    assert record["level"] == measured["images"][0]["level"] == level
    assert record["mpp"] == measured["images"][0]["mpp"] == 0.5 * 2**level
    assert printed.count(told or "a pixel, ") == (0 if told is None else 2)
    labels = pixels_of(tmp_path / "p/masks/slide.png")
    middle = 2**level // 2
    truth = mask[middle :: 2**level, middle :: 2**level]
    expected = [[((truth == row) & (labels == column)).sum() for column in range(3)] for row in range(3)]
    np.testing.assert_array_equal(measured["confusion"], expected)


def test_no_level_near_the_scale_of_training_is_refused(tmp_path, segmenter, capsys):
    pyramid(tmp_path / "slide.tif")
    model = with_scale(segmenter, tmp_path / "m.ckpt", level=0, mpp=20.0, mpp_unit="microns")
    arguments = [str(tmp_path / "slide.tif"), "--model", model, "--no-overlay"]
    assert predict([*arguments, "--output", str(tmp_path / "x")]) == 2
    told = capsys.readouterr().err
    assert "trained at 20 microns a pixel" in told
    assert "name one of its own scales by --mpp" in told
    assert predict([*arguments, "--output", str(tmp_path / "out"), "--mpp", "0.5"]) == 0


def test_only_inside_a_mask(tmp_path, segmenter, photo):
    inside = np.zeros((15, 11), np.uint8)
    inside[4:9, 2:8] = 255
    Image.fromarray(inside).save(tmp_path / "tissue.png")
    out = tmp_path / "out"
    options = ["--mask", str(tmp_path / "tissue.png"), "--skip-blank", "0"]
    assert predict([str(photo), "--model", str(segmenter), "--output", str(out), *options]) == 0
    labels = pixels_of(out / "masks/astronaut.png")
    np.testing.assert_array_equal(labels != 255, np.kron(inside, np.ones((10, 10))) > 0)
    assert json.loads((out / "summary.json").read_text())["images"][0]["tiles_skipped"] > 0


def test_classification_lists_the_most_probable_classes(tmp_path, classifier, photo):
    out = tmp_path / "out"
    assert predict([str(photo), "--model", str(classifier), "--output", str(out), "--top", "2"]) == 0
    rows = table_of(out)
    assert len(rows) == 2
    assert float(rows[0]["probability"]) > float(rows[1]["probability"])
    loaded = load_model(classifier)
    expected = loaded.predict(loaded.prepare(read_image(photo))).probabilities
    assert rows[0]["name"] == NAMES[int(expected.argmax())]
    assert float(rows[0]["probability"]) == pytest.approx(float(expected.max()), abs=1e-5)
    assert not (out / "masks").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{photo}", "--model", "gone.ckpt"], "no such checkpoint"),
        (["{photo}", "--model", ATTO], "untrained"),
        (["gone.png", "--model", "{model}"], "gone.png"),
        (["nothing/*.png", "--model", "{model}"], "fits the pattern"),
        (["{photo}", "--model", "{model}", "--tile", "33"], "multiple of 4"),
        (["{photo}", "--model", "{model}", "--device", "abacus"], "abacus"),
        (["{photo}", "--model", "{model}", "--mask", "gone.png"], "no such mask"),
    ],
)
def test_wrong_arguments(arguments, message, tmp_path, segmenter, photo, capsys):
    filled = [text.format(photo=photo, model=segmenter) for text in arguments]
    assert predict([*filled, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_patterns_are_expanded(tmp_path, segmenter, photo):
    for name in ("a1.png", "a2.png", "b.png"):
        (tmp_path / name).write_bytes(photo.read_bytes())
    out = tmp_path / "out"
    assert predict([str(tmp_path / "a*.png"), "--model", str(segmenter), "--output", str(out), "--no-overlay"]) == 0
    assert files_of(out / "masks") == ["a1.png", "a2.png"]


MEASURE = """
import sys
from castvision_cli.predict import main
code = main(sys.argv[1:])
status = open("/proc/self/status").read()
print("PEAK", int(status.split("VmHWM:")[1].split()[0]) // 1024)
sys.exit(code)
"""


def make_large_tiff(path, side, rows=512):
    """A generated RGB photograph-like TIFF, written tile by tile."""
    patch = np.tile(photographs.astronaut(), (1, -(-side // 512), 1))[:, :side]

    def tiles():
        for y in range(0, side, rows):
            band = np.roll(patch, y // 7, axis=1)
            for x in range(0, side, rows):
                yield band[: min(rows, side - y), x : x + rows]

    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(tiles(), shape=(side, side, 3), dtype=np.uint8, tile=(rows, rows), photometric="rgb",
                     compression="zlib", compressionargs={"level": 1}, maxworkers=1)  # fmt: skip


@pytest.mark.slow
def test_memory_does_not_grow_with_the_image(tmp_path, segmenter):
    peaks = []
    for side in (256, 4096):
        make_large_tiff(tmp_path / f"{side}.tif", side)
        arguments = [str(tmp_path / f"{side}.tif"), "--model", str(segmenter), "--output", str(tmp_path / f"out{side}"),
                     "--tile", "256", "--overlap", "32", "--geojson"]  # fmt: skip
        done = subprocess.run([sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split("PEAK")[1]))
    assert peaks[1] - peaks[0] < 600, peaks
    assert pixels_of(tmp_path / "out4096/masks/4096.png").shape == (4096, 4096)


def test_two_classes_without_a_background_are_both_drawn(tmp_path, segmenter, photo):
    content = torch.load(segmenter, weights_only=True)
    head = {key: value for key, value in content["state_dict"].items() if key.startswith("model.head.classifier")}
    content["state_dict"] |= {key: value[:2] for key, value in head.items()}
    content["castvision"] |= {"num_classes": 2, "class_names": ["ground", "house"]}
    torch.save(content, tmp_path / "two.ckpt")
    out = tmp_path / "out"
    assert predict([str(photo), "--model", str(tmp_path / "two.ckpt"), "--output", str(out), "--geojson"]) == 0
    counts = np.bincount(pixels_of(out / "masks/astronaut.png").ravel(), minlength=2)
    features = json.loads((out / "polygons/astronaut.geojson").read_text())["features"]
    by_name = {name: sum(f["properties"]["pixels"] for f in features if name in f["properties"].values())
               for name in ("ground", "house")}  # fmt: skip
    assert counts.min() > 0
    assert by_name == {"ground": counts[0], "house": counts[1]}
    assert [row["name"] for row in table_of(out)] == ["ground", "house"]


@pytest.mark.parametrize("size", [(40, 56), (70, 30)])
def test_quarter_turns_of_an_image_that_is_smaller_than_a_tile(tmp_path, segmenter, size):
    """Such an image is one tile of its own size, which need not be square; turned it is another oblong."""
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    out = tmp_path / "out"
    words = ["--tile", "96", "--tta", "d4", "--probabilities"]
    assert predict([str(tmp_path / "photo.png"), "--model", str(segmenter), "--output", str(out), *words]) == 0
    with open_image(out / "probabilities/photo.tif") as reader:
        found = reader.read(0, 0, *size)
    np.testing.assert_array_equal(pixels_of(out / "masks/photo.png"), found.argmax(-1))


@pytest.mark.parametrize("words", [["--probabilities"], ["--geojson", "--instances", "components"]])
def test_an_image_without_any_data_has_all_bands_and_classes(tmp_path, segmenter, words):
    """It was written as if of one class; with --probabilities it failed, "generator raised StopIteration"."""
    tags = [(42113, "s", 2, "0", True)]
    tifffile.imwrite(tmp_path / "empty.tif", np.zeros((40, 50, 3), np.uint8), photometric="rgb", extratags=tags)
    out = tmp_path / "out"
    assert predict([str(tmp_path / "empty.tif"), "--model", str(segmenter), "--output", str(out), *words]) == 0
    assert (pixels_of(out / "masks/empty.png") == 255).all()
    assert [(row["name"], row["pixels"]) for row in table_of(out)] == [("background", "0"), ("path", "0"), ("dot", "0")]
    if "--probabilities" in words:
        found = tifffile.imread(out / "probabilities/empty.tif")
        assert found.shape == (40, 50, 3)
        assert np.isnan(found).all()
