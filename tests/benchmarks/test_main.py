from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import castvision
from benchmarks import levels, main
from benchmarks.goals import Goal, make_goals
from benchmarks.measuring import Peak
from benchmarks.record import (
    Key,
    Results,
    describe_machine,
    find_hardware,
    has_bf16,
    load_results,
    name_processor,
    single_measurement,
)
from benchmarks.subjects import VARIANTS

ROOT = Path(castvision.__file__).parent

# the command on its own, without the package's import of its models
ALONE = f"""
import sys, types
package = types.ModuleType("castvision")
package.__path__ = [{str(ROOT)!r}]
sys.modules["castvision"] = package
from benchmarks.main import main
try:
    main(["--help"])
except SystemExit as end:
    assert end.code == 0
heavy = {{"torch", "timm", "numpy", "matplotlib", "rich"}} & set(sys.modules)
assert not heavy, heavy
"""


def test_help_is_light():
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "castvision benchmark" in done.stdout
    assert all(name in done.stdout for name in levels.LEVELS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiles"], "expected levels of op, layer, block, model, data"),
        (["--threads", "0"], ">= 1"),
        (["--sizes", "0"], ">= 1"),
    ],
)
def test_errors_are_one_line(arguments, message, capsys):
    assert main.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.fixture
def single_runs(monkeypatch):
    """One call a figure."""
    monkeypatch.setattr("benchmarks.levels.Settings.most", 1)
    monkeypatch.setattr("benchmarks.levels.Settings.least", 1)
    monkeypatch.setattr("benchmarks.attention._MATMUL", 64)


