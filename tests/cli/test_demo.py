from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import timm
import torch
from PIL import Image

import castvision_cli as cli
from castvision.models.segmenter import create_segmenter
from castvision_cli.demo import main
from castvision_cli.predict import main as predict
from tests.inference.prediction_cases import save, table_of

skimage = pytest.importorskip("skimage")
PHOTOS = Path(skimage.__file__).parent / "data"
ROOT = Path(__file__).parents[2]
ATTO = "cast_vit_atto_patch4_32"
RNG = np.random.default_rng(0)


@pytest.fixture
def grey(tmp_path):
    """A folder of small grey images as the quick start has them."""
    folder = tmp_path / "grey"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(RNG.integers(0, 256, (32, 32), dtype=np.uint8)).save(folder / f"sample_{number}.png")
    return folder


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    model = create_segmenter(ATTO, 2, model_kwargs={"depth": 1})
    description = {
        "format": 1, "task": "segmentation", "model_name": ATTO, "model_kwargs": {"depth": 1}, "head": "UpsamplingHead",
        "head_kwargs": {}, "out_indices": None, "num_classes": 2, "class_names": ["background", "path"], "in_chans": 1,
        "img_size": [32, 32], "mean": [0.5], "std": [0.5],
    }  # fmt: skip
    weights = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"castvision": description, "state_dict": weights}, tmp_path / "best.ckpt")
    return tmp_path / "best.ckpt"


