"""Sound files of many kinds, and what damage, other programs and strangers may have done to them; all by seed."""

from __future__ import annotations

import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

Content = bytes | dict[str, bytes]
"""A file's bytes, or those of a folder's files by name."""

EXTREMES = (
    0,
    1,
    2,
    3,
    7,
    8,
    255,
    256,
    32767,
    65535,
    65536,
    99_999,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
    -1,
    -2,
    -(2**31),
)
_PIXELS = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
_SMOOTH = np.linspace(0, 255, 48 * 80 * 3).reshape(48, 80, 3).astype(np.uint8)


def _encoded(kind: str, mode: str = "RGB", pixels: np.ndarray = _SMOOTH, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def _tiff(pixels: np.ndarray = _SMOOTH, **options: object) -> bytes:
    stream = io.BytesIO()
    if pixels.shape[-1] == 3:
        options.setdefault("photometric", "rgb")
    tifffile.imwrite(stream, pixels, **options)
    return stream.getvalue()


def _pyramid(is_big: bool) -> bytes:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream, bigtiff=is_big) as tiff:
        tiff.write(_PIXELS, tile=(32, 32), subifds=1, photometric="rgb", metadata=None)
        tiff.write(_PIXELS[::2, ::2], tile=(16, 16), photometric="rgb", subfiletype=1, metadata=None)
    return stream.getvalue()


def sound_files() -> dict[str, list[bytes]]:
    """Files by kind."""
    exif = Image.Exif()
    exif[274] = 6
    palette = _encoded("PNG", "P")
    nodata = [(42113, 2, 4, b"255\0", True)]
    return {
        "png": [
            _encoded("PNG", exif=exif),
            _encoded("PNG", "L"),
            _encoded("PNG", "LA"),
            _encoded("PNG", "RGBA"),
            palette,
            _encoded("PNG", "1"),
            _encoded("PNG", "I;16", _SMOOTH[..., 0].astype(np.uint16) * 257),
        ],
        "jpg": [
            _encoded("JPEG", exif=exif),
            _encoded("JPEG", progressive=True),
            _encoded("JPEG", "L"),
            _encoded("JPEG", "CMYK"),
            _encoded("JPEG", restart_marker_blocks=2),
        ],
        "tif": [
            _tiff(photometric="rgb"),
            _tiff(_PIXELS[..., 0], rowsperstrip=5, extratags=nodata),
            _tiff(_SMOOTH.astype(np.float32), tile=(16, 32)),
            _tiff(photometric="rgb", compression="zlib", predictor=True),
            _tiff(_SMOOTH[..., 0].astype(np.uint16), byteorder=">"),
            _encoded("TIFF", "P"),
            _encoded("TIFF", "1"),
            _encoded("TIFF", "CMYK"),
            _encoded("TIFF", compression="tiff_lzw"),
            _encoded("TIFF", compression="jpeg"),
            _tiff(_PIXELS, imagej=True),
            _tiff(np.moveaxis(_PIXELS, -1, 0), ome=True),
            _pyramid(False),
        ],
        "btf": [
            _tiff(photometric="rgb", bigtiff=True),
            _tiff(_PIXELS[..., 0], bigtiff=True, byteorder=">", rowsperstrip=7),
            _tiff(_SMOOTH, tile=(16, 16), bigtiff=True, compression="zlib", photometric="rgb"),
            _pyramid(True),
        ],
    }


def sound_stores() -> list[dict[str, bytes]]:
    """Zarr folders of both versions, without a library: plain arrays and a pyramid."""
    third = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [48, 80],
        "data_type": "uint8",
        "fill_value": 0,
        "attributes": {},
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [24, 40]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 1}}],
    }
    compressor = zlib.compressobj(1, zlib.DEFLATED, 31)
    chunk = compressor.compress(bytes(range(240)) * 4) + compressor.flush()
    chunks = {f"c/{y}/{x}": chunk for y in (0, 1) for x in (0, 1)}
    second = {
        "zarr_format": 2,
        "shape": [48, 80],
        "chunks": [24, 40],
        "dtype": "<u2",
        "compressor": None,
        "fill_value": 0,
        "order": "C",
        "filters": None,
    }
    plain = {f"{y}.{x}": bytes(range(240)) * 8 for y in (0, 1) for x in (0, 1)}
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    sets = [
        {"path": path, "coordinateTransformations": [{"type": "scale", "scale": [0.5, 0.5]}]} for path in ("0", "1")
    ]
    group = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"ome": {"version": "0.5", "multiscales": [{"axes": axes, "datasets": sets}]}},
    }
    small = {**third, "shape": [24, 40]}
    return [
        {"zarr.json": json.dumps(third).encode(), **chunks},
        {".zarray": json.dumps(second).encode(), ".zattrs": b"{}", **plain},
        {
            "zarr.json": json.dumps(group).encode(),
            "0/zarr.json": json.dumps(third).encode(),
            "1/zarr.json": json.dumps(small).encode(),
            "1/c/0/0": chunk,
            **{f"0/{key}": value for key, value in chunks.items()},
        },
    ]


