"""Level peers: what it measures, and that the page shows what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.fidelity.report import make_tables
from benchmarks.fidelity.settings import SETTINGS, PeerSetting
from benchmarks.levels import Settings
from benchmarks.peers import TRAINING_UP_TO, make_table, peer_tasks
from benchmarks.record import Key
from benchmarks.subjects import make_subject
from castvision.peers import PEERS, check_peer_options

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "peers.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results" / "peers"


@pytest.mark.parametrize("phase", ["forward", "training"])
@pytest.mark.parametrize("subject", ["cast", "windows", *PEERS])
def test_every_peer_runs_as_a_layer(subject: str, phase: str) -> None:
    layer = make_subject(Key("peers", subject, 48, "fp32", phase))
    with layer.ready():
        layer.run()
    assert layer.inputs[0].shape[1] == 48 + (PEERS[subject].reg_tokens if subject in PEERS else 0)


def test_a_run_measures_all_of_them_and_no_backward_that_would_not_fit() -> None:
    keys = [key for task in peer_tasks(Settings(("peers",), sizes=(1024, 65536))) for key in task.keys]
    assert {key.subject for key in keys} == {"cast", "cast-anchors", "windows", "sdpa", *PEERS}
    assert {key.size for key in keys if key.phase == "training"} == {1024}
    assert TRAINING_UP_TO < 65536
    assert {key.quantity for key in keys} == {"seconds", "bytes"}


def test_settings_of_the_fidelity_benchmark_are_what_peers_take() -> None:
    peers = [each for each in SETTINGS if isinstance(each, PeerSetting)]
    assert {each.options["attention"] for each in peers} == {
        name for name, peer in PEERS.items() if not peer.no_conversion
    }
    for each in peers:
        options = each.arguments(37, 50)
        check_peer_options(options.pop("attention"), options)
        if each.counted == "kernel_size":
            assert options["kernel_size"] % 2 == 1


def test_a_table_has_multiples_of_full_attention() -> None:
    def figure(subject: str, value: float, phase: str = "forward") -> dict[str, object]:
        key = {"level": "peers", "subject": subject, "size": 1024, "phase": phase, "quantity": "seconds"}
        return {"key": key, "value": value}

    table = make_table(
        [figure("cast", 0.5), figure("xcit", 4.0), figure("sdpa", 2.0), figure("sdpa-head", 1)], "seconds"
    )
    assert table.splitlines() == [
        "| | 1,024 |", "|---|---|", "| full attention | 2 s / – |", "| **near and far** | 4 / – |",
        "| `xcit` | 0.5 / – |",
    ]  # fmt: skip


def test_the_page_shows_what_was_measured() -> None:
    figures = json.loads((RESULTS / "benchmark.json").read_text(encoding="utf-8"))["figures"]
    for quantity in ("seconds", "bytes"):
        assert make_table(figures, quantity) in PAGE
    rows = json.loads((RESULTS / "fidelity.json").read_text(encoding="utf-8"))["rows"]
    for table in make_tables(rows).split("\n\n"):
        assert table.strip() in PAGE
