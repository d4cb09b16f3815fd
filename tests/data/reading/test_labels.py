from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from castvision.data import read_mask
from castvision.data.datasets.sources import ImageSources
from castvision.data.reading.labels import (
    ClassReader,
    LabelMap,
    check_classes_found,
    map_by_names,
    mark_ignored,
    read_class_names,
)
from castvision.data.reading.whole import read_image

NAMES = ["background", "road", "water"]


def test_a_palette_keeps_its_indices(palette_png):
    path = palette_png()
    assert LabelMap(NAMES).read(path).tolist() == [[0, 1], [2, 255]]
    assert read_image(path)[..., 0].tolist() == [[255, 254], [253, 0]]  # as an image it has colours
    by_colour = LabelMap(NAMES, {"#ff004d": 0, "254,1,77": 1, "#fd024d": "water", "#00ff4d": "ignore"})
    assert by_colour.read(path).tolist() == [[0, 1], [2, 255]]


def test_a_palette_in_a_tiff_and_bilevel_masks(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8)).convert("P")
    image.putdata([0, 1, 2, 1])
    image.save(tmp_path / "mask.tif")
    assert LabelMap(NAMES).read(tmp_path / "mask.tif").tolist() == [[0, 1], [2, 1]]
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "mask.png")
    assert LabelMap(NAMES).read(tmp_path / "mask.png").tolist() == [[0, 1]]


@pytest.mark.parametrize("alpha", [False, True])
def test_colours_in_a_mask_with_nodata(tmp_path, alpha):
    """Pure red holds the nodata value 0 in two of its channels, and is a colour all the same."""
    stored = np.array([[[255, 0, 0], [0, 0, 255]], [[9, 9, 9], [255, 0, 0]]], np.uint8)
    stored = np.dstack([stored, np.full((2, 2), 255, np.uint8)]) if alpha else stored
    kinds = {"photometric": "rgb", "extrasamples": ["unassalpha"] if alpha else None}
    for nodata in (0, 9):
        tags = [(42113, "s", 2, str(nodata), True)]
        tifffile.imwrite(tmp_path / f"{nodata}.tif", stored, extratags=tags, metadata=None, **kinds)
    colours = {"#ff0000": "road", "#0000ff": "water"}
    assert LabelMap(NAMES, colours).read(tmp_path / "9.tif").tolist() == [[1, 2], [255, 1]]
    told = {**colours, "#090909": "background"}
    assert LabelMap(NAMES, told).read(tmp_path / "0.tif").tolist() == [[1, 2], [0, 1]]
    with pytest.raises(ValueError, match=r"expected a nodata value that is no class .* '#090909', .* 'background'"):
        LabelMap(NAMES, told).read(tmp_path / "9.tif")


def test_16_bit_labels_are_translated(tmp_path):
    tifffile.imwrite(tmp_path / "mask.tif", np.array([[0, 300], [65535, 300]], dtype=np.uint16))
    labels = LabelMap(NAMES, {0: 0, 300: "road", 65535: "ignore"})
    assert labels.read(tmp_path / "mask.tif").tolist() == [[0, 1], [255, 1]]
    with pytest.raises(ValueError, match=r"expected labels 0, 1, 2, 255 in the mask .*mask\.tif.* got 300, 65535; .*"):
        LabelMap(NAMES).read(tmp_path / "mask.tif")


def test_every_unknown_label_is_named_with_the_file_and_the_remedy():
    with pytest.raises(
        ValueError, match=r"'a\.png' for 3 classes, got 3, 7; translate them by label_map, such as \{'3'"
    ):
        LabelMap(NAMES).apply(np.array([[3, 0, 7, 7]], dtype=np.uint8), "a.png")
    with pytest.raises(ValueError, match="got -1"):
        LabelMap(NAMES).apply(np.array([[-1, 0]], dtype=np.int32), "a.tif")
    with pytest.raises(ValueError, match="JPEG changes labels"):
        LabelMap(NAMES).apply(np.array([[3]], dtype=np.uint8), "a.jpg")


def test_a_label_missing_from_the_map_is_unknown():
    with pytest.raises(ValueError, match="got 1;"):
        LabelMap(NAMES, {0: 0, 2: 2}).apply(np.array([[0, 1, 2]], dtype=np.uint8), "a.png")


def test_grey_saved_as_rgb_counts_and_colours_without_a_map_are_listed():
    grey = np.repeat(np.array([[0, 2]], dtype=np.uint8)[..., None], 3, axis=-1)
    assert LabelMap(NAMES).apply(grey, "a.png").tolist() == [[0, 2]]
    with pytest.raises(ValueError, match=r"got colours \(0, 0, 0\), \(9, 0, 0\); give a label map"):
        LabelMap(NAMES).apply(np.array([[[0, 0, 0], [9, 0, 0]]], dtype=np.uint8), "a.png")


