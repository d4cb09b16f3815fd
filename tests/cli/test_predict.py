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

from castvision.data import open_image
from castvision.data.reading.whole import read_image
from castvision.data.transforms.model_input import to_model_input
from castvision.inference.predictor import load_model
from castvision.models.segmenter import create_segmenter
from castvision_cli import main
from castvision_cli.evaluate import main as evaluate
from castvision_cli.predict import main as predict
from tests.inference.prediction_cases import ATTO, NAMES, files_of, pixels_of, save, table_of


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
    assert predict([*source, "--output", str(tmp_path / "x"), "--mpp", "9"]) == 1
    assert "no level" in " ".join(capsys.readouterr().out.split())


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


def test_output_is_never_overwritten(tmp_path, segmenter, photo, capsys):
    out = tmp_path / "out"
    (out / "masks").mkdir(parents=True)
    (out / "masks/astronaut.png").write_text("mine")
    arguments = [str(photo), "--model", str(segmenter), "--output", str(out)]
    assert predict(arguments) == 2
    assert "not empty" in capsys.readouterr().err
    assert (out / "masks/astronaut.png").read_text() == "mine"
    assert predict([*arguments, "--resume"]) == 2
    assert "nothing to resume" in capsys.readouterr().err
    assert predict([*arguments, "--overwrite"]) == 0


def test_a_killed_run_is_resumed_with_the_same_bits(tmp_path, segmenter, photo, monkeypatch, capsys):
    second = tmp_path / "second.png"
    second.write_bytes(photo.read_bytes())
    inputs = [str(photo), str(second), "--model", str(segmenter)]
    assert predict([*inputs, "--output", str(tmp_path / "whole")]) == 0
    out = tmp_path / "out"
    calls = []

    def dying(self, batch):
        calls.append(1)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return inner(self, batch)

    from castvision.inference import tile_model

    inner = tile_model.TileModel.__call__
    monkeypatch.setattr(tile_model.TileModel, "__call__", dying)
    assert predict([*inputs, "--output", str(out)]) == 130
    assert "--resume goes on" in capsys.readouterr().err
    assert any(name.endswith(".part") for name in files_of(out / "masks"))
    monkeypatch.setattr(tile_model.TileModel, "__call__", lambda self, batch: calls.append(1) or inner(self, batch))
    assert predict([*inputs, "--output", str(out), "--resume", "--tta", "d4"]) == 2
    assert "tta was 'none', is 'd4'" in capsys.readouterr().err
    calls.clear()
    assert predict([*inputs, "--output", str(out), "--resume"]) == 0
    assert len(calls) == 4  # three bands left, and one again for its strip
    assert files_of(out) == files_of(tmp_path / "whole")
    for name in files_of(out):
        if name.startswith(("masks", "overlays")) or name == "predictions.csv":
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


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


def _with_infrared(folder, count=1):
    """Red, green, blue and infrared; the file calls its fourth band opacity. Masks of the same names."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(count):
        pixels = rng.integers(0, 256, (32, 32, 4), dtype=np.uint8)
        tifffile.imwrite(folder / f"images/{number}.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
        Image.fromarray((pixels[..., 3] > 127).astype(np.uint8)).save(folder / f"masks/{number}.png")
    return pixels


@pytest.mark.parametrize(
    ("in_chans", "remembered", "given", "expected"),
    [
        (4, None, None, [0, 1, 2, 3]), (4, None, "4,3,2,1", [3, 2, 1, 0]), (3, None, "1,2,3", [0, 1, 2]),
        (3, [4, 1, 2], None, [3, 0, 1]), (3, [4, 1, 2], "1,2,3", [0, 1, 2]), (2, None, "1,4", [0, 3]),
    ],
)  # fmt: skip
def test_infrared_that_is_called_opacity_is_a_band(tmp_path, in_chans, remembered, given, expected):
    """The model's channels say so, the bands it was trained on, or --bands; in predict and in evaluate."""
    pixels = _with_infrared(tmp_path)
    torch.manual_seed(0)
    kwargs = {"depth": 2, "in_chans": in_chans}
    model = create_segmenter(ATTO, 3, head="LinearHead", model_kwargs=kwargs).eval()
    more = {} if remembered is None else {"bands": remembered}
    statistics = {"mean": [0.5] * in_chans, "std": [0.25] * in_chans}
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.copy_(torch.randn_like(parameter))
        seen = to_model_input(pixels[..., expected], in_chans, [0.5], [0.25])
        labels = model(seen[None])[0].argmax(0)
    save(tmp_path / "a.ckpt", model, model_kwargs=kwargs, in_chans=in_chans, **statistics, **more)
    words = ["--model", str(tmp_path / "a.ckpt"), *(() if given is None else ("--bands", given))]
    assert predict([str(tmp_path / "images/0.tif"), *words, "--output", str(tmp_path / "out")]) == 0
    np.testing.assert_array_equal(pixels_of(tmp_path / "out/masks/0.png"), labels)
    folders = ["--images", str(tmp_path / "images"), "--masks", str(tmp_path / "masks")]
    assert evaluate([*folders, *words, "--output", str(tmp_path / "measured")]) == 0
    confusion = json.loads((tmp_path / "measured/metrics.json").read_text())["confusion"]
    truth = torch.from_numpy((pixels[..., 3] > 127).astype(np.int64))
    assert confusion == [[int(((truth == row) & (labels == col)).sum()) for col in range(3)] for row in range(3)]


@pytest.mark.parametrize(("config", "size"), [("segmentation_folder", "img_size"), ("windows", "size")])
@pytest.mark.parametrize("chosen", [None, [4, 1, 2]])
def test_infrared_trains_as_it_is_predicted(tmp_path, config, size, chosen):
    _with_infrared(tmp_path / "data", 6)
    in_chans = 4 if chosen is None else 3
    bands = [] if chosen is None else ["--data.bands" if config == "windows" else "--data.pixels.bands", str(chosen)]
    words = [
        "train", "--config", config, "--data.root", tmp_path / "data", "--run_dir", tmp_path / "run", *bands,
        "--model.model_name", ATTO, "--model.model_kwargs", f"{{img_size: 32, in_chans: {in_chans}, depth: 1}}",
        f"--data.{size}", 32, "--data.batch_size", 2, "--data.num_workers", 0, "--trainer.max_epochs", 1,
        "--trainer.precision", "32-true", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
    ]  # fmt: skip
    if config == "windows":
        words += ["--data.train_length", 4, "--data.shares", "{train: 0.7, val: 0.3}"]
    assert main([str(word) for word in words]) == 0
    facts = torch.load(tmp_path / "run/best.ckpt", weights_only=True)["castvision"]
    assert (facts["in_chans"], facts.get("bands")) == (in_chans, chosen)
    image = str(tmp_path / "data/images/0.tif")
    assert predict([image, "--model", str(tmp_path / "run/best.ckpt"), "--output", str(tmp_path / "out")]) == 0
