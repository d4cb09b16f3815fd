"""Files that point at other files: inside their folder and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from castvision.data import open_image
from castvision.data.reading.references import check_references

VRT = (
    '<VRTDataset rasterXSize="4" rasterYSize="4"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
    '<SourceFilename relativeToVRT="{relative}">{name}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
    "</VRTRasterBand></VRTDataset>"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``in/`` with a picture, ``secret.png`` outside it."""
    inside = tmp_path / "in"
    (inside / "deeper").mkdir(parents=True)
    picture = np.arange(16, dtype=np.uint8).reshape(4, 4)
    for path in (inside / "own.png", inside / "deeper/own.png", tmp_path / "secret.png"):
        Image.fromarray(picture).save(path)
    return inside


def describe(path: Path, name: str, relative: int = 1) -> Path:
    path.write_text(VRT.format(relative=relative, name=name))
    return path


@pytest.mark.parametrize("name", ["own.png", "deeper/own.png", "./deeper/../own.png"])
def test_files_of_the_folder_are_followed(folder: Path, name: str) -> None:
    check_references(describe(folder / "a.vrt", name))
    check_references(describe(folder / "b.vrt", str(folder / name), relative=0))


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png", "{outside}/secret.png", "/vsicurl/http://localhost:9/a.tif", "http://localhost:9/a.tif",
        "/vsizip/own.zip/a.png", "missing.png", "&lt;VRTDataset/&gt;", "link.png",
    ],
)  # fmt: skip
def test_nothing_else_is(folder: Path, name: str) -> None:
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    path = describe(folder / "a.vrt", name.format(outside=folder.parent), relative=0)
    with pytest.raises(ValueError, match="name files in its own folder or below it"):
        check_references(path)


def test_a_description_of_a_description_is_read_too(folder: Path) -> None:
    describe(folder / "inner.vrt", "../secret.png")
    with pytest.raises(ValueError, match=r"inner\.vrt.*own folder"):
        check_references(describe(folder / "outer.vrt", "inner.vrt"))
    describe(folder / "round.vrt", "round.vrt")
    check_references(folder / "round.vrt")  # GDAL says what is wrong with it


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<VRTDataset nonsense", "a virtual raster's XML"),
        ("<GDAL_WMS/>", "expected <VRTDataset>"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><VRTDataset/>", "without a DOCTYPE"),
        ("<VRTDataset><PixelFunctionCode>import os</PixelFunctionCode></VRTDataset>", "without code"),
    ],
)
def test_descriptions_that_are_none_or_more(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.vrt").write_text(text)
    with pytest.raises(ValueError, match=message):
        check_references(tmp_path / "a.vrt")


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.img", "a"])
@pytest.mark.parametrize("begin", ["", "\ufeff", " \n"])
def test_a_description_under_another_name_is_refused(folder: Path, name: str, begin: str) -> None:
    (folder / name).write_text(begin + VRT.format(relative=1, name="own.png"), encoding="utf-8")
    with pytest.raises(ValueError, match="which may point at other files"):
        check_references(folder / name)


def test_the_door_is_held(folder: Path) -> None:
    pytest.importorskip("rasterio")
    with open_image(describe(folder / "a.vrt", "own.png")) as reader:
        np.testing.assert_array_equal(reader.read(0, 0, 4, 4)[..., 0], np.arange(16).reshape(4, 4))
    for path in (describe(folder / "b.vrt", "../secret.png"), describe(folder / "c.png", "own.png")):
        with pytest.raises(ValueError, match=path.name):
            open_image(path)
