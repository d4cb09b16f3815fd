from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from timm.utils import ModelEmaV3
from torch.optim.swa_utils import AveragedModel

from castvision.inference.predictor import load_model
from castvision.models.checkpoint import freeze, initialize_from
from castvision.models.convert import is_converted, revert
from castvision.models.recipe import InputFormat, Recipe, build, load, save
from castvision.models.segmenter import unwrap
from castvision.training import ClassificationTask
from castvision.training.optim import parameter_groups

ATTO = "cast_vit_atto_patch4_32"
SEEN = InputFormat(1, (32, 24), (0.5,), (0.25,), keeps_units=True)
SEGMENTER = Recipe(
    "segmentation", ATTO, 3, ("ground", "path", "dot"), {"depth": 2}, "UpsamplingHead", {"token_channels": 4},
    out_indices=(1,), context_size=(16, 24), input=SEEN,
)  # fmt: skip
MAPPED = replace(SEGMENTER, label_map={"0": 0, "255": 1, "#ff0000": "ignore"})
CLASSIFIER = Recipe("classification", ATTO, 2, ("no", "yes"), {"depth": 1}, input=SEEN)
FIRST = {
    "format": 1, "task": "segmentation", "model_name": ATTO, "model_kwargs": {"depth": 2}, "head": "UpsamplingHead",
    "head_kwargs": {"token_channels": 4}, "out_indices": None, "num_classes": 3, "class_names": ["a", "b", "c"],
    "in_chans": 1, "img_size": [32, 32], "mean": [0.5], "std": [0.25],
}  # fmt: skip


@pytest.mark.parametrize("recipe", [SEGMENTER, MAPPED, CLASSIFIER])
def test_it_comes_back_from_plain_values(recipe):
    facts = json.loads(json.dumps(recipe.to_dict()))
    assert Recipe.from_dict(facts) == recipe
    assert "input" not in facts and facts["img_size"] == [32, 24]


def test_the_oldest_checkpoints_say_nothing_of_context_and_units():
    recipe = Recipe.from_dict(FIRST)
    assert recipe.context_size is None and recipe.label_map is None
    assert recipe.input == InputFormat(1, (32, 32), (0.5,), (0.25,), keeps_units=False)
    assert isinstance(build(recipe), torch.nn.Module)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "got colour unknown"),
        ({"mean": None}, "got others: 'NoneType'"),
        ({"img_size": [1, 2, 3]}, "got others: too many values"),
        ({"label_map": [0, 255]}, "got others: 'list'"),
        ({"task": "detection"}, "expected task in .*'multilabel'.*got 'detection'"),
        ({"format": 2}, "format 1, got format 2"),
    ],
)
def test_facts_that_cannot_be_used(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        Recipe.from_dict({**FIRST, **change})
    assert "\n" not in str(caught.value)


def test_facts_that_are_missing(tmp_path):
    facts = {key: value for key, value in FIRST.items() if key not in ("mean", "img_size")}
    with pytest.raises(ValueError, match="got img_size, mean missing"):
        Recipe.from_dict(facts)
    save(tmp_path / "a.ckpt", replace(CLASSIFIER, input=None), build(CLASSIFIER))
    assert load(tmp_path / "a.ckpt")[0].input is None  # trained with loaders that say nothing of their images
    with pytest.raises(ValueError, match=r"says how its images were normalised, got .*a\.ckpt"):
        load_model(tmp_path / "a.ckpt")


@pytest.mark.parametrize("recipe", [SEGMENTER, MAPPED, CLASSIFIER, replace(CLASSIFIER, task="multilabel")])
def test_saved_and_loaded(tmp_path, recipe):
    recipe = replace(recipe, model_kwargs={**recipe.model_kwargs, "use_rot_pos_emb": True, "pos_embed": "none"})
    model = build(recipe)
    save(tmp_path / "a.ckpt", recipe, model)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    again, loaded = load(tmp_path / "a.ckpt")
    assert again == recipe
    assert torch.equal(torch.get_rng_state(), state)
    assert (again.task, again.class_names, again.input) == (recipe.task, recipe.class_names, SEEN)
    own = model.state_dict()
    assert own.keys() == loaded.state_dict().keys()
    assert all(torch.equal(value, own[key]) for key, value in loaded.state_dict().items())


@pytest.mark.parametrize("wrap", [AveragedModel, ModelEmaV3, torch.nn.DataParallel])
def test_what_wraps_a_model_is_not_saved(tmp_path, wrap):
    """The counter of averages made a file that nobody could read."""
    model = build(CLASSIFIER)
    save(tmp_path / "a.ckpt", CLASSIFIER, wrap(model))
    weights = load(tmp_path / "a.ckpt")[1].state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_what_the_recipe_does_not_build_is_not_saved(tmp_path):
    """A whole task's names have a prefix more; the file it wrote could not be read."""
    task = ClassificationTask.from_recipe(CLASSIFIER)
    for wrong in (task, build(replace(CLASSIFIER, num_classes=3, class_names=()))):
        with pytest.raises(ValueError, match=r"expected the model of the recipe \(of a task, task.model\), got a"):
            save(tmp_path / "a.ckpt", CLASSIFIER, wrong)
    assert not [*tmp_path.iterdir()]
    save(tmp_path / "a.ckpt", CLASSIFIER, task.model)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "gone.ckpt")


