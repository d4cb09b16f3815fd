"""What the command line takes from the data where a configuration leaves it open."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image

from castvision.training import ImageFolderDataModule, SegmentationDataModule, SegmentationTask
from castvision.training.data.data_module import fitting_batch_size
from castvision_cli import train as cli

RNG = np.random.default_rng(0)
SMALL = ["--model.model_name", "cast_vit_atto_patch4_32", "--model.model_kwargs.depth", "1"]
SHORT = ["--trainer.max_steps", "1", "--trainer.accelerator", "cpu", "--data.num_workers", "0"]


@pytest.mark.parametrize(
    ("images", "largest", "batch_size"),
    [(10_000, 64, 64), (640, 64, 64), (639, 64, 32), (200, 64, 16), (200, 8, 8), (40, 128, 4), (20, 64, 4), (3, 64, 3),
     (1, 8, 1), (79, 8, 4)],
)  # fmt: skip
def test_a_batch_leaves_ten_steps_an_epoch_where_it_can(images, largest, batch_size):
    assert fitting_batch_size(images, largest) == batch_size


def write_pairs(root, labels=3, count=10, channels=2, size=32):
    """16-bit images of any number of channels, and masks with every label."""
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            mask = RNG.integers(0, labels, (size, size), dtype=np.uint8)
            pixels = RNG.integers(0, 4000, (size, size, channels), dtype=np.uint16)
            how = {"photometric": "minisblack", "planarconfig": "contig" if channels > 1 else None}
            tifffile.imwrite(
                root / split / "images" / f"{number}.tif", pixels if channels > 1 else pixels[..., 0], **how
            )
            Image.fromarray(mask).save(root / split / "masks" / f"{number}.png")
    return root


def write_folders(root, names=("cat", "cow", "dog"), count=14):
    for split in ("train", "val"):
        for name in names:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = RNG.integers(100, 200, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def train(folder, *flags):
    """A run's recipe, as its checkpoint has it, and its configuration."""
    assert cli.main([*flags[:2], *SHORT, *flags[2:], "--run_dir", str(folder)]) == 0
    recipe = torch.load(folder / "best.ckpt", weights_only=True)["castvision"]
    return recipe, yaml.safe_load((folder / "config.yaml").read_text())


def test_masks_say_classes_channels_sizes_and_the_batch(tmp_path, caplog, capsys):
    root = write_pairs(tmp_path / "data", labels=4, channels=5)
    flags = ["--config", "segmentation_folder", "--data.root", str(root), "--data.img_size", "32", *SMALL]
    recipe, config = train(tmp_path / "run", *flags)
    assert recipe["class_names"] == ["class 0", "class 1", "class 2", "class 3"]
    assert (recipe["num_classes"], recipe["in_chans"]) == (4, 5)
    assert recipe["model_kwargs"] == {"depth": 1, "in_chans": 5, "img_size": 32}
    assert len(recipe["mean"]) == 5 and abs(recipe["mean"][0] - 2000 / 65535) < 0.001
    said = "taken from the data: 4 classes (class 0, class 1, class 2, class 3), in_chans 5, img_size 32, batch_size 4"
    assert f"{said} (2 steps an epoch)" in capsys.readouterr().err
    # the configuration that is kept says all of it
    assert config["model"]["init_args"]["num_classes"] == 4
    assert config["data"]["init_args"]["batch_size"] == 4


def test_what_is_said_stays(tmp_path):
    root = write_pairs(tmp_path / "data", labels=2, channels=1)
    flags = ["--config", "segmentation_folder", "--data.root", str(root), "--data.img_size", "32", *SMALL]
    flags += ["--data.batch_size", "5", "--data.class_names", "[ground, crack]", "--model.num_classes", "2"]
    recipe, config = train(tmp_path / "run", *flags, "--model.model_kwargs.img_size", "64")
    assert recipe["class_names"] == ["ground", "crack"]
    assert recipe["model_kwargs"]["img_size"] == 64
    assert config["data"]["init_args"]["batch_size"] == 5


def test_a_plain_vit_of_timm_gets_the_size_it_needs(tmp_path):
    root = write_folders(tmp_path / "data")
    flags = ["--config", "image_folder", "--data.root", str(root), "--data.img_size", "32"]
    flags += ["--model.model_name", "vit_tiny_patch16_224", "--model.model_kwargs.depth", "1"]
    recipe, config = train(tmp_path / "run", *flags)
    assert recipe["class_names"] == ["cat", "cow", "dog"]
    assert recipe["model_kwargs"] == {"depth": 1, "in_chans": 3, "img_size": 32}
    assert config["data"]["init_args"]["batch_size"] == 4  # of 42 images
    wanted = 149.5 / 255
    assert recipe["mean"] == pytest.approx([wanted] * 3, abs=0.01)  # measured, not ImageNet's
    assert recipe["std"] == pytest.approx([100 / 12**0.5 / 255] * 3, abs=0.01)


