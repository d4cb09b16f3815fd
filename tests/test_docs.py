"""The README, the pages of docs/ and the tools' help say what is true."""

from __future__ import annotations

import importlib.util
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm

import castvision  # noqa: F401 (registers the models)
from benchmarks.main import APART
from castvision_cli import VERBS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
}
OF_TODAY = sorted(set(PAGES) - {"CHANGELOG.md"})  # which names what is gone, too
SOURCE = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("castvision/**/*.py"))
SCRIPTS = sorted([*ROOT.glob("tools/*.py"), *ROOT.glob("demo/*.py")])
COMMANDS = [script for script in SCRIPTS if "__main__" in script.read_text(encoding="utf-8")]


def load_tool(name: str):
    """A tool as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answer_help(source: str) -> tuple[str, float]:
    """What a fresh interpreter prints, and the seconds it took; fails if torch is loaded on the way."""
    check = "import sys\ntry:\n    {}\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
    check = check.format(source) + "assert 'torch' not in sys.modules, 'help loads torch'\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", check], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout, time.perf_counter() - start


@pytest.mark.parametrize("script", COMMANDS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_help_of_a_script_answers_at_once(script: Path):
    source = (
        f"import runpy; sys.argv = [{str(script)!r}, '--help']; runpy.run_path({str(script)!r}, run_name='__main__')"
    )
    text, seconds = answer_help(source)
    assert "usage" in text.lower()
    assert seconds < 5


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_of_a_verb_answers_at_once(verb: str):
    text, seconds = answer_help(f"from castvision_cli import main; sys.exit(main({[*verb.split(), '--help']!r}))")
    assert "usage" in text.lower()
    assert seconds < 5


def commands(text: str) -> list[list[str]]:
    """The words of each ``castvision …`` line in a page's bash blocks, without comments."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("castvision ")]


def anchors(page: str) -> set[str]:
    """What a link may name in a page after ``#``."""
    titles = re.findall(r"^#+ (.+)$", PAGES[page], re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_lead_somewhere(page: str):
    folder = (ROOT / page).parent
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (folder / path).resolve() if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.relative_to(ROOT).as_posix()), link


@pytest.mark.parametrize("page", OF_TODAY)
def test_pages_name_only_what_exists(page: str):
    text = PAGES[page]
    scripts = set(re.findall(r"(?:bash|python) ((?:tools|demo|benchmarks)/[\w./]+)", text))
    files = set(re.findall(r"`((?:benchmarks|castvision|castvision_cli|configs|docs|tests|tools)/[\w./]+)`", text))
    assert not [name for name in scripts | files if not (ROOT / name).exists() and "NAME" not in name]
    assert set(re.findall(r"`castvision ([a-z][\w-]*)", text)) <= set(VERBS)
    models = set(re.findall(r"\bcast_vit_[a-z0-9_]+\b(?![_*])", text))
    assert models <= set(timm.list_models("cast_vit_*"))
    for name in re.findall(r"`(castvision(?:\.\w+)+)`", text):
        pkgutil.resolve_name(name)
    classes = set(re.findall(r"\b(\w*[a-z](?:DataModule|Task|Head))\b", text)) - {"MyDataModule"}
    assert not [name for name in classes if not re.search(rf"^class {name}\b", SOURCE, re.MULTILINE)]


@pytest.mark.parametrize("page", OF_TODAY)
def test_commands_in_pages_have_the_options_and_configurations_they_name(page: str):
    for verb, *words in commands(PAGES[page]):
        assert verb in VERBS
        flags = {word for word in words if word.startswith("--") and "." not in word}
        door = [verb, *words[:1]] if verb == "benchmark" and words[0] in APART else [verb]
        door += ["--web"] if "--web" in words else []  # which has a help of its own
        help_text, _ = answer_help(f"from castvision_cli import main; sys.exit(main({[*door, '--help']!r}))")
        if verb != "data":
            assert all(re.search(rf"{flag}\b", help_text) for flag in flags), (verb, flags)
        if "--config" in words and not (name := words[words.index("--config") + 1]).endswith(".yaml"):
            assert (ROOT / "configs" / f"{name}.yaml").is_file(), name


def test_every_configuration_and_data_module_is_told_of():
    for config in ROOT.glob("configs/*.yaml"):
        assert f"`{config.stem.removesuffix('_cnn')}`" in PAGES["docs/training.md"], config.stem
    modules = re.findall(r"^class (\w+DataModule)\((\w+)", SOURCE, re.MULTILINE)
    for name in {name for name, _ in modules} - {base for _, base in modules}:  # bases are templates
        assert f"`{name}`" in PAGES["docs/data.md"], name


def test_every_page_of_docs_is_linked_from_the_readme_and_the_readme_is_short():
    assert set(re.findall(r"\]\((docs/\w+\.md)\)", README)) == {page for page in PAGES if page.startswith("docs/")}
    assert README.count("\n") <= 120
    assert re.search(r"^bash tools/quickstart\.sh .+\nbash tools/test\.sh ", README, re.MULTILINE)


def test_table_of_models_is_true():
    tool = load_tool("model_table")
    page = PAGES["docs/models.md"]
    begin, end = page.index(tool.BEGIN) + len(tool.BEGIN), page.index(tool.END)
    assert page[begin:end] == tool.make_table(), "run: python tools/model_table.py --write"


def test_python_blocks_are_found_and_failures_seen():
    tool = load_tool("readme_blocks")
    pages = [page.relative_to(ROOT).as_posix() for page in tool.find_pages()]
    assert pages == ["README.md", *sorted(page for page in PAGES if page.startswith("docs/"))]
    assert len(tool.find_blocks(README)) >= 2
    assert len(tool.find_blocks(PAGES["docs/attention.md"])) >= 3
    text = "a\n```python\nx = 1\nprint(x)\n```\n```bash\nno\n```\n```python\nraise SystemExit(3)\n```\n"
    (line, good), (_, bad) = tool.find_blocks(text)
    assert (line, good) == (3, "x = 1\nprint(x)\n")
    assert tool.run_block(good, 60).stdout == "1\n"
    assert tool.run_block(bad, 60).returncode == 3


def test_requirements_of_setup_cfg_are_read_and_compared():
    tool = load_tool("missing_requirements")
    core, more = tool.read_requirements(None), tool.read_requirements("demo")
    assert "timm>=1.0.31" in core and not [line for line in core if line.startswith("#")]
    assert set(more) > set(core)
    assert tool.is_met("timm>=1.0") and not tool.is_met("timm>=99") and not tool.is_met("no-such-distribution")
    with pytest.raises(SystemExit, match="expected one of the extras"):
        tool.read_requirements("dem")


def test_runs_are_compared_in_one_table(tmp_path: Path):
    tool = load_tool("compare_runs")
    with pytest.raises(ValueError, match=r"metrics\.json, as `castvision train fit` writes it"):
        tool.read_run(tmp_path)
    (tmp_path / "metrics.json").write_text(
        '{"model": {"name": "m", "kwargs": {"attn_layer": "none"}, "parameters": 1234},'
        ' "training": {"images": 320, "seconds": 2.4}}'
    )
    (tmp_path / "test_metrics.json").write_text('{"figures": {"test/loss": 0.1, "test/miou": 0.51234}}')
    assert tool.make_rows({tmp_path: tool.read_run(tmp_path)}) == [
        ["m", tmp_path.name],
        ["with", "attn_layer=none"],
        ["parameters", "1,234"],
        ["images trained on", "320"],
        ["seconds of training", "2"],
        ["test loss", "0.100"],
        ["test miou", "0.512"],
    ]
