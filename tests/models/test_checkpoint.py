from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models import adapt_input_conv

from castvision.models.checkpoint import freeze, initialize_from, load_state_dict
from castvision.models.segmenter import create_segmenter, unwrap

TINY_VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4, "img_size": 16, "in_chans": 1}


def _vit(**changes):
    return timm.create_model("vit_tiny_patch16_224", **{**TINY_VIT, "num_classes": 5, **changes})


def _segmenter():
    return create_segmenter("vit_tiny_patch16_224", 2, model_kwargs=TINY_VIT)


@pytest.mark.parametrize("form", ["plain", "timm", "lightning", "safetensors"])
def test_every_form_of_file_is_read(tmp_path, form):
    source, target = _vit(), _vit()
    state = source.state_dict()
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pt")
    if form == "safetensors":
        save_file(state, path)
    elif form == "plain":
        torch.save(state, path)
    elif form == "timm":
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, path)
    else:
        torch.save({"state_dict": {f"model.{key}": value for key, value in state.items()}, "loops": {}}, path)
    report = initialize_from(target, path)
    assert (len(report.used), report.left, report.fresh) == (len(state), (), ())
    image = torch.randn(1, 1, 16, 16)
    torch.testing.assert_close(target.eval()(image), source.eval()(image), rtol=0, atol=0)


def test_another_number_of_classes_starts_a_new_classifier(tmp_path):
    torch.save(_vit().state_dict(), tmp_path / "weights.pt")
    report = initialize_from(_vit(num_classes=3), tmp_path / "weights.pt")
    assert report.left == ("head.weight (5, 32) → (3, 32)", "head.bias (5,) → (3,)")
    assert report.fresh == ("head.weight", "head.bias")
    assert "2 left (head.weight" in str(report)


def test_a_classifier_fills_a_segmenters_backbone_and_the_other_way_round(tmp_path):
    classifier, segmenter = _vit(), _segmenter()
    torch.save(classifier.state_dict(), tmp_path / "classifier.pt")
    report = initialize_from(segmenter, tmp_path / "classifier.pt")
    assert report.left == ("head.weight", "head.bias")
    torch.testing.assert_close(segmenter.backbone.blocks[1].mlp.fc1.weight, classifier.blocks[1].mlp.fc1.weight)
    torch.save(
        {"state_dict": {f"model.{key}": v for key, v in segmenter.state_dict().items()}}, tmp_path / "segmenter.ckpt"
    )
    fresh = _vit()
    initialize_from(fresh, tmp_path / "segmenter.ckpt")
    torch.testing.assert_close(fresh.blocks[1].mlp.fc1.weight, classifier.blocks[1].mlp.fc1.weight)


def test_position_embeddings_are_resampled(tmp_path):
    torch.save(_vit().state_dict(), tmp_path / "weights.pt")
    report = initialize_from(_vit(img_size=32), tmp_path / "weights.pt")
    assert "pos_embed" in report.used


@pytest.mark.parametrize("changes", [{"embed_dim": 64}, {"depth": 5}])
def test_another_architecture_is_refused_and_nothing_changes(tmp_path, changes):
    torch.save(_vit().state_dict(), tmp_path / "weights.pt")
    other = _vit(**changes)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(ValueError, match="another architecture") as caught:
        initialize_from(other, tmp_path / "weights.pt")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def test_resnet_weights_are_refused(tmp_path):
    torch.save(timm.create_model("resnet10t", num_classes=5).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="another architecture: 0 of"):
        initialize_from(_vit(), tmp_path / "weights.pt")


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.pt"):
        load_state_dict(tmp_path / "missing.pt")
    for name in ("torn.pt", "torn.safetensors"):
        (tmp_path / name).write_bytes(b"not weights")
        with pytest.raises(ValueError, match="damaged"):
            load_state_dict(tmp_path / name)
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match="found none in a dict"):
        load_state_dict(tmp_path / "empty.pt")


def test_code_in_a_checkpoint_never_runs(tmp_path):
    torch.save({"state_dict": {"weight": torch.zeros(1)}, "code": pytest.approx}, tmp_path / "hostile.pt")
    with pytest.raises(ValueError, match="damaged"):
        load_state_dict(tmp_path / "hostile.pt")


def test_freezing_by_pattern():
    model = _segmenter()
    frozen = freeze(model, ["backbone.patch_embed", "backbone.blocks.0.*"])
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == set(frozen)
    assert all(name.startswith(("backbone.patch_embed.", "backbone.blocks.0.")) for name in frozen)
    assert freeze(model, ["backbone"])
    with pytest.raises(ValueError, match=r"'bone\*' of freeze matches no parameter; names begin with backbone, head"):
        freeze(model, ["bone*"])
    with pytest.raises(ValueError, match="nothing to train"):
        freeze(model, ["*"])


