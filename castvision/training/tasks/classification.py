"""Tasks of whole images: one class for each, or none, one or several labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from timm.data import Mixup
from torch import Tensor
from torch.nn import functional

from castvision.metrics import MultiLabelScores, classification_metrics, image_table, multilabel_metrics
from castvision.models.recipe import Recipe, with_attention
from castvision.training.tasks.arguments import check_kinds, given_classes
from castvision.training.tasks.masks import TokenMasks
from castvision.training.tasks.task import Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castvision.data.datasets.batch import Batch

MASK_CLASSES = 3
"""Of `PathfinderDataset`'s "three-class" masks."""


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
        num_classes: As many as the data have; the command line may leave it out, and takes it from the data.
        model_kwargs: For ``timm.create_model``, and options of ``attention``.
        label_smoothing: Share of the target spread over all classes, while training.
        mixing: Mixup and cutmix.
        mask_weight: Weight of a second loss while training: a class for each pixel, predicted from the tokens by one
            linear layer that is no part of the model, for data that give masks (``gives_paths``); ViTs only. 0 = none.
        attention: "near_far" puts clustered attention into a pretrained ViT of timm's, "full" is its baseline, see
            `castvision.convert`; of models of ours their own. None = the model's own, or that in ``model_kwargs``.
        **shared: Of every `Task`: optimizer, schedule, weight_decay, layer_decay, init_from and freeze.

    Raises:
        ValueError: Anything the model, the checkpoint or the task cannot work with.
        FileNotFoundError: No file at ``init_from``.
    """

    kind = "classification"
    monitor = "val/acc1"

    def __init__(
        self,
        model_name: str,
        num_classes: int | None = None,
        model_kwargs: dict[str, Any] | None = None,
        label_smoothing: float = 0.0,
        mixing: Mixing = Mixing(),  # frozen
        mask_weight: float = 0.0,
        attention: str | None = None,
        **shared: Any,
    ) -> None:
        num_classes = given_classes(num_classes)
        check_kinds(model_kwargs=model_kwargs)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"expected 0 <= label_smoothing < 1, got {label_smoothing=}")
        arguments = with_attention(model_kwargs, attention)
        super().__init__(Recipe(self.kind, model_name, num_classes, model_kwargs=arguments), **shared)
        self.label_smoothing = label_smoothing
        self.mix: Mixup | None = None
        if mixing.mixup or mixing.cutmix:
            # NOTE: mixing smooths the labels itself, so the loss must not do it a second time.
            self.mix = Mixup(mixing.mixup, mixing.cutmix, prob=mixing.prob, label_smoothing=label_smoothing,
                             num_classes=num_classes)  # fmt: skip
        if mask_weight < 0 or (mask_weight and self.mix is not None):
            raise ValueError(f"expected mask_weight >= 0, and 0 where images are mixed, got {mask_weight=}, {mixing}")
        self.mask_weight = mask_weight
        self.mask_head = TokenMasks(self.backbone, MASK_CLASSES) if mask_weight else None

    def training_loss(self, batch: Batch) -> Tensor:
        """Of the labels, and where they are asked for, of the masks.

        Raises:
            ValueError: Masks are asked for, and the data give none.
        """
        if self.mask_head is None:
            return super().training_loss(batch)
        if "paths" not in batch.truth:
            raise ValueError("expected data that give masks with mask_weight > 0; set data.gives_paths: true")
        model: Any = self.model
        features = model.forward_features(batch.image)
        masks: Tensor = self.mask_head(features, batch.image.shape[-2:])
        auxiliary = functional.cross_entropy(masks.float(), batch.truth["paths"])
        return self.loss(model.forward_head(features), batch.target) + self.mask_weight * auxiliary

    def augment(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mix pairs; an odd last batch is left as it is (timm mixes even ones only).

        Raises:
            ValueError: Shares of classes, which are mixed already.
        """
        if self.mix is None or image.shape[0] % 2:
            return image, target
        if target.ndim > 1:
            raise ValueError(
                f"expected class numbers of images that are to be mixed, got shares {tuple(target.shape)}; "
                "leave mixing out"
            )
        mixed: tuple[Tensor, Tensor] = self.mix(image.clone(), target)  # timm's cutmix writes into its input
        return mixed

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy; smoothed while training, unless mixing did it."""
        smoothing = self.label_smoothing if self.training and target.ndim == 1 else 0.0
        return functional.cross_entropy(logits.float(), target, label_smoothing=smoothing)

    def metrics(self, confusion: Tensor, class_names: Sequence[str]) -> dict[str, float]:
        """See `classification_metrics`."""
        return classification_metrics(confusion, class_names)

    def table(self, confusion: Tensor) -> list[dict[str, Any]]:
        """See `image_table`."""
        return image_table(confusion, self.class_names)


class MultiLabelTask(Task):
    """None, one or several classes for each image, by binary cross-entropy; any timm model.

    Args:
        model_name: A registered timm model.
        num_classes: As many as the data have; the command line may leave it out, and takes it from the data.
        model_kwargs: For ``timm.create_model``, and options of ``attention``.
        pos_weight: Weight of each class's positive images in the loss; None = all 1.
        attention: "near_far" puts clustered attention into a pretrained ViT of timm's, "full" is its baseline, see
            `castvision.convert`; of models of ours their own. None = the model's own, or that in ``model_kwargs``.
        **shared: Of every `Task`: optimizer, schedule, weight_decay, layer_decay, init_from and freeze.

    Raises:
        ValueError: Anything the model, the checkpoint or the task cannot work with.
        FileNotFoundError: No file at ``init_from``.
    """

    kind = "multilabel"
    monitor = "val/map"

    def __init__(
        self,
        model_name: str,
        num_classes: int | None = None,
        model_kwargs: dict[str, Any] | None = None,
        pos_weight: list[float] | None = None,
        attention: str | None = None,
        **shared: Any,
    ) -> None:
        num_classes = given_classes(num_classes)
        check_kinds(model_kwargs=model_kwargs)
        if pos_weight is not None and (len(pos_weight) != num_classes or min(pos_weight) <= 0):
            raise ValueError(f"expected one weight > 0 for each class, got {pos_weight=}, {num_classes=}")
        arguments = with_attention(model_kwargs, attention)
        super().__init__(Recipe(self.kind, model_name, num_classes, model_kwargs=arguments), **shared)
        self.pos_weight: Tensor | None
        weights = None if pos_weight is None else torch.tensor(pos_weight)
        self.register_buffer("pos_weight", weights, persistent=False)
        self.scores = torch.nn.ModuleDict({stage: MultiLabelScores(num_classes) for stage in ("val", "test")})

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropy, the mean over images and classes."""
        return functional.binary_cross_entropy_with_logits(logits.float(), target, pos_weight=self.pos_weight)

    def decide(self, logits: Tensor) -> Tensor:
        """Zeros and ones (B, num_classes) int64: probability above one half."""
        return (logits > 0).long()

    def metrics(self, confusion: Tensor, class_names: Sequence[str]) -> dict[str, float]:
        """Average precision and F1 (at one half), mean over classes and each class's.

        Args:
            confusion: (2, classes): average precision, F1; NaN where a class never occurs.
            class_names: One for each class.

        Returns:
            ``map``, ``f1``, ``ap_NAME`` and ``f1_NAME``, 0..1.
        """
        return multilabel_metrics(confusion, class_names)

    def measure(self, stage: str, batch: Sequence[Any]) -> tuple[Tensor, int]:
        """Add a batch of held-out images to a stage's scores; its mean loss and the number of images."""
        image, target, extras, _ = self.taken(batch, stage)
        logits = self(image, **extras)
        scores: Any = self.scores[stage]
        scores.update(logits.float().sigmoid(), target.long())
        return self.loss(logits, target), image.shape[0]

    def figures(self, stage: str) -> dict[str, float]:
        """See `metrics`; counting begins anew."""
        scores: Any = self.scores[stage]
        by_name = self.metrics(scores.compute(), self.class_names)
        scores.reset()
        return by_name
