from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import tifffile
from PIL import Image

from castvision.data import Georeference, open_array, open_image
from castvision.inference.sinks import FileSink
from castvision.inference.writers.polygons import write_geojson
from castvision.inference.writers.preview import overlay_preview, read_reduced
from castvision.inference.writers.raster import write_png, write_tiff

RNG = np.random.default_rng(0)
UTM = Georeference((10.0, 0.0, 500000.0, 0.0, -10.0, 4600000.0), "EPSG:32633",
                   (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633))  # fmt: skip


def stored(folder, array):
    sink = FileSink(folder / "rows")
    sink.allocate(array.shape, array.dtype, 0)
    sink.write(0, 0, array)
    return sink


@pytest.mark.parametrize("shape", [(1, 1), (256, 256), (700, 1300), (1500, 10)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_labels_come_back_from_a_tiled_pyramid(tmp_path, shape, dtype):
    labels = RNG.integers(0, 5, shape).astype(dtype)
    write_tiff(tmp_path / "x.tif", stored(tmp_path, labels), nodata=255, georeference=UTM)
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        assert all(page.is_tiled for page in tiff.pages)
        assert [page.is_reduced for page in tiff.pages] == [False] + [True] * (len(tiff.pages) - 1)
        assert len(tiff.pages) == {1: 1, 256: 1, 1300: 3, 1500: 3}[max(shape)]
        for place, page in enumerate(tiff.pages):
            rows, cols = (np.minimum(np.arange(0, n, 2**place) + 2**place // 2, n - 1) for n in shape)
            np.testing.assert_array_equal(page.asarray().reshape(len(rows), len(cols)), labels[np.ix_(rows, cols)])
        assert tiff.pages[0].is_geotiff
    with open_image(tmp_path / "x.tif") as reader:
        assert reader.georeference == UTM
        assert reader.nodata == 255
        assert len(reader.levels) == len(tiff.pages)
        np.testing.assert_array_equal(reader.read(0, 0, *shape)[..., 0], labels)


def test_probabilities_of_many_classes(tmp_path):
    values = RNG.random((300, 520, 7), dtype=np.float32)
    values[3, 4] = np.nan
    write_tiff(tmp_path / "x.tif", stored(tmp_path, values), nodata=float("nan"), mpp=0.5)
    with open_image(tmp_path / "x.tif") as reader:
        np.testing.assert_array_equal(reader.read(0, 0, 300, 520), values)
        assert reader.mpp == pytest.approx(0.5)
        assert np.isnan(reader.nodata)


def test_argmax_of_stored_probabilities(tmp_path):
    values = RNG.random((50, 40, 3), dtype=np.float32)
    values[:9] = np.nan
    labels = stored(tmp_path, values).argmax().read(0, 0, 50, 40)
    np.testing.assert_array_equal(labels[9:], values[9:].argmax(-1))
    assert (labels[:9] == 255).all()


def test_png_holds_the_labels(tmp_path):
    for dtype in (np.uint8, np.uint16):
        labels = RNG.integers(0, np.iinfo(dtype).max + 1, (30, 41)).astype(dtype)
        write_png(tmp_path / "x.png", stored(tmp_path, labels))
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "x.png")), labels)


def test_reduced_images_are_block_means(tmp_path):
    image = RNG.integers(0, 65536, (1030, 2011, 2), dtype=np.uint16)
    reduced = read_reduced(open_array(image), 512)
    assert reduced.shape == (257, 502, 2)
    np.testing.assert_array_equal(reduced[7, 9], np.rint(image[28:32, 36:40].mean((0, 1))))
    assert read_reduced(open_array(image[:5000, :1]), 100).shape == (93, 1, 2)
    np.testing.assert_array_equal(read_reduced(open_array(image), 4096), image)


def test_preview_darkens_nodata_and_tints_classes(tmp_path):
    image = np.full((3000, 1000, 3), 128, np.uint8)
    labels = np.zeros((3000, 1000), np.uint8)
    labels[:1000], labels[2000:] = 255, 1
    sink, names = stored(tmp_path, labels), ["background", "road"]
    picture = overlay_preview(open_array(image), sink, nodata=255, names=names, max_side=600)
    assert picture.shape[0] == 600 and picture.shape[1] > 300  # the legend stands beside
    assert (picture[100, 100] < 60).all()
    np.testing.assert_array_equal(picture[300, 100], (128, 128, 128))
    assert np.ptp(picture[500, 100].astype(int)) > 30


def polygons_of(tmp_path, labels, names=("zero", "one", "two", "three"), **options):
    path = tmp_path / "x.geojson"
    count = write_geojson(path, stored(tmp_path, np.asarray(labels, np.uint8)), names,
                          **{"left_out": [255], **options})  # fmt: skip
    content = json.loads(path.read_text())
    assert len(content["features"]) == count
    return content


def drawn(features, shape, label):
    """Pixels whose middle lies inside by the even-odd rule."""
    inside = np.zeros(shape, bool)
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    for feature in features:
        if feature["properties"]["class"] == label:
            for ring in feature["geometry"]["coordinates"]:
                for (x0, y0), (x1, y1) in pairwise(ring):
                    assert (x0 == x1) != (y0 == y1)
                    inside ^= (x0 == x1) & (min(y0, y1) < y) & (y < max(y0, y1)) & (x < x0)
    return inside


def signed_area(ring):
    x, y = np.asarray(ring, float).T
    return ((x[:-1] * y[1:]) - (x[1:] * y[:-1])).sum() / 2


def test_a_ring_by_hand(tmp_path):
    content = polygons_of(tmp_path, [[1, 1, 1], [1, 0, 1], [1, 1, 1]], left_out=[0, 255])
    (feature,) = content["features"]
    outline, hole = feature["geometry"]["coordinates"]
    assert {tuple(point) for point in outline} == {(0, 0), (3, 0), (3, 3), (0, 3)}
    assert {tuple(point) for point in hole} == {(1, 1), (2, 1), (2, 2), (1, 2)}
    assert outline[0] == outline[-1]
    assert signed_area(outline) == 9
    assert signed_area(hole) == -1
    assert feature["properties"]["pixels"] == 8
    assert feature["properties"]["name"] == "one"
    assert "crs" not in content


def test_areas_and_holes_that_touch_at_a_corner_are_two(tmp_path):
    content = polygons_of(tmp_path, [[1, 0], [0, 1]])
    assert sorted(f["properties"]["pixels"] for f in content["features"]) == [1, 1, 1, 1]
    ring = np.ones((4, 4), np.uint8)
    ring[1, 1] = ring[2, 2] = 0
    (feature,) = polygons_of(tmp_path, ring, left_out=[0])["features"]
    assert len(feature["geometry"]["coordinates"]) == 3
    assert feature["properties"]["pixels"] == 14


@pytest.mark.parametrize("size", [(1, 1), (9, 14), (30, 25), (520, 5)])
@pytest.mark.parametrize("classes", [2, 4])
def test_polygons_hold_exactly_the_pixels(tmp_path, size, classes):
    labels = RNG.integers(0, classes, size).astype(np.uint8)
    labels[RNG.random(size) < 0.05] = 255
    features = polygons_of(tmp_path, labels)["features"]
    for label in range(classes):
        np.testing.assert_array_equal(drawn(features, size, label), labels == label)
        pixels = [f["properties"]["pixels"] for f in features if f["properties"]["class"] == label]
        assert sum(pixels) == (labels == label).sum()
    for feature in features:
        outline, *holes = feature["geometry"]["coordinates"]
        assert signed_area(outline) + sum(map(signed_area, holes)) == feature["properties"]["pixels"]
        assert all(signed_area(hole) < 0 for hole in holes)


def test_each_hole_lies_in_its_own_outline(tmp_path):
    """Nested rings: hole in island in hole."""
    labels = np.zeros((21, 42), np.uint8)
    for depth in range(5):
        for x in (0, 21):
            labels[2 * depth : 21 - 2 * depth, x + 2 * depth : x + 20 - 2 * depth] = (depth + 1) % 2
    features = polygons_of(tmp_path, labels, left_out=[0])["features"]
    assert len(features) == 6
    for feature in features:
        outline, *holes = (np.asarray(ring) for ring in feature["geometry"]["coordinates"])
        assert len(holes) <= 1
        for hole in holes:
            assert (outline.min(0) < hole.min(0)).all()
            assert (hole.max(0) < outline.max(0)).all()
            assert (np.abs(hole.min(0) - outline.min(0)) == 2).all()


def test_polygons_on_the_ground(tmp_path):
    content = polygons_of(tmp_path, [[0, 1]], left_out=[0], georeference=UTM)
    assert content["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"
    (ring,) = content["features"][0]["geometry"]["coordinates"]
    assert {tuple(point) for point in ring} == {
        (500010, 4600000), (500020, 4600000), (500020, 4599990), (500010, 4599990)
    }  # fmt: skip
    assert signed_area(ring) == 100


def test_small_areas_and_small_corners_can_be_dropped(tmp_path):
    labels = np.zeros((64, 64), np.uint8)
    y, x = np.mgrid[:64, :64]
    labels[(y - 32) ** 2 + (x - 32) ** 2 < 600] = 1
    labels[2, 2] = labels[2, 3] = 1
    labels[30, 30] = 0
    exact = polygons_of(tmp_path, labels, left_out=[0])["features"]
    assert sorted(f["properties"]["pixels"] for f in exact)[0] == 2
    (feature,) = polygons_of(tmp_path, labels, left_out=[0], min_area=3, simplify=1.5)["features"]
    rings = feature["geometry"]["coordinates"]
    assert len(rings) == 1
    assert len(rings[0]) < 30
    assert signed_area(rings[0]) == pytest.approx(feature["properties"]["pixels"], rel=0.03)


def test_an_outline_that_closes_in_on_itself_gets_a_hole(tmp_path):
    (feature,) = polygons_of(tmp_path, [[1, 1, 1], [1, 0, 1], [1, 1, 0]], left_out=[0])["features"]
    outline, hole = (ring[:-1] for ring in feature["geometry"]["coordinates"])
    assert {tuple(point) for point in outline} == {(0, 0), (0, 3), (2, 3), (2, 2), (3, 2), (3, 0)}
    assert {tuple(point) for point in hole} == {(1, 1), (2, 1), (2, 2), (1, 2)}


def segments_of(ring):
    return [(np.asarray(start, float), np.asarray(end, float)) for start, end in pairwise(ring)]


def is_met(first, second):
    """Whether two closed segments have a point in common."""
    (a, b), (c, d) = first, second
    side = lambda p, q, r: np.sign((q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0]))  # noqa: E731
    if (np.maximum(a, b) < np.minimum(c, d)).any() or (np.maximum(c, d) < np.minimum(a, b)).any():
        return False
    return side(a, b, c) * side(a, b, d) <= 0 and side(c, d, a) * side(c, d, b) <= 0


def assert_valid(feature):
    """By the rules of simple features: simple rings, which touch others in single points, holes inside."""
    rings = feature["geometry"]["coordinates"]
    for ring in rings:
        assert ring[0] == ring[-1]
        assert len({tuple(point) for point in ring}) == len(ring) - 1, "a ring that meets itself"
        edges = segments_of(ring)
        for number, edge in enumerate(edges):
            for other in range(number + 2, len(edges)):
                if (number, other) != (0, len(edges) - 1):
                    assert not is_met(edge, edges[other]), "a ring that crosses itself"
    for number, ring in enumerate(rings):
        for other in rings[number + 1 :]:
            shared = {tuple(point) for point in ring} & {tuple(point) for point in other}
            assert len(shared) <= 1
            for one in segments_of(ring):
                for two in segments_of(other):
                    ends = {tuple(map(float, point)) for point in (*one, *two)}
                    assert not is_met(one, two) or len(ends) < 4, "rings that cross"
    assert signed_area(rings[0]) > -sum(map(signed_area, rings[1:]))


@pytest.mark.parametrize("simplify", [0, 1.0, 2.5])
@pytest.mark.parametrize("min_area", [1, 4])
@pytest.mark.parametrize("seed", range(4))
def test_polygons_are_valid_and_say_their_area(tmp_path, simplify, min_area, seed):
    """Noise of pixels and of blobs, with rings that touch everywhere; shapely judges where it is installed."""
    rng = np.random.default_rng(seed)
    noise = rng.random((26, 31))
    labels = (noise > 0.45) if seed % 2 else (noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1) > 1.4)
    features = polygons_of(tmp_path, labels, min_area=min_area, simplify=simplify)["features"]
    assert any(len(feature["geometry"]["coordinates"]) > 1 for feature in features)
    for feature in features:
        assert_valid(feature)
        area = sum(map(signed_area, feature["geometry"]["coordinates"]))
        assert feature["properties"]["pixels"] >= min_area
        assert simplify or area == feature["properties"]["pixels"]
    if min_area == 1:
        assert sum(feature["properties"]["pixels"] for feature in features) == labels.size
    try:
        from shapely.geometry import shape
    except ImportError:
        return
    assert all(shape(feature["geometry"]).is_valid for feature in features)


