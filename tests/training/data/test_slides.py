from __future__ import annotations

import shutil

import pytest

pytest.importorskip("h5py")

from castvision.training import SlideDataModule
from tests.training.slide_cases import write_bags

LABELS = ["a", "b"] * 10


@pytest.fixture
def listed(tmp_path):
    return write_bags(tmp_path, LABELS)


def with_column(path, name, values):
    lines = path.read_text().splitlines()
    path.write_text("\n".join(f"{line},{value}" for line, value in zip(lines, [name, *values], strict=True)) + "\n")


def names(data, split):
    return {path.stem for path in data.dataset(split).paths}


def test_each_split_has_its_share_of_every_class(listed):
    data = SlideDataModule(str(listed), val_share=0.2, test_share=0.1)
    assert {split: len(data.dataset(split)) for split in ("train", "val", "test")} == {"train": 14, "val": 4, "test": 2}
    assert sorted(data.dataset("val").labels) == [0, 0, 1, 1]
    parts = [names(data, split) for split in ("train", "val", "test")]
    assert len(set().union(*parts)) == 20
    assert (data.class_names, data.in_chans) == (["a", "b"], 6)
    assert data.description()["encoder"] == "vit"
    assert data.description()["mpp"] == 0.5
    assert data.held_out_batch_size == 1
    assert names(SlideDataModule(str(listed), val_share=0.2, test_share=0.1), "val") == parts[1]


def test_patients_and_copies_stay_in_one_split(listed):
    with_column(listed, "patient", [f"p{number // 4}" for number in range(20)])
    shutil.copy(listed.parent / "s0.h5", listed.parent / "s19.h5")  # of another patient: both patients stay together
    for seed in range(3):
        data = SlideDataModule(str(listed), val_share=0.3, seed=seed)
        owners = {f"p{number // 4}": set() for number in range(20)}
        for split in ("train", "val"):
            for name in names(data, split):
                owners[f"p{int(name[1:]) // 4}"].add(split)
        assert all(len(splits) == 1 for splits in owners.values())
        assert owners["p0"] == owners["p4"]


def test_splits_of_the_list_are_followed_and_checked(listed):
    splits = ["train"] * 12 + ["val"] * 4 + ["test"] * 4
    with_column(listed, "split", splits)
    data = SlideDataModule(str(listed))
    assert names(data, "val") == {"s12", "s13", "s14", "s15"}
    assert data.dataset("train").max_tiles == 4096
    assert data.dataset("val").max_tiles is None
    with_column(listed, "patient", ["p"] * 13 + [f"q{number}" for number in range(7)])
    with pytest.raises(ValueError, match="every patient in one split, got 'p' in train and val"):
        SlideDataModule(str(listed))


def test_one_file_in_two_splits_is_refused(listed):
    with_column(listed, "split", ["train"] * 16 + ["val"] * 4)
    shutil.copy(listed.parent / "s0.h5", listed.parent / "s19.h5")
    with pytest.raises(ValueError, match="every image in one split"):
        SlideDataModule(str(listed))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": ["a", "c"]}, "expected the labels a, c in .*, got b"),
        ({"max_tiles": 0}, "max_tiles >= 1"),
        ({"val_share": 0.6, "test_share": 0.5}, "with a sum < 1"),
        ({"features": "nowhere"}, "no such folder of embeddings: 'nowhere'"),
    ],
)
def test_bad_options_are_refused(options, message, listed):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        SlideDataModule(str(listed), **options)


def test_a_split_that_is_not_there_names_the_way_out(listed):
    with pytest.raises(FileNotFoundError, match="give test_share, or a column split"):
        SlideDataModule(str(listed)).dataset("test")
    with_column(listed, "split", ["train"] * 20)
    with pytest.raises(ValueError, match="got none of val"):
        SlideDataModule(str(listed))
