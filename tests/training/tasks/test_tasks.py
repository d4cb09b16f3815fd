from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, default_collate

import castvision.heads
from castvision.checkpoint_facts import CHECKPOINT_KEY
from castvision.data.datasets.batch import Batch, as_batch
from castvision.losses import dice_loss
from castvision.models.recipe import InputFormat, save
from castvision.training.data.data_module import count_classes
from castvision.training.tasks.classification import ClassificationTask, Mixing, MultiLabelTask
from castvision.training.tasks.segmentation import SegmentationTask

TINY_VIT = {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 4, "img_size": 16, "in_chans": 1}


def _classification(**changes):
    return ClassificationTask("vit_tiny_patch16_224", 2, model_kwargs=TINY_VIT, **changes)


def _segmentation(**changes):
    return SegmentationTask("vit_tiny_patch16_224", 2, model_kwargs=TINY_VIT, **changes)


def test_two_logits_are_one():
    """Cross-entropy over two classes is the binary loss of the logits' difference."""
    logits, target = torch.randn(2, 2, 16, 16), torch.randint(2, (2, 16, 16))
    binary = functional.binary_cross_entropy_with_logits(logits[:, 1] - logits[:, 0], target.float())
    torch.testing.assert_close(_segmentation().loss(logits, target), binary)


def test_ignored_pixels_count_nowhere():
    task = _segmentation()
    logits, target = torch.randn(1, 2, 16, 16), torch.randint(2, (1, 16, 16))
    target[0, :8] = 255
    torch.testing.assert_close(task.loss(logits, target), task.loss(logits[:, :, 8:], target[:, 8:]))
    task.confusions["val"].update(logits.argmax(dim=1), target)
    assert task.confusions["val"].compute().sum() == 128


def test_class_weights_weigh():
    logits, target = torch.randn(1, 2, 16, 16), torch.randint(2, (1, 16, 16))
    only_ones = _segmentation(class_weights=[0.0, 1.0]).loss(logits, target)
    expected = functional.cross_entropy(logits, target, reduction="none")[target == 1].mean()
    torch.testing.assert_close(only_ones, expected)


@pytest.mark.parametrize("make", [_classification, _segmentation])
def test_labels_are_smoothed_while_training_only(make):
    task, plain = make(label_smoothing=0.2), make()
    shape = (4, 2) if make is _classification else (4, 2, 16, 16)
    logits, target = torch.randn(shape), torch.randint(2, (4, *shape[2:]))
    assert torch.equal(task.eval().loss(logits, target), plain.eval().loss(logits, target))
    smooth = functional.cross_entropy(logits, target, label_smoothing=0.2)
    torch.testing.assert_close(task.train().loss(logits, target), smooth)


def test_mixing_gives_shares_of_classes_and_smooths_once():
    torch.manual_seed(0)
    task = _classification(label_smoothing=0.1, mixing=Mixing(mixup=1.0)).train()
    image, target = torch.randn(4, 1, 16, 16), torch.tensor([0, 1, 1, 0])
    kept = image.clone()
    mixed, shares = task.augment(image, target)
    assert torch.equal(image, kept)
    assert not torch.equal(mixed, image)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(4))
    assert shares.min() >= 0.05 - 1e-6
    logits = torch.randn(4, 2)
    torch.testing.assert_close(task.loss(logits, shares), functional.cross_entropy(logits, shares))


def test_odd_batches_are_not_mixed():
    task = _classification(mixing=Mixing(cutmix=1.0))
    image, target = torch.randn(3, 1, 16, 16), torch.tensor([0, 1, 1])
    assert task.augment(image, target)[1] is target


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: ClassificationTask("vit_tiny_patch16_225", 2), "did you mean vit_tiny_patch16_224"),
        (lambda: ClassificationTask("cast_vit_ato_patch4_32", 2), "did you mean cast_vit_atto_patch4_32"),
        (lambda: ClassificationTask("vit_tiny_patch16_224", 1), "num_classes=1"),
        (lambda: ClassificationTask("vit_tiny_patch16_224", 2, {"num_classes": 3}), "the task sets it"),
        (
            lambda: ClassificationTask("vit_tiny_patch16_224", 2, {"embed_dims": 3}),
            "unexpected keyword argument 'embed_dims'",
        ),
        (lambda: ClassificationTask("cast_vit_atto_patch4_32", 2, {"num_clusters": 0}), "num_clusters"),
        (lambda: _segmentation(head="Linear"), "LinearHead"),
        (lambda: _segmentation(head_kwargs={"depth": 3}), "depth"),
        (lambda: _segmentation(class_weights=[1.0]), "one weight >= 0 for each class"),
        (lambda: _segmentation(label_smoothing=1.0), "label_smoothing"),
        (lambda: _segmentation(freeze=["bakbone"]), "matches no parameter"),
        (lambda: _segmentation(loss={"dise": 1.0}), "'ce', 'dice', 'focal'"),
        (lambda: _segmentation(loss={"dice": 1.0}, label_smoothing=0.1), "label_smoothing"),
        (lambda: _segmentation(boundary_tolerance=-1), "tolerance"),
        (lambda: Mixing(mixup=-1), "alphas >= 0"),
    ],
)
def test_errors_at_the_door(make, match):
    with pytest.raises(ValueError, match=match) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("head", castvision.heads.__all__)
