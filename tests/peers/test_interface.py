"""Every peer in the models: training, any image, prefix tokens, checkpoints, compilation, conversion, refusals."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path

import pytest
import timm
import torch

import castvision
from castvision.data.input_format import InputFormat
from castvision.inference.feature_model import load_feature_model
from castvision.layers import CastAttention
from castvision.models.context import create_context_segmenter
from castvision.models.convert import CHOICES, change_attention
from castvision.models.recipe import Recipe, build, load, save
from castvision.peers import PEERS, check_peer_options
from castvision.peers.layer import PeerLayer

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
FREE = [name for name, peer in PEERS.items() if not peer.no_conversion]
ROOT = Path(__file__).resolve().parents[2]


def create(**kwargs):
    torch.manual_seed(0)
    return timm.create_model("cast_vit_tiny_patch16_224", **{**TINY, **kwargs}).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("extra", [{}, {"use_rot_pos_emb": True, "pos_embed": "none", "local_branch": True}], ids=str)
@pytest.mark.parametrize("attention", PEERS)
def test_it_trains_on_images_of_any_shape(attention: str, extra: dict[str, object], dtype: torch.dtype) -> None:
    model = create(attention=attention, drop_path_rate=0.1, attn_drop_rate=0.1, **extra).train().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for shape in ((1, 3, 40, 24), (2, 3, 17, 56)):  # a batch of one, and a ragged grid of 3 x 7
        optimizer.zero_grad()
        model(torch.randn(shape, dtype=dtype)).square().sum().backward()
        assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("attention", PEERS)
def test_prefix_tokens_are_taken_and_an_image_depends_on_no_other(attention: str) -> None:
    model = create(attention=attention, reg_tokens=3, global_pool="avg")
    assert model.num_prefix_tokens == 4
    x = torch.randn(3, 3, 40, 24)
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]))
    assert model.forward_features(x).shape == (3, 4 + 15, 32)
    assert model.forward_intermediates(x, intermediates_only=True)[-1].shape == (3, 32, 5, 3)
    assert model(x[:0]).shape == (0, 3)


@pytest.mark.parametrize("attention", [name for name in PEERS if name != "nystrom"])
def test_masked_tokens_change_nothing(attention: str) -> None:
    model = create(attention=attention, pos_embed="none", class_token=attention in ("veca", "joint_tokens"),
                   global_pool="avg", reg_tokens=0, local_branch=True)  # fmt: skip
    x, mask = torch.randn(2, 3, 40, 24), torch.ones(2, 15, dtype=torch.bool)
    mask[0, 3:9] = False
    mask[1] = False  # an image of nothing
    shown = mask[0].view(1, 1, 5, 3).repeat_interleave(8, 2).repeat_interleave(8, 3)
    other = torch.where(shown, x, torch.full_like(x, 1e3))
    before, after = (model.forward_features(each, token_mask=mask) for each in (x, other))
    assert before.isfinite().all()
    skip = model.num_prefix_tokens
    torch.testing.assert_close(before[0, skip:][mask[0]], after[0, skip:][mask[0]])


@pytest.mark.parametrize("attention", PEERS)
def test_saved_and_built_again_by_the_recipe(attention: str, tmp_path: Path) -> None:
    kwargs = {k: v for k, v in TINY.items() if k != "num_classes"} | {"attention": attention}
    recipe = Recipe("features", "cast_vit_tiny_patch16_224", num_classes=0, model_kwargs=kwargs)
    model = build(recipe).eval()
    save(tmp_path / "model.ckpt", recipe, model)
    again, loaded = load(tmp_path / "model.ckpt")
    x = torch.randn(1, 3, 24, 48)
    assert again.model_kwargs["attention"] == attention
    assert torch.equal(loaded.eval()(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))


@pytest.mark.parametrize("attention", PEERS)
def test_it_compiles_in_one_graph_and_runs_on_meta_and_in_half_precision(attention: str) -> None:
    if attention in ("clustr", "joint_tokens") and torch.__version__.startswith("2.11"):
        pytest.skip("torch 2.11 leaves the graph where a size is looked up")
    model, x = create(attention=attention), torch.randn(2, 3, 40, 24)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))
    torch._dynamo.reset()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).isfinite().all()
    assert copy.deepcopy(model).to("meta")(x.to("meta")).shape == (2, 3)


@pytest.mark.parametrize("attention", FREE)
def test_a_plain_vits_weights_load_strictly(attention: str) -> None:
    plain = timm.create_model("vit_tiny_patch16_224", **TINY)
    create(attention=attention).load_state_dict(plain.state_dict())


@pytest.mark.parametrize("attention", FREE)
def test_converted_and_back(attention: str) -> None:
    torch.manual_seed(0)
    plain = timm.create_model("vit_tiny_patch16_224", **{**TINY, "img_size": 64}).eval()
    x = torch.randn(2, 3, 64, 64)
    keys = list(plain.state_dict())
    few = {"nystrom": {"num_landmarks": 8}, "neighborhood": {"kernel_size": 3}}
    with torch.no_grad():
        for block in plain.blocks:
            block.attn.qkv.weight *= 30  # weights that are not all alike
    before = plain(x)
    model = castvision.convert(plain, attention=attention, **few.get(attention, {}))
    assert model is plain
    assert list(model.state_dict()) == keys
    assert not torch.allclose(model(x), before, atol=1e-6)
    assert model(torch.randn(1, 3, 40, 88)).shape == (1, 3)  # any size
    model(x).sum().backward()
    assert change_attention(model, attention) is model
    castvision.revert(model)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize(
    ("attention", "whole"),
    [("smyrf", {"chunk_size": 64}), ("secvit", {"chunk_size": 64}), ("neighborhood", {"kernel_size": 15}),
     ("clustr", {"num_clusters": 64, "scales": 1}), ("nystrom", {"num_landmarks": 64, "iterations": 30})],
)  # fmt: skip
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_with_nothing_left_out_a_converted_model_is_the_original(
    name: str, attention: str, whole: dict[str, int]
) -> None:
    torch.manual_seed(0)
    sizes = {"img_size": 64, "patch_size": 8, "depth": 2, "num_classes": 3}
    model, x = timm.create_model(name, **sizes).eval().double(), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    expected = model(x)
    torch.testing.assert_close(
        castvision.convert(model, attention=attention, **whole)(x), expected, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("attention", [name for name in PEERS if name not in FREE])
def test_those_with_weights_of_their_own_are_not_converted_to_and_the_reason_is_named(attention: str) -> None:
    plain = timm.create_model("vit_tiny_patch16_224", **TINY)
    with pytest.raises(ValueError, match=f"got '{attention}': it.*no pretrained model has; use a cast_vit"):
        castvision.convert(plain, attention=attention)
    assert set(CHOICES) == {"near_far", "full", *FREE}


def test_some_blocks_keep_full_attention_and_attentions_can_be_exchanged() -> None:
    model, x = timm.create_model("vit_tiny_patch16_224", **TINY).eval(), torch.randn(1, 3, 32, 32)
    full = model(x)
    castvision.convert(model, attention="secvit", chunk_size=4, blocks=[1])
    assert [block.attn.core is None for block in model.blocks] == [True, False]
    change_attention(model, "full")
    torch.testing.assert_close(model(x), full)
    change_attention(model, "near_far")
    assert all(block.attn.options is not None and block.attn.core is None for block in model.blocks)
    with pytest.raises(ValueError, match="already"):
        castvision.convert(model, attention="smyrf")
    with pytest.raises(ValueError, match="already"):
        castvision.convert(create(attention="smyrf"))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"attention": "smyrff"}, "did you mean 'smyrf'"),
        ({"attention": "smyrf", "rounds": 0}, "rounds to be a whole number >= 1, got rounds=0"),
        ({"attention": "smyrf", "rounds": True}, "rounds to be a whole number"),
        ({"attention": "smyrf", "window_size": 4}, "no window_size with attention='smyrf'.*takes rounds, chunk_size"),
        ({"attention": "secvit", "rounds": 4}, "no rounds with attention='secvit'"),
        ({"attention": "separable", "num_latents": 4}, "it takes none"),
        ({"attention": "clustr", "cluster_factor": 0}, "cluster_factor > 0"),
        ({"attention": "clustr", "cluster_factor": "2"}, "a finite number"),
        ({"attention": "clustr", "proportional": "no"}, "proportional to be True or False"),
        ({"attention": "neighborhood", "kernel_size": 4}, "odd kernel_size"),
        ({"rounds": 4}, "no rounds with attention='near_far', got 4; it belongs to smyrf"),
        ({"attention": "smyrf", "attn_layer": "full"}, "attn_layer='cast' with attention='smyrf'"),
        ({"attention": ["smyrf", "near_far"]}, "one word for all blocks"),
        ({"attention": "xcit", "learned_scale": True}, "no learned_scale with attention='xcit'"),
        ({"attention": "veca", "reg_tokens": 0, "class_token": False, "global_pool": "avg"}, "reg_tokens"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_by_name(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(**kwargs)(torch.randn(1, 3, 32, 32))


def test_a_misspelt_option_gets_the_nearest() -> None:
    recipe = Recipe("features", "cast_vit_tiny_patch16_224", 0, model_kwargs={"attention": "smyrf", "chunk_sise": 4})
    with pytest.raises(ValueError, match="did you mean 'chunk_size'"):
        build(recipe)


def test_options_may_differ_by_block() -> None:
    model = create(attention="smyrf", rounds=[1, 3])
    assert [block.attn.core.rounds for block in model.blocks] == [1, 3]
    assert not torch.equal(model.blocks[0].attn.core.directions[0], model.blocks[1].attn.core.directions[0])


def test_presets_of_variants_are_for_near_and_far_alone() -> None:
    model = timm.create_model("cast_vit_small_patch14_dinov2", attention="smyrf", depth=1, embed_dim=32, num_heads=2)
    assert isinstance(model.blocks[0].attn, PeerLayer)
    pixel = timm.create_model("cast_vit_atto_patch4_32", attention="xcit").eval()
    assert pixel(torch.randn(1, 1, 32, 32)).shape == (1, 2)
    cores = timm.create_model("cast_vit_atto_patch4_32", attention="veca")
    assert cores.num_prefix_tokens == 64
    assert cores.reg_token.std() > 0.01  # not all alike


def test_tiles_with_context_are_refused() -> None:
    kwargs = {**TINY, "attention": "xcit"}
    kwargs.pop("num_classes")
    with pytest.raises(ValueError, match="attention='near_far' for tiles with context"):
        create_context_segmenter("cast_vit_tiny_patch16_224", 2, context_size=(32, 32), model_kwargs=kwargs)


def test_a_checkpoint_with_a_peer_is_embedded_as_it_is(tmp_path: Path) -> None:
    kwargs = {k: v for k, v in TINY.items() if k != "num_classes"} | {"attention": "secvit"}
    seen = InputFormat(3, (32, 32), (0.5,) * 3, (0.5,) * 3)
    recipe = Recipe("features", "cast_vit_tiny_patch16_224", num_classes=0, model_kwargs=kwargs, input=seen)
    save(tmp_path / "model.ckpt", recipe, build(recipe))
    embedder = load_feature_model(str(tmp_path / "model.ckpt"))
    patches = embedder.tokens(torch.randn(1, 3, 40, 24))[0]
    assert patches.shape == (1, 5, 3, 32)


def test_the_layers_take_what_ours_take() -> None:
    ours, theirs = (inspect.signature(each.__init__).parameters for each in (CastAttention, PeerLayer))
    assert set(theirs) <= set(ours)
    assert set(inspect.signature(PeerLayer.forward).parameters) <= set(
        inspect.signature(CastAttention.forward).parameters
    )
    for attention, peer in PEERS.items():
        check_peer_options(attention, dict.fromkeys(peer.options))


def test_each_peer_is_one_short_file() -> None:
    files = {inspect.getsourcefile(peer.kind) for peer in PEERS.values()}
    assert len(files) == len(PEERS)
    for file in files:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 120
        assert "arXiv" in "".join(lines)
