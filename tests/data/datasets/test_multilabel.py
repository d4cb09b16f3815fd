from __future__ import annotations

import pytest
import torch
from PIL import Image

from castvision.data.datasets.multilabel import MultiLabelDataset, read_label_table


@pytest.fixture
def write(tmp_path):
    for name in "abc":
        Image.new("RGB", (8, 6), (51, 0, 0)).save(tmp_path / f"{name}.png")

    def to_file(text):
        (tmp_path / "train.csv").write_text(text)
        return tmp_path / "train.csv"

    return to_file


def test_columns_and_names_say_the_same(write):
    columns = read_label_table(write("path,cat,dog\na.png,1,0\nb.png,1,1\nc.png,0,0\n"))
    names = read_label_table(write('path,labels\na.png,cat\nb.png,"dog; cat"\nc.png,\n'))
    for table in (columns, names):
        assert table.class_names == ["cat", "dog"]
        assert table.targets.tolist() == [[1, 0], [1, 1], [0, 0]]
        assert [path.name for path in table.images] == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize(
    "text",
    [
        "path,h\u00fctte,dog\na.png,1.0,0.0\nb.png,1.0,1.0\n",
        ",path,hu\u0308tte,dog\n0,a.png,True,False\n1,b.png,true,TRUE\n",
        "path,labels\na.png,h\u00fctte\nb.png,dog;hu\u0308tte\n",
    ],
)
def test_what_other_programs_write(write, text):
    """Marks as numbers with a point and as words, the number of a row, one name in two Unicode forms."""
    table = read_label_table(write(text), ["h\u00fctte", "dog"])
    assert table.targets.tolist() == [[1, 0], [1, 1]]
    assert sorted(read_label_table(write(text)).class_names) == ["dog", "h\u00fctte"]


def test_names_may_hold_commas(write):
    assert read_label_table(write('path,labels\na.png,"bag, small"\nb.png,"tree|bush;ox"\n')).class_names == [
        "bag, small",
        "ox",
        "tree|bush",
    ]


def test_classes_may_be_given_in_another_order(write):
    path = write("path,cat,dog\na.png,1,0\n")
    assert read_label_table(path, ["dog", "cat"]).targets.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,cat\na.png,1\n", "line 1: expected the columns path"),
        ("path\na.png\n", "line 1: expected path,labels"),
        ("path,cat,dog\na.png,1,0\nb.png,1,2\n", r"train\.csv, line 3: expected 0 or 1 in the column 'dog', got '2'"),
        ("path,cat,dog\na.png,1,\n", r"line 2: expected 0 or 1 in the column 'dog', got ''"),
        ("path,cat,dog\na.png,1\n", "line 2: expected 3 values"),
        ("path,cat,cat\na.png,1,0\n", "line 1: expected each column once, got cat twice"),
        ("path,labels\na.png,\n", "expected a label on some line"),
        ("path,labels\na.png,dog\nb.png,cat|dog\n", r"line 3: expected names of labels .* got 'cat|dog', .* 'cat;dog'"),
        ('path,labels\na.png,"ox, cat"\nb.png,"ox, dog"\n', "line 2: expected names of labels .* got 'ox, cat'"),
        ("path,cat,dog\na.png,1,1\na.png,0,0\n", r"line 3: 'a\.png' stands on .*line 2 already"),
        ("path,cat,dog\na.png,1,1\n./a.png,0,0\n", r"line 3: '\./a\.png' stands on .*line 2 already"),
    ],
)
def test_wrong_lines(write, text, message):
    with pytest.raises(ValueError, match=message):
        read_label_table(write(text))


def test_labels_and_columns_that_are_no_classes(write):
    with pytest.raises(ValueError, match="line 2: unknown label 'cow'; expected some of cat, dog"):
        read_label_table(write("path,labels\na.png,cow\n"), ["cat", "dog"])
    with pytest.raises(ValueError, match=r"line 1: expected the columns cat, dog, differing: \['cow', 'dog'\]"):
        read_label_table(write("path,cat,cow\na.png,0,1\n"), ["cat", "dog"])


def test_missing_files(write, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"z\.png"):
        read_label_table(write("path,cat,dog\nz.png,1,0\n"))
    with pytest.raises(FileNotFoundError, match="no such list"):
        read_label_table(tmp_path / "none.csv")


def test_items(write):
    data = MultiLabelDataset(read_label_table(write("path,cat,dog\na.png,1,0\n")))
    image, target = data[0]
    assert image.shape == (3, 6, 8)
    torch.testing.assert_close(image[0], torch.full((6, 8), 0.2))
    assert (target.dtype, target.tolist()) == (torch.float32, [1, 0])