def test_small_holes_are_filled_in_outline_and_pixels(tmp_path):
    labels = np.ones((9, 9), np.uint8)
    labels[2, 2] = labels[5, 5] = labels[5, 6] = 0
    for min_area, rings, pixels in ((1, 3, 78), (2, 2, 79), (3, 1, 81)):
        (feature,) = polygons_of(tmp_path, labels, left_out=[0], min_area=min_area)["features"]
        assert len(feature["geometry"]["coordinates"]) == rings
        assert feature["properties"]["pixels"] == pixels
        assert sum(map(signed_area, feature["geometry"]["coordinates"])) == pixels


def test_rings_that_cannot_be_simplified_apart_stay_as_they_are():
    from castvision.inference.writers.outlines import are_apart, simplify_rings

    square = np.array([(0, 0), (0, 12), (12, 12), (12, 0)])
    hole = np.array([(4, 4), (6, 4), (6, 6), (4, 6)])
    assert are_apart([square, hole])
    assert not are_apart([square, hole + 20]), "a hole outside"
    assert not are_apart([square, hole, hole + 2]), "holes that touch"
    assert not are_apart([square, hole, np.array([(3, 3), (7, 3), (7, 7), (3, 7)])]), "a hole in a hole"
    assert not are_apart([np.array([(0, 0), (4, 4), (4, 0), (0, 4)])]), "a bow tie"
    assert not are_apart([np.array([(0, 0), (0, 4), (0, 2), (4, 0)])]), "an edge that turns back"
    kept = simplify_rings([square, hole], 100.0)
    assert [len(ring) for ring in kept] == [4, 4]
    assert are_apart([(ring * 4).astype(int) for ring in kept])


def test_polygons_of_a_lower_level_are_in_pixels_of_the_full_image(tmp_path):
    content = polygons_of(tmp_path, [[0, 1]], left_out=[0], pixel_size=(4.0, 2.0))
    (ring,) = content["features"][0]["geometry"]["coordinates"]
    assert {tuple(point) for point in ring} == {(4, 0), (8, 0), (8, 2), (4, 2)}
    assert "4 × 2" in content["description"]


def test_nothing_to_outline_is_an_empty_collection(tmp_path):
    assert polygons_of(tmp_path, np.full((4, 4), 255))["features"] == []
