"""What clients of a timm backbone rely on, and timm tests on its own models only.

The default suite runs this on the smallest variant; tools/timm_suite.py on any, through the environment (CI: also on a
pyramid).
"""

from __future__ import annotations

import copy
import fnmatch
import importlib
import itertools
import os
import pickle
from pathlib import Path

import pytest
import timm
import torch
from timm.models import list_models, save_for_hf
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

SMALL = "cast_vit_atto_patch4_32"

importlib.import_module(os.environ.get("TIMM_SUITE_MODULE", "castvision"))
NAMES = list_models(filter=os.environ.get("TIMM_SUITE_MODELS", SMALL).split(","))
pytestmark = pytest.mark.parametrize("model_name", NAMES)


def make_model(name: str, **kwargs) -> nn.Module:
    """An evaluation-mode model in which no parameter is zero or one, so that none can be left out unnoticed."""
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


def make_images(name: str, batch: int = 2, *, in_chans: int | None = None, limit: int = 64) -> Tensor:
    channels, height, width = timm.get_pretrained_cfg_value(name, "input_size")
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, in_chans or channels, min(height, limit), min(width, limit), generator=generator)


@torch.no_grad()
def test_is_deterministic_and_images_do_not_influence_each_other(model_name):
    model, images = make_model(model_name), make_images(model_name, 3)
    together = model(images)
    assert torch.equal(together, model(images))
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("size", [(96, 160), (70, 90), (33, 47)])
def test_takes_any_image_size(model_name, size):
    model = make_model(model_name, num_classes=5)
    logits = model(torch.randn(1, model.in_chans, *size))
    assert logits.shape == (1, 5) and torch.isfinite(logits).all()


@torch.no_grad()
def test_features_only_gives_what_feature_info_says(model_name):
    images = make_images(model_name)
    model = make_model(model_name, features_only=True)
    features = model(images)
    info = model.feature_info
    assert len(features) == len(info.channels()) == len(info.reduction())
    for feature, channels, reduction in zip(features, info.channels(), info.reduction(), strict=True):
        assert isinstance(reduction, int)
        rows, cols = (-(-side // reduction) for side in images.shape[-2:])
        assert feature.shape == (2, channels, rows, cols)
    if "_pyramid_" in model_name:
        assert info.reduction() == [4, 8, 16, 32]


@torch.no_grad()
@pytest.mark.parametrize("out_indices", [1, (0, 2), (-1,), (-2, -1)])
def test_out_indices_choose_the_same_features(model_name, out_indices):
    if "_pyramid_" in model_name:
        pytest.skip("a pyramid's levels are its own: out_indices chooses among four")
    model = make_model(model_name)
    depth = len(model.feature_info)
    chosen = range(depth)[-out_indices:] if isinstance(out_indices, int) else [range(depth)[i] for i in out_indices]
    getter = timm.create_model(model_name, features_only=True, out_indices=out_indices).eval()
    getter.model.load_state_dict({k: v for k, v in model.state_dict().items() if k in getter.model.state_dict()})
    images = make_images(model_name)
    expected = model.forward_intermediates(images, indices=list(chosen), intermediates_only=True)
    for feature, target in zip(getter(images), expected, strict=True):
        torch.testing.assert_close(feature, target)


@torch.no_grad()
def test_local_dir_round_trip_with_four_channels(model_name, tmp_path: Path):
    model, images = make_model(model_name, in_chans=4, num_classes=7), make_images(model_name, in_chans=4)
    save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert (loaded.in_chans, loaded.num_classes) == (4, 7)
    torch.testing.assert_close(loaded(images), model(images))
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3).num_classes == 3
    assert len(timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True)(images)) >= 3


