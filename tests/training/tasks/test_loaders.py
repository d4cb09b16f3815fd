"""Batches of other people's loaders: what they may look like, and what is refused."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from castvision.training import ClassificationTask, InstanceTask, MultiLabelTask, SegmentationTask, SlideTask
from castvision.training.data.data_module import ImageDataModule
from castvision.training.tasks.classification import Mixing

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*LeafSpec:FutureWarning")  # Lightning's
NAME, KWARGS = "cast_vit_atto_patch4_32", {"in_chans": 3, "depth": 1}


def _trainer(**more):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(max_epochs=1, enable_checkpointing=False, **quiet, **more)


def _image(seed):
    return torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(seed))


def _fitted(task, sample, **more):
    loader = DataLoader([sample(seed) for seed in range(4)], batch_size=2)
    trainer = _trainer(**more)
    trainer.fit(task, loader, loader)
    return trainer.callback_metrics


@pytest.mark.parametrize("form", [
    lambda mask: mask.float(), lambda mask: mask[None].double(), lambda mask: mask, lambda mask: mask.byte()[None],
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_masks_and_images_of_any_type(form, dtype):
    """What a model makes of them is what it makes of int64 masks and float32 images."""
    plain = lambda seed: (_image(seed).half().float(), (_image(seed)[0] > 0).long())  # noqa: E731
    other = lambda seed: (_image(seed).half().to(dtype), form(_image(seed)[0] > 0))  # noqa: E731
    figures = []
    for sample in (plain, other):
        torch.manual_seed(0)
        figures.append(_fitted(SegmentationTask(NAME, 2, KWARGS), sample))
    assert figures[0] == figures[1]


@pytest.mark.parametrize("form", [torch.tensor, lambda label: torch.tensor([float(label)]), lambda label: label])
def test_bags_of_embeddings(form):
    """Three-dimensional bags were taken for images without a batch."""
    bag = lambda seed: torch.randn(5, 8, generator=torch.Generator().manual_seed(seed)).double()  # noqa: E731
    task = SlideTask(num_classes=2, model_kwargs={"in_chans": 8})
    assert _fitted(task, lambda seed: (bag(seed), form(seed % 2)))["val/loss"] > 0
    with pytest.raises(ValueError, match=r"expected labels 0\.\.1, got \[2, 3\]"):
        _fitted(task, lambda seed: (bag(seed), torch.tensor(seed)))
    with pytest.raises(ValueError, match=r"expected bags \(B, tiles, channels\), got \(2, 8\)"):
        _fitted(task, lambda seed: (bag(seed)[0], torch.tensor(0)))


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_images_have_the_precision_of_the_model(precision):
    sample = lambda seed: (_image(seed), _image(seed)[0] > 0)  # noqa: E731
    assert _fitted(SegmentationTask(NAME, 2, KWARGS), sample, precision=precision)["val/loss"] > 0


@pytest.mark.parametrize(
    ("sample", "told"),
    [
        (lambda image, mask: (image, mask.float() / 255), r"got fractions such as \[0.003922\].*ToTensor"),
        (lambda image, mask: (image, mask * 7), r"labels 0..1 or 255 \(ignored\), got \[7\]; translate"),
        (lambda image, mask: (image, mask - 1), r"got \[-1\]; translate them, or set num_classes"),
        (lambda image, mask: (image, mask[:8]), r"expected masks of \(2, 16, 16\).*got \(2, 8, 16\); bring"),
        (lambda image, mask: (image.permute(1, 2, 0), mask), "channels before the height"),
        (lambda image, mask: (image.byte(), mask), r"floating-point images, got torch.uint8; scale"),
        (lambda image, mask: (image, mask, "name.png"), "of which tuple is none; leave out names and indices"),
        (lambda image, mask: (image, mask, 3), "of which Tensor is none; leave out names and indices"),
        (lambda image, mask: (image, "cat"), "a tensor of targets behind the images, got"),
        (lambda image, mask: (image, mask * 255), r"two classes or more .* found 0 \(class 0\).*mask // 255"),
    ],
)
def test_masks_that_would_be_learned_wrong_are_refused(sample, told):
    with pytest.raises(ValueError, match=told):
        _fitted(SegmentationTask(NAME, 2, KWARGS), lambda seed: sample(_image(seed), (_image(seed)[0] > 0).long()))


def test_masks_of_0_and_255_are_refused_without_held_out_images_too():
    loader = DataLoader([(_image(seed), (_image(seed)[0] > 0).byte() * 255) for seed in range(4)], batch_size=2)
    with pytest.raises(ValueError, match=r"found 0 \(class 0\) and ignored pixels \(255\)"):
        _trainer().fit(SegmentationTask(NAME, 2, KWARGS), loader)


class OwnModule(ImageDataModule):
    """Of a user, whose masks nobody has read before."""

    def __init__(self, form):
        super().__init__(["ground", "house"], 3, (16, 16), (0.5,) * 3, (0.5,) * 3)
        self.batch_size, self.num_workers, self.form = 2, 0, form

    def dataset(self, split):
        return [(_image(seed), self.form(_image(seed)[0] > 0)) for seed in range(4)]


def test_masks_of_a_data_module_of_ones_own_are_looked_at():
    task = SegmentationTask(NAME, 2, KWARGS)
    with pytest.raises(ValueError, match="if 255 is a class, give it as 1: mask // 255"):
        _trainer().fit(task, datamodule=OwnModule(lambda mask: mask.long() * 255))
    _trainer().fit(task, datamodule=OwnModule(lambda mask: mask.float()))


def test_balanced_classes_need_data_to_look_at():
    with pytest.raises(ValueError, match="data module of ours for class_weights='balanced'"):
        _fitted(SegmentationTask(NAME, 2, KWARGS, class_weights="balanced"), lambda s: (_image(s), _image(s)[0] > 0))


@pytest.mark.parametrize("form", [
    lambda label: label, float, lambda label: torch.tensor([label]), lambda label: torch.tensor(label == 1),
    lambda label: torch.eye(2)[label], lambda label: torch.eye(2).long()[label],
])  # fmt: skip
def test_classes_in_any_form(form):
    figures = []
    for turn in (int, form):
        torch.manual_seed(0)
        sample = lambda seed, turn=turn: (_image(seed), turn(seed % 2))  # noqa: E731
        figures.append(_fitted(ClassificationTask(NAME, 2, KWARGS), sample))
    assert figures[0] == figures[1]


def test_shares_are_not_mixed_again():
    share = lambda seed: (_image(seed), torch.tensor([0.75, 0.25]))  # noqa: E731
    with pytest.raises(ValueError, match=r"got shares \(2, 2\); leave mixing out"):
        _fitted(ClassificationTask(NAME, 2, KWARGS, mixing=Mixing(0.8)), share, limit_val_batches=0)


def test_class_255_of_images_is_a_class():
    """It is "ignored" of pixels only: of 300 classes it was left out of every figure."""
    task = ClassificationTask(NAME, 300, KWARGS)
    with torch.no_grad():
        task.model.head.bias[255] += 1e4
    loader = DataLoader([(_image(seed), 255 if seed else 3) for seed in range(4)], batch_size=2)
    (figures,) = _trainer().validate(task, loader, verbose=False)
    assert figures["val/acc1"] == 0.75
    assert task.last_confusion[255, 255] == 3
    assert task.last_confusion.sum() == 4


def test_more_classes_of_pixels_than_labels_are_refused():
    SegmentationTask(NAME, 255, KWARGS)
    with pytest.raises(ValueError, match="at most 255 classes of pixels, got num_classes=256"):
        SegmentationTask(NAME, 256, KWARGS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bool, torch.uint8])
def test_several_labels_of_any_type(dtype):
    figures = []
    for turn in (torch.float32, dtype):
        torch.manual_seed(0)
        sample = lambda seed, turn=turn: (_image(seed), torch.tensor([seed % 2, 1, seed < 2]).to(turn))  # noqa: E731
        figures.append(_fitted(MultiLabelTask(NAME, 3, KWARGS), sample))
    assert figures[0] == figures[1]


@pytest.mark.parametrize(
    ("make", "target", "told"),
    [
        (ClassificationTask, lambda seed: 5, r"labels 0..2, got \[5\]"),
        (ClassificationTask, lambda seed: torch.ones(3), "use MultiLabelTask where images have several labels"),
        (ClassificationTask, lambda seed: torch.ones(2), "use MultiLabelTask where images have several labels"),
        (MultiLabelTask, lambda seed: seed % 3, "use ClassificationTask where each image has one class"),
        (MultiLabelTask, lambda seed: torch.tensor([2, 1, 0]), "expected zeros and ones"),
        (MultiLabelTask, lambda seed: torch.ones(2), r"zeros and ones \(2, 3\)"),
    ],
)
def test_labels_that_are_none_are_refused(make, target, told):
    with pytest.raises(ValueError, match=told):
        _fitted(make(NAME, 3, KWARGS), lambda seed: (_image(seed), target(seed)))


def test_objects_of_any_type():
    numbers = torch.zeros(16, 16, dtype=torch.int64)
    numbers[2:9, 3:9], numbers[2:9, 9:12] = 300, 70_000
    figures = []
    for objects in (numbers, numbers[None], numbers.int()):
        torch.manual_seed(0)
        sample = partial(dict, mask=numbers > 0, truth={"objects": objects})
        task = InstanceTask(NAME, 2, model_kwargs=KWARGS)
        figures.append(_fitted(task, lambda seed, sample=sample: sample(image=_image(seed))))
    assert figures[0] == figures[1] == figures[2]


def test_what_stands_beside_images_does_not_matter_to_predictions():
    task = SegmentationTask(NAME, 2, KWARGS)
    images = [_image(seed) for seed in range(3)]
    for items in (images, [(image, "a.png") for image in images], [{"image": image, "name": "a"} for image in images]):
        found = _trainer().predict(task, DataLoader(items, batch_size=2))
        assert [tuple(part.shape) for part in found] == [(2, 16, 16), (1, 16, 16)]
