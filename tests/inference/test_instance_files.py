from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import tifffile

from castvision.data import Georeference, open_image
from castvision.data.datasets.coco_shapes import decode_compressed, decode_runs
from castvision.inference.files import OutputFolder
from castvision.inference.instances.finding import InstanceOptions, find_instances
from castvision.inference.writers.instance_files import compress, run_lengths
from castvision.inference.writers.instance_outputs import KINDS, check_size, write_instances
from tests.inference.instances.map_cases import blobs, stored, whole

NAMES = ["background", "oak", "beech"]
PLACE = {"georeference": None, "mpp": None, "pixel_size": (1.0, 1.0), "simplify": 0.0}
TURNED = Georeference((0.6, 0.8, 5e5, 1.6, -1.2, 4.6e6), "EPSG:32633",
                      (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633))  # fmt: skip


def written(folder, labels, things=(1, 2), probabilities=None, kinds=KINDS, **place):
    given = None if probabilities is None else stored(folder / "values", probabilities)
    found = find_instances(stored(folder / "labels", labels), InstanceOptions(), things, probabilities=given)
    write_instances(OutputFolder(folder / "out"), "wood", found, NAMES, image="wood.tif", things=things, kinds=kinds,
                    **{**PLACE, **place})  # fmt: skip
    return found, folder / "out/instances"


def table_of(folder):
    return list(csv.DictReader((folder / "wood.csv").read_text().splitlines()))


def shoelace(ring):
    x, y = (np.array(ring) - ring[0]).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) / 2


def polygons_of(feature):
    geometry = feature["geometry"]
    return geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]


def test_the_map_comes_back_with_its_place(tmp_path):
    labels = blobs((300, 600))
    found, folder = written(tmp_path, labels, georeference=TURNED, kinds=("tiff",))
    with tifffile.TiffFile(folder / "wood.tif") as tiff:
        page = tiff.pages[0]
        assert page.is_tiled
        assert page.compression.name in ("ADOBE_DEFLATE", "DEFLATE")
        assert page.dtype == np.uint32
        assert len(tiff.pages) == 2
        np.testing.assert_array_equal(page.asarray(), whole(found.ids))
    with open_image(folder / "wood.tif") as reader:
        assert reader.georeference == TURNED
        assert reader.nodata is None