def test_a_tiny_run_end_to_end(tmp_path, capsys, single_runs, monkeypatch):
    # fresh processes take seconds to start; test_measuring weighs in a real one
    monkeypatch.setattr(
        "benchmarks.attention.weigh",
        lambda keys, threads, side_by_side: ({key: Peak(key.size, 1.0) for key in keys}, {}),
    )
    output = tmp_path / "run"
    arguments = ["op", "layer", "block", "--sizes", "256", "--output", str(output)]
    assert main.main(arguments) == 0
    text = capsys.readouterr().out
    assert "layer, fp32, forward, seconds" in text
    assert "layer, fp32, training, bytes" in text
    assert (output / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    results = load_results(output / "benchmark.json")
    assert (results.finished, results.failures) == (True, {})
    seen = {(key.level, key.subject, key.phase, key.quantity) for key in results.measurements}
    ours = [(level, name) for level in ("op", "layer") for name in VARIANTS]
    for level, subject in (*ours, ("op", "sdpa"), ("block", "cast"), ("block", "no-core")):
        assert (level, subject, "training", "seconds") in seen
    assert ("layer", "sdpa", "training", "bytes") in seen
    assert ("layer", "routing", "forward", "seconds") in seen
    assert results.header["settings"]["threads"] == 1
    assert results.header["machine"] == describe_machine()
    assert main.main(arguments) == 1  # finished: left alone
    assert "finished run; choose another folder" in capsys.readouterr().err


def test_models_and_data(tmp_path, capsys, single_runs, monkeypatch):
    monkeypatch.setattr("benchmarks.attention.OURS", "cast_vit_atto_patch4_32")
    monkeypatch.setattr("benchmarks.generators.COUNTS", {32: 4})
    monkeypatch.setattr("benchmarks.generators._SHARED_SIZES", (32,))
    monkeypatch.setattr("benchmarks.generators._SHARED_SECONDS", 1e-3)
    output = tmp_path / "run"
    arguments = ["model", "data", "--quick", "--img-size", "32", "--peers", "resnet_none", "--output", str(output)]
    assert main.main(arguments) == 0
    results = load_results(output / "benchmark.json")
    names = {(key.subject, key.quantity) for key in results.measurements}
    assert {("cast_vit_atto_patch4_32", q) for q in ("seconds", "images/s", "flops", "parameters")} <= names
    assert {(f"generator{part}", "images/s") for part in ("", ", 1 process", ", 2 processes")} <= names
    assert any("resnet_none" in title for title in results.failures)
    assert "no figure for" in capsys.readouterr().out
    assert not (output / "benchmark.png").exists()


def make_world(monkeypatch, seconds, bound):
    """A level of one task that gives the figures, and one goal on them."""
    ours, theirs = Key("layer", "cast", 1024), Key("layer", "sdpa", 1024)
    done = []

    def measure():
        done.append(1)
        return [single_measurement(ours, seconds), single_measurement(theirs, 6.0)], {}

    tasks = [
        levels.Task("meant", (ours, theirs), measure),
        levels.Task("not asked for", (Key("layer", "cast", 256),), lambda: pytest.fail("no goal reads it")),
    ]
    goals = [
        Goal("fast", "speed-up", bound, ours, (theirs,)),
        Goal("elsewhere", "speed-up", 9.0, ours.of(device="cuda"), (theirs.of(device="cuda"),), needs="cuda"),
    ]
    monkeypatch.setattr("benchmarks.main.make_tasks", lambda settings: tasks)
    monkeypatch.setattr("benchmarks.goals.make_goals", lambda: goals)
    return done


@pytest.mark.parametrize(("bound", "code"), [(2.0, 0), (3.5, 1)])
def test_check_judges_and_decides_the_exit_code(tmp_path, capsys, monkeypatch, bound, code):
    make_world(monkeypatch, 2.0, bound)
    assert main.main(["layer", "--check", "--output", str(tmp_path)]) == code
    text = capsys.readouterr().out
    assert f"goals on {name_processor(describe_machine(), 'cpu')}" in text
    assert "not measured" in text
    assert f"{1 - code} held, {code} missed, 1 not measured" in text


def test_a_run_that_was_cut_off_goes_on(tmp_path, monkeypatch):
    done = make_world(monkeypatch, 2.0, 2.0)
    assert main.main(["layer", "--check", "--output", str(tmp_path)]) == 0
    path = tmp_path / "benchmark.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "finished": False}))
    assert main.main(["layer", "--check", "--output", str(tmp_path)]) == 0
    assert done == [1]


@pytest.mark.parametrize(
    ("bf16", "amx", "words", "native"), [(0, 0, [], False), (1, 0, ["bf16"], True), (1, 1, ["bf16", "AMX"], True)]
)
def test_only_amx_is_the_hardware_of_goals_in_bf16(monkeypatch, bf16, amx, words, native):
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: bool(bf16))
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: bool(amx))
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    assert has_bf16() == native
    machine = {**describe_machine(), "gpu": "H"}
    assert name_processor(machine, "cpu") == f"{machine['cpu']}, {'+'.join(['AVX512', *words])}"
    assert name_processor(machine, "cuda").startswith("H beside ")
    assert ("cpu amx" in find_hardware("cpu")) == bool(amx)
    args = main.build_parser().parse_args(["layer", "--check"])
    settings = main.make_settings(args)
    goals = main.select_goals(settings, find_hardware("cpu"))
    assert sum(goal.needs == "cpu amx" for goal in goals) == 4  # listed, wherever
    tasks = main.select_tasks(settings, goals, find_hardware("cpu"))
    assert any(key.dtype == "bf16" for task in tasks for key in task.keys) == bool(amx)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("options", [[], ["--quick"]])
def test_goals_and_tasks_agree_on_their_keys(device, options, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    arguments = [*options, "--device", device, "--dtype", "fp32", "bf16"]
    settings = main.make_settings(main.build_parser().parse_args(arguments))
    given = {key for task in levels.make_tasks(settings) for key in task.keys}
    goals = [
        goal for goal in make_goals() if (goal.needs == "cuda") == (device == "cuda") and (goal.is_quick or not options)
    ]
    assert goals
    assert {key for goal in goals for key in goal.keys} <= given


def test_results_without_a_file_are_not_written(tmp_path):
    Results(tmp_path / "benchmark.json", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("word", ["fidelity", "heads"])
def test_measurements_on_pretrained_weights_have_options_of_their_own(word, capsys):
    with pytest.raises(SystemExit):
        main.main([word, "--help"])
    assert f"usage: castvision benchmark {word}" in capsys.readouterr().out