def test_every_head_has_its_name(head):
    task = _segmentation(head=head)
    assert type(task.model.head).__name__ == head
    assert task.recipe.head == head


def test_losses_by_name_and_smoothing_in_the_cross_entropy_only():
    task = _segmentation(loss={"ce": 1.0, "dice": 2.0}, class_weights=[1.0, 3.0])
    logits, target = torch.randn(2, 2, 16, 16), torch.randint(2, (2, 16, 16))
    weight = torch.tensor([1.0, 3.0])
    expected = functional.cross_entropy(logits, target, weight=weight) + 2 * dice_loss(logits, target, weight=weight)
    torch.testing.assert_close(task.loss(logits, target), expected)


def test_contours_are_counted_where_asked_for():
    task = _segmentation(boundary_tolerance=1)
    target = torch.zeros(1, 16, 16).long()
    target[:, :, 8:] = 1
    task.count("val", target.roll(2, 2), target, {})
    assert task.other_metrics("val") == {"boundary_f1": 0.0, "boundary_f1_class_0": 0.0, "boundary_f1_class_1": 0.0}
    task.count("val", target, target, {})
    assert task.other_metrics("val")["boundary_f1"] == 1.0  # the counts of the round before are gone
    assert _segmentation().other_metrics("val") == {}


def test_figures_by_distance_where_the_data_know_it():
    """Marks at 0.1 and 0.3 image sides: the first found, of the second half, and a false one at 1.2."""
    task = _segmentation()
    target, prediction, distance = torch.zeros(1, 16, 16).long(), torch.zeros(1, 16, 16).long(), torch.ones(1, 16, 16)
    target[:, :4], distance[:, :2], distance[:, 2:4] = 1, 0.1, 0.3
    prediction[:, :3], prediction[:, 8], distance[:, 8] = 1, 1, 1.2
    image = torch.zeros(1, 1, 16, 16)
    task.model = _Given(prediction)
    task.log = lambda *_, **__: None
    task.validation_step(default_collate([(image[0], target[0], {}, {"distance": distance[0]})]), 0)
    assert task.other_metrics("val") == {
        "distance_iou_0_to_0.25": 1.0, "distance_iou_0.25_to_0.5": 0.5, "distance_iou_1_to_1.5": 0.0,
    }  # fmt: skip
    task.validation_step([image, target], 0)
    assert task.other_metrics("val") == task.other_metrics("test") == {}


class _Given(torch.nn.Module):
    """Certain of a prediction; takes nothing but the image."""

    def __init__(self, prediction):
        super().__init__()
        self.prediction = prediction

    def forward(self, image):
        return functional.one_hot(self.prediction, 2).permute(0, 3, 1, 2).float()


def test_class_counts_are_spread_evenly_and_leave_the_random_state_alone():
    class Masks(torch.utils.data.Dataset):
        def __init__(self):
            self.seen = []

        def __len__(self):
            return 1 << 40

        def __getitem__(self, index):
            self.seen.append(index)
            torch.rand(1)
            mask = torch.zeros(4, 4).long()
            mask[0], mask[1, 0] = 255, 1
            return torch.zeros(1, 4, 4), mask

    state = torch.get_rng_state()
    masks = Masks()
    assert count_classes(masks, 3, sample=4).tolist() == [44, 4, 0]
    assert masks.seen == [0, 1 << 38, 1 << 39, 3 << 38]
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match=r"expected labels 0\.\.0 or 255, got 1 in training image 0"):
        count_classes(Masks(), 1)


def test_frozen_parts_stay_frozen():
    task = _segmentation(freeze=["backbone"])
    assert {name.split(".")[0] for name, p in task.model.named_parameters() if p.requires_grad} == {"head"}


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("resnet10t", {"in_chans": 1}),
        ("cast_vit_atto_patch4_32", {"depth": 1, "in_chans": 1, "surrogates": "averaged"}),
    ],
)
def test_frozen_parts_keep_their_statistics(name, kwargs):
    task = SegmentationTask(name, 2, kwargs, head="FpnHead", freeze=["backbone"])
    before = {name: value.clone() for name, value in task.backbone.state_dict().items()}
    image = torch.randn(4, 1, 32, 32)
    for _ in range(2):
        task.train()
        task.training_loss(Batch(image, torch.zeros(4, 32, 32, dtype=torch.int64))).backward()
    assert all(torch.equal(value, before[name]) for name, value in task.backbone.state_dict().items())
    assert task.model.head.training


