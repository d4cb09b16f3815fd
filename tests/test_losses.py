"""Losses against values by hand, torch, torchvision and kornia; what is ignored counts nowhere."""

from __future__ import annotations

import math

import kornia
import pytest
import torch
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from castvision.losses import (
    LOSSES,
    WeightedLosses,
    balanced_class_weights,
    cross_entropy,
    dice_loss,
    focal_loss,
)

NAMES = sorted(LOSSES)


def _batch(classes=3, dtype=torch.float32):
    torch.manual_seed(0)
    logits = torch.randn(2, classes, 5, 4, dtype=dtype)
    return logits, torch.randint(classes, (2, 5, 4))


def test_values_by_hand():
    # two pixels with probabilities (3/4, 1/4) and (1/2, 1/2), classes 0 and 1, and one that is ignored
    logits = torch.tensor([[[[3.0, 1.0, 9.0]], [[1.0, 1.0, 1.0]]]]).log()
    target = torch.tensor([[[0, 1, 255]]])
    assert cross_entropy(logits, target).item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    weight = torch.tensor([1.0, 3.0])
    expected = (math.log(4 / 3) + 3 * math.log(2)) / 4
    assert cross_entropy(logits, target, weight=weight).item() == pytest.approx(expected)
    expected = (math.log(4 / 3) / 16 + math.log(2) / 4) / 2
    assert focal_loss(logits, target).item() == pytest.approx(expected)
    first, second = 2 * 0.75 / (0.75 + 0.5 + 1), 2 * 0.5 / (0.25 + 0.5 + 1)
    assert dice_loss(logits, target).item() == pytest.approx(1 - (first + second) / 2)
    assert dice_loss(logits, target, weight=weight).item() == pytest.approx(1 - (first + 3 * second) / 4)


def test_dice_of_the_batch_and_of_each_image():
    # image 1 all class 0 and right, image 2 all class 1 and wrong
    logits = torch.tensor([[30.0, 0.0], [30.0, 0.0]])[:, :, None, None].expand(2, 2, 2, 2)
    target = torch.tensor([0, 1])[:, None, None].expand(2, 2, 2)
    assert dice_loss(logits, target).item() == pytest.approx(1 - (2 * 4 / (8 + 4) + 0) / 2)
    assert dice_loss(logits, target, per_image=True).item() == pytest.approx(1 - (1 + 0) / 2)


def test_cross_entropy_is_torchs():
    logits, target = _batch()
    target[0, 0, 0] = 255
    weight = torch.tensor([0.5, 1.0, 2.0])
    for options in ({}, {"weight": weight}, {"label_smoothing": 0.1}, {"weight": weight, "label_smoothing": 0.1}):
        torch.testing.assert_close(
            cross_entropy(logits, target, **options),
            functional.cross_entropy(logits, target, ignore_index=255, **options),
        )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_is_kornias_and_torchvisions(gamma):
    logits, target = _batch()
    theirs = kornia.losses.focal_loss(logits, target, alpha=None, gamma=gamma, reduction="sum") / target.numel()
    torch.testing.assert_close(focal_loss(logits, target, gamma=gamma), theirs)
    two, target = _batch(classes=2)
    binary = sigmoid_focal_loss(two[:, 1] - two[:, 0], target.float(), alpha=-1, gamma=gamma, reduction="mean")
    torch.testing.assert_close(focal_loss(two, target, gamma=gamma), binary)


def test_dice_is_kornias():
    logits, target = _batch()
    theirs = kornia.losses.dice_loss(logits, target, average="macro")
    torch.testing.assert_close(dice_loss(logits, target, per_image=True), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_ignored_pixels_are_as_if_cut_off(name):
    logits, target = _batch()
    ignored = target.clone()
    ignored[:, 3:] = 255
    weight = torch.tensor([0.5, 1.0, 2.0])
    for options in ({}, {"weight": weight}):
        cut = LOSSES[name](logits[:, :, :3], target[:, :3], **options)
        torch.testing.assert_close(LOSSES[name](logits, ignored, **options), cut)


@pytest.mark.parametrize("options", [{}, {"weight": torch.tensor([0.5, 1.0, 0.0])}])
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_a_label_gives_zero_and_zero_gradients(name, options):
    logits = (100 * _batch()[0]).requires_grad_()
    loss = LOSSES[name](logits, torch.full((2, 5, 4), 255), **options)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize(
    "loss",
    [
        cross_entropy,
        dice_loss,
        lambda x, y, **weight: dice_loss(x, y, per_image=True, **weight),
        focal_loss,
        lambda x, y, **weight: focal_loss(x, y, gamma=0.5, **weight),
    ],
)
def test_gradients(loss):
    logits, target = _batch(dtype=torch.float64)
    target[0, :2] = 255
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits.requires_grad_())
    assert torch.autograd.gradcheck(lambda x: loss(x, target, weight=weight), logits.requires_grad_())


