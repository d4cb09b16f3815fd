"""The task of slides: a class for each, from the embeddings of its tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor
from torch.nn import functional

from castvision.metrics import classification_metrics, image_table
from castvision.models.recipe import Recipe
from castvision.training.tasks.task import Task

if TYPE_CHECKING:
    from collections.abc import Sequence


class SlideTask(Task):
    """A class for each slide, by cross-entropy over bags of embeddings; see `SlideClassifier`.

    Args:
        num_classes: As many as the data have.
        model_name: "gated_attention", or "mean", its control.
        model_kwargs: For `SlideClassifier`: in_chans, as the embeddings have it, and width, hidden, dropout.
        label_smoothing: Share of the target spread over all classes, while training.
        **shared: Of every `Task`: optimizer, schedule, weight_decay, layer_decay, init_from and freeze.

    Raises:
        ValueError: Anything the model, the checkpoint or the task cannot work with.
        FileNotFoundError: No file at ``init_from``.
    """

    kind = "slides"
    monitor = "val/acc1"

    def __init__(
        self,
        model_name: Literal["gated_attention", "mean"] = "gated_attention",
        num_classes: int = 2,
        model_kwargs: dict[str, Any] | None = None,
        label_smoothing: float = 0.0,
        **shared: Any,
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"expected 0 <= label_smoothing < 1, got {label_smoothing=}")
        super().__init__(Recipe(self.kind, model_name, num_classes, model_kwargs=dict(model_kwargs or {})), **shared)
        self.label_smoothing = label_smoothing

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy; smoothed while training."""
        smoothing = self.label_smoothing if self.training else 0.0
        return functional.cross_entropy(logits.float(), target, label_smoothing=smoothing)

    def metrics(self, confusion: Tensor, class_names: Sequence[str]) -> dict[str, float]:
        """See `classification_metrics`."""
        return classification_metrics(confusion, class_names)

    def table(self, confusion: Tensor) -> list[dict[str, Any]]:
        """See `image_table`."""
        return image_table(confusion, self.class_names)
