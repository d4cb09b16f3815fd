"""Reading LRA's layout, with the release's traps; LRA's Image task on files in CIFAR's format."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from castvision.data.datasets.lra import LRAImage, LRAPathfinder, read_metadata
from castvision.data.synthetic.pathfinder import PathfinderSpec
from castvision.data.synthetic.pathfinder.writing import write_pathfinder

ROW = "imgs/0 sample_{i}.png {i} {label} 1.0 14 4 2 0.5 1 1"


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("castvision.data.synthetic.pathfinder.writing.BATCH", 20)
    write_pathfinder(tmp_path / "set", PathfinderSpec.lra(32, 6), 50)
    return tmp_path / "set"


def test_layout(written: Path) -> None:
    assert sorted(p.name for p in (written / "imgs").iterdir()) == ["0", "1", "2"]
    rows = read_metadata(written / "metadata" / "2.npy")
    assert len(rows) == 10 and len(rows[0]) == 11 and rows[3][:3] == ["imgs/2", "sample_3.png", "3"]
    data = LRAPathfinder(written, split="all")
    assert len(data) == 50 and data[0][0].shape == (1, 32, 32) and data[0][0].min() == -1
    masks = np.load(written / "masks" / "0.npz")
    assert masks["semantic"].shape == (20, 32, 32)
    assert [int(label) for _, label in (data[i] for i in range(20))] == [int(m.max() == 2) for m in masks["semantic"]]


def test_split_is_that_of_s4(written: Path) -> None:
    parts = [{p for p, _ in LRAPathfinder(written, split=split).samples} for split in ("train", "val", "test")]
    assert [len(p) for p in parts] == [40, 5, 5] and len(set.union(*parts)) == 50
    everything = LRAPathfinder(written, split="all").samples
    order = torch.utils.data.random_split(range(50), [40, 5, 5], torch.Generator().manual_seed(42))
    assert parts[1] == {everything[i][0] for i in order[1].indices}


def make_release(folder: Path, count: int, value: int, array: bool = False) -> None:
    (folder / "imgs" / "0").mkdir(parents=True)
    (folder / "metadata").mkdir()
    lines = [ROW.format(i=i, label=i % 2) for i in range(count)]
    for i in range(count):
        Image.new("L", (32, 32), value).save(folder / "imgs" / "0" / f"sample_{i}.png")
    if array:
        np.save(folder / "metadata" / "0.npy", np.array([line.split() for line in lines]))
    else:
        (folder / "metadata" / "0.npy").write_text("\n".join(lines) + "\n")


def test_the_inner_copy_of_the_release_is_read(tmp_path: Path) -> None:
    inside = Path("pathfinder128") / "curv_contour_length_14"
    make_release(tmp_path / "lra_release" / inside, 3, 0)
    make_release(tmp_path / "lra_release" / "lra_release" / inside, 4, 255)
    data = LRAPathfinder(tmp_path, 128, split="all")
    assert len(data) == 4 and data[0][0].max() == 1


def test_real_arrays_and_empty_files(tmp_path: Path) -> None:
    make_release(tmp_path, 5, 9, array=True)
    (tmp_path / "imgs" / "0" / "sample_2.png").write_bytes(b"")
    data = LRAPathfinder(tmp_path, split="all")
    assert [path.name for path, _ in data.samples] == [f"sample_{i}.png" for i in (0, 1, 3, 4)]
    assert [label for _, label in data.samples] == [0, 1, 1, 0]


def test_half_written_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make-pathfinder"):
        LRAPathfinder(tmp_path)
    make_release(tmp_path, 3, 0)
    (tmp_path / "imgs" / "0" / "sample_1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"sample_1\.png"):
        LRAPathfinder(tmp_path, split="all")[1]
    (tmp_path / "imgs" / "0" / "sample_1.png").unlink()
    with pytest.raises(FileNotFoundError, match="incomplete"):
        LRAPathfinder(tmp_path)
    (tmp_path / "metadata" / "0.npy").write_text("half a line")
    with pytest.raises(ValueError, match="11 columns"):
        LRAPathfinder(tmp_path)


@pytest.mark.parametrize("place", ["..", "/etc", "imgs/../.."])
def test_metadata_name_images_of_their_own_folder(tmp_path: Path, place: str) -> None:
    make_release(tmp_path / "set", 3, 0)
    Image.new("L", (32, 32)).save(tmp_path / "sample_0.png")
    file = tmp_path / "set" / "metadata" / "0.npy"
    file.write_text(" ".join([place, "sample_0.png", "0", "1", *"1234567"]) + "\n")
    with pytest.raises(ValueError, match="expected images inside"):
        LRAPathfinder(tmp_path / "set")


def test_grey_cifar(tmp_path: Path) -> None:
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
    sums = {}
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        content = {"data": pixels, "labels": list(range(10)) * 2, "label_names": [str(i) for i in range(10)]}
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()

    class Small(CIFAR10):
        train_list = [["data_batch_1", sums["data_batch_1"]]]  # noqa: RUF012 - as the base class
        test_list = [["test_batch", sums["test_batch"]]]  # noqa: RUF012
        meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}  # noqa: RUF012

    class SmallImage(LRAImage):
        source = Small

    train, val, test = (SmallImage(tmp_path, split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (18, 2, 20)
    image, label = val[0]
    red, green, blue = pixels[18].reshape(3, 32, 32).astype(float)
    grey = (0.2989 * red + 0.587 * green + 0.114 * blue - 122.6) / 61
    assert int(label) == 8 and np.abs(image[0].numpy() - grey).max() < 0.02
    with pytest.raises(ValueError, match="dev"):
        LRAImage(tmp_path, "dev")
