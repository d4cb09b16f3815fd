"""pytest plugin: timm's own model tests, pointed at the models that another module registers.

timm's tests choose their models in two ways. Most call ``timm.list_models(...)`` when they are collected: that function
is replaced by one that offers the chosen variants, each filed as if it were one of timm's ViTs, so that every filter in
the tests treats it as such. Others name a few models of timm's although what they ask holds for any ViT: these are
listed in ``GENERAL`` and get new parameters. Every test that is not about a chosen variant is deselected.

The settings come through the environment, so that the worker processes of pytest-xdist see them too.
"""

from __future__ import annotations

import fnmatch
import importlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

MODULE = os.environ.get("TIMM_SUITE_MODULE", "castvision")
PATTERNS = os.environ.get("TIMM_SUITE_MODELS", "cast_*").split(",")
REPORT = os.environ.get("TIMM_SUITE_REPORT", "")

# Tests that timm pins to models of its own, and that its own ViT passes; the values replace their further arguments.
GENERAL: dict[str, dict[str, Any]] = {
    "test_features_only_feature_cls_class": {},
    "test_forward_after_prune_intermediate_layers": {},
    "test_head_hidden_size": {"model_kwargs": {}},
    "test_headless_checkpoint_reload": {"kwargs": {}},
    "test_model_forward_features": {"batch_size": 1},
    "test_model_init_weights_after_to_empty": {"kwargs": {}},
    "test_prune_intermediate_layers_params_used": {},
    "test_relpos_family_set_input_size": {"kwargs": {}, "img_size": 64, "new_size": 96},
    "test_relpos_non_square_checkpoint_reload": {"kwargs": {}},
    "test_relpos_non_square_set_input_size": {"kwargs": {}},
    "test_reset_classifier_keeps_pool": {},
}

# Those of them that make an image of three channels themselves.
THREE_CHANNELS = frozenset(
    {
        "test_forward_after_prune_intermediate_layers",
        "test_head_hidden_size",
        "test_headless_checkpoint_reload",
        "test_model_init_weights_after_to_empty",
        "test_relpos_family_set_input_size",
        "test_relpos_non_square_checkpoint_reload",
        "test_relpos_non_square_set_input_size",
        "test_reset_classifier_keeps_pool",
    }
)


def list_variants(**options: bool) -> list[str]:
    """The chosen variants, by timm's real registry."""
    from timm.models import list_models

    names: list[str] = list_models(filter=PATTERNS, **options)
    return names


def as_list(patterns: str | Iterable[str]) -> list[str]:
    """One wildcard or several, as timm's functions take them."""
    return [patterns] if isinstance(patterns, str) else list(patterns)


def make_list_models() -> Callable[..., list[str]]:
    """A stand-in for ``timm.list_models``: the variants only, each matched under the name ``vit_<variant>``."""

    def list_models(
        filter: str | Iterable[str] = "",
        module: str | Iterable[str] = "",
        pretrained: bool = False,
        exclude_filters: str | Iterable[str] = "",
        name_matches_cfg: bool = False,
        include_tags: bool | None = None,
    ) -> list[str]:
        if pretrained or (module and "vision_transformer" not in as_list(module)):
            return []
        names = list_variants(name_matches_cfg=name_matches_cfg, include_tags=bool(include_tags))

        def matches(name: str, patterns: str | Iterable[str]) -> bool:
            return any(fnmatch.fnmatch(f"vit_{name}", pattern) for pattern in as_list(patterns) if pattern)

        return [n for n in names if (not filter or matches(n, filter)) and not matches(n, exclude_filters)]

    return list_models


def pytest_configure(config: pytest.Config) -> None:
    """Register the models, then put the stand-in where the tests import it from."""
    import timm

    importlib.import_module(MODULE)
    if not list_variants():
        raise pytest.UsageError(f"no model registered by {MODULE!r} matches {PATTERNS}")
    timm.list_models = make_list_models()
    timm.list_pretrained = lambda *args, **kwargs: []
    if REPORT and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(Path(REPORT)), "timm-suite-recorder")


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give the general tests the variants in place of timm's models."""
    others = GENERAL.get(metafunc.function.__name__)
    if others is None:
        return
    definition = metafunc.definition
    definition.own_markers = [mark for mark in definition.own_markers if mark.name != "parametrize"]
    metafunc.parametrize("model_name", list_variants())
    for argument, value in others.items():
        metafunc.parametrize(argument, [value])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep what is about a variant; skip what cannot apply to a grey one."""
    import timm

    names = {*list_variants(), *list_variants(include_tags=True)}
    kept, dropped = [], []
    for item in items:
        name = variant_of(item)
        (kept if name in names else dropped).append(item)
        if name in names and getattr(item, "originalname", "") in THREE_CHANNELS:
            channels = timm.get_pretrained_cfg_value(name, "input_size")[0]
            if channels != 3:
                item.add_marker(pytest.mark.skip(reason=f"hard-codes three channels, the variant has {channels}"))
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)


def variant_of(item: pytest.Item) -> str | None:
    """The model a collected test is about, if it is about one."""
    call = getattr(item, "callspec", None)
    name = call.params.get("model_name") if call else None
    return name if isinstance(name, str) else None


class Recorder:
    """Writes the outcome of every test to a JSON file: a list of variant, test, outcome, seconds and reason."""

    def __init__(self, path: Path) -> None:
        """Remember where to write."""
        self.path = path
        self.variants: dict[str, str] = {}
        self.results: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep a test's worst phase: a failing set-up or tear-down counts as a failure of the test."""
        entry = self.results.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0, "reason": ""})
        entry["seconds"] = round(entry["seconds"] + report.duration, 3)
        if report.failed or (report.skipped and entry["outcome"] == "passed"):
            entry["outcome"] = report.outcome
            entry["reason"] = reason_of(report)

    def pytest_sessionfinish(self) -> None:
        """Write the file under another name first, so that a reader never sees half of it."""
        known = sorted(list_variants(), key=len, reverse=True)
        rows = []
        for nodeid, entry in self.results.items():
            test, _, parameters = nodeid.rsplit("::", 1)[-1].partition("[")
            variant = next((name for name in known if name in parameters), "")
            rows.append({"variant": variant, "test": test, "parameters": parameters.rstrip("]"), **entry})
        draft = self.path.with_suffix(".part")
        draft.write_text(json.dumps(rows, indent=1), encoding="utf-8")
        draft.replace(self.path)


def reason_of(report: pytest.TestReport) -> str:
    """The last line of an error, or why a test was skipped."""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longrepr).strip().splitlines()[0][:300]
