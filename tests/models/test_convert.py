"""Converted models: the same weights, full attention's result where clusters leave nothing out, and back again."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import onnxruntime
import pytest
import timm
import torch
from timm.models._features_fx import create_feature_extractor
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor, nn

import castvision
from castvision.models.convert import is_converted

FAMILIES: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {},  # AugReg
    "vit_base_patch16_224": {"global_pool": "avg"},  # MAE as fine-tuned
    "deit_tiny_distilled_patch16_224": {},
    "deit3_small_patch16_224": {},  # LayerScale
    "vit_small_patch14_dinov2": {},
    "vit_small_patch14_reg4_dinov2": {},
    "vit_base_patch16_siglip_224": {},  # attention pooling
    "vit_base_patch16_siglip_gap_224": {},
    "vit_base_patch16_clip_224": {},  # norm before the blocks
    "vit_small_patch16_224": {"qk_norm": True, "scale_attn_norm": True},
    "vit_small_patch16_18x2_224": {},  # parallel blocks
    "vit_base_patch32_plus_256": {"block_fn": ResPostBlock},  # norm after attention
    "eva02_tiny_patch14_224": {},
    "eva02_base_patch14_224": {"qkv_fused": False, "scale_attn_inner": True},
    "vit_small_patch16_dinov3": {},
    "vit_small_patch16_dinov3_qkvb": {},
    "vit_small_patch16_rope_224": {},
    "vit_small_patch16_rope_mixed_224": {},
    "vit_base_patch16_rope_reg1_gap_256": {},
    "vit_base_patch16_sapiens2": {"num_heads": 4, "num_kv_heads": 2},  # heads share keys and values
}
EVERY = pytest.mark.parametrize("name", FAMILIES)
ROTARY = "vit_small_patch16_dinov3"
ONE_OF_EACH = pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", ROTARY])


def patch(name: str) -> int:
    return next(size for size in (14, 32, 16) if f"patch{size}" in name)


def make(name: str, **arguments: Any) -> nn.Module:
    """A small version for images of 4 x 4 patches, with weights large enough that attention matters."""
    sizes = {"depth": 2, "embed_dim": 48, "num_heads": 3, "num_classes": 5, "img_size": 4 * patch(name)}
    torch.manual_seed(0)
    model = timm.create_model(name, **{**sizes, **FAMILIES.get(name, {}), **arguments}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def images(name: str, rows: int, cols: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, rows * patch(name), cols * patch(name), generator=torch.Generator().manual_seed(1))


@EVERY
def test_without_anything_left_out_it_is_the_original(name: str) -> None:
    """M = N, and one window of all tokens: outputs and gradients to 1e-5; at other sizes, the dynamic original's."""
    original, at_native, elsewhere = make(name), images(name, 4, 4), images(name, 4, 6)
    dynamic = make(name, dynamic_img_size=True)
    for options, twin, x in (
        ({"num_clusters": 16, "window_size": 2}, original, at_native),
        ({"num_clusters": 24}, dynamic, elsewhere),
        ({"window_size": 6}, dynamic, elsewhere),
        ({"attention": "full"}, dynamic, elsewhere),
    ):
        model = castvision.convert(make(name), **options)
        results = []
        for each in (model, twin):
            each.zero_grad()
            out = each(x)
            out.square().sum().backward()
            results.append([out, *(p.grad for p in each.parameters())])
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@EVERY
def test_weights_stay_and_reverting_is_exact(name: str) -> None:
    model, x = make(name), images(name, 4, 4)
    before, out = dict(model.state_dict(keep_vars=True)), model(x)
    kinds = [type(module) for module in model.modules()]
    known = [{key: value for key, value in vars(m).items() if key[0] != "_"} for m in model.modules()]
    assert castvision.convert(model) is model
    after = model.state_dict(keep_vars=True)
    assert list(before) == list(after)
    assert all(before[key] is after[key] or before[key].data_ptr() == after[key].data_ptr() for key in before)
    assert model(images(name, 7, 5)).shape == out.shape
    assert is_converted(model)
    assert castvision.revert(model) is model
    assert [type(module) for module in model.modules()] == kinds
    assert [{key: value for key, value in vars(m).items() if key[0] != "_"} for m in model.modules()] == known
    assert torch.equal(model(x), out)


def test_it_differs_from_full_attention_where_clusters_do_leave_something_out() -> None:
    name = "vit_small_patch14_dinov2"
    model, x = make(name, dynamic_img_size=True), images(name, 12, 12)
    out = model(x)
    assert not torch.allclose(castvision.convert(model, anchors=0, num_clusters=3)(x), out, atol=1e-5)


def test_the_numbers_follow_the_image() -> None:
    """About 2 sqrt(N) clusters, 144 anchors, for each image; every option can be given."""
    model = castvision.convert(make("vit_tiny_patch16_224"), rope_in_routing=True, refinements=2, shift_windows=True)
    first, second = (block.attn.options for block in model.blocks)
    assert first._replace(shift_windows=True) == second
    assert (first.summaries, first.anchors, first.refinements) == ("query_weighted", 144, 2)
    assert (first.cluster_factor, first.num_clusters, first.window_size) == (2.0, None, None)


