from __future__ import annotations

import pytest
import torch

from castvision.models.recipe import InputFormat, Recipe, build, load, save
from castvision.models.slide_classifier import SlideClassifier


@pytest.mark.parametrize("pool", ["gated_attention", "mean"])
def test_padding_makes_no_difference_to_the_answer(pool):
    torch.manual_seed(0)
    model = SlideClassifier(pool, in_chans=6, num_classes=3, width=8, hidden=4).eval()
    bag = torch.randn(1, 5, 6)
    alone, weights = model.with_weights(bag)
    padded = torch.cat([bag, torch.zeros(1, 3, 6)], 1)
    mask = torch.arange(8)[None] < 5
    together, padded_weights = model.with_weights(padded, mask)
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(padded_weights[:, :5], weights)
    torch.testing.assert_close(model(bag), alone)


def test_the_answer_is_that_of_the_weighted_sum():
    torch.manual_seed(0)
    model = SlideClassifier(in_chans=6, num_classes=2, width=8, hidden=4).eval()
    bag = torch.randn(2, 5, 6)
    logits, weights = model.with_weights(bag)
    by_hand = torch.stack([(weights[b, :, None] * model.embed(bag[b])).sum(0) for b in range(2)])
    torch.testing.assert_close(logits, model.classifier(by_hand))


def test_a_checkpoint_brings_it_back(tmp_path):
    seen = InputFormat(6, (1, 1), (0.0,), (1.0,), mpp=0.5, encoder="some_vit")
    recipe = Recipe("slides", "gated_attention", 2, ("a", "b"), {"in_chans": 6, "width": 8}, input=seen)
    torch.manual_seed(0)
    model = build(recipe).eval()
    save(tmp_path / "best.ckpt", recipe, model)
    again, loaded = load(tmp_path / "best.ckpt")
    assert again == recipe
    bag = torch.randn(1, 4, 6)
    assert torch.equal(loaded.eval()(bag), model(bag))
    assert "encoder" not in Recipe("classification", "vit_tiny_patch16_224", 2).to_dict(), "older versions read it"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_name": "gated_atention"}, "got 'gated_atention'; did you mean 'gated_attention'"),
        ({"model_kwargs": {}}, "expected in_chans in model_kwargs"),
        ({"model_kwargs": {"in_chans": 6, "widht": 3}}, "unexpected keyword argument 'widht'"),
        ({"model_kwargs": {"in_chans": 6, "dropout": 1}}, "0 <= dropout < 1"),
        ({"num_classes": 1}, "num_classes >= 2"),
    ],
)
def test_bad_recipes_are_refused(change, message):
    facts = {"task": "slides", "model_name": "mean", "num_classes": 2, "model_kwargs": {"in_chans": 6}, **change}
    with pytest.raises(ValueError, match=message):
        build(Recipe(**facts))


def test_embeddings_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"bags \(B, tiles, 6\), got \(1, 4, 5\)"):
        SlideClassifier(in_chans=6, num_classes=2)(torch.zeros(1, 4, 5))
