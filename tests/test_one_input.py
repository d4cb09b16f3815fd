"""One image through every door, in training and in prediction: a model sees the same tensor, bit for bit."""

from __future__ import annotations

import json
import pickle
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import timm
import torch
from lightning.pytorch import Trainer
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn
from torchvision.datasets import CIFAR10

from castvision.data import open_array, open_image
from castvision.data.datasets.lra import LRAImage
from castvision.data.datasets.samples import to_channels
from castvision.data.reading.whole import read_image
from castvision.data.transforms.augmentation import Augmentation
from castvision.data.transforms.model_input import to_model_input
from castvision.inference.predictor import load_model
from castvision.inference.tile_model import TileModel, model_range
from castvision.inference.tiled import tiled_inference
from castvision.models.recipe import InputFormat, Recipe, build, save
from castvision.models.segmenter import Segmenter
from castvision.training.data.classification import (
    CIFAR10_NAMES,
    ImageFolderDataModule,
    LRAImageDataModule,
    LRAPathfinderDataModule,
)
from castvision.training.data.multilabel import MultiLabelCsvDataModule
from castvision.training.data.named_data import NamedDataModule
from castvision.training.data.pixel_data import CocoDataModule, ImageFormat, SegmentationDataModule
from castvision.training.data.windows import WindowDataModule
from castvision.training.tasks.segmentation import SegmentationTask
from castvision_cli import show_data
from castvision_cli.demo import main as demo
from castvision_cli.evaluate import main as evaluate
from castvision_cli.predict import main as predict
from tests.data.image_files import save_apart

SIDE = 32
NAMES = ["ground", "roof"]
VIT = {"img_size": SIDE, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "dynamic_img_size": True}
HOW = {"batch_size": 2, "num_workers": 0}
STILL = Augmentation(scale=(1.0, 1.0), hflip=0.0)
RNG = np.random.default_rng(0)
IMAGES = {
    "uint8": RNG.integers(0, 256, (SIDE, SIDE, 3), np.uint8),
    "uint16": RNG.integers(0, 65536, (SIDE, SIDE, 3), np.uint16),
    "int16": RNG.integers(-3000, 3000, (SIDE, SIDE, 3), np.int16),
    "float32": RNG.normal(285, 10, (SIDE, SIDE, 3)).astype(np.float32),
}
STATISTICS = {
    "uint8": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    "uint16": ((0.41, 0.52, 0.63), (0.21, 0.22, 0.23)),
    "int16": ((-12.3, 45.6, 0.1), (1000.7, 900.1, 800.3)),
    "float32": ((285.1, 284.9, 285.3), (9.9, 10.1, 10.3)),
}


def expected(kind):
    """Of the image as the files hold it."""
    return to_model_input(IMAGES[kind], 3, *STATISTICS[kind], keep_units=True)


def write_image(path, kind):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, IMAGES[kind], photometric="rgb", description=str(path))  # no file is another's copy


