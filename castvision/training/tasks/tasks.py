"""The two tasks: a class for each image, a class for each pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch.cli import OptimizerCallable
from timm.data import Mixup
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW

from castvision.losses import WeightedLosses, balanced_class_weights
from castvision.metrics import (
    DISTANCE_EDGES,
    BoundaryF1,
    DistanceIoU,
    class_table,
    classification_metrics,
    distance_metrics,
    named_metrics,
    segmentation_metrics,
)
from castvision.training.building import build_classifier, build_segmenter
from castvision.training.data.data_module import count_classes
from castvision.training.optim import Schedule
from castvision.training.tasks.task import Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class Mixing:
    """Mixing pairs of training images; timm's mixup and cutmix.

    Args:
        mixup: Alpha of mixup; 0 = off.
        cutmix: Alpha of cutmix; 0 = off.
        prob: Share of batches that are mixed.

    Raises:
        ValueError: A negative alpha or a probability outside [0, 1].
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    prob: float = 1.0

    def __post_init__(self) -> None:
        if min(self.mixup, self.cutmix) < 0 or not 0 <= self.prob <= 1:
            raise ValueError(f"expected alphas >= 0 and 0 <= prob <= 1, got {self}")


class ClassificationTask(Task):
    """A class for each image, by cross-entropy; any timm model.

    Args:
        model_name: A registered timm model.
        num_classes: As many as the data have.
        model_kwargs: For ``timm.create_model``.
        optimizer: Makes the optimiser from parameter groups.
        schedule: The learning rate over the run.
        weight_decay: For matrices; vectors and what the model's ``no_weight_decay()`` names have none.
        layer_decay: Factor on the learning rate from one layer to the one below it; 1 = all alike.
        label_smoothing: Share of the target spread over all classes, while training.
        mixing: Mixup and cutmix.
        init_from: A file of weights to start from.
        freeze: Shell patterns of parameter names that stay as they are.

    Raises:
        ValueError: Anything the model, the checkpoint or the task cannot work with.
        FileNotFoundError: No file at ``init_from``.
    """

    kind = "classification"
    monitor = "val/acc1"

    def __init__(  # the signature is the configuration
        self,
        model_name: str,
        num_classes: int,
        model_kwargs: dict[str, Any] | None = None,
        optimizer: OptimizerCallable = AdamW,
        schedule: Schedule = Schedule(),  # noqa: B008  # frozen
        weight_decay: float = 0.05,
        layer_decay: float = 1.0,
        label_smoothing: float = 0.0,
        mixing: Mixing = Mixing(),  # frozen
        init_from: str | None = None,
        freeze: list[str] | None = None,
    ) -> None:
        _check_smoothing(label_smoothing)
        model = build_classifier(model_name, num_classes, model_kwargs)
        super().__init__(
            model,
            num_classes,
            optimizer=optimizer,
            schedule=schedule,
            weight_decay=weight_decay,
            layer_decay=layer_decay,
        )
        self._recipe = {"model_name": model_name, "model_kwargs": dict(model_kwargs or {})}
        self.label_smoothing = label_smoothing
        self.mix: Mixup | None = None
        if mixing.mixup or mixing.cutmix:
            # NOTE: mixing smooths the labels itself, so the loss must not do it a second time.
            self.mix = Mixup(mixing.mixup, mixing.cutmix, prob=mixing.prob, label_smoothing=label_smoothing,
                             num_classes=num_classes)  # fmt: skip
        self.start_from(init_from, freeze)

    def augment(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mix pairs; an odd last batch is left as it is (timm mixes even ones only)."""
        if self.mix is None or image.shape[0] % 2:
            return image, target
        mixed: tuple[Tensor, Tensor] = self.mix(image.clone(), target)  # timm's cutmix writes into its input
        return mixed

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy; smoothed while training, unless mixing did it."""
        smoothing = self.label_smoothing if self.training and target.ndim == 1 else 0.0
        return functional.cross_entropy(logits.float(), target, label_smoothing=smoothing)

    def figures(self, confusion: Tensor, class_names: Sequence[str]) -> dict[str, float]:
        """See `classification_metrics`."""
        return classification_metrics(confusion, class_names)

    def table(self, confusion: Tensor) -> list[dict[str, Any]]:
        """See `class_table`."""
        return class_table(confusion, self.class_names)

    def recipe(self) -> dict[str, Any]:
        """Names and arguments the model was built from."""
        return {**self._recipe, "head": None, "head_kwargs": {}, "out_indices": None}


class SegmentationTask(Task):
    """A class for each pixel; pixels labelled 255 count nowhere; any timm backbone.

    Two classes get two logits like any other number: the difference of the two is the one logit of a binary loss (the
    loss is the same function of it), and heads, figures and predictors need no second case.

    Args:
        model_name: A registered timm model with feature maps.
        num_classes: As many as the data have.
        model_kwargs: For ``timm.create_model``.
        head: A class of `castvision.heads`.
        head_kwargs: For the head.
        out_indices: Which of the backbone's feature maps the head sees; None = the last, or a hierarchy's last four.
        context_size: (height, width) at which the model is shown the whole image beside each window, as the data give
            it for the same ``context_size``; models of ours only, see `ContextSegmenter`. None = windows alone.
        optimizer: Makes the optimiser from parameter groups.
        schedule: The learning rate over the run.
        weight_decay: For matrices; vectors and what the model's ``no_weight_decay()`` names have none.
        layer_decay: Factor on the learning rate from one layer to the one below it; the head keeps the full rate.
        loss: Factors of a sum of losses, such as ``{ce: 1, dice: 1}``; names: ce, dice, focal. None = cross-entropy.
        class_weights: Weight of each class in the losses; "balanced" = the inverse of its frequency in a sample of the
            training images; None = all 1.
        label_smoothing: Share of the target spread over all classes in the cross-entropy, while training.
        boundary_tolerance: Also measure how well contours agree up to so many pixels, see `BoundaryF1`; None = not.
        init_from: A file of weights to start from: of a segmenter, or of a classifier for the backbone.
        freeze: Shell patterns of parameter names that stay as they are, such as ``backbone``.

    Raises:
        ValueError: Anything the model, the checkpoint or the task cannot work with.
        FileNotFoundError: No file at ``init_from``.
    """

    kind = "segmentation"
    monitor = "val/miou"

    def __init__(  # the signature is the configuration
        self,
        model_name: str,
        num_classes: int,
        model_kwargs: dict[str, Any] | None = None,
        head: str = "UpsamplingHead",
        head_kwargs: dict[str, Any] | None = None,
        out_indices: list[int] | None = None,
        context_size: tuple[int, int] | None = None,
        optimizer: OptimizerCallable = AdamW,
        schedule: Schedule = Schedule(),  # noqa: B008  # frozen
        weight_decay: float = 0.05,
        layer_decay: float = 1.0,
        loss: dict[str, float] | None = None,
        class_weights: list[float] | Literal["balanced"] | None = None,
        label_smoothing: float = 0.0,
        boundary_tolerance: int | None = None,
        init_from: str | None = None,
        freeze: list[str] | None = None,
    ) -> None:
        is_balanced = class_weights == "balanced"
        weights = [1.0] * num_classes if class_weights == "balanced" else class_weights
        if weights is not None and (len(weights) != num_classes or min(weights) < 0):
            raise ValueError(f"expected one weight >= 0 for each class, got {class_weights=}, {num_classes=}")
        losses = WeightedLosses(loss or {"ce": 1.0}, weights, label_smoothing)
        parts: dict[str, Any] = {"head": head, "head_kwargs": dict(head_kwargs or {}), "out_indices": out_indices}
        parts["context_size"] = context_size and list(context_size)
        model = build_segmenter(model_name, num_classes, model_kwargs, **parts)
        super().__init__(
            model,
            num_classes,
            optimizer=optimizer,
            schedule=schedule,
            weight_decay=weight_decay,
            layer_decay=layer_decay,
        )
        self._recipe = {"model_name": model_name, "model_kwargs": dict(model_kwargs or {}), **parts}
        self.losses = losses
        self.balances_classes = is_balanced
        self.boundaries = nn.ModuleDict()
        if boundary_tolerance is not None:
            self.boundaries.update({stage: BoundaryF1(num_classes, boundary_tolerance) for stage in ("val", "test")})
        by_distance = {stage: DistanceIoU(DISTANCE_EDGES, foreground=num_classes - 1) for stage in ("val", "test")}
        self.by_distance = nn.ModuleDict(by_distance)
        self.start_from(init_from, freeze)

    @property
    def backbone(self) -> nn.Module:
        """What the head stands on, without timm's feature wrapper."""
        backbone: nn.Module = self.model.get_submodule("backbone")
        return getattr(backbone, "model", backbone)

    def setup(self, stage: str) -> None:
        """Take the class names over from the data; before training, weigh classes by how often they occur there."""
        super().setup(stage)
        data: Any = getattr(self.trainer, "datamodule", None)
        if self.balances_classes and stage == "fit" and data is not None:
            weights = balanced_class_weights(count_classes(data.dataset("train"), self.num_classes))
            self.losses.class_weights = weights.to(self.device)  # a resumed run's checkpoint has the last word

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The configured sum of losses over all pixels of the batch that are not ignored."""
        total: Tensor = self.losses(logits, target)
        return total

    def count(self, stage: str, prediction: Tensor, target: Tensor, truth: Mapping[str, Tensor]) -> None:
        """Add a batch of predicted classes: to the confusion matrix, contours (if asked for), distances (if known)."""
        super().count(stage, prediction, target, truth)
        if self.boundaries:
            contours: Any = self.boundaries[stage]
            contours.update(prediction, target)
        if "distance" in truth:
            by_distance: Any = self.by_distance[stage]
            by_distance.update(prediction, target, truth["distance"])

    def other_figures(self, stage: str) -> dict[str, float]:
        """Contours and distances, as far as they were counted; all 0..1.

        Returns:
            ``boundary_f1``, the mean over classes that have a contour, and ``boundary_f1_NAME``;
            ``distance_iou_LOW_to_HIGH`` of the last class between two distances from the dot, in image sides.
        """
        figures = {}
        if self.boundaries:
            values = _finish(self.boundaries[stage])
            figures["boundary_f1"] = float(values.nanmean())
            figures |= named_metrics("boundary_f1", values, self.class_names)
        by_distance: Any = self.by_distance[stage]
        if by_distance.update_called:
            figures |= distance_metrics(_finish(by_distance))
        return figures

    def figures(self, confusion: Tensor, class_names: Sequence[str]) -> dict[str, float]:
        """See `segmentation_metrics`."""
        return segmentation_metrics(confusion, class_names)

    def table(self, confusion: Tensor) -> list[dict[str, Any]]:
        """See `class_table`."""
        return class_table(confusion, self.class_names)

    def recipe(self) -> dict[str, Any]:
        """Names and arguments the model was built from."""
        return dict(self._recipe)


def _finish(metric: Any) -> Tensor:
    """A metric's values, once; it begins anew."""
    values: Tensor = metric.compute().cpu()
    metric.reset()
    return values


def _check_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"expected 0 <= label_smoothing < 1, got {label_smoothing=}")
