from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from castvision.data.datasets.coco import CocoSegmentation, read_coco
from castvision.data.datasets.coco_shapes import decode_runs, fill_polygon

SIZE = (6, 8)


def square(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def test_a_rectangle_on_pixel_borders_is_exactly_its_pixels():
    mask = fill_polygon(square(2, 1, 6, 4), SIZE)
    expected = np.zeros(SIZE, bool)
    expected[1:4, 2:6] = True
    np.testing.assert_array_equal(mask, expected)


def test_neighbours_neither_overlap_nor_leave_a_gap():
    points = np.array([[0, 0], [8, 0], [8, 6], [0, 6]], float)
    centre = np.array([3.37, 2.81])
    parts = [fill_polygon(np.concatenate([points[i], points[(i + 1) % 4], centre]), SIZE) for i in range(4)]
    np.testing.assert_array_equal(sum(part.astype(int) for part in parts), np.ones(SIZE, int))


def test_random_polygons_equal_the_centre_rule():
    from matplotlib.path import Path

    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[:40, :50] + 0.5
    for _ in range(50):
        points = rng.uniform(-10, 60, (5, 2))
        star = points[np.argsort(np.arctan2(*(points - points.mean(0)).T))]  # does not cross itself
        inside = Path(star).contains_points(np.stack([cols.ravel(), rows.ravel()], 1)).reshape(40, 50)
        np.testing.assert_array_equal(fill_polygon(star.ravel(), (40, 50)), inside)


def test_a_polygon_that_crosses_itself_follows_even_and_odd():
    bow = fill_polygon([0, 0, 8, 6, 8, 0, 0, 6], SIZE)
    assert bow[3, 0]
    assert bow[3, 7]
    assert not bow[0, 3:5].any()


@pytest.mark.parametrize("polygon", [[], [0, 0, 1, 1], [0, 0, 1, 1, 2], [0, 0, 1, 1, 2, float("nan")]])
def test_polygons_are_checked(polygon):
    with pytest.raises(ValueError, match="expected a polygon"):
        fill_polygon(polygon, SIZE)


def test_runs_go_down_columns():
    assert decode_runs([1, 2, 3], (2, 3)).tolist() == [[False, True, False], [True, False, False]]
    with pytest.raises(ValueError, match="a sum of 5"):
        decode_runs([1, 2, 2], (2, 3))


def annotations(**changes):
    content = {
        "images": [{"id": 7, "file_name": "a.png", "height": 6, "width": 8}],
        "categories": [{"id": 30, "name": "dog"}, {"id": 5, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 5, "segmentation": [square(1, 1, 3, 3)], "area": 4},
            {"id": 2, "image_id": 7, "category_id": 30, "segmentation": [square(0, 0, 4, 4)], "area": 16},
            {
                "id": 3,
                "image_id": 7,
                "category_id": 5,
                "iscrowd": 1,
                "segmentation": {"size": [6, 8], "counts": [18, 30]},
            },
        ],
    }
    return {**content, **changes}


@pytest.fixture
def write(tmp_path):
    Image.new("RGB", (8, 6), (10, 20, 30)).save(tmp_path / "a.png")

    def to_file(content, name="train.json"):
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return tmp_path / name

    return to_file


def test_classes_overlaps_and_crowds(write):
    coco = read_coco(write(annotations()))
    assert coco.class_names == ["background", "cat", "dog"]
    mask = CocoSegmentation(coco)[0][1]
    expected = np.zeros(SIZE, int)
    expected[:, 3:] = 255  # the crowd, painted first
    expected[0:4, 0:4] = 2  # the large object
    expected[1:3, 1:3] = 1  # the small one on top
    assert mask.tolist() == expected.tolist()


@pytest.mark.parametrize("told", [{}, {"area": None, "bbox": None}, {"area": 0, "bbox": [0, 0, 0, 0]}])
@pytest.mark.parametrize("runs", [False, True])
def test_small_objects_lie_on_large_ones_that_state_no_area(write, told, runs):
    small = {"size": list(SIZE), "counts": [13, 2, 4, 2, 27]} if runs else [[2, 1, 4, 1, 4, 3, 2, 3]]
    objects = [
        {"id": 1, "image_id": 7, "category_id": 30, "segmentation": small, **told},
        {"id": 2, "image_id": 7, "category_id": 4, "segmentation": [[0, 0, 8, 0, 8, 6, 0, 6]], **told},
    ]
    expected = np.ones(SIZE, int)
    expected[1:3, 2:4] = 2
    content = annotations(annotations=objects, categories=[{"id": 4, "name": "cat"}, {"id": 30, "name": "dog"}])
    assert CocoSegmentation(read_coco(write(content))).mask(0).tolist() == expected.tolist()


def test_a_category_called_background_is_the_background(write):
    named = [{"id": 0, "name": "Background"}, {"id": 4, "name": "cat"}]
    objects = [
        {"id": 1, "image_id": 7, "category_id": 4, "segmentation": [[0, 0, 8, 0, 8, 6, 0, 6]]},
        {"id": 2, "image_id": 7, "category_id": 0, "segmentation": [[0, 0, 2, 0, 2, 6, 0, 6]]},
    ]
    coco = read_coco(write(annotations(annotations=objects, categories=named)))
    assert coco.class_names == ["background", "cat"]
    assert CocoSegmentation(coco).mask(0).tolist() == [[0, 0, *[1] * 6]] * 6


def test_categories_of_one_name_are_one_class(write, caplog):
    named = [{"id": 3, "name": "cat"}, {"id": 4, "name": "cafe\u0301"}, {"id": 9, "name": "caf\u00e9"}]
    objects = [
        {"id": 1, "image_id": 7, "category_id": 4, "segmentation": [[0, 0, 8, 0, 8, 6, 0, 6]]},
        {"id": 2, "image_id": 7, "category_id": 9, "segmentation": [[0, 0, 2, 0, 2, 6, 0, 6]]},
    ]
    coco = read_coco(write(annotations(annotations=objects, categories=named)))
    assert coco.class_names == ["background", "cat", "caf\u00e9"]
    assert (CocoSegmentation(coco).mask(0) == 2).all()
    assert "categories of one name are one class: caf\u00e9" in caplog.text


def test_images_in_another_folder_and_without_objects(write, tmp_path):
    path = write(annotations(annotations=[]), "other.json")
    (tmp_path / "images").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "images/a.png")
    data = CocoSegmentation(read_coco(path, tmp_path / "images"))
    assert len(data) == 1
    assert data[0][1].unique().tolist() == [0]
    with pytest.raises(FileNotFoundError, match=r"a\.png"):
        read_coco(path)


