"""What a user gets: a light import, the public names, and a wheel that works away from the checkout."""

from __future__ import annotations

import configparser
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import castvision

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("castvision", "castvision_cli")
HEAVY = (
    "albumentations", "castvision.data", "castvision.training", "gradio", "jsonargparse", "kornia", "lightning",
    "matplotlib", "numba", "pytorch_lightning", "skimage", "tensorboard", "torchmetrics",
)  # fmt: skip


def run_python(source: str, cwd: Path, pythonpath: Path) -> str:
    """Standard output of a fresh interpreter."""
    environment = {**os.environ, "PYTHONPATH": str(pythonpath)}
    command = [sys.executable, "-c", source]
    return subprocess.run(command, cwd=cwd, env=environment, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that no build folder appears in the checkout."""
    folder = tmp_path_factory.mktemp("build")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("castvision", "castvision_cli", "configs", "demo"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder / "dist")]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return next((folder / "dist").glob("*.whl"))


def test_import_registers_the_models_and_stays_light(tmp_path: Path):
    source = (
        "import json, sys, timm; before = set(sys.modules); import castvision;"
        "new = set(sys.modules) - before;"
        f"print(json.dumps([timm.list_models('cast_vit_*'), sorted(new & set({HEAVY!r}))]))"
    )
    models, heavy = json.loads(run_python(source, tmp_path, ROOT))
    assert "cast_vit_tiny_patch16_224" in models
    assert heavy == []


def test_setup_cfg_lists_every_package():
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = set(config["options"]["packages"].split())
    folders = {path.parent.relative_to(ROOT) for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    assert listed == {".".join(folder.parts) for folder in folders} | {"castvision.configs", "castvision_demo"}


def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def requirements() -> dict[str, str]:
    """What is installed with the package: name to releases."""
    lines = setup_cfg()["options"]["install_requires"].split()
    return {found.name: str(found.specifier) for found in map(Requirement, lines)}


def test_the_page_on_installing_lists_every_requirement_and_extra():
    text = (ROOT / "docs" / "installing.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE))
    assert listed == set(requirements()) | set(setup_cfg()["options.extras_require"])


def test_the_conda_recipe_asks_for_the_same_releases():
    recipe = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text(encoding="utf-8"))
    other = {"pytorch": "torch", "py-opencv": "opencv-python-headless", "matplotlib-base": "matplotlib"}
    wanted = {}
    for line in recipe["requirements"]["run"]:
        name, _, releases = line.partition(" ")
        wanted[other.get(name, name)] = str(SpecifierSet(releases)) if name != "python" else ""
    del wanted["python"], wanted["docstring_parser"], wanted["typeshed-client"]  # of jsonargparse's extra
    assert wanted == requirements()
    assert recipe["context"]["version"] == castvision.__version__


def test_requirements_have_one_home():
    assert "[project]" not in (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()


def test_wheel_holds_the_package_and_its_configurations(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {str(path.relative_to(ROOT)) for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    expected |= {f"castvision/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    expected |= {"castvision/py.typed", "castvision/configs/__init__.py"}
    weights = sorted((ROOT / "castvision" / "weights").glob("*.safetensors"))
    assert weights and sum(path.stat().st_size for path in weights) < 5e6
    expected |= {str(path.relative_to(ROOT)) for path in weights}
    expected |= {f"castvision_demo/{path.name}" for path in (ROOT / "demo").glob("*.py")}
    packaged = {name for name in names if ".dist-info/" not in name}
    assert packaged == expected
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_source_distribution_makes_the_same_wheel(wheel: Path, tmp_path: Path):
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("castvision", "castvision_cli", "configs", "demo"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist")]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)  # sdist, and from it the wheel
    with zipfile.ZipFile(wheel) as direct, zipfile.ZipFile(next((tmp_path / "dist").glob("*.whl"))) as built:
        assert set(built.namelist()) == set(direct.namelist())
        metadata = next(name for name in built.namelist() if name.endswith("METADATA"))
        Metadata.from_email(built.read(metadata), validate=True)


def test_installed_wheel_works_away_from_the_checkout(wheel: Path, tmp_path: Path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    source = (
        "import castvision; from castvision_cli.train import find_config;"
        "print(castvision.__file__); print(find_config('quickstart')); print(castvision.__version__)"
    )
    package, config, version = run_python(source, elsewhere, site).splitlines()
    assert Path(package) == site / "castvision" / "__init__.py"
    assert Path(config) == site / "castvision" / "configs" / "quickstart.yaml"
    assert version == castvision.__version__
    help_text = run_python("from castvision_cli import main; main(['train', '--help'])", elsewhere, site)
    assert "quickstart" in help_text
    demo = run_python("import castvision_demo.studio as studio; print(studio.__file__)", elsewhere, site)
    assert Path(demo.strip()) == site / "castvision_demo" / "studio.py"


PUBLIC = {
    "castvision": {"__version__", "convert", "models", "revert"},
    "castvision.data": {
        "Augmentation", "BatchAugmentation", "ChannelJitter", "ChannelStatistics", "CocoSegmentation", "Georeference",
        "ImageReader", "ImageSources", "LabelMap", "Level", "MultiLabelDataset", "NamedDataset", "SampleTransform",
        "SegmentationDataset", "WindowDataset", "find_pairs", "make_context", "open_array", "open_image", "open_mask",
        "open_named", "pad_collate", "read_coco", "read_label_table", "read_mask", "split_by_block", "split_by_source",
    },
    "castvision.data.reading": {
        "Georeference", "ImageReader", "Level", "open_array", "open_image", "open_mask", "read_mask",
    },
    "castvision.data.synthetic": {
        "CopyMoveDataset", "DenseBatch", "DenseDataset", "MazeDataset", "PathfinderSegDataset", "RegionDataset",
    },
    "castvision.data.synthetic.pathfinder": {
        "Mode", "PathfinderDataset", "PathfinderSample", "PathfinderSpec", "make_pathfinder",
    },
    "castvision.heads": {"FpnHead", "LinearHead", "MlpHead", "UperHead", "UpsamplingHead"},
    "castvision.inference": {"FileSink", "Seam", "Sink", "Skip", "TiledResult", "tiled_inference"},
    "castvision.layers": {"CastAttention", "CastBlock", "ConvStem", "FullAttention", "RotaryPositions"},
    "castvision.models": {
        "CastVisionTransformer", "ContextSegmenter", "FeaturePyramid", "Segmenter", "checkpoint_filter_fn",
    },
    "castvision.ops": {
        "ASSIGNMENTS", "AttentionOptions", "Routing", "cast_attention", "check_choice", "coverage", "make_options",
        "resample_surrogates",
    },
    "castvision.peers": {"PEERS", "check_peer_options", "make_core", "make_peer"},
    "castvision.visualization": {"ClusterMap", "cluster_maps"},
}  # fmt: skip


@pytest.mark.parametrize("module", sorted(PUBLIC))
def test_public_names_are_frozen(module: str):
    names = set(importlib.import_module(module).__all__)
    assert names == PUBLIC[module], "a public name came or went: change this test and the changelog on purpose"