def test_blocks_that_are_not_named_keep_full_attention() -> None:
    name = "vit_tiny_patch16_224"
    model, x = make(name, dynamic_img_size=True, depth=3), images(name, 8, 8)
    expected = model.forward_intermediates(x, intermediates_only=True)
    castvision.convert(model, blocks=[-1], anchors=0, num_clusters=2)
    got = model.forward_intermediates(x, intermediates_only=True)
    torch.testing.assert_close(got[:2], expected[:2])
    assert not torch.allclose(got[2], expected[2], atol=1e-5)


@ONE_OF_EACH
def test_timms_other_ways_in(name: str) -> None:
    """Intermediates, checkpointing, pruning, another head, another native size; M = N, so all equal timm's own."""
    model, x = castvision.convert(make(name), num_clusters=24), images(name, 4, 6)
    twin = make(name, dynamic_img_size=True)
    for arguments in ({}, {"indices": [0], "norm": True}, {"return_prefix_tokens": True}, {"output_fmt": "NLC"}):
        ours, theirs = (m.forward_intermediates(x, **arguments) for m in (model, twin))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.forward_features(x), twin.forward_features(x), rtol=1e-5, atol=1e-5)
    if hasattr(model, "get_intermediate_layers"):
        ours, theirs = (m.get_intermediate_layers(x, n=1, reshape=True)[0] for m in (model, twin))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for each in (model, twin):
        each.set_grad_checkpointing()
        each.zero_grad()
        each(x).sum().backward()
    for (key, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=key)
    for each in (model, twin):
        each.reset_classifier(7)
        each.set_input_size(img_size=(6 * patch(name), 4 * patch(name)), patch_size=(patch(name) // 2,) * 2)
    model.head.load_state_dict(twin.head.state_dict())
    small = x[:, :, : x.shape[2] // 2, : x.shape[3] // 2]  # 4 x 6 of the smaller patches
    torch.testing.assert_close(model(small), twin(small), rtol=1e-5, atol=1e-5)
    fixed = castvision.revert(copy.deepcopy(model))
    native = images(name, 6, 4)
    torch.testing.assert_close(fixed(native), twin(native), rtol=1e-5, atol=1e-5)
    assert [m.prune_intermediate_layers([0]) for m in (model, twin)] == [[0], [0]]
    ours, theirs = (m.forward_intermediates(small, intermediates_only=True) for m in (model, twin))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["near_far", "neighborhood"])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3", "eva02_tiny_patch14_224"])
def test_an_empty_batch_gives_an_empty_result(name: str, attention: str) -> None:
    model, nothing = castvision.convert(make(name), attention=attention), images(name, 4, 6)[:0]
    out = model(nothing)
    assert out.shape == (0, 5)
    out.sum().backward()
    assert model.forward_intermediates(nothing, intermediates_only=True)[0].shape == (0, 48, 4, 6)


def test_checkpointing_remembers_the_grid_of_its_own_image() -> None:
    model = castvision.convert(make("vit_tiny_patch16_224"), anchors=2)
    x, y = images("vit_tiny_patch16_224", 4, 6), images("vit_tiny_patch16_224", 6, 4)
    model(x).sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.set_grad_checkpointing()
    loss = model(x).sum()
    model(y)
    loss.backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], expected)


class Wrapper(nn.Module):
    """As transformers' ``TimmWrapperModel``."""

    def __init__(self, timm_model: nn.Module) -> None:
        super().__init__()
        self.timm_model = timm_model


def test_models_inside_others() -> None:
    wrapper = Wrapper(make("vit_tiny_patch16_224"))
    assert castvision.convert(wrapper) is wrapper and is_converted(wrapper.timm_model)
    assert not is_converted(castvision.revert(wrapper))
    getter = make("vit_tiny_patch16_224", features_only=True, out_indices=[0, 1])
    assert not hasattr(getter, "options")
    maps = castvision.convert(getter)(images("vit_tiny_patch16_224", 5, 7))
    assert [tuple(each.shape) for each in maps] == [(2, 48, 5, 7)] * 2


@ONE_OF_EACH
def test_copies_pickles_and_compiles(name: str) -> None:
    model, x = castvision.convert(make(name, depth=1), anchors=3), images(name, 6, 5)
    expected = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), expected)
        assert torch.equal(castvision.revert(other)(images(name, 4, 4)), make(name, depth=1)(images(name, 4, 4)))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", pytest.param(ROTARY, marks=pytest.mark.slow)])