def wrong(**changes):
    content = annotations()
    content["annotations"][0].update(changes)
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected JSON"),
        ("[]", "expected the lists images, annotations, categories"),
        (annotations(categories=[]), r"expected 1\.\.254 categories"),
        (annotations(images=[]), "expected images of different ids"),
        (annotations(images=[{"id": 7}]), r"images\[0\]: expected .* missing file_name, height, width"),
        (
            annotations(images=[{"id": 7, "file_name": "a.png", "height": None, "width": 8}]),
            "image 7: expected height and width as whole numbers, got None and 8",
        ),
        (wrong(image_id=8), r"annotation 1: image_id 8 is not in the file"),
        (wrong(category_id=8), r"annotation 1: category_id 8 is not in the file"),
    ],
)
def test_wrong_files(write, content, message):
    with pytest.raises(ValueError, match=message):
        read_coco(write(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segmentation": [[0, 0, 1, 1, 2]]}, r"train\.json, annotation 1: expected a polygon"),
        ({"segmentation": "outline"}, r"train\.json, annotation 1: expected polygons or run lengths, got str"),
        ({"segmentation": {"size": [6, 8], "counts": "ab c"}}, r"train\.json, annotation 1: .*compressed run lengths"),
        ({"segmentation": [], "bbox": [1, 1, 2, 2]}, r"annotation 1: .*a box alone.* boxes: ignore .* boxes: paint"),
        ({"segmentation": {"size": [8, 6], "counts": [48]}}, r"of size \(6, 8\)"),
    ],
)
def test_wrong_shapes(write, changes, message):
    with pytest.raises(ValueError, match=message):
        CocoSegmentation(read_coco(write(wrong(**changes))))[0]


