from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image

from castvision.data.transforms.augmentation import Augmentation
from castvision.data.transforms.batch_augmentation import BatchAugmentation
from castvision.training.data.named_data import NamedDataModule
from castvision.training.data.pixel_data import CocoDataModule, ImageFormat, SegmentationDataModule
from castvision.training.tasks.segmentation import SegmentationTask
from castvision_cli import main as castvision_main
from castvision_cli import train as cli
from tests.data.conftest import write_bad_images
from tests.data.image_files import save_apart
from tests.training.conftest import TINY_VIT

NAMES = ["background", "square"]
SMALL = {"img_size": 16, "batch_size": 2, "num_workers": 0}


def write_pairs(root, count=4, size=(24, 20), channels=3, dtype="uint8", label=1):
    """Images whose square is bright; pixels of a known mean."""
    top = {"uint8": 255, "uint16": 65535, "float32": 1}[dtype]
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            mask = np.zeros(size, np.uint8)
            mask[: size[0] // 2] = 1
            pixels = np.repeat(mask[..., None].astype(dtype), channels, axis=-1) * np.dtype(dtype).type(top)
            target = root / split / "images" / f"{number}.tif"
            about = f"{split} {number}"  # or all images would be the same file
            tifffile.imwrite(target, pixels, planarconfig="contig", photometric="minisblack", description=about)
            Image.fromarray(mask * label).save(root / split / "masks" / f"{number}.png")
    return root


@pytest.mark.parametrize(("channels", "dtype"), [(2, "uint8"), (12, "uint16"), (5, "float32")])
def test_folders_of_any_depth_and_their_statistics(tmp_path, channels, dtype):
    data = SegmentationDataModule(str(write_pairs(tmp_path, channels=channels, dtype=dtype)), NAMES, **SMALL)
    assert data.in_chans == channels
    np.testing.assert_allclose(data.mean, 0.5)
    np.testing.assert_allclose(data.std, 0.5)
    assert data.description() == {
        "in_chans": channels, "img_size": [16, 16], "mean": list(data.mean), "std": list(data.std), "keeps_units": True,
        "resize": "fit",
    }  # fmt: skip
    image, mask, extras, _ = next(iter(data.train_dataloader()))
    assert (image.shape, mask.shape) == ((2, channels, 16, 16), (2, 16, 16))
    image, mask, extras, _ = next(iter(data.val_dataloader()))
    assert len(image) == 4
    assert torch.equal(extras["pixel_mask"], mask != 255)
    assert set(mask.unique().tolist()) == {0, 1, 255}
    torch.testing.assert_close(image[:, 0][mask == 255], torch.zeros((mask == 255).sum()))
    assert (image[:, 0][mask == 1] > 0).all()


def test_given_statistics_and_channels(tmp_path):
    how = ImageFormat(in_chans=1, mean=[0.25], std=[0.5])
    data = SegmentationDataModule(str(write_pairs(tmp_path)), NAMES, pixels=how, **SMALL)
    assert (data.in_chans, data.mean, data.std) == (1, (0.25,), (0.5,))
    wide = ImageFormat(in_chans=3, mean=[0.25], std=[0.5])
    assert wide.statistics(3).mean == (0.25, 0.25, 0.25)
    with pytest.raises(ValueError, match="1 or 3 values of mean and std"):
        ImageFormat(mean=[0.1, 0.2], std=[1.0, 1.0]).statistics(3)
    with pytest.raises(ValueError, match="both mean and std"):
        ImageFormat(mean=[0.5])
    with pytest.raises(ValueError, match="check >= 1"):
        ImageFormat(check=0)


def test_held_out_images_keep_their_size_without_fit(tmp_path, caplog):
    how = ImageFormat(fit=False)
    logging.getLogger("castvision").propagate = True
    with caplog.at_level(logging.INFO, logger="castvision"):
        data = SegmentationDataModule(str(write_pairs(tmp_path, size=(27, 40))), NAMES, pixels=how, **SMALL)
    assert "held-out images are shown whole, at their own sizes: castvision evaluate works by tiles" in caplog.text
    image, mask, extras, _ = next(iter(data.val_dataloader()))
    assert (image.shape, mask.shape, extras) == ((1, 3, 27, 40), (1, 27, 40), {})
    dataset = data.dataset("val")
    other = torch.ones(3, 40, 27), torch.ones(40, 27).long()
    image, mask, extras, _ = data.collate([dataset[0], other])  # as pictures of several are made
    assert (image.shape, mask.shape) == ((2, 3, 40, 40), (2, 40, 40))
    assert torch.equal(extras["pixel_mask"], mask != 255)
    task = SegmentationTask("cast_vit_tiny_patch8_224", 2, head="LinearHead", model_kwargs={"depth": 1}).eval()
    with torch.no_grad():
        torch.testing.assert_close(task(image, **extras)[:1, :, :27], task(dataset[0][0][None]), rtol=1e-4, atol=1e-5)
    assert next(iter(data.train_dataloader()))[0].shape == (2, 3, 16, 16)


def test_wrong_data_are_errors_before_training(tmp_path):
    root = write_pairs(tmp_path / "good")
    for name, message in write_bad_images(tmp_path / "bad").items():
        bad = root / "val/images/2.tif"
        kept = bad.read_bytes()
        bad.write_bytes((tmp_path / "bad" / name).read_bytes())
        with pytest.raises(ValueError, match=message) as caught:
            SegmentationDataModule(str(root), NAMES, **SMALL)
        assert "2.tif" in str(caught.value)
        bad.write_bytes(kept)
    Image.new("L", (20, 24), 7).save(root / "train/masks/3.png")
    with pytest.raises(ValueError, match=r"3\.png' for 2 classes, got 7; translate them by label_map"):
        SegmentationDataModule(str(root), NAMES, **SMALL)
    Image.new("L", (24, 20), 0).save(root / "train/masks/3.png")
    with pytest.raises(ValueError, match=r"3\.tif' with 24 × 20 .*3\.png' with 20 × 24"):
        SegmentationDataModule(str(root), NAMES, **SMALL)


def test_masks_of_0_and_255_are_not_taken_for_ignored_pixels(tmp_path):
    root = write_pairs(tmp_path, label=255)
    with pytest.raises(ValueError, match=r"label_map: \{0: 0, 255: 1\}"):
        SegmentationDataModule(str(root), NAMES, **SMALL)
    data = SegmentationDataModule(str(root), NAMES, label_map={0: 0, 255: "square"}, **SMALL)
    assert (data.dataset("val")[0][1] == 1).sum() == 8 * 13


def test_held_out_masks_without_labels_are_refused(tmp_path):
    root = write_pairs(tmp_path)
    for mask in (root / "val/masks").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(mask)), 255)).save(mask)
    with pytest.raises(ValueError, match="labelled pixels in the masks of val, found none"):
        SegmentationDataModule(str(root), NAMES, **SMALL)


