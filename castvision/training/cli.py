"""LightningCLI over our tasks and data modules: a run folder that nothing overwrites, loggers, checkpoints, the report.

What a user writes on the command line comes here in LightningCLI's form, from ``castvision_cli.train``.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jsonargparse import Namespace
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, EarlyStopping, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.plugins import DoublePrecision, HalfPrecision
from torch.optim import AdamW

from castvision.data.reading.reader import alpha_for
from castvision.errors import CheckpointError, one_line
from castvision.files import draft
from castvision.models import checkpoint_file
from castvision.models.checkpoint import load_state_dict
from castvision.models.class_names import check_same_classes, stored_class_names
from castvision.run_folder import BEST, CONFIG, LAST, folder_to_evaluate, folder_to_train, forget_after
from castvision.training.callbacks.announcement import Announcement
from castvision.training.callbacks.averaging import WarmAveraging
from castvision.training.callbacks.clusters import ClusterStatistics
from castvision.training.callbacks.finite import StopWhereNotFinite
from castvision.training.callbacks.interruption import Interruption
from castvision.training.callbacks.monitors import KnownMonitors
from castvision.training.callbacks.progress import TrainingBar
from castvision.training.callbacks.report import Report
from castvision.training.callbacks.seeds import StepSeeds
from castvision.training.checkpoint_io import DurableCheckpointIO
from castvision.training.class_paths import allow_classes, check_optimizer
from castvision.training.data.data_module import ImageDataModule
from castvision.training.from_data import complete, share_normalisation, trial_arguments
from castvision.training.processes import LOST, check_processes, is_lost_process
from castvision.training.tasks.task import Task
from castvision.training.tensorboard_log import BoardLog

if TYPE_CHECKING:
    from collections.abc import Sequence


TRAINER_DEFAULTS = {"max_epochs": 1, "log_every_n_steps": 50, "enable_model_summary": False}


class LastCheckpoint(ModelCheckpoint):
    """The run's last state, apart from a callback of the user's that saves every epoch, too."""


class TrainingCLI(LightningCLI):
    """Parse, build, and leave the running to `run_verb`, so that callers can tell a refusal from a failure.

    Args:
        arguments: The words LightningCLI parses, the verb first.
        verb: "fit", "validate", "test" or "predict".
        config: The last configuration file, which names the run; None = none.
        is_resumed: Go on with an unfinished run.
        allowed_classes: Import paths that the configuration may name beside the usual ones, see `allow_classes`.

    Raises:
        jsonargparse.ArgumentError: A key or value the configuration does not know.
        ValueError: Anything a constructor refuses.
    """

    def __init__(
        self, arguments: Sequence[str], verb: str = "fit", config: Path | None = None, *, is_resumed: bool = False,
        allowed_classes: Sequence[str] = (),
    ) -> None:  # fmt: skip
        allow_classes(allowed_classes)
        self.verb = verb
        self.config_file = config
        self.is_resumed = is_resumed
        self.folder = Path()
        self.resumed_step = 0
        quiet = {"exit_on_error": False, "allow_abbrev": False}  # an abbreviation is a typo
        super().__init__(
            Task,
            ImageDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfig,
            trainer_defaults=dict(TRAINER_DEFAULTS),
            seed_everything_default=0,
            parser_kwargs={**quiet, **{verb: dict(quiet) for verb in self.subcommands()}},
            args=list(arguments),
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Our own flags, beside the trainer's, the task's and the data's."""
        parser.add_argument("--run_dir", type=str | None, default=None, help="the run's folder (default: runs/CONFIG)")
        parser.add_argument("--ema", type=float | None, default=None, help="decay of averaged weights, such as 0.999")
        parser.add_argument(
            "--early_stopping", type=int | None, default=None, help="stop after so many rounds without a better metric"
        )

    def before_instantiate_classes(self) -> None:
        """Choose the run's folder before anything is built or read.

        Raises:
            FileExistsError: See `folder_to_train`.
            FileNotFoundError: See `folder_to_train` and `folder_to_evaluate`.
        """
        config = self.config[self.verb]
        check_optimizer(config.model.get("init_args", {}).get("optimizer", AdamW))
        share_bands(config)
        share_normalisation(config.model, config.data)
        given, checkpoint = config.run_dir, config.ckpt_path
        if self.verb != "fit":
            self.folder, checkpoint = folder_to_evaluate(given, self.config_file, checkpoint)
        else:
            self.folder, last = folder_to_train(given, self.config_file, is_resumed=self.is_resumed)
            checkpoint = last or checkpoint
        config.run_dir = str(self.folder)
        config.ckpt_path = None if checkpoint is None else str(checkpoint)
        config.weights_only = True
        check_ranges(config)

    def instantiate_classes(self) -> None:
        """The data first, whose classes, channels and sizes the model takes where the configuration leaves them open.

        Before they are read, the model is built for any data: what is wrong with it need not wait for them.
        """
        config, parser = self.config[self.verb], self._parser(self.verb)
        with torch.random.fork_rng(devices=[]):  # the model starts from the same weights as without this
            trial = Namespace(model=config.model.clone())  # type: ignore[no-untyped-call]
            trial_arguments(trial.model)
            parser.instantiate_classes(trial)
            given = Namespace(data=config.data.clone())  # type: ignore[no-untyped-call]
            data = parser.instantiate_classes(given).data
        complete(config.model, config.data, data)
        whole = self.config.clone()
        whole[self.verb].data = data
        self.config_init = self.parser.instantiate_classes(whole)
        self.datamodule = data
        self.model = self._get(self.config_init, "model")
        self.trainer = self.instantiate_trainer()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with the run's callbacks and, unless others are configured, logs: CSV, and TensorBoard's."""
        trainer = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        trainer["default_root_dir"] = str(self.folder)
        is_fit, is_trial = self.verb == "fit", bool(trainer.get("fast_dev_run"))
        if not is_fit:
            trainer["enable_checkpointing"] = False  # Lightning's own callback would take over the state of ours
        if trainer.get("logger") is None:
            trainer["logger"] = self._logs() if is_fit and not is_trial else False
        self.report = Report(self.folder)
        callbacks: list[Callback] = [self.report]
        given = trainer.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        has_bar = any(isinstance(each, ProgressBar) for each in given)
        if trainer.get("enable_progress_bar") is not False and not has_bar:
            callbacks.append(TrainingBar())
        if self.verb == "predict":
            callbacks.append(PredictionFile(self.folder / "predictions.pt"))
        if is_fit:
            saves = trainer.get("enable_checkpointing") is not False and not is_trial
            callbacks = self._training_callbacks(callbacks, saves)
        check_distinct([*given, *callbacks])
        built = self._instantiate_trainer(trainer, callbacks)
        if type(built.strategy.checkpoint_io) is TorchCheckpointIO:  # none of the user's, or of a strategy's
            built.strategy.checkpoint_io = DurableCheckpointIO()
        return built

    def _logs(self) -> list[Logger]:
        logs: list[Logger] = [CSVLogger(self.folder, name="logs", flush_logs_every_n_steps=500)]
        if find_spec("tensorboard") is not None:  # an extra
            checkpoint = self.config[self.verb].ckpt_path
            logs.append(BoardLog(self.folder, 0 if checkpoint is None else trained_for(checkpoint)[1]))
        return logs

    def _training_callbacks(self, callbacks: list[Callback], saves: bool) -> list[Callback]:
        config, monitor = self.config[self.verb], self.model.monitor
        if config.ema is not None:
            callbacks = [WarmAveraging(config.ema), *callbacks]
        if config.early_stopping is not None:
            patience = config.early_stopping
            callbacks += [EarlyStopping(monitor, patience=patience, mode="max", check_on_train_epoch_end=False)]
        self.interruption = Interruption(self.folder / LAST if saves else None)
        callbacks += [
            Announcement(self.folder),
            ClusterStatistics(),
            KnownMonitors(),
            StopWhereNotFinite(self.folder),
            StepSeeds(),
            self.interruption,
        ]
        if saves:
            # NOTE: two callbacks: one with ``save_last`` writes the last only where it was the best.
            always: dict[str, Any] = {"enable_version_counter": False, "save_on_train_epoch_end": False}
            best = ModelCheckpoint(
                self.folder, Path(BEST).stem, monitor, mode="max", auto_insert_metric_name=False, **always
            )
            if not config.trainer.limit_val_batches and config.trainer.limit_val_batches is not None:
                always["save_on_train_epoch_end"] = True  # there is no round of held-out images to save after
            last = LastCheckpoint(self.folder, Path(LAST).stem, **always)
            callbacks += [best, last]
        return callbacks

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing yet: LightningCLI would run inside its constructor."""

    def after_instantiate_classes(self) -> None:
        """Check that the parts fit, before any data are read.

        Raises:
            ValueError: The data or the checkpoint do not fit the model.
            FileNotFoundError: No such checkpoint.
        """
        self.model.take_over(self.datamodule)
        shared = bool(self.config[self.verb].trainer.sync_batchnorm)
        if isinstance(self.trainer.precision_plugin, DoublePrecision | HalfPrecision):
            # NOTE: Lightning would convert it after weights were read from a checkpoint, and copied for averages
            self.trainer.precision_plugin.convert_module(self.model)
        check_processes(self.trainer, self.model.get_submodule("model"), self.verb, sync_batchnorm=shared)
        checkpoint = self.config[self.verb].ckpt_path
        if checkpoint is not None:
            check_checkpoint(self.model, checkpoint)
            check_same_classes(stored_class_names(checkpoint), self.model.class_names, checkpoint)
            if self.verb == "fit":
                self.resumed_step = check_budget(self.trainer, checkpoint, is_resumed=self.is_resumed)

    def run_verb(self) -> None:
        """Run what was asked for; after training, count the held-out images a last time, and write the report.

        Raises:
            SystemExit: A signal stopped training, see `castvision.training.callbacks.interruption` for its code.
        """
        trainer, report = self.trainer, self.report
        if self.verb == "fit" and trainer.loggers and trainer.is_global_zero:
            forget_after(self.folder, self.resumed_step)
        self._run_by_lightning()
        if self.verb != "fit" or trainer.interrupted or self._get(self.config, "trainer")["fast_dev_run"]:
            return
        if report.validated_step != trainer.global_step and trainer.limit_val_batches != 0:
            # training ended between two rounds of held-out images
            report.is_finishing = True
            trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
            if trainer.checkpoint_callback is not None:
                is_best = report.best_step == trainer.global_step
                for name in (LAST, BEST) if is_best else (LAST,):
                    trainer.save_checkpoint(self.folder / name)
        if trainer.is_global_zero:
            report.write(trainer, self.model)
            for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by the callback connector
                if isinstance(callback, WarmAveraging):
                    callback.tell(trainer, self.model)

    def _run_by_lightning(self) -> None:
        checkpoint = self.config[self.verb].ckpt_path
        try:
            super()._run_subcommand(self.verb)
        except SystemExit as end:
            if self.verb != "fit" or not self.trainer.interrupted:
                raise
            raise SystemExit(self.interruption.exit_code) from end
        except (AttributeError, LookupError, RuntimeError, TypeError) as error:
            if isinstance(error, RuntimeError) and is_lost_process(error):
                raise ConnectionError(LOST) from error
            if self.verb != "fit" or checkpoint is None or self.interruption.has_begun:
                raise
            raise CheckpointError(
                f"cannot go on from {checkpoint!r}: its state of training is malformed "
                f"({type(error).__name__}: {one_line(error, 200)}); start from its weights with --init-from"
            ) from error