@torch.no_grad()
@pytest.mark.parametrize(("in_chans", "num_classes"), [(1, 5), (4, 5), (13, 0)])
def test_pretrained_weights_adapt_to_other_channels(model_name, in_chans, num_classes):
    source = make_model(model_name)
    overlay = {"state_dict": source.state_dict()}
    options = {"pretrained_cfg_overlay": overlay, "in_chans": in_chans, "num_classes": num_classes}
    model = timm.create_model(model_name, pretrained=True, **options).eval()
    stem = model.default_cfg["first_conv"]
    before, after = source.get_submodule(stem).weight, model.get_submodule(stem).weight
    known = before.shape[1]
    # one channel gets the sum, several get copies in turn, scaled so that the response keeps its size
    turns = [before[:, i % known] * known / in_chans for i in range(in_chans)]
    expected = before.sum(1, keepdim=True) if in_chans == 1 else torch.stack(turns, 1)
    torch.testing.assert_close(after, before if in_chans == known else expected)
    logits = model(make_images(model_name, in_chans=in_chans))
    assert logits.shape == (2, num_classes or model.head_hidden_size)


def test_layer_decay_grows_with_depth_and_spares_the_head(model_name):
    model = timm.create_model(model_name, num_classes=5)
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert scale.keys() == {id(p) for p in model.parameters()}
    per_block = [{scale[id(p)] for p in block.parameters()} for block in model.blocks]
    assert all(len(scales) == 1 for scales in per_block)
    values = [scales.pop() for scales in per_block]
    assert all(later == 2 * earlier for earlier, later in itertools.pairwise(values))
    assert all(scale[id(p)] < values[0] for p in model.get_submodule(model.default_cfg["first_conv"]).parameters())
    assert {scale[id(p)] for p in model.get_classifier().parameters()} == {1.0}
    undecayed = [p for n, p in model.named_parameters() if any(fnmatch.fnmatch(n, w) for w in model.no_weight_decay())]
    assert {decay[id(p)] for p in undecayed} <= {0.0}


def test_checkpointing_changes_no_gradient_and_leaves_none_unused(model_name):
    model, images = make_model(model_name, features_only=True).train(), make_images(model_name)
    gradients = []
    for enable in (False, True):
        model.zero_grad()
        model.model.set_grad_checkpointing(enable)
        sum(feature.square().mean() for feature in model(images)).backward()
        assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@torch.no_grad()
def test_intermediates_agree_between_formats_and_with_the_output(model_name):
    model, images = make_model(model_name), make_images(model_name)
    maps = model.forward_intermediates(images, indices=2, intermediates_only=True)
    tokens = model.forward_intermediates(images, indices=2, output_fmt="NLC", intermediates_only=True)
    for feature, rows in zip(maps, tokens, strict=True):
        torch.testing.assert_close(feature.flatten(2).transpose(1, 2), rows)
    last = model.forward_intermediates(images, indices=1, norm=True, output_fmt="NLC", intermediates_only=True)[0]
    torch.testing.assert_close(last, model.forward_features(images)[:, model.num_prefix_tokens :])


@torch.no_grad()
def test_copies_compute_the_same(model_name):
    model, images = make_model(model_name), make_images(model_name)
    expected = model(images)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(copied(images), expected)


def test_trains_a_step_under_bfloat16_autocast(model_name):
    model = timm.create_model(model_name, num_classes=5, drop_path_rate=0.1).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(make_images(model_name)).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.slow
def test_exports_at_one_size(model_name):
    model, images = make_model(model_name, exportable=True), make_images(model_name)
    exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(exported(images), model(images))


def test_exports_at_any_size(model_name):
    model, images = make_model(model_name, exportable=True), make_images(model_name)
    auto = torch.export.Dim.AUTO
    exported = torch.export.export(model, (images,), dynamic_shapes=({0: auto, 2: auto, 3: auto},)).module()
    height, width = images.shape[-2:]
    for batch, rows, cols in ((2, height, width), (3, 2 * height, width), (1, height + 16, 2 * width + 16)):
        other = torch.randn(batch, images.shape[1], rows, cols)
        torch.testing.assert_close(exported(other), model(other), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_compiles_without_a_graph_break(model_name):
    model, images = make_model(model_name), make_images(model_name)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images))