def write_mask(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[8:] = 1
    Image.fromarray(mask).save(path)


def folder_data(root, kind, pixels):
    for split in ("train", "val"):
        for name in "ab":
            write_image(root / split / "images" / f"{name}.tif", kind)
            write_mask(root / split / "masks" / f"{name}.png")
    return SegmentationDataModule(str(root), NAMES, SIDE, pixels=pixels, augmentation=STILL, **HOW)


def coco_data(root, kind, pixels):
    outline = {"category_id": 1, "iscrowd": 0, "segmentation": [[2, 2, 20, 2, 20, 20, 2, 20]]}
    content = {
        "categories": [{"id": 1, "name": "roof"}],
        "images": [{"id": n, "file_name": f"{n}.tif", "height": SIDE, "width": SIDE} for n in range(2)],
        "annotations": [{"id": n + 1, "image_id": n, **outline} for n in range(2)],
    }
    paths = {split: f"{split}/all.json" for split in ("train", "val")}
    for split, path in paths.items():
        for number in range(2):
            write_image(root / split / f"{number}.tif", kind)
        (root / path).write_text(json.dumps(content))
    return CocoDataModule(str(root), paths, img_size=SIDE, pixels=pixels, augmentation=STILL, **HOW)


def label_data(root, kind, pixels):
    for split in ("train", "val"):
        for name in "ab":
            write_image(root / split / f"{name}.tif", kind)
        (root / f"{split}.csv").write_text(f"path,labels\n{split}/a.tif,ground\n{split}/b.tif,roof;ground\n")
    return MultiLabelCsvDataModule(str(root), img_size=SIDE, pixels=pixels, augmentation=STILL, **HOW)


def window_data(root, kind, pixels):
    for name in "ab":
        write_image(root / "images" / f"{name}.tif", kind)
        write_mask(root / "masks" / f"{name}.png")
    given = {"mean": pixels.mean, "std": pixels.std, "class_names": NAMES, "shares": {"train": 1, "val": 1}}
    return WindowDataModule(str(root), SIDE, symmetries=False, train_length=2, **given, **HOW)


def class_folders(root):
    for split in ("train", "val"):
        for name in NAMES:
            (root / split / name).mkdir(parents=True)
            save_apart(Image.fromarray(IMAGES["uint8"]), root / split / name / "a.png")


def named_data(root, kind, pixels):
    class_folders(root)
    how = {"class_names": NAMES, "pixels": pixels, "augmentation": STILL, **HOW}
    return NamedDataModule("timm/", str(root), img_size=SIDE, **how)


ANY_DTYPE = [(make, kind) for make in (folder_data, coco_data, label_data, window_data) for kind in IMAGES]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # timm's
@pytest.mark.parametrize(("make", "kind"), [*ANY_DTYPE, (named_data, "uint8")])
def test_training_and_held_out_images(tmp_path, make, kind, monkeypatch):
    mean, std = STATISTICS[kind]
    data = make(tmp_path, kind, ImageFormat(mean=list(mean), std=list(std)))
    assert (data.mean, data.std, data.keeps_units) == (tuple(mean), tuple(std), True)
    for split in ("train", "val"):
        assert torch.equal(data.dataset(split)[0][0], expected(kind))
    image, *_ = next(iter(data.train_dataloader()))
    assert torch.equal(image[0], expected(kind))
    shown = []

    def visible(images, *_):
        shown.append(images)
        return np.zeros((len(images), 4, 4, 3), np.uint8)

    monkeypatch.setattr("castvision.visualization.plots.visible", visible)
    show_data.draw_sheet(data, "train", 2)
    assert torch.equal(shown[0][0], expected(kind))


def test_windows_bring_the_context_that_prediction_makes(tmp_path):
    write_image(tmp_path / "images/a.tif", "float32")
    write_image(tmp_path / "images/b.tif", "float32")
    for name in "ab":
        write_mask(tmp_path / f"masks/{name}.png")
    mean, std = STATISTICS["float32"]
    given = {"mean": list(mean), "std": list(std), "class_names": NAMES, "shares": {"train": 1, "val": 1}}
    data = WindowDataModule(str(tmp_path), SIDE, context_size=(8, 8), symmetries=False, train_length=2, **given, **HOW)
    _, _, told = data.dataset("val")[0]
    kwargs = {"use_rot_pos_emb": True, "pos_embed": "none", "in_chans": 3, "depth": 1}
    model = {"model_name": "cast_vit_atto_patch4_32", "model_kwargs": kwargs, "context_size": (8, 8)}
    recipe = replace(segmenter_recipe(), **model)
    predictor, seen = predictor_of(tmp_path, recipe, "float32")
    with open_image(tmp_path / "images/a.tif") as reader:
        model = TileModel(predictor, 3, model_range(predictor, reader))
        tiled_inference(reader, model, tile=SIDE, overlap=0, context_size=(8, 8))
    (image,), (extras,) = seen.images, seen.extras
    assert torch.equal(image[0], expected("float32"))
    assert torch.equal(extras["context"][0], told["context"])
    assert torch.equal(extras["window"][0], told["window"])


def test_class_folders_go_through_timm_to_the_same_values(tmp_path):
    """Its crops aside: a crop of the whole image in training, the middle at the image's own scale in evaluation."""
    class_folders(tmp_path)
    still = {"scale": [1.0, 1.0], "ratio": [1.0, 1.0], "hflip": 0.0, "color_jitter": None}
    mean, std = STATISTICS["uint8"]
    given = {"mean": list(mean), "std": list(std), **HOW}
    data = ImageFolderDataModule(str(tmp_path), SIDE, augmentation=still, **given)
    assert torch.equal(data.dataset("train")[0][0], expected("uint8"))
    middle = ImageFolderDataModule(str(tmp_path), 28, **given).dataset("val")[0][0]
    assert torch.equal(middle, expected("uint8")[:, 2:30, 2:30])
    assert data.description()["keeps_units"] is False  # makes no difference to unsigned integers
    assert torch.equal(to_model_input(IMAGES["uint8"], 3, data.mean, data.std), expected("uint8"))


def test_the_long_range_arena(tmp_path, monkeypatch):
    grey = IMAGES["uint8"][..., 0]
    (tmp_path / "imgs").mkdir()
    (tmp_path / "metadata").mkdir()
    for n in range(20):
        Image.fromarray(grey).save(tmp_path / f"imgs/{n}.png")
    (tmp_path / "metadata/0.npy").write_text("\n".join(f"imgs {n}.png {n} {n % 2} 1 1 1 1 1 1 1" for n in range(20)))
    data = LRAPathfinderDataModule(str(tmp_path), SIDE, num_workers=0)
    assert torch.equal(data.dataset("train")[0][0], to_model_input(grey, 1, data.mean, data.std))

    class Tiny(CIFAR10):
        train_list, test_list = [("data_batch_1", None)], [("test_batch", None)]  # torchvision's
        meta = {"filename": "batches.meta", "key": "label_names", "md5": None}  # noqa: RUF012

    monkeypatch.setattr(LRAImage, "source", Tiny)
    folder = tmp_path / Tiny.base_folder
    folder.mkdir()
    planes = IMAGES["uint8"].transpose(2, 0, 1).reshape(1, 3072).repeat(10, 0)
    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_bytes(pickle.dumps({"data": planes, "labels": list(range(10))}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CIFAR10_NAMES}))
    data = LRAImageDataModule(str(tmp_path), num_workers=0)
    turned = np.asarray(Image.fromarray(IMAGES["uint8"]).convert("L"))
    assert torch.equal(data.dataset("train")[0][0], to_model_input(turned, 1, data.mean, data.std))