def test_an_image_of_another_size_than_the_file_says(write, tmp_path):
    path = write(annotations())
    Image.new("RGB", (6, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png' with 8 × 6 .*train\.json' with 6 × 8"):
        CocoSegmentation(read_coco(path))[0]


BESIDE = [[9, 1, 12, 1, 12, 4], [1, -5, 4, -5, 4, 0]]


@pytest.mark.parametrize("empty", [[[5, 5, 7, 5]], [[]], [], [[1, 1, 3, 3]], [[5, 5, 5, 5, 5, 5]], None, BESIDE])
def test_shapes_without_area_are_left_out_with_a_count(write, empty, caplog):
    whole = CocoSegmentation(read_coco(write(annotations())))[0][1].tolist()
    assert not caplog.records
    content = annotations()
    content["annotations"].append({"id": 9, "image_id": 7, "category_id": 5, "segmentation": empty})
    content["annotations"][0]["segmentation"].append([1, 1, 2, 2])
    assert CocoSegmentation(read_coco(write(content)))[0][1].tolist() == whole
    assert "cover nothing in 2 of 4 annotations, such as annotation 1" in caplog.text


def test_outlines_as_shares_of_the_size_are_refused(write):
    content = annotations()
    for one in content["annotations"][:2]:
        one["segmentation"] = [[value / 8 for value in polygon] for polygon in one["segmentation"]]
    with pytest.raises(ValueError, match=r"expected outlines in pixels in .*train\.json.*between 0 and 1"):
        read_coco(write(content))


def test_ids_as_text_and_a_byte_order_mark(write, tmp_path):
    content = annotations()
    content["images"][0]["id"] = "7"
    content["categories"][1]["id"] = "5"
    content["annotations"][1]["category_id"] = "30"
    content["annotations"][1]["iscrowd"] = "0"
    path = write(content)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    named = annotations()
    named["images"][0]["id"], named["categories"][0]["id"] = "one", "dog"
    for annotation in named["annotations"]:
        annotation["image_id"] = "one"
    named["annotations"][1]["category_id"] = "dog"
    wanted = CocoSegmentation(read_coco(write(annotations(), "plain.json")))[0][1].tolist()
    for file in (path, write(named, "named.json")):
        coco = read_coco(file)
        assert coco.class_names == ["background", "cat", "dog"]
        assert CocoSegmentation(coco)[0][1].tolist() == wanted


def test_compressed_run_lengths_and_crowds(write):
    content = annotations()
    content["annotations"][2]["segmentation"] = {"size": [6, 8], "counts": "b0n0"}  # 18 and 30
    assert CocoSegmentation(read_coco(write(content)))[0][1].tolist() == (
        CocoSegmentation(read_coco(write(annotations())))[0][1].tolist()
    )


@pytest.mark.parametrize(("boxes", "label"), [("ignore", 255), ("paint", 1)])
def test_boxes_without_outlines(write, boxes, label):
    content = annotations()
    content["annotations"] = [{"id": 1, "image_id": 7, "category_id": 5, "segmentation": [], "bbox": [1, 2, 3, 2]}]
    expected = np.zeros(SIZE, int)
    expected[2:4, 1:4] = label
    assert CocoSegmentation(read_coco(write(content), boxes=boxes))[0][1].tolist() == expected.tolist()


def test_one_image_under_two_ids_is_merged_or_refused(write, tmp_path, caplog):
    content = annotations()
    content["images"].append({"id": 8, "file_name": "./a.png", "height": 6, "width": 8})
    content["annotations"][1]["image_id"] = 8
    data = CocoSegmentation(read_coco(write(content)))
    assert len(data) == 1
    assert data[0][1].tolist() == CocoSegmentation(read_coco(write(annotations())))[0][1].tolist()
    assert "1 images stand under two ids" in caplog.text
    content["images"][1]["width"] = 9
    with pytest.raises(ValueError, match=r"a\.png' stands under the ids 7 and 8 with the sizes \(6, 8\) and \(6, 9\)"):
        read_coco(write(content))
