"""What the source of a class says it takes is what it takes."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Trainer

import castvision
from castvision import training
from castvision_cli.early.signatures import check_named, check_options
from castvision_cli.early.sources import arguments_of

CONFIGS = sorted((Path(castvision.__file__).parents[1] / "configs").glob("*.yaml"))


def taken(cls):
    found = set()
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters.values()
            found |= {each.name for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)}
            if not any(each.kind is each.VAR_KEYWORD for each in parameters):
                break
    return found - {"self"}


@pytest.mark.parametrize("name", [name for name in training.__all__ if name not in ("Task", "ImageDataModule")])
def test_arguments_are_those_of_the_class(name):
    assert set(arguments_of(name)) == taken(getattr(training, name))


def test_arguments_of_the_trainer():
    assert arguments_of("lightning.pytorch.trainer.trainer.Trainer").keys() == taken(Trainer)
    assert "ckpt_path" in arguments_of("lightning.pytorch.trainer.trainer.Trainer", "fit")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_pass(config):
    check_options("fit", ["--data.num_workers=2", "--trainer.callbacks+=x"], [yaml.safe_load(config.read_text())])


@pytest.mark.parametrize(
    ("words", "change", "message"),
    [
        (["--model.model_nam", "x"], {}, "'model_nam' is not accepted in model: did you mean model.model_name"),
        (["--model.init_args.zzz=1"], {}, "'zzz' is not accepted in model: expected one of attention, freeze"),
        (["--emma", "0.9"], {}, "'emma' is not accepted: did you mean ema"),
        ([], {"trainer": {"max_epoch": 3}}, "did you mean trainer.max_epochs"),
        ([], {"data": {"class_path": "MazeDataModule", "init_args": {"cel": 3}}}, "did you mean data.cell"),
    ],
)
def test_what_no_class_takes_is_refused(words, change, message):
    content = {"model": {"class_path": "ClassificationTask"}, "data": {"class_path": "MazeDataModule"}, **change}
    with pytest.raises(ValueError, match=message):
        check_options("fit", words, [content])


def test_what_cannot_be_known_is_let_through():
    content = {"model": {"class_path": "mine.Task", "init_args": {"x": 1}}, "data": {"class_path": "torch.Gone"}}
    check_options("fit", ["--model.anything", "1", "--data.anything", "1"], [content])
    check_options(
        "fit", ["--data", "MazeDataModule", "--data.cell", "1"], [{"data": {"class_path": "RegionDataModule"}}]
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_what_is_shipped_names_its_task_and_data(path):
    check_named([], [yaml.safe_load(path.read_text(encoding="utf-8"))])


@pytest.mark.parametrize(
    ("words", "contents", "missing"),
    [
        ([], [{}], "model"),
        ([], [{"model": {"init_args": {"num_classes": 2}}, "data": {"class_path": "MazeDataModule"}}], "model"),
        (["--model", "SegmentationTask"], [{}], "data"),
        (["--model.num_classes=2"], [{"data": "MazeDataModule"}], "model"),
        (["--model=SegmentationTask", "--data", "MazeDataModule"], [{}], None),
        ([], [{"model": {"class_path": "SegmentationTask"}}, {"data": "MazeDataModule", "model": {}}], None),
        ([], [{"model.class_path": "SegmentationTask", "data.class_path": "MazeDataModule"}], None),
        (["--print_config"], [{}], None),
        (["--model.help", "SegmentationTask"], [{}], None),
    ],
)
def test_a_run_without_a_task_or_data_is_refused(words, contents, missing):
    if missing is None:
        check_named(words, contents)
    else:
        with pytest.raises(
            ValueError, match=rf"expected {missing}.class_path in the configuration, .* got none; add it"
        ):
            check_named(words, contents)