class _Dimmer(torch.nn.Module):
    """Two logits for each pixel: 0, and the image times an extra."""

    def forward(self, image, gain=None):
        score = image[:, 0] if gain is None else image[:, 0] * gain[:, None, None]
        return torch.stack([torch.zeros_like(score), score], dim=1)


def test_every_step_hands_the_extras_of_a_batch_to_the_model():
    task = _segmentation()
    task.model, task.log = _Dimmer(), lambda *_, **__: None
    task.trainer = SimpleNamespace(_logger_connector=SimpleNamespace(should_update_logs=False), world_size=1)
    image, target = torch.ones(2, 1, 16, 16), torch.ones(2, 16, 16, dtype=torch.int64)
    items = [(image[place], target[place], {"gain": torch.tensor(gain)}) for place, gain in enumerate((1.0, -1.0))]
    batch = default_collate(items)
    assert task.predict_step(batch, 0).float().mean(dim=(1, 2)).tolist() == [1, 0]
    logits = _Dimmer()(image, torch.tensor([1.0, -1.0]))
    torch.testing.assert_close(task.training_step(batch, 0), functional.cross_entropy(logits, target))
    for step, stage in ((task.validation_step, "val"), (task.test_step, "test")):
        step(batch, 0)
        assert task.confusions[stage].compute().tolist() == [[0, 0], [256, 256]]
    assert task.predict_step(batch[:2], 0).all()  # a batch without extras


def _multilabel(**changes):
    return MultiLabelTask("vit_tiny_patch16_224", 2, model_kwargs=TINY_VIT, **changes)


def _data(*class_names):
    facts = {"task_kind": None, "in_chans": 1, "context_size": None, "batch_augmentation": None}
    return SimpleNamespace(class_names=list(class_names), **facts)


@pytest.mark.parametrize("make", [_classification, _multilabel, _segmentation])
def test_a_classifier_started_from_a_checkpoint_follows_the_names(tmp_path, caplog, make):
    before = make()
    with torch.no_grad():
        for value in before.model.parameters():
            value.copy_(torch.randn_like(value))
    seen = InputFormat(1, (16, 16), (0.5,), (0.25,))
    save(tmp_path / "a.ckpt", replace(before.recipe, class_names=("ground", "house"), input=seen), before.model)
    image = torch.randn(2, 1, 16, 16)
    expected = before.eval()(image)
    for names, order in (
        (("ground", "house"), [0, 1]),
        (("house", "ground"), [1, 0]),
        (("class 0", "class 1"), [0, 1]),
    ):
        caplog.clear()
        task = make(init_from=str(tmp_path / "a.ckpt")).eval()
        for _ in range(2):  # asked for twice, done once
            task.take_over(_data(*names))
        torch.testing.assert_close(task(image), expected[:, order])
        assert ("the checkpoint's classes are ground, house" in caplog.text) == (order == [1, 0])
    task = make(init_from=str(tmp_path / "a.ckpt")).eval()
    task.take_over(_data("cat", "house"))
    torch.testing.assert_close(task(image)[:, 1], expected[:, 1])
    assert not torch.allclose(task(image)[:, 0], expected[:, 0])
    assert "new for cat" in caplog.text


def test_a_checkpoint_of_other_classes_is_refused():
    task = _segmentation()
    task.on_load_checkpoint({CHECKPOINT_KEY: {"class_names": ["ground", "house"]}})  # before it has met its data
    task.take_over(_data("house", "ground"))
    with pytest.raises(ValueError, match=r"classes, ground, house .* in another order: house, ground"):
        task.on_load_checkpoint({CHECKPOINT_KEY: {"class_names": ["ground", "house"]}})
    task.on_load_checkpoint({CHECKPOINT_KEY: {"class_names": ["house", "ground"]}})
    task.on_load_checkpoint({})
    with pytest.raises(
        ValueError, match=r"expected the 3 classes of the checkpoint .*, got 2; .* give it as init_from"
    ):
        task.on_load_checkpoint({CHECKPOINT_KEY: {"class_names": ["class 0", "class 1", "class 2"]}})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("form", ["tuple", "list", "mapping", "plane", "mapping with a plane"])
