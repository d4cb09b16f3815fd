from __future__ import annotations

import importlib.util
import json
import os

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from castvision.data import open_image
from castvision.data.reading.georeference import Georeference, epsg_keys
from castvision.inference import embedding
from castvision.models.recipe import InputFormat, Recipe, build, save
from castvision_cli import main
from tests.inference.prediction_cases import files_of, pixels_of

PIXELS = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
PIXELS[:24, :40] = (200, 30, 40)
PIXELS[24:, 40:] = (30, 60, 210)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint of a small plain ViT."""
    seen = InputFormat(3, (32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    kwargs = {"depth": 2, "embed_dim": 48, "num_heads": 3, "patch_size": 8, "img_size": 32}
    recipe = Recipe("classification", "vit_tiny_patch16_224", 2, ("a", "b"), kwargs, input=seen)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "best.ckpt"
    save(path, recipe, build(recipe))
    return str(path)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(PIXELS).save(path)
    return path


@pytest.fixture
def embed(model, tmp_path, capsys):
    """Runs the command into a folder; gives it, the exit code and what was said on standard error."""

    def run(*words, output=tmp_path / "out", code=0):
        arguments = ["embed", *map(str, words), "--output", str(output)]
        if "--model" not in arguments:
            arguments += ["--model", model]
        assert main(arguments) == code
        return output, capsys.readouterr()

    return run


def test_features_and_embeddings_of_an_image(embed, photo):
    output, told = embed(photo)
    assert files_of(output) == [
        "embeddings.npz", "embeddings/photo.npz", "features/photo.npy", "records/photo.json", "run.json",
        "summary.json",
    ]  # fmt: skip
    features = np.load(output / "features/photo.npy")
    assert (features.shape, features.dtype) == ((6, 10, 48), np.float16)
    one = np.load(output / "embeddings/photo.npz")
    assert one["mean"] == pytest.approx(features.astype(np.float64).mean((0, 1)), abs=1e-3)
    everything = np.load(output / "embeddings.npz")
    assert everything["images"].tolist() == [str(photo)]
    assert np.array_equal(everything["class_token"], one["class_token"][None])
    assert "6 × 10 tokens of 48 channels" in told.out
    record = json.loads((output / "records/photo.json").read_text())
    assert record["token_pixels"] == [8.0, 8.0]


def test_formats_hold_the_same(embed, photo, tmp_path):
    wanted = np.load(embed(photo, "--dtype", "float32", output=tmp_path / "a")[0] / "features/photo.npy")
    output, _ = embed(photo, "--dtype", "float32", "--format", "tif", output=tmp_path / "b")
    assert np.array_equal(tifffile.imread(output / "features/photo.tif"), wanted)
    if importlib.util.find_spec("zarr"):
        import zarr

        output, _ = embed(photo, "--dtype", "float32", "--format", "zarr", output=tmp_path / "c")
        array = zarr.open_array(output / "features/photo.zarr", mode="r")
        assert np.array_equal(array[:], wanted)
        assert array.attrs["token_pixels"] == [8.0, 8.0]
        assert array.metadata.dimension_names == ("y", "x", "channel")


def test_zarr_that_is_not_installed_is_said_before_any_work(embed, photo, monkeypatch):
    monkeypatch.setattr("castvision.inference.writers.features.importlib.util.find_spec", lambda name: None)
    output, told = embed(photo, "--format", "zarr", code=2)
    assert "writing zarr needs zarr: pip install 'castvision[large-images]', or --format npy" in told.err
    assert not output.exists()


def test_a_geotiff_has_its_place_on_the_ground(embed, tmp_path):
    ground = Georeference((10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0), "EPSG:32633", epsg_keys(32633, False))
    tifffile.imwrite(tmp_path / "scene.tif", PIXELS, extratags=ground.extratags(), metadata=None, photometric="rgb")
    output, _ = embed(tmp_path / "scene.tif", "--format", "tif", "--tile", "32", "--overlap", "16")
    with open_image(output / "features/scene.tif") as reader:
        assert (reader.height, reader.width, reader.channels, reader.dtype) == (6, 10, 48, np.float16)
        assert reader.georeference.transform == (80.0, 0.0, 500_000.0, 0.0, -80.0, 5_000_000.0)
        assert reader.georeference.epsg == 32633
    record = json.loads((output / "records/scene.json").read_text())
    assert record["georeference"]["transform"] == [80.0, 0.0, 500_000.0, 0.0, -80.0, 5_000_000.0]
    assert record["tiles"] > 1


def test_pictures(embed, photo):
    output, _ = embed(photo, "--write", "image", "--pca", "--similar-to", "30,60")
    assert not (output / "features").exists()
    colours, warm = pixels_of(output / "pca/photo.png"), pixels_of(output / "similar/photo.png")
    assert colours.shape == warm.shape == (52 * 6, 52 * 10, 3)
    cells = warm[26::52, 26::52]
    assert cells[3, 7].tolist() == [253, 231, 36], "the token at row 30, column 60 is like itself"
    assert cells[:3, :5].astype(int).sum() < cells[3:, 5:].astype(int).sum()
    assert (colours[26::52, 26::52][:3, :5].std((0, 1)) < 60).all()


def test_finished_images_are_skipped_and_others_are_begun_anew(embed, photo, tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(np.roll(PIXELS, number * 8, 1)).save(folder / f"{number}.png")
    original = embedding.embed_tokens
    seen = []

    def stopping(predictor, reader, *rest, **options):
        seen.append(reader.path.name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return original(predictor, reader, *rest, **options)

    monkeypatch.setattr(embedding, "embed_tokens", stopping)
    output, told = embed(folder, "--similar-to", "3,4", code=130)
    assert "--resume goes on" in told.err
    assert files_of(output / "features") == ["0.npy"]
    embed(folder, "--similar-to", "3,4", "--resume", output=output)
    assert seen == ["0.png", "1.png", "1.png", "2.png"]
    assert files_of(output / "features") == ["0.npy", "1.npy", "2.npy"]
    assert len(np.load(output / "embeddings.npz")["images"]) == 3
    _, told = embed(folder, "--similar-to", "3,5", "--resume", output=output, code=2)
    assert "similar_to was [3, 4], is [3, 5]; use the same options" in told.err
    _, told = embed(folder, output=output, code=2)
    assert "is not empty" in told.err


def test_images_that_changed_and_files_that_are_gone_are_done_anew(embed, tmp_path):
    """They counted as done: a missing embedding ended the command with a traceback, after the last image."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(np.roll(PIXELS, number * 8, 1)).save(folder / f"{number}.png")
    output, _ = embed(folder)
    wanted = np.load(output / "embeddings.npz")["mean"]
    (output / "features/0.npy").unlink()
    (output / "embeddings/1.npz").unlink()
    Image.fromarray(PIXELS[:16]).save(folder / "2.png")
    stamp = (output / "records/2.json").stat().st_mtime_ns + 10**9
    os.utime(folder / "2.png", ns=(stamp, stamp))
    embed(folder, "--resume", output=output)
    assert (output / "features/0.npy").is_file()
    np.testing.assert_array_equal(np.load(output / "embeddings.npz")["mean"][:2], wanted[:2])
    assert np.load(output / "features/2.npy").shape[0] == 2