# ---------------------------------------------------------------- prediction


class Seen:
    def __init__(self):
        self.images, self.extras = [], []


@contextmanager
def watching(model_type):
    """What every model of a type is called with."""
    seen = Seen()

    def note(module, args, kwargs):
        seen.images.append(args[0].detach().cpu().clone())
        seen.extras.append(kwargs)

    def watch(module, args, kwargs=None):
        if isinstance(module, model_type) and not hasattr(module, "_is_watched"):
            module._is_watched = True
            module.register_forward_pre_hook(note, with_kwargs=True)
            seen.images.append(args[0].detach().cpu().clone())  # the hook counts from the next call on

    handle = nn.modules.module.register_module_forward_pre_hook(watch)
    try:
        yield seen
    finally:
        handle.remove()


def segmenter_recipe():
    return Recipe("segmentation", "vit_tiny_patch16_224", 2, tuple(NAMES), VIT, "LinearHead")


def classifier_recipe():
    return Recipe("classification", "vit_tiny_patch16_224", 2, tuple(NAMES), {**VIT, "dynamic_img_size": False})


def write_checkpoint(folder, recipe, kind, **change):
    facts = {"in_chans": 3, "img_size": (SIDE, SIDE), "mean": STATISTICS[kind][0], "std": STATISTICS[kind][1], **change}
    torch.manual_seed(0)
    save(folder / "a.ckpt", replace(recipe, input=InputFormat(**facts)), build(recipe))
    return folder / "a.ckpt"


def predictor_of(folder, recipe, kind, keeps_units=True):
    predictor = load_model(write_checkpoint(folder, recipe, kind, keeps_units=keeps_units))
    seen = Seen()

    def note(module, args, kwargs):
        seen.images.append(args[0])
        seen.extras.append(kwargs)

    predictor.model.register_forward_pre_hook(note, with_kwargs=True)
    return predictor, seen


