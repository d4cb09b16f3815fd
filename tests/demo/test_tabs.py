"""What each tab runs, without a browser and without gradio."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
import timm
import torch

from castvision.inference.feature_model import FeatureModel
from castvision.inference.predictor import load_parts
from demo import clusters, comparison, drawing, features, segments
from demo import studio as studios
from demo.sessions import SessionStore, Stopped, sweep
from demo.studio import Studio, find_examples, load_backbone, load_segmenters, take_example, take_upload


def nothing(done, total):
    pass


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    parts = load_parts("vit_tiny_patch16_224", attention="near_far")
    return FeatureModel(parts)


@pytest.fixture
def studio(model, segmenter, photo, tmp_path):
    found = load_segmenters([str(segmenter)])
    return Studio(model, "random", found, {"cat.png": photo}, SessionStore(tmp_path))


@pytest.fixture
def session(studio):
    session = studio.store.get("page")
    take_example(studio, session, "cat.png")
    return session


def test_an_upload_is_a_copy_that_goes_with_the_next_and_with_the_page(studio, photo, tmp_path):
    session = studio.store.get("page")
    first = take_upload(studio, session, photo)
    assert (first.name, first.size) == ("cat.png", (200, 280))
    assert first.path.parent == session.folder
    assert photo.is_file()
    second = take_upload(studio, session, photo)
    assert list(session.folder.iterdir()) == [second.path]
    take_example(studio, session, "cat.png")
    assert list(session.folder.iterdir()) == []
    take_upload(studio, session, photo)
    studio.store.drop("page")
    assert not session.folder.exists()
    assert session.stop.is_set()
    assert len(studio.store) == 0
    assert photo.is_file()


@pytest.mark.parametrize(("file", "message"), [("text", "words.png"), ("cut", "cut.png"), ("five_bands", "channels")])
def test_what_is_no_photograph_is_refused_in_one_line_and_deleted(studio, file, message, request):
    session = studio.store.get("page")
    with pytest.raises(ValueError, match=message) as refused:
        photograph = take_upload(studio, session, request.getfixturevalue(file))
        session.photograph = photograph
        features.colours(studio, session, 64)
    assert "\n" not in str(refused.value)
    assert str(session.folder) not in str(refused.value)
    if file != "five_bands":  # which is an image, though none for this model
        assert session.photograph is None
        assert list(session.folder.iterdir()) == []


def test_other_files_and_examples_are_refused(studio, photo, tmp_path):
    session = studio.store.get("page")
    shutil.copy(photo, tmp_path / "cat.exe")
    with pytest.raises(ValueError, match=r"expected an image .* got 'cat\.exe'"):
        take_upload(studio, session, tmp_path / "cat.exe")
    with pytest.raises(ValueError, match=r"one of the examples cat\.png"):
        take_example(studio, session, "../cat.png")
    for call in (
        lambda: features.colours(studio, session, 64),
        lambda: clusters.find(studio, session, 64),
        lambda: segments.features_by_tiles(studio, session, 64, nothing),
        lambda: comparison.compare(studio, session, 64),
    ):
        with pytest.raises(ValueError, match="none is chosen yet"):
            call()


def test_the_oldest_page_goes_where_there_are_too_many(tmp_path):
    store = SessionStore(tmp_path, most=2)
    first, second = store.get("1"), store.get("2")
    store.get("1")
    store.get("3")
    assert len(store) == 2
    assert not second.folder.exists()
    assert store.get("1") is first


def test_what_gradio_leaves_is_swept_and_pages_are_not(tmp_path):
    page = SessionStore(tmp_path).get("1").folder / "upload.png"
    old = tmp_path / "hash" / "image.webp"
    old.parent.mkdir()
    for each in (page, old):
        each.write_bytes(b"1")
    sweep(tmp_path, 60)
    assert old.is_file()
    sweep(tmp_path, 0)
    assert page.is_file()
    assert not old.parent.exists()


def test_features_are_the_models_and_the_point_is_most_similar_to_itself(studio, session):
    with pytest.raises(ValueError, match="Show features"):
        features.heat(studio, session, (0.5, 0.5))
    picture, told = features.colours(studio, session, 160)
    assert "seen at 112 × 160, 7 × 10 tokens of 192 channels" in told
    assert picture.shape[0] / picture.shape[1] == 7 / 10
    prepared = studio.model.predictor.prepare(session.photograph.pixels, 160)
    expected = studio.model.tokens(prepared).patches[0]
    assert torch.equal(session.patches, expected)
    heat, told = features.heat(studio, session, (0.99, 0.05))
    assert "row 6, column 0" in told
    assert heat.shape == picture.shape
    with pytest.raises(ValueError, match="inside the photograph"):
        features.heat(studio, session, (1.5, 0))


def test_clusters_of_each_layer_and_weights_that_sum_to_one(studio, session):
    with pytest.raises(ValueError, match="Show clusters"):
        clusters.overlay(session, 1)
    assert "7 × 10 tokens, 12 layers" in clusters.find(studio, session, 160)
    first, told = clusters.overlay(session, 1)
    assert told.startswith("blocks.0: ")
    assert not np.array_equal(first, clusters.overlay(session, 12)[0])
    picture, listed = clusters.weights(studio, session, 3, (0.5, 0.5))
    assert picture.shape == session.photograph.picture.shape
    weights = [float(each) for each in re.findall(r"<td>(-?\d\.\d{3})</td></tr>", listed)]
    assert sum(weights) == pytest.approx(1, abs=0.01)  # each is rounded
    assert "its window" in listed
    assert session.point == (0.5, 0.5)
    with pytest.raises(ValueError, match="layer from 1 to 12, got 13"):
        clusters.overlay(session, 13)


def test_what_the_point_gives_nothing_stays_dark():
    from castvision.ops import make_options
    from castvision.visualization import ClusterMap
    from castvision.visualization.point_weights import PointShares

    membership = torch.tensor([[0, 0, 1, 1]])
    windows = torch.tensor([[0, 1, 2, 3]])
    found = ClusterMap("attn", make_options(), (1, 4), membership, windows, (1, 1), torch.tensor([2, 2]), (0, 1, 0))
    picture = np.full((100, 400, 3), 100, np.uint8)
    shown = drawing.lit(picture, found, PointShares(0.5, torch.tensor([0.5, 0.0]), 0, 0), 0, 0)
    assert (shown[50, 50] == 100).all()  # the window as it is
    assert (shown[50, 350] == 25).all()  # a cluster without weight
    assert shown[50, 150].max() > 100  # its own cluster, outside the window
    assert (shown[50, 101] == 255).all()  # the frame


def test_segments_are_those_of_prediction(studio, session, segmenter):
    from castvision.inference.tile_model import TileModel
    from castvision.inference.tiled import tiled_inference

    name = next(iter(studio.segmenters))
    labels, told, listed = segments.segment(studio, session, name, nothing)
    predictor = studio.segmenters[name]
    expected = tiled_inference(
        session.photograph.path, TileModel(predictor, 3, (0, 255)), tile=64, overlap=8, mask_nodata=True
    )
    assert np.array_equal(labels, expected.labels)
    assert f"{expected.tiles_run} tiles" in told
    assert "<b>" not in listed  # a class's name is text
    shares = [float(each) for each in re.findall(r"<td>(\d\.\d{3})</td>", listed)]
    assert sum(shares) == pytest.approx(1, abs=0.002)
    original, tinted = segments.tinted(studio, session, name, labels, 1.0)
    assert original.shape == tinted.shape
    with pytest.raises(ValueError, match="one of the segmenters"):
        segments.segment(studio, session, "other", nothing)
    with pytest.raises(ValueError, match="--segmenter CHECKPOINT"):
        segments.segmenter(Studio(studio.model, "", {}, {}, studio.store), None)


def test_a_large_image_belongs_to_its_own_tab(studio, session):
    session.photograph.size = (4000, 4000)
    with pytest.raises(ValueError, match="Big image"):
        segments.segment(studio, session, next(iter(studio.segmenters)), nothing)


def test_tiles_report_and_stop_and_leave_nothing(studio, session):
    seen = []
    picture, told = segments.features_by_tiles(studio, session, 128, lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == len(seen) == 6
    assert "13 × 18 tokens" in told
    assert picture.shape[1] / picture.shape[0] == 18 / 13
    assert list(session.folder.iterdir()) == []

    def stop(done, total):
        session.stop.set()
        session.check_stopped(done, total)

    with pytest.raises(Stopped, match="stopped after 1 of"):
        segments.features_by_tiles(studio, session, 128, stop)
    assert list(session.folder.iterdir()) == []


def test_comparison_with_itself_at_full_attention(studio, session):
    ours, theirs, told = comparison.compare(studio, session, 160)
    assert ours.shape == theirs.shape
    assert "70 tokens" in told
    twin = studio.full_twin()
    assert studio.full_twin() is twin
    shared = zip(twin.predictor.model.parameters(), studio.model.predictor.model.parameters(), strict=True)
    assert all(mine is other for mine, other in shared)
    prepared = studio.model.predictor.prepare(session.photograph.pixels, 160)
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True).eval()
    plain.load_state_dict({k: v for k, v in twin.predictor.model.state_dict().items() if not k.startswith("head.")})
    with torch.no_grad():
        expected = plain.forward_features(prepared)[0, 1:].unflatten(0, (7, 10))
    torch.testing.assert_close(twin.tokens(prepared).patches[0], expected, atol=2e-4, rtol=0)
    assert studio.model.predictor.parts.has_clusters  # it stayed as it was


def test_agreement_by_hand():
    wanted = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert comparison.agreement(wanted, wanted) == (1.0, 0.0)
    turned = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    cosine, left = comparison.agreement(turned, wanted)
    assert cosine == pytest.approx(0.5)
    assert left == pytest.approx(2.0)  # of a variance of 1, an error of 2


def test_our_own_models_have_no_full_attention_to_compare_with(studio, segmenter):
    model = FeatureModel(load_parts("cast_vit_tiny_patch16_224"))
    other = Studio(model, "", {}, {}, studio.store)
    with pytest.raises(ValueError, match="another --model"):
        other.full_twin()


def test_models_without_weights_here_are_called_random(monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(studios, "load_feature_model", refuse)
    model, told = load_backbone("vit_tiny_patch16_224")
    assert told == "vit_tiny_patch16_224, random weights: what it shows means nothing"
    assert model.predictor.parts.has_clusters
    with pytest.raises(ConnectionError):
        load_backbone("vit_tiny_patch16_224", "given.safetensors")


def test_weights_of_a_checkpoint(segmenter, tmp_path):
    model, told = load_backbone(str(segmenter))
    assert "random" not in told
    assert model.channels > 0
    with pytest.raises(ValueError, match="segmenter"):
        load_segmenters([save_classifier(tmp_path)])


def save_classifier(folder):
    model = timm.create_model("cast_vit_atto_patch4_32", num_classes=2, depth=1, in_chans=3)
    recipe = {
        "format": 1, "task": "classification", "model_name": "cast_vit_atto_patch4_32",
        "model_kwargs": {"depth": 1, "in_chans": 3}, "head": None, "head_kwargs": {}, "out_indices": None,
        "num_classes": 2, "class_names": ["a", "b"], "in_chans": 3, "img_size": [32, 32], "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }  # fmt: skip
    weights = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"castvision": recipe, "state_dict": weights}, folder / "best.ckpt")
    return str(folder / "best.ckpt")


def test_examples_are_found(photo):
    assert find_examples([str(photo)]) == {"cat.png": photo}
    assert all(path.is_file() for path in find_examples([]).values())
