"""The task of pixels: a class for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from castvision.losses import balanced_class_weights, losses_of
from castvision.metrics import (
    DISTANCE_EDGES,
    BoundaryF1,
    DistanceIoU,
    distance_metrics,
    named_metrics,
    pixel_table,
    segmentation_metrics,
)
from castvision.models.recipe import Recipe, with_attention
from castvision.training.data.data_module import count_classes
from castvision.training.tasks.arguments import check_kinds, given_classes, given_size
from castvision.training.tasks.task import Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_WEIGHTS = "losses.class_weights"
"""Where a checkpoint has the weights of classes."""


class SegmentationTask(Task):
    """A class for each pixel; pixels labelled 255 count nowhere; any timm backbone.

    Two classes get two logits like any other number: the difference of the two is the one logit of a binary loss (the
    loss is the same function of it), and heads, metrics and predictors need no second case.

    Args:
        model_name: A registered timm model with feature maps.
        num_classes: As many as the data have; the command line may leave it out, and takes it from the data.
        model_kwargs: For ``timm.create_model``, and options of ``attention``.
        head: A class of `castvision.heads`.
        head_kwargs: For the head.
        out_indices: Which of the backbone's feature maps the head sees; None = the last, or a hierarchy's last four.
        context_size: (height, width) at which the model is shown the whole image beside each window, as the data give
            it for the same ``context_size``; models of ours only, see `ContextSegmenter`. None = windows alone.
        loss: Factors of a sum of losses, such as ``{ce: 1, dice: 1}``; names: ce, dice, focal. None = cross-entropy.
        class_weights: Weight of each class in the losses; "balanced" = the inverse of its frequency in a sample of the
            training images; None = all 1.
        label_smoothing: Share of the target spread over all classes in the cross-entropy, while training.
        boundary_tolerance: If given, also measure how well contours agree within so many pixels; see `BoundaryF1`.
        attention: "near_far" puts clustered attention into a pretrained ViT of timm's, "full" is its baseline, see
            `castvision.convert`; of models of ours their own. None = the model's own, or that in ``model_kwargs``.
        **shared: Of every `Task`: optimizer, schedule, weight_decay, layer_decay, init_from and freeze.

    Raises:
        ValueError: Anything the model, the checkpoint or the task cannot work with.
        FileNotFoundError: No file at ``init_from``.
    """

    kind = "segmentation"
    monitor = "val/miou"
    gives_centres = False

    def __init__(  # the signature is the configuration
        self,
        model_name: str,
        num_classes: int | None = None,
        model_kwargs: dict[str, Any] | None = None,
        head: str = "UpsamplingHead",
        head_kwargs: dict[str, Any] | None = None,
        out_indices: list[int] | None = None,
        context_size: tuple[int, int] | None = None,
        loss: dict[str, float] | None = None,
        class_weights: list[float] | Literal["balanced"] | None = None,
        label_smoothing: float = 0.0,
        boundary_tolerance: int | None = None,
        attention: str | None = None,
        **shared: Any,
    ) -> None:
        num_classes = given_classes(num_classes)
        check_kinds(model_kwargs=model_kwargs, head=head, head_kwargs=head_kwargs, out_indices=out_indices, loss=loss)
        losses = losses_of(loss, class_weights, num_classes, label_smoothing)
        recipe = Recipe(
            self.kind, model_name, num_classes, model_kwargs=with_attention(model_kwargs, attention), head=head,
            head_kwargs=dict(head_kwargs or {}), out_indices=None if out_indices is None else tuple(out_indices),
            context_size=given_size(context_size), centres=self.gives_centres,
        )  # fmt: skip
        super().__init__(recipe, **shared)
        self.losses = losses
        self.balances_classes = class_weights == "balanced"
        self.boundaries = nn.ModuleDict()
        if boundary_tolerance is not None:
            self.boundaries.update({stage: BoundaryF1(num_classes, boundary_tolerance) for stage in ("val", "test")})
        by_distance = {stage: DistanceIoU(DISTANCE_EDGES, foreground=num_classes - 1) for stage in ("val", "test")}
        self.by_distance = nn.ModuleDict(by_distance)

    @classmethod
    def _parts(cls, recipe: Recipe) -> dict[str, Any]:
        if recipe.centres != cls.gives_centres:
            wanted, found = ("with", "without") if cls.gives_centres else ("without", "with")
            raise ValueError(
                f"expected a checkpoint of a model {wanted} centres of objects for {cls.__name__}, got one {found} "
                f"them; load it by {'SegmentationTask' if cls.gives_centres else 'InstanceTask'}"
            )
        head = {"head": recipe.head, "head_kwargs": dict(recipe.head_kwargs), "context_size": recipe.context_size}
        out_indices = None if recipe.out_indices is None else list(recipe.out_indices)
        return {**super()._parts(recipe), **head, "out_indices": out_indices}

    def setup(self, stage: str) -> None:
        """Take the class names over from the data; before training, weigh classes by how often they occur there.

        Raises:
            ValueError: See `take_over`; or balanced classes of loaders that are not ours.
        """
        super().setup(stage)
        data = self.data
        if self.balances_classes and stage == "fit":
            if data is None:
                raise ValueError(
                    "expected a data module of ours for class_weights='balanced', which looks at its training masks, "
                    "got other loaders; give a number for each class, see castvision.losses.balanced_class_weights"
                )
            weights = balanced_class_weights(count_classes(data.dataset("train"), self.num_classes))
            self.losses.class_weights = weights.to(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `Task`; training that goes on weighs classes as it is configured, not as the checkpoint does."""
        super().on_load_checkpoint(checkpoint)
        own = self.losses.class_weights
        is_known = not self.balances_classes or (self._trainer is not None and self.trainer.state.fn == "fit")
        for state in (checkpoint.get(name) or {} for name in ("state_dict", "current_model_state")):
            if own is None:
                state.pop(_WEIGHTS, None)
            elif is_known or _WEIGHTS not in state:
                state[_WEIGHTS] = own.clone()

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

    def other_metrics(self, stage: str) -> dict[str, float]:
        """Contours and distances, as far as they were counted; all 0..1.

        Returns:
            ``boundary_f1``, the mean over classes that have a contour, and ``boundary_f1_NAME``;
            ``distance_iou_LOW_to_HIGH`` of the last class between two distances from the dot, in image sides.
        """
        by_name = {}
        if self.boundaries:
            values = _finish(self.boundaries[stage])
            by_name["boundary_f1"] = float(values.nanmean())
            by_name |= named_metrics("boundary_f1", values, self.class_names)
        by_distance: Any = self.by_distance[stage]
        if by_distance.update_called:
            by_name |= distance_metrics(_finish(by_distance))
        return by_name

    def metrics(self, confusion: Tensor, class_names: Sequence[str]) -> dict[str, float]:
        """See `segmentation_metrics`."""
        return segmentation_metrics(confusion, class_names)

    def table(self, confusion: Tensor) -> list[dict[str, Any]]:
        """See `pixel_table`."""
        return pixel_table(confusion, self.class_names)


def _finish(metric: Any) -> Tensor:
    """A metric's values, once; it begins anew."""
    values: Tensor = metric.compute().cpu()
    metric.reset()
    return values
