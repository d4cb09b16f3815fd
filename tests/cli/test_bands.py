from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from castvision.data.transforms.model_input import to_model_input
from castvision.models.segmenter import create_segmenter
from castvision_cli import main
from castvision_cli.evaluate import main as evaluate
from castvision_cli.predict import main as predict
from tests.inference.prediction_cases import ATTO, pixels_of, save


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
