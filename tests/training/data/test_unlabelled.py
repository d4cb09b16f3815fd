from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from castvision.training.data.unlabelled import UnlabelledFolderDataModule
from castvision_cli import main


def write(root, count=8, seed=0):
    rng = np.random.default_rng(seed)
    for number in range(count):
        folder = root / ("a" if number % 2 else "b/c")
        folder.mkdir(parents=True, exist_ok=True)
        shape = (40, 60, 3) if number % 3 else (50, 30)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{number}.png")
    return root


def test_images_of_any_shape_below_a_folder_become_batches(tmp_path):
    data = UnlabelledFolderDataModule(str(write(tmp_path)), img_size=32, val_share=0.25, batch_size=2, num_workers=0)
    held = {path.name for path in data.dataset("val").paths}
    assert len(held) == 2 and not held & {path.name for path in data.dataset("train").paths}
    batches = list(data.train_dataloader())
    assert [tuple(image.shape) for image, _ in batches] == [(2, 3, 32, 32)] * 3
    assert {tuple(labels.shape) for _, labels in batches} == {(2, 0)}  # of no classes
    first, again = (data.dataset("val")[0][0] for _ in range(2))
    assert torch.equal(first, again)
    assert data.description()["resize"] == "crop" and data.class_names == []


def test_deep_images_and_another_normalisation(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        value = 65535 if split == "val" else 13107
        Image.fromarray(np.full((40, 40), value, np.uint16)).save(tmp_path / split / f"{split}.png")
    data = UnlabelledFolderDataModule(str(tmp_path), 32, mean=[0.5] * 3, std=[0.5] * 3, num_workers=0)
    torch.testing.assert_close(data.dataset("val")[0][0], torch.ones(3, 32, 32))
    with pytest.raises(ValueError, match="expected both mean and std or none of them"):
        UnlabelledFolderDataModule(str(tmp_path), 32, mean=[0.5] * 3)
    torch.testing.assert_close(data.dataset("train")[0][0], torch.full((3, 32, 32), -0.6))


def test_copies_stay_in_one_split_or_are_refused(tmp_path):
    write(tmp_path / "all", 4)
    for path in (tmp_path / "all").rglob("*.png"):
        (path.parent / f"copy_{path.name}").write_bytes(path.read_bytes())
    data = UnlabelledFolderDataModule(str(tmp_path / "all"), 32, val_share=0.5)
    names = [{path.name.removeprefix("copy_") for path in data.dataset(split).paths} for split in ("train", "val")]
    assert not names[0] & names[1]
    for split in ("train", "val"):
        write(tmp_path / "split" / split, 2, seed=len(split))
    path = tmp_path / "split/train/a/1.png"
    (tmp_path / "split/val/same.png").write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="the same image in train"):
        UnlabelledFolderDataModule(str(tmp_path / "split"), 32)


def test_data_show_draws_what_the_model_sees(tmp_path):
    words = ["data", "show", "--config", "distill", "--data.root", str(write(tmp_path / "data")), "--count", "4"]
    assert main([*words, "--data.img_size", "32", "--output", str(tmp_path / "sheet.png")]) == 0
    assert (tmp_path / "sheet.png").is_file()


@pytest.mark.parametrize(
    ("files", "arguments", "error", "message"),
    [
        (0, {}, FileNotFoundError, "expected images in"),
        (1, {}, ValueError, "expected"),
        (4, {"val_share": 1.5}, ValueError, "val_share"),
        (4, {"batch_size": 9}, ValueError, "expected batch_size <= 3"),
        (4, {"augmentation": {"colour": 1}}, ValueError, "expected arguments of timm.data.create_transform"),
    ],
)
def test_what_cannot_be_used_is_refused_before_training(tmp_path, files, arguments, error, message):
    (tmp_path / "data").mkdir()
    with pytest.raises(error, match=message):
        UnlabelledFolderDataModule(str(write(tmp_path / "data", files)), **{"img_size": 32, **arguments})


def test_a_folder_that_is_missing_and_an_empty_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a folder with images"):
        UnlabelledFolderDataModule(str(tmp_path / "nowhere"))
    write(tmp_path, 4)
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match="is empty"):
        UnlabelledFolderDataModule(str(tmp_path))