def pictures(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_photographs_through_an_untrained_model(tmp_path, capsys):
    photos = [str(PHOTOS / name) for name in ("coffee.png", "retina.jpg")]
    output = tmp_path / "out"
    code = main([*photos, "--model", "cast_vit_tiny_patch16_224", "--output", str(output), "--max-size", "128"])
    assert code == 0
    assert "untrained weights: clusters only, no prediction" in capsys.readouterr().out
    layers = [f"coffee/layer_blocks.{place}.png" for place in range(12)]
    assert {*layers, "coffee/clusters.png", "retina/clusters.png", "contact_sheet.png"} <= set(pictures(output))
    assert not any("prediction" in name or "mask" in name for name in pictures(output))
    result = summary(output)
    assert result["trained"] is False
    assert result["skipped"] == []
    first = result["images"][0]
    assert (first["size"], first["input_size"], first["prediction"]) == ([400, 600], [80, 128], None)
    assert sorted(first["files"]) == [name for name in pictures(output) if name.startswith("coffee/")]
    assert len(first["layers"]) == 12
    for layer in first["layers"]:
        assert layer["grid_size"] == [5, 8]
        assert layer["window_size"] == [4, 4]
        assert layer["num_clusters"] == 12  # about 2 √40, spaced evenly
        assert 4 <= layer["largest_cluster"] <= 40
        assert layer["coverage"] == {"none": 0, "one": 1, "several": 0}
    with Image.open(output / "coffee/layer_blocks.0.png") as overlay:
        assert overlay.size == (600, 400)


def test_small_grey_images_through_a_checkpoint(tmp_path, grey, checkpoint):
    output = tmp_path / "out"
    assert main([str(grey), "--model", str(checkpoint), "--output", str(output)]) == 0
    names = [f"sample_{number}" for number in range(3)]
    kinds = ("clusters.png", "layer_blocks.0.png", "mask.png", "prediction.png")
    assert pictures(output) == sorted(
        [*(f"{name}/{kind}" for name in names for kind in kinds), "contact_sheet.png", "summary.json"]
    )
    mask = np.asarray(Image.open(output / "sample_0/mask.png"))
    assert mask.shape == (32, 32)
    shares = summary(output)["images"][0]["prediction"]["shares"]
    assert mask.mean() == pytest.approx(shares.get("path", 0), abs=1e-6)
    with Image.open(output / "sample_0/layer_blocks.0.png") as overlay:
        assert overlay.size == (384, 384)  # enlarged so that a person can see it


def test_the_mask_has_the_images_own_size(tmp_path, checkpoint):
    output = tmp_path / "out"
    assert main([str(PHOTOS / "coffee.png"), "--model", str(checkpoint), "--output", str(output)]) == 0
    assert np.asarray(Image.open(output / "coffee/mask.png")).shape == (400, 600)


def test_the_same_pictures_twice(tmp_path, grey):
    for name in ("a", "b"):
        assert main([str(grey), "--model", ATTO, "--output", str(tmp_path / name), "--seed", "3"]) == 0
    assert pictures(tmp_path / "a") == pictures(tmp_path / "b")
    for name in pictures(tmp_path / "a"):
        if name.endswith(".png"):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_bad_images_are_skipped_and_named(tmp_path, grey, capsys):
    (grey / "empty.png").write_bytes(b"")
    (grey / "text.png").write_text("hello")
    good = (grey / "sample_0.png").read_bytes()
    (grey / "half.png").write_bytes(good[: len(good) // 2])
    tifffile.imwrite(
        grey / "bands.tif", np.zeros((32, 32, 5), np.uint16), photometric="minisblack", planarconfig="contig"
    )
    output = tmp_path / "out"
    assert main([str(grey), "--model", ATTO, "--output", str(output)]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "3 of 7 images shown" in out
    skipped = {Path(entry["image"]).name: entry["error"] for entry in summary(output)["skipped"]}
    assert sorted(skipped) == ["bands.tif", "empty.png", "half.png", "text.png"]
    assert "empty (0 bytes)" in skipped["empty.png"]
    assert "5" in skipped["bands.tif"]
    assert all(name in out for name in skipped)
    assert not (output / "empty").exists()


def test_nothing_but_bad_images(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "bad.png").write_bytes(b"")
    assert main([str(tmp_path / "photos"), "--model", ATTO, "--output", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (7, 5), (2500, 40), (33, 47, 3)])
def test_any_size(tmp_path, shape):
    Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / "odd.png")
    assert main([str(tmp_path / "odd.png"), "--model", ATTO, "--output", str(tmp_path / "out")]) == 0
    assert "odd/clusters.png" in pictures(tmp_path / "out")


def test_16_bit_images_and_stretch(tmp_path):
    tifffile.imwrite(tmp_path / "dim.tif", RNG.integers(0, 4096, (40, 40), dtype=np.uint16))
    for name, flags in (("a", []), ("b", ["--stretch"])):
        assert main([str(tmp_path / "dim.tif"), "--model", ATTO, "--output", str(tmp_path / name), *flags]) == 0
    assert summary(tmp_path / "a")["images"][0]["dtype"] == "uint16"
    overlay = np.asarray(Image.open(tmp_path / "a/dim/layer_blocks.0.png").convert("L"))
    assert overlay.std() > 20  # not a black square


def test_an_existing_output_is_refused_then_allowed(tmp_path, grey, capsys):
    output = tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    arguments = [str(grey), "--model", ATTO, "--output", str(output), "--limit", "1"]
    assert main(arguments) == 2
    assert "not empty" in capsys.readouterr().err
    assert pictures(output) == ["notes.txt"]
    assert main([*arguments, "--overwrite"]) == 0
    assert main([*arguments, "--overwrite"]) == 0
    assert (output / "notes.txt").read_text() == "mine"
    assert len(summary(output)["images"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.png", "--model", ATTO], "no such image or folder: 'gone.png'"),
        (["{grey}", "--model", "cast_vit_ato_patch4_32"], "did you mean cast_vit_atto_patch4_32"),
        (["{grey}", "--model", "gone.ckpt"], "no such checkpoint"),
        (["{grey}", "--model", "resnet10t"], "untrained and has no clusters"),
        (["{grey}", "--model", ATTO, "--device", "abacus"], "abacus"),
        (["{grey}", "--model", ATTO, "--max-size", "2"], "max_size >= 4"),
        (["{grey}/../empty", "--model", ATTO], "no image"),
    ],
)
def test_wrong_arguments_write_nothing(tmp_path, grey, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    arguments = [argument.format(grey=grey) for argument in arguments]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [["--opacity", "2"], ["--limit", "0"], ["--max-size", "many"], ["--colour", "red"]])
def test_wrong_values_are_usage_errors(flags, capsys):
    with pytest.raises(SystemExit) as error:
        main(["a.png", "--model", ATTO, "--output", "out", *flags])
    assert error.value.code == 2
    assert flags[0].lstrip("-") in capsys.readouterr().err


def test_help_is_quick_and_needs_no_torch():
    code = (
        "import sys; from castvision_cli.demo import build_parser; build_parser().format_help(); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'timm', 'numpy', 'matplotlib', 'rich', 'PIL')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, ROOT / "demo/image_demo.py", "--help"], capture_output=True, text=True, check=True
    )
    assert time.perf_counter() - start < 2
    assert done.stdout.startswith("usage: image_demo.py")
    assert "image_demo.py photo.jpg --model" in done.stdout


def test_the_console_verb_is_the_same(tmp_path, grey, capsys):
    assert cli.main(["demo", str(grey), "--model", ATTO, "--output", str(tmp_path / "out"), "--limit", "1"]) == 0
    with pytest.raises(SystemExit):
        cli.main(["demo", "--help"])
    assert "castvision demo photo.jpg" in capsys.readouterr().out


def test_what_training_writes_can_be_shown(tmp_path, grey):
    from castvision_cli import train as training

    flags = ["--data.train_length", "8", "--data.val_length", "4", "--data.batch_size", "4", "--data.num_workers", "0"]
    flags += ["--model.model_kwargs.depth", "1", "--trainer.max_steps", "1", "--trainer.accelerator", "cpu"]
    assert training.main(["--config", "quickstart", "--run_dir", str(tmp_path / "run"), *flags]) == 0
    output = tmp_path / "out"
    assert main([str(grey), "--model", str(tmp_path / "run/best.ckpt"), "--output", str(output), "--limit", "1"]) == 0
    assert summary(output)["classes"] == ["background", "joining path"]
    assert "sample_0/prediction.png" in pictures(output)


def trained(folder, task="segmentation", **facts):
    """A checkpoint whose head tells bands and scales apart."""
    torch.manual_seed(0)
    kwargs = {"depth": 1, "in_chans": 3}
    if task == "segmentation":
        model = create_segmenter(ATTO, 3, head="LinearHead", model_kwargs=kwargs)
    else:
        model = timm.create_model(ATTO, num_classes=3, **kwargs)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return str(save(folder / "best.ckpt", model, task=task, model_kwargs=kwargs, **facts))


def test_bands_are_those_of_training(tmp_path):
    """They were the file's first ones, in silence: a mask of other bands than that of castvision predict."""
    model = trained(tmp_path, bands=[4, 1, 2])
    pixels = RNG.integers(0, 256, (32, 40, 4), dtype=np.uint8)
    image = tmp_path / "image.tif"
    tifffile.imwrite(image, pixels, photometric="rgb", extrasamples=["unassalpha"])
    assert main([str(image), "--model", model, "--output", str(tmp_path / "shown")]) == 0
    assert predict([str(image), "--model", model, "--output", str(tmp_path / "out"), "--tile", "64"]) == 0
    wanted = np.asarray(Image.open(tmp_path / "out/masks/image.png"))
    assert len(np.unique(wanted)) > 1
    np.testing.assert_array_equal(Image.open(tmp_path / "shown/image/mask.png"), wanted)


def test_what_has_no_data_has_no_class(tmp_path):
    model = trained(tmp_path)
    pixels = RNG.integers(1, 256, (32, 40, 3), dtype=np.uint8)
    pixels[:, :12] = 0
    image = tmp_path / "image.tif"
    tifffile.imwrite(image, pixels, photometric="rgb", metadata=None, extratags=[(42113, "s", 2, "0", True)])
    assert main([str(image), "--model", model, "--output", str(tmp_path / "shown")]) == 0
    mask = np.asarray(Image.open(tmp_path / "shown/image/mask.png"))
    assert predict([str(image), "--model", model, "--output", str(tmp_path / "out"), "--tile", "64"]) == 0
    np.testing.assert_array_equal(mask, Image.open(tmp_path / "out/masks/image.png"))
    assert (mask[:, :12] == 255).all()
    assert mask[:, 12:].max() < 3
    shares = summary(tmp_path / "shown")["images"][0]["prediction"]["shares"]
    classes, counts = np.unique(mask[:, 12:], return_counts=True)
    names = summary(tmp_path / "shown")["classes"]
    assert shares == {
        names[label]: pytest.approx(count / counts.sum(), abs=1e-6)
        for label, count in zip(classes, counts, strict=True)
    }


@pytest.mark.parametrize("resize", ["fit", "crop"])
def test_a_classifier_says_what_it_says_in_prediction(tmp_path, resize):
    model = trained(tmp_path, "classification", resize=resize)
    image = tmp_path / "image.png"
    Image.fromarray(RNG.integers(0, 256, (30, 90, 3), dtype=np.uint8)).save(image)
    assert main([str(image), "--model", model, "--output", str(tmp_path / "shown")]) == 0
    assert predict([str(image), "--model", model, "--output", str(tmp_path / "out")]) == 0
    top = summary(tmp_path / "shown")["images"][0]["prediction"]["top"]
    assert {each["class"]: each["probability"] for each in top} == pytest.approx(
        {row["name"]: float(row["probability"]) for row in table_of(tmp_path / "out")}, abs=1e-5
    )


@pytest.mark.parametrize("size", [(300, 200), (20, 13)])
def test_a_segmenter_of_whole_images_sees_them_at_its_size(tmp_path, size):
    model = trained(tmp_path, resize="fit")
    image = tmp_path / "image.png"
    Image.fromarray(RNG.integers(0, 256, (*size, 3), dtype=np.uint8)).save(image)
    assert main([str(image), "--model", model, "--output", str(tmp_path / "shown")]) == 0
    assert summary(tmp_path / "shown")["images"][0]["input_size"] == [32, 20]
