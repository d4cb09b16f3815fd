"""Exports of LabelMe, CVAT and Label Studio, made by hand: every pixel of their masks is known."""

from __future__ import annotations

import base64
import io
import json
import math
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from castvision.data import LabelMap, find_pairs, read_mask
from castvision.data.annotations import convert_annotations
from castvision.data.annotations.label_studio import decode_brush
from castvision.data.datasets.segmentation import SegmentationDataset

HEIGHT, WIDTH = 40, 60
CENTRES = np.stack(np.mgrid[:HEIGHT, :WIDTH]) + 0.5
DISC = (CENTRES[0] - 20) ** 2 + (CENTRES[1] - 30) ** 2 <= 100  # radius 10 around (30, 20)


def png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def picture(path: Path, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (len(path.name), 9, 200)).save(path)
    return path


def painted(*areas: tuple[int, slice, slice]) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for label, rows, columns in areas:
        mask[rows, columns] = label
    return mask


def mask_of(output: Path, name: str) -> np.ndarray:
    return read_mask(output / "masks" / f"{name}.png")


# LabelMe


def labelme(path: Path, *shapes: dict, image: str | None = None, **changes) -> Path:
    image = f"{path.stem}.jpg" if image is None else image
    content = {"version": "5.5.0", "flags": {}, "shapes": list(shapes), "imagePath": image, "imageData": None,
               "imageHeight": HEIGHT, "imageWidth": WIDTH}  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, **changes}), encoding="utf-8-sig")
    return path


def drawn(label: str, kind: str, *points, **more) -> dict:
    return {"label": label, "shape_type": kind, "points": [list(point) for point in points], "group_id": None, **more}


SQUARE = drawn("house", "polygon", (5, 5), (15, 5), (15, 25), (5, 25))


def test_every_shape_of_labelme(tmp_path):
    source, output = tmp_path / "source", tmp_path / "output"
    picture(source / "a.jpg"), picture(source / "more/b.jpg"), picture(source / "new.jpg")
    bits = np.zeros((4, 6), np.uint8)
    bits[1:3, 2:] = 255
    labelme(
        source / "a.json", SQUARE, drawn("pond", "rectangle", (50, 40), (40, 30)),
        drawn("tree", "circle", (30, 20), (30, 30)), drawn("tree", "mask", (20, 2), (25, 5), mask=png(bits)),
        drawn("tree", "point", (1, 1)), drawn("house", "polygon", (0, 0), (9, 9), (3, 3)),
        drawn("house", "polygon", (0, 30), (4, 30), (4, 34), (0, 34), group_id=1),
        drawn("house", "polygon", (2, 32), (8, 32), (8, 36), (2, 36), group_id=1),
        drawn("house", "polygon", (100, 100), (110, 100), (110, 110)),
    )  # fmt: skip
    labelme(source / "more/b.json")
    done = convert_annotations(source, output)
    assert done.class_names == ["background", "house", "pond", "tree"]
    assert (done.images, done.empty) == (2, 1)
    assert done.shapes == {"house": 3, "pond": 1, "tree": 2}
    assert done.without_pixels == {"house": 2} and not done.hidden
    assert done.left_out == {"point (no area)": 1, "image without annotations": 1}
    expected = painted(
        (1, slice(5, 25), slice(5, 15)), (2, slice(30, 40), slice(40, 50)), (3, slice(3, 5), slice(22, 26)),
        (1, slice(30, 34), slice(0, 4)), (1, slice(32, 36), slice(2, 8)),
    )  # fmt: skip
    expected[DISC] = 3
    np.testing.assert_array_equal(mask_of(output, "a"), expected)
    assert np.bincount(expected.ravel())[1] == 200 + 16 + 24 - 4  # two of one group: their union
    assert not mask_of(output, "more/b").any()
    assert (output / "classes.txt").read_text().split() == done.class_names
    assert not (output / "images").exists()
    pairs = find_pairs(output / "images.csv", allow_outside_root=True)  # what training reads: images where they are
    assert sorted(pair.image.resolve() for some in pairs.values() for pair in some) == [
        source / "a.jpg", source / "more/b.jpg",
    ]  # fmt: skip
    dataset = SegmentationDataset(pairs["train"] + pairs["val"], LabelMap(done.class_names))
    assert {int(dataset.read(index)[1].sum()) for index in range(2)} == {int(expected.sum()), 0}