def test_one_export_takes_any_size(name: str, tmp_path: object) -> None:
    model = castvision.convert(make(name, depth=1), anchors=3)
    dynamic = torch.export.Dim.DYNAMIC
    shapes = ({0: dynamic, 2: dynamic, 3: dynamic},)
    exported = torch.export.export(model, (images(name, 6, 5),), dynamic_shapes=shapes, strict=False)
    program, session = exported.module(), None
    if name == ROTARY:  # slow, and rotary codes are what an ONNX graph got wrong
        torch.onnx.export(exported, dynamo=True, verbose=False).save(f"{tmp_path}/model.onnx")
        session = onnxruntime.InferenceSession(f"{tmp_path}/model.onnx")
    for batch, rows, cols in ((2, 6, 5), (1, 4, 4), (3, 9, 7), (1, 12, 5)):
        x = images(name, rows, cols, batch)
        expected = model(x)
        torch.testing.assert_close(program(x), expected, rtol=1e-4, atol=1e-5)
        if session is not None:
            run = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
            torch.testing.assert_close(torch.from_numpy(run), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", ROTARY, "vit_small_patch16_rope_mixed_224"])
def test_fx_follows_it_as_it_follows_the_original(name: str) -> None:
    """timm's extractor of features by the names of modules; at any size."""
    model = castvision.convert(make(name), anchors=3)
    extract = create_feature_extractor(model, ["blocks.1"])
    for x in (images(name, 4, 4), images(name, 6, 5, batch=3)):
        (found,) = extract(x).values()
        torch.testing.assert_close(model.norm(found), model.forward_features(x))


def test_images_are_padded_or_refused_as_the_model_was_made() -> None:
    name = "vit_tiny_patch16_224"
    odd = torch.randn(1, 3, 60, 90)
    padding = {"dynamic_img_size": True, "dynamic_img_pad": True}
    ours, theirs = castvision.convert(make(name, **padding), num_clusters=24), make(name, **padding)
    torch.testing.assert_close(ours(odd), theirs(odd), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"divisible by the patch, 16 x 16 pixels, got 60 x 90; .*dynamic_img_pad"):
        castvision.convert(make(name))(odd)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("beit_base_patch16_224", "relative position.*use a VisionTransformer or Eva"),
        ("swin_tiny_patch4_window7_224", "relative position.*use a VisionTransformer or Eva"),
        ("vit_relpos_small_patch16_224", "relative position"),
        ("samvit_base_patch16_224", "relative position"),
        ("resnet18", "none of the families"),
        ("vit_dlittle_patch16_reg1_gap_256", "differences of two softmaxes"),
    ],
)
def test_families_that_are_refused(name: str, match: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(TypeError, match=match) as caught:
        castvision.convert(model)
    assert "\n" not in str(caught.value)
    assert not is_converted(model)


class Own(timm.models.VisionTransformer):  # type: ignore[misc]
    """A user's class."""


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"attention": "paper"}, "weights of its own"),
        ({"attention": "near_fra"}, "did you mean 'near_far'"),
        ({"attention": "full", "anchors": 3}, "expected no options"),
        ({"attention": "full", "blocks": [0]}, "expected no blocks"),
        ({"blocks": []}, "at least one"),
        ({"blocks": [2]}, "from -2 to 1"),
        ({"blocks": 1}, "at least one, got 1"),
        ({"shift_windows": 1}, "True or False"),
        ({"surrogates": "averaged"}, "cast_vit"),
        ({"num_clusters": 0}, "num_clusters"),
        ({"cluster_factor": 0.0}, "cluster_factor > 0"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], match: str) -> None:
    model = make("vit_tiny_patch16_224")
    with pytest.raises(ValueError, match=match):
        castvision.convert(model, **options)
    assert not is_converted(model)
    assert not model.dynamic_img_size


def test_other_refusals() -> None:
    name = "vit_tiny_patch16_224"
    model, x = make(name), images(name, 4, 4)
    with pytest.raises(ValueError, match=r"expected a model that castvision\.convert changed"):
        castvision.revert(model)
    with pytest.raises(TypeError, match="did you mean 'anchors'"):
        castvision.convert(model, anchor=3)
    castvision.convert(model)
    with pytest.raises(ValueError, match=r"already; call castvision.revert\(model\) first"):
        castvision.convert(model)
    for options in ({}, {"attn_layer": "full"}, {"attn_layer": "none"}, {"attention": "xcit"}):
        with pytest.raises(ValueError, match="already"):
            castvision.convert(timm.create_model("cast_vit_tiny_patch16_224", depth=1, **options))
    with pytest.raises(ValueError, match="no attn_mask"):
        model(x, attn_mask=torch.ones(17, 17, dtype=torch.bool))
    with pytest.raises(ValueError, match="is_causal"):
        model.forward_intermediates(x, is_causal=True)
    with pytest.raises(ValueError, match="call the model, not its blocks"):
        model.blocks[0](torch.randn(1, 17, 48))
    with pytest.raises(ValueError, match=r"expected images \(B, 3, height, width\)"):
        model(x[:, :1])
    with pytest.raises(TypeError, match="class of its own"):
        castvision.convert(Own(depth=1, embed_dim=48, num_heads=3))
    with pytest.raises(ValueError, match="patch_drop_rate=0"):
        castvision.convert(make(name, patch_drop_rate=0.5))
    castvision.revert(model)
    with pytest.raises(ValueError, match="num_clusters <= N, got 4 x 4 = 16 tokens with num_clusters=17"):
        castvision.convert(model, num_clusters=17)(x)
    castvision.revert(model)
    with pytest.raises(ValueError, match="at least a window, got 4 x 4 = 16 tokens with window_size=6"):
        castvision.convert(model, window_size=6)(x)
