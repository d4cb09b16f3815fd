"""What training says of its held-out images, `castvision evaluate` says of the same files, to the last digit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch.nn import functional

from castvision.data.reading.pixels import mark_missing
from castvision.models.recipe import InputFormat, Recipe, build
from castvision.models.recipe import save as save_checkpoint
from castvision_cli import main

TINY = [
    "--model.model_name", "cast_vit_atto_patch4_32", "--data.img_size", "32", "--data.batch_size", "4",
    "--data.num_workers", "0", "--trainer.max_epochs", "1", "--trainer.precision", "32-true",
    "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
]  # fmt: skip


def disks(rng, height, width):
    """Large discs are objects, small ones are not; of any grey."""
    y, x = np.mgrid[:height, :width]
    image = rng.integers(0, 60, (height, width, 3)).astype(np.uint8)
    mask = np.zeros((height, width), np.uint8)
    for radius, label in ((30, 1), (8, 0), (6, 0)):
        inside = (y - rng.integers(height)) ** 2 + (x - rng.integers(width)) ** 2 < radius**2
        image[inside] = rng.integers(90, 255, 3)
        mask[inside] = label
    mask[: height // 10] = 255
    return image, mask


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def transparent(image, part):
    """Nothing is known of the left and of the top of the image."""
    opacity = np.full(image.shape[:2], 255, np.uint8)
    opacity[:, : image.shape[1] // part], opacity[: image.shape[0] // part] = 0, 0
    return np.dstack([image, opacity])


def pairs(root, has_holes=False):
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 5)):
        for number in range(count):
            image, mask = disks(rng, *rng.integers(70, 150, 2))
            image = transparent(image, 1 if number == 4 else 3) if has_holes else image
            save(root / split / "images" / f"{number}.png", image)
            save(root / split / "masks" / f"{number}.png", mask)


def folders(root):
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 9)):
        for name in ("cat", "dog", "owl"):
            for number in range(count):
                save(root / split / name / f"{number}.png", disks(rng, *rng.integers(40, 150, 2))[0])


def run_of(tmp_path, config, *more):
    flags = ["--data.root", tmp_path / "data", "--run_dir", tmp_path / "run", *TINY, *more]
    assert main(["train", "--config", config, *map(str, flags)]) == 0
    return json.loads((tmp_path / "run/metrics.json").read_text())


def measured(tmp_path, *flags):
    arguments = ["--model", tmp_path / "run/best.ckpt", "--output", tmp_path / "out", "--device", "cpu", *flags]
    assert main(["evaluate", *map(str, arguments)]) == 0
    return json.loads((tmp_path / "out/metrics.json").read_text())


def assert_same(measured, trained):
    """To the last digit that Lightning keeps of what is logged: it does so in float32."""
    assert np.float32(measured) == np.float32(trained)


@pytest.mark.parametrize(("fit", "has_holes"), [(True, False), (True, True), (False, False), (False, True)])
def test_of_segmentation_folders(tmp_path, fit, has_holes):
    pairs(tmp_path / "data", has_holes)
    flags = ["--model.model_kwargs", "{img_size: 32, in_chans: 3, depth: 2}", "--data.pixels.fit", str(fit).lower()]
    trained = run_of(tmp_path, "segmentation_folder", *flags)
    facts = torch.load(tmp_path / "run/best.ckpt", weights_only=True)["castvision"]
    assert facts["resize"] == ("fit" if fit else "none")
    val = tmp_path / "data/val"
    by_tiles = [] if fit else ["--tile", 256]  # larger than any image, which is shown whole then
    found = measured(tmp_path, "--images", val / "images", "--masks", val / "masks", *by_tiles)
    assert found["confusion"] == trained["confusion"]
    assert_same(found["metrics"]["miou"], trained["best"]["val/miou"])
    assert_same(found["metrics"]["pixel_acc"], trained["best"]["val/pixel_acc"])


def test_of_folders_of_classes(tmp_path):
    folders(tmp_path / "data")
    flags = ["--model.num_classes", "3", "--model.model_kwargs", "{in_chans: 3, depth: 2}"]
    trained = run_of(tmp_path, "image_folder", *flags)
    assert torch.load(tmp_path / "run/best.ckpt", weights_only=True)["castvision"]["resize"] == "crop"
    found = measured(tmp_path, "--images", tmp_path / "data/val")
    assert found["confusion"] == trained["confusion"]
    assert_same(found["metrics"]["acc1"], trained["best"]["val/acc1"])


def test_predict_shows_whole_images_where_training_did(tmp_path, capsys):
    """And lays the classes over the image at its own size; images of the training size are left to tiles."""
    pairs(tmp_path / "data")
    run_of(tmp_path, "segmentation_folder", "--model.model_kwargs", "{img_size: 32, in_chans: 3, depth: 2}")
    image, _ = disks(np.random.default_rng(5), 128, 64)
    save(tmp_path / "photo.png", image)
    arguments = [tmp_path / "photo.png", "--model", tmp_path / "run/best.ckpt", "--no-overlay", "--device", "cpu"]
    for name, more, told in (
        ("fit", [], "brought to 32 pixels as in training"),
        ("tiles", ["--tile", "32"], "works at the image's own pixels, but the model was trained on"),
    ):
        assert main(["predict", *map(str, arguments), "--output", str(tmp_path / name), *more]) == 0
        assert told in " ".join(capsys.readouterr().out.split())
    labels = np.asarray(Image.open(tmp_path / "fit/masks/photo.png"))
    assert labels.shape == (128, 64)
    from castvision.inference.fitted import FittedModel
    from castvision.inference.predictor import load_model

    model = FittedModel(load_model(tmp_path / "run/best.ckpt"), np.dtype(np.uint8), "photo")
    small, _ = model.measure(image, np.zeros((128, 64), np.uint8))
    assert small.shape == (32, 16)
    inside = np.all([np.roll(small, step, axis) == small for axis in (0, 1) for step in (-1, 1)], axis=0)
    inside[[0, -1]], inside[:, [0, -1]] = False, False
    large = np.kron(small, np.ones((4, 4), np.uint8)), np.kron(inside, np.ones((4, 4), bool))
    assert (labels[large[1]] == large[0][large[1]]).mean() > 0.95


@pytest.mark.parametrize("size", [(32, 16), (64, 32), (1, 32)])
def test_holes_do_not_move_what_lies_beside_them(tmp_path, size):
    """The classes of a whole image lie where those are that evaluation counts, whatever is empty above and left."""
    from castvision.inference.fitted import FittedModel
    from castvision.inference.predictor import load_model

    torch.manual_seed(0)
    seen = InputFormat(3, (32, 32), (0.5,) * 3, (0.2,) * 3, resize="fit")
    small_model = {"depth": 1, "in_chans": 3}
    recipe = Recipe(
        "segmentation", "cast_vit_atto_patch4_32", 3, model_kwargs=small_model, head="LinearHead", input=seen
    )
    save_checkpoint(tmp_path / "m.ckpt", recipe, build(recipe))
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8)
    is_known = np.ones(size, bool)
    is_known[: size[0] // 4], is_known[:, :4] = False, False
    model = FittedModel(load_model(tmp_path / "m.ckpt"), pixels.dtype, "photo")
    small, target = model.measure(mark_missing(pixels, is_known[..., None]), np.zeros(size, np.uint8))
    step = max(size) // 32
    np.testing.assert_array_equal(target == 255, ~is_known[::step, ::step])
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None].float().masked_fill(~torch.from_numpy(is_known), torch.nan)
    logits = model(planes, pixel_mask=torch.from_numpy(is_known)[None])
    shown = functional.interpolate(logits, size=small.shape, mode="area").argmax(dim=1)[0].numpy()
    assert logits.shape[-2:] == size
    assert (shown == small)[target != 255].mean() > (0.99 if step == 1 else 0.9)


def test_of_whole_images_that_miss_some_bands_the_others_are_used(tmp_path):
    """What is missing is the mean to the model, as in training, and not the nodata value that the file holds."""
    from castvision.data import open_image
    from castvision.inference.fitted import FittedModel
    from castvision.inference.predictor import load_model

    torch.manual_seed(0)
    seen = InputFormat(3, (32, 32), (0.5,) * 3, (0.1,) * 3, resize="fit")
    small_model = {"depth": 1, "in_chans": 3}
    recipe = Recipe(
        "segmentation",
        "cast_vit_atto_patch4_32",
        3,
        ("a", "b", "c"),
        model_kwargs=small_model,
        head="LinearHead",
        input=seen,
    )
    save_checkpoint(tmp_path / "m.ckpt", recipe, build(recipe))
    pixels = np.random.default_rng(0).integers(1, 255, (32, 32, 3)).astype(np.uint8)
    pixels[16:, :, 0] = 0
    tifffile.imwrite(tmp_path / "scene.tif", pixels, extratags=[(42113, "s", 0, "0", True)])
    with open_image(tmp_path / "scene.tif") as reader:
        read = reader.read_masked(0, 0, 32, 32)
    assert np.ma.getmaskarray(read).sum() == 16 * 32
    wanted, _ = FittedModel(load_model(tmp_path / "m.ckpt"), pixels.dtype, "").measure(
        read, np.zeros((32, 32), np.uint8)
    )
    words = ["predict", tmp_path / "scene.tif", "--model", tmp_path / "m.ckpt", "--output", tmp_path / "out"]
    assert main([*map(str, words)]) == 0
    with open_image(next((tmp_path / "out/masks").iterdir())) as reader:
        np.testing.assert_array_equal(reader.read(0, 0, 32, 32)[..., 0], wanted)


@pytest.mark.parametrize("size", [(32, 32), (32, 21), (27, 30)])
def test_crops_that_have_the_training_size_leave_tiles(tmp_path, size):
    """Oblong ones are padded in both; `evaluate` continued them by reflection, or refused parts of patches."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(4):
            image, mask = disks(rng, *size)
            save(tmp_path / "data" / split / "images" / f"{number}.png", image)
            save(tmp_path / "data" / split / "masks" / f"{number}.png", mask)
    flags = ["--model.model_kwargs", "{img_size: 32, in_chans: 3, depth: 2}", "--data.img_size", max(size)]
    trained = run_of(tmp_path, "segmentation_folder", *flags)
    assert torch.load(tmp_path / "run/best.ckpt", weights_only=True)["castvision"]["resize"] == "none"
    val = tmp_path / "data/val"
    found = measured(tmp_path, "--images", val / "images", "--masks", val / "masks")
    assert found["confusion"] == trained["confusion"]


def test_held_out_images_alone_of_another_size_are_resized_by_every_door(tmp_path, capsys):
    """`evaluate` tiled them at their own pixels."""
    pairs(tmp_path / "data")
    rng = np.random.default_rng(0)
    for number in range(8):
        image, mask = disks(rng, 32, 32)
        save(tmp_path / f"data/train/images/{number}.png", image)
        save(tmp_path / f"data/train/masks/{number}.png", mask)
    trained = run_of(tmp_path, "segmentation_folder", "--model.model_kwargs", "{img_size: 32, in_chans: 3, depth: 2}")
    assert "training images are 32 pixels already; those of val are not" in " ".join(capsys.readouterr().err.split())
    assert torch.load(tmp_path / "run/best.ckpt", weights_only=True)["castvision"]["resize"] == "fit"
    val = tmp_path / "data/val"
    found = measured(tmp_path, "--images", val / "images", "--masks", val / "masks")
    assert found["confusion"] == trained["confusion"]