def test_an_image_that_stands_in_its_annotations(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    labelme(tmp_path / "in/a.json", SQUARE, image="..\\gone\\a.png", imageData=png(pixels))
    labelme(tmp_path / "in/b.json", SQUARE, image="..\\pictures\\b.png")
    picture(tmp_path / "pictures/b.png")
    convert_annotations(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/images/a.png")), pixels)
    lines = (tmp_path / "out/images.csv").read_text().splitlines()
    assert lines == ["image,mask", "images/a.png,masks/a.png", "../pictures/b.png,masks/b.png"]


def test_later_shapes_lie_on_top_and_hidden_ones_are_counted(tmp_path):
    picture(tmp_path / "in/a.jpg")
    small = drawn("small", "rectangle", (2, 2), (4, 4))
    large = drawn("large", "rectangle", (0, 0), (10, 10))
    labelme(tmp_path / "in/a.json", small, large, drawn("_background_", "rectangle", (8, 8), (10, 10)),
            drawn("__ignore__", "rectangle", (0, 0), (1, 1)))  # fmt: skip
    done = convert_annotations(tmp_path / "in", tmp_path / "out")
    assert done.class_names == ["background", "large", "small"] and done.hidden == {"small": 1}
    assert np.bincount(mask_of(tmp_path / "out", "a").ravel(), minlength=256)[[0, 1, 2, 255]].tolist() == [
        HEIGHT * WIDTH - 96, 95, 0, 1,
    ]  # fmt: skip


def test_classes_rectangles_and_what_is_not_labelled(tmp_path):
    picture(tmp_path / "in/a.jpg")
    labelme(tmp_path / "in/a.json", SQUARE, drawn("car", "rectangle", (30, 0), (40, 10)))
    how = {"rectangles": "ignore", "unlabelled": "ignore", "class_names": ["car", "road", "house"], "copy_images": True}
    done = convert_annotations(tmp_path / "in", tmp_path / "out", **how)
    assert done.shapes == {"house": 1, "ignored": 1}
    assert np.unique(mask_of(tmp_path / "out", "a"), return_counts=True)[1].tolist() == [200, HEIGHT * WIDTH - 200]
    assert (tmp_path / "out/images/a.jpg").read_bytes() == (tmp_path / "in/a.jpg").read_bytes()
    with pytest.raises(ValueError, match="expected background as the first class"):
        convert_annotations(tmp_path / "in", tmp_path / "other", class_names=["car", "house"])
    with pytest.raises(ValueError, match=r"a\.json: expected a class of background, car.*got 'house'"):
        convert_annotations(tmp_path / "in", tmp_path / "other", class_names=["background", "car"])
    with pytest.raises(FileExistsError, match="new or empty folder"):
        convert_annotations(tmp_path / "in", tmp_path / "out", **how)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        (drawn("a", "cube", (0, 0), (9, 9)), {}, r"a\.json, shape 0: expected a shape of polygon.*got 'cube'"),
        (drawn("", "polygon", (0, 0), (9, 9), (0, 9)), {}, "expected a label, got none"),
        (drawn("a", "polygon", (0, 0), (9, math.nan), (0, 9)), {}, "2 finite numbers"),
        (drawn("a", "polygon", (0, 0), (9,), (0, 9)), {}, "2 finite numbers"),
        (drawn("a", "circle", (0, 0)), {}, "expected 2 points of a circle, got 1"),
        (drawn("a", "mask", (0, 0), (5, 5), mask=png(np.zeros((5, 6), np.uint8))), {}, "mask of 6 × 6 .*got 5 × 6"),
        (SQUARE, {"imageHeight": 41}, "expected an image of 41 × 60 .*got 40 × 60"),
        (SQUARE, {"image": "b.jpg"}, "found no image 'b.jpg'.*--images"),
        (SQUARE, {"shapes": None}, "LabelMe's list 'shapes'"),
    ],
)
def test_what_labelme_cannot_mean_names_the_file_and_writes_nothing(tmp_path, shape, changes, message):
    picture(tmp_path / "in/a.jpg")
    labelme(tmp_path / "in/a.json", shape, **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        convert_annotations(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_names_agree_in_any_unicode_form(tmp_path, on_disk):
    """Of files and of classes, and a class's name is one line of the list."""
    other = "NFD" if on_disk == "NFC" else "NFC"
    picture(tmp_path / "in" / unicodedata.normalize(on_disk, "é.jpg"))
    first, second = ({**SQUARE, "label": unicodedata.normalize(form, " gelé\nd'eau ")} for form in (on_disk, other))
    second["points"] = [[x + 20, y] for x, y in SQUARE["points"]]
    labelme(tmp_path / "in" / "a.json", first, second, image=unicodedata.normalize(other, "é.jpg"))
    done = convert_annotations(tmp_path / "in", tmp_path / "out")
    assert done.class_names == ["background", "gelé d'eau"]
    assert (tmp_path / "out/classes.txt").read_text(encoding="utf-8") == "background\ngelé d'eau\n"
    expected = painted((1, slice(5, 25), slice(5, 15)), (1, slice(5, 25), slice(25, 35)))
    np.testing.assert_array_equal(mask_of(tmp_path / "out", "a"), expected)
    named = convert_annotations(tmp_path / "in", tmp_path / "named", class_names=["background", first["label"]])
    assert named.class_names == done.class_names


@pytest.mark.parametrize("kind", ["rectangle", "oriented_rectangle", "rotation"])
def test_every_rectangle_of_labelme_may_be_a_box_around_something(tmp_path, kind):
    corners = [(5, 5), (15, 25)] if kind == "rectangle" else [(5, 5), (15, 5), (15, 25), (5, 25)]
    picture(tmp_path / "in/a.jpg")
    labelme(tmp_path / "in/a.json", drawn("house", kind, *corners))
    done = convert_annotations(tmp_path / "in", tmp_path / "out", rectangles="ignore")
    np.testing.assert_array_equal(mask_of(tmp_path / "out", "a"), painted((255, slice(5, 25), slice(5, 15))))
    assert done.rectangles == 1


def test_one_image_is_annotated_once(tmp_path):
    picture(tmp_path / "in/a.jpg")
    labelme(tmp_path / "in/a.json", SQUARE)
    labelme(tmp_path / "in/copy.json", SQUARE, image="a.jpg")
    with pytest.raises(ValueError, match=r"image once.*a\.json and .*copy\.json"):
        convert_annotations(tmp_path / "in", tmp_path / "out")


# CVAT


def cvat(path: Path, *images: str, labels: tuple[str, ...] = ("road", "car")) -> Path:
    names = "".join(f"<label><name>{name}</name><type>any</type></label>" for name in labels)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><task><labels>{names}'
        f"</labels></task></meta>{''.join(images)}</annotations>"
    )
    return path


def on(name: str, *shapes: str, size: tuple[int, int] = (HEIGHT, WIDTH), more: str = "") -> str:
    return f'<image id="0" name="{name}" height="{size[0]}" width="{size[1]}" {more}>{"".join(shapes)}</image>'


POLYGON = '<polygon label="road" points="5.00,5.00;15.00,5.00;15.00,25.00;5.00,25.00" z_order="0"></polygon>'


def test_every_shape_of_cvat(tmp_path):
    picture(tmp_path / "images/a.png"), picture(tmp_path / "images/deep/b.png")
    cvat(
        tmp_path / "annotations.xml",
        on(
            "a.png",
            '<box label="car" xtl="40" ytl="30" xbr="50" ybr="40" z_order="2"><attribute name="x">1</attribute></box>',
            POLYGON.replace('z_order="0"', 'z_order="3"'),
            '<ellipse label="car" cx="30" cy="20" rx="10" ry="10" z_order="1"/>',
            '<mask label="road" rle="2, 4, 2, 4" left="20" top="2" width="6" height="2" z_order="0"/>',
            '<box label="car" xtl="0" ytl="4" xbr="10" ybr="6" rotation="90" z_order="0"/>',
            '<polyline label="road" points="1,1;2,2"/>', '<tag label="road"/>', '<skeleton label="road"/>',
        ),
        on("deep/b.png"),
    )  # fmt: skip
    done = convert_annotations(tmp_path / "annotations.xml", tmp_path / "out")
    assert done.class_names == ["background", "road", "car"]  # as the task lists them
    assert done.shapes == {"road": 2, "car": 3} and done.rectangles == 2
    assert done.left_out == {"polyline (no area)": 1, "tag (no area)": 1, "skeleton (no area)": 1}
    expected = painted((1, slice(2, 4), slice(22, 26)), (2, slice(0, 10), slice(4, 6)))
    expected[DISC] = 2
    expected[30:40, 40:50] = 2
    expected[5:25, 5:15] = 1  # z_order 3 lies over all
    np.testing.assert_array_equal(mask_of(tmp_path / "out", "a"), expected)
    assert not mask_of(tmp_path / "out", "deep/b").any()


def test_of_several_images_of_one_name_the_one_in_the_own_folder_is_meant(tmp_path):
    for folder in ("", "train/"):
        picture(tmp_path / f"frames/{folder}a.jpg")
    labelme(tmp_path / "in/train/a.json", SQUARE)
    file = cvat(tmp_path / "x.xml", on("a.jpg", POLYGON, more='subset="train"'))
    for source in (tmp_path / "in", file):
        convert_annotations(source, tmp_path / source.stem / "out", images=tmp_path / "frames")
        listed = (tmp_path / source.stem / "out/images.csv").read_text()
        assert "../../frames/train/a.jpg,masks/train/a.png" in listed


@pytest.mark.parametrize("subset", ["", 'subset="Extra"'])
def test_splits_of_some_images_only_are_not_dropped(tmp_path, subset):
    for name in ("a", "b"):
        picture(tmp_path / f"frames/{name}.png")
    file = cvat(tmp_path / "x.xml", on("a.png", POLYGON, more='subset="Test"'), on("b.png", POLYGON, more=subset))
    with pytest.raises(ValueError, match=r"expected every image in a subset called train.* 1 in others .*b\.png"):
        convert_annotations(file, tmp_path / "out", images=tmp_path / "frames")


def test_subsets_of_cvat_are_splits(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / f"frames/{name}.png")
    file = cvat(tmp_path / "x.xml", on("a.png", POLYGON, more='subset="Train"'),
                on("b.png", POLYGON, more='subset="Validation"'))  # fmt: skip
    convert_annotations(file, tmp_path / "out", images=tmp_path / "frames")
    pairs = find_pairs(tmp_path / "out/images.csv", allow_outside_root=True)
    assert {split: [pair.image.stem for pair in some] for split, some in pairs.items()} == {
        "train": ["a"],
        "val": ["b"],
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (on("a.png", '<cuboid label="car" xtl1="1"/>'), r"image 'a\.png', shape 0 \(cuboid\): .*got 'cuboid'"),
        (on("a.png", '<box label="car" xtl="0" ytl="x" xbr="3" ybr="3"/>'), r"shape 0 \(box\): xtl, ytl.*'x'"),
        (on("a.png", '<mask label="car" rle="2, 4" left="0" top="0" width="6" height="2"/>'), "runs that fill 2 × 6"),
        (on("a.png", POLYGON, size=(9, 9)), r"expected an image of 9 × 9 .*got 40 × 60 in .*a\.png"),
        (on("c.png", POLYGON), r"image 'c\.png': found no such file"),
        ("<track/>", "a video's tracks"),
        ("", "expected images in"),
        ("<image", "expected XML"),
    ],
)
def test_what_cvat_cannot_mean(tmp_path, content, message):
    picture(tmp_path / "a.png")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        convert_annotations(cvat(tmp_path / "x.xml", content), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Label Studio


def result(kind: str, label: str | None, value: dict, **changes) -> dict:
    named = value if label is None else {**value, kind: [label]}
    size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    return {"id": "x", "type": kind, "value": named, **size, **changes}


def task(number: int, image: str, *results: dict, **annotation) -> dict:
    return {"id": number, "data": {"image": image}, "annotations": [{"result": list(results), **annotation}]}


def label_studio(path: Path, *tasks: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tasks))
    return path


