from __future__ import annotations

import unicodedata

import pytest
import torch

pytest.importorskip("h5py")

from castvision.data.datasets.slide_bags import (
    SlideBags,
    common_format,
    find_bags,
    pad_bags,
    read_slide_table,
)
from tests.training.slide_cases import write_bags


@pytest.fixture
def folder(tmp_path):
    write_bags(tmp_path / "tiles", ["a", "b", "a", "b"])
    return tmp_path / "tiles"


def write(folder, text):
    path = folder / "list.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_list_names_slides_in_several_ways(folder):
    (folder / "sub").mkdir()
    (folder / "s3.h5").rename(folder / "sub/s3.h5")
    table = read_slide_table(write(folder, "case_id,slide_id,label\np,s0,a\np,s1.svs,b\nq,s3.ndpi,a\n"), folder)
    assert [path.name for path in table.paths] == ["s0.h5", "s1.h5", "s3.h5"]
    assert (table.labels, table.patients, table.splits) == (["a", "b", "a"], ["p", "p", "q"], None)
    table = read_slide_table(write(folder, "slide,label,split\nsub/s3,a,train\ns0,b,val\n"), folder)
    assert table.splits == ["train", "val"]
    assert set(find_bags(folder)) == {"s0", "s1", "s2", "sub/s3"}


def test_a_slide_of_another_folder_is_another_slide(folder):
    """Their last names are the same; with or without folders in front it is one slide."""
    (folder / "sub").mkdir()
    (folder / "s3.h5").rename(folder / "sub/s3.h5")
    with pytest.raises(FileNotFoundError, match=r"line 2: no embeddings of the slide 'other/s3.svs'"):
        read_slide_table(write(folder, "slide,label\nother/s3.svs,a\n"), folder)
    table = read_slide_table(write(folder, "slide,label\nC:\\scans\\sub\\s3.svs,a\n/scans/s0.svs,b\n"), folder)
    assert [path.name for path in table.paths] == ["s3.h5", "s0.h5"]


def test_labels_agree_in_any_unicode_form(folder):
    labels = [unicodedata.normalize(form, "gelé") for form in ("NFC", "NFD")]
    write(folder, f"slide,label\ns0,{labels[0]}\ns1,{labels[1]}\n")
    assert set(read_slide_table(folder / "list.csv", folder).labels) == {labels[0]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\ns0,a\n", "line 1: expected the columns slide, label, got name, label"),
        ("slide\ns0\n", "line 1: expected the columns label"),
        ("slide,label\ns0,a\ns9,b\n", "line 3: no embeddings of the slide 's9'"),
        ("slide,label\ns0,a\ns0.svs,b\n", "line 3: 's0.svs' stands on .*line 2 already"),
        ("slide,label,split\ns0,a,tain\n", "expected split to be one of train, val, test, got 'tain'"),
        ("slide,label,patient\ns0,a,\n", "expected a value in the column 'patient'"),
    ],
)
def test_bad_lists_are_named_by_line(text, message, folder):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_slide_table(write(folder, text), folder)


def test_folders_without_embeddings_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder of embeddings"):
        find_bags(tmp_path / "no")
    with pytest.raises(FileNotFoundError, match="castvision embed SLIDES --write tiles"):
        find_bags(tmp_path)


def test_embeddings_of_different_models_are_refused(folder, tmp_path):
    paths = list(find_bags(folder).values())
    found = common_format(paths)
    assert (found.channels, found.encoder, found.mpp) == (6, "vit", 0.5)
    for name, options, message in (
        ("x", {"encoder": "other"}, "the models other and vit"),
        ("y", {"channels": 5}, "5 and 6 channels"),
    ):
        write_bags(tmp_path / name, ["a"], **options)
        with pytest.raises(ValueError, match=message):
            common_format([*paths, tmp_path / name / "s0.h5"])


def test_embeddings_of_other_weights_or_another_pooling_are_refused(folder, tmp_path):
    """A name stands for many models: their files have as many channels, and mean something else."""
    import h5py

    paths = [tmp_path / f"{name}.h5" for name in ("first", "same", "weights", "pool", "silent")]
    stated = [{"pool": "mean", "weights": "a1"}] * 2 + [{"pool": "mean", "weights": "b2"}, {"pool": "class"}, {}]
    for path, attributes in zip(paths, stated, strict=True):
        path.write_bytes((folder / "s0.h5").read_bytes())
        with h5py.File(path, "a") as file:
            file["coords"].attrs.update(attributes)
    first, same, weights, pool, silent = paths
    assert common_format([first, same, silent]).encoder == "vit, pooled by mean, weights a1"
    with pytest.raises(ValueError, match="the models vit, pooled by mean, weights b2 and vit, pooled by mean, weights"):
        common_format([first, weights])
    with pytest.raises(ValueError, match="the models vit, pooled by class and vit, pooled by mean"):
        common_format([first, pool])


def test_what_one_file_leaves_open_the_others_say(tmp_path):
    """TRIDENT states a magnification, CLAM nothing: a file that is silent comes first, and others still must agree."""
    import h5py

    stated = {
        "silent": {},
        "x20": {"target_magnification": 20},
        "mpp": {"target_mpp": 0.5},
        "x10": {"target_magnification": 10},
    }
    for name, attributes in stated.items():
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["features"], file["coords"] = [[1.0, 2.0]], [[0, 0]]
            file["coords"].attrs.update(attributes)
    silent, x20, mpp, x10 = (tmp_path / f"{name}.h5" for name in stated)
    assert common_format([silent, x20, mpp]).mpp == 0.5
    with pytest.raises(ValueError, match=r"1 and 0\.5 a pixel"):
        common_format([silent, x20, x10])
    for path, encoder in ((x20, "uni"), (x10, "virchow")):
        with h5py.File(path, "a") as file:
            file["features"].attrs["encoder"] = encoder
            del file["coords"].attrs["target_magnification"]
    assert common_format([silent, x20]).encoder == "uni"
    with pytest.raises(ValueError, match="the models virchow and uni"):
        common_format([silent, x20, x10])


def test_items_and_batches(folder):
    paths = sorted(folder.glob("*.h5"))
    bags = SlideBags(paths, [0, 1, 0, 1])
    assert [len(bags[index][0]) for index in range(4)] == [5, 6, 7, 8]
    batch = pad_bags([bags[index] for index in range(4)])
    assert batch.image.shape == (4, 8, 6)
    assert batch.target.tolist() == [0, 1, 0, 1]
    assert batch.extras["mask"].sum(1).tolist() == [5, 6, 7, 8]
    assert torch.equal(batch.image[1, :6], bags[1][0])
    assert not batch.image[1, 6:].any()
    some = SlideBags(paths, [0, 1, 0, 1], max_tiles=3)
    torch.manual_seed(0)
    first, second = some[3][0], some[3][0]
    assert first.shape == (3, 6)
    assert not torch.equal(first, second), "another choice at every call"
    whole = bags[3][0]
    assert all((whole == row).all(1).any() for row in first)
    assert bags.name(2).endswith("s2.h5")