def test_a_network_without_a_size_is_told_none(tmp_path):
    root = write_folders(tmp_path / "data", count=4)
    flags = ["--config", "image_folder", "--data.root", str(root), "--data.img_size", "32"]
    recipe, _ = train(tmp_path / "run", *flags, "--model.model_name", "resnet10t", "--ema", "null")
    assert recipe["model_kwargs"] == {"in_chans": 3}


def test_what_is_wrong_with_the_model_is_said_before_the_data_are_read(tmp_path, capsys):
    for folder in ("images", "masks"):
        (tmp_path / "none" / "train" / folder).mkdir(parents=True)
        (tmp_path / "none" / "train" / folder / "readme.txt").write_text("nothing yet")
    flags = ["--config", "segmentation_folder", "--data.root", str(tmp_path / "none")]
    flags += ["--run_dir", str(tmp_path / "run")]
    for wrong, message in (
        (["--model.model_name", "cast_vit_tiny_patch8_242"], "did you mean cast_vit_tiny_patch8_224"),
        (["--model.head", "UperHaed"], "UperHaed"),
        (["--model.model_kwargs.window_sise", "8"], "window_size"),
        (SMALL, "found no images ("),
    ):
        assert cli.main([*flags, *wrong]) == 2
        assert message in capsys.readouterr().err


def test_the_same_weights_as_with_everything_said(tmp_path):
    root = write_pairs(tmp_path / "data", labels=3, channels=1)
    flags = ["--config", "segmentation_folder", "--data.root", str(root), "--data.img_size", "32", *SMALL]
    train(tmp_path / "open", *flags)
    said = ["--model.num_classes", "3", "--data.batch_size", "4", "--model.model_kwargs.in_chans", "1"]
    train(tmp_path / "said", *flags, *said, "--model.model_kwargs.img_size", "32")
    paths = (tmp_path / name / "last.ckpt" for name in ("open", "said"))
    one, other = (torch.load(path, weights_only=True)["state_dict"] for path in paths)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_masks_of_two_labels_are_background_and_object(tmp_path):
    data = SegmentationDataModule(str(write_pairs(tmp_path, labels=2)), img_size=32, num_workers=0)
    assert data.class_names == ["background", "object"]


def test_a_list_of_classes_beside_the_images(tmp_path):
    root = write_pairs(tmp_path, labels=2)
    (root / "classes.txt").write_text("road\nriver\n\n")
    assert SegmentationDataModule(str(root), img_size=32, num_workers=0).class_names == ["road", "river"]


def test_labels_that_are_ignored_or_no_data_are_no_classes(tmp_path):
    root = write_pairs(tmp_path, labels=3)
    mask = np.asarray(Image.open(root / "train/masks/0.png")).copy()
    mask[:4], mask[4:8] = 255, 200
    (root / "train/masks/0.png").unlink()
    tifffile.imwrite(root / "train/masks/0.tif", mask, extratags=[(42113, "s", 0, "200", True)])  # GDAL's nodata
    data = SegmentationDataModule(str(root), img_size=32, num_workers=0)
    assert data.class_names == ["class 0", "class 1", "class 2"]


def test_masks_of_0_and_255_get_the_hint(tmp_path):
    root = write_pairs(tmp_path, labels=2)
    for path in root.glob("*/masks/*.png"):
        Image.fromarray(np.asarray(Image.open(path)) * 255).save(path)
    with pytest.raises(ValueError, match=r"label_map: \{0: 0, 255: 1\}"):
        SegmentationDataModule(str(root), img_size=32, num_workers=0)


def test_given_statistics_of_folders(tmp_path):
    root = str(write_folders(tmp_path, count=2))
    data = ImageFolderDataModule(root, img_size=32, mean=[0.5], std=[0.25])
    assert (data.mean, data.std) == ((0.5,) * 3, (0.25,) * 3)
    with pytest.raises(ValueError, match="both mean and std"):
        ImageFolderDataModule(root, img_size=32, mean=[0.5])


def test_a_batch_larger_than_the_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="got 6 and batch_size=7; set a smaller batch_size, or leave it out"):
        ImageFolderDataModule(str(write_folders(tmp_path, count=2)), img_size=32, batch_size=7)


def test_python_says_the_number_of_classes():
    with pytest.raises(ValueError, match="expected num_classes, got none"):
        SegmentationTask("cast_vit_atto_patch4_32")


def test_averages_are_judged_beside_the_newest_weights(tmp_path):
    """With a decay of nearly 0 the average is the newest: both have one figure, after the last step, too."""
    root = write_folders(tmp_path / "data")
    flags = ["--config", "image_folder", "--data.root", str(root), "--data.img_size", "32", *SMALL, "--ema", "1e-9"]
    train(tmp_path / "run", *flags, "--trainer.max_steps", "13")  # an epoch and three steps
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    for which in ("best", "last"):
        assert metrics[which]["val/newest_acc1"] == metrics[which]["val/acc1"]
