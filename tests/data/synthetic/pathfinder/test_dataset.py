"""Items by index; classes follow the generator's own paddles; distractors carry dots like those of the paths."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from castvision.data.synthetic import PathfinderSegDataset
from castvision.data.synthetic.pathfinder import PathfinderDataset, PathfinderSpec, make_pathfinder
from castvision.data.synthetic.pathfinder.dataset import FORMS, all_dots, turn
from castvision.data.synthetic.pathfinder.engine import make_batch
from castvision.data.synthetic.pathfinder.masks import make_instance_masks
from castvision.data.synthetic.pathfinder.spec import dlr_spec, segmentation_spec


def test_workers_change_nothing() -> None:
    data = PathfinderDataset(PathfinderSpec.lra(32), "three-class", length=40, seed=3)
    alone = list(DataLoader(data, batch_size=8))
    together = list(DataLoader(data, batch_size=8, num_workers=2, multiprocessing_context="fork"))
    for (image, target), (other_image, other_target) in zip(alone, together, strict=True):
        assert torch.equal(image, other_image) and torch.equal(target, other_target)


def test_a_key_gives_one_image_however_it_is_asked_for() -> None:
    data = PathfinderDataset(PathfinderSpec.lra(32, 6, "clean"), "three-class", seed=5)
    together = data.__getitems__([7, 3, 11])
    for (image, mask), index in zip(together, [7, 3, 11], strict=True):
        alone_image, alone_mask = data[index]
        assert torch.equal(image, alone_image) and torch.equal(mask, alone_mask)
    other = PathfinderDataset(PathfinderSpec.lra(32, 6, "clean"), "three-class", split="val", seed=5)
    assert not torch.equal(other[7][0], data[7][0])


def test_symmetries_turn_image_and_mask_together() -> None:
    spec = PathfinderSpec.lra(32, 6)
    plain = PathfinderDataset(spec, "three-class", length=64).__getitems__(range(64))
    turned = PathfinderDataset(spec, "three-class", length=64, symmetries=True).__getitems__(range(64))
    seen = set()
    for (image, mask), (turned_image, turned_mask) in zip(plain, turned, strict=True):
        which = [w for w in range(8) if torch.equal(turn(image, w), turned_image)]
        assert any(torch.equal(turn(mask, w), turned_mask) for w in which)
        seen.update(which)
    assert seen == set(range(8))
    labels = [int(label) for _, label in PathfinderDataset(spec, length=64, symmetries=True).__getitems__(range(64))]
    assert labels == [int(label) for _, label in PathfinderDataset(spec, length=64).__getitems__(range(64))]


def test_gap_free_lines_as_targets() -> None:
    spec = PathfinderSpec.lra(32, 6)
    data = PathfinderDataset(spec, "join", length=8, lines="gap-free")
    for index, (_, mask) in enumerate(data.__getitems__(range(8))):
        sample = make_pathfinder(spec, 0, "train", index, label=1)
        assert np.array_equal(mask.numpy(), sample.gap_free == 2)


def test_join_marks_one_path_of_every_image() -> None:
    data = PathfinderDataset(PathfinderSpec.lra(32, 6), "join", length=64)
    masks = torch.stack([mask for _, mask in data.__getitems__(range(64))])
    assert (masks.flatten(1).sum(1) > 0).all() and masks.unique().tolist() == [0, 1]
    with pytest.raises(IndexError, match="below 64"):
        data[64]


def paths(data: PathfinderSegDataset, count: int):
    label = 1 if data.form == "one-dot" else None
    return make_batch(data.spec, data.seed, 0, np.arange(count), label)


@pytest.mark.parametrize("size", [32, 64, 128])
def test_classes_are_those_of_the_generators_own_paths(size: int) -> None:
    data = PathfinderSegDataset(size)
    batch = data.make_batch(np.arange(20))
    labels = []
    for index in range(20):
        sample = make_pathfinder(data.spec, 0, "train", index)
        assert np.array_equal(batch.targets[index], sample.semantic)
        assert (2 in batch.targets[index]) == (sample.label == 1)
        labels.append(sample.label)
    assert 0 < sum(labels) < 20


@pytest.mark.parametrize("size", [32, 64, 128])
def test_decoys_lie_on_all_distractors_and_look_like_the_other_dots(size: int) -> None:
    data = PathfinderSegDataset(size)
    plain = PathfinderSegDataset(size, decoys=False).make_batch(np.arange(12)).images
    images = data.make_batch(np.arange(12)).images
    batch = paths(data, 12)
    instances = make_instance_masks(data.spec, batch)
    without = PathfinderDataset(data.spec, "classify").__getitems__(range(12))
    for i in range(12):
        assert np.array_equal(plain[i], ((without[i][0][0].numpy() + 1) * 127.5).round())  # the same two dots
        dots = all_dots(batch, i, True)
        distractors = set(np.unique(instances[i])) - {0, 1, 2}
        assert len(dots) == 2 + len(distractors)
        assert {instances[i][tuple(dot)] for dot in dots[2:]} <= distractors | {0, 1, 2}
        shown = images[i]
        rows, columns = np.indices(shown.shape)
        for y, x in dots:
            disc = (rows - y) ** 2 + (columns - x) ** 2 <= (data.spec.marker_radius - 1) ** 2
            assert shown[disc].min() > 200
        changed = np.argwhere(plain[i] != shown)
        nearest = np.abs(changed[:, None] - dots[2:]).max(-1).min(1, initial=size) if len(changed) else np.zeros(0)
        assert (nearest <= data.spec.marker_radius + 4).all()


def test_one_dot_marks_a_whole_path() -> None:
    data = PathfinderSegDataset(64, "one-dot")
    batch = data.make_batch(np.arange(20))
    for index in range(20):
        sample = make_pathfinder(data.spec, 0, "train", index, label=1)
        target = batch.targets[index] == 1
        rows, columns = np.indices((64, 64))
        y, x = batch.dots[index]
        disc = (rows - y) ** 2 + (columns - x) ** 2 <= data.spec.marker_radius**2
        assert np.array_equal(target, (sample.semantic == 2) | disc)
        assert tuple(batch.dots[index]) == tuple(sample.dots[0])
        # the second dot of the joining pair is gone
        end = sample.dots[1]
        assert batch.images[index][tuple(end)] != 255 or np.abs(end - sample.dots[0]).max() < 6


@pytest.mark.parametrize("form", FORMS)
def test_distances_grow_along_marked_paths(form: str) -> None:
    data = PathfinderSegDataset(64, form)
    step = data.spec.paddle_length + 2 * data.spec.paddle_margins[0]
    for index in range(10):
        distance = data.distance(index)
        sample = make_pathfinder(data.spec, 0, "train", index, label=1 if form == "one-dot" else None)
        finite = np.isfinite(distance)
        assert set(np.unique(distance[finite])) <= {float(step * i) for i in range(data.spec.contour_length)}
        for path in (0, 1):
            for row in range(path, 2 * data.spec.contour_length, 2):
                tip = tuple(sample.paddles[row, 2:4])
                order = int(sample.paddles[row, 1])
                start = int(sample.paddles[[0, 1], 2:4][path].tolist() == sample.dots[0].tolist())
                if sample.label == 1 and not start:
                    expected = None
                else:
                    expected = step * (order if start else data.spec.contour_length - 1 - order)
                if finite[tip] and expected is not None:
                    assert abs(distance[tip] - expected) <= step  # tips of neighbours may share a pixel
        if sample.label == 1:
            assert finite[sample.semantic == 2].mean() > 0.95 and not finite[sample.instances == 0].any()
        else:
            assert finite[sample.semantic == 1].all()


def test_balance() -> None:
    data = PathfinderSegDataset(64)
    targets = data.make_batch(np.arange(400)).targets
    shares = [(targets == value).mean() for value in (0, 1, 2)]
    assert shares[0] > 0.9 and 0.02 < shares[1] < 0.06 and 0.005 < shares[2] < 0.03
    assert data.class_names == ("other", "unconnected path", "joining path")
    assert PathfinderSegDataset(64, "one-dot").class_names == ("other", "path")


def test_geometry_of_dlr() -> None:
    assert (dlr_spec(512).paddle_length, dlr_spec(512).marker_radius, dlr_spec(256).continuity) == (22, 9, 2.2)
    data = PathfinderSegDataset(128, spec=dlr_spec(128))
    batch = paths(data, 10)
    assert ((batch.counts - 28) / 4).mean() > 12  # of 16 distractors
    with pytest.raises(ValueError, match="128, 256, 512"):
        dlr_spec(64)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PathfinderSegDataset(64, "two-dots"), "form"),
        (lambda: PathfinderSegDataset(64, spec=segmentation_spec(32)), "img_size=64"),
        (lambda: PathfinderSegDataset(64, "one-dot", decoys=True), "decoys"),
        (lambda: PathfinderSegDataset(16), "img_size"),
        (lambda: PathfinderSegDataset(64, split="dev"), "split"),
        (lambda: PathfinderSegDataset(64)[1 << 40], "below"),
    ],
)
def test_bad_input_of_the_segmentation_task_is_named(make, message: str) -> None:
    with pytest.raises((ValueError, IndexError), match=message):
        make()


@pytest.mark.parametrize(
    ("size", "form"),
    [(256, "three-class"), pytest.param(1024, "three-class", marks=pytest.mark.slow),
     pytest.param(2048, "one-dot", marks=pytest.mark.slow)],
)  # fmt: skip
def test_large_images(size: int, form: str) -> None:
    data = PathfinderSegDataset(size, form, spec=replace(segmentation_spec(size), num_distractors=10))
    image, target = data[0]
    assert image.shape == (1, size, size) and target.max() >= 1
    assert image.max() == 1 and image.min() == -1


def test_paths_beside_a_label_are_the_three_class_mask_turned_with_the_image() -> None:
    spec = PathfinderSpec.lra(32, 6)
    plain = PathfinderDataset(spec, symmetries=True).__getitems__(range(16))
    masks = PathfinderDataset(spec, "three-class", symmetries=True).__getitems__(range(16))
    data = PathfinderDataset(spec, symmetries=True)
    data.gives_paths = True
    for (image, label), (_, mask), (same, same_label, extras, truth) in zip(
        plain, masks, data.__getitems__(range(16)), strict=True
    ):
        assert torch.equal(image, same) and label == same_label and extras == {}
        assert torch.equal(truth["paths"], mask)
        assert (2 in mask) == bool(label), "a joining path is marked where the label says that there is one"
