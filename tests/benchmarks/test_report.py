from __future__ import annotations

from benchmarks.record import Key, Results, single_measurement
from benchmarks.report import save_plot

HEADER = {
    "machine": {"cpu": "a", "torch": "2"},
    "settings": {"sizes": (256, 1024), "threads": 1, "dtypes": ("fp32",)},
}


def test_plot_of_times_memory_and_floors(tmp_path):
    results = Results(tmp_path / "benchmark.json", HEADER)
    keys = [
        Key("layer", subject, size, phase=phase, quantity=quantity)
        for subject in ("cast", "sdpa")
        for size in (256, 1024)
        for phase in ("forward", "training")
        for quantity in ("seconds", "bytes")
    ]
    results.add([single_measurement(key, key.size / 10) for key in keys])
    results.add([single_measurement(Key("layer", "matmul", 2048, quantity="flops/s"), 5e10)])
    assert save_plot(tmp_path / "benchmark.png", results)
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_over_n_no_plot(tmp_path):
    results = Results(tmp_path / "benchmark.json", HEADER)
    results.add([single_measurement(Key("data", "generator", 64, quantity="images/s"), 500.0)])
    assert not save_plot(tmp_path / "benchmark.png", results)
    assert not (tmp_path / "benchmark.png").exists()
