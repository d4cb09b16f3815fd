from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

from castvision.models.checkpoint import freeze, initialize_from, load_state_dict
from castvision.models.segmenter import create_segmenter

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
