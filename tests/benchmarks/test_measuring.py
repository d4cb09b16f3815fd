from __future__ import annotations

from contextlib import contextmanager

import pytest

from benchmarks.measuring import (
    LONG,
    TOO_LONG,
    cuda_clock,
    interleave,
    make_clock,
    make_spread,
    process_clock,
    wall_clock,
    weigh,
)
from benchmarks.record import Key


class Scripted:
    """A competitor whose calls take the seconds it is told; keeps the order in which all ran."""

    def __init__(self, name, seconds, log):
        self.name, self.seconds, self.log, self.is_ready = name, iter(seconds), log, False

    @contextmanager
    def ready(self):
        self.is_ready = True
        yield
        self.is_ready = False

    def run(self):
        assert self.is_ready
        self.log.append(self.name)
        return next(self.seconds)


def fake_clock(call):
    return call()


def race(budget=1.0, least=3, most=5, **seconds):
    log = []
    rivals = {name: Scripted(name, script, log) for name, script in seconds.items()}
    return interleave(rivals, fake_clock, budget=budget, least=least, most=most), log


def test_rounds_alternate_and_the_warm_up_is_dropped():
    samples, log = race(a=[2.0, 0.25, 0.25, 0.25, 0.25], b=[2.5, 0.5, 0.75, 1.0])
    assert log == list("ababababa")
    assert samples == {"a": [0.25, 0.25, 0.25, 0.25], "b": [0.5, 0.75, 1.0]}  # budget spent, and at least three


def test_a_long_first_call_counts_and_a_very_long_one_is_enough():
    samples, log = race(slow=[LONG, LONG + 1, LONG + 2], slowest=[TOO_LONG])
    assert samples == {"slow": [LONG, LONG + 1, LONG + 2], "slowest": [TOO_LONG]}
    assert log == ["slow", "slowest", "slow", "slow"]


def test_no_more_than_most():
    samples, _ = race(budget=100.0, a=[0.0] * 6)
    assert samples["a"] == [0.0] * 5


def test_spread_is_median_and_quartiles():
    spread = make_spread([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (spread.low, spread.median, spread.high, spread.count) == (2.0, 3.0, 4.0, 5)
    assert make_spread([0.0, 1.0]).median == 0.5
    single = make_spread([7.0])
    assert (single.low, single.median, single.high, single.count) == (7.0, 7.0, 7.0, 1)


def test_spread_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one sample"):
        make_spread([])


@pytest.mark.parametrize("clock", [wall_clock, process_clock])
def test_clocks_run_the_call_once(clock):
    calls = []
    assert clock(lambda: calls.append(1)) >= 0
    assert calls == [1]


def test_clock_by_device_and_threads():
    assert [make_clock("cpu", 1), make_clock("cpu", 2), make_clock("cuda", 1)] == [
        process_clock,
        wall_clock,
        cuda_clock,
    ]


def test_memory_of_a_fresh_process_counts_weights_inputs_and_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the process finds the checkout from anywhere
    monkeypatch.delenv("PYTHONPATH", raising=False)
    keys = [Key("layer", "no-core", 4096), Key("layer", "sdpa", 4096, "fp8")]
    peaks, failures = weigh(keys, threads=1)
    least = 4096 * 384 * 4 * 5 + 4 * 384**2 * 4  # x, qkv, out and the weights
    assert 0.8 * least < peaks[keys[0]].bytes < 2 * least
    assert failures == {"memory of layer sdpa at 4096, fp8, forward": "KeyError: 'fp8'"}
