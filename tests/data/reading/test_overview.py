"""The whole image at low resolution, whatever its size."""

from __future__ import annotations

import numpy as np
import tifffile
import torch

from castvision.data import open_array, open_image
from castvision.data.reading.overview import make_context, read_overview

RNG = np.random.default_rng(0)


def test_the_overview_of_a_small_image_is_its_context():
    image = RNG.integers(0, 256, (90, 60, 3), dtype=np.uint8)
    expected = make_context(torch.from_numpy(image).permute(2, 0, 1)[None].float(), (16, 8))
    torch.testing.assert_close(read_overview(open_array(image), (16, 8))[None], expected)


def test_a_large_one_is_read_by_bands(monkeypatch):
    image = np.kron(RNG.normal(size=(8, 6)), np.ones((40, 50))).astype(np.float32)  # constant over 40 x 50 pixels
    expected = make_context(torch.from_numpy(image)[None, None], (4, 3))[0]
    whole = read_overview(open_array(image), (4, 3))
    monkeypatch.setattr("castvision.data.reading.overview._BAND_VALUES", 5000)
    torch.testing.assert_close(read_overview(open_array(image), (4, 3)), whole)
    torch.testing.assert_close(whole, expected, rtol=0, atol=0.03 * float(expected.std()))


def test_a_pyramids_coarsest_level_that_is_fine_enough_is_read(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for value, side in ((10, 256), (20, 128), (30, 64)):
            writer.write(np.full((side, side), value, np.uint8), tile=(64, 64), subfiletype=int(side < 256))
    with open_image(tmp_path / "a.tif") as reader:
        found = [round(float(read_overview(reader, (side, side)).mean())) for side in (4, 8, 9, 16, 17, 100)]
    assert found == [30, 30, 20, 20, 10, 10]


def test_what_holds_no_data_does_not_count():
    image = np.full((64, 64, 2), 7, np.float32)
    image[:32, :, 0] = np.nan  # blocks without any data are as the others
    image[40:44, 40:44] = np.inf
    image[::2, :, 1] = -np.inf
    assert torch.equal(read_overview(open_array(image), (4, 4)), torch.full((2, 4, 4), 7.0))
    assert torch.equal(read_overview(open_array(image * np.float32("nan")), (4, 4)), torch.zeros(2, 4, 4))


def test_a_small_thing_stays_in_the_context_at_its_share():
    image = torch.zeros(1, 1, 64, 64)
    image[0, 0, 32:40, 32:40] = 16.0
    context = make_context(image, (8, 8))
    assert context.shape == (1, 1, 8, 8)
    torch.testing.assert_close(context.mean(), image.mean(), rtol=1e-2, atol=0)
    assert context[0, 0, 4, 4] == context.max()
