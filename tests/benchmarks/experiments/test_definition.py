"""What is to be run, and what is refused before anything runs."""

from __future__ import annotations

import pytest
import yaml

from benchmarks.experiments.definition import load_experiments, merge
from castvision_cli.train import config_folder
from tests.benchmarks.experiments.small import CONTENT, SETTINGS, load_small, write_results

ROOT = config_folder().parent


def test_settings_times_seeds_times_budgets_each_with_a_key_of_its_own(tmp_path):
    experiment, _ = load_small(write_results(tmp_path))
    runs = experiment.runs()
    assert [run.key for run in runs[:4]] == [
        "small/two_heads-images-0", "small/one_head-images-0", "small/two_heads-seconds-0", "small/one_head-seconds-0",
    ]  # fmt: skip
    assert len({run.key for run in runs}) == len(runs) == 2 * 2 * 2


def test_a_run_is_the_experiment_with_a_setting_a_seed_and_steps(tmp_path):
    experiment, _ = load_small(write_results(tmp_path))
    config = experiment.runs()[5].config(12)  # one head, images, seed 1
    assert config["model"]["init_args"]["model_kwargs"] == {
        **CONTENT["config"]["model"]["init_args"]["model_kwargs"], **SETTINGS["one head"]["model_kwargs"],
    }  # fmt: skip
    assert config["seed_everything"] == config["data"]["init_args"]["seed"] == 1
    assert (config["trainer"]["max_steps"], config["trainer"]["val_check_interval"]) == (12, 2)
    assert config["trainer"]["accelerator"] == "cpu"


def test_a_base_is_a_shipped_configuration(tmp_path):
    changes = {"trainer": {"max_epochs": 3}, "data": {"init_args": {"batch_size": 4}}}
    experiment, _ = load_small(write_results(tmp_path, base="maze64", config=changes))
    shipped = yaml.safe_load((config_folder() / "maze64.yaml").read_text())
    assert experiment.config == merge(shipped, changes)
    assert experiment.config["data"]["init_args"]["cell"] == shipped["data"]["init_args"]["cell"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"imagse": 3}, "unknown .'imagse'."),
        ({"settings": ["two heads", "three heads"]}, "three heads"),
        ({"subject": "three heads"}, "three heads"),
        ({"images": 2}, "images >= batch_size"),
        ({"seeds": []}, "different seeds"),
        ({"seeds": [1, 1]}, "different seeds"),
        ({"seconds": 0}, "seconds > 0"),
        ({"config": {"model": {}, "data": {}}}, "batch_size"),
    ],
)
def test_what_means_nothing_is_refused_by_name(tmp_path, changes, match):
    with pytest.raises(ValueError, match=match) as caught:
        load_small(write_results(tmp_path, **changes))
    assert "small.yaml" in str(caught.value)


def test_names_and_folders_are_checked(tmp_path):
    with pytest.raises(FileNotFoundError, match="experiments"):
        load_experiments(tmp_path)
    write_results(tmp_path)
    with pytest.raises(ValueError, match="among small, got large"):
        load_experiments(tmp_path, ["large"])
    (tmp_path / "experiments/small.yaml").write_text("- a list")
    with pytest.raises(ValueError, match="expected a mapping, got list"):
        load_experiments(tmp_path)
    (tmp_path / "experiments/small.yaml").write_text("{")
    with pytest.raises(ValueError, match="is no YAML"):
        load_experiments(tmp_path)


def test_the_committed_experiments_hold_every_control_beside_every_result():
    experiments = load_experiments(ROOT / "results")
    assert {"join", "copy_move", "fashion_mnist", "pathfinder", "region", "maze"} <= {each.name for each in experiments}
    controls = {"window only", "full attention", "attention removed", "blocks", "random clusters"}
    for experiment in experiments:
        if not experiment.name.startswith("pathfinder32_"):  # days a run, beside full attention only
            assert controls <= set(experiment.settings), experiment.name
            assert len(experiment.seeds) >= 3, experiment.name