def test_masks_of_other_kinds_are_refused():
    with pytest.raises(ValueError, match=r"expected whole numbers in the mask 'a\.tif', got float32"):
        LabelMap(NAMES).apply(np.zeros((2, 2), np.float32), "a.tif")
    with pytest.raises(ValueError, match="expected 8-bit RGB"):
        LabelMap(NAMES, {"#000000": 0}).apply(np.zeros((2, 2), np.uint8), "a.png")


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({}, "of numbers or of colours"),
        ({0: 0, "#ff0000": 1}, "of numbers or of colours"),
        ({0: 3}, r"expected a class 0\.\.2, its name \(background, road, water\) or 'ignore', got 3"),
        ({0: "raod"}, "got 'raod'"),
        ({"red": 1}, "expected a colour"),
    ],
)
def test_label_maps_are_checked(mapping, message):
    with pytest.raises(ValueError, match=message):
        LabelMap(NAMES, mapping)


def test_numbers_may_be_written_as_text():
    assert LabelMap(NAMES, {"4": "road"}).apply(np.array([[4]], np.uint8), "a").tolist() == [[1]]


def test_labels_without_a_map():
    labels = np.array([[0, 2, 3], [-1, 255, -9]], np.int16)
    marked, is_unknown = mark_ignored(labels, nodata=-9, num_classes=3)
    assert marked.tolist() == [[0, 2, 3], [-1, 255, 255]]
    assert is_unknown.tolist() == [[False, False, True], [True, False, False]]
    marked, is_unknown = mark_ignored(np.array([[0, 254, 255, 256]], np.uint16), None, None)
    assert marked.tolist() == [[0, 254, 255, 256]] and is_unknown.tolist() == [[False, False, False, True]]


LABELS = np.random.default_rng(0).integers(0, 2, (20, 30)).astype(np.uint8) * 200


def write_form(path, form, labels):
    """The same labels in another form of file; 1-bit and palette files hold 0 and 1."""
    opacity = np.random.default_rng(1).integers(0, 256, labels.shape, dtype=np.uint8)
    thrice = np.repeat(labels[..., None], 3, axis=-1)
    if form.endswith(".tif") and "bit" not in form:
        how = {"white.tif": {"photometric": "miniswhite"}, "rgb.tif": {"photometric": "rgb"}}.get(form, {})
        pixels = thrice if form == "rgb.tif" else labels
        if form == "rgba.tif":
            pixels, how = np.dstack([thrice, opacity]), {"photometric": "rgb", "extrasamples": ["unassalpha"]}
        tifffile.imwrite(path, pixels, **how)
        return
    indices = (labels > 0).astype(np.uint8)
    image = {
        "grey.png": lambda: Image.fromarray(labels),
        "rgb.png": lambda: Image.fromarray(thrice),
        "rgba.png": lambda: Image.fromarray(np.dstack([thrice, opacity])),
        "la.png": lambda: Image.fromarray(np.dstack([labels, opacity])),
        "palette.png": lambda: Image.fromarray(indices).convert("P"),
        "1bit.png": lambda: Image.fromarray(labels > 0),
        "1bit.tif": lambda: Image.fromarray(labels > 0),
    }[form]()
    if form == "palette.png":
        image.putpalette([9, 9, 9, 250, 0, 0])
    image.save(path)


def by_windows(path, labels):
    image = path.with_name("image.png")
    Image.new("L", LABELS.shape[::-1]).save(image)
    sources = ImageSources([(image, path)], labels=labels)
    return sources.read_labels(0, 0, 0, *LABELS.shape)


def by_evaluation(path, labels):
    with ClassReader(path, labels) as mask:
        top, rest = mask.read(0, 0, 7, mask.width), mask.read(7, 0, mask.height - 7, mask.width)
    return np.concatenate([top, rest])[..., 0]


FORMS = ["grey.png", "rgb.png", "rgba.png", "la.png", "grey.tif", "white.tif", "rgb.tif", "rgba.tif"]
INDEXED = ["palette.png", "1bit.png", "1bit.tif"]
READERS = [lambda path, labels: labels.read(path), by_windows, by_evaluation]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("form", [*FORMS, *INDEXED])
def test_every_form_of_file_holds_the_same_classes_for_every_reader(tmp_path, form, read):
    path = tmp_path / form
    write_form(path, form, LABELS)
    object_label = 1 if form in INDEXED else 200
    labels = LabelMap(["object", "ground"], {0: "ground", object_label: "object"})
    assert np.array_equal(read(path, labels), LABELS == 0)
    ignoring = LabelMap(["object", "ground"], {0: "ignore", object_label: "object"})
    assert np.array_equal(read(path, ignoring), np.where(LABELS == 0, 255, 0))


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("form", ["rgb.png", "rgba.png", "rgb.tif", "rgba.tif"])
def test_colours_for_every_reader(tmp_path, form, read):
    write_form(tmp_path / form, form, LABELS)
    labels = LabelMap(["ground", "object"], {"#000000": 0, "200,200,200": "object"})
    assert np.array_equal(read(tmp_path / form, labels), LABELS > 0)