def test_a_class_that_never_occurs_is_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        SegmentationDataModule(str(write_pairs(tmp_path)), [*NAMES, "circle"], **SMALL)
    assert "no pixel of circle" in caplog.text


def test_numbers_are_checked(tmp_path):
    root = str(write_pairs(tmp_path))
    for changes, message in (
        ({"batch_size": 9}, "at least batch_size training images, got 4"),
        ({"batch_size": 0}, ">= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            SegmentationDataModule(root, NAMES, **{**SMALL, **changes})
    with pytest.raises(FileNotFoundError, match="'test', found train, val only"):
        SegmentationDataModule(root, NAMES, **SMALL).test_dataloader()


def test_batches_are_augmented_while_training_only(tmp_path):
    how = Augmentation(scale=(1, 1), hflip=0.0)
    moves = BatchAugmentation(hflip=0.0, vflip=1.0)
    data = SegmentationDataModule(
        str(write_pairs(tmp_path, size=(16, 16))), NAMES, augmentation=how, batch_augmentation=moves, **SMALL
    )
    image, mask, extras, _ = next(iter(data.train_dataloader()))
    assert extras == {}  # no padding in it

    data.trainer = SimpleNamespace(training=True, global_rank=0, fit_loop=SimpleNamespace(total_batch_idx=0))
    moved, target, extras, _ = data.on_after_batch_transfer([image, mask], 0)
    assert extras == {}
    assert torch.equal(target, mask.flip(-2))
    assert torch.equal(moved, image.flip(-2))
    is_real = mask == 0
    extras = data.on_after_batch_transfer([image, mask, {"pixel_mask": is_real}], 0)[2]
    assert torch.equal(extras["pixel_mask"], is_real.flip(-2))
    data.trainer.training = False
    assert data.on_after_batch_transfer([image, mask], 0)[0] is image


def test_a_training_step_does_not_see_the_padding(tmp_path):
    how = Augmentation(scale=(1, 1), rot90=0.5)
    moves = BatchAugmentation(degrees=20, scale=(0.7, 1.0))
    data = SegmentationDataModule(
        str(write_pairs(tmp_path)), NAMES, augmentation=how, batch_augmentation=moves, **{**SMALL, "batch_size": 4}
    )
    torch.manual_seed(0)
    batch = data.augment_batch(next(iter(data.train_dataloader())))
    is_real = batch.extras["pixel_mask"]
    assert torch.equal(is_real, batch.target != 255)
    assert 0.3 < is_real.float().mean() < 0.8  # 13 of 16 columns, then shrunk and turned
    task = SegmentationTask("cast_vit_tiny_patch8_224", 2, model_kwargs={"depth": 2, "patch_size": 4}).train()
    task.log = lambda *_, **__: None
    task.trainer = SimpleNamespace(_logger_connector=SimpleNamespace(should_update_logs=False))
    losses = []
    for noise in torch.randn(2, *batch.image.shape):
        torch.manual_seed(0)
        losses.append(task.training_step(batch._replace(image=batch.image.where(is_real[:, None], noise)), 0))
    assert losses[0].isfinite()
    assert losses[0] == losses[1]


def test_loader_processes_draw_differently(tmp_path):
    """The generators of numpy and albumentations are copied into every process; torch's is not."""
    root = write_pairs(tmp_path, count=8, size=(16, 16))
    for path in (root / "train/images").iterdir():
        tifffile.imwrite(path, np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
        Image.new("L", (40, 40), 1).save(root / "train/masks" / f"{path.stem}.png")
    Image.fromarray(np.eye(40, dtype=np.uint8)).save(root / "train/masks/0.png")
    how = {"img_size": 16, "batch_size": 1, "num_workers": 2}
    data = SegmentationDataModule(
        str(root), NAMES, pixels=ImageFormat(fit=False), augmentation=Augmentation(scale=(1, 1), hflip=0.0), **how
    )
    seen = {image.numpy().tobytes() for image, *_ in data.train_dataloader()}
    assert len(seen) > 5


@pytest.mark.parametrize("as_text", [False, True])
def test_label_maps_in_configurations_and_refusals_in_one_line(tmp_path, capsys, as_text):
    root = write_pairs(tmp_path / "data", label=255)
    flags = ["--config", "segmentation_folder", "--data.root", str(root), "--data.img_size", "16"]
    flags += ["--data.class_names", "[background, square]", "--data.batch_size", "2", "--data.num_workers", "0"]
    output = ["--output", str(tmp_path / "sheet.png"), "--count", "1"]
    assert castvision_main(["data", "show", *flags, *output]) == 2
    assert "label_map: {0: 0, 255: 1}" in capsys.readouterr().err
    labels = '{"0": 0, "255": "square"}' if as_text else "{0: background, 255: 1}"
    assert castvision_main(["data", "show", *flags, *output, "--data.label_map", labels]) == 0
    assert cli.main([*flags, "--run_dir", str(tmp_path / "run"), "--data.label_map", "{0: 0}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "expected labels 0 in the mask" in error
    assert "got 255" in error


def test_coco(tmp_path):
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 6, "width": 8}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "segmentation": [[0, 0, 4, 0, 4, 6, 0, 6]]}],
    }
    for red, split in enumerate(("train", "val")):
        Image.new("RGB", (8, 6), (250 + red, 0, 0)).save(tmp_path / f"{split}.png")
        content["images"][0]["file_name"] = f"{split}.png"
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    paths = {"train": "train.json", "val": "val.json"}
    how = {"pixels": ImageFormat(fit=False), "batch_size": 1, "num_workers": 0}
    data = CocoDataModule(str(tmp_path), paths, img_size=8, **how)
    assert data.class_names == ["background", "cat"]
    assert next(iter(data.val_dataloader()))[1][0].tolist() == [[1] * 4 + [0] * 4] * 6
    with pytest.raises(ValueError, match="annotations for train and val"):
        CocoDataModule(str(tmp_path), {"train": "train.json"})
    content["categories"][0]["name"] = "dog"
    (tmp_path / "val.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="same categories in train and val"):
        CocoDataModule(str(tmp_path), paths, img_size=8, **how)


def test_named_classification():
    how = {"arguments": {"size": 20, "image_size": (3, 12, 10), "num_classes": 4}, "val_share": 0.25, **SMALL}
    data = NamedDataModule("torchvision/FakeData", **how)
    assert data.task_kind == "classification"
    assert data.class_names == ["class 0", "class 1", "class 2", "class 3"]
    assert (len(data.dataset("train")), len(data.dataset("val"))) == (15, 5)
    image, label = next(iter(data.train_dataloader()))
    assert (image.shape, label.shape, label.dtype) == ((2, 3, 16, 16), (2,), torch.int64)


def test_named_splits_may_lie_in_folders_of_their_own(tmp_path):
    for split, count in (("mine", 3), ("yours", 2)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                save_apart(Image.new("RGB", (8, 8), (number, 9 * label, 0)), tmp_path / split / name / f"{number}.png")
    splits = {"train": {"root": str(tmp_path / "mine")}, "val": {"root": str(tmp_path / "yours")}}
    data = NamedDataModule("torchvision/ImageFolder", splits=splits, **SMALL)
    assert (data.class_names, len(data.dataset("train")), len(data.dataset("val"))) == (["cat", "dog"], 6, 4)


def test_named_segmentation(tmp_path):
    base = tmp_path / "VOCdevkit/VOC2012"
    for folder in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (base / folder).mkdir(parents=True)
    for name, blue in {"a": 199, "b": 99}.items():
        Image.new("RGB", (12, 10), (9, 99, blue)).save(base / f"JPEGImages/{name}.jpg")
    mask = Image.new("P", (12, 10), 0)
    mask.putpalette([value for place in range(256) for value in (place, 0, 0)])
    mask.paste(1, (0, 0, 6, 10))
    mask.paste(255, (6, 0, 7, 10))
    for split, name in {"train": "a", "val": "b"}.items():
        mask.save(base / f"SegmentationClass/{name}.png")
        (base / f"ImageSets/Segmentation/{split}.txt").write_text(f"{name}\n")
    how = {"img_size": 12, "batch_size": 1, "num_workers": 0}
    with pytest.raises(ValueError, match="expected class_names"):
        NamedDataModule("torchvision/VOCSegmentation", str(tmp_path), **how)
    data = NamedDataModule("torchvision/VOCSegmentation", str(tmp_path), ["background", "plane"], **how)
    assert data.task_kind == "segmentation"
    assert next(iter(data.val_dataloader()))[1][0, 0].tolist() == [1] * 6 + [255] + [0] * 5
    with pytest.raises(FileNotFoundError, match="set download: true"):
        NamedDataModule("torchvision/Flowers102", str(tmp_path), **how)
    with pytest.raises(ValueError, match="name what to open by splits, such as"):
        NamedDataModule("torchvision/OxfordIIITPet", str(tmp_path), **how)
    with pytest.raises(ValueError, match="choose one kind of target"):
        NamedDataModule("torchvision/VOCDetection", str(tmp_path), **how) if _annotated(base) else None


def _annotated(base):
    """Boxes for the same image."""
    (base / "Annotations").mkdir()
    (base / "ImageSets/Main").mkdir()
    (base / "Annotations/a.xml").write_text("<annotation><object><name>plane</name></object></annotation>")
    for split in ("train", "val"):
        (base / f"ImageSets/Main/{split}.txt").write_text("a\n")
    return True


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # timm leaves files open
def test_named_folders_hold_some_out_where_there_is_no_val(tmp_path):
    for split, count in (("train", 10), ("valid", 3)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                save_apart(Image.new("RGB", (8, 8), (number, 0, 0)), tmp_path / split / name / f"{number}.png")
    how = {**SMALL, "class_names": ["cat", "dog"]}
    data = NamedDataModule("timm/", str(tmp_path), **how)
    assert (len(data.dataset("train")), len(data.dataset("val"))) == (20, 6)
    (tmp_path / "valid").rename(tmp_path / "other")
    data = NamedDataModule("timm/", str(tmp_path), val_share=0.1, **how)
    assert (len(data.dataset("train")), len(data.dataset("val"))) == (18, 2)


def test_named_splits_are_checked():
    with pytest.raises(ValueError, match="expected splits named train, val and test"):
        NamedDataModule("torchvision/FakeData", splits={"training": {}})


def test_a_run_learns_from_folders(tmp_path):
    """Twelve bands of 16 bits, windows, flips on the device: the bright half is found."""
    root = write_pairs(tmp_path / "data", count=32, size=(20, 24), channels=12, dtype="uint16")
    recipe = {
        "model": {
            "class_path": "SegmentationTask",
            "init_args": {
                "model_name": "vit_tiny_patch16_224",
                "num_classes": 2,
                "model_kwargs": {**TINY_VIT, "in_chans": 12},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.004}},
            },
        },
        "data": {
            "class_path": "SegmentationDataModule",
            "init_args": {
                "root": str(root),
                "class_names": NAMES,
                "pixels": {"fit": False},
                "augmentation": {"scale": [0.8, 1.25], "hflip": 0.5, "rot90": 0.5, "color": 0.2},
                "batch_augmentation": {"class_path": "BatchAugmentation", "init_args": {"vflip": 0.5}},
                **SMALL,
                "batch_size": 8,
            },
        },
        "trainer": {"accelerator": "cpu", "log_every_n_steps": 2, "max_epochs": 6},
    }
    config = tmp_path / "folders.yaml"
    config.write_text(yaml.safe_dump(recipe))
    assert cli.main(["--config", str(config), "--run_dir", str(tmp_path / "run")]) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["best"]["val/miou"] > 0.9
    facts = torch.load(tmp_path / "run/best.ckpt", weights_only=True)["castvision"]
    np.testing.assert_allclose(facts["mean"], [0.5] * 12)


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_of_two_units_are_refused(tmp_path, split):
    """Bytes become 0..1 and floats stay: the bytes would all have been one value."""
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for number in range(2):
            pixels = rng.integers(0, 256, (16, 16), dtype=np.uint8)
            is_other = part == split and number
            for folder, content in (("images", pixels.astype(np.float32) * 100 if is_other else pixels),
                                    ("masks", pixels // 128)):  # fmt: skip
                path = tmp_path / part / folder / f"{number}.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                tifffile.imwrite(path, content)
    with pytest.raises(
        ValueError, match=r"one unit, got some of uint8, .* some of float32 .* write all of them in one"
    ):
        SegmentationDataModule(str(tmp_path), img_size=16, num_workers=0).setup("fit")
