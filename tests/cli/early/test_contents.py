"""Mistakes in values, data and checkpoints are said before the libraries that take seconds to import are imported."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from castvision.models.segmenter import create_segmenter
from tests.inference.prediction_cases import ATTO, save

pytestmark = pytest.mark.slow

PROGRAM = """
import sys
from castvision_cli import main
heavy, *words = sys.argv[1:]
assert main(words) == 2
assert not {*heavy.split()} & {*sys.modules}
"""
HEAVY = "castvision.models castvision.training torch timm lightning jsonargparse"
SPLITS = ("train", "val")
OF_SEGMENTATION = "train --config segmentation_folder --data.root"
OF_CLASSES = "train --config image_folder --data.root"
OF_WINDOWS = "train --config windows --data.root"
OF_OBJECTS = "train --config instances --data.root"
PREDICT = "predict ok/train/images --model model.ckpt --output out"
EVALUATE = "evaluate --model model.ckpt --images ok/train/images --output out"


def _image(path, size=(32, 32), channels=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(abs(hash(str(path))) % (1 << 32))
    pixels = rng.integers(0, 256, (*size, channels), dtype=np.uint8)
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")
    else:
        Image.fromarray(pixels).save(path)
    return path


def _mask(path, size=(32, 32), labels=(0, 1)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.resize(np.array(labels, np.uint8), size)
    Image.fromarray(pixels).save(path)


def _pairs(root, masks="masks", count=2):
    for split in SPLITS:
        for number in range(count):
            _image(root / split / "images" / f"{split}{number}.png")
            _mask(root / split / masks / f"{split}{number}.png")
    return root


def _classes(root, held_out=("cat", "dog")):
    for split, names in (("train", ("cat", "dog")), ("val", held_out)):
        for name in names:
            for number in range(2):
                _image(root / split / name / f"{number}.png")
    return root


def _coco(root, change=lambda content: None):
    for split, first in (("train", 0), ("val", 10)):
        for number in range(2):
            _image(root / split / f"{number}.png")
        outline = {"segmentation": [[1, 1, 20, 1, 20, 20]], "bbox": [1, 1, 19, 19]}
        content = {
            "images": [{"id": first + n, "file_name": f"{n}.png", "height": 32, "width": 32} for n in range(2)],
            "categories": [{"id": 1, "name": "crack"}],
            "annotations": [{"id": 1, "image_id": first, "category_id": 1, **outline}],
        }
        text = change(content)
        (root / f"{split}.json").write_text(text or json.dumps(content))
    init = {"root": str(root.name), "annotations": {split: f"{split}.json" for split in SPLITS}}
    init["folders"] = {split: split for split in SPLITS}
    _config(root.with_suffix(".yaml"), "CocoDataModule", init, "SegmentationTask")


def _config(path, data, init, task):
    path.write_text(
        json.dumps({"data": {"class_path": data, "init_args": init}, "model": {"class_path": task, "init_args": {}}})
    )


def _wrong_masks(root):
    (_pairs(root / "no_mask") / "train/masks/train1.png").unlink()
    (_pairs(root / "no_image") / "val/images/val1.png").unlink()
    _mask(_pairs(root / "sizes") / "train/masks/train1.png", (16, 16))
    _mask(_pairs(root / "label") / "val/masks/val1.png", labels=(0, 1, 7))
    (root / "label/classes.txt").write_text("background\ncrack\n")
    (_pairs(root / "text") / "val/images/val1.png").write_text("hello")
    for path in _pairs(root / "one_class").glob("*/masks/*.png"):
        _mask(path, labels=(0, 255))
    leak = _pairs(root / "leak")
    (leak / "val/images/val0.png").write_bytes((leak / "train/images/train0.png").read_bytes())
    for split in SPLITS:
        for number in range(2):
            _mask(root / "nothing" / split / "masks" / f"{number}.png")
            path = root / "nothing" / split / "images" / f"{number}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, np.full((32, 32 + number), np.nan, np.float32)[:, :32])
    for name, line in (("column", "image,label\na.png,m.png\n"), ("gone", "image,mask\na.png,m.png\nz.png,m.png\n")):
        _image(root / name / "a.png")
        _mask(root / name / "m.png")
        (root / name / "list.csv").write_text(line)
    (root / "gone/splits.csv").write_text("image,mask,split\na.png,m.png,dev\n")


def _wrong_classes(root):
    _classes(root / "other_classes", ("cat", "cow"))
    leak = _classes(root / "class_leak")
    (leak / "val/cat/0.png").write_bytes((leak / "train/cat/0.png").read_bytes())
    for path in (_classes(root / "no_images") / "train/dog").iterdir():
        path.unlink()
    (_classes(root / "class_text") / "train/cat/1.png").write_text("hello")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Good data, and a copy of them for each mistake."""
    root = tmp_path_factory.mktemp("mistakes")
    torch.manual_seed(0)
    model = create_segmenter(ATTO, 3, head="LinearHead", model_kwargs={"depth": 2, "in_chans": 3})
    save(root / "model.ckpt", model)
    save(root / "features.ckpt", model, task="features", num_classes=0, class_names=[])
    save(root / "classes.ckpt", model, task="classification", class_names=["cat", "dog", "cow"])
    save(root / "labels.ckpt", model, task="multilabel", class_names=["sun", "sea", "sand"])
    (root / "empty").mkdir()
    (root / "optimizer.yaml").write_text("model: {init_args: {optimizer: {class_path: AdamW, init_args: {lrr: 1}}}}")
    (root / "callback.yaml").write_text("trainer: {callbacks: [{class_path: my.Own}]}")
    callback = "lightning.pytorch.callbacks.EarlyStopping"
    (root / "monitor.yaml").write_text(
        f"trainer: {{callbacks: [{{class_path: {callback}, init_args: {{patience: 1}}}}]}}"
    )
    _image(root / "good.png")
    _image(root / "bands.tif", channels=5)
    (root / "cut.tif").write_bytes((root / "bands.tif").read_bytes()[:40])
    _pairs(root / "ok")
    _wrong_masks(root)
    _wrong_classes(root)
    _coco(root / "coco_json", lambda content: "{]")
    _coco(root / "coco_boxes", lambda content: content["annotations"][0].pop("segmentation") and None)
    _coco(root / "coco_ids", lambda content: content["images"][1].update(id=content["images"][0]["id"]))
    _coco(root / "coco_category", lambda content: content["annotations"][0].update(category_id=5))
    _image(root / "table/a.png")
    _image(root / "table/b.png")
    (root / "table/train.csv").write_text("path,sun,sea\na.png,1,2\n")
    (root / "table/val.csv").write_text("path,sun,sea\nb.png,1,0\n")
    (root / "table/one.csv").write_text("path,labels\na.png,moon\n")
    _config(root / "table.yaml", "MultiLabelCsvDataModule", {"root": "table"}, "MultiLabelTask")
    _pairs(root / "no_object", "objects")
    (root / "no_object/train/objects/train1.png").unlink()
    for name in ("windows", "window_size"):
        for number in range(2):
            _image(root / name / "images" / f"{number}.png", (64, 64))
            _mask(root / name / "masks" / f"{number}.png", (64, 64))
    _mask(root / "window_size/masks/1.png", (32, 32))
    for name in ("full", "finished", "unfinished"):
        (root / name).mkdir()
        (root / name / ("last.ckpt" if name == "unfinished" else "metrics.json")).write_text("{}")
    return root


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (f"{OF_SEGMENTATION} no_mask", "'no_mask/train/images/train1.png' has no mask 'train1'"),
        (f"{OF_SEGMENTATION} no_image", "'no_image/val/masks/val1.png' has no image 'val1'"),
        (f"{OF_SEGMENTATION} sizes", "expected image and mask of one size, got 'sizes/train/images/train1.png'"),
        (f"{OF_SEGMENTATION} label", "expected labels 0, 1, 255 in the mask 'label/val/masks/val1.png'"),
        (f"{OF_SEGMENTATION} text", "cannot read image 'text/val/images/val1.png': expected one of PNG"),
        (f"{OF_SEGMENTATION} one_class", "expected two classes or more in the training masks"),
        (f"{OF_SEGMENTATION} leak", "got the same image in train ('leak/train/images/train0.png') and val"),
        (f"{OF_SEGMENTATION} nothing", "expected labelled pixels in the masks of val, found none in 2"),
        (f"{OF_SEGMENTATION} ok --data.pixels.bands [9]", "expected bands within 1..3 of 'ok/train/images/train0.png'"),
        (f"{OF_SEGMENTATION} ok --data.batch_size 50", "expected at least batch_size training images, got 2 and"),
        (f"{OF_SEGMENTATION} column/list.csv", "line 1: expected the columns image, mask, got image, label"),
        (f"{OF_SEGMENTATION} gone/list.csv", "expected an image file at 'gone/z.png', found none"),
        (f"{OF_SEGMENTATION} gone/splits.csv", "line 2: expected a split train, val or test, got 'dev'"),
        (f"{OF_SEGMENTATION} ok --resume", "nothing to resume: no last.ckpt in 'runs/segmentation_folder'"),
        (f"{OF_SEGMENTATION} ok --run_dir finished", "'finished' holds a finished run"),
        (f"{OF_SEGMENTATION} ok --run_dir unfinished", "'unfinished' holds an unfinished run; go on with --resume"),
        ("train test --config quickstart --ckpt_path gone.ckpt", "expected a checkpoint at 'gone.ckpt', found no such"),
        ("train validate --config quickstart", "no best.ckpt in 'runs/quickstart': give --ckpt_path"),
        (f"{OF_CLASSES} other_classes", "expected the same classes in train and val of 'other_classes', differing:"),
        (f"{OF_CLASSES} class_leak", "got the same image in train ('class_leak/train/cat/0.png') and val"),
        (f"{OF_CLASSES} no_images", "found no image for the classes dog in 'no_images/train'"),
        (f"{OF_CLASSES} class_text", "cannot read image 'class_text/train/cat/1.png'"),
        ("train --config coco_json.yaml", "expected JSON in 'coco_json/train.json'"),
        ("train --config coco_boxes.yaml", "annotation 1: expected an outline (segmentation), got a box alone"),
        ("train --config coco_ids.yaml", "expected images of different ids in 'coco_ids/train.json', got 0 twice"),
        ("train --config coco_category.yaml", "annotation 1: category_id 5 is not in the file"),
        ("train --config table.yaml", "table/train.csv, line 2: expected 0 or 1 in the column 'sea', got '2'"),
        (f"{OF_OBJECTS} no_object", "'no_object/train/images/train1.png' has no mask 'train1'"),
        (f"{OF_WINDOWS} window_size", "expected a mask of its image's size 64 × 64 ('window_size/images/1.png')"),
        (f"{OF_WINDOWS} windows --data.level 3", "expected level in 0..0 of 'windows/images/0.png', got level=3"),
        (f"{OF_WINDOWS} windows --data.class_names [a]", "expected labels 0..0 (or 255, ignored) in 'windows/masks/0"),
        ("data show --config segmentation_folder --data.root no_mask --output a.png", "has no mask 'train1'"),
        ("data convert empty --output out", "expected LabelMe's JSON files in 'empty', found none"),
        (f"{PREDICT} --bands 9", "expected bands within 1..3 of 'ok/train/images/train0.png', got [9]"),
        (f"{PREDICT} --tile 30", "expected --tile a multiple of 4 (the patch of cast_vit_atto_patch4_32), got 30"),
        (f"{PREDICT} --tile 32 --overlap 32", "expected 2 * halo <= overlap < tile"),
        (f"{EVALUATE} --masks ok/train/masks --tile 30", "expected --tile a multiple of 4"),
        ("embed good.png --model vit_tiny_patch16_224 --output out --tile 30", "expected --tile a multiple of 16"),
        (f"{PREDICT} --mpp 0.5", "does not state how large its pixels are"),
        (f"{PREDICT} --mask no_mask/train/masks", "no mask in 'no_mask/train/masks' for ok/train/images/train1.png"),
        ("predict bands.tif --model model.ckpt --output out", "expected an image with 3 channels for this"),
        ("predict cut.tif --model model.ckpt --output out", "cannot read image 'cut.tif'"),
        ("predict good.png --model features.ckpt --output out", "was trained for its features and has no classes"),
        ("predict good.png --model vit_tiny_patch16_224 --output out", "vit_tiny_patch16_224 is untrained"),
        ("predict good.png --model model.ckpt --output full", "output folder is not empty: 'full'"),
        ("predict good.png --model model.ckpt --output good.png/out", "expected a folder for the output, got a file"),
        ("embed good.png --model model.ckpt --output out --bands 9", "expected bands within 1..3 of 'good.png', got"),
        ("demo cut.tif --model model.ckpt --output out", "cannot read image 'cut.tif'"),
        (EVALUATE, f"{ATTO} is a segmentation model: it needs --masks"),
        (f"{EVALUATE} --masks no_mask/train/masks", "no mask in 'no_mask/train/masks' for ok/train/images/train1.png"),
        (f"{EVALUATE} --masks ok/train/masks --bands 9", "expected bands within 1..3 of 'ok/train/images/train0.png'"),
        (f"{EVALUATE} --masks ok/train/masks --label-map {{0:,1:rust}}", "rust"),
        ("evaluate --model model.ckpt --images one_class/train/images --masks one_class/train/masks --output out",
         "expected two classes or more in the masks"),
        ("evaluate --model model.ckpt --labels table/one.csv --output out", "is a segmentation model: it needs --mas"),
        ("evaluate --model classes.ckpt --images ok/train --output out", "expected one folder for each class (cat"),
        ("evaluate --model labels.ckpt --labels table/one.csv --output out", "moon"),
        ("evaluate --model labels.ckpt --images ok/train/images --output out", "it needs --labels LIST.csv"),
        ("train --config quickstart --trainer.num_nodes 0", "expected trainer.num_nodes >= 1, got 0"),
        ("train --config quickstart --data.img_size x", "expected data.img_size to be int, got 'x'"),
        ("train --config quickstart --model FooTask", "unknown class 'FooTask' as model"),
        ("train --config quickstart --model.optimizer AdmaW", "unknown optimizer 'AdmaW': did you mean AdamW?"),
        ("train --config quickstart --model.optimizer torch.optim.Foo", "no class 'Foo' in torch.optim"),
        ("train --config quickstart --model.optimizer os.system", "the configuration names os.system, which is not"),
        ("train --config quickstart --config optimizer.yaml", "'lrr' is not accepted in model.optimizer"),
        ("train --config quickstart --model.optimizer timm.optim.Lionn", "did you mean timm.optim.Lion?"),
        ("train --config quickstart --trainer.logger lightning.pytorch.loggers.CSVLoger", "loggers.CSVLogger?"),
        ("train --config quickstart --config callback.yaml", "the configuration names my.Own, which is not among"),
        ("train --config quickstart --model.schedule.warmup -1", "expected 0 <= model.schedule.warmup < 1, got -1"),
        ("train --config quickstart --trainer.strategy foo", "expected trainer.strategy such as auto, ddp, deepspeed"),
        ("predict good.png --model pathfinder32_join --output out --tile 30", "expected --tile a multiple of 4"),
        ("evaluate --model pathfinder32_join --images . --output out", "it needs --masks"),
        ("train --config quickstart --config monitor.yaml", "expected EarlyStopping.monitor in trainer.callbacks"),
        ("train --config quickstart --trainer.callbacks EarlyStoping", "did you mean EarlyStopping?"),
        ("train --config quickstart --trainer.limit_val_batches 1.5", "expected trainer.limit_val_batches as a share"),
        ("train --config quickstart --trainer.devices foo", "expected trainer.devices as how many"),
        ("train --config quickstart --model.schedule.kind x", "'kind' is not accepted in model.schedule"),
        ("train --config quickstart --model.optimizer.momentum 1", "'momentum' is not accepted in model.optimizer"),
        ("train --config quickstart --model.layer_decay 7", "expected 0 < model.layer_decay <= 1, got 7"),
        ("train --config quickstart --model.out_indices 3", "expected model.out_indices to be list[int] or null, got"),
        ("train --config quickstart --trainer.accelerator tpu", "expected torch_xla for trainer.accelerator=tpu"),
        ("evaluate --model vit_tinny --images ok --output out", "unknown model 'vit_tinny', did you mean"),
        ("demo good.png --model vit_tinny --output out", "unknown model 'vit_tinny', did you mean"),
        ("export vit_tinny --format onnx --output out", "unknown model 'vit_tinny', did you mean"),
        ("benchmark foo", "expected levels of op, layer"),
        ("export vit_tiny_patch16_224 --format onnx --output out", "no such checkpoint: 'vit_tiny_patch16_224'"),
    ],
)  # fmt: skip
def test_torch_is_not_imported_for_it(folder, arguments, message):
    _refused(folder, HEAVY, arguments, message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model.model_kwargs.depht 3", "got an unexpected keyword argument 'depht'; did you mean 'depth'?"),
        ("--model.model_kwargs '{attn_layer: full, window_size: 4}'", "expected attn_layer='cast' with window_size=4"),
        ("--model.head_kwargs.foo 3", "UpsamplingHead.__init__() got an unexpected keyword argument 'foo'"),
        ("--model.model_name vit_tiny_patch16_224 --init-from model.ckpt", "is the checkpoint of another architecture"),
        ("--model.freeze [nothing]", "the pattern 'nothing' of freeze matches no parameter"),
        ("--model.loss '{hinge: 1}'", "expected a factor > 0 for some of ['ce', 'dice', 'focal']"),
        ("--model.class_weights [1,2,3]", "expected one weight >= 0 for each class"),
        ("--data.contour_length 900", "expected 2 <= contour_length <= 32, got contour_length=900"),
        ("--data.img_size 8", "img_size"),
        ("--config maze64 --data.cell 1", "cell"),
        ("--config region64 --data.share 3", "share"),
        ("--config copymove64 --data.decoys 9", "decoys"),
        ("--config pathfinder_seg32 --data.contour_length 200", "contour_length"),
    ],
)
def test_lightning_is_not_imported_for_what_a_model_or_a_generator_refuses(folder, arguments, message):
    heavy = "castvision.training lightning jsonargparse"
    _refused(folder, heavy, f"train --config quickstart {arguments}", message)


def _refused(folder, heavy, arguments, message):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, heavy, *shlex.split(arguments)], capture_output=True, text=True, check=False,
        cwd=folder,
        env={"PYTHONPATH": ":".join([*sys.path, str(Path(__file__).parents[3])])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *usage, line = done.stderr.splitlines()
    assert message in line
    assert not usage
    assert not (folder / "out").exists()
