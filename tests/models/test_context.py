"""Tiles with the whole image beside them: where its tokens lie, and what it makes learnable."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from castvision.data import make_context
from castvision.layers import RotaryPositions
from castvision.models.context import ContextSegmenter, create_context_segmenter
from castvision.models.segmenter import create_segmenter

TINY = {"img_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_clusters": 4}


def _model(context_size=(32, 32), **changes):
    return create_context_segmenter(
        "cast_vit_atto_patch4_32", 3, context_size=context_size, model_kwargs={**TINY, **changes}
    )


def _inputs(batch=2, tile=(16, 16), context=(32, 32)):
    windows = torch.tensor([[0.25, 0.5, 0.25, 0.25], [0.0, 0.1, 0.3, 0.4]])[:batch]
    return torch.randn(batch, 1, *tile), torch.randn(batch, 1, *context), windows


def test_codes_at_the_tokens_are_the_grids():
    positions = RotaryPositions(16)
    places = torch.cartesian_prod(torch.arange(3.0), torch.arange(5.0))
    torch.testing.assert_close(positions.at(places), positions(torch.empty(1, 3, 5, 8)))


def test_a_context_that_is_the_tile_itself_lies_on_it():
    model = _model(context_size=(16, 24))
    places = model._positions((4, 6), (16, 24), torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
    assert torch.equal(places[0], torch.cartesian_prod(torch.arange(4.0), torch.arange(6.0)))


def test_places_by_hand():
    # an image of 64×128, context of 32×32 in patches of 4: a token covers 8×16 pixels; the tile's begin at (16, 32)
    places = _model()._positions((8, 8), (16, 16), torch.tensor([[0.25, 0.25, 0.25, 0.125]])).view(8, 8, 2)
    assert places[0, 0].tolist() == [(4 - 16) / 4 - 0.5, (8 - 32) / 4 - 0.5]
    assert places[7, 3].tolist() == [(60 - 16) / 4 - 0.5, (56 - 32) / 4 - 0.5]


@pytest.mark.parametrize("tile", [(16, 16), (21, 14)])
@pytest.mark.parametrize(
    "changes",
    [
        {}, {"attn_layer": "full", "num_clusters": None}, {"class_token": True}, {"attention": "paper"},
        {"assignment": "blocks"},
        {"summaries": ["none", "mean"]}, {"summaries": "none", "anchors": 2},
        {"summaries": "none", "class_token": True},
        {"summaries": "none", "neighborhood": "cluster", "assignment": "sa_topk"},
    ],
    ids=str,
)  # fmt: skip
def test_logits_have_the_tiles_size_and_every_parameter_learns(tile, changes):
    model = _model(**changes)
    image, context, window = _inputs(tile=tile)
    logits = model(image, context=context, window=window)
    assert logits.shape == (2, 3, *tile)
    logits.square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert model.context_embed.grad.abs().sum() > 0


def test_without_context_it_is_a_plain_segmenter():
    model = _model().eval()
    plain = create_segmenter("cast_vit_atto_patch4_32", 3, model_kwargs=TINY).eval()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if name != "context_embed"})
    image = torch.randn(2, 1, 20, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(image), plain(image), rtol=0, atol=0)


def test_context_and_window_count():
    model = _model().eval()
    for block in model.backbone.blocks:
        nn.init.normal_(block.attn.qkv.weight, std=0.2)  # at the start queries hardly look at keys
    image, context, window = _inputs()
    with torch.no_grad():
        logits = model(image, context=context, window=window)
        for other in ({"context": context + 1, "window": window}, {"context": context, "window": window.flip(0)}):
            assert (model(image, **other) - logits).abs().max() > 1e-4
        shared = model(image, context=context[:1], window=window)
        torch.testing.assert_close(shared[0], logits[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            shared, model(image, context=context[:1].expand(2, -1, -1, -1), window=window), rtol=1e-4, atol=1e-5
        )


def test_the_local_branch_keeps_the_grids_apart():
    attention = _model().backbone.blocks[0].attn
    nn.init.normal_(attention.local_conv.weight)
    values = torch.randn(1, 16 + 6, 2, 16)
    both = attention._local(values, [4, 4, 2, 3], None)
    torch.testing.assert_close(both[:, :16], attention._local(values[:, :16], [4, 4], None))
    torch.testing.assert_close(both[:, 16:], attention._local(values[:, 16:], [2, 3], None))


def test_masked_pixels_of_a_tile_make_no_difference():
    model = _model().eval()
    image, context, window = _inputs()
    mask = torch.ones(2, 16, 16).bool()
    mask[0, 8:] = False
    with torch.no_grad():
        first = model(image, mask, context=context, window=window)
        second = model(image.masked_fill(~mask[:, None], torch.nan), mask, context=context, window=window)
    assert torch.equal(first, second)


def test_errors_at_the_door():
    image, context, window = _inputs()
    model = _model()
    with pytest.raises(
        ValueError, match=r"context and window together, window \(2, 4\), got \(2, 1, 32, 32\) and None"
    ):
        model(image, context=context)
    with pytest.raises(ValueError, match="make_context"):
        model(image, context=context[..., :16], window=window)
    with pytest.raises(ValueError, match="pos_embed='none'"):
        _model(pos_embed="learn")
    with pytest.raises(ValueError, match="summaries='none' in all"):
        _model(summaries="none")
    with pytest.raises(ValueError, match="summaries='none' in all"):
        _model(summaries="none", neighborhood="cluster", assignment="blocks")
    with pytest.raises(ValueError, match="context_size"):
        _model(context_size=(0, 32))
    plain = create_segmenter("vit_tiny_patch16_224", 2, model_kwargs={"depth": 1})
    with pytest.raises(TypeError, match="cast_vit"):
        ContextSegmenter(plain.backbone, plain.head, context_size=(32, 32))


def _cue_elsewhere(number, generator):
    """Tiles with bright squares whose class is the sign of cues somewhere else in the image.

    The tile is one of the image's 4×4 cells, cues fill four others. Their sign is drawn by itself, so nothing in the
    tile says which class it is: 50 % is the best one can do.
    """
    tile, *cues = torch.rand(number, 16, generator=generator).topk(5).indices.unbind(1)  # different cells
    sign = torch.randint(2, (number,), generator=generator)
    pixels = 0.2 * torch.randn(number, 16, 16, 16, generator=generator)  # (number, cells, height, width)
    each = torch.arange(number)
    for cue in cues:
        pixels[each, cue] += (2.0 * sign - 1)[:, None, None]
    marks = (torch.rand(number, 4, 4, generator=generator) < 0.3).repeat_interleave(4, 1).repeat_interleave(4, 2)
    pixels[each, tile] += 3.0 * marks
    whole = pixels.view(number, 4, 4, 16, 16).transpose(2, 3).reshape(number, 1, 64, 64)
    window = torch.stack([tile // 4 / 4, tile % 4 / 4, torch.full((number,), 0.25), torch.full((number,), 0.25)], 1)
    target = marks * (1 + sign[:, None, None])
    return pixels[each, tile][:, None], make_context(whole, (32, 32)), window, target


def _far_line(number, generator):
    """Tiles whose class is the side on which a line crosses the image, far above or far below them.

    The image has 16×16 tiles, the context is 32×32; tiles lie in the image's middle half and sides are drawn first, so
    that neither a tile nor its place nor the line's says more than half of the answer.
    """
    corner = torch.randint(4, 12, (number, 2), generator=generator)  # in tiles
    side = torch.randint(2, (number,), generator=generator)
    share = torch.rand(number, generator=generator)
    above, below = corner[:, 0] * 2, 32 - corner[:, 0] * 2 - 2  # rows of the context
    row = torch.where(side == 0, share * above, 32 - below + share * below).long()
    context = 0.03 * torch.randn(number, 1, 32, 32, generator=generator)
    context[torch.arange(number), 0, row] += 6.0
    marks = (torch.rand(number, 4, 4, generator=generator) < 0.3).repeat_interleave(4, 1).repeat_interleave(4, 2)
    tiles = 0.2 * torch.randn(number, 1, 16, 16, generator=generator) + 3.0 * marks[:, None]
    window = torch.cat([corner / 16, torch.full((number, 2), 1 / 16)], 1)
    return tiles, context, window, marks * (1 + side[:, None, None])


def _accuracy_on_marks(draw, has_context, steps):
    """Train on endless tiles, then count the marked pixels of new ones."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = _model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.004)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.004, total_steps=steps, pct_start=0.2)

    def logits_and_target(number):
        tiles, context, window, target = draw(number, generator)
        return model(tiles, **({"context": context, "window": window} if has_context else {})), target

    for _ in range(steps):
        logits, target = logits_and_target(16)
        functional.cross_entropy(logits, target, weight=torch.tensor([0.1, 1.0, 1.0])).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    with torch.no_grad():
        logits, target = logits_and_target(256)
    is_mark = target > 0
    return float((logits[:, 1:].argmax(dim=1) + 1 == target)[is_mark].float().mean())


def test_context_solves_what_a_tile_alone_cannot():
    steps = 150
    assert 0.35 < _accuracy_on_marks(_cue_elsewhere, has_context=False, steps=steps) < 0.65
    assert _accuracy_on_marks(_cue_elsewhere, has_context=True, steps=steps) > 0.9


@pytest.mark.slow
def test_the_place_of_a_tile_among_its_surroundings_can_be_learned():
    assert _accuracy_on_marks(_far_line, has_context=True, steps=300) > 0.9