def test_the_network_below_its_wrappers():
    segmenter = build(replace(SEGMENTER, context_size=None))
    assert unwrap(segmenter) is segmenter.backbone
    assert unwrap(torch.nn.DataParallel(segmenter)) is segmenter.backbone
    averaged = ModelEmaV3(segmenter)
    assert unwrap(averaged) is averaged.module.backbone
    pyramid = build(
        Recipe("segmentation", "cast_vit_tiny_patch16_pyramid_224", 2, model_kwargs={"features_only": True, "depth": 4},
               head="LinearHead")
    )  # fmt: skip
    assert unwrap(pyramid) is unwrap(pyramid.backbone) is pyramid.backbone.model
    classifier = build(CLASSIFIER)
    assert unwrap(classifier) is classifier


def test_a_misspelt_argument_of_our_backbones_gets_the_nearest():
    recipe = Recipe("classification", ATTO, 2, model_kwargs={"window_sise": 4})
    with pytest.raises(ValueError, match="did you mean 'window_size'"):
        build(recipe)


SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 4, "img_size": 16}
ANY_VIT = [
    Recipe("classification", "vit_tiny_patch16_224.augreg_in21k_ft_in1k", 2, ("no", "yes"), SMALL, input=SEEN),
    Recipe("segmentation", "vit_small_patch16_dinov3", 2, ("no", "yes"), SMALL, "LinearHead", input=SEEN),
]


@pytest.mark.parametrize("recipe", ANY_VIT)
def test_attention_converts_any_vit_and_the_checkpoint_remembers(tmp_path, recipe):
    options = {"attention": "near_far", "num_clusters": 3, "anchors": 2, "blocks": [1]}
    recipe = replace(recipe, model_kwargs={**recipe.model_kwargs, **options})
    model = build(recipe).eval()
    save(tmp_path / "a.ckpt", recipe, model)
    again, loaded = load(tmp_path / "a.ckpt")
    assert again == recipe and is_converted(unwrap(loaded))
    first, second = (block.attn.options for block in unwrap(loaded).blocks)
    assert first is None and (second.num_clusters, second.anchors) == (3, 2)
    image = torch.randn(1, 3, 24, 40)
    torch.testing.assert_close(loaded.eval()(image), model(image))


@pytest.mark.parametrize("recipe", ANY_VIT)
def test_a_baseline_with_full_attention_takes_any_size_too(recipe):
    models = [
        build(replace(recipe, model_kwargs={**SMALL, **more})).eval()
        for more in ({"attention": "full"}, {"dynamic_img_size": True})
    ]
    models[1].load_state_dict(models[0].state_dict())
    image = torch.randn(1, 3, 24, 40)
    torch.testing.assert_close(models[0](image), models[1](image))


def test_freezing_and_layer_decay_of_a_converted_model_are_those_of_the_original(tmp_path):
    recipe = ANY_VIT[0]
    model = build(replace(recipe, model_kwargs={**SMALL, "attention": "near_far"}))
    torch.save(build(recipe).state_dict(), tmp_path / "weights.pth")
    assert initialize_from(model, tmp_path / "weights.pth").left == ()
    groups = parameter_groups(model, weight_decay=0.1, layer_decay=0.5)
    assert len({group["lr_scale"] for group in groups}) == 4  # stem, two blocks, head
    frozen = freeze(model, ["patch_embed", "blocks.0"])
    revert(model)
    assert frozen == sorted(name for name, p in model.named_parameters() if not p.requires_grad)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("vit_tiny_patch16_224", {"anchors": 3}, "expected attention='near_far' beside anchors"),
        ("vit_tiny_patch16_224", {"attention": "near"}, "expected attention to be one of near_far, full"),
        ("swin_tiny_patch4_window7_224", {"attention": "near_far"}, "relative position"),
        ("resnet10t", {"attention": "full"}, "none of the families"),
    ],
)
def test_attention_that_does_not_fit_is_one_line(name, kwargs, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(Recipe("classification", name, 2, model_kwargs=kwargs))
    assert "\n" not in str(caught.value)