@pytest.mark.parametrize("kind", IMAGES)
def test_whole_images_and_one_tile(tmp_path, kind):
    write_image(tmp_path / "image.tif", kind)
    predictor, seen = predictor_of(tmp_path, segmenter_recipe(), kind)
    assert torch.equal(predictor.prepare(read_image(tmp_path / "image.tif"))[0], expected(kind))
    with open_image(tmp_path / "image.tif") as reader:
        model = TileModel(predictor, 3, model_range(predictor, reader))
        tiled_inference(reader, model, tile=SIDE, overlap=0)
    assert [torch.equal(image[0], expected(kind)) for image in seen.images] == [True]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_images_without_units_too_and_grey_and_rgb(tmp_path, dtype, channels, in_chans):
    """Each image's own range becomes 0..1; what is shown is not what was trained on, but alike for tiles and wholes."""
    pixels = IMAGES[dtype][..., :channels]
    recipe = replace(segmenter_recipe(), model_kwargs={**VIT, "in_chans": in_chans})
    path = write_checkpoint(tmp_path, recipe, "uint8", in_chans=in_chans, mean=(0.4,), std=(0.2,))
    predictor = load_model(path)
    is_whole = pixels.dtype.kind in "bui"
    with open_array(pixels) as reader, watching(Segmenter) as seen:
        model = TileModel(predictor, channels, model_range(predictor, reader), is_whole=is_whole)
        tiled_inference(reader, model, tile=SIDE, overlap=0)
    assert torch.equal(seen.images[0], predictor.prepare(pixels))
    if dtype.startswith("uint"):  # others have units in training
        trained = to_model_input(to_channels(pixels, in_chans, "a"), in_chans, (0.4,), (0.2,))
        assert torch.equal(seen.images[0][0], trained)


@pytest.mark.parametrize("kind", IMAGES)
def test_commands(tmp_path, kind):
    write_image(tmp_path / "images/a.tif", kind)
    write_image(tmp_path / "classes/roof/a.tif", kind)
    write_mask(tmp_path / "masks/a.png")
    image, outputs = str(tmp_path / "images/a.tif"), iter(range(9))
    (tmp_path / "classifier").mkdir()
    (tmp_path / "segmenter").mkdir()
    whole = str(write_checkpoint(tmp_path / "classifier", classifier_recipe(), kind, keeps_units=True))
    dense = str(write_checkpoint(tmp_path / "segmenter", segmenter_recipe(), kind, keeps_units=True))

    def run(command, *arguments):
        with watching((Segmenter, timm.models.VisionTransformer)) as seen:
            assert command([*arguments, "--output", str(tmp_path / f"out{next(outputs)}")]) == 0
        assert seen.images
        return all(torch.equal(tensor, expected(kind)[None]) for tensor in seen.images)

    for model in (whole, dense):
        assert run(predict, image, "--model", model)
        assert run(demo, image, "--model", model)
    assert run(evaluate, "--images", str(tmp_path / "images"), "--masks", str(tmp_path / "masks"), "--model", dense)
    assert run(evaluate, "--images", str(tmp_path / "classes"), "--model", whole)


@pytest.mark.filterwarnings("ignore")  # Lightning's own
@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_one_step_of_training_and_the_model_it_leaves(tmp_path, kind):
    data = folder_data(tmp_path, kind, ImageFormat())
    task = SegmentationTask("vit_tiny_patch16_224", 2, VIT, head="LinearHead")
    before = task.model.head.classifier.weight.detach().clone()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_steps=1, limit_val_batches=0, default_root_dir=tmp_path, **quiet)
    with watching(Segmenter) as seen:
        trainer.fit(task, data)
    assert trainer.global_step == 1
    assert not torch.equal(task.model.head.classifier.weight, before)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    predictor = load_model(tmp_path / "last.ckpt")
    assert (predictor.parts.input.mean, predictor.parts.input.keeps_units) == (data.mean, True)
    prepared = predictor.prepare(IMAGES[kind])
    assert seen.images and all(torch.equal(image, prepared[0]) for batch in seen.images for image in batch)
    assert all(torch.equal(value, task.model.state_dict()[key]) for key, value in predictor.model.state_dict().items())