def test_coco_gives_each_mask_back(tmp_path):
    labels = blobs((60, 70))
    probabilities = np.random.default_rng(0).random((60, 70, 3), dtype=np.float32)
    found, folder = written(tmp_path, labels, probabilities=probabilities)
    content, ids = json.loads((folder / "wood.json").read_text()), whole(found.ids)
    assert content["images"] == [{"id": 1, "file_name": "wood.tif", "height": 60, "width": 70}]
    assert content["categories"] == [{"id": 1, "name": "oak"}, {"id": 2, "name": "beech"}]
    assert len(content["annotations"]) == len(found) > 20
    for each in content["annotations"]:
        mask = ids == each["id"]
        rows, columns = np.nonzero(mask)
        segmentation = each["segmentation"]
        assert segmentation["size"] == [60, 70]
        np.testing.assert_array_equal(decode_runs(decode_compressed(segmentation["counts"]), (60, 70)), mask)
        assert each["area"] == mask.sum()
        assert each["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert each["category_id"] == labels[mask][0]
        assert each["score"] == pytest.approx(probabilities[mask][:, each["category_id"]].mean(), abs=1e-6)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_coco_is_what_pycocotools_reads_and_writes(tmp_path, capsys):
    coco = pytest.importorskip("pycocotools.coco")
    encode = pytest.importorskip("pycocotools.mask").encode
    labels = blobs((40, 50))
    labels[5:30, 20] = labels[5:30, 49] = labels[39] = 1  # whole columns and rows up to the borders
    labels[:, 7] = 2
    found, folder = written(tmp_path, labels, probabilities=np.full((40, 50, 3), 0.5, np.float32))
    data, ids = coco.COCO(str(folder / "wood.json")), whole(found.ids)
    assert len(data.anns) == len(found)
    for number, each in data.anns.items():
        mask = np.asfortranarray(ids == number, dtype=np.uint8)
        np.testing.assert_array_equal(data.annToMask(each), mask)
        assert each["segmentation"]["counts"] == encode(mask)["counts"].decode()
    listed = json.loads((folder / "wood.json").read_text())["annotations"]
    results = data.loadRes([{key: value for key, value in each.items() if key != "bbox"} for each in listed])
    assert [each["area"] for each in results.anns.values()] == found.shapes.pixels[1:].tolist()
    capsys.readouterr()


@pytest.mark.parametrize("rows", [(0, 4), (0, 5), (1, 5), (2, 3)])
def test_run_lengths_of_full_and_partial_columns(rows):
    mask = np.zeros((5, 6), bool)
    mask[rows[0] : rows[1], 2:4] = True
    part = mask[rows[0] : rows[1], 2:4]
    lengths = run_lengths(part, (rows[0], 2), (5, 6))
    assert sum(lengths) <= 30
    np.testing.assert_array_equal(decode_runs([*lengths, 30 - sum(lengths)], (5, 6)), mask)
    assert decode_compressed(compress(lengths)) == lengths
    assert decode_compressed(compress([0, 31, 32, 1 << 31, 5, 0, 17])) == [0, 31, 32, 1 << 31, 5, 0, 17]


@pytest.mark.parametrize("place", [None, TURNED])
def test_one_feature_for_each_object_on_the_ground(tmp_path, place):
    labels = blobs((60, 70))
    labels[10:17, 10:17] = 1
    labels[12:15, 12:15] = 0  # a hole
    found, folder = written(tmp_path, labels, georeference=place, pixel_size=(2.0, 3.0))
    content = json.loads((folder / "wood.geojson").read_text())
    features = content["features"]
    assert [each["properties"]["instance"] for each in features] == list(range(1, len(found) + 1))
    scale = 6.0 if place is None else place.pixel_area
    for each in features:
        area = sum(sum(shoelace(ring) for ring in polygon) for polygon in polygons_of(each))  # holes run the other way
        assert area == pytest.approx(each["properties"]["pixels"] * scale)
        assert each["properties"]["name"] == NAMES[each["properties"]["class"]]
    holes = [sum(len(polygon) - 1 for polygon in polygons_of(each)) for each in features]
    assert max(holes) >= 1
    if place is not None:
        assert content["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"
    else:
        assert "a pixel of the labels is 2 × 3" in content["description"]


def test_an_object_of_two_parts_is_a_multipolygon(tmp_path):
    found, folder = written(tmp_path, np.array([[1, 0, 2]], np.uint8))
    found.ids.write(0, 0, np.array([[1, 0, 1]], np.uint32))
    from castvision.inference.instances.table import measure
    from castvision.inference.writers.instance_files import write_instance_geojson

    object.__setattr__(found, "shapes", measure(found.ids, 1))
    object.__setattr__(found, "classes", np.array([-1, 1]))
    write_instance_geojson(folder / "two.geojson", found, NAMES)
    (feature,) = json.loads((folder / "two.geojson").read_text())["features"]
    assert feature["geometry"]["type"] == "MultiPolygon"
    assert sorted(min(ring[0]) for ring in feature["geometry"]["coordinates"]) == [[0, 0], [2, 0]]


def test_the_table_in_pixels_and_on_the_ground(tmp_path):
    labels = blobs((60, 70))
    found, folder = written(tmp_path, labels, georeference=TURNED)
    rows, ids = table_of(folder), whole(found.ids)
    assert len(rows) == len(found)
    a, b, c, d, e, f = TURNED.transform
    for row in rows:
        y, x = np.nonzero(ids == int(row["instance"]))
        assert [int(row[side]) for side in ("left", "top", "right", "bottom")] == [
            x.min(), y.min(), x.max() + 1, y.max() + 1
        ]  # fmt: skip
        assert int(row["pixels"]) == len(x)
        assert (float(row["x"]), float(row["y"])) == pytest.approx((x.mean() + 0.5, y.mean() + 0.5), abs=1e-3)
        assert float(row["area"]) == pytest.approx(len(x) * 2.0)  # |0.6 · -1.2 - 0.8 · 1.6|
        across, down = x.mean() + 0.5, y.mean() + 0.5
        assert float(row["ground_x"]) == pytest.approx(a * across + b * down + c, abs=1e-4)
        assert float(row["ground_y"]) == pytest.approx(d * across + e * down + f, abs=1e-4)
        corners = [
            (a * s + b * t + c, d * s + e * t + f) for s in (x.min(), x.max() + 1) for t in (y.min(), y.max() + 1)
        ]
        xs, ys = zip(*corners, strict=True)
        found_box = [float(row[f"ground_{name}"]) for name in ("x_min", "y_min", "x_max", "y_max")]
        assert found_box == pytest.approx([min(xs), min(ys), max(xs), max(ys)], abs=1e-4)
        assert row["unit"] == "ground units"
    assert "score" not in rows[0]


def test_units_of_slides_and_of_degrees(tmp_path):
    labels = np.zeros((20, 30), np.uint8)
    labels[5:15, 10:20] = 1
    (tmp_path / "slide").mkdir()
    _, folder = written(tmp_path / "slide", labels, mpp=(0.5, 0.25))
    (row,) = table_of(folder)
    assert (row["unit"], float(row["area"]), float(row["ground_x"]), float(row["ground_y"])) == (
        "microns",
        12.5,
        7.5,
        2.5,
    )
    (tmp_path / "earth").mkdir()
    degrees = Georeference((0.1, 0, 10, 0, -0.1, 50), "EPSG:4326")
    _, folder = written(tmp_path / "earth", labels, georeference=degrees)
    (row,) = table_of(folder)
    assert (row["unit"], float(row["area"])) == ("degrees", pytest.approx(1.0))


def test_nothing_found_gives_valid_files(tmp_path, capsys):
    labels = np.zeros((20, 30), np.uint8)
    labels[:10] = 255
    found, folder = written(tmp_path, labels, georeference=TURNED)
    assert len(found) == 0
    assert not tifffile.imread(folder / "wood.tif").any()
    assert json.loads((folder / "wood.geojson").read_text())["features"] == []
    assert json.loads((folder / "wood.json").read_text())["annotations"] == []
    assert len((folder / "wood.csv").read_text().splitlines()) == 1
    coco = pytest.importorskip("pycocotools.coco")
    assert coco.COCO(str(folder / "wood.json")).getAnnIds() == []
    capsys.readouterr()


def test_only_the_files_asked_for(tmp_path):
    _, folder = written(tmp_path, blobs((30, 30)), kinds=("csv",))
    assert [path.name for path in folder.iterdir()] == ["wood.csv"]


def test_images_too_large_for_coco_are_refused_before_work():
    check_size((65536, 65535), KINDS)
    check_size((65536, 65536), ("tiff", "csv"))
    with pytest.raises(ValueError, match=r"too large .* --instance-files tiff,geojson,csv"):
        check_size((65536, 65536), KINDS)