CHANGES = [
    {}, {"classes": 5}, {"img_size": 64}, {"img_size": (64, 32)}, {"img_size": (32, 96)}, {"in_chans": 1},
    {"in_chans": 5}, {"patch_size": 8}, {"img_size": 48, "in_chans": 4, "classes": 3},
]  # fmt: skip


def _ours(kind, classes=2, attention="near_far", **changes):
    arguments = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4, "img_size": 32, "attention": attention}
    arguments |= changes
    if kind == "segmenter":
        return create_segmenter("cast_vit_tiny_patch16_224", classes, model_kwargs=arguments)
    if kind == "pyramid":
        arguments["features_only"] = True
        return create_segmenter("cast_vit_tiny_patch16_pyramid_224", classes, head="FpnHead", model_kwargs=arguments)
    return timm.create_model("cast_vit_tiny_patch16_224", num_classes=classes, **arguments)


@pytest.mark.parametrize("attention", ["near_far", "paper"])
@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.parametrize("target", ["segmenter", "pyramid", "classifier"])
@pytest.mark.parametrize("source", ["segmenter", "pyramid", "classifier"])
def test_any_model_starts_from_any_other_of_its_width(tmp_path, source, target, change, attention):
    """Another image size, patch size, number of bands or of classes: the backbone is filled, whatever holds it."""
    trained, model = _ours(source, attention=attention), _ours(target, attention=attention, **change)
    torch.save(
        {"state_dict": {f"model.{key}": value for key, value in trained.state_dict().items()}}, tmp_path / "a.ckpt"
    )
    report = initialize_from(model, tmp_path / "a.ckpt")
    ours, theirs = unwrap(model), unwrap(trained)
    torch.testing.assert_close(ours.blocks[1].mlp.fc1.weight, theirs.blocks[1].mlp.fc1.weight, rtol=0, atol=0)
    grid = list(ours.patch_embed.grid_size)
    positions = resample_abs_pos_embed(theirs.pos_embed, grid, [8, 8], theirs.num_prefix_tokens)
    torch.testing.assert_close(ours.pos_embed, positions, rtol=0, atol=0)
    if "patch_size" not in change:
        bands = change.get("in_chans", 3)
        weight = adapt_input_conv(bands, theirs.patch_embed.proj.weight)
        torch.testing.assert_close(ours.patch_embed.proj.weight, weight)
        assert any("patch_embed.proj.weight" in name for name in report.adapted) == (bands != 3)
    assert any("pos_embed" in name for name in report.adapted) == (grid != [8, 8])
    assert bool(report.adapted) == ("of them adapted" in str(report))


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 6), (2, 4), (4, 1), (3, 1), (4, 3), (2, 5)])
def test_bands_are_adapted_by_timms_rule_whatever_their_number(tmp_path, before, after):
    """Repeated in turn, scaled by the ratio; one band gets the sum. Equal bands, whole multiples: the same answer."""
    trained, model = _vit(in_chans=before), _vit(in_chans=after)
    torch.save(trained.state_dict(), tmp_path / "a.pt")
    initialize_from(model, tmp_path / "a.pt")
    old, new = trained.patch_embed.proj, model.patch_embed.proj
    if after == 1:
        torch.testing.assert_close(new.weight, old.weight.sum(dim=1, keepdim=True))
    else:
        for band in range(after):
            torch.testing.assert_close(new.weight[:, band], old.weight[:, band % before] * before / after)
    if after % before == 0:
        grey = torch.randn(2, 1, 16, 16)
        torch.testing.assert_close(new(grey.expand(-1, after, -1, -1)), old(grey.expand(-1, before, -1, -1)))


def test_positions_of_an_oblong_grid_are_read_as_they_lie(tmp_path):
    """16 positions are 2 × 8 or 4 × 4: a checkpoint of ours remembers which; without it, 2 × 5 are no square."""
    trained, model = _vit(img_size=(8, 32)), _vit(img_size=16)
    facts = {"model_kwargs": {**TINY_VIT, "img_size": (8, 32)}}
    state = {f"model.{key}": value for key, value in trained.state_dict().items()}
    torch.save({"castvision": facts, "state_dict": state}, tmp_path / "ours.ckpt")
    initialize_from(model, tmp_path / "ours.ckpt")
    expected = resample_abs_pos_embed(trained.pos_embed, [4, 4], [2, 8], 1)
    torch.testing.assert_close(model.pos_embed, expected, rtol=0, atol=0)
    torch.save(_vit(img_size=(8, 20)).state_dict(), tmp_path / "plain.pt")
    with pytest.raises(ValueError, match=r"square grid of patches .* got 10 positions; build the model with"):
        initialize_from(_vit(), tmp_path / "plain.pt")
