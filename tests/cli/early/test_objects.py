"""What the trainer is to be given is judged from the sources of Lightning's classes, as those judge it themselves."""

from __future__ import annotations

import re
import sys

import pytest
from lightning.pytorch import callbacks
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from castvision_cli.early.classes import check_classes, check_object
from castvision_cli.early.signatures import check_options
from castvision_cli.early.sources import arguments_of, needed_by
from castvision_cli.early.values import check_value

NAMES = ("EarlyStopping", "LearningRateMonitor", "ModelCheckpoint", "StochasticWeightAveraging", "Timer")


def test_arguments_are_found_where_a_package_hands_a_class_on():
    assert {"monitor", "mode"} <= arguments_of("lightning.pytorch.callbacks.ModelCheckpoint").keys()
    assert needed_by("lightning.pytorch.callbacks.EarlyStopping") == ["monitor"]
    assert needed_by("lightning.pytorch.callbacks.ModelCheckpoint") == []
    assert arguments_of("castvision.training.optim.Schedule").keys() == {"warmup", "final"}
    for unknown in ("lightning.pytorch.callbacks.Gone", "GoneDataModule", "gone.Module"):
        assert arguments_of(unknown) is None and needed_by(unknown) == []


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("ModelCheckpoint", {"moniter": "x"}, "'moniter' is not accepted in ModelCheckpoint: did you mean"),
        ("ModelCheckpoint", {"mode": "top"}, "expected ModelCheckpoint.mode of max, min, got 'top'"),
        ("ModelCheckpoint", {"save_top_k": -5}, "expected ModelCheckpoint.save_top_k >= -1, got -5"),
        ("ModelCheckpoint", {"every_n_epochs": -1}, "expected ModelCheckpoint.every_n_epochs >= 0, got -1"),
        ("ModelCheckpoint", {"every_n_epochs": 1, "every_n_train_steps": 2}, "expected one of ModelCheckpoint.every_n"),
        ("EarlyStopping", {}, "expected EarlyStopping.monitor in trainer.callbacks, found none"),
        ("EarlyStopping", {"monitor": "val/miou", "mode": "up"}, "expected EarlyStopping.mode of max, min, got 'up'"),
        ("LearningRateMonitor", {"logging_interval": "day"}, "LearningRateMonitor.logging_interval to be 'step' or"),
        ("StochasticWeightAveraging", {"swa_lrs": -1}, "expected StochasticWeightAveraging.swa_lrs > 0, got -1"),
        ("GradientAccumulationScheduler", {}, "expected GradientAccumulationScheduler.scheduling in trainer.callbacks"),
        ("GradientAccumulationScheduler", {"scheduling": {}}, "scheduling as {epoch: batches, …} with epochs >= 0"),
        ("GradientAccumulationScheduler", {"scheduling": {-1: 2}}, "and batches >= 1, got {-1: 2}"),
        ("GradientAccumulationScheduler", {"scheduling": {4: 0}}, "and batches >= 1, got {4: 0}"),
        ("ModelCheckpoint", {"save_top_k": 3}, "expected ModelCheckpoint.monitor, by which 3 checkpoints are the best"),
        ("ModelPruning", {"pruning_fn": "l1-structured"}, "expected ModelPruning.pruning_fn of l1_unstructured, ln_"),
        (
            "ModelPruning",
            {"pruning_fn": "ln_structured", "pruning_dim": 0},
            "ModelPruning.pruning_norm and ModelPruning.",
        ),
        ("ModelPruning", {"pruning_fn": "random_structured", "pruning_dim": 0}, "use_global_unstructured=false with"),
        ("LearningRateFinder", {"mode": "log"}, "expected LearningRateFinder.mode of exponential, linear, got 'log'"),
        ("StochasticWeightAveraging", {"swa_lrs": 0.1, "swa_epoch_start": 1.5}, "swa_epoch_start as a share up to 1"),
        ("Timer", {"interval": "hour"}, "expected Timer.interval of epoch, step, got 'hour'"),
        ("Timer", {"duration": "long"}, "expected Timer.duration as DD:HH:MM:SS, above zero, got 'long'"),
    ],
)
def test_what_a_callback_refuses_is_refused(name, arguments, message):
    for path in (name, f"lightning.pytorch.callbacks.{name}"):
        with pytest.raises(ValueError, match=re.escape(message)):
            check_object("callbacks", path, arguments)
    with pytest.raises((TypeError, ValueError, MisconfigurationException)):
        getattr(callbacks, name)(**arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ModelCheckpoint", {"monitor": "val/miou", "mode": "max", "save_top_k": -1, "every_n_epochs": 1}),
        ("EarlyStopping", {"monitor": "val/miou", "patience": "3", "min_delta": 1}),
        ("GradientAccumulationScheduler", {"scheduling": {"0": 1, 4: "2"}}),
        ("LearningRateFinder", {"mode": "Linear"}),
        ("ModelCheckpoint", {"save_top_k": 0}),
        ("ModelPruning", {"pruning_fn": "l1_unstructured"}),
        ("ModelPruning", {"pruning_fn": "Random_Structured", "pruning_dim": 0, "use_global_unstructured": False}),
        ("StochasticWeightAveraging", {"swa_lrs": [0.1, 1e-3]}),
        ("Timer", {"duration": {"hours": 1}}),
        ("castvision.training.callbacks.seeds.StepSeeds", {}),
        ("my_package.Own", {"anything": 1}),
    ],
)
def test_what_a_callback_takes_is_let_through(name, arguments):
    check_object("callbacks", name, arguments)


