"""Programs give the model's outputs at five sizes, and exported files the checkpoint's predictions, without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from castvision.export.program import FACTS, MaskedSegmenter, Program
from castvision.models.centres import create_centre_segmenter
from castvision_cli import main
from tests.inference.conftest import classifier, photo, segmenter
from tests.inference.prediction_cases import pixels_of, table_of
from tests.inference.test_onnx_model import without_torch

__all__ = ["classifier", "photo", "segmenter"]


def program_of(module: torch.nn.Module) -> Program:
    """A program that is not traced, checked with ones."""
    program = Program.__new__(Program)
    program.module = module
    image = torch.ones(1, 1, 2, 2)
    program.checks = lambda: iter([((image,), module(image))])
    return program


def test_a_program_gives_classes_alone_of_a_model_of_centres() -> None:
    """Its heat and offsets became three classes more."""
    model = create_centre_segmenter("cast_vit_atto_patch4_32", 2, model_kwargs={"depth": 1}).eval()
    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        found = MaskedSegmenter(model)(image, torch.ones(1, 32, 32, dtype=torch.bool))
        torch.testing.assert_close(found, model(image))


@pytest.mark.parametrize("difference", [2e-4, float("nan")])
def test_an_export_that_differs_is_none(difference: float) -> None:
    program = program_of(torch.nn.Identity())
    with pytest.raises(ValueError, match=r"model\.onnx gives other outputs than the model"):
        program.checked([difference], Path("model.onnx"))
    assert program.checked([1e-5], Path("model.onnx")) == 1e-5


def test_an_export_may_differ_as_much_as_the_model_does_when_it_is_rounded_otherwise() -> None:
    """A token between two clusters: which one is nearer, rounding decides."""

    class Tie(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return (image + 1e-9 > image) * 0.01

    program = program_of(Tie())
    assert program.checked([2e-4], Path("model.onnx")) == 2e-4
    assert program.checked([0.0101], Path("model.onnx")) == 0.0101  # each may lie on its side of what is exact
    with pytest.raises(ValueError, match=r"^model\.onnx gives .*they differ by 0\.03, more than the 0\.02 of rounding"):
        program.checked([0.03], Path(".model.onnx.part"))
    (inputs, expected), steady = next(program.checks()), torch.full((1, 1, 2, 2), -torch.inf)  # no tie at this size
    program.checks = lambda: iter([(inputs, expected), ((steady,), program.module(steady))])
    assert program.checked([2e-4, 0.0], Path("model.onnx")) == 2e-4
    with pytest.raises(ValueError, match=r"they differ by 0\.0002, more than the 0\.0001 of rounding"):
        program.checked([0.0, 2e-4], Path("model.onnx"))


@pytest.mark.slow
def test_a_segmenter_in_onnx_and_in_8_bits(
    segmenter: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--format", "onnx", "--output", str(tmp_path / "onnx"), "--int8", "--images", str(photo)]
    assert main(["export", str(segmenter), *words]) == 0
    told = capsys.readouterr().out
    assert "outputs at five sizes" in told and "of the decisions on 1 images a share of " in told
    card = (tmp_path / "onnx" / "README.md").read_text()
    assert "model_int8.onnx: of the decisions" in card and "library_name: onnx" in card
    assert main(["predict", str(photo), "--model", str(segmenter), "--output", str(tmp_path / "torch")]) == 0
    for name in ("model", "model_int8"):
        out = tmp_path / name
        done = without_torch(
            "predict", str(photo), "--model", str(tmp_path / f"onnx/{name}.onnx"), "--output", str(out)
        )
        assert done.returncode == 0, done.stderr
    expected, found, small = (
        pixels_of(tmp_path / name / "masks/astronaut.png") for name in ("torch", "model", "model_int8")
    )
    np.testing.assert_array_equal(found, expected)
    assert (small == expected).mean() > 0.9
    assert table_of(tmp_path / "model") == table_of(tmp_path / "torch")


@pytest.mark.slow
def test_images_of_which_an_export_takes_none_are_refused(
    segmenter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(segmenter), "--format", "onnx", "--output", str(tmp_path / "onnx")]) == 0
    tifffile.imwrite(tmp_path / "five.tif", np.zeros((40, 40, 5), np.uint8), photometric="minisblack")
    for model in (segmenter, tmp_path / "onnx/model.onnx"):
        words = ["predict", str(tmp_path / "five.tif"), "--model", str(model), "--output", str(tmp_path / "out")]
        assert main(words) == 2
        assert "expected an image with 3 channels for this model, got 5" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_a_classifier_in_onnx(classifier: Path, photo: Path, tmp_path: Path) -> None:
    assert main(["export", str(classifier), "--format", "onnx", "--output", str(tmp_path / "onnx")]) == 0
    assert main(["predict", str(photo), "--model", str(classifier), "--output", str(tmp_path / "torch")]) == 0
    model = tmp_path / "onnx" / "model.onnx"
    done = without_torch("predict", str(photo), "--model", str(model), "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    expected, found = table_of(tmp_path / "torch"), table_of(tmp_path / "out")
    assert [row["name"] for row in found] == [row["name"] for row in expected]
    for one, other in zip(found, expected, strict=True):
        assert float(one["probability"]) == pytest.approx(float(other["probability"]), abs=1e-5)


@pytest.mark.slow
def test_a_program_of_torch(segmenter: Path, tmp_path: Path) -> None:
    assert main(["export", str(segmenter), "--format", "torch", "--output", str(tmp_path / "out")]) == 0
    extra = {FACTS: ""}
    program = torch.export.load(str(tmp_path / "out" / "model.pt2"), extra_files=extra).module()
    assert '"class_names": ["background", "path", "dot"]' in extra[FACTS]
    mask = torch.ones(3, 44, 60, dtype=torch.bool)
    assert program(torch.randn(3, 3, 44, 60), mask).shape == (3, 3, 44, 60)
