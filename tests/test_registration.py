"""The models are registered whichever of timm and castvision is imported first, and no sooner than needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(source: str, folder: Path = ROOT) -> str:
    """What a fresh interpreter prints; fails with its error."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", source]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our package with the modules that matter emptied, and a timm that is a list: an import takes no time."""
    folder = tmp_path_factory.mktemp("miniature")
    files = {
        "timm/__init__.py": "import os\nfrom .layers import registered\nif 'FAIL' in os.environ: raise ImportError",
        "timm/layers.py": "registered = []\n",
        "castvision/ops.py": "import timm.layers\nfirst = last = 1\n",
        "castvision/layers.py": "from castvision.ops import first, last\n",
        "castvision/models.py": "import timm, castvision.layers\ntimm.registered.append('model')\n",
        "castvision/light.py": "",
    }
    (folder / "timm").mkdir()
    (folder / "castvision").mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    for name in ("__init__.py", "_registration.py"):
        shutil.copy(ROOT / "castvision" / name, folder / "castvision")
    return folder


@pytest.mark.parametrize(
    "imports",
    [
        "import timm, castvision",
        "import castvision, timm",
        "import castvision; from timm.layers import registered",
        "import castvision.light, timm",
        "import castvision.ops",
        "import castvision.layers",
        "import castvision.models",
        "from castvision.layers import last",
        "import castvision; castvision.models",
        "import importlib, castvision, timm; importlib.reload(timm.layers)",
    ],
)
def test_models_are_registered_once(miniature: Path, imports: str):
    found = run(f"import sys; {imports}; print(sys.modules['timm'].registered)", miniature)
    assert found == "['model']"


@pytest.mark.parametrize("imports", ["import castvision", "import castvision.light"])
def test_nothing_is_imported_before_it_is_needed(miniature: Path, imports: str):
    names = run(
        f"import sys; {imports}; print([n for n in ('timm', 'castvision.models') if n in sys.modules])", miniature
    )
    assert names == "[]"


def test_a_failed_import_of_timm_can_be_repeated(miniature: Path):
    source = (
        "import os, castvision; os.environ['FAIL'] = '1'\n"
        "try:\n    import timm\nexcept ImportError:\n    del os.environ['FAIL']\n"
        "import timm; print(timm.registered)"
    )
    assert run(source, miniature) == "['model']"


def test_the_loader_still_serves_what_others_ask_of_it(miniature: Path):
    source = (
        "import castvision, timm, inspect, importlib.resources as r;"
        "print('layers' in inspect.getsource(timm), r.files('timm').joinpath('layers.py').is_file())"
    )
    assert run(source, miniature) == "True True"


def test_the_real_package_registers_its_models():
    source = (
        "import castvision.layers as ours, timm;"
        "print(type(timm.create_model('cast_vit_atto_patch4_32').blocks[0].attn) is ours.CastAttention)"
    )
    assert run(source) == "True"
    assert run("import sys, castvision; print([n for n in ('torch', 'timm', 'numpy') if n in sys.modules])") == "[]"


def test_other_attributes_are_refused():
    import castvision

    with pytest.raises(AttributeError, match="has no attribute 'modles'"):
        castvision.modles  # noqa: B018
