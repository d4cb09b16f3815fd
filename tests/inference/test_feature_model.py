from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

from castvision.inference.feature_model import load_feature_model
from castvision.models.convert import convert
from castvision.models.recipe import InputFormat, Recipe, build, save
from tests.inference.embedding_cases import feature_model, patch_means, small_vit

NAME = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(timm.create_model(NAME).state_dict(), path)
    return path


def test_a_name_with_weights_is_converted_and_takes_any_size(weights):
    model = load_feature_model(NAME, weights=weights)
    assert type(model.predictor.model).__name__ == "ConvertedVisionTransformer"
    assert (model.name, model.patch, model.channels, model.has_class_token) == (NAME, (16, 16), 192, True)
    found = model.tokens(torch.zeros(2, 3, 48, 80))
    assert found.patches.shape == (2, 3, 5, 192)
    assert found.class_token.shape == (2, 192)


def test_full_attention_gives_what_timm_gives(weights):
    model = load_feature_model(NAME, weights=weights, attention="full")
    original = timm.create_model(NAME, checkpoint_path=str(weights)).eval()
    torch.manual_seed(1)
    image = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        wanted = original.forward_features(image)
    found = model.tokens(image)
    torch.testing.assert_close(found.patches.flatten(1, 2), wanted[:, 1:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.class_token, wanted[:, 0], atol=1e-5, rtol=1e-4)
    near = load_feature_model(NAME, weights=weights).tokens(image)
    assert not torch.allclose(near.patches, found.patches, atol=1e-5)


def test_a_cast_model_takes_a_plain_vits_weights(weights):
    model = load_feature_model("cast_vit_tiny_patch16_224", weights=weights)
    assert model.tokens(torch.zeros(1, 3, 64, 64)).patches.shape == (1, 4, 4, 192)
    with pytest.raises(ValueError, match="no --attention for cast_vit_tiny_patch16_224"):
        load_feature_model("cast_vit_tiny_patch16_224", weights=weights, attention="full")


@pytest.mark.parametrize("task", ["classification", "segmentation"])
@pytest.mark.parametrize("attention", [None, "near_far"])
def test_a_checkpoint_remembers_its_attention_and_its_images(task, attention, tmp_path):
    kwargs = {"depth": 2, "embed_dim": 48, "num_heads": 3, **({"attention": attention} if attention else {})}
    seen = InputFormat(3, (224, 224), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), mpp=0.5, mpp_unit="microns")
    head = {"head": "LinearHead", "out_indices": None} if task == "segmentation" else {}
    recipe = Recipe(task, NAME, 2, ("a", "b"), kwargs, input=seen, **head)
    torch.manual_seed(0)
    built = build(recipe).eval()
    save(tmp_path / "best.ckpt", recipe, built)
    model = load_feature_model(str(tmp_path / "best.ckpt"))
    assert model.predictor.parts.input == seen
    options = [block.attn.options for block in model.predictor.model.blocks]
    assert [each is None for each in options] == [attention is None] * 2
    assert model.tokens(torch.zeros(1, 3, 96, 64)).patches.shape == (1, 6, 4, 48)


@pytest.mark.parametrize(
    ("name", "tokens", "has_class"),
    [
        ("vit_small_patch14_reg4_dinov2", 4 + 1, True),
        ("vit_small_patch16_dinov3", 4 + 1, True),
        ("vit_base_patch16_siglip_224", 0, False),
    ],
)
def test_other_families_have_their_prefix_tokens_taken_off(name, tokens, has_class):
    found = feature_model(convert(small_vit(name)))
    assert found.predictor.model.num_prefix_tokens == tokens
    assert found.has_class_token == has_class
    side = found.patch[0]
    out = found.tokens(torch.zeros(1, 3, 2 * side, 4 * side))
    assert out.patches.shape == (1, 2, 4, 48)
    assert (out.class_token is not None) == has_class


