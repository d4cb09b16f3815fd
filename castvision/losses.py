"""Losses of dense prediction, and of features against features.

Dense prediction: logits (B, classes, height, width) against classes (B, height, width), 255 ignored. Each is a mean
that leaves ignored pixels out of its sum and of what it divides by, and is 0 with zero gradients where nothing is left.
Where no pixel is ignored, cross-entropy is torch's, the focal loss kornia's and Dice of each image kornia's. With
ignored pixels theirs are not these means: torch's cross-entropy of nothing is NaN, kornia's focal loss counts ignored
pixels in the mean, its Dice of nothing is 1, and it has no Dice of a whole batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from castvision.ignored import IGNORED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def unexplained_variance(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared difference of an image's tokens over their variance around their mean token.

    A cosine flatters, since tokens of one image share a large mean; this does not.

    Args:
        found: (B, N, C).
        wanted: (B, N, C).

    Returns:
        (B,) float32: 0 for the same, 1 for no better than the mean token.
    """
    found, wanted = found.float(), wanted.float()
    variance = (wanted - wanted.mean(1, keepdim=True)).square().sum((1, 2))
    return (found - wanted).square().sum((1, 2)) / variance.clamp(min=torch.finfo(torch.float32).tiny)


def cross_entropy(
    logits: Tensor, target: Tensor, *, weight: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy over the pixels that are not ignored.

    Args:
        logits: (B, classes, height, width).
        target: (B, height, width) int64.
        weight: Weight of each class, (classes,); the mean is over weights.
        label_smoothing: Share of the target spread over all classes.

    Returns:
        () loss.

    Raises:
        ValueError: A target of another form.
    """
    logits = _checked(logits, target)
    given = None if weight is None else weight.to(logits.dtype)
    total = functional.cross_entropy(
        logits, target, weight=given, ignore_index=IGNORED, label_smoothing=label_smoothing, reduction="sum"
    )
    return _safe_ratio(total, _pixel_weights(target, weight, logits).sum())


def focal_loss(logits: Tensor, target: Tensor, *, gamma: float = 2.0, weight: Tensor | None = None) -> Tensor:
    """Mean of (1 - p)^gamma · cross-entropy, p the probability of a pixel's class (arXiv 1708.02002).

    Args:
        logits: (B, classes, height, width).
        target: (B, height, width) int64.
        gamma: How much less a pixel counts that is right already; 0 gives cross-entropy.
        weight: Weight of each class, (classes,); the mean is over weights.

    Returns:
        () loss.

    Raises:
        ValueError: A negative ``gamma``, or a target of another form.
    """
    if gamma < 0:
        raise ValueError(f"expected gamma >= 0, got {gamma=}")
    logits = _checked(logits, target)
    surprise = functional.cross_entropy(logits, target, ignore_index=IGNORED, reduction="none")  # (B, height, width)
    # NOTE: the clamp keeps the slope of the power finite at p = 1, where the other factor is 0.
    doubt = (-torch.expm1(-surprise)).clamp(min=torch.finfo(surprise.dtype).tiny)
    weights = _pixel_weights(target, weight, logits)
    return _safe_ratio((weights * doubt**gamma * surprise).sum(), weights.sum())


def dice_loss(logits: Tensor, target: Tensor, *, per_image: bool = False, weight: Tensor | None = None) -> Tensor:
    """1 - Dice of the probabilities, mean over the classes that occur.

    Dice of a class is 2 · Σ p t / (Σ p + Σ t), p its probability and t whether a pixel belongs to it. A class without a
    pixel has no term of its own; probability wrongly given to it is missing from the others.

    Args:
        logits: (B, classes, height, width).
        target: (B, height, width) int64.
        per_image: Sum over the pixels of each image, not of the batch, and take the mean over images too.
        weight: Weight of each class in the mean, (classes,).

    Returns:
        () loss, in [0, 1].

    Raises:
        ValueError: A target of another form.
    """
    logits = _checked(logits, target)
    is_real = (target != IGNORED)[:, None]  # (B, 1, height, width)
    labels = target.long()[:, None].masked_fill(~is_real, 0)
    # scattered, which fails where a label is no class, as the other losses do
    truth = torch.zeros_like(logits).scatter(1, labels, 1.0) * is_real  # (B, classes, height, width)
    share = logits.softmax(dim=1) * is_real
    axes = (2, 3) if per_image else (0, 2, 3)
    overlap, area = (share * truth).sum(axes), truth.sum(axes)  # (B, classes) or (classes,)
    loss = 1 - 2 * overlap / (share.sum(axes) + area).clamp(min=torch.finfo(area.dtype).tiny)
    counts = (area > 0).to(logits.dtype)
    if weight is not None:
        counts = counts * weight
    return _safe_ratio((counts * loss).sum(), counts.sum())


def _checked(logits: Tensor, target: Tensor) -> Tensor:
    """Logits in fp32 or float64, since half precision cannot sum over an image; refused where a target does not fit.

    It would be stretched over the logits, or counted for no class, without a word.
    """
    if target.shape != (logits.shape[0], *logits.shape[2:]) or target.is_floating_point():
        raise ValueError(
            "expected logits (B, classes, height, width) and the number of a class for each pixel, (B, height, width), "
            f"got {tuple(logits.shape)} and {tuple(target.shape)} {target.dtype}"
        )
    return logits if logits.dtype == torch.float64 else logits.float()


def _pixel_weights(target: Tensor, weight: Tensor | None, logits: Tensor) -> Tensor:
    """(B, height, width): the weight of each pixel's class, 0 for ignored ones."""
    is_real = target != IGNORED
    if weight is None:
        return is_real.to(logits.dtype)
    return weight.to(logits.dtype)[target.masked_fill(~is_real, 0)] * is_real


def _safe_ratio(total: Tensor, count: Tensor) -> Tensor:
    """The mean, and 0 where there was nothing to count (the total is 0 as well)."""
    return total / torch.where(count > 0, count, 1)


LOSSES: dict[str, Callable[..., Tensor]] = {"ce": cross_entropy, "focal": focal_loss, "dice": dice_loss}
"""By the name a configuration gives them."""


class WeightedLosses(nn.Module):
    """A weighted sum of losses by name.

    Args:
        shares: Factor of each loss: ``{"ce": 1, "dice": 1}``. Names: ce, focal, dice.
        class_weights: Weight of each class in all of them; None = all 1.
        label_smoothing: Of the cross-entropy, while training.

    Raises:
        ValueError: No loss, an unknown one, a factor that is not positive, or smoothing where it cannot act.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        shares: Mapping[str, float],
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        unknown = sorted(set(shares) - set(LOSSES))
        if not shares or unknown or min(shares.values()) <= 0:
            raise ValueError(f"expected a factor > 0 for some of {sorted(LOSSES)}, got {dict(shares)}")
        if not 0 <= label_smoothing < 1 or (label_smoothing and "ce" not in shares):
            raise ValueError(
                f"expected 0 <= label_smoothing < 1, above 0 only with ce, got {label_smoothing=}, {shares=}"
            )
        self.shares = dict(shares)
        self.label_smoothing = label_smoothing
        self.register_buffer("class_weights", None if class_weights is None else torch.tensor(class_weights).float())

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The sum, () fp32, of logits (B, classes, height, width) and target (B, height, width) int64."""
        terms = []
        for name, share in self.shares.items():
            options = {"label_smoothing": self.label_smoothing} if name == "ce" and self.training else {}
            terms.append(share * LOSSES[name](logits.float(), target, weight=self.class_weights, **options))
        return torch.stack(terms).sum()


def losses_of(
    shares: Mapping[str, float] | None,
    class_weights: Sequence[float] | Literal["balanced"] | None,
    num_classes: int,
    label_smoothing: float = 0.0,
) -> WeightedLosses:
    """The losses that a segmentation task is configured with.

    Args:
        shares: See `WeightedLosses`; None = cross-entropy.
        class_weights: Weight of each class; "balanced" = all 1 until the data are known, see `balanced_class_weights`.
        num_classes: How many there are.
        label_smoothing: See `WeightedLosses`.

    Raises:
        ValueError: Another number of weights than classes, a negative one, or what `WeightedLosses` refuses.
    """
    weights = [1.0] * num_classes if class_weights == "balanced" else class_weights
    if weights is not None and (len(weights) != num_classes or min(weights) < 0):
        raise ValueError(f"expected one weight >= 0 for each class, got {class_weights=}, {num_classes=}")
    return WeightedLosses({"ce": 1.0} if shares is None else shares, weights, label_smoothing)


def balanced_class_weights(counts: Tensor) -> Tensor:
    """Weights that give all classes the same say: the inverse of their frequencies, 1 in the mean over pixels.

    Args:
        counts: Pixels of each class, (classes,). A class without any gets the weight of the rarest one seen.

    Returns:
        (classes,) fp32.

    Raises:
        ValueError: No pixel at all, or a negative count.
    """
    counts = counts.double()
    if counts.sum() <= 0 or counts.min() < 0:
        raise ValueError(f"expected counts >= 0 with some pixel in them, got {counts.tolist()}")
    seen = counts[counts > 0]
    weights = counts.sum() / (len(seen) * torch.where(counts > 0, counts, seen.min()))
    return weights.float()