def share_bands(config: Any) -> None:
    """A model of 2 or 4 channels says that an opacity channel of the images is one of them, unless the data say more.

    Args:
        config: Of a verb; changed in place.
    """
    in_chans = (config.model.get("init_args", {}).get("model_kwargs") or {}).get("in_chans")
    data = config.data.get("init_args", {})
    for holder in (data, data.get("pixels")):
        if alpha_for(in_chans) == "keep" and holder is not None and "in_chans" in holder:
            holder["in_chans"] = holder["in_chans"] or in_chans


def check_ranges(config: Any) -> None:
    """Refuse numbers that Lightning takes and that train nothing, or to nowhere.

    Args:
        config: Of a verb.

    Raises:
        ValueError: Naming the key, what it may be and what it is.
    """
    clip, interval = config.trainer.gradient_clip_val, config.trainer.val_check_interval
    batches, epochs = config.trainer.accumulate_grad_batches, config.trainer.check_val_every_n_epoch
    time = config.trainer.max_time
    limits = (
        (not isinstance(time, str) or time.strip("0:") != "", "a trainer.max_time above zero", time),
        (config.ema is None or 0 < config.ema < 1, "0 < ema < 1", config.ema),
        (config.early_stopping is None or config.early_stopping >= 1, "early_stopping >= 1", config.early_stopping),
        (clip is None or 0 <= clip < float("inf"), "a finite trainer.gradient_clip_val >= 0", clip),
        (batches >= 1, "trainer.accumulate_grad_batches >= 1", batches),
        (epochs is None or epochs >= 1, "trainer.check_val_every_n_epoch >= 1", epochs),
        (not isinstance(interval, int | float) or interval > 0, "trainer.val_check_interval > 0", interval),
    )
    for holds, wanted, got in limits:
        if not holds:
            raise ValueError(f"expected {wanted}, got {got}")


