"""The backbone: timm's contract in its parts that timm's own suite does not ask of third parties, and our options."""

from __future__ import annotations

import pytest
import timm
import torch

import castvision
from castvision.layers import CastAttention
from castvision.models import checkpoint_filter_fn, cluster_maps

assert castvision.__version__
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}


def create(**kwargs: object) -> torch.nn.Module:
    return timm.create_model("cast_vit_tiny_patch16_224", **{**TINY, **kwargs}).eval()


def test_plain_vit_with_one_cluster_is_the_plain_vit() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", **TINY).eval()
    cast = create(num_clusters=1)
    cast.load_state_dict(checkpoint_filter_fn(vit.state_dict(), cast))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(cast(x), vit(x), rtol=1e-4, atol=1e-5)


def test_a_timm_vit_takes_our_attention() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", attn_layer=CastAttention, **TINY)
    vit(torch.randn(1, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in vit.parameters())


@pytest.mark.parametrize("size", [(32, 32), (33, 71), (8, 8), (5, 100)])
@pytest.mark.parametrize("kwargs", [{}, {"cluster_size": 6}, {"use_rot_pos_emb": True, "pos_embed": "none"}], ids=str)
def test_any_size(size: tuple[int, int], kwargs: dict[str, object]) -> None:
    with torch.no_grad():
        assert create(**kwargs)(torch.randn(2, 3, *size)).shape == (2, 3)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"assignment": "topk"}, {"assignment": "random"}, {"assignment": "window"}, {"mixing": "surrogate"},
        {"assignment": ["window", "sa_topk"], "mixing": ["joint", "surrogate"]}, {"local_branch": True},
        {"activation": "laplace", "laplace_norm": True}, {"summaries": False}, {"routing_score": "linear"},
        {"learned_scale": True, "mixing": "surrogate"}, {"freeze_surrogates": True}, {"cluster_size": 5},
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


def test_checkpointing_changes_nothing() -> None:
    model, x, grads = create().train(), torch.randn(2, 3, 32, 32), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_surrogates_follow_another_number_of_clusters() -> None:
    source, target = create(num_clusters=4), create(num_clusters=7)
    target.load_state_dict(checkpoint_filter_fn(source.state_dict(), target))
    expected = source.blocks[0].attn.surrogate_tokens[:, [0, 1, 2, 3, 0, 1, 2]]
    assert torch.equal(target.blocks[0].attn.surrogate_tokens, expected)


def test_token_mask_hides_tokens() -> None:
    model, x = create(), torch.randn(1, 3, 32, 32)
    mask = torch.ones(1, 16, dtype=torch.bool)
    mask[0, 12:] = False  # the last row of patches
    expected = model(x, token_mask=mask)
    x[:, :, 24:] = 9.0
    torch.testing.assert_close(model(x, token_mask=mask), expected)
    assert not torch.allclose(model(x), expected)


def test_cluster_maps() -> None:
    maps = cluster_maps(create(assignment=["topk", "sa_topk"]), torch.randn(3, 32, 48))
    assert [m.layer for m in maps] == ["blocks.0.attn", "blocks.1.attn"]
    assert maps[1].grid_size == (4, 6) and maps[1].coverage == (0.0, 1.0, 0.0)
    assert sum(maps[0].coverage) == pytest.approx(1)
    for row, members in enumerate(maps[1].index):
        assert (maps[1].membership.flatten()[members[members < 24]] == row).all()
    assert cluster_maps(create(attn_layer="full"), torch.randn(3, 32, 32)) == []
    with pytest.raises(ValueError, match="one image"):
        cluster_maps(create(), torch.randn(2, 3, 32, 32))


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


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"not_an_argument": 1}, TypeError, "not_an_argument"),
        ({"num_clusters": 0}, ValueError, "num_clusters >= 1"),
        ({"cluster_size": 0}, ValueError, "cluster_size >= 1"),
        ({"assignment": "sa_topkk"}, ValueError, "did you mean 'sa_topk'"),
        ({"assignment": ["topk"]}, ValueError, "one per block"),
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
