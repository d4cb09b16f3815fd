from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch

from castvision.inference.predictor import load_model
from castvision.models.context import create_context_segmenter
from castvision.models.segmenter import create_segmenter

ATTO = "cast_vit_atto_patch4_32"
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (32, 32, 1), dtype=np.uint8)
PHOTO = RNG.integers(0, 256, (50, 70, 3), dtype=np.uint8)


def facts(**change):
    return {
        "format": 1,
        "task": "segmentation",
        "model_name": ATTO,
        "model_kwargs": {"depth": 2},
        "head": "UpsamplingHead",
        "head_kwargs": {"token_channels": 4},
        "out_indices": None,
        "num_classes": 3,
        "class_names": ["background", "path", "dot"],
        "in_chans": 1,
        "img_size": [32, 32],
        "mean": [0.5],
        "std": [0.25],
        **change,
    }


def save_checkpoint(path, model, description):
    weights = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"castvision": description, "state_dict": weights, "epoch": 1}, path)
    return path


@pytest.fixture
def segmenter():
    torch.manual_seed(1)
    return create_segmenter(ATTO, 3, model_kwargs={"depth": 2}, head_kwargs={"token_channels": 4}).eval()


@pytest.fixture
def classifier():
    torch.manual_seed(1)
    return timm.create_model(ATTO, num_classes=2, depth=2).eval()


# ---------------------------------------------------------------- names


def test_a_name_gives_an_untrained_model_with_clusters():
    predictor = load_model(ATTO)
    assert not predictor.is_trained
    assert not predictor.model.training
    assert predictor.class_names == ()
    maps = predictor.cluster_maps(predictor.prepare(GREY))
    assert [entry.layer for entry in maps] == [f"blocks.{place}.attn" for place in range(len(predictor.model.blocks))]
    with pytest.raises(ValueError, match="untrained"):
        predictor.predict(predictor.prepare(GREY))


def test_untrained_weights_follow_the_seed_and_leave_the_global_state():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, again, other = (load_model(ATTO, seed=seed).model.state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_unknown_name_and_missing_path(tmp_path):
    with pytest.raises(
        ValueError, match=r"unknown model 'cast_vit_ato_patch4_32', did you mean cast_vit_atto_patch4_32"
    ):
        load_model("cast_vit_ato_patch4_32")
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint.*gone\.ckpt"):
        load_model(tmp_path / "gone.ckpt")
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        load_model("runs/nothing")


# ---------------------------------------------------------------- checkpoints of training runs


def test_a_segmenters_checkpoint_predicts_what_the_model_does(tmp_path, segmenter):
    predictor = load_model(save_checkpoint(tmp_path / "a.ckpt", segmenter, facts()))
    assert predictor.class_names == ("background", "path", "dot")
    prepared = predictor.prepare(GREY)
    torch.testing.assert_close(prepared[0, 0], (torch.from_numpy(GREY[..., 0]) / 255 - 0.5) / 0.25)
    prediction = predictor.predict(prepared)
    with torch.no_grad():
        expected = segmenter(prepared)[0]
    assert torch.equal(prediction.mask, expected.argmax(0))
    torch.testing.assert_close(prediction.probabilities, expected.softmax(0).mean((1, 2)))
    assert [entry.layer for entry in predictor.cluster_maps(prepared)] == [
        "backbone.blocks.0.attn",
        "backbone.blocks.1.attn",
    ]


@pytest.mark.parametrize("prepare", ["prepare", "prepare_whole"])
def test_images_in_memory_are_of_the_units_of_training(tmp_path, segmenter, prepare):
    """0..255 as floats or wide integers were normalised as if they were 0..1; files of them were refused already."""
    predictor = load_model(save_checkpoint(tmp_path / "a.ckpt", segmenter, facts(keeps_units=True)))
    run = getattr(predictor, prepare)
    torch.testing.assert_close(run((GREY / 255).astype(np.float32)), run(GREY), rtol=0, atol=1e-5)
    for dtype in (np.float32, np.int64):
        with pytest.raises(ValueError, match=r"values as in training .* which stay as they are, .* in the image"):
            run(GREY.astype(dtype))
    with pytest.raises(TypeError, match=r"got a Tensor; give np\.asarray"):
        run(torch.zeros(3, 8, 8))


def test_one_image_is_predicted_at_a_time(tmp_path, segmenter):
    """Of more the first was answered for, in silence."""
    predictor = load_model(save_checkpoint(tmp_path / "a.ckpt", segmenter, facts()))
    with pytest.raises(ValueError, match=r"one image \(1, C, height, width\), got \(2, 1, 32, 32\)"):
        predictor.predict(torch.zeros(2, 1, 32, 32))


def test_cluster_maps_of_a_model_with_context_are_those_of_its_prediction(tmp_path):
    kwargs = {"depth": 1, "use_rot_pos_emb": True, "pos_embed": "none"}
    model = create_context_segmenter(ATTO, 3, context_size=(16, 24), model_kwargs=kwargs)
    description = facts(model_kwargs=kwargs, head_kwargs={}, context_size=[16, 24])
    predictor = load_model(save_checkpoint(tmp_path / "a.ckpt", model, description))
    (found,) = predictor.cluster_maps(predictor.prepare(GREY))
    assert found.grid_size == (8, 8)
    assert found.cluster_sizes.sum() == 8 * 8 + 4 * 6


def test_a_classifiers_checkpoint(tmp_path, classifier):
    description = facts(task="classification", head=None, num_classes=2, class_names=["no", "yes"])
    predictor = load_model(save_checkpoint(tmp_path / "a.ckpt", classifier, description))
    prepared = predictor.prepare(GREY)
    prediction = predictor.predict(prepared)
    with torch.no_grad():
        torch.testing.assert_close(prediction.probabilities, classifier(prepared).softmax(1)[0])
    assert prediction.mask is None
    assert predictor.input_size((320, 160)) == (32, 16)  # a classifier sees its training size


def test_a_plain_vit_baseline_is_resized_to_the_only_size_it_takes(tmp_path):
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=2, **kwargs)
    description = facts(
        task="classification",
        model_name="vit_tiny_patch16_224",
        model_kwargs=kwargs,
        head=None,
        num_classes=2,
        class_names=["no", "yes"],
        in_chans=3,
    )
    predictor = load_model(save_checkpoint(tmp_path / "a.ckpt", model, description))
    assert predictor.cluster_maps(predictor.prepare(PHOTO)) == []
    assert predictor.predict(predictor.prepare(PHOTO)).probabilities.shape == (2,)


