from __future__ import annotations

import numpy as np
import tifffile

from benchmarks.record import Key
from benchmarks.tiled import SUBJECT, _measure, write_image


def test_an_image_is_predicted_in_a_process_of_its_own():
    key = Key("tiled", SUBJECT, 600, quantity="megapixels/s")
    (speed, memory), failures = _measure((key, key.of(quantity="bytes")), threads=1)
    assert failures == {}
    assert speed.key == key
    assert speed.value > 0
    assert memory.value > 1 << 27  # torch alone takes more


def test_the_image_is_the_same_every_time_and_of_the_size_asked(tmp_path):
    for name in ("a.tif", "b.tif"):
        write_image(tmp_path / name, 700)
    first, second = (tifffile.imread(tmp_path / name) for name in ("a.tif", "b.tif"))
    assert first.shape == (700, 700, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)
    assert first.std() > 10