def percent(*points: tuple[float, float]) -> list[list[float]]:
    return [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in points]


LAND = result("polygonlabels", "road", {"points": percent((5, 5), (15, 5), (15, 25), (5, 25))})
PACKED = [0, 0, 0, 96, 57, 27, 254, 31, 0, 183, 255, 133, 192, 39, 255, 194, 96, 0]
"""What Label Studio's own encoder (label-studio-converter 0.0.59) makes of 4 × 6 pixels."""


def pack(opacity: np.ndarray) -> list[int]:
    """A brush's bytes: runs of one value, and of single ones."""
    values = np.repeat(opacity.ravel()[:, None] * 255, 4, axis=1).ravel().tolist()
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    start = 0
    while start < len(values):
        end = start
        while end < len(values) and values[end] == values[start] and end - start < 1 << 16:
            end += 1
        if end - start > 8:
            bits += f"111{end - start - 1:016b}{values[start]:08b}"
        else:
            end = min(start + 3, len(values))
            bits += f"000{end - start - 1:03b}" + "".join(f"{value:08b}" for value in values[start:end])
        start = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)]


def test_every_shape_of_label_studio(tmp_path):
    picture(tmp_path / "images/abcdef12-a.png"), picture(tmp_path / "images/b.png"), picture(tmp_path / "images/c.png")
    brush = np.zeros((HEIGHT, WIDTH), bool)
    brush[2:4, 22:27] = brush[37, 1] = True
    turned = {"x": 100 * 10 / WIDTH, "y": 0, "width": 100 * 8 / WIDTH, "height": 100 * 2 / HEIGHT, "rotation": 90}
    label_studio(
        tmp_path / "project.json",
        task(
            1, "/data/upload/3/abcdef12-a.png", LAND,
            result("rectanglelabels", "car", {"x": 100 * 40 / WIDTH, "y": 75, "width": 100 * 10 / WIDTH, "height": 25}),
            result("ellipselabels", "car", {"x": 50, "y": 50, "radiusX": 1000 / WIDTH, "radiusY": 25, "rotation": 0}),
            result("brushlabels", "road", {"format": "rle", "rle": pack(brush)}),
            result("rectangle", None, turned, id="two"),
            result("labels", None, {**turned, "labels": ["road"]}, id="two"),
            result("keypointlabels", "car", {"x": 1, "y": 1, "width": 1}),
            {"id": "r", "type": "choices", "value": {"choices": ["sunny"]}},
        ),
        task(2, "/data/local-files/?d=deep%5Cb.png"),
        {"id": 3, "data": {"image": "s3://bucket/c.png"}, "annotations": []},
        task(4, "https://example.org/c.png", was_cancelled=True),
    )  # fmt: skip
    done = convert_annotations(tmp_path / "project.json", tmp_path / "out")
    assert done.class_names == ["background", "car", "road"]
    assert (done.images, done.empty) == (2, 1)  # nobody has annotated c: it is not background
    assert done.shapes == {"road": 3, "car": 2}
    assert done.left_out == {"keypointlabels (no area)": 1, "choices (no area)": 1, "task without an annotation": 2}
    expected = painted((2, slice(5, 25), slice(5, 15)))
    expected[DISC] = 1
    expected[30:40, 40:50] = 1
    expected[brush] = 2
    expected[0:8, 8:10] = 2  # turned by 90 degrees around its corner
    np.testing.assert_array_equal(mask_of(tmp_path / "out", "abcdef12-a"), expected)


