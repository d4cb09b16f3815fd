"""From folders of large images and masks to a trained segmenter."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
import torch

from castvision.data import open_image
from castvision.data.datasets.window_folders import find_pairs
from castvision.training.data.windows import WindowDataModule
from castvision_cli import train as cli
from castvision_cli.predict import main as predict

RNG = np.random.default_rng(0)


UTM = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633)
GROUND = [
    (33550, "d", 3, (10.0, 10.0, 0.0), True), (33922, "d", 6, (0, 0, 0, 5e5, 4.6e6, 0), True),
    (34735, "H", 16, UTM, True),
]  # fmt: skip


def write_rasters(root, count: int = 10, size: tuple[int, int] = (90, 130), channels: int = 3, dtype=np.uint8):
    """Tiled TIFFs whose pixels above half of the range are of class 1; georeferenced, where they have many bands."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    for number in range(count):
        coarse = RNG.integers(0, 2, (size[0] // 10 + 1, size[1] // 10 + 1))
        mask = np.kron(coarse, np.ones((10, 10), int))[: size[0], : size[1]].astype(np.uint8)
        noise = RNG.integers(0, np.iinfo(dtype).max // 2, (*size, channels))
        pixels = (noise + mask[..., None].astype(int) * (np.iinfo(dtype).max // 2)).astype(dtype)
        bands = pixels if channels == 3 else np.moveaxis(pixels, -1, 0)
        how = {"photometric": "rgb"} if channels == 3 else {
            "photometric": "minisblack", "planarconfig": "separate", "extratags": GROUND, "metadata": None,
        }  # fmt: skip
        tifffile.imwrite(root / "images" / f"{number}.tif", bands, tile=(32, 32), compression="zlib", **how)
        tifffile.imwrite(root / "masks" / f"{number}.tif", mask, tile=(32, 32), compression="zlib")
    return root


def test_facts_and_batches_by_source(tmp_path):
    data = WindowDataModule(str(write_rasters(tmp_path)), size=32, train_length=40, batch_size=4, num_workers=0)
    assert data.class_names == ["background", "object"]
    assert (data.in_chans, data.img_size) == (3, (32, 32))
    assert np.allclose(data.mean, 0.5, atol=0.05) and np.allclose(data.std, 0.29, atol=0.03)
    owners = [{source for source, _ in data.dataset(split).regions} for split in ("train", "val", "test")]
    assert [len(owner) for owner in owners] == [8, 1, 1]
    assert set.union(*owners) == set(range(10))
    batches = list(data.train_dataloader())
    assert len(batches) == 10
    image, mask, extras, _ = batches[0]
    assert extras == {}  # no window is padded
    assert image.shape == (4, 3, 32, 32) and image.dtype == torch.float32
    assert mask.shape == (4, 32, 32) and mask.dtype == torch.int64
    assert len(data.dataset("val")) == 3 * 5
    image, mask, extras, _ = next(iter(data.val_dataloader()))
    assert torch.equal(extras["pixel_mask"], mask != 255)  # the grid's last windows hang over


def test_images_that_are_all_alike_are_split_by_name(tmp_path, caplog):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        for number in range(3):
            pixels = np.eye(64, dtype=np.uint8) * (200 if part == "images" else 1)
            tifffile.imwrite(tmp_path / part / f"{number}.tif", pixels)
    data = WindowDataModule(str(tmp_path), size=32, num_workers=0)
    owners = [{source for source, _ in data.dataset(split).regions} for split in ("train", "val", "test")]
    assert sorted(map(list, owners)) == [[0], [1], [2]]
    assert "all 3 images are of the same content" in caplog.text


def test_each_epoch_has_new_windows_the_same_in_every_run(tmp_path):
    root = str(write_rasters(tmp_path))

    def epoch(number: int) -> torch.Tensor:
        loader = WindowDataModule(root, size=16, train_length=8, batch_size=4, num_workers=0).train_dataloader()
        loader.sampler.set_epoch(number)
        return torch.cat([image for image, *_ in loader])

    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(0), epoch(1))


def test_blocks_and_names_from_a_file(tmp_path):
    root = write_rasters(tmp_path, count=1, size=(200, 230))
    (root / "classes.txt").write_text("background\nfield\n")
    data = WindowDataModule(str(root), size=32, split="block", block=64, margin=8, shares={"train": 3, "val": 1})
    assert data.class_names == ["background", "field"]
    assert len({area for split in ("train", "val") for _, area in data.dataset(split).regions}) == 3 * 4
    with pytest.raises(ValueError, match="'test'; give it a share"):
        data.dataset("test")


def test_twelve_bands_of_sixteen_bits_from_windows_to_a_mask_on_the_ground(tmp_path):
    root = write_rasters(tmp_path / "data", count=3, channels=12, dtype=np.uint16)
    config = tmp_path / "bands.yaml"
    config.write_text(
        "model:\n  class_path: SegmentationTask\n  init_args:\n    model_name: vit_tiny_patch16_224\n"
        "    num_classes: 2\n    model_kwargs: {img_size: 32, patch_size: 4, in_chans: 12, embed_dim: 32, depth: 2,"
        " num_heads: 2}\n    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.004}}\n"
        f"data:\n  class_path: WindowDataModule\n  init_args: {{root: {root}, size: 32, train_length: 160,"
        " batch_size: 8, num_workers: 0, shares: {train: 2, val: 1}}\n"
        "trainer: {max_epochs: 2, accelerator: cpu}\n"
    )
    assert cli.main(["--config", str(config), "--run_dir", str(tmp_path / "run")]) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["best"]["val/miou"] > 0.9  # chance: a third
    arguments = ["--model", str(tmp_path / "run/best.ckpt"), "--output", str(tmp_path / "out"), "--no-overlay"]
    assert predict([str(root / "images/0.tif"), *arguments]) == 0
    with open_image(tmp_path / "out/masks/0.tif") as mask, open_image(root / "images/0.tif") as image:
        assert mask.georeference == image.georeference
        assert mask.georeference.crs == "EPSG:32633"
        labels = mask.read(0, 0, 90, 130)[..., 0]
    truth = tifffile.imread(root / "masks/0.tif")
    assert (labels == truth).mean() > 0.95


def test_a_pyramid_from_windows_to_a_mask(tmp_path):
    """A slide's levels: trained on the whole resolution, its mask has the slide's size and overviews."""
    root = write_rasters(tmp_path / "data", count=3, size=(192, 256))
    for path in (root / "images").iterdir():
        pixels = tifffile.imread(path)
        with tifffile.TiffWriter(path) as writer:
            for step in (1, 2):
                writer.write(pixels[::step, ::step], tile=(64, 64), photometric="rgb", subfiletype=int(step > 1))
    config = ["--config", "windows", "--data.root", str(root), "--data.size", "32", "--data.train_length", "160"]
    config += ["--data.batch_size", "8", "--data.num_workers", "0", "--data.shares", "{train: 2, val: 1}"]
    config += ["--model.model_name", "vit_tiny_patch16_224", "--model.num_classes", "2", "--trainer.max_epochs", "2"]
    kwargs = "{img_size: 32, patch_size: 4, embed_dim: 32, depth: 2, num_heads: 2}"
    config += ["--model.model_kwargs", kwargs, "--trainer.accelerator", "cpu"]
    assert cli.main([*config, "--run_dir", str(tmp_path / "run")]) == 0
    arguments = ["--model", str(tmp_path / "run/best.ckpt"), "--output", str(tmp_path / "out"), "--no-overlay"]
    assert predict([str(root / "images/1.tif"), *arguments]) == 0
    with open_image(next((tmp_path / "out/masks").iterdir())) as mask:
        labels = mask.read(0, 0, 192, 256)[..., 0]
    assert (labels == tifffile.imread(root / "masks/1.tif")).mean() > 0.9


def test_loader_processes_give_what_this_process_gives(tmp_path):
    root = str(write_rasters(tmp_path, count=3))
    how = {"size": 16, "train_length": 8, "batch_size": 4, "shares": {"train": 2, "val": 1}}
    alone, helped = (list(WindowDataModule(root, num_workers=workers, **how).train_dataloader()) for workers in (0, 2))
    for (image, mask, *_), (other, labels, *_) in zip(alone, helped, strict=True):
        assert torch.equal(image, other) and torch.equal(mask, labels)


def test_what_does_not_fit_is_refused(tmp_path):
    root = write_rasters(tmp_path / "data", count=3)
    how = {"size": 32, "num_workers": 0, "shares": {"train": 2, "val": 1}}
    with pytest.raises(FileNotFoundError, match="images'"):
        WindowDataModule(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"got 2; leave a split out, or split by \(smaller\) blocks"):
        WindowDataModule(str(write_rasters(tmp_path / "two", count=2)))
    with pytest.raises(ValueError, match=r"labels 0\.\.0 .*masks.*got 1 at row"):
        WindowDataModule(str(root), class_names=["only"], **how)
    with pytest.raises(ValueError, match="shares of train, val"):
        WindowDataModule(str(root), shares={"train": 1, "validation": 1})
    with pytest.raises(ValueError, match="train_length=4"):
        WindowDataModule(str(root), train_length=4, batch_size=8)
    (root / "images" / "odd.tif").write_bytes((root / "images" / "0.tif").read_bytes())
    with pytest.raises(ValueError, match="only one of each of: odd"):
        find_pairs(root)
    (root / "images" / "0.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"one file of a name, got .*0\.png.*0\.tif"):
        find_pairs(root)


def write_labels(root, *labels):
    """Six images whose masks hold the labels, one column each."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(6):
        mask = np.repeat(np.array([labels], np.uint8), 32, axis=0).repeat(16, axis=1)
        tifffile.imwrite(root / "images" / f"{number}.tif", RNG.integers(0, 256, mask.shape, dtype=np.uint8))
        tifffile.imwrite(root / "masks" / f"{number}.tif", mask)
    return str(root)


LITTLE = {"size": 32, "batch_size": 2, "num_workers": 0, "train_length": 4, "shares": {"train": 0.7, "val": 0.3}}


@pytest.mark.parametrize("balance", ["class", None])
@pytest.mark.parametrize("names", [None, ["ground", "house"]])
def test_masks_of_0_and_255_are_refused_and_mapped(tmp_path, balance, names):
    root, how = write_labels(tmp_path / "data", 0, 255), {**LITTLE, "balance": balance, "class_names": names}
    with pytest.raises(ValueError, match=r"found 0 .*ignored pixels \(255\).*label_map: \{0: 0, 255: 1\}"):
        WindowDataModule(root, **how)
    data = WindowDataModule(root, label_map={0: 0, 255: 1}, **how)
    assert data.class_names == (names or ["background", "object"])
    assert data.description()["label_map"] == {"0": 0, "255": 1}
    for split in ("train", "val"):
        assert set(data.dataset(split)[0][1].unique().tolist()) == {0, 1}


@pytest.mark.parametrize("balance", ["class", None])
def test_a_class_without_a_pixel_is_named_before_training(tmp_path, caplog, balance):
    WindowDataModule(write_labels(tmp_path / "data", 0, 0), class_names=["ground", "house"], balance=balance, **LITTLE)
    assert "no pixel of house in the training masks" in caplog.text


def test_a_map_to_names_needs_them(tmp_path):
    with pytest.raises(ValueError, match="expected class_names"):
        WindowDataModule(write_labels(tmp_path / "data", 0, 255), label_map={0: "ground", 255: "house"}, **LITTLE)
