from __future__ import annotations

import numpy as np
import pytest
import torch

from castvision.metrics import (
    BoundaryF1,
    DistanceIoU,
    MultiLabelScores,
    classification_metrics,
    image_table,
    metric_key,
    metric_keys,
    multilabel_metrics,
    per_class_metrics,
    pixel_table,
    segmentation_metrics,
)


def test_accuracy_by_hand():
    confusion = torch.tensor([[8, 2], [1, 1]])
    figures = classification_metrics(confusion, ["not connected", "connected"])
    assert figures == pytest.approx(
        {
            "acc1": 9 / 12,
            "mean_acc": 0.65,
            "macro_f1": (16 / 19 + 2 / 5) / 2,
            "acc_not_connected": 0.8,
            "acc_connected": 0.5,
        }
    )


def test_iou_by_hand():
    confusion = torch.tensor([[90, 2], [3, 5]])
    figures = segmentation_metrics(confusion, ["background", "joining path"])
    assert figures["iou_background"] == pytest.approx(90 / 95)
    assert figures["iou_joining_path"] == pytest.approx(5 / 10)
    assert figures["miou"] == pytest.approx((90 / 95 + 0.5) / 2)
    assert figures["pixel_acc"] == pytest.approx(0.95)


def test_a_class_that_never_occurs_does_not_count():
    confusion = torch.tensor([[4, 0, 0], [0, 4, 0], [0, 0, 0]])
    figures = segmentation_metrics(confusion, ["a", "b", "c"])
    assert figures["miou"] == 1.0
    assert "iou_c" not in figures
    assert classification_metrics(confusion, ["a", "b", "c"])["mean_acc"] == 1.0


def test_iou_is_of_the_data_set_not_a_mean_over_images():
    first, second = torch.tensor([[0, 0], [0, 9]]), torch.tensor([[0, 1], [0, 0]])
    assert segmentation_metrics(first + second, ["a", "b"])["iou_b"] == pytest.approx(0.9)


def test_names():
    assert metric_key("Joining path (2)") == "joining_path_2"


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (["background", "> 5 mm", "< 5 mm"], ["background", "5_mm_1", "5_mm_2"]),
        (["soil", "Water", "water"], ["soil", "water_1", "water_2"]),
        (["a", "+", "-"], ["a", "1", "2"]),
        (["a b", "a_b", "a b 1"], ["a_b_0", "a_b_1_1", "a_b_1_2"]),
        (["x", "x", "X_0"], ["x_0_0", "x_1", "x_0_2"]),
    ],
)
def test_every_class_has_its_own_figure(names, keys):
    assert metric_keys(names) == keys
    confusion = torch.diag(torch.tensor([5, 6, 7]))
    confusion[0, 1] = 5
    figures = segmentation_metrics(confusion, names)
    assert [figures[f"iou_{key}"] for key in keys] == pytest.approx([5 / 10, 6 / 11, 1])


def test_scores_of_several_labels_by_hand():
    scores = MultiLabelScores(3)
    probabilities = torch.tensor([[0.9, 0.2, 0.1], [0.8, 0.7, 0.1], [0.3, 0.6, 0.9]])
    target = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0]])
    for image, labels in zip(probabilities, target, strict=True):
        scores.update(image[None], labels[None])
    precision, f1 = scores.compute()
    assert precision[:2].tolist() == pytest.approx([(1 + 2 / 3) / 2, 1])
    assert f1[:2].tolist() == pytest.approx([2 / 4, 1])
    assert precision[2].isnan() and f1[2].isnan()
    figures = multilabel_metrics(torch.stack([precision, f1]), ["cat", "dog", "eel"])
    assert figures == pytest.approx(
        {"map": 11 / 12, "f1": 0.75, "ap_cat": 5 / 6, "ap_dog": 1, "f1_cat": 0.5, "f1_dog": 1}
    )
    scores.reset()
    scores.update(probabilities[:1], target[:1])
    assert scores.compute()[1][0] == 1


def test_macro_f1_and_the_table_by_hand():
    confusion = torch.tensor([[8, 2, 0], [1, 9, 0], [0, 0, 0]])
    f1 = [16 / 19, 18 / 21]
    figures = segmentation_metrics(confusion, ["a", "b", "c"])
    assert figures["macro_f1"] == pytest.approx(sum(f1) / 2)
    first, second, third = pixel_table(confusion, ["a", "b", "c"])
    assert first == {
        "name": "a",
        "iou": pytest.approx(8 / 11),
        "f1": pytest.approx(f1[0]),
        "precision": pytest.approx(8 / 9),
        "recall": pytest.approx(0.8),
        "count": 10,
    }
    assert second["f1"] == pytest.approx(f1[1])
    assert third == {"name": "c", "iou": None, "f1": None, "precision": None, "recall": None, "count": 0}


def test_a_table_of_images_shows_accuracy_and_f1_and_no_overlap():
    first, second, third = image_table(torch.tensor([[8, 2, 0], [1, 1, 0], [0, 0, 0]]), ["a", "b", "c"])
    assert first == {
        "name": "a",
        "acc": 0.8,
        "f1": pytest.approx(16 / 19),
        "precision": pytest.approx(8 / 9),
        "count": 10,
    }
    assert second["acc"] == 0.5 and second["f1"] == pytest.approx(2 / 5)
    assert third == {"name": "c", "acc": None, "f1": None, "precision": None, "count": 0}