@pytest.mark.parametrize("read", READERS)
def test_255_is_ignored_only_where_nothing_maps_it(tmp_path, read):
    Image.fromarray(np.where(LABELS > 0, 255, 0).astype(np.uint8)).save(tmp_path / "m.png")
    mapped = LabelMap(["ground", "object"], {0: 0, 255: 1})
    assert np.array_equal(read(tmp_path / "m.png", mapped), LABELS > 0)
    assert np.array_equal(read(tmp_path / "m.png", LabelMap(["ground", "object"])), np.where(LABELS > 0, 255, 0))


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_stored_values_whole_and_by_windows(tmp_path, photometric, bits):
    labels = np.random.default_rng(2).integers(0, 4, (16, 24)).astype(np.uint8)
    packed = labels
    if bits < 8:
        per_byte = 8 // bits
        shifts = np.arange(per_byte)[::-1] * bits
        packed = (labels.reshape(16, -1, per_byte) << shifts).sum(axis=-1).astype(np.uint8)
    write_small_tiff(tmp_path / "m.tif", packed, (16, 24), bits, 0 if photometric == "miniswhite" else 1)
    assert np.array_equal(read_image(tmp_path / "m.tif", palette="index")[..., 0], labels)
    assert np.array_equal(read_mask(tmp_path / "m.tif"), labels)


@pytest.mark.parametrize("key", [None, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_stored_values_of_grey_pngs(tmp_path, bits, key):
    """Also where one value stands for transparent."""
    labels = np.random.default_rng(bits).integers(0, 2**bits, (6, 16), dtype=np.uint8)
    unpacked = np.unpackbits(labels[..., None], axis=-1)[..., -bits:].reshape(6, -1)
    rows = np.insert(np.packbits(unpacked, axis=1), 0, 0, axis=1).tobytes()  # no filter
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 16, 6, bits, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    if key is not None:
        parts.insert(1, (b"tRNS", struct.pack(">H", key)))
    chunks = [
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part)) for name, part in parts
    ]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), labels)


def write_small_tiff(path, rows, size, bits, photometric):
    """An uncompressed TIFF of one strip."""
    height, width = size
    data = rows.tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height)]
    tags.append((279, len(data)))
    table = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + table + bytes(4))


def test_the_map_in_plain_values():
    given = LabelMap(NAMES, {"#FF0000": "road", "0, 0, 255": 2, "#00ff00": "ignore"})
    assert given.mapping == {"#ff0000": 1, "#0000ff": 2, "#00ff00": "ignore"}
    assert LabelMap(NAMES, given.mapping).mapping == given.mapping
    assert LabelMap(NAMES, {0: 0, 7: 255, 255: "water"}).mapping == {"0": 0, "7": "ignore", "255": 2}
    assert LabelMap(NAMES).mapping is None


def test_what_yaml_makes_of_no_and_yes_gets_the_hint_to_quote():
    for build in (lambda: LabelMap([False, True]), lambda: LabelMap(["no", "yes"], {0: False, 1: True})):
        with pytest.raises(ValueError, match=r"got False.* in quotes"):
            build()
    with pytest.raises(ValueError, match="each label once"):
        LabelMap(NAMES, {"1": 0, 1: 1})


def test_nodata_is_ignored_unless_it_is_the_label_of_a_class():
    stored = np.array([[0, 1, 9]], np.int16)
    assert LabelMap(NAMES).apply(stored, "m", nodata=9).tolist() == [[0, 1, 255]]
    assert LabelMap(NAMES, {0: 0, 1: 1}).apply(stored, "m", nodata=9).tolist() == [[0, 1, 255]]
    with pytest.raises(ValueError, match=r"nodata 9, the label of class 'water'.*\{9: ignore\}"):
        LabelMap(NAMES, {0: 0, 1: 1, 9: 2}).apply(stored, "m", nodata=9)


def test_masks_of_one_class_and_255():
    counts = np.zeros(256, np.int64)
    counts[[0, 255]] = 5
    with pytest.raises(ValueError, match=r"in here, found 0 \(background\) and ignored.*label_map: \{0: 0, 255: 1\}"):
        check_classes_found(counts, NAMES, "here")
    counts[255] = 0
    assert check_classes_found(counts, NAMES, "here") == ["road", "water"]


def test_names_are_the_same_in_any_unicode_form(tmp_path):
    composed, apart = "h\u00fctte", "hu\u0308tte"
    (tmp_path / "classes.txt").write_text(f"{apart}\nwald\n", encoding="utf-8-sig")  # as Windows and a Mac write it
    listed = read_class_names(tmp_path / "classes.txt")
    assert listed == [composed, "wald"]
    assert map_by_names(listed, [apart, "wald"], None, "x") is None
    assert map_by_names(listed, ["wald", apart], None, "x") == {0: 1, 1: 0, 255: "ignore"}
    assert LabelMap([composed, "wald"], {7: apart}).mapping == {"7": 0}
    (tmp_path / "classes.txt").write_bytes("hütte".encode("latin-1"))
    with pytest.raises(ValueError, match=r"UTF-8.*classes\.txt"):
        read_class_names(tmp_path / "classes.txt")


def test_a_mask_of_true_and_false(tmp_path):
    zarr = pytest.importorskip("zarr")
    zarr.create_array(str(tmp_path / "a.zarr"), data=np.array([[True, False]]))
    assert LabelMap(["background", "tissue"]).read(tmp_path / "a.zarr").tolist() == [[1, 0]]
