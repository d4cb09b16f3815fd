from __future__ import annotations

import json

import pytest

from castvision_cli.models import main


def test_models_are_listed_by_pattern_with_their_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cast_vit_small_patch14*", "cast_vit_atto*", "--fast"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == [
        "model", "input", "tokens", "million", "parameters", "GFLOPs", "MB", "of", "memory", "weights",
    ]  # fmt: skip
    assert [line.split()[0] for line in lines] == [
        "cast_vit_small_patch14_dinov2", "cast_vit_small_patch14_reg4_dinov2", "cast_vit_atto_patch4_32",
    ]  # fmt: skip
    assert "timm/vit_small_patch14_dinov2.lvd142m" in lines[0] and lines[2].endswith("-") and "0.17" in lines[2]


def test_json_holds_all_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cast_vit_atto*", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["parameters"] == 169250 and row["gflops"] > 0 and row["memory"] > 4 * 169250
    assert main(["cast_vit_atto*", "--json", "--pretrained"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_name_nothing_fits_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cast_vit_smal_patch16_224"]) == 2
    assert "did you mean cast_vit_small_patch16_224" in capsys.readouterr().err


def test_none_with_trained_weights_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cast_vit_atto*", "--pretrained"]) == 2
    assert "none of these models has trained weights" in capsys.readouterr().err
