from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import pytest

from castvision.data.reading.bags import Bag, BagWriter, bag_facts, read_bag

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(5, 7)).astype(np.float32)
COORDS = np.array([[0, 0], [32, 0], [64, 0], [0, 32], [96, 32]], np.int64)


def test_without_h5py_the_remedy_is_named(monkeypatch, tmp_path):
    original = builtins.__import__

    def importing(name, *rest):
        if name == "h5py":
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", importing)
    with pytest.raises(ImportError, match=r"pip install 'castvision\[slides\]'"):
        read_bag(tmp_path / "a.h5")


def test_what_is_written_in_batches_is_read(tmp_path):
    pytest.importorskip("h5py")
    with BagWriter(tmp_path / "a.h5", 7, "some_vit", {"name": "a", "patch_size_level0": 32}) as writer:
        writer.add(FEATURES[:3], COORDS[:3])
        writer.add(FEATURES[3:], COORDS[3:])
        assert len(writer) == 5
    bag = read_bag(tmp_path / "a.h5")
    assert np.array_equal(bag.features, FEATURES)
    assert np.array_equal(bag.coords, COORDS)
    assert bag.attributes == {"name": "a", "patch_size_level0": 32, "encoder": "some_vit"}
    assert bag.tile_side == 32
    assert bag_facts(tmp_path / "a.h5") == ((5, 7), dict(bag.attributes))
    some = read_bag(tmp_path / "a.h5", np.array([1, 4]))
    assert np.array_equal(some.features, FEATURES[[1, 4]])
    assert np.array_equal(some.coords, COORDS[[1, 4]])


def test_files_of_other_programs(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:  # a batch in front, half precision, no attributes
        file["features"] = FEATURES[None].astype(np.float16)
        file["coords"] = COORDS.astype(np.int32)
    bag = read_bag(tmp_path / "a.h5")
    assert bag.features.dtype == np.float32
    assert bag.features == pytest.approx(FEATURES, abs=2e-3)
    assert bag.tile_side == 32, "of the steps between tiles"
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["features"] = FEATURES
    assert read_bag(tmp_path / "b.h5").coords is None
    assert read_bag(tmp_path / "b.h5").tile_side is None


PIXEL = 4.0009  # of level 0, along one of the level that tiles were cut from
LAID_OUT = {  # coords, what the file says of them, the step
    "islands of tissue": ([[0, 0], [448, 0], [672, 0], [3360, 2016]], {"patch_size": 224, "overlap": 0}, 224),
    "overlapping": ([[0, 0], [384, 0], [768, 0], [576, 192]], {"patch_size": 224, "overlap": 32}, 192),
    "rounded": ([[round(16 * PIXEL * n), 0] for n in range(900)], {"patch_size": 16, "overlap": 0}, 16 * PIXEL),
    "of CLAM, a grid for each contour": ([[0, 0], [256, 0], [512, 0], [11, 640], [267, 640]], {"patch_size": 256}, 256),
    "nothing said, rounded": ([[round(16.3 * n), 0] for n in (0, 1, 2, 3, 5, 6, 7, 8, 9)], {}, 16.3),
    "one tile": ([[7, 9]], {}, None),
}


@pytest.mark.parametrize("name", LAID_OUT)
def test_the_step_from_tile_to_tile(name):
    """Also where tissue has gaps: it was the median of all that there is, and weights were drawn in other places."""
    coords, told, step = LAID_OUT[name]
    side = (
        {"patch_size_level0": round(told["patch_size"] * (PIXEL if name == "rounded" else 1))}
        if "overlap" in told
        else {}
    )
    pixel = {"downsample": PIXEL} if name == "rounded" else {}
    bag = Bag(Path("a.h5"), FEATURES, np.array(coords, np.int64), {**told, **side, **pixel})
    assert bag.tile_step == (None if step is None else pytest.approx(step, rel=2e-3))


def test_bad_files_are_named(tmp_path):
    h5py = pytest.importorskip("h5py")
    contents = {
        "flat": ({"features": FEATURES[0]}, r"features \(tiles, channels\)"),
        "none": ({"coords": COORDS}, r"a data set 'features'.*found \['coords'\]"),
        "empty": ({"features": FEATURES[:0]}, r"got shape \(0, 7\)"),
        "nan": ({"features": FEATURES * np.nan}, "expected finite features"),
        "short": ({"features": FEATURES, "coords": COORDS[:4]}, "as many coords as features.*got 4 for 5"),
    }
    for name, (data, message) in contents.items():
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            for key, value in data.items():
                file[key] = value
        with pytest.raises(ValueError, match=message) as found:
            read_bag(tmp_path / f"{name}.h5")
        assert f"{name}.h5" in str(found.value)
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(ValueError, match="damaged, or no HDF5"):
        read_bag(tmp_path / "text.h5")
    with pytest.raises(FileNotFoundError, match="no such file of embeddings"):
        read_bag(tmp_path / "missing.h5")
