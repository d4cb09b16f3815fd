"""Where pixels lie: beside the file, turned, in degrees; held against GDAL, where it is installed."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image

from castvision.data import Georeference, open_image
from castvision.data.input_format import InputFormat
from castvision.data.reading.georeference import epsg_keys, georeference_of
from castvision.data.reading.pixels import orient
from castvision.inference.scale import level_to_work_at

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (30, 40, 3), np.uint8)
UTM = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633)
DEGREES = (1, 1, 0, 3, 1024, 0, 1, 2, 1025, 0, 1, 1, 2048, 0, 1, 4326)
WKT = (
    'PROJCS["WGS 84 / UTM zone 33N",GEOGCS["WGS 84",AUTHORITY["EPSG","4326"]],UNIT["metre",1],'
    'AUTHORITY["EPSG","32633"]]'
)
PLACE = (0.5, 0.0, 500000.0, 0.0, -2.0, 5400000.0)


def save(path):
    if path.suffix.lower() in (".tif", ".tiff"):
        tifffile.imwrite(path, RGB, photometric="rgb")
    else:
        Image.fromarray(RGB).save(path)


def world_file(path, place=PLACE):
    a, b, c, d, e, f = place
    path.write_text("\n".join(map(repr, (a, d, b, e, c + (a + b) / 2, f + (d + e) / 2))))


def pam(path, place=PLACE, wkt=WKT):
    a, b, c, d, e, f = place
    numbers = ", ".join(map(repr, (c, a, b, f, d, e)))
    system = f"<SRS dataAxisToSRSAxisMapping='1,2'>{wkt}</SRS>" if wkt else ""
    path.with_name(path.name + ".aux.xml").write_text(
        f"<PAMDataset>{system}<GeoTransform>{numbers}</GeoTransform></PAMDataset>"
    )


@pytest.mark.parametrize(
    ("name", "beside"),
    [("a.tif", "a.tfw"), ("a.tif", "a.TFW"), ("a.tiff", "a.tiffw"), ("a.png", "a.pgw"), ("a.jpg", "a.jgw"),
     ("a.jpeg", "a.wld"), ("a.bmp", "a.bpw"), ("b.c.png", "b.c.pngw")],
)  # fmt: skip
@pytest.mark.parametrize("place", [PLACE, (0.4, 0.3, 7.0, 0.3, -0.4, 9.0)])
def test_world_files(tmp_path, name, beside, place):
    save(tmp_path / name)
    world_file(tmp_path / beside, place)
    with open_image(tmp_path / name) as reader:
        assert reader.georeference.transform == pytest.approx(place, abs=1e-9)
        assert reader.georeference.crs is None
        assert reader.pixel_area == pytest.approx(abs(place[0] * place[4] - place[1] * place[3]))
        assert reader.area_unit == "square ground units"


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.jpg"])
def test_what_gdal_lays_beside_an_image(tmp_path, name):
    save(tmp_path / name)
    pam(tmp_path / name)
    world_file(tmp_path / "a.wld", (9.0, 0.0, 1.0, 0.0, -9.0, 1.0))
    with open_image(tmp_path / name) as reader:
        assert reader.georeference.transform == PLACE, "before the world file, as in GDAL"
        assert (reader.georeference.epsg, reader.georeference.keys) == (32633, UTM)
        assert (reader.mpp, reader.mpp_y) == (0.5, 2.0)


@pytest.mark.parametrize("text", ["", "1 0 0", "1 0 0 -1 x 0", "0 0 0 0 5 5", "nan 0 0 1 0 0"])
def test_a_world_file_that_is_none_is_refused(tmp_path, text):
    save(tmp_path / "a.png")
    (tmp_path / "a.pgw").write_text(text)
    with pytest.raises(ValueError, match=r"a\.png.*six numbers of a world file in 'a\.pgw'.*correct or remove"):
        open_image(tmp_path / "a.png")


@pytest.mark.parametrize("text", ["<PAM", "<PAMDataset><GeoTransform>1, 2</GeoTransform></PAMDataset>"])
def test_a_damaged_aux_xml_is_refused(tmp_path, text):
    save(tmp_path / "a.png")
    (tmp_path / "a.png.aux.xml").write_text(text)
    with pytest.raises(ValueError, match=r"what GDAL writes in 'a\.png\.aux\.xml'"):
        open_image(tmp_path / "a.png")


def test_an_aux_xml_with_statistics_alone_says_nothing(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "a.png.aux.xml").write_text("<PAMDataset><PAMRasterBand band='1'/></PAMDataset>")
    with open_image(tmp_path / "a.png") as reader:
        assert reader.georeference is None


@pytest.mark.parametrize("kind", ["tiff", "jpeg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_image_keeps_its_place(tmp_path, orientation, kind):
    """The same pixel lies at the same place, however the image is shown."""
    stored = np.arange(30 * 40).reshape(30, 40, 1)
    place = Georeference((0.4, 0.3, 7.0, 0.3, -0.5, 9.0), "EPSG:32633", UTM)
    shown = orient(stored, orientation)[..., 0]
    if kind == "tiff":
        tags = [*place.extratags(), (274, "H", 1, orientation, True)]
        tifffile.imwrite(tmp_path / "a.tif", stored[..., 0].astype(np.uint16), extratags=tags, metadata=None)
        path = tmp_path / "a.tif"
    else:
        exif = Image.Exif()
        exif[274] = orientation
        path = tmp_path / "a.jpg"
        Image.fromarray(RGB).save(path, exif=exif)
        world_file(tmp_path / "a.jgw", place.transform)
    with open_image(path) as reader:
        assert (reader.height, reader.width) == shown.shape
        a, b, c, d, e, f = reader.georeference.transform
        assert (reader.mpp, reader.mpp_y) == pytest.approx((np.hypot(a, d), np.hypot(b, e)))
        if kind == "tiff":
            np.testing.assert_array_equal(reader.read(0, 0, *shown.shape)[..., 0], shown)
    p, q, r, s, t, u = place.transform
    for y, x in ((0, 0), (3, 5), (shown.shape[0] - 1, 2)):
        row, column = divmod(int(shown[y, x]), 40)
        there = p * (column + 0.5) + q * (row + 0.5) + r, s * (column + 0.5) + t * (row + 0.5) + u
        here = a * (x + 0.5) + b * (y + 0.5) + c, d * (x + 0.5) + e * (y + 0.5) + f
        assert here == pytest.approx(there)


def test_degrees_are_no_microns(tmp_path):
    place = Georeference((0.0001, 0.0, 7.0, 0.0, -0.0002, 47.0), "EPSG:4326", DEGREES)
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", extratags=place.extratags(), metadata=None)
    with open_image(tmp_path / "a.tif") as reader:
        assert (reader.mpp, reader.mpp_unit) == (None, None)
        assert reader.pixel_area == pytest.approx(2e-8)
        assert reader.area_unit == "square degrees"
    assert not Georeference(PLACE, "EPSG:32633", UTM).is_in_degrees
    assert not Georeference(PLACE, WKT).is_in_degrees
    assert Georeference(PLACE, 'GEOGCS["WGS 84",AUTHORITY["EPSG","4326"]]').is_in_degrees
    assert Georeference(PLACE, 'GEOGCRS["WGS 84",ID["EPSG",4326]]').is_in_degrees


@pytest.mark.parametrize(
    ("place", "area"),
    [(PLACE, 1.0), ((0.4, 0.3, 0, 0.3, -0.4, 0), 0.25), ((0, 2, 0, 0.5, 0, 0), 1.0), ((3.0, 0, 0, 0, 1.0, 0), 3.0)],
)
def test_area_is_the_determinant(place, area):
    assert Georeference(place).pixel_area == pytest.approx(area)


def test_pixels_of_a_microscope_need_not_be_square(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", resolution=(2e4, 5e3), resolutionunit="CENTIMETER")
    sizes = {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 3000, "PhysicalSizeYUnit": "nm"}
    tifffile.imwrite(tmp_path / "a.ome.tif", RGB[..., 0], metadata={"axes": "YX", **sizes})
    for name, down in (("a.tif", 2.0), ("a.ome.tif", 3.0)):
        with open_image(tmp_path / name) as reader:
            assert (reader.mpp, reader.mpp_y) == pytest.approx((0.5, down))
            assert reader.pixel_area == pytest.approx(0.5 * down)
            assert (reader.area_unit, reader.mpp_unit) == ("square microns", "microns")


def test_a_system_without_code_goes_to_keys_and_back():
    rasterio = pytest.importorskip("rasterio")
    text = "+proj=laea +lat_0=51 +lon_0=9 +x_0=10 +y_0=20 +ellps=GRS80 +units=m"
    crs = rasterio.crs.CRS.from_proj4(text)
    place = georeference_of(PLACE, crs.to_wkt())
    assert place.keys
    assert place.epsg is None
    stored = Georeference(PLACE, None, place.keys, place.doubles, place.ascii)
    assert stored.has_crs
    assert rasterio.crs.CRS.from_wkt(stored.to_wkt()).to_dict()["proj"] == "laea"


def test_a_scale_below_zero_is_a_slip_of_the_writer(tmp_path):
    tags = [(33550, 12, 3, (2.0, -3.0, 0.0), True), (33922, 12, 6, (0.0, 0.0, 0.0, 100.0, 200.0, 0.0), True)]
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", metadata=None, extratags=tags)
    with open_image(tmp_path / "a.tif") as reader:
        assert reader.georeference.transform == (2.0, 0.0, 100.0, 0.0, -3.0, 200.0)  # as GDAL has it


def test_scale_and_tiepoint_go_before_a_matrix(tmp_path):
    """The standard allows one of them; of files with both GDAL takes the former."""
    tags = [(33550, 12, 3, (2.0, 3.0, 0.0), True), (33922, 12, 6, (0.0, 0.0, 0.0, 100.0, 200.0, 0.0), True)]
    tags += [(34264, 12, 16, (1.0, 0, 0, 7, 0, -1.0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1.0), True)]
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", metadata=None, extratags=tags)
    with open_image(tmp_path / "a.tif") as reader:
        assert reader.georeference.transform == (2.0, 0.0, 100.0, 0.0, -3.0, 200.0)


@pytest.mark.parametrize(
    ("keys", "crs", "unit"),
    [
        (UTM, None, "ground units"),
        (DEGREES, None, "degrees"),
        ((*UTM, 3076, 0, 1, 9003), None, "US survey feet"),
        ((*UTM, 3076, 0, 1, 9002), None, "feet"),
        ((*UTM, 3076, 0, 1, 9001), None, "ground units"),
        (
            (),
            'PROJCS["a",GEOGCS["b",UNIT["degree",0.0174532925199433]],UNIT["Foot_US",0.3048006096012192]]',
            "US survey feet",
        ),
        ((), WKT, "ground units"),
        ((), None, "ground units"),
    ],
)
def test_feet_are_no_metres(tmp_path, keys, crs, unit):
    assert Georeference(PLACE, crs, keys).unit == unit


def test_a_scale_in_feet_is_compared_with_none_in_metres(tmp_path):
    for name, more in (("metres", ()), ("feet", (3076, 0, 1, 9002))):
        tags = Georeference(PLACE, None, (*UTM, *more)).extratags()
        tifffile.imwrite(tmp_path / f"{name}.tif", RGB, photometric="rgb", metadata=None, extratags=tags)
    seen = InputFormat(3, (32, 32), (0.5,) * 3, (0.5,) * 3, mpp=0.5, mpp_unit="ground units")
    with open_image(tmp_path / "metres.tif") as reader:
        assert level_to_work_at(reader, None, seen) == (0, None)
    with open_image(tmp_path / "feet.tif") as reader:
        assert reader.area_unit == "square feet"
        level, told = level_to_work_at(reader, None, seen)
        assert level == 0
        assert "trained on level 0 at 0.5 ground units a pixel, and the image states 0.5 feet a pixel" in told


@pytest.mark.parametrize("crs", ["EPSG:3857", 'PROJCS["WGS 84 / Pseudo-Mercator",GEOGCS["WGS 84"],UNIT["metre",1]]'])
def test_web_mercator_is_not_measured_in_metres_on_the_ground(tmp_path, crs):
    """Its units shrink towards the poles: neither a scale nor an area in them is one in metres."""
    code = crs.startswith("EPSG")
    place = Georeference(PLACE, None, epsg_keys(3857, False)) if code else Georeference(PLACE, crs)
    assert place.unit == "Web Mercator units"
    if code:
        tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", metadata=None, extratags=place.extratags())
        seen = InputFormat(3, (32, 32), (0.5,) * 3, (0.5,) * 3, mpp=0.5, mpp_unit="ground units")
        with open_image(tmp_path / "a.tif") as reader:
            assert reader.area_unit == "square Web Mercator units"
            assert "and the image states 0.5 Web Mercator units a pixel" in level_to_work_at(reader, None, seen)[1]


@pytest.mark.parametrize("tags", [
    [(33550, 12, 3, (0.0, 3.0, 0.0), True), (33922, 12, 6, (0.0, 0.0, 0.0, 100.0, 200.0, 0.0), True)],
    [(34264, 12, 16, (1.0, 1.0, 0, 7, 1.0, 1.0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1.0), True)],
])  # fmt: skip
def test_pixels_without_an_area_have_no_place(tmp_path, tags):
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", metadata=None, extratags=tags)
    with open_image(tmp_path / "a.tif") as reader:
        assert reader.georeference is None