FILES = sound_files()
STORES = sound_stores()
KINDS = (*FILES, "zarr")


def make(number: int, seed: int = 0) -> tuple[str, Content]:
    """The mutated file of a number: (kind, content)."""
    rng = random.Random(seed * 1_000_003 + number)
    kind = KINDS[number % len(KINDS)]
    if kind == "zarr":
        return kind, _mutate_store(rng, rng.choice(STORES))
    data = rng.choice(FILES[kind])
    aware = {"png": _change_png, "jpg": _change_jpeg, "tif": _change_tiff, "btf": _change_tiff}[kind]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice((aware, aware, _flip, _cut, _splice, _set_number))(rng, data)
    return kind, data


def put(folder: Path, kind: str, content: Content) -> Path:
    """Write a mutated file, in place of the last of its kind."""
    path = folder / f"mutated.{kind}"
    if isinstance(content, bytes):
        path.write_bytes(content)
        return path
    for old in sorted(path.rglob("*"), reverse=True):
        old.rmdir() if old.is_dir() else old.unlink()
    for name, data in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    path.mkdir(exist_ok=True)
    return path


# ---------------------------------------------------------------- any bytes


def _flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 50))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _splice(rng: random.Random, data: bytes) -> bytes:
    """Parts of it, or of another file, left out, doubled or put elsewhere."""
    other = rng.choice([data, data, rng.choice(FILES[rng.choice(list(FILES))])])
    first, last = sorted(rng.randrange(len(other) + 1) for _ in range(2))
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:start] + rng.choice((b"", other[first:last])) + data[rng.choice((start, end)) :]


def _set_number(rng: random.Random, data: bytes) -> bytes:
    size = rng.choice((1, 2, 4, 8))
    start = rng.randrange(max(1, min(len(data) - size, rng.choice((64, 512, len(data))))))
    return data[:start] + _number(rng, size, rng.choice("<>")) + data[start + size :]


def _number(rng: random.Random, size: int, order: str) -> bytes:
    value = rng.choice(EXTREMES) % (1 << 8 * size)
    return value.to_bytes(size, "little" if order == "<" else "big")


# ---------------------------------------------------------------- formats


def _change_png(rng: random.Random, data: bytes) -> bytes:
    """Chunks with wrong content and right sums, of other lengths, doubled, left out or swapped."""
    chunks, place = [], 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        if place + 12 + length > len(data):
            break
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    if not chunks:
        return _flip(rng, data)
    which = rng.choice((0, 0, rng.randrange(len(chunks))))
    name, body = chunks[which]
    how = rng.randrange(6)
    if how == 0 and name == b"IHDR" and len(body) == 13:
        field = rng.choice((0, 4, 8, 9, 10, 11, 12))
        size = 4 if field < 8 else 1
        body = body[:field] + _number(rng, size, ">") + body[field + size :]
        chunks[which] = name, body
    elif how == 1:
        chunks[which] = name, _flip(rng, body)
    elif how == 2:
        chunks.insert(rng.randrange(len(chunks) + 1), chunks[which])
    elif how == 3:
        del chunks[which]
    elif how == 4:
        chunks[which] = (
            name,
            zlib.compress(bytes(rng.choice((0, 1 << 16, 1 << 26)))) if name == b"IDAT" else _cut(rng, body),
        )
    else:
        rng.shuffle(chunks)
    parts = [struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in chunks]
    return data[:8] + b"".join(parts)


def _change_jpeg(rng: random.Random, data: bytes) -> bytes:
    """Sizes, numbers of components, lengths and tables of its segments."""
    places = [i for i in range(len(data) - 10) if data[i] == 0xFF and data[i + 1] not in (0, 0xFF)]
    frames = [i for i in places if data[i + 1] in (0xC0, 0xC1, 0xC2, 0xC4, 0xDB, 0xDA, 0xDD, 0xE1)]
    if not frames:
        return _flip(rng, data)
    start = rng.choice(frames)
    field, size = rng.choice(((1, 1), (2, 2), (4, 1), (5, 2), (7, 2), (9, 1), (10, 2), (11, 1)))
    return data[: start + field] + _number(rng, size, ">") + data[start + field + size :]