def check_distinct(callbacks: Sequence[Callback]) -> None:
    """Refuse callbacks whose states would stand under one name in a checkpoint.

    Raises:
        ValueError: It names their class.
    """
    keys = [each.state_key for each in callbacks if isinstance(each, EarlyStopping | ModelCheckpoint)]
    for each in callbacks:
        if keys.count(each.state_key) > 1:
            raise ValueError(
                f"expected one {type(each).__name__} for a metric and an interval, got {keys.count(each.state_key)}; "
                f"the run's own are for {BEST} and --early_stopping: give another monitor, mode or every_n_train_steps"
            )


def check_checkpoint(model: LightningModule, path: str) -> None:
    """Refuse a checkpoint that does not fit, in one line instead of a list of keys.

    Args:
        model: The task.
        path: A Lightning checkpoint.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Damaged, or of another architecture.
    """
    state = load_state_dict(path)  # names without "model."
    own = {name: value.shape for name, value in model.get_submodule("model").state_dict().items()}
    wrong = [name for name, shape in own.items() if name not in state or state[name].shape != shape]
    if wrong:
        raise ValueError(
            f"{path!r} is the checkpoint of another architecture: {len(wrong)} of {len(own)} weights do not fit, "
            f"such as {wrong[0]}; give the configuration it was made with ({CONFIG} beside it)"
        )