def test_types_are_told_before_jsonargparse_tells_them():
    with pytest.raises(ValueError, match=r"expected ModelCheckpoint\.save_top_k to be int, got 'many'"):
        check_object("callbacks", "ModelCheckpoint", {"save_top_k": "many"})
    with pytest.raises(ValueError, match=r"expected ModelSummary\.max_depth to be int, got 'all'"):
        check_object("callbacks", "ModelSummary", {"max_depth": "all"})  # which takes others, too
    check_object("callbacks", "ModelSummary", {"max_depth": 2, "own": "all"})


def test_names_and_packages():
    with pytest.raises(ValueError, match=r"unknown class 'EarlyStoping' in trainer\.callbacks, did you mean EarlyStop"):
        check_object("callbacks", "EarlyStoping", {})
    with pytest.raises(ValueError, match=r"unknown class 'wandb' in trainer\.logger"):
        check_object("logger", "wandb", {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("castvision_cli.early.classes.find_spec", lambda name: None)
        with pytest.raises(
            ValueError, match=r"expected the package wandb for WandbLogger, found none; pip install wan"
        ):
            check_object("logger", "WandbLogger", {})


@pytest.mark.parametrize(
    ("key", "right", "wrong"),
    [
        ("trainer.limit_train_batches", [0, 0.5, 1.0, 7, None], [-1, 1.5, "x"]),
        ("trainer.val_check_interval", [1, 0.25, 100], [0, -1, 1.5]),
        ("trainer.devices", ["auto", 1, "2", None], [0, -3, "foo", [0, 0], []]),
        ("trainer.strategy", ["auto", "ddp", "ddp_spawn_find_unused_parameters_true", "a.B"], ["ddp_foo", "foo"]),
        ("trainer.profiler", ["simple", None, "a.B"], ["foo"]),
        ("trainer.gradient_clip_algorithm", ["norm"], ["nrom"]),
        ("trainer.max_time", ["00:01:00:00", {"hours": 1}, None], ["soon", "00:00:00:00"]),
        ("trainer.fast_dev_run", [True, False, 3], [-1, "x"]),
        ("trainer.barebones", [False], [True]),
        ("seed_everything", [0, True, 4294967295], [-1, "x"]),
        ("model.layer_decay", [0.75, 1], [0, 1.5]),
    ],
)
def test_values_of_the_trainer(key, right, wrong):
    for value in right:
        check_value(key, value, None)
    for value in wrong:
        with pytest.raises(ValueError, match=re.escape(key)):
            check_value(key, value, None)


@pytest.mark.parametrize("value", ["2", "1", 2])
def test_how_many_processes_asks_for_no_gpu(value, monkeypatch):
    """A run's own config.yaml holds the number as text."""
    monkeypatch.setattr("castvision_cli.early.values.check_device", pytest.fail)
    check_value("trainer.devices", value, None)


def test_arguments_of_schedule_and_optimizer():
    words = ["--model.schedule.kind", "cosine"]
    with pytest.raises(ValueError, match=r"'kind' is not accepted in model\.schedule: expected one of final, warmup"):
        check_options("fit", words, [])
    with pytest.raises(ValueError, match=r"expected model\.schedule\.warmup and model\.schedule\.final, got"):
        check_options("fit", ["--model.schedule", "cosine"], [])
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "lightning")
        with pytest.raises(ValueError, match=r"'momentum' is not accepted in model\.optimizer"):
            check_classes(["--model.optimizer.momentum", "0.9"], [{}])
        check_classes(["--model.optimizer", "SGD", "--model.optimizer.momentum", "0.9"], [{}])
        named = {"model": {"init_args": {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 1}}}}}
        check_classes(["--model.optimizer.momentum", "0.9"], [named])