@pytest.mark.parametrize("name", NAMES)
def test_gradients_stay_finite_where_all_is_certain(name):
    logits = torch.tensor([1000.0, -1000.0])[None, :, None, None].expand(1, 2, 2, 2).clone().requires_grad_()
    options = {"gamma": 0.5} if name == "focal" else {}
    LOSSES[name](logits, torch.tensor([[[0, 1], [0, 255]]]), **options).backward()
    assert logits.grad.isfinite().all()


def test_a_sum_by_name():
    logits, target = _batch()
    weights = [0.5, 1.0, 2.0]
    losses = WeightedLosses({"ce": 1, "dice": 0.5, "focal": 2}, weights, label_smoothing=0.1)
    weight = torch.tensor(weights)
    rest = 0.5 * dice_loss(logits, target, weight=weight) + 2 * focal_loss(logits, target, weight=weight)
    smooth = cross_entropy(logits, target, weight=weight, label_smoothing=0.1)
    torch.testing.assert_close(losses(logits, target), smooth + rest)
    torch.testing.assert_close(losses.eval()(logits, target), cross_entropy(logits, target, weight=weight) + rest)
    assert losses(logits.bfloat16(), target).dtype == torch.float32


@pytest.mark.parametrize(
    ("shares", "smoothing"), [({}, 0), ({"bce": 1}, 0), ({"ce": 0}, 0), ({"dice": 1}, 0.1), ({"ce": 1}, 1.0)]
)
def test_errors_at_the_door(shares, smoothing):
    with pytest.raises(ValueError, match=r"expected .* got"):
        WeightedLosses(shares, label_smoothing=smoothing)
    with pytest.raises(ValueError, match="gamma=-1"):
        focal_loss(*_batch(), gamma=-1)


def test_balanced_weights_by_hand():
    weights = balanced_class_weights(torch.tensor([60, 30, 0, 10]))
    torch.testing.assert_close(weights, torch.tensor([100 / 180, 100 / 90, 100 / 30, 100 / 30]))
    assert float((weights[[0, 1, 3]] * torch.tensor([60, 30, 10])).sum()) == pytest.approx(100)
    for counts in ([0, 0], [-1, 3]):
        with pytest.raises(ValueError, match="got"):
            balanced_class_weights(torch.tensor(counts))


@pytest.mark.parametrize("target", [torch.zeros(2, 1, 4, 4).long(), torch.zeros(1, 4, 4).long(), torch.rand(2, 4, 4)])
@pytest.mark.parametrize("name", NAMES)
def test_targets_of_another_form_are_named(name, target):
    with pytest.raises(ValueError, match="number of a class for each pixel"):
        LOSSES[name](torch.randn(2, 3, 4, 4), target)


@pytest.mark.parametrize("options", [{}, {"weight": torch.tensor([0.5, 1.0])}])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_sums_over_large_images(name, dtype, options):
    """Of 65,536 pixels or more a sum in fp16 is infinite."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 300, 300, generator=generator).to(dtype).requires_grad_()
    target = torch.randint(2, (1, 300, 300), generator=generator)
    loss, wanted = (LOSSES[name](x, target, **options) for x in (logits, logits.detach().float()))
    loss.backward()
    torch.testing.assert_close(loss.float(), wanted)
    assert logits.grad.isfinite().all() and logits.grad.any()


@pytest.mark.parametrize("label", [-1, 3, 254])
@pytest.mark.parametrize("name", NAMES)
def test_a_label_that_is_no_class_fails(name, label):
    """Dice counted such pixels for no class."""
    target = torch.zeros(1, 4, 4).long()
    target[0, 0, 0] = label
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        LOSSES[name](torch.randn(1, 3, 4, 4), target)