@pytest.mark.parametrize("layer", ["full", "none"])
def test_a_baseline_and_a_control_of_ours_embed_too(layer, tmp_path):
    recipe = Recipe(
        "classification", "cast_vit_tiny_patch16_224", 2, ("a", "b"),
        {"depth": 1, "embed_dim": 48, "num_heads": 3, "attn_layer": layer},
        input=InputFormat(3, (32, 32), (0.5,) * 3, (0.5,) * 3),
    )  # fmt: skip
    built = build(recipe)
    save(tmp_path / "best.ckpt", recipe, built)
    image = torch.randn(1, 3, 48, 80)
    found = load_feature_model(str(tmp_path / "best.ckpt")).tokens(image)
    torch.testing.assert_close(found.patches.flatten(1, 2), built.eval().forward_features(image)[:, 1:].detach())
    with pytest.raises(ValueError, match="no --attention for cast_vit_tiny_patch16_224, which has its own"):
        load_feature_model(str(tmp_path / "best.ckpt"), attention="full")


def test_half_precision_is_near():
    model = feature_model(convert(small_vit()))
    torch.manual_seed(1)
    image = torch.randn(1, 3, 32, 64)
    exact, low = model.tokens(image).patches, model.tokens(image, "bf16").patches
    assert low.dtype == torch.float32
    assert not torch.equal(exact, low)
    assert torch.nn.functional.cosine_similarity(exact, low, dim=-1).min() > 0.99


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("vit_tiny_patch16_22", {}, "unknown model 'vit_tiny_patch16_22', did you mean vit_tiny_patch16_224"),
        ("resnet18", {"own": True}, "cannot convert a ResNet"),
        ("no/such.ckpt", {}, "no such checkpoint or folder: 'no/such.ckpt'"),
        (NAME, {"weights": "missing.safetensors"}, "no such file of weights: 'missing.safetensors'; check --weights"),
        ("cast_vit_pixel_patch1_32", {}, "has no weights of its own; give --weights FILE"),
        ("cast_vit_tiny_patch16_224", {}, r"name those you want: cast_vit_tiny_patch16_224\.augreg"),
        ("vit_small_patch16_224", {"weights": True}, "checkpoint of another architecture"),
    ],
)
def test_bad_input_names_the_way_out(source, options, message, weights, tmp_path):
    options = dict(options)
    if options.pop("own", False):
        options["weights"] = tmp_path / "own.safetensors"
        save_file(timm.create_model(source, num_classes=0).state_dict(), options["weights"])
    if options.get("weights") is True:
        options["weights"] = weights
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        load_feature_model(source, **options)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("swin_tiny_patch4_window7_224", "cannot convert a SwinTransformer: it adds a bias to every pair"),
        ("beit_base_patch16_224", "cannot convert a Beit: it adds a bias to every pair"),
        ("resnet18", "cannot convert a ResNet: it is none of the families"),
        ("vit_dwee_patch16_reg1_gap_256", "their attention takes differences of two softmaxes"),
    ],
)
def test_other_families_are_refused_before_weights_are_read(name, why, weights):
    """A family that cannot be converted is named as such, whatever the weights, which may be gigabytes on the hub."""
    for where in ({"weights": weights}, {}):
        with pytest.raises(TypeError, match=why):
            load_feature_model(name, **where)


def test_weights_with_a_gap_are_refused(weights, tmp_path):
    from safetensors.torch import load_file

    state = load_file(weights)
    del state["blocks.3.mlp.fc1.weight"]
    save_file(state, tmp_path / "gap.safetensors")
    with pytest.raises(ValueError, match=r"missing are blocks\.3\.mlp\.fc1\.weight"):
        load_feature_model(NAME, weights=tmp_path / "gap.safetensors")


def test_features_that_are_no_numbers_are_an_error_and_no_gap():
    with pytest.raises(ValueError, match="expected finite features of patch_means"):
        patch_means().tokens(torch.full((1, 3, 8, 8), float("inf")))


def test_a_family_that_cannot_be_converted_is_told_before_weights_are_read(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"nothing")
    with pytest.raises(TypeError, match="cannot convert a Beit"):
        load_feature_model("beit_base_patch16_224", weights=tmp_path / "model.pth")
    with pytest.raises(TypeError, match="cannot convert a ResNet"):  # without weights, which would be fetched
        load_feature_model("resnet18", attention="full")


def test_weights_beside_a_checkpoint_are_refused(weights, classifier):
    with pytest.raises(ValueError, match="no --weights beside"):
        load_feature_model(str(classifier), weights=weights)


def test_the_stand_in_of_the_other_tests_is_a_feature_model():
    assert patch_means().tokens(torch.ones(1, 3, 8, 8)).patches.shape == (1, 2, 2, 3)