def test_arguments_that_are_none_are_left_to_the_parser():
    content = {"model": {"init_args": {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": "lr"}}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "lightning")
        check_options("fit", [], [content])
        check_classes([], [content])


@pytest.mark.parametrize(
    ("contents", "words", "message"),
    [
        ({}, "--trainer.callbacks+=EarlyStopping", "expected EarlyStopping.monitor in trainer.callbacks, found none"),
        ({}, "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val/miou", None),
        ({}, "--trainer.callbacks+ EarlyStopping --trainer.callbacks.init_args.monitor val/miou", None),
        (
            {},
            "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=a --trainer.callbacks+=ModelCheckpoint "
            "--trainer.callbacks.mode=up",
            "expected ModelCheckpoint.mode of max, min, got 'up'",
        ),
        ({}, "--trainer.callbacks+=EarlyStopping --trainer.callbacks.moniter=a", "'moniter' is not accepted in EarlyS"),
        ({}, "--trainer.callbacks+=GradientAccumulationScheduler --trainer.callbacks.scheduling.4=2", None),
        ({}, "--trainer.callbacks+=ModelCheckpoint --trainer.callbacks.dict_kwargs.own=2", None),
        ({}, "--trainer.logger=CSVLogger", "expected CSVLogger.save_dir in trainer.logger, found none"),
        ({"logger": "CSVLogger"}, "--trainer.logger.save_dir=logs", None),
        ({"logger": "CSVLogger"}, "--trainer.logger.init_args={'save_dir':'logs'}", None),
        ({"logger": "CSVLogger"}, "--trainer.logger=TensorBoardLogger --trainer.logger.save_dir=logs", None),
        ({"callbacks": "EarlyStopping"}, "--trainer.callbacks=Timer", None),
        ({"callbacks": "EarlyStopping"}, "--trainer.callbacks+=Timer", "expected EarlyStopping.monitor"),
        ({"logger": {"class_path": "CSVLogger", "init_args": None}}, "", "expected CSVLogger.save_dir"),
        ({}, "--trainer.strategy=ddp --trainer.profiler=simple", None),
        (
            {"strategy": {"class_path": "SingleDeviceStrategy", "init_args": {"devise": 1}}},
            "",
            "did you mean SingleDeviceS",
        ),
        (
            {},
            "--trainer.profiler=lightning.pytorch.profilers.SimpleProfiler --trainer.profiler.file=a",
            "'file' is not",
        ),
    ],
)
def test_arguments_of_an_object_stand_in_files_and_in_words_after_it(contents, words, message):
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "lightning")
        if message is None:
            check_classes(words.split(), [{"trainer": contents}])
            return
        with pytest.raises(ValueError, match=re.escape(message)):
            check_classes(words.split(), [{"trainer": contents}])


def test_a_later_file_says_more_of_an_object_or_names_another():
    first = {"trainer": {"logger": "CSVLogger"}}
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "lightning")
        for second in (
            {"init_args": {"save_dir": "logs"}},
            {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "x"}},
        ):
            check_classes([], [first, {"trainer": {"logger": second}}])
        with pytest.raises(ValueError, match=r"expected CSVLogger\.save_dir"):
            check_classes([], [first, {"trainer": {"max_epochs": 1}}])
