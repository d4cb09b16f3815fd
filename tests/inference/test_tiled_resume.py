"""A run that is killed goes on where it was, with the same bits."""

from __future__ import annotations

import numpy as np
import pytest

from castvision.inference.sinks import FileSink
from castvision.inference.tile_source import Skip
from tests.inference.tiling_cases import RNG, LocalNet, identity, run


class Killed(Exception):
    pass


def killed_after(calls, net):
    left = [calls]

    def predictor(batch):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return net(batch)

    return predictor


@pytest.mark.parametrize("output", ["labels", "probabilities"])
@pytest.mark.parametrize("calls", [0, 1, 3, 6])
def test_a_killed_run_goes_on_and_gives_the_same_bits(tmp_path, output, calls):
    image = RNG.normal(size=(110, 90, 3)).astype(np.float32)
    image[:60, :50] = np.nan
    net = LocalNet()
    options = {"output": output, "batch_size": 2}
    plain = run(image, net, **options)
    expected = plain.labels if output == "labels" else plain.values
    with pytest.raises(Killed):
        run(image, killed_after(calls, net), sink=FileSink(tmp_path / "x.part", resume=True), **options)
    sink = FileSink(tmp_path / "x.part", resume=True)
    again = run(image, net, sink=sink, **options)
    np.testing.assert_array_equal(sink.read(0, 0, 110, 90), expected)
    for name in ("seam", "tiles_run", "tiles_skipped", "class_pixels", "class_probability"):
        np.testing.assert_equal(getattr(again, name), getattr(plain, name))
    assert again.labels is None


def test_a_narrow_image_is_resumed_too(tmp_path):
    image = RNG.normal(size=(300, 20, 3)).astype(np.float32)
    net = LocalNet()
    plain = run(image, net, batch_size=3)
    with pytest.raises(Killed):
        run(image, killed_after(3, net), sink=FileSink(tmp_path / "x", resume=True), batch_size=3)
    sink, calls = FileSink(tmp_path / "x", resume=True), []
    run(image, lambda batch: calls.append(1) or net(batch), sink=sink, batch_size=3)
    np.testing.assert_array_equal(sink.read(0, 0, 300, 20), plain.labels)
    assert len(calls) == 5 - 3 + 1


def test_finished_bands_are_not_run_again(tmp_path):
    image = RNG.normal(size=(110, 90, 3)).astype(np.float32)
    net = LocalNet()
    with pytest.raises(Killed):
        run(image, killed_after(7, net), sink=FileSink(tmp_path / "x", resume=True), batch_size=2)
    calls = []
    run(image, lambda batch: calls.append(1) or net(batch), sink=FileSink(tmp_path / "x", resume=True), batch_size=2)
    assert len(calls) == (5 - 3) * 2 + 2  # two bands, and one again for its strip
    run(image, lambda batch: calls.append(1) or net(batch), sink=FileSink(tmp_path / "x", resume=True), batch_size=2)
    assert len(calls) == 6


def test_another_run_is_not_continued(tmp_path):
    image = RNG.normal(size=(60, 60, 3)).astype(np.float32)
    run(image, LocalNet(), sink=FileSink(tmp_path / "x"))
    with pytest.raises(ValueError, match=r"tta was 'none', is 'd4'"):
        run(image, LocalNet(), tta="d4", sink=FileSink(tmp_path / "x", resume=True))
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json.*damaged"):
        run(image, LocalNet(), sink=FileSink(tmp_path / "x", resume=True))
    run(image, LocalNet(), tta="d4", sink=FileSink(tmp_path / "x"))  # not asked to resume: begins anew


def test_file_sink_reads_windows_and_middles(tmp_path):
    image = RNG.normal(size=(41, 37)).astype(np.float32)
    sink = FileSink(tmp_path / "x")
    run(image, identity, output="image", sink=sink)
    np.testing.assert_array_equal(sink.read(5, 3, 7, 20)[..., 0], image[5:12, 3:23])
    rows, cols = [2, 6, 10, 14, 18, 22, 26, 30, 34, 38, 40], [2, 6, 10, 14, 18, 22, 26, 30, 34, 36]
    np.testing.assert_array_equal(sink.read(0, 0, 41, 37, step=4)[..., 0], image[np.ix_(rows, cols)])
    np.testing.assert_array_equal(sink.read(32, 16, 99, 99, step=4)[..., 0], image[np.ix_(rows[8:], cols[4:])])
    sink.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_mask_in_memory_is_known_by_what_it_holds(tmp_path):
    image, net = RNG.normal(size=(110, 90, 3)).astype(np.float32), LocalNet()
    mask = np.ones((11, 9), np.uint8)
    with pytest.raises(Killed):
        run(image, killed_after(7, net), sink=FileSink(tmp_path / "x", resume=True), batch_size=1, skip=Skip(mask))
    other = mask.copy()
    other[0, 0] = 0
    with pytest.raises(ValueError, match=r"cannot resume .*mask was"):
        run(image, net, sink=FileSink(tmp_path / "x", resume=True), batch_size=1, skip=Skip(other))
    run(image, net, sink=FileSink(tmp_path / "x", resume=True), batch_size=1, skip=Skip(mask.copy()))
