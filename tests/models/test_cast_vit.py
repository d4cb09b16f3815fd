"""The backbone: timm's contract in its parts that timm's own suite does not ask of third parties, and our options."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

import castvision
import castvision.heads
from castvision.layers import CastAttention
from castvision.models import checkpoint_filter_fn
from castvision.models.segmenter import create_segmenter
from castvision.visualization.clusters import cluster_maps

assert castvision.__version__
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}


def create(**kwargs: object) -> torch.nn.Module:
    return timm.create_model("cast_vit_tiny_patch16_224", **{**TINY, **kwargs}).eval()


@pytest.mark.parametrize("options", [{"window_size": 4}, {"window_size": 2, "num_clusters": 16}], ids=str)
def test_a_plain_vits_weights_load_strictly_and_are_the_plain_vit(options: dict[str, object], tmp_path: Path) -> None:
    """One window over the grid, or a cluster for each token: full attention. By every door, with no key left over."""
    vit = timm.create_model("vit_tiny_patch16_224", **TINY).eval()
    cast = create(**options)
    assert list(cast.state_dict()) == list(vit.state_dict())
    cast.load_state_dict(vit.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(cast(x), vit(x), rtol=1e-4, atol=1e-5)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    torch.testing.assert_close(create(**options, checkpoint_path=str(tmp_path / "vit.pth"))(x), cast(x))
    torch.testing.assert_close(
        create(
            **options, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "vit.pth"), "num_classes": 3}
        )(x),
        cast(x),
    )


def test_windows_and_clusters_follow_the_image() -> None:
    model = create(patch_size=4)
    for size, clusters in (((32, 32), 16), ((64, 128), 46)):
        maps = cluster_maps(model, torch.randn(3, *size))
        assert abs(maps[0].num_clusters - clusters) <= 4


def test_windows_of_every_other_block_are_shifted() -> None:
    model = create(depth=4, shift_windows=True)
    assert [block.attn.options.shift_windows for block in model.blocks] == [False, True, False, True]


def test_a_timm_vit_takes_our_attention() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", attn_layer=CastAttention, **TINY)
    vit(torch.randn(1, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in vit.parameters())


@pytest.mark.parametrize("size", [(32, 32), (33, 71), (8, 8), (5, 100)])
@pytest.mark.parametrize(
    "kwargs", [{}, {"attention": "paper", "cluster_size": 6}, {"use_rot_pos_emb": True, "pos_embed": "none"}], ids=str
)
def test_any_size(size: tuple[int, int], kwargs: dict[str, object]) -> None:
    with torch.no_grad():
        assert create(**kwargs)(torch.randn(2, 3, *size)).shape == (2, 3)


@pytest.mark.parametrize(
    "kwargs",
    [
        {}, {"attention": "paper"}, {"assignment": "random"}, {"assignment": "blocks"}, {"summaries": "none"},
        {"summaries": "query_weighted", "anchors": 4}, {"anchors": 4, "anchor_selection": "grid"},
        {"attention": ["near_far", "paper"], "assignment": ["sa_topk", "sa_topk"]}, {"local_branch": True},
        {"attention": "paper", "activation": "laplace", "laplace_norm": True}, {"refinements": 0},
        {"attention": "paper", "routing_score": "linear"}, {"attention": "paper", "assignment": "blocks"},
        {"learned_scale": True}, {"attention": "paper", "learned_scale": True}, {"surrogates": "learned"},
        {"attention": "paper", "freeze_surrogates": True}, {"attention": "paper", "cluster_size": 5},
        {"surrogates": "averaged"}, {"neighborhood": "cluster", "assignment": "sa_topk"}, {"shift_windows": True},
        {"use_rot_pos_emb": True, "rope_in_routing": False}, {"attn_layer": "full"}, {"attn_layer": "none"},
        {"stem": "conv", "reg_tokens": 2}, {"class_token": False, "global_pool": "avg", "attn_drop_rate": 0.1},
    ],
    ids=str,
)  # fmt: skip
def test_every_option_trains(kwargs: dict[str, object]) -> None:
    model = create(**kwargs).train()
    model(torch.randn(2, 3, 40, 32)).square().sum().backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "kwargs",
    [
        {}, {"summaries": "query_weighted", "anchors": 4}, {"attention": "paper"},
        {"attention": "paper", "assignment": "sa_topk", "activation": "laplace"}, {"surrogates": "averaged"},
        {"use_rot_pos_emb": True, "local_branch": True, "learned_scale": True},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripts_and_compiles_and_runs_on_meta(kwargs: dict[str, object]) -> None:
    model, x = create(**kwargs), torch.randn(2, 3, 40, 32)
    expected = model(x)
    torch.testing.assert_close(torch.jit.script(model)(x), expected)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), expected)
    torch._dynamo.reset()
    assert model.to("meta")(x.to("meta")).shape == (2, 3)


def test_checkpointing_changes_nothing() -> None:
    model, x, grads = create().train(), torch.randn(2, 3, 32, 32), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_learned_surrogates_follow_another_number_of_clusters() -> None:
    source, target = (create(attention="paper", num_clusters=number) for number in (4, 7))
    target.load_state_dict(checkpoint_filter_fn(source.state_dict(), target))
    expected = source.blocks[0].attn.surrogate_tokens[:, [0, 1, 2, 3, 0, 1, 2]]
    assert torch.equal(target.blocks[0].attn.surrogate_tokens, expected)


def test_averaged_surrogates_move_to_those_who_join_them() -> None:
    """They start on the first image, move while training, stay in evaluation, and travel in the state dict."""
    torch.manual_seed(0)
    model, x = create(surrogates="averaged", num_clusters=4, depth=1), torch.randn(2, 3, 32, 32)
    assert not model.blocks[0].attn.surrogate_means.any()
    model(x)
    assert not model.blocks[0].attn.surrogate_means.any()
    model.train()
    model(x)
    first = model.blocks[0].attn.surrogate_means.clone()
    assert first.norm(dim=1).min() > 0
    model(torch.randn(2, 3, 32, 32))
    second = model.blocks[0].attn.surrogate_means.clone()
    assert 0 < (second - first).norm() < 0.1 * first.norm()
    model.eval()(x)
    assert torch.equal(model.state_dict()["blocks.0.attn.surrogate_means"], second)


def test_averaged_surrogates_move_once_a_step_under_checkpointing() -> None:
    """Which runs a block again in the backward."""
    x, states = torch.randn(2, 3, 32, 32), []
    for enable in (False, True):
        torch.manual_seed(0)
        model = create(surrogates="averaged", num_clusters=4).train()
        model.set_grad_checkpointing(enable)
        for _ in range(3):
            model(x).sum().backward()
        states.append(model.blocks[1].attn.surrogate_means)
    assert torch.equal(*states)


def test_token_mask_hides_tokens() -> None:
    model, x = create(), torch.randn(1, 3, 32, 32)
    mask = torch.ones(1, 16, dtype=torch.bool)
    mask[0, 12:] = False  # the last row of patches
    expected = model(x, token_mask=mask)
    x[:, :, 24:] = 9.0
    torch.testing.assert_close(model(x, token_mask=mask), expected)
    assert not torch.allclose(model(x), expected)


@pytest.mark.parametrize("include_prefix", [False, True])
@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "token"])
def test_masked_tokens_are_not_pooled(pool: str, include_prefix: bool) -> None:
    """The logits of an image padded by a row of masked tokens are those of the image without it."""
    torch.manual_seed(0)
    model = create(global_pool=pool, pool_include_prefix=include_prefix, pos_embed="none", window_size=4, reg_tokens=1)
    x = torch.randn(2, 3, 32, 32)
    mask = torch.ones(2, 16, dtype=torch.bool)
    mask[:, 12:] = False
    expected = model(x[:, :, :24])
    torch.testing.assert_close(model(x, token_mask=mask), expected)
    torch.testing.assert_close(torch.jit.script(model)(x, token_mask=mask), expected)
    assert model(x, token_mask=torch.zeros_like(mask)).isfinite().all()


def test_attention_pooling_takes_no_mask() -> None:
    with pytest.raises(ValueError, match="global_pool='map'"):
        create(global_pool="map")(torch.randn(1, 3, 32, 32), token_mask=torch.ones(1, 16, dtype=torch.bool))


@pytest.mark.parametrize("patch", [8, 16])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_pyramid(patch: int, output_stride: int) -> None:
    net = timm.create_model(
        f"cast_vit_tiny_patch{patch}_pyramid_224", features_only=True, output_stride=output_stride, img_size=64,
        embed_dim=32, num_heads=2, depth=4,
    )  # fmt: skip
    reductions = [min(r, output_stride) for r in (4, 8, 16, 32)]
    assert net.feature_info.reduction() == reductions
    maps = net(torch.randn(1, 3, 64, 96))
    assert [m.shape for m in maps] == [(1, 32, 64 // r, 96 // r) for r in reductions]


def test_a_pyramid_lies_on_the_image_where_that_is_no_whole_patches() -> None:
    """Padding that the model adds is cut off the maps, which were squeezed onto the image with it."""
    net = timm.create_model(
        "cast_vit_tiny_patch16_pyramid_224", features_only=True, img_size=64, embed_dim=32, num_heads=2, depth=4
    ).eval()
    x = torch.randn(1, 3, 100, 72)
    for got, whole in zip(net(x), net(torch.nn.functional.pad(x, (0, 8, 0, 12))), strict=True):
        torch.testing.assert_close(got, whole[..., : got.shape[2], : got.shape[3]])


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"not_an_argument": 1}, TypeError, "not_an_argument"),
        ({"num_clusters": 0}, ValueError, "num_clusters to be a whole number >= 1"),
        ({"attention": "paper", "cluster_size": 0}, ValueError, "cluster_size to be a whole number >= 1"),
        ({"freeze_surrogates": True}, ValueError, "surrogates='learned'"),
        ({"assignment": "topk"}, ValueError, "mixing='joint'"),
        ({"assignment": "sa_topkk"}, ValueError, "did you mean 'sa_topk'"),
        ({"assignment": ["topk"]}, ValueError, "one per block"),
        (
            {"attn_layer": "full", "window_size": 8},
            ValueError,
            "attn_layer='cast' with window_size=8, got attn_layer='full'",
        ),
        ({"attn_layer": "none", "attention": "near_far"}, ValueError, "leave one of them out"),
        ({"attn_layer": "full", "learned_scale": True}, ValueError, "attn_layer='cast' with learned_scale=True"),
        ({"attn_layer": "full", "rope_in_routing": False}, ValueError, "attn_layer='cast' with rope_in_routing=False"),
        ({"stem": "convs"}, ValueError, "did you mean 'conv'"),
        ({"stem": "conv", "patch_size": 6}, ValueError, "power of two"),
        ({"patch_drop_rate": 0.5}, ValueError, "patch_drop_rate"),
        ({"embed_dim": 30, "use_rot_pos_emb": True}, ValueError, "divisible by 4"),
    ],
)
def test_bad_arguments(kwargs: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        create(**kwargs)


@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (3, 32, 32)])
def test_wrong_channels_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected images \(B, 3, height, width\), got \(.*in_chans"):
        create()(torch.randn(*shape))


def test_integer_images_are_named() -> None:
    with pytest.raises(TypeError, match="normalise"):
        create()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_attention_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="token_mask"):
        create()(torch.randn(1, 3, 32, 32), attn_mask=torch.zeros(17, 17))


MODELS = {
    "near and far": {}, "paper": {"attention": "paper"}, "blocks": {"attention": "paper", "assignment": "blocks"},
    "rotary": {"use_rot_pos_emb": True, "pos_embed": "none", "local_branch": True}, "full": {"attn_layer": "full"},
    "averaged": {"surrogates": "averaged"},
}  # fmt: skip


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("kwargs", MODELS.values(), ids=MODELS)
def test_an_empty_batch_gives_an_empty_result(kwargs: dict[str, object], is_training: bool) -> None:
    model, x = create(**kwargs).train(is_training), torch.randn(0, 3, 40, 24)
    out = model(x)
    assert out.shape == (0, 3)
    out.sum().backward()
    maps = model.forward_intermediates(x, intermediates_only=True)
    assert [feature.shape for feature in maps] == [(0, 32, 5, 3)] * 2
    arguments = {key: value for key, value in {**TINY, **kwargs}.items() if key != "num_classes"}
    for head in castvision.heads.__all__:
        segmenter = create_segmenter("cast_vit_tiny_patch16_224", 2, head=head, model_kwargs=arguments).eval()
        assert segmenter(x).shape == (0, 2, 40, 24)
        assert segmenter(x, torch.ones(0, 40, 24, dtype=torch.bool)).shape == (0, 2, 40, 24)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kwargs", MODELS.values(), ids=MODELS)
def test_a_trace_gives_the_models_numbers_or_an_error(kwargs: dict[str, object]) -> None:
    model, x = create(**kwargs), torch.randn(2, 3, 32, 32)
    traced = torch.jit.trace(model, x, check_trace=False)
    torch.testing.assert_close(traced(x), model(x))
    for size in ((64, 32), (32, 64), (16, 16), (33, 32), (64, 64)):
        with pytest.raises(RuntimeError, match="expanded size"):
            traced(torch.randn(2, 3, *size))
