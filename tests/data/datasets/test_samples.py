from __future__ import annotations

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from castvision.data.datasets.samples import PlainTransform, check_files, load_pixels
from tests.data.conftest import write_bad_images


def test_bad_images_are_named(tmp_path):
    for name, message in write_bad_images(tmp_path).items():
        with pytest.raises(ValueError, match=message) as caught:
            load_pixels(tmp_path / name)
        assert name in str(caught.value)


def test_strange_but_sound_images(tmp_path):
    Image.new("CMYK", (6, 4), (255, 0, 0, 0)).save(tmp_path / "cmyk.jpg")
    assert load_pixels(tmp_path / "cmyk.jpg").shape == (4, 6, 3)
    Image.new("RGB", (1, 1), (9, 8, 7)).save(tmp_path / "dot.png")
    assert load_pixels(tmp_path / "dot.png").tolist() == [[[9, 8, 7]]]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 2, 5, 64])
def test_dtype_and_channels_stay(tmp_path, dtype, channels):
    pixels = (np.arange(4 * 6 * channels).reshape(4, 6, channels) % 250).astype(dtype)
    stored = pixels if channels > 1 else pixels[..., 0]
    tifffile.imwrite(
        tmp_path / "a.tif", stored, planarconfig="contig" if channels > 1 else None, photometric="minisblack"
    )
    read = load_pixels(tmp_path / "a.tif", channels)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, pixels)


def test_grey_and_rgb_are_turned_into_one_another_in_their_dtype(tmp_path):
    tifffile.imwrite(tmp_path / "grey.tif", np.full((4, 4), 40_000, np.uint16))
    assert load_pixels(tmp_path / "grey.tif", 3)[0, 0].tolist() == [40_000] * 3
    Image.new("RGB", (4, 4), (200, 100, 50)).save(tmp_path / "rgb.png")
    grey = load_pixels(tmp_path / "rgb.png", 1)
    assert (grey.dtype, grey[0, 0, 0]) == (np.uint8, round(0.299 * 200 + 0.587 * 100 + 0.114 * 50))
    with pytest.raises(ValueError, match=r"expected 5 channel\(s\) in .*rgb\.png.* got 3"):
        load_pixels(tmp_path / "rgb.png", 5)


def test_four_bands_keep_what_the_file_calls_opacity(tmp_path):
    pixels = np.full((4, 4, 4), 7, dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(load_pixels(tmp_path / "a.tif", 4), pixels)
    assert load_pixels(tmp_path / "a.tif").shape == (4, 4, 3)


def test_plain_transform():
    image, mask = PlainTransform().pair(np.full((2, 3, 5), 51, np.uint8), np.ones((2, 3), np.uint8))
    assert image.shape == (5, 2, 3)
    torch.testing.assert_close(image, torch.full((5, 2, 3), 0.2))
    assert mask.dtype == torch.int64


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        check_files([tmp_path / "nowhere.png"])
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match="0 bytes"):
        check_files([tmp_path / "a.png"])