def test_tiles_of_a_slide(embed, tmp_path):
    pytest.importorskip("h5py")
    from castvision.data.reading.bags import read_bag

    slide = np.full((96, 128, 3), 240, np.uint8)
    slide[32:64, 64:] = (190, 110, 170)
    Image.fromarray(slide).save(tmp_path / "slide.png")
    output, told = embed(tmp_path / "slide.png", "--write", "tiles", "--tile", "32", "--tissue")
    assert files_of(output) == ["records/slide.json", "run.json", "summary.json", "tiles/slide.h5"]
    bag = read_bag(output / "tiles/slide.h5")
    assert bag.coords.tolist() == [[64, 32], [96, 32]]
    assert bag.features.shape == (2, 48)
    assert "2 tiles (10 left out)" in told.out


def test_a_checkpoint_trained_at_a_scale_sees_slides_at_it(embed, model, tmp_path):
    pytest.importorskip("h5py")
    from castvision.data.reading.bags import read_bag

    content = torch.load(model, weights_only=True)
    content["castvision"] |= {"mpp": 0.5, "mpp_unit": "microns"}
    torch.save(content, tmp_path / "scaled.ckpt")
    scale = {"resolution": (1e4 / 0.25,) * 2, "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "slide.tif", PIXELS.repeat(4, 0).repeat(4, 1), photometric="rgb", **scale)
    words = [tmp_path / "slide.tif", "--write", "tiles", "--model", tmp_path / "scaled.ckpt"]
    bag = read_bag(embed(*words)[0] / "tiles/slide.h5")
    assert bag.attributes["patch_size_level0"] == 64
    assert bag.attributes["target_mpp"] == 0.5
    bag = read_bag(embed(*words, "--mpp", "0.25", output=tmp_path / "own")[0] / "tiles/slide.h5")
    assert bag.attributes["patch_size_level0"] == 32


def test_gis_programs_read_the_features(embed, photo):
    rasterio = pytest.importorskip("rasterio")
    from rasterio.errors import NotGeoreferencedWarning

    output, _ = embed(photo, "--format", "tif")
    with pytest.warns(NotGeoreferencedWarning), rasterio.open(output / "features/photo.tif") as dataset:
        assert np.isnan(dataset.nodata)
        found = dataset.read()
    assert np.array_equal(found.transpose(1, 2, 0), tifffile.imread(output / "features/photo.tif").astype(np.float32))


def test_one_bad_image_does_not_stop_the_others(embed, photo, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    output, told = embed(photo, tmp_path / "bad.png", code=1)
    assert "1 of 2 images done" in told.out
    assert "bad.png" in told.out
    assert files_of(output / "features") == ["photo.npy"]
    assert json.loads((output / "summary.json").read_text())["failed"][0]["image"].endswith("bad.png")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "vit_tiny_patch16_22"], "unknown model 'vit_tiny_patch16_22', did you mean vit_tiny_patch16_224"),
        (["--model", "no/best.ckpt"], "no such checkpoint or folder: 'no/best.ckpt'; check the path"),
        (["--model", "vit_tiny_patch16_224", "--weights", "no.pt"], "no such file of weights: 'no.pt'"),
        (["--tile", "33"], "expected --tile a multiple of 8, the patch of vit_tiny_patch16_224, got 33; take 32 or 40"),
        (["--device", "tpu9"], "expected a device of this machine"),
        (["--mask", "no.png"], "no such mask or folder of masks: 'no.png'"),
        (["missing.png"], "no such image or folder: 'missing.png'"),
        (["photos/*.xyz"], "no file fits the pattern 'photos/*.xyz'"),
        (["--similar-to", "60,20"], "expected --similar-to Y,X inside the 48 × 80 pixels of"),
        (["--tile", "32", "--overlap", "12"], "expected --overlap a multiple of 8"),
        (["--tile", "32", "--overlap", "32"], "expected --overlap at most about two thirds of --tile 32, got 32"),
        (["--tile", "32", "--overlap", "32", "--write", "tiles"], "smaller than the tile of 32 pixels, got 32"),
        (["--tile", "32", "--overlap", "40", "--write", "tiles"], "smaller than the tile of 32 pixels, got 40"),
        (["--overlap", "8"], "--overlap belongs to --tile"),
        (["--pool", "mean"], "--pool belongs to --write tiles, got --write dense image"),
        (["--write", "image", "--min-foreground", "0.5"], "--min-foreground belongs to --write tiles"),
        (["--write", "tiles", "--format", "tif"], "--format belongs to --write dense"),
    ],
)
def test_bad_input_is_one_line_before_any_work(words, message, embed, photo):
    output, told = embed(photo, *words, code=2)
    assert message in told.err
    assert told.err.startswith("castvision embed: error: ")
    assert told.err.count("\n") == 1
    assert not output.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bands", "1,2"], "expected an image with 3 channels for vit_tiny_patch16_224, got 2"),
        (["--mpp", "0.5"], "does not state how large its pixels are"),
        (["--write", "tiles", "--tile", "64"], "expected an image of at least one tile, 64 × 64 pixels"),
    ],
)
def test_a_command_that_can_do_no_image_is_refused_before_any_work(words, message, embed, photo):
    output, told = embed(photo, *words, code=2)
    assert message in told.err and told.err.count("\n") == 1
    assert not output.exists()


def test_a_trained_model_of_the_package_is_named(embed, tmp_path):
    Image.fromarray(PIXELS[..., 0]).save(tmp_path / "grey.png")
    output, _ = embed(tmp_path / "grey.png", "--model", "pathfinder32_join")
    assert np.load(output / "features/grey.npy").shape == (12, 20, 64)


def test_a_place_outside_one_of_the_images_is_named(embed, photo, tmp_path):
    Image.new("RGB", (40, 70)).save(tmp_path / "tall.png")
    _, told = embed(photo, tmp_path / "tall.png", "--similar-to", "60,20", code=1)
    assert "expected --similar-to Y,X inside the 48 × 80 pixels of" in " ".join(told.out.split())
    assert "got 60,20; the row comes first" in " ".join(told.out.split())


@pytest.mark.parametrize("words", [["--similar-to", "60"], ["--similar-to", "a,b"], ["--tissue", "--mask", "m.png"]])
def test_options_that_make_no_sense(words, embed, photo):
    with pytest.raises(SystemExit):
        embed(photo, *words)


def test_near_misses_of_the_verb_are_told(capsys):
    assert main(["embedd"]) == 2
    assert "did you mean embed?" in capsys.readouterr().err
