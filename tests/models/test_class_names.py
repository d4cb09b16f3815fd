from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch

from castvision.models.class_names import (
    are_named,
    check_same_classes,
    class_names_in,
    classifier_of,
    reorder_classifier,
    stored_class_names,
)
from castvision.models.recipe import InputFormat, Recipe, build, save

SEEN = InputFormat(1, (16, 16), (0.5,), (0.25,))
TINY = {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 4, "img_size": 16, "in_chans": 1}
CLASSIFIER = Recipe("classification", "vit_tiny_patch16_224", 3, ("a", "b", "c"), TINY, input=SEEN)
SEGMENTER = replace(CLASSIFIER, task="segmentation", head="LinearHead")
RECIPES = [CLASSIFIER, replace(CLASSIFIER, task="multilabel"), SEGMENTER, replace(SEGMENTER, head="UpsamplingHead")]


@pytest.mark.parametrize("recipe", RECIPES)
def test_rows_follow_their_names_and_new_names_start_anew(tmp_path, recipe):
    torch.manual_seed(0)
    model = build(recipe)
    parameters = classifier_of(model)
    layers = 2 if recipe.head == "UpsamplingHead" else 1  # its coarse and its fine map
    assert [len(value) for value in parameters.values()] == 2 * layers * [3]
    with torch.no_grad():
        for value in parameters.values():
            value.copy_(torch.randn_like(value))
    image = torch.randn(1, 1, 16, 16)
    before = model.eval()(image)
    fresh = {name: torch.full_like(value, 0.0) for name, value in parameters.items()}
    assert reorder_classifier(model, fresh, ["a", "b", "c"], ["a", "b", "c"]) is None
    assert reorder_classifier(model, fresh, ["class 0", "class 1", "class 2"], ["c", "a", "b"]) is None
    told = reorder_classifier(model, fresh, ["a", "b", "c"], ["c", "d", "a"])
    assert "classes are a, b, c, the data's c, d, a" in told and "new for d" in told
    after = model(image)
    torch.testing.assert_close(after[:, [0, 2]], before[:, [2, 0]])
    assert (after[:, 1] == 0).all()


def test_what_cannot_be_reordered():
    model = build(CLASSIFIER)
    with pytest.raises(ValueError, match="classes in another order: b, a, a; give class_names"):
        reorder_classifier(model, {}, ["a", "b", "a"], ["b", "a", "a"])
    with pytest.raises(ValueError, match=r"a, b, c .*of other names: a, b, d"):
        reorder_classifier(torch.nn.Linear(2, 3), {}, ["a", "b", "c"], ["a", "b", "d"])


def test_names_in_files(tmp_path):
    save(tmp_path / "a.ckpt", CLASSIFIER, build(CLASSIFIER))
    assert stored_class_names(tmp_path / "a.ckpt") == ["a", "b", "c"]
    torch.save(timm.create_model("vit_tiny_patch16_224", **TINY).state_dict(), tmp_path / "b.pt")
    assert stored_class_names(tmp_path / "b.pt") is None
    (tmp_path / "c.pt").write_bytes(b"PK nothing")
    assert stored_class_names(tmp_path / "c.pt") is None
    assert class_names_in({"state_dict": {}}) is None


def test_classes_agree_by_name_and_those_without_by_number():
    assert are_named(["class 0", "roof"]) and not are_named(["class 0", "class 1"]) and not are_named(None)
    for stored, wanted in (
        (None, ["a"]),
        (["class 0", "class 1"], ["a", "b"]),
        (["a", "b"], ["a", "b"]),
        (["\u00fc"], ["u\u0308"]),
    ):
        check_same_classes(stored, wanted, "x.ckpt")
    with pytest.raises(
        ValueError, match=r"classes, ground, house \('x\.ckpt'\), got classes in another order: house, gr"
    ):
        check_same_classes(["ground", "house"], ["house", "ground"], "x.ckpt")
    with pytest.raises(ValueError, match="of other names: cat, dog"):
        check_same_classes(["ground", "house"], ["cat", "dog"], "x.ckpt")