def _change_tiff(rng: random.Random, data: bytes) -> bytes:
    """Entries of its directories: types, counts, values, offsets; loops of directories; the other byte order."""
    if len(data) < 16 or data[:2] not in (b"II", b"MM"):
        return _flip(rng, data)
    order = "<" if data[:2] == b"II" else ">"
    is_big = data[2:4] in (b"+\0", b"\0+")
    width, head, entry = (8, 8, 20) if is_big else (4, 2, 12)
    word = {4: "I", 8: "Q"}[width]
    first = struct.unpack_from(f"{order}{word}", data, 8 if is_big else 4)[0]
    if rng.random() < 0.05:
        return (b"MM" if data[:2] == b"II" else b"II") + data[2:]
    found = []
    offset = first
    while 0 < offset + head <= len(data) and len(found) < 8 and offset not in [start for start, _ in found]:
        count = struct.unpack_from(f"{order}{'Q' if is_big else 'H'}", data, offset)[0]
        if count > 200 or offset + head + count * entry + width > len(data):
            break
        found.append((offset, count))
        offset = struct.unpack_from(f"{order}{word}", data, offset + head + count * entry)[0]
    if not found:
        return _set_number(rng, data)
    start, count = rng.choice(found)
    changed = bytearray(data)
    if rng.random() < 0.15 or not count:  # the next directory: a loop, or anywhere
        target = rng.choice((first, start, start + 1, 8, len(data), len(data) - 2, rng.randrange(len(data))))
        struct.pack_into(f"{order}{word}", changed, start + head + count * entry, target)
        return bytes(changed)
    _change_entry(rng, changed, start + head + rng.randrange(count) * entry, (order, width, start))
    return bytes(changed)


def _change_entry(rng: random.Random, changed: bytearray, place: int, layout: tuple[str, int, int]) -> None:
    """One entry of a directory; ``layout``: byte order, bytes of an offset, and where the directory begins."""
    order, width, start = layout
    word, is_big = {4: "I", 8: "Q"}[width], width == 8
    part = rng.choice(("tag", "type", "count", "value", "value", "value", "value", "loop"))
    if part == "tag":
        struct.pack_into(
            f"{order}H",
            changed,
            place,
            rng.choice(
                (
                    254,
                    256,
                    257,
                    259,
                    262,
                    273,
                    277,
                    284,
                    320,
                    322,
                    324,
                    330,
                    338,
                    339,
                    347,
                    530,
                    33550,
                    34735,
                    42112,
                    42113,
                    65000,
                )
            ),
        )
    elif part == "type":
        struct.pack_into(f"{order}H", changed, place + 2, rng.choice((0, 1, 2, 3, 4, 5, 7, 9, 11, 12, 13, 16, 18, 255)))
    elif part == "count":
        changed[place + 4 : place + 4 + width] = _number(rng, width, order)
    elif part == "loop":  # a directory below it that is itself
        struct.pack_into(f"{order}HH", changed, place, 330, 18 if is_big else 4)
        changed[place + 4 : place + 4 + width] = (1).to_bytes(width, "little" if order == "<" else "big")
        struct.pack_into(f"{order}{word}", changed, place + 4 + width, start)
    else:
        size = rng.choice((2, width))
        changed[place + 4 + width : place + 4 + width + size] = _number(rng, size, order)


def _mutate_store(rng: random.Random, store: dict[str, bytes]) -> dict[str, bytes]:
    """Descriptions with other values, chunks with other bytes, files that are missing."""
    changed = dict(store)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not changed:
            break
        name = rng.choice([key for key in changed if "zarr" in key or rng.random() < 0.4] or list(changed))
        how: Callable[[random.Random, bytes], bytes]
        if "zarr" in name and rng.random() < 0.8:
            changed[name] = _change_json(rng, changed[name])
        elif rng.random() < 0.15:
            del changed[name]
        else:
            how = rng.choice((_flip, _cut, _splice, _set_number))
            changed[name] = how(rng, changed[name])
    return changed


_ODD = (
    0,
    -1,
    1,
    1.5,
    2**31,
    2**62,
    10**30,
    "",
    "x",
    "../../etc",
    "/",
    "nan",
    None,
    True,
    [],
    {},
    [0, 0],
    [-1, 8],
    [8],
    [2**40, 2**40],
    [1, 1],
    [10**6, 10**6],
    ["y", "x"],
    "<f8",
    "|O",
    "complex64",
    "bool",
    "int64",
    "uint16",
    "gzip",
    "blosc",
    "group",
)


def _change_json(rng: random.Random, data: bytes) -> bytes:
    try:
        content = json.loads(data)
    except ValueError:
        return _flip(rng, data)
    places: list[tuple[object, object]] = []

    def walk(node: object) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
            places.append((node, key))
            walk(value)

    walk(content)
    if not places:
        return data
    node, key = rng.choice(places)
    if rng.random() < 0.2:
        del node[key]  # type: ignore[attr-defined]
    else:
        node[key] = rng.choice(_ODD)  # type: ignore[index]
    return json.dumps(content).encode()