@pytest.mark.parametrize("seed", range(4))
def test_brushes_come_back_pixel_by_pixel(seed):
    rng = np.random.default_rng(seed)
    opaque = np.kron(rng.random((5, 7)) < 0.4, np.ones((seed + 1, 3), bool))
    np.testing.assert_array_equal(decode_brush(pack(opaque), opaque.shape), opaque)
    with pytest.raises(ValueError, match="bytes that end before"):
        decode_brush(pack(opaque)[:12], opaque.shape)
    with pytest.raises(ValueError, match="brush of 4 values for 5 × 99"):
        decode_brush(pack(opaque), (5, 99))


def test_a_brush_of_label_studio_itself():
    opaque = decode_brush(PACKED, (4, 6))
    assert np.argwhere(opaque).tolist() == [[1, 2], [1, 3], [1, 4], [2, 5], [3, 0]]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([task(7, "a.png", result("cubelabels", "car", {}))], "task 7, result x: expected a shape of .*'cubelabels'"),
        ([task(7, "a.png", {**LAND, "original_width": 61})], "expected an image of 40 × 61 .*got 40 × 60"),
        ([task(7, "a.png", {**LAND, "image_rotation": 90})], "turned by 90 degrees"),
        ([task(7, "a.png", result("polygonlabels", None, {"points": [], "polygonlabels": ["a", "b"]}))], "one label"),
        ([task(7, "a.png", result("polygon", None, {"points": []}))], "expected one label of a polygon, got none"),
        ([task(7, "x.png", LAND)], "task 7: found no image 'x.png'"),
        ([{**task(7, "a.png", LAND), "annotations": [{"result": []}, {"result": [LAND]}]}], "got 2 that may disagree"),
        ([{"image": "a.png", "label": []}], "not as JSON-MIN"),
        ([{"id": 1, "data": {"image": "a.png"}}], "found none .1 × task without an annotation"),
    ],
)
def test_what_label_studio_cannot_mean(tmp_path, tasks, message):
    picture(tmp_path / "a.png")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        convert_annotations(label_studio(tmp_path / "x.json", *tasks), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_needs_no_conversion_or_is_none_of_them(tmp_path):
    (tmp_path / "coco.json").write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(ValueError, match="CocoDataModule reads"):
        convert_annotations(tmp_path / "coco.json", tmp_path / "out")
    (tmp_path / "export.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match="unpack it"):
        convert_annotations(tmp_path / "export.zip", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="LabelMe's JSON files"):
        convert_annotations(tmp_path / "empty", tmp_path / "out")
