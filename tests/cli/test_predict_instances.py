"""``castvision predict --instances`` from the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
from skimage import measure

from castvision_cli.predict import main as predict
from tests.inference.prediction_cases import files_of, pixels_of


def run(segmenter, image, folder, *words):
    return predict([str(image), "--model", str(segmenter), "--output", str(folder), "--no-overlay", *words])


def test_objects_of_a_photograph(tmp_path, segmenter, photo, capsys):
    out = tmp_path / "out"
    assert run(segmenter, photo, out, "--instances", "components", "--min-area", "5") == 0
    assert files_of(out) == [
        "instances/astronaut.csv", "instances/astronaut.geojson", "instances/astronaut.json", "instances/astronaut.tif",
        "masks/astronaut.png", "predictions.csv", "records/astronaut.json", "run.json", "summary.json",
    ]  # fmt: skip
    mask, ids = pixels_of(out / "masks/astronaut.png"), tifffile.imread(out / "instances/astronaut.tif")
    components = measure.label(mask, connectivity=1, background=0)
    counts = np.bincount(components.ravel())[1:]
    assert ids.max() == (counts >= 5).sum() > 3
    np.testing.assert_array_equal(ids > 0, np.append(0, counts)[components] >= 5)
    (record,) = json.loads((out / "summary.json").read_text())["images"]
    assert record["instances"]["count"] == ids.max()
    assert record["instances"]["pixels_in_none"] == counts[counts < 5].sum()
    assert sum(record["instances"]["classes"].values()) == ids.max()
    assert f"{ids.max()} objects" in capsys.readouterr().out


def test_a_run_goes_on_to_the_same_objects(tmp_path, segmenter, photo):
    words = ["--instances", "watershed", "--split-depth", "0.5", "--things", "dot", "--instance-files", "tiff,csv"]
    assert run(segmenter, photo, tmp_path / "out", *words) == 0
    before = {name: (tmp_path / "out" / name).read_bytes() for name in files_of(tmp_path / "out")}
    (tmp_path / "out/records/astronaut.json").unlink()
    assert run(segmenter, photo, tmp_path / "out", *words, "--resume") == 0
    for name in ("instances/astronaut.tif", "instances/astronaut.csv"):
        assert (tmp_path / "out" / name).read_bytes() == before[name]
    assert run(segmenter, photo, tmp_path / "out", "--instances", "components", "--resume") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--instances", "centres"], "gives no centres of objects; train it with --config instances"),
        (
            ["--instances", "components", "--things", "tree"],
            "expected --things among the classes background, path, dot",
        ),
        (["--instances", "components", "--centre-kernel", "4"], "expected an odd kernel >= 1"),
        (["--things", "dot"], "expected --instances beside --things"),
        (["--instances", "components", "--instance-files", "shp"], "expected --instance-files of tiff, coco, geojson"),
        (["--instances", "centres", "--cluster", "local:2"], "expected --instances centres without --cluster"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(tmp_path, segmenter, photo, capsys, words, message):
    assert run(segmenter, photo, tmp_path / "out", *words) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_classifier_has_no_objects(tmp_path, classifier, photo, capsys):
    assert run(classifier, photo, tmp_path / "out", "--instances", "components") == 2
    assert "is a classification model: objects take a segmenter" in capsys.readouterr().err
