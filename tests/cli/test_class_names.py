from __future__ import annotations

import numpy as np
import pytest
import yaml
from PIL import Image

from castvision_cli import main
from castvision_cli.class_names import quote_class_names


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data.class_names", "[no, yes]", "--resume"], ["--data.class_names", '["no", "yes"]', "--resume"]),
        (["--data.init_args.class_names=[1, 2e3]"], ['--data.init_args.class_names=["1", "2e3"]']),
        (["--data.class_names", "['null', Straße]"], ["--data.class_names", '["null", "Straße"]']),
        (["--data.class_names", "null", "--data.root", "[no]"], ["--data.class_names", "null", "--data.root", "[no]"]),
    ],
)  # fmt: skip
def test_names_are_quoted(words, expected):
    assert quote_class_names(words) == expected


@pytest.mark.parametrize("names", ["[no, yes]", "[off, 1.0]", "[null, crack]", "['no', 2]"])
@pytest.mark.parametrize("by_file", [True, False])
def test_names_reach_the_data_as_written(tmp_path, monkeypatch, names, by_file):
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for number in range(4):
            Image.fromarray(rng.integers(0, 2, (16, 16), dtype=np.uint8)).save(tmp_path / folder / f"{number}.png")
    config = {
        "class_path": "SegmentationDataModule",
        "init_args": {"root": str(tmp_path), "img_size": 16, "batch_size": 1, "num_workers": 0},
    }
    text = yaml.safe_dump({"data": config})
    (tmp_path / "c.yaml").write_text(text + f"    class_names: {names}\n" if by_file else text)
    seen = []

    def look(data, split, count):
        seen.append(data.class_names)
        return b""

    monkeypatch.setattr("castvision_cli.show_data.draw_sheet", look)
    extra = [] if by_file else ["--data.class_names", names]
    output = str(tmp_path / "a.png")
    assert main(["data", "show", "--config", str(tmp_path / "c.yaml"), "--output", output, *extra]) == 0
    assert seen == [yaml.load(names, Loader=yaml.BaseLoader)]
