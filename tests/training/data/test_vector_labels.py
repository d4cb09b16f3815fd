"""Polygons and points on the ground as training labels: every pixel they cover is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from castvision.data.datasets.labelled_split import split_labelled
from castvision.data.datasets.vector_labels import VectorLabels
from castvision.training.data.windows import WindowDataModule

RNG = np.random.default_rng(0)
UTM = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633)
LITTLE = {"size": 32, "batch_size": 2, "num_workers": 0, "train_length": 4}
LEFT, TOP, STEP = 5e5, 4.6e6, 10.0


def raster(path: Path, size: tuple[int, int] = (200, 240), offset: float = 0.0, zeros: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    place = [(33550, "d", 3, (STEP, STEP, 0.0), True), (33922, "d", 6, (0, 0, 0, LEFT + offset, TOP, 0), True)]
    pixels = RNG.integers(1, 255, (*size, 3), dtype=np.uint8)
    pixels[:zeros] = 0
    tifffile.imwrite(path, pixels, photometric="rgb", extratags=[*place, (34735, "H", 16, UTM, True)])
    return path


def square(value: object, x: float, y: float, side: float, hole: bool = False) -> dict:
    """In pixels, at ground coordinates."""

    def ring(left: float, top: float, length: float) -> list[list[float]]:
        corners = [(left, top), (left + length, top), (left + length, top + length), (left, top + length), (left, top)]
        return [[LEFT + STEP * column, TOP - STEP * row] for column, row in corners]

    rings = [ring(x, y, side)] + ([ring(x + 2, y + 2, side - 4)] if hole else [])
    return feature(value, {"type": "Polygon", "coordinates": rings})


def point(value: object, x: float, y: float) -> dict:
    return feature(value, {"type": "Point", "coordinates": [LEFT + STEP * x, TOP - STEP * y, 7.0]})


def feature(value: object, geometry: dict) -> dict:
    return {"type": "Feature", "properties": {"kind": value, "note": None}, "geometry": geometry}


def geojson(path: Path, *features: dict, code: int | None = 32633) -> Path:
    content = {"type": "FeatureCollection", "features": list(features)}
    if code is not None:
        content["crs"] = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{code}"}}
    path.write_text(json.dumps(content))
    return path


def labels_of(data: WindowDataModule, split: str = "train") -> np.ndarray:
    """All of the first image."""
    sources = data.dataset(split).sources
    return sources.read_labels(0, 0, 0, *sources.sizes[0])


BOTH = [
    square("field", 10, 20, 30, hole=True),
    square("town", 35, 45, 8),
    point("town", 12.5, 22.5),
    square(3, 100, 9, 5),
]
KINDS = {"field": "crop", "town": "built", "3": "ignore"}


@pytest.mark.parametrize(("radius", "of_point"), [(0.0, 1), (2.0, 13)])
def test_polygons_and_points_cover_known_pixels(tmp_path, radius, of_point):
    raster(tmp_path / "images/a.tif")
    geojson(tmp_path / "labels.geojson", *BOTH, *(square("field", 200, 40 * row, 20) for row in range(5)))
    vector = VectorLabels("labels.geojson", "kind", KINDS, unlabelled="ground", point_radius=radius)
    data = WindowDataModule(str(tmp_path), vector=vector, **LITTLE)
    assert data.class_names == ["ground", "built", "crop"]
    expected = np.zeros((200, 240), np.uint8)
    expected[9:14, 100:105] = 255
    expected[20:50, 10:40] = 2
    expected[22:48, 12:38] = 0
    expected[45:53, 35:43] = 1  # the smaller one lies on top
    rows, columns = np.mgrid[:200, :240] + 0.5
    disc = (rows - 22.5) ** 2 + (columns - 12.5) ** 2 <= radius**2
    assert disc.sum() == of_point
    expected[disc] = 1
    for row in range(5):
        expected[40 * row : 40 * row + 20, 200:220] = 2
    np.testing.assert_array_equal(labels_of(data), expected)
    sources = data.dataset("train").sources
    np.testing.assert_array_equal(sources.read_labels(0, 30, 33, 20, 9), expected[30:50, 33:42])


@pytest.mark.parametrize("seed", range(5))
def test_few_points_on_one_image_are_in_every_split(tmp_path, seed):
    raster(tmp_path / "images/a.tif", (512, 512))
    places = RNG.integers(0, 512, (12, 2))
    kinds = ["a", "b"] * 5 + ["c"] * 2
    geojson(
        tmp_path / "p.geojson", *(point(kind, x + 0.5, y + 0.5) for kind, (x, y) in zip(kinds, places, strict=True))
    )
    data = WindowDataModule(str(tmp_path), vector=VectorLabels("p.geojson", "kind"), seed=seed, **LITTLE)
    held = {}
    for split in ("train", "val", "test"):
        dataset = data.dataset(split)
        held[split] = sum(
            int((dataset.sources.read_labels(source, *area) != 255).sum()) for source, area in dataset.regions
        )
    assert min(held.values()) >= 1 and held["train"] >= 6
    assert sorted(data.dataset("train").index.present) == [0, 1, 2]


def test_folders_name_the_splits(tmp_path):
    for number, split in enumerate(("train", "train", "val")):
        raster(tmp_path / split / f"images/{number}.tif", (64, 64), offset=1000.0 * number)
    geojson(tmp_path / "l.geojson", *(square(kind, 100 * number + 10 * shift, 10, 8) for number in range(3)
                                      for shift, kind in enumerate("ab")))  # fmt: skip
    data = WindowDataModule(str(tmp_path), vector=VectorLabels("l.geojson", "kind"), **LITTLE)
    owners = {split: {source for source, _ in data.dataset(split).regions} for split in ("train", "val")}
    assert owners == {"train": {0, 1}, "val": {2}}
    assert np.bincount(labels_of(data).ravel(), minlength=256)[[0, 1]].tolist() == [64, 64]


def test_labels_in_pixels_and_in_the_images_system(tmp_path):
    raster(tmp_path / "images/a.tif")
    geojson(tmp_path / "l.geojson", square("a", 3, 4, 9), square("b", 150, 100, 9), square("a", 60, 150, 9), code=None)
    with pytest.raises(ValueError, match="states no coordinate system, so GeoJSON's degrees are meant"):
        WindowDataModule(str(tmp_path), vector=VectorLabels("l.geojson", "kind"), **LITTLE)
    data = WindowDataModule(str(tmp_path), vector=VectorLabels("l.geojson", "kind", crs="image"), **LITTLE)
    assert (labels_of(data)[4:13, 3:12] == 0).all() and (labels_of(data) == 0).sum() == 162


def test_another_coordinate_system_is_transformed(tmp_path):
    warp = pytest.importorskip("rasterio.warp")
    raster(tmp_path / "images/a.tif")
    shapes = [square("a", 10, 20, 30), square("b", 100, 100, 30), square("a", 150, 20, 30)]
    for one in shapes:
        one["geometry"] = warp.transform_geom("EPSG:32633", "EPSG:4326", one["geometry"])
    geojson(tmp_path / "l.geojson", *shapes, code=None)
    labels = labels_of(WindowDataModule(str(tmp_path), vector=VectorLabels("l.geojson", "kind"), **LITTLE))
    expected = np.full((200, 240), 255)
    expected[20:50, 10:40], expected[100:130, 100:130], expected[20:50, 150:180] = 0, 1, 0
    assert (labels != expected).sum() <= 4  # a rounded edge through pixel centres, at the most


def test_without_rasterio_another_system_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rasterio.crs", None)
    raster(tmp_path / "images/a.tif")
    geojson(tmp_path / "l.geojson", square("a", 10, 20, 30), code=32634)
    with pytest.raises(
        ImportError, match=r"EPSG:32634 to EPSG:32633 needs rasterio: pip install 'castvision\[vector\]'"
    ):
        WindowDataModule(str(tmp_path), vector=VectorLabels("l.geojson", "kind", unlabelled="ground"), **LITTLE)


@pytest.mark.parametrize("ending", [".gpkg", ".shp"])
def test_other_formats_by_the_extra(tmp_path, ending):
    pyogrio = pytest.importorskip("pyogrio")
    shapely = pytest.importorskip("shapely")
    raster(tmp_path / "images/a.tif")
    shapes = [square("a", 10, 20, 30, hole=True), square("b", 100, 100, 30), square("a", 150, 20, 30)]
    wkb = shapely.to_wkb([shapely.geometry.shape(one["geometry"]) for one in shapes])
    values = [np.array(["a", "b", "a"], object)]
    how = {"geometry_type": "Polygon", "crs": "EPSG:32633"}
    pyogrio.raw.write(tmp_path / f"l{ending}", wkb, values, ["kind"], **how)
    data = WindowDataModule(str(tmp_path), vector=VectorLabels(f"l{ending}", "kind"), **LITTLE)
    geojson(tmp_path / "l.geojson", *shapes)
    same = WindowDataModule(str(tmp_path), vector=VectorLabels("l.geojson", "kind"), **LITTLE)
    np.testing.assert_array_equal(labels_of(data), labels_of(same))


@pytest.mark.parametrize(
    ("features", "how", "message"),
    [
        ([square("a", 9000, 0, 5), square("b", 9000, 9, 5)], {}, "on the images, found none of 2"),
        ([square("a", 1, 1, 5)], {}, "two classes or more, got a alone .*unlabelled: background"),
        ([square("a", 1, 1, 5)], {"classes": {"b": "c"}}, "expected values b of 'kind' .*got a"),
        ([square(None, 1, 1, 5)], {}, "feature 0: expected a value of 'kind', got none"),
        ([square("a", 1, 1, 5)], {"attribute": "class"}, "expected the attribute 'class', got kind, note"),
        ([feature("a", {"type": "LineString", "coordinates": [[0, 0], [1, 1]]})], {}, "got a LineString; give"),
        ([square("a", 1, 1, 5), square("b", 1, 9, 5)], {"unlabelled": "sea", "classes": {"a": "x", "b": "ignore"}},
         "parts with labels for each of train, val, test, got 1"),
        ([], {}, "polygons or points .*found none"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, features, how, message):
    raster(tmp_path / "images/a.tif")
    geojson(tmp_path / "l.geojson", *features)
    with pytest.raises(ValueError, match=message):
        WindowDataModule(str(tmp_path), vector=VectorLabels("l.geojson", **{"attribute": "kind", **how}), **LITTLE)


@pytest.mark.parametrize("hole", [0, np.nan])
@pytest.mark.parametrize("seed", range(3))
def test_labels_where_the_image_is_empty_are_none(tmp_path, hole, seed):
    """Neither splits nor the balance of classes count them."""
    path = raster(tmp_path / "images/a.tif")
    pixels = tifffile.imread(path).astype(np.float32)
    pixels[:, :120] = hole
    place = [(33550, "d", 3, (STEP, STEP, 0.0), True), (33922, "d", 6, (0, 0, 0, LEFT, TOP, 0), True)]
    nodata = [(42113, "s", 0, "0", True)] if hole == 0 else []
    tifffile.imwrite(path, pixels, photometric="rgb", extratags=[*place, (34735, "H", 16, UTM, True), *nodata])
    points = [point("ab"[step % 2], 8 + 30 * (step % 8), 9 + 37 * (step // 8)) for step in range(40)]
    geojson(tmp_path / "l.geojson", *points)
    data = WindowDataModule(str(tmp_path), vector=VectorLabels("l.geojson", "kind"), seed=seed, **LITTLE)
    for split in ("val", "test"):
        windows = data.dataset(split)
        assert all((windows[index][1] != 255).any() for index in range(len(windows)))
    assert all((data.dataset("train")[index][1] != 255).any() for index in range(20))
    geojson(tmp_path / "l.geojson", *(one for one in points if one["geometry"]["coordinates"][0] < LEFT + 120 * STEP))
    with pytest.raises(ValueError, match="with labels for each of train, val, test, got 0"):
        WindowDataModule(str(tmp_path), vector=VectorLabels("l.geojson", "kind"), **LITTLE)


def test_labels_too_small_for_any_pixel_are_counted_or_refused(tmp_path, caplog):
    images = [raster(tmp_path / "images/a.tif")]
    small, large = square("town", 3.6, 3.6, 0.3), square("field", 10, 20, 3)
    geojson(tmp_path / "labels.geojson", small, large)
    labels = VectorLabels("labels.geojson", "kind")
    features, crs = labels.read(tmp_path)
    labels.masks(features, crs, images, ["field", "town"])
    assert "1 labels of labels.geojson are so small" in caplog.text
    with pytest.raises(ValueError, match=r"found 1 that are too small; give points"):
        labels.masks(features[:1], crs, images, ["field", "town"])


def test_values_are_classes_in_any_unicode_form(tmp_path):
    raster(tmp_path / "images/a.tif")
    geojson(tmp_path / "labels.geojson", point("h\u00fctte", 3, 3), point("hu\u0308tte", 9, 3), point("wald", 20, 9))
    labels = VectorLabels("labels.geojson", "kind")
    features, crs = labels.read(tmp_path)
    assert labels.class_names(features) == ["h\u00fctte", "wald"]
    (mask,) = labels.masks(features, crs, [tmp_path / "images/a.tif"], ["wald", "hu\u0308tte"])
    with mask.open() as reader:
        assert reader.read(3, 0, 1, 10)[0, [3, 9], 0].tolist() == [1, 1]


def test_a_margin_of_zeros_is_named(tmp_path, caplog):
    raster(tmp_path / "images/a.tif", zeros=40)
    geojson(tmp_path / "l.geojson", *(square(kind, 40 * step, 100, 9) for step, kind in enumerate("abab")))
    WindowDataModule(str(tmp_path), vector=VectorLabels("l.geojson", "kind"), **LITTLE)
    share = (240 + 2 * 40) / (2 * 240 + 2 * 200)
    assert f"a share of {share:.2f} of the pixels is exactly zero along the borders" in caplog.text
    assert "declare nodata" in caplog.text


@pytest.mark.parametrize("seed", range(10))
def test_every_split_gets_labels_and_training_every_class(seed):
    rng = np.random.default_rng(seed)
    present = np.zeros((60, 4), bool)
    for label, count in enumerate((20, 6, 3, 3)):
        present[rng.choice(40, count, replace=False), label] = True
    shares = {"train": 0.6, "val": 0.2, "test": 0.2}
    parts = split_labelled(present, shares, seed)
    assert sorted(thing for some in parts.values() for thing in some) == list(range(60))
    assert present[parts["train"]].any(axis=0).all()
    assert all(present[some].any() for some in parts.values())
    groups = [thing // 2 for thing in range(60)]
    owner = {thing: split for split, some in split_labelled(present, shares, seed, groups).items() for thing in some}
    assert all(owner[2 * group] == owner[2 * group + 1] for group in range(30))


def test_too_few_labels_for_the_splits():
    with pytest.raises(ValueError, match="one of 9 parts with labels for each of train, val, got 1"):
        split_labelled(np.eye(9, 1, dtype=bool), {"train": 0.8, "val": 0.2})