def check_budget(trainer: Trainer, path: str, *, is_resumed: bool) -> int:
    """Refuse to go on from a checkpoint that has trained as long as was asked for, or longer.

    Args:
        trainer: With max_epochs and max_steps.
        path: A Lightning checkpoint.
        is_resumed: Whether an unfinished run goes on, which may have stopped after its last epoch, before its report.

    Returns:
        Steps done.

    Raises:
        ValueError: Nothing would be trained; it names the epochs or steps done.
    """
    epochs, steps = trained_for(path)
    for name, wanted, done in (("max_epochs", trainer.max_epochs, epochs), ("max_steps", trainer.max_steps, steps)):
        if wanted in (None, -1) or wanted > done or (wanted == done and is_resumed):
            continue
        told = f"the {done} {name.removeprefix('max_')} that {path!r} has been trained for"
        raise ValueError(
            f"expected trainer.{name} of more than {told}, got {name}={wanted}: nothing would be trained; set a larger "
            f"{name}, or start a new run with --init-from"
        )
    return steps


def trained_for(path: str) -> tuple[int, int]:
    """Epochs and steps that are in a Lightning checkpoint.

    Raises:
        FileNotFoundError: No such file.
        CheckpointError: Damaged, or with something else in their places.
    """
    saved = checkpoint_file.read(path, is_mapped=True)
    try:
        batches = saved.get("loops", {}).get("fit_loop", {}).get("epoch_loop.batch_progress", {})
        epochs = int(saved.get("epoch", 0)) + bool(batches.get("is_last_batch"))
        steps = int(saved.get("global_step", 0))
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"cannot go on from {path!r}: its count of steps is malformed ({error}); start from its weights with "
            "--init-from"
        ) from error
    return epochs, steps


class SaveConfig(SaveConfigCallback):
    """``config.yaml`` in the run's folder; it can be run again, with another ``--run_dir``."""

    def __init__(self, parser: LightningArgumentParser, config: Any, **kwargs: Any) -> None:
        super().__init__(parser, config, save_to_log_dir=False, **{**kwargs, "overwrite": True})

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it, whole or not at all; for training only."""
        if stage != "fit":
            return
        config = self.config.clone()
        config.ckpt_path = None  # where a resumed part began is no part of the recipe
        folder = Path(config.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with draft(folder / CONFIG) as temporary:
            temporary.write_text(self.parser.dump(config, skip_none=False))


class PredictionFile(BasePredictionWriter):
    """All predictions as one tensor file.

    Args:
        path: For ``torch.load``; must be new.

    Raises:
        FileExistsError: The file exists.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(write_interval="epoch")
        if path.exists():
            raise FileExistsError(f"{str(path)!r} exists; move it away")
        self.path = path

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        """Write (images,) or (images, height, width) classes: uint8 up to 256 classes, int64 beyond.

        Of images of different sizes, a list of (height, width).
        """
        batches = [batch.cpu() for batch in predictions]
        if max(int(batch.max()) for batch in batches) < 256:
            batches = [batch.to(torch.uint8) for batch in batches]
        is_even = len({batch.shape[1:] for batch in batches}) == 1
        with draft(self.path) as temporary:
            torch.save(torch.cat(batches) if is_even else [each for batch in batches for each in batch], temporary)
