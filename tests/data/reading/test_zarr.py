"""Zarr arrays whose axes and scales have to be told apart."""

from __future__ import annotations

import numpy as np
import pytest

from castvision.data import open_image


@pytest.mark.parametrize(
    ("shape", "found"), [((3, 40, 50), (40, 50, 3)), ((40, 50, 3), (40, 50, 3)), ((1, 9, 9), (9, 9, 1))]
)
def test_channels_of_small_zarr_arrays_are_the_short_axis(tmp_path, shape, found):
    zarr = pytest.importorskip("zarr")
    zarr.create_array(str(tmp_path / "a.zarr"), data=np.zeros(shape, np.uint8))
    with open_image(tmp_path / "a.zarr") as reader:
        assert (reader.height, reader.width, reader.channels) == found


def test_the_scale_of_all_arrays_of_an_ome_zarr_and_their_order(tmp_path):
    zarr = pytest.importorskip("zarr")
    group = zarr.create_group(str(tmp_path / "a.zarr"), zarr_format=2)
    stored = np.arange(8 * 12, dtype=np.uint8).reshape(8, 12)
    entries = []
    for step in (2, 1):
        group.create_array(str(step), data=stored[::step, ::step])
        entries.append({"path": str(step), "coordinateTransformations": [{"type": "scale", "scale": [step, step]}]})
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    scale = [{"type": "scale", "scale": [0.25, 0.5]}]
    group.attrs["multiscales"] = [{"axes": axes, "datasets": entries, "coordinateTransformations": scale}]
    with open_image(tmp_path / "a.zarr") as reader:
        assert (reader.mpp, reader.mpp_y) == (0.5, 0.25)
        assert [level.downsample for level in reader.levels] == [1, 2]
        assert np.array_equal(reader.read(0, 0, 8, 12)[..., 0], stored)
