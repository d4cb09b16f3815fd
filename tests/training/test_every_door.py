"""Whatever trains is predicted and evaluated: every reader of files with every task that its targets are for."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from castvision_cli import main

SIZE = 32
SPLITS = {"train": 6, "val": 4}
SEGMENTS = ["--model.num_classes", "2"]


def picture(rng, kind):
    """Dark with a bright square in the upper or lower half, and where it is."""
    pixels, mask = rng.integers(0, 80, (SIZE, SIZE, 3), dtype=np.uint8), np.zeros((SIZE, SIZE), np.uint8)
    y, x = rng.integers(0, 6) + 16 * kind, rng.integers(0, 20)
    pixels[y : y + 10, x : x + 10] += 150
    mask[y : y + 10, x : x + 10] = 1
    return pixels, mask


def samples(split):
    rng = np.random.default_rng(len(split))
    return [(f"{number}.png", number % 2, *picture(rng, number % 2)) for number in range(SPLITS[split])]


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def classes(root):
    """ROOT/SPLIT/CLASS."""
    for split in SPLITS:
        for name, kind, pixels, _ in samples(split):
            save(root / split / ("up", "down")[kind] / name, pixels)
    return ["--data.root", root], ["--images", root / "val"]


def named(root):
    _, measured = classes(root)
    config = {
        "model": {"class_path": "ClassificationTask", "init_args": {"num_classes": 2}},
        "data": {"class_path": "NamedDataModule"},
    }
    (root / "named.yaml").write_text(json.dumps(config))
    words = ["--config", root / "named.yaml", "--data.name", "timm/", "--data.root", root]
    words += ["--data.class_names", "[down, up]"]
    return words, measured


def labels(root):
    for split in SPLITS:
        lines = ["path,up,bright"]
        for number, (name, kind, pixels, _) in enumerate(samples(split)):
            save(root / split / name, pixels)
            lines.append(f"{split}/{name},{1 - kind},{int(number > 0)}")
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return ["--data.root", root], ["--labels", root / "val.csv"]


def masks(root):
    for split in SPLITS:
        for name, _, pixels, mask in samples(split):
            save(root / split / "images" / name, pixels)
            save(root / split / "masks" / name, mask)
    return ["--data.root", root, *SEGMENTS], ["--images", root / "val/images", "--masks", root / "val/masks"]


def lists(root):
    words, measured = masks(root)
    for split in SPLITS:
        lines = [f"{split}/images/{name},{split}/masks/{name}" for name, *_ in samples(split)]
        (root / f"{split}.csv").write_text("\n".join(["image,mask", *lines]) + "\n")
    return words, measured


def coco(root):
    _, measured = masks(root)
    for split in SPLITS:
        images, objects = [], []
        for number, (name, _, _, mask) in enumerate(samples(split), 1):
            images.append({"id": number, "file_name": name, "height": SIZE, "width": SIZE})
            (y, x), (bottom, right) = np.argwhere(mask).min(0).tolist(), (np.argwhere(mask).max(0) + 1).tolist()
            outline = [[x, y, right, y, right, bottom, x, bottom]]
            size = {"bbox": [x, y, right - x, bottom - y], "area": (right - x) * (bottom - y)}
            objects.append({"id": number, "image_id": number, "category_id": 1, "segmentation": outline, **size})
        content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "square"}]}
        (root / f"{split}.json").write_text(json.dumps(content))
    where = [json.dumps({split: form.format(split) for split in SPLITS}) for form in ("{}.json", "{}/images")]
    words = ["--data", "CocoDataModule", "--data.root", root, "--data.annotations", where[0]]
    return [*words, "--data.folders", where[1], *SEGMENTS], measured


def windows(root):
    for split in SPLITS:
        for name, _, pixels, mask in samples(split):
            save(root / "images" / f"{split}{name}", pixels)
            save(root / "masks" / f"{split}{name}", mask)
    shares = "{train: 0.6, val: 0.4}"
    words = ["--data.root", root, "--data.size", SIZE, "--data.train_length", 4, "--data.shares", shares]
    return words, ["--images", root / "images", "--masks", root / "masks"]


IMG_SIZE = ["--data.img_size", SIZE]
DOORS = {
    "folders of classes": ("image_folder", classes, ["--model.num_classes", 2, *IMG_SIZE], "acc1"),
    "a named data set": (None, named, ["--model.num_classes", 2, *IMG_SIZE], "acc1"),
    "a list of labels": ("multilabel_csv", labels, ["--model.num_classes", 2, *IMG_SIZE], "map"),
    "folders of masks": ("segmentation_folder", masks, IMG_SIZE, "miou"),
    "lists of masks": ("segmentation_folder", lists, IMG_SIZE, "miou"),
    "annotations of COCO": ("segmentation_folder", coco, IMG_SIZE, "miou"),
    "windows": ("windows", windows, [], None),
}


@pytest.mark.filterwarnings("ignore:.*FileIO.*:pytest.PytestUnraisableExceptionWarning")  # timm closes no file
@pytest.mark.parametrize("door", DOORS)
def test_what_trains_is_predicted_and_evaluated(tmp_path, door):
    config, write, more, metric = DOORS[door]
    data, measured = write(tmp_path / "data")
    named = [] if config is None else ["--config", config]
    words = [
        "train", *named, *data, *more, "--run_dir", tmp_path / "run", "--data.batch_size", 2,
        "--data.num_workers", 0, "--model.model_name", "cast_vit_atto_patch4_32", "--model.model_kwargs",
        f"{{img_size: {SIZE}, in_chans: 3, depth: 1}}", "--trainer.max_epochs", 1, "--trainer.precision", "32-true",
        "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
    ]  # fmt: skip
    assert main([str(word) for word in words]) == 0
    best = tmp_path / "run/best.ckpt"
    task = torch.load(best, weights_only=True)["castvision"]["task"]

    def run(command, *arguments):
        arguments = [*arguments, "--model", best, "--output", tmp_path / command, "--device", "cpu"]
        assert main([command, *map(str, arguments)]) == 0

    folder = measured[1] if measured[0] == "--images" else tmp_path / "data/val"
    run("predict", folder)
    with (tmp_path / "predict/predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    images = sorted(folder.rglob("*.png"))
    assert {row["image"] for row in rows} == {str(path) for path in images}
    masks_written = sorted(path.name for path in (tmp_path / "predict").glob("masks/*.png"))
    assert masks_written == ([path.name for path in images] if task == "segmentation" else [])

    run("evaluate", *measured)
    found = json.loads((tmp_path / "evaluate/metrics.json").read_text())
    assert (found["task"], found["failed"], len(found["images"])) == (task, [], len(images))
    if metric is not None:  # the same files
        trained = json.loads((tmp_path / "run/metrics.json").read_text())["best"][f"val/{metric}"]
        assert np.float32(found["metrics"][metric]) == np.float32(trained)
