from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import castvision_cli as cli
from castvision.visualization.pictures import cluster_colours
from castvision_cli.train import config_folder
from tests.training.test_configs import _folder, _lists, _pairs

SMALL = ["--data.num_workers", "0", "--data.batch_size", "2"]


def show(*arguments) -> int:
    return cli.main(["data", "show", *map(str, arguments)])


def test_masks_are_laid_over_the_images(tmp_path):
    _pairs(tmp_path / "data")
    output = tmp_path / "sheets/sheet.png"
    how = ["--config", "segmentation_folder", "--data.root", tmp_path / "data", "--data.img_size", "64", *SMALL]
    assert show(*how, "--output", output, "--count", "3") == 0
    first = np.asarray(Image.open(output).convert("RGB"))
    assert min(first.shape[:2]) > 400
    tint = np.abs(first - cluster_colours(2)[1].astype(float)).max(axis=-1) < 3  # the legend's patch, at least
    assert tint.sum() > 50
    assert show(*how, "--output", output) == 2  # it exists
    assert show(*how, "--output", output, "--count", "3", "--overwrite") == 0
    assert np.array_equal(first, np.asarray(Image.open(output).convert("RGB")))  # the same seed
    assert show(*how, "--output", output, "--count", "3", "--overwrite", "--seed", "1") == 0
    assert not np.array_equal(first, np.asarray(Image.open(output).convert("RGB")))


@pytest.mark.parametrize(
    ("config", "write", "more"),
    [
        ("quickstart", None, []),
        ("pathfinder32", None, ["--data.batch_size", "4"]),
        ("image_folder", _folder, SMALL),
        ("multilabel_csv", _lists, SMALL),
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_every_kind_of_data(tmp_path, config, write, more, split):
    if write is not None:
        more = [*more, "--data.root", write(tmp_path / "data"), "--data.img_size", "32"]
    output = tmp_path / "sheet.png"
    assert show("--config", config, "--output", output, "--count", "5", "--split", split, *more) == 0
    assert output.stat().st_size > 10_000


def test_floats_in_other_units_are_visible(tmp_path):
    import tifffile

    _pairs(tmp_path / "data")
    for path in (tmp_path / "data").rglob("images/*.png"):
        pixels = np.asarray(Image.open(path))[..., 0].astype(np.float32) * 3 + 500
        tifffile.imwrite(path.with_suffix(".tif"), pixels, description=str(path))
        path.unlink()
    output = tmp_path / "sheet.png"
    how = ["--config", "segmentation_folder", "--data.root", tmp_path / "data", "--data.img_size", "64", *SMALL]
    assert show(*how, "--output", output, "--split", "val", "--count", "2") == 0
    grey = np.asarray(Image.open(output).convert("L"))[60:-60]
    assert len(np.unique(grey)) > 20


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--config", "quickstat", "--output", "a.png"], 2, "did you mean quickstart"),
        (["--config", "quickstart", "--output", "a.jpg"], 2, "ending in .png"),
        (["--config", "quickstart", "--output", "a.png", "--batch", "3"], 2, "begin with --data."),
        (["--config", "quickstart", "--output", "a.png", "--data.imgsize", "3"], 2, "imgsize"),
        (["--config", "segmentation_folder", "--output", "a.png", "--data.root", "gone"], 2, "no such folder or list"),
        (["--config", "image_folder", "--output", "a.png", "--data.root", "gone"], 2, "one folder for each class"),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, capsys, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    assert show(*arguments) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "a.png").exists()


def test_a_split_that_is_missing_and_a_configuration_without_data(tmp_path, capsys):
    root = _folder(tmp_path / "data")
    how = ["--config", "image_folder", "--data.root", root, *SMALL, "--output", tmp_path / "a.png"]
    assert show(*how, "--split", "test") == 1
    assert "test" in capsys.readouterr().err
    (tmp_path / "no.yaml").write_text("model: {}\n")
    assert show("--config", tmp_path / "no.yaml", "--output", tmp_path / "a.png") == 2
    assert "section 'data'" in capsys.readouterr().err


def test_the_verb_needs_its_word(capsys):
    assert cli.main(["data"]) == 2
    assert "usage: castvision data show" in capsys.readouterr().out
    assert cli.main(["data", "shwo"]) == 2
    assert "expected show" in capsys.readouterr().err


def test_configurations_name_shipped_classes_only():
    import castvision.training as shipped

    for path in config_folder().glob("*.yaml"):
        name = path.read_text().split("data:\n  class_path: ")[1].split()[0]
        assert name in shipped.__all__
