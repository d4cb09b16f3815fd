"""What every task shares: the loop's steps, metrics from a confusion matrix, the optimiser, the checkpoint's facts."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from torch import Tensor
from torch.optim import AdamW
from torchmetrics.classification import MulticlassConfusionMatrix

from castvision.checkpoint_facts import CHECKPOINT_KEY
from castvision.data.datasets.batch import Batch, as_batch
from castvision.ignored import IGNORED
from castvision.metrics import reset_metrics
from castvision.models.checkpoint import freeze as freeze_parameters
from castvision.models.checkpoint import initialize_from, keep_frozen_statistics, weights_beside
from castvision.models.class_names import (
    check_same_classes,
    class_names_in,
    classifier_of,
    reorder_classifier,
    stored_class_names,
)
from castvision.models.recipe import Recipe, TaskName, build, load
from castvision.models.segmenter import unwrap
from castvision.training.budget import share_used, take_up
from castvision.training.callbacks.averaging import go_on_without
from castvision.training.callbacks.monitors import watches_training
from castvision.training.data.data_module import ImageDataModule
from castvision.training.data.resumable import world
from castvision.training.optim import (
    BudgetSchedule,
    Schedule,
    apply_lr_scale,
    check_finite,
    check_goes_on,
    groups_of,
    is_fused,
)
from castvision.training.tasks.arguments import alpha_hint, check_kinds, check_optimizer, refuse_parts
from castvision.training.tasks.loaders import ForeignBatches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning.pytorch.utilities.types import OptimizerLRScheduler
    from torch import nn

logger = logging.getLogger(__name__)


class Task(LightningModule, ABC):
    """Template of a task: a subclass names its kind and its metrics and says how logits become a loss.

    Args:
        recipe: Of the model, whose logits are (B, num_classes) or (B, num_classes, height, width).
        optimizer: Makes the optimiser from parameter groups.
        schedule: The learning rate over the run.
        weight_decay: For matrices; vectors and what the model's ``no_weight_decay()`` names have none.
        layer_decay: Factor on the learning rate from one layer to the one below it, for weights that were trained
            before (``init_from``, or ``pretrained`` in the model's arguments); random ones all learn at the full rate,
            and so does a segmenter's head. 1 = all alike.
        init_from: A file of weights to start from, see `initialize_from`: a classifier fills a segmenter's backbone.
        freeze: Shell patterns of parameter names that stay as they are, such as ``backbone``; see `freeze`.

    Raises:
        ValueError: Anything the model, the checkpoint or the task cannot work with.
        FileNotFoundError: No file at ``init_from``.

    Attributes:
        kind: The recipe's task.
        monitor: The metric that chooses the best checkpoint; higher is better.
        class_names: From the data module, in order.
        init_report: What was used of ``init_from``, and what was left.
        last_confusion: Of the round counted last, (classes, classes); None before it, and for tasks without one.
    """

    kind: TaskName
    monitor: str
    last_confusion: Tensor | None = None

    def __init__(  # with the subclasses' constructors, the configuration
        self,
        recipe: Recipe,
        *,
        optimizer: OptimizerCallable = AdamW,
        schedule: Schedule = Schedule(),  # noqa: B008  # frozen
        weight_decay: float = 0.05,
        layer_decay: float = 1.0,
        init_from: str | None = None,
        freeze: list[str] | None = None,
    ) -> None:
        super().__init__()
        check_kinds(
            model_name=recipe.model_name, schedule=schedule, freeze=freeze, weight_decay=weight_decay,
            layer_decay=layer_decay,
        )  # fmt: skip
        check_optimizer(optimizer, weight_decay)
        self.recipe = recipe
        self.model = build(recipe)
        self.num_classes = recipe.num_classes
        self.make_optimizer = optimizer
        self.schedule = schedule
        self.weight_decay = weight_decay
        self.layer_decay = layer_decay
        self.class_names = [f"class {index}" for index in range(self.num_classes)]
        started = {} if init_from is None else classifier_of(self.model)
        self._fresh = {name: value.detach().clone() for name, value in started.items()}
        self.init_report = None if init_from is None else initialize_from(self.model, init_from)
        self._init_classes = self._classes_started_from(init_from)
        self._other_steps, self._is_watched = 0, False
        self._going_on_from: Any = None  # the optimisers' states of a checkpoint
        if freeze:
            freeze_parameters(self.model, freeze)
            self.train()
        ignored = IGNORED if self.kind == "segmentation" else None  # of images 255 is a class like any other
        self.confusions = torch.nn.ModuleDict(
            {stage: MulticlassConfusionMatrix(self.num_classes, ignore_index=ignored) for stage in ("val", "test")}
            if self.num_classes
            else {}
        )
        self._foreign = ForeignBatches(self.kind, self.num_classes)

    def _classes_started_from(self, path: str | None) -> list[str] | None:
        """The class names of the classifier that was taken from ``init_from``; None if it started anew."""
        if path is None or self.init_report is None or not set(self._fresh) <= set(self.init_report.used):
            return None
        names = stored_class_names(path)
        return names if names is not None and len(names) == self.num_classes else None

    @property
    def backbone(self) -> nn.Module:
        """The part with the blocks: the model itself unless it is a segmenter."""
        return unwrap(self.model)

    @property
    def starts_trained(self) -> bool:
        """Whether the backbone's weights come from an earlier training."""
        arguments = self.recipe.model_kwargs
        return self.init_report is not None or bool(arguments.get("pretrained") or arguments.get("checkpoint_path"))

    @classmethod
    def from_recipe(cls, recipe: Recipe, **arguments: Any) -> Self:
        """A task whose model is built by a recipe.

        Args:
            recipe: Of this kind of task.
            **arguments: For the constructor, beside what the recipe says.

        Raises:
            ValueError: A recipe of another kind, or an argument that it holds.
        """
        if recipe.task != cls.kind:
            raise ValueError(
                f"expected a checkpoint of a {cls.kind} model for {cls.__name__}, got one for {recipe.task}"
            )
        parts = {"model_name": recipe.model_name, "num_classes": recipe.num_classes, **cls._parts(recipe)}
        refuse_parts(arguments, parts)
        make: Any = cls  # subclasses build the recipe themselves, from a name and the number of classes
        task: Self = make(**parts, **arguments)
        task.recipe = replace(task.recipe, input=recipe.input, label_map=recipe.label_map)
        task.class_names = list(recipe.class_names) or task.class_names
        return task

    @classmethod
    def _parts(cls, recipe: Recipe) -> dict[str, Any]:
        """The constructor's arguments that stand in a recipe, beside name and classes."""
        return {"model_kwargs": {**recipe.model_kwargs, "pretrained": False}}

    @classmethod
    def load_from_checkpoint(  # Lightning's signature
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """A task with a checkpoint's model, weights and class names; no code in the file is run.

        Args:
            checkpoint_path: A checkpoint of a training run.
            map_location: The device it goes to; None = the CPU.
            hparams_file: Must be None: the checkpoint itself says how its model is built.
            strict: Not False: all weights must fit.
            weights_only: Not False: nothing else is ever read.
            **kwargs: For the constructor, such as the optimizer; losses and rates are not read from the checkpoint.

        Raises:
            FileNotFoundError: No such file.
            ValueError: Damaged, without the facts of its training, or of another task; or arguments as above.
        """
        if hparams_file is not None or strict is False or weights_only is False:
            raise ValueError(
                "expected a checkpoint that says how its model is built, read strictly and without running code, got "
                f"{hparams_file=}, {strict=}, {weights_only=}; leave them out"
            )
        recipe, model = load(checkpoint_path)
        task = cls.from_recipe(recipe, **kwargs)
        task.model.load_state_dict(model.state_dict())
        task.load_state_dict(weights_beside(checkpoint_path, task), strict=False)
        return task if map_location is None else task.to(map_location)

    @abstractmethod
    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The mean loss of a batch; ``target`` holds classes, or shares of classes where images were mixed."""

    def batch_loss(self, logits: Tensor, target: Tensor, truth: Mapping[str, Tensor]) -> Tensor:
        """The loss of a batch, where more is learned than the target says; ``truth``: see `Batch`."""
        return self.loss(logits, target)

    @abstractmethod
    def metrics(self, confusion: Tensor, class_names: Sequence[str]) -> dict[str, float]:
        """Metrics by name from a data set's confusion matrix (rows = truth)."""

    def other_metrics(self, stage: str) -> dict[str, float]:
        """Metrics of a stage ("val" or "test") that no confusion matrix holds; called once, when all is counted."""
        return {}

    def table(self, confusion: Tensor) -> list[dict[str, Any]]:
        """One row of metrics for each class, for the report; by default none."""
        return []

    def augment(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mix training images; by default they stay as they are."""
        return image, target

    def train(self, mode: bool = True) -> Self:
        """As torch; but what is frozen keeps its statistics of images, too, and uses them."""
        super().train(mode)
        keep_frozen_statistics(self.model)
        return self

    def take_over(self, data: ImageDataModule) -> None:
        """Take the class names over from the data, and refuse data that do not fit.

        A classifier started from a checkpoint whose classes have another order, or partly other names, is brought into
        the data's order, once.

        Raises:
            ValueError: Targets of another kind, or another number of classes or channels or another context than the
                model's.
        """
        if data.task_kind not in (None, self.kind):
            raise ValueError(f"expected a task for {data.task_kind} as the data are, got {type(self).__name__}")
        if len(data.class_names) != self.num_classes:
            raise ValueError(
                f"expected model.num_classes: {len(data.class_names)} for the classes "
                f"{', '.join(data.class_names[:8])}, got num_classes={self.num_classes}"
            )
        in_chans = getattr(self.backbone, "in_chans", None)
        if in_chans not in (None, data.in_chans):
            raise ValueError(
                f"expected a model for images of {data.in_chans} channel(s), got {in_chans=}; "
                f"set in_chans: {data.in_chans} in model_kwargs{alpha_hint(data.in_chans, in_chans)}"
            )
        context_size = getattr(self.model, "context_size", None)
        if context_size != data.context_size:
            raise ValueError(
                f"expected one context_size of model and data, got model.{context_size=}, data.context_size="
                f"{data.context_size}"
            )
        if context_size is not None and data.batch_augmentation is not None:
            raise ValueError("expected no batch_augmentation of data with context: the surroundings cannot follow it")
        self.class_names = list(data.class_names)
        if self._init_classes is not None:
            told = reorder_classifier(self.model, self._fresh, self._init_classes, self.class_names)
            self._init_classes, self._fresh = None, {}
            if told is not None:
                logger.warning("%s", told)

    @property
    def data(self) -> ImageDataModule | None:
        """The trainer's data module, if it is one of ours; others, and plain loaders, say nothing of their classes."""
        data = getattr(self.trainer, "datamodule", None)
        return data if isinstance(data, ImageDataModule) else None

    def setup(self, stage: str) -> None:
        """See `take_over`."""
        if self.data is not None:
            self.take_over(self.data)

    def on_train_start(self) -> None:
        """A run that goes on with another budget, rate or batch size follows the new schedule from its first step."""
        self._other_steps, self._is_watched = take_up(self.trainer), watches_training(self.trainer)
        for entry in self.trainer.lr_scheduler_configs:
            if isinstance(entry.scheduler, BudgetSchedule):
                entry.scheduler.refresh()

    def taken(self, batch: Any, stage: str) -> Batch:
        """A batch of our data, or of anyone else's, brought into form or refused; see `ForeignBatches`."""
        if self._trainer is None or type(self.data).__module__.startswith("castvision."):  # others may hold anything
            return as_batch(batch, needs_target=stage != "predict")
        return self._foreign.take(batch, stage, self.dtype)

    def on_train_epoch_end(self) -> None:
        """Refuse masks without a second class."""
        self._foreign.check_seen("train", self, self.class_names)

    def forward(self, image: Tensor, **extras: Tensor) -> Tensor:
        """Logits of images (B, in_chans, height, width); what the model is told beside them, see `Batch`."""
        logits: Tensor = self.model(image, **extras)
        return logits

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """One step; metrics are logged only where loggers take them or a callback watches them (each call costs)."""
        whole = self.taken(batch, "train")
        loss = self.training_loss(whole)
        if self.trainer._logger_connector.should_update_logs or self._is_watched:
            self.log("train/loss", loss.detach(), batch_size=whole.image.shape[0], sync_dist=True)
            self.log("train/lr", max(group["lr"] for group in self.trainer.optimizers[0].param_groups))
        return loss

    def training_loss(self, batch: Batch) -> Tensor:
        """The mean loss of a training batch, augmented."""
        image, target = self.augment(batch.image, batch.target)
        return self.batch_loss(self(image, **batch.extras), target, batch.truth)

    def validation_step(self, batch: Sequence[Any], batch_idx: int) -> None:
        """Count one batch of held-out images."""
        self._count("val", batch)

    def test_step(self, batch: Sequence[Any], batch_idx: int) -> None:
        """Count one batch of test images."""
        self._count("test", batch)

    def predict_step(self, batch: Sequence[Any], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """See `decide`."""
        image, _, extras, _ = self.taken(batch, "predict")
        return self.decide(self(image, **extras))

    def decide(self, logits: Tensor) -> Tensor:
        """The most probable class: (B,) or (B, height, width) int64."""
        return logits.argmax(dim=1)

    def _count(self, stage: str, batch: Sequence[Any]) -> None:
        loss, images = self.measure(stage, batch)
        weight = images * world()[0]  # Lightning rounds the mean weight of the processes down
        self.log(f"{stage}/loss", loss, on_step=False, on_epoch=True, batch_size=weight, sync_dist=True)

    def measure(self, stage: str, batch: Sequence[Any]) -> tuple[Tensor, int]:
        """Add a batch of held-out images to a stage's counts; its mean loss and the number of images."""
        image, target, extras, truth = self.taken(batch, stage)
        logits = self(image, **extras)
        self.count(stage, self.decide(logits), target, truth)
        return self.batch_loss(logits, target, truth), image.shape[0]

    def count(self, stage: str, prediction: Tensor, target: Tensor, truth: Mapping[str, Tensor]) -> None:
        """Add a batch of predicted classes to a stage's counts; ``truth``: see `Batch`."""
        metric: Any = self.confusions[stage]
        metric.update(prediction, target)

    def begin(self, stage: str) -> None:
        """Count a stage from nothing on: a round that was broken off leaves what it counted."""
        self._foreign.forget(stage)
        reset_metrics(self, stage)

    def on_validation_epoch_start(self) -> None:
        """See `begin`."""
        self.begin("val")

    def on_test_epoch_start(self) -> None:
        """See `begin`."""
        self.begin("test")

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of all held-out images."""
        self._summarise("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of all test images."""
        self._summarise("test")

    def _summarise(self, stage: str) -> None:
        self._foreign.check_seen(stage, self, self.class_names)
        by_name = {f"{stage}/{name}": value for name, value in self.figures(stage).items()}
        self.log_dict(by_name, sync_dist=True)

    def figures(self, stage: str) -> dict[str, float]:
        """Metrics of all that `measure` counted for a stage; counting begins anew."""
        metric: Any = self.confusions[stage]
        confusion = self.last_confusion = metric.compute().detach().cpu()
        metric.reset()
        return {**self.metrics(confusion, self.class_names), **self.other_metrics(stage)}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The injected optimiser on timm's groups, layer decay multiplied in, and the schedule of each step."""
        groups = groups_of(self, self.model, self.weight_decay, self.layer_decay)
        if self.layer_decay != 1 and not self.starts_trained:
            logger.info("layer_decay %s waits for trained weights: these start at random", self.layer_decay)
            for group in groups:  # the same groups as with it: a resumed run brings rates of its own
                group["lr_scale"] = 1.0
        optimizer = self.make_optimizer(groups)
        check_finite(optimizer)
        plugin = self.trainer.precision_plugin
        if getattr(plugin, "scaler", None) is not None and self.trainer.gradient_clip_val and is_fused(optimizer):
            raise ValueError(
                f"expected an optimizer that is not fused with trainer.precision {plugin.precision} and "
                "gradient_clip_val: it clips scaled gradients; set its fused: false, or take bf16-mixed"
            )
        apply_lr_scale(optimizer)
        check_goes_on(optimizer, self._going_on_from)
        scheduler = BudgetSchedule(optimizer, self.schedule, self.progress)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip as the trainer is told; under bf16-mixed too, where Lightning refuses an optimiser that is fused.

        It would be wrong with a scaler of gradients only, and bf16 has none.
        """
        plugin = self.trainer.precision_plugin
        if gradient_clip_val and isinstance(plugin, MixedPrecision) and plugin.scaler is None and is_fused(optimizer):
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision().clip_gradients(optimizer, gradient_clip_val, algorithm)  # it does not ask
            return
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def progress(self, steps: float) -> float:
        """Share of the run's budget used: of its steps, or of ``max_time`` if that runs out first."""
        return share_used(self.trainer, steps, self._other_steps)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse classes of other names, or in another order, than the data's; see also `go_on_without`."""
        check_same_classes(class_names_in(checkpoint), self.class_names, "the checkpoint")
        if self._trainer is not None:
            self._going_on_from = checkpoint.get("optimizer_states")
            go_on_without(checkpoint, self._trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to rebuild and feed the model without Lightning."""
        data = self.data
        facts = {**self.recipe.to_dict(), "class_names": self.class_names}
        if data is not None:
            facts = Recipe.from_dict({**facts, **data.description()}).to_dict()
        checkpoint[CHECKPOINT_KEY] = facts