def test_batches_of_anyones_loader(form, dtype):
    """Tuples or mappings, masks (B, height, width) or (B, 1, height, width): one loss, one count."""
    task = _segmentation()
    task.log = lambda *_, **__: None
    task.trainer = SimpleNamespace(_logger_connector=SimpleNamespace(should_update_logs=False), world_size=1)
    image, mask = torch.randn(2, 1, 16, 16), torch.randint(2, (2, 16, 16)).to(dtype)
    plane = mask[:, None]
    batch = {
        "tuple": (image, mask), "list": [image, mask], "plane": (image, plane),
        "mapping": {"image": image, "mask": mask, "crs": "EPSG:4326"},
        "mapping with a plane": {"image": image, "mask": plane},
    }[form]  # fmt: skip
    expected = functional.cross_entropy(task(image), mask.long())
    torch.testing.assert_close(task.training_step(batch, 0), expected)
    task.validation_step(batch, 0)
    assert task.confusions["val"].compute().sum() == 2 * 16 * 16
    assert torch.equal(task.predict_step(batch, 0), task(image).argmax(dim=1))


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        ({"images": torch.zeros(1, 1, 16, 16)}, "keys 'image' and one of"),
        ({"image": torch.zeros(1, 1, 16, 16)}, "keys 'image' and one of"),
        ((torch.zeros(1, 1, 16, 16),), "got 1 part"),
        ((np.zeros((1, 1, 16, 16)), torch.zeros(1, 16, 16)), "a tensor of images .* got ndarray; stack them"),
        ({"image": [torch.zeros(1, 16, 16)], "mask": torch.zeros(1, 16, 16)}, "a tensor of images .* got list"),
        ((torch.zeros(1, 1, 16, 16), torch.zeros(1, 2, 16, 16, dtype=torch.int64)), "argmax over the channels"),
    ],
)
def test_batches_that_are_none_are_refused(batch, told):
    with pytest.raises(ValueError, match=told):
        as_batch(batch)


def test_images_alone_are_predicted():
    task, image = _segmentation(), torch.randn(2, 1, 16, 16)
    for batch in (image, (image,), {"image": image}):
        assert task.predict_step(batch, 0).shape == (2, 16, 16)
    assert task.predict_step(image, 0, dataloader_idx=1).shape == (2, 16, 16)  # of several loaders


@pytest.mark.parametrize("is_trained", [False, True])
def test_layer_decay_is_for_trained_weights(is_trained, tmp_path):
    """Random weights all learn at the full rate; the groups are the same, so that a resumed run finds its own."""
    torch.save(_classification().model.state_dict(), tmp_path / "weights.pt")
    task = _classification(layer_decay=0.5, init_from=str(tmp_path / "weights.pt") if is_trained else None)
    task.trainer = SimpleNamespace(estimated_stepping_batches=10, callbacks=[], precision_plugin=None)
    groups = task.configure_optimizers()["optimizer"].param_groups
    rates = {group["initial_lr"] for group in groups}
    assert len(rates) == (3 if is_trained else 1)  # embedding, block, head
    assert len(groups) > 3


class _BrokenOff(IterableDataset):
    """One batch, then no more."""

    def __init__(self, batch):
        self.batch = batch

    def __iter__(self):
        yield self.batch
        raise KeyError("broken off")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stage", ["val", "test"])
@pytest.mark.parametrize(
    ("make", "target"),
    [
        (lambda: _segmentation(boundary_tolerance=1), torch.arange(512).view(2, 16, 16) % 3 % 2),
        (_classification, torch.tensor([0, 1])),
        (lambda: MultiLabelTask("vit_tiny_patch16_224", 2, model_kwargs=TINY_VIT), torch.eye(2)),
    ],
    ids=["pixels", "images", "labels"],
)
def test_a_round_that_was_broken_off_counts_no_more(make, target, stage):
    torch.manual_seed(0)
    task, image = make(), torch.randn(2, 1, 16, 16)
    other = (torch.randn(2, 1, 16, 16), target.flip(0))

    def figures(data):
        trainer = Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        run = trainer.validate if stage == "val" else trainer.test
        return run(task, DataLoader(data, batch_size=None), verbose=False)

    expected = figures([(image, target)])
    with pytest.raises(KeyError, match="broken off"):
        figures(_BrokenOff(other))
    assert figures([(image, target)]) == expected


def test_a_weight_decay_of_the_optimiser_is_not_left_aside():
    """The groups have the task's, which silently was the one that acted."""
    for own in (0.3, 0.0):
        with pytest.raises(ValueError, match=f"got weight_decay={own} of the optimizer beside weight_decay=0.05"):
            _classification(optimizer=partial(torch.optim.AdamW, weight_decay=own))
    _classification(optimizer=partial(torch.optim.AdamW, weight_decay=0.3), weight_decay=0.3)
