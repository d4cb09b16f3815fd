from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from castvision.data.reading.bags import Bag
from castvision.inference.slides import SlideAnswer, attention_grid
from castvision.models.recipe import InputFormat, Recipe, build, save
from castvision_cli import main
from tests.training.slide_cases import write_bags


def test_weights_lie_where_their_tiles_do_in_islands_of_tissue():
    """The step was the median of those between tiles: gaps shrank, and tiles of two rows shared a cell."""
    cells = np.array([[0, 0], [2, 0], [3, 0], [15, 9], [15, 10]])
    bag = Bag(
        Path("a.h5"),
        np.zeros((5, 4), np.float32),
        224 * cells + 1000,
        {"patch_size": 224, "patch_size_level0": 224, "overlap": 0},
    )
    weights = np.array([0.1, 0.2, 0.3, 0.15, 0.25], np.float32)
    grid = attention_grid(SlideAnswer(bag, np.array([1.0], np.float32), weights))
    assert grid.shape == (11, 16)
    assert np.isfinite(grid).sum() == 5
    np.testing.assert_array_equal(grid[cells[:, 1], cells[:, 0]], weights)


@pytest.mark.parametrize(
    ("splits", "measured"),
    [(["train", "val", "test", "test"], [2, 3]), (["val", "train", "train", "val"], [0, 3]), (["train"] * 4, None)],
)
def test_a_list_with_splits_is_measured_on_what_was_held_out(tmp_path, capsys, splits, measured):
    """Slides that a model was trained on counted in its figures."""
    pytest.importorskip("h5py")
    listed = write_bags(tmp_path, ["a", "b", "a", "b"])
    rows = listed.read_text().split()
    listed.write_text("\n".join(f"{row},{more}" for row, more in zip(rows, ["split", *splits], strict=True)))
    recipe = Recipe("slides", "mean", 2, ("a", "b"), {"in_chans": 6}, input=InputFormat(6, (1, 1), (0.0,), (1.0,)))
    save(tmp_path / "best.ckpt", recipe, build(recipe))
    words = ["--model", str(tmp_path / "best.ckpt"), "--images", str(tmp_path), "--labels", str(listed)]
    code = main(["evaluate", *words, "--output", str(tmp_path / "out")])
    if measured is None:
        assert code == 2
        assert "got train alone" in capsys.readouterr().err
        return
    assert code == 0
    slides = json.loads((tmp_path / "out/metrics.json").read_text())["slides"]
    assert [Path(each["slide"]).stem for each in slides] == [f"s{number}" for number in measured]
    assert f"of 4 slides listed the 2 of the split {splits[measured[0]]}" in capsys.readouterr().out
