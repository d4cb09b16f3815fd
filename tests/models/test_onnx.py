"""One exported model serves images of any size, and ONNX Runtime gives what eager mode gives."""

from __future__ import annotations

import onnxruntime
import pytest
import timm
import torch

import castvision

assert castvision.__version__
SIZES = [(1, 224, 224), (2, 160, 352), (3, 97, 150), (1, 65, 200), (2, 384, 272)]
"""Batch, height and width: square, wide, odd, narrow, large; grids of 14 x 14 to 24 x 17 tokens, windows of 4 and 6."""


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "cast_vit_tiny_patch16_224", depth=1, num_classes=5, summaries="query_weighted", anchors=3
    ).eval()


@pytest.fixture(scope="module")
def exported(model: torch.nn.Module) -> torch.export.ExportedProgram:
    dynamic = torch.export.Dim.DYNAMIC
    shapes = ({0: dynamic, 2: dynamic, 3: dynamic},)
    return torch.export.export(model, (torch.randn(2, 3, 224, 256),), dynamic_shapes=shapes, strict=False)


def test_an_export_takes_any_size(model: torch.nn.Module, exported: torch.export.ExportedProgram) -> None:
    program = exported.module()
    for batch, height, width in SIZES:
        x = torch.randn(batch, 3, height, width)
        torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx_runtime_gives_the_same_at_five_sizes(
    model: torch.nn.Module, exported: torch.export.ExportedProgram, tmp_path: object
) -> None:
    program = torch.onnx.export(exported, dynamo=True, verbose=False)
    program.save(f"{tmp_path}/model.onnx")
    session = onnxruntime.InferenceSession(f"{tmp_path}/model.onnx")
    name = session.get_inputs()[0].name
    for batch, height, width in SIZES:
        x = torch.randn(batch, 3, height, width)
        out = torch.from_numpy(session.run(None, {name: x.numpy()})[0])
        torch.testing.assert_close(out, model(x), rtol=1e-4, atol=1e-4)
