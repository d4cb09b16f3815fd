"""The task of a converted model: to give the features that it gave with full attention, learned without labels."""

from __future__ import annotations

import copy
import logging
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric

from castvision.data.datasets.batch import as_batch
from castvision.losses import unexplained_variance
from castvision.models.checkpoint import digest, train_only
from castvision.models.checkpoint import freeze as freeze_parameters
from castvision.models.convert import convert, is_converted, revert
from castvision.models.evaluating import evaluating
from castvision.models.recipe import Recipe, with_attention
from castvision.training.tasks.task import Task

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger(__name__)

ATTENTION_AND_NORMS = ("blocks.*.attn", "blocks.*norm*")
"""What is trained by default, beside the last norm; a classifier's own norm and pooling are no part of the features."""
_MEASURES = ("unexplained", "cosine", "class_cosine")
_SAVED = "distillation"


class BlockFeatures(NamedTuple):
    """What a model makes of a batch.

    Attributes:
        blocks: Tokens after each block, prefix first, (B, P + N, C) each.
        final: Tokens after the last norm, (B, P + N, C).
    """

    blocks: list[Tensor]
    final: Tensor


class DistillationTask(Task):
    """Features of a converted ViT brought closer to those of the same weights with full attention.

    The teacher is a copy of the model as it starts (``pretrained``, ``checkpoint_path``, ``init_from``), with full
    attention; it stays as it is and is not in the checkpoint, which holds a plain set of weights for the same model.
    The loss is a sum of one minus the cosine of tokens, the mean over tokens and blocks, and of the variance of the
    final patch tokens that stays unexplained, see `castvision.losses.unexplained_variance`.

    Measured on held-out images: ``val/unexplained`` and ``val/cosine`` of the final patch tokens, ``val/class_cosine``
    of the final prefix tokens, all means over images; ``val/before_unexplained`` and so on, the same before training;
    ``val/explained``, one minus the unexplained.

    Args:
        model_name: A ViT of timm's that `castvision.convert` takes.
        attention: "near_far".
        model_kwargs: For ``timm.create_model``, and options of ``attention``.
        trained: Shell patterns of the parameters that are trained, see `castvision.models.checkpoint.train_only`; the
            others stay. None = attention and norms.
        block_weight: Factor of the cosines after blocks.
        final_weight: Factor of the unexplained variance at the end, whose gradient is about ten times as steep.
        **shared: Of every `Task`: optimizer, schedule, weight_decay, layer_decay, init_from and freeze.

    Raises:
        ValueError: A model that is not converted, weights below 0, or anything the model or the task cannot work with.
        FileNotFoundError: No file at ``init_from``.

    Attributes:
        trained: Names of the parameters that are trained.
        teacher: The model with full attention; no submodule, so that neither checkpoints nor optimisers see it.
        before: What was measured before the first step; empty until then.
    """

    kind = "features"
    monitor = "val/explained"

    def __init__(
        self,
        model_name: str,
        attention: str = "near_far",
        model_kwargs: dict[str, Any] | None = None,
        trained: list[str] | None = None,
        block_weight: float = 1.0,
        final_weight: float = 0.1,
        **shared: Any,
    ) -> None:
        if min(block_weight, final_weight) < 0 or block_weight + final_weight == 0:
            raise ValueError(f"expected weights >= 0, one above 0, got {block_weight=}, {final_weight=}")
        arguments = with_attention(model_kwargs, attention)
        frozen = shared.pop("freeze", None)
        super().__init__(Recipe(self.kind, model_name, 0, model_kwargs=arguments), **shared)
        if not is_converted(self.model) or arguments["attention"] == "full":
            raise ValueError(
                f"expected a ViT of timm's with attention='near_far', whose teacher is the same with full attention, "
                f"got {model_name} with attention={arguments['attention']!r}; name vit_… in place of cast_vit_…"
            )
        self._teacher = (make_teacher(self.model),)  # a tuple, which hides it from torch
        last = ["norm"] if list(self.model.get_submodule("norm").parameters()) else []
        self.trained = train_only(self.model, trained or [*ATTENTION_AND_NORMS, *last])
        if frozen:
            self.trained = sorted(set(self.trained) - set(freeze_parameters(self.model, frozen)))
        self.block_weight, self.final_weight = block_weight, final_weight
        self.before: dict[str, float] = {}
        self.sums = nn.ModuleDict(
            {stage: nn.ModuleDict({name: MeanMetric() for name in _MEASURES}) for stage in ("val", "test")}
        )

    @property
    def teacher(self) -> nn.Module:
        """See the class."""
        return self._teacher[0]

    @cached_property
    def teacher_digest(self) -> str:
        """A fingerprint of the teacher's weights."""
        return digest(self.teacher)

    @classmethod
    def from_recipe(cls, recipe: Recipe, **arguments: Any) -> Self:
        """Refused: a recipe does not say what weights the teacher has.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "expected the configuration of the run, since a checkpoint does not hold the teacher; to use the model, "
            "castvision.models.recipe.load, or give the checkpoint as init_from"
        )

    def on_train_start(self) -> None:
        """Measure the held-out images before the first step."""
        super().on_train_start()
        loaders = self.trainer.val_dataloaders
        if self.before or loaders is None:
            return
        (number,) = self.trainer.num_val_batches
        with evaluating(self.model), torch.no_grad(), self.trainer.precision_plugin.val_step_context():
            for batch in islice(loaders, None if number == float("inf") else int(number)):
                self.measure("val", move_data_to_device(batch, self.device))
        self.before = self._measured("val")

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """One step."""
        image = as_batch(batch, needs_target=False).image
        wanted, found = self._both(image)
        loss = self.distance(found, wanted)
        if self.trainer._logger_connector.should_update_logs:
            self.log("train/loss", loss.detach(), batch_size=image.shape[0], sync_dist=True)
            self.log("train/lr", max(group["lr"] for group in self.trainer.optimizers[0].param_groups))
        return loss

    def distance(self, found: BlockFeatures, wanted: BlockFeatures) -> Tensor:
        """The loss, ()."""
        prefix = int(getattr(self.backbone, "num_prefix_tokens", 0))
        angles = [
            1 - functional.cosine_similarity(ours.float(), theirs.float(), dim=-1).mean()
            for ours, theirs in zip(found.blocks, wanted.blocks, strict=True)
        ]
        final = unexplained_variance(found.final[:, prefix:], wanted.final[:, prefix:]).mean()
        return self.block_weight * torch.stack(angles).mean() + self.final_weight * final

    def _both(self, image: Tensor) -> tuple[BlockFeatures, BlockFeatures]:
        teacher = self.teacher.to(image.device)  # no submodule, so it does not follow the task, or a copy of it
        with torch.no_grad():
            wanted = features_of(teacher, image.to(next(teacher.parameters()).dtype))  # it stays in 32 bits
        return wanted, features_of(self.backbone, image)

    def measure(self, stage: str, batch: Sequence[Any]) -> tuple[Tensor, int]:
        """Add a batch of held-out images to the means of a stage; its mean loss and the number of images."""
        wanted, found = self._both(as_batch(batch, needs_target=False).image)
        prefix = int(getattr(self.backbone, "num_prefix_tokens", 0))
        cosine = functional.cosine_similarity(found.final.float(), wanted.final.float(), dim=-1)  # B, P + N
        sums: Any = self.sums[stage]
        sums["unexplained"].update(unexplained_variance(found.final[:, prefix:], wanted.final[:, prefix:]))
        sums["cosine"].update(cosine[:, prefix:].mean(1))
        if prefix:
            sums["class_cosine"].update(cosine[:, :prefix].mean(1))
        return self.distance(found, wanted), cosine.shape[0]

    def _measured(self, stage: str) -> dict[str, float]:
        sums: Any = self.sums[stage]
        values = {name: float(mean.compute()) for name, mean in sums.items() if mean.update_called}
        for mean in sums.values():
            mean.reset()
        return values

    def figures(self, stage: str) -> dict[str, float]:
        """Means over all images that `measure` counted for a stage, see the class; counting begins anew."""
        values = self._measured(stage)
        before = {f"before_{name}": value for name, value in self.before.items()}
        return {**values, "explained": 1 - values["unexplained"], **before}

    def on_fit_end(self) -> None:
        """Say so if held-out images are no closer than before."""
        after, before = self.trainer.callback_metrics.get("val/unexplained"), self.before.get("unexplained")
        if after is not None and before is not None and after >= before:
            logger.warning(
                "held-out images are no closer to full attention than before training, unexplained %.3f → %.3f; train "
                "on more images, or more like them, or with a smaller rate, or use the model as it was", before, after,
            )  # fmt: skip

    def predict_step(self, batch: Sequence[Any], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Refused: there are no classes.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "expected a task with classes to predict, got features; load the model by "
            "castvision.inference.predictor.load_model"
        )

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Refused, as `predict_step`; see `distance`."""
        raise ValueError("expected no logits and targets: distillation compares features")

    def metrics(self, confusion: Tensor, class_names: Sequence[str]) -> dict[str, float]:
        """None of classes."""
        return {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Beside what every task writes: what was measured before, and which teacher it was."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[_SAVED] = {"before": dict(self.before), "teacher": self.teacher_digest}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on with another teacher than the run began with.

        Raises:
            ValueError: The model started from other weights.
        """
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get(_SAVED, {})
        if saved.get("teacher") not in (None, self.teacher_digest):
            raise ValueError(
                "expected the weights that the run started from, since they are its teacher's, got others; give the "
                "same init_from, checkpoint_path, or pretrained weights"
            )
        self.before = dict(saved.get("before", {}))


def make_teacher(model: nn.Module) -> nn.Module:
    """A copy of a converted model with full attention, for images of any size, that does not learn."""
    teacher = convert(revert(copy.deepcopy(model)), attention="full")
    return teacher.eval().requires_grad_(False)


def features_of(model: Any, image: Tensor) -> BlockFeatures:
    """Features after all blocks.

    Args:
        model: A converted ViT.
        image: (B, in_chans, height, width).
    """
    has_prefix = bool(getattr(model, "num_prefix_tokens", 0))
    final, taps = model.forward_intermediates(image, return_prefix_tokens=has_prefix, output_fmt="NLC")
    return BlockFeatures([torch.cat(tap[::-1], 1) if has_prefix else tap for tap in taps], final)