def test_figures_are_torchmetrics():
    from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_f1_score
    from torchmetrics.functional.classification import multiclass_jaccard_index as jaccard

    torch.manual_seed(0)
    prediction, target = torch.randint(4, (3, 9, 9)), torch.randint(4, (3, 9, 9))
    target[0] = 255
    confusion = multiclass_confusion_matrix(prediction, target, 4, ignore_index=255)
    figures = per_class_metrics(confusion)
    options = {"num_classes": 4, "average": None, "ignore_index": 255}
    torch.testing.assert_close(figures["f1"].float(), multiclass_f1_score(prediction, target, **options))
    torch.testing.assert_close(figures["iou"].float(), jaccard(prediction, target, **options))
    options = {"num_classes": 5, "average": "macro", "ignore_index": 255}  # the fifth class never occurs
    confusion = multiclass_confusion_matrix(prediction, target, 5, ignore_index=255)
    means = segmentation_metrics(confusion, list("abcde"))
    assert means["miou"] == pytest.approx(jaccard(prediction, target, **options).item())
    assert means["macro_f1"] == pytest.approx(multiclass_f1_score(prediction, target, **options).item())


def _boundary_of(mask, is_real):
    found = []
    for y, x in zip(*np.nonzero(mask & is_real), strict=True):
        beside = [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
        inside = [(j, i) for j, i in beside if 0 <= j < mask.shape[0] and 0 <= i < mask.shape[1]]
        if any(is_real[place] and not mask[place] for place in inside):
            found.append((y, x))
    return found


def _brute_force(prediction, target, num_classes, tolerance):
    counts = np.zeros((4, num_classes), int)
    for predicted, true in zip(prediction, target, strict=True):
        for place in range(num_classes):
            ours, theirs = (_boundary_of(mask == place, true != 255) for mask in (predicted, true))
            near = [any(max(abs(y - j), abs(x - i)) <= tolerance for j, i in theirs) for y, x in ours]
            met = [any(max(abs(y - j), abs(x - i)) <= tolerance for j, i in ours) for y, x in theirs]
            counts[:, place] += len(ours), sum(near), len(theirs), sum(met)
    precision, recall = counts[1] / np.maximum(counts[0], 1), counts[3] / np.maximum(counts[2], 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-30)
    return np.where(counts[0] + counts[2] > 0, f1, np.nan)


@pytest.mark.parametrize("tolerance", [0, 1, 3])
def test_boundary_f1_is_the_brute_force(tolerance):
    generator = torch.Generator().manual_seed(tolerance)

    def blobs():
        coarse = torch.randint(3, (4, 1, 5, 6), generator=generator).float()
        return torch.nn.functional.interpolate(coarse, (21, 26)).long()[:, 0]

    prediction, target = blobs(), blobs()
    target[1, 4:9, 3:20] = 255
    metric = BoundaryF1(4, tolerance)
    for part in ((0, 1), (1, 4)):  # streamed
        metric.update(prediction[slice(*part)], target[slice(*part)])
    expected = _brute_force(prediction.numpy(), target.numpy(), 4, tolerance)
    np.testing.assert_allclose(metric.compute().numpy(), expected)
    assert np.isnan(expected[3])


def test_boundary_f1_by_hand():
    target = torch.zeros(1, 8, 8).long()
    target[:, :, 4:] = 1
    shifted = torch.zeros(1, 8, 8).long()
    shifted[:, :, 6:] = 1
    for tolerance, value in ((1, 0.0), (2, 1.0)):
        metric = BoundaryF1(2, tolerance)
        metric.update(shifted, target)
        assert metric.compute().tolist() == [value, value]
    metric.update(torch.zeros_like(target), target)  # a second image, whose contour is missed
    precision, recall = 1, 0.5
    assert metric.compute()[1].item() == pytest.approx(2 * precision * recall / (precision + recall))


def test_distance_iou_by_hand():
    distance = torch.tensor([[0.0, 1, 2, 3, 4, 5, -1, torch.inf, torch.nan]])[None]
    target = torch.tensor([[1, 1, 1, 1, 255, 1, 1, 1, 1]])[None]
    predicted = torch.tensor([[1, 1, 0, 1, 0, 0, 0, 0, 0]])[None]
    metric = DistanceIoU([0, 2, 4, 5, 6, 9])
    metric.update(predicted, target, distance)
    values = metric.compute()
    assert values[[0, 1, 3]].tolist() == [1.0, 0.5, 0.0]
    assert values[[2, 4]].isnan().all()
    metric.update(torch.ones_like(predicted), torch.zeros_like(target), distance)  # all of it wrong: unions grow
    values = metric.compute()
    assert values[:4].tolist() == [0.5, 0.25, 0.0, 0.0]
    assert values[4].isnan()


def test_counted_metrics_refuse_what_cannot_be():
    for edges in ([1.0], [0, 1, 1]):
        with pytest.raises(ValueError, match="ascending edges"):
            DistanceIoU(edges)
    for arguments in ((1, 2), (2, -1)):
        with pytest.raises(ValueError, match="tolerance >= 0"):
            BoundaryF1(*arguments)
