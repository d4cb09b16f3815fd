"""The models are registered whichever of timm and castvision is imported first, and no sooner than needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
KNOWS = "assert timm.is_model('cast_vit_tiny_patch16_224')"


def run(source: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "source",
    [
        f"import timm, castvision; {KNOWS}",
        f"import castvision, timm; {KNOWS}",
        f"import castvision; from timm.layers import Mlp; import timm; {KNOWS}",
        f"import castvision.cli, timm; {KNOWS}",
        f"from castvision.models import cluster_maps; import timm; {KNOWS}",
        f"import castvision; castvision.models.cluster_maps; import timm; {KNOWS}",
        # whichever of our packages is the first to import timm
        *(
            f"import castvision.{package}, timm; {KNOWS}"
            for package in ("ops", "layers", "heads", "models", "data", "inference.predictor", "training.cli")
        ),
        f"from castvision.layers import CastAttention as C; import timm; {KNOWS};"
        "assert isinstance(timm.create_model('cast_vit_atto_patch4_32').blocks[0].attn, C)",
        # the loader still serves what others ask of it
        "import castvision, timm, inspect, importlib.resources as r; assert 'version' in inspect.getsource(timm);"
        "assert r.files('timm').joinpath('version.py').is_file()",
    ],
)
def test_models_are_registered(source: str):
    result = run(source)
    assert result.returncode == 0, result.stderr


def test_import_alone_loads_neither_torch_nor_timm():
    result = run("import sys, castvision; print([m for m in ('torch', 'timm') if m in sys.modules])")
    assert result.stdout.strip() == "[]", result.stderr


def test_a_failed_import_of_timm_can_be_repeated():
    source = (
        "import sys, castvision; sys.modules['torch'] = None\n"
        "try:\n    import timm\nexcept ImportError:\n    del sys.modules['torch']\n"
        "for name in [n for n in sys.modules if n.split('.')[0] == 'timm']: del sys.modules[name]\n"
        f"import timm\n{KNOWS}"
    )
    result = run(source)
    assert result.returncode == 0, result.stderr


def test_other_attributes_are_refused():
    import castvision

    with pytest.raises(AttributeError, match="has no attribute 'modles'"):
        castvision.modles  # noqa: B018