def test_pretrained_in_model_kwargs_downloads_nothing(tmp_path, segmenter):
    description = facts(model_kwargs={"depth": 2, "pretrained": True})
    assert load_model(save_checkpoint(tmp_path / "a.ckpt", segmenter, description)).is_trained


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_kwargs": {"depth": 3}}, "another architecture.*weights differ.*missing"),
        ({"model_kwargs": {"depth": 1}}, "another architecture.*unknown to the model"),
        ({"model_kwargs": {"depth": 2, "embed_dim": 32}}, "another architecture.*in the file"),
        ({"num_classes": 4}, "another architecture"),
        ({"model_name": "cast_vit_gone"}, "unknown model 'cast_vit_gone'"),
        ({"model_kwargs": {"depht": 2}}, "depht"),
        ({"head": "NoHead"}, "NoHead"),
    ],
)
def test_a_checkpoint_that_does_not_fit(tmp_path, segmenter, change, message):
    path = save_checkpoint(tmp_path / "a.ckpt", segmenter, facts(**change))
    with pytest.raises(ValueError, match=rf"a\.ckpt.*{message}") as error:
        load_model(path)
    assert "\n" not in str(error.value)


def test_files_that_are_no_checkpoint(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "bare.pt")
    with pytest.raises(ValueError, match=r"bare\.pt.*save_for_hf"):
        load_model(tmp_path / "bare.pt")
    for name, content in (("text.ckpt", b"hello"), ("empty.ckpt", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"cannot read checkpoint.*{name}") as error:
            load_model(tmp_path / name)
        assert "\n" not in str(error.value)
    whole = (tmp_path / "bare.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cannot read checkpoint.*half\.pt"):
        load_model(tmp_path / "half.pt")


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"castvision": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match=r"cannot read checkpoint.*evil\.ckpt"):
        load_model(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()


# ---------------------------------------------------------------- folders in timm's layout


def test_a_folder_in_timms_layout(tmp_path, classifier):
    folder = tmp_path / "export"
    timm.models.save_for_hf(classifier, folder, model_args={"depth": 2}, safe_serialization=True)
    for source in (folder, f"local-dir:{folder}"):
        predictor = load_model(source)
        prepared = predictor.prepare(GREY)
        with torch.no_grad():
            expected = classifier(prepared).softmax(1)[0]
        torch.testing.assert_close(predictor.predict(prepared).probabilities, expected)
        assert predictor.class_names == ("class 0", "class 1")


def test_folders_that_do_not_fit(tmp_path, classifier):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_model(tmp_path)
    timm.models.save_for_hf(classifier, tmp_path / "a", model_args={"depth": 3}, safe_serialization=True)
    with pytest.raises(ValueError, match="cannot load a model from") as error:
        load_model(tmp_path / "a")
    assert "\n" not in str(error.value)
    config = json.loads((tmp_path / "a/config.json").read_text())
    (tmp_path / "a/config.json").write_text(json.dumps({**config, "architecture": "vit_gone"}))
    with pytest.raises(ValueError, match="vit_gone"):
        load_model(tmp_path / "a")
    (tmp_path / "a/config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot load a model from"):
        load_model(tmp_path / "a")


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("image_size", "max_size", "expected"),
    [
        ((32, 32), None, (32, 32)),
        ((33, 31), None, (32, 32)),
        ((3000, 4000), None, (192, 256)),
        ((100, 200), 100, (48, 100)),
        ((1, 5000), 64, (4, 64)),
        ((3, 2), None, (4, 4)),
    ],
)
def test_input_sizes_are_whole_patches_within_the_limit(image_size, max_size, expected):
    predictor = load_model(ATTO)
    assert predictor.input_size(image_size, max_size) == expected


def test_sizes_no_model_can_see():
    with pytest.raises(ValueError, match=r"max_size >= 4 .*got max_size=3"):
        load_model(ATTO).input_size((32, 32), 3)


def test_any_photograph_fits_grey_models_but_five_bands_do_not():
    predictor = load_model(ATTO)
    assert predictor.prepare(PHOTO).shape == (1, 1, 52, 72) or predictor.prepare(PHOTO).shape[1] == 1
    with pytest.raises(ValueError, match="got 5"):
        predictor.prepare(np.zeros((8, 8, 5), np.uint8))
