from __future__ import annotations

import gzip
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.fidelity import scenes
from benchmarks.fidelity.heads import main
from benchmarks.fidelity.probes import fit_head
from benchmarks.fidelity.report import make_saliency_table, make_scene_table
from benchmarks.fidelity.scenes import Scene, mark_boundaries, mean_iou, read_brain, read_lobes, read_nuclei

BACKBONE = SimpleNamespace(patch=14, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def test_boundaries_by_hand():
    instances = np.zeros((7, 12), np.int64)
    instances[1:6, 1:6], instances[1:6, 6:11] = 1, 2  # two that touch
    assert mark_boundaries(instances, width=1).tolist() == [
        [0] * 12,
        [0] + [2] * 10 + [0],
        *[[0, 2, 1, 1, 1, 2, 2, 1, 1, 1, 2, 0]] * 3,
        [0] + [2] * 10 + [0],
        [0] * 12,
    ]
    assert (mark_boundaries(np.ones((4, 4), np.int64)) == 1).all()  # the image's edge is none


def test_nuclei_are_their_own_pixels_and_parts_are_apart(tmp_path):
    mask = np.zeros((512, 512), np.uint16)
    mask[20:30, 300:310] = 9
    pixels = np.arange(512 * 512, dtype=np.uint16).reshape(512, 512) % 251
    Image.fromarray(pixels).save(tmp_path / "img2d.tif")
    Image.fromarray(mask).save(tmp_path / "mask2d.tif")
    scene = read_nuclei(tmp_path, BACKBONE)
    assert scene.images[0].shape == (3, 504, 504)
    low, high = np.percentile(pixels, (1, 99.8))
    expected = (torch.from_numpy(pixels[:504, :504].astype(np.float32)) - low) / (high - low)
    torch.testing.assert_close(scene.images[0][0], expected.clip(0, 1), check_dtype=False)
    assert scene.truth[0, 1, 21].reshape(7, 7)[3:, 3:].tolist() == [[2] * 4, *[[2, 1, 1, 1]] * 3]
    assert scene.truth.count_nonzero() == 25
    trained, held = (each[0].any(0).nonzero().flatten().tolist() for each in (scene.trained, scene.held))
    assert (trained, held) == (list(range(16)), list(range(20, 36)))
    Image.fromarray(mask[:400]).save(tmp_path / "mask2d.tif")
    with pytest.raises(ValueError, match="512 x 512"):
        read_nuclei(tmp_path, BACKBONE)


def _write_volume(path, volume, kind=2):
    header = bytearray(352)
    struct.pack_into("<8h", header, 40, 3, *volume.shape[::-1], 1, 1, 1, 1)
    struct.pack_into("<h", header, 70, kind)
    struct.pack_into("<f", header, 108, 352.0)
    header[344:347] = b"n+1"
    path.write_bytes(gzip.compress(bytes(header) + volume.tobytes(), 1))


def test_slices_of_a_brain_stand_upright_with_the_lobes_of_the_atlas(tmp_path):
    volume, atlas = np.zeros((2, 181, 217, 181), np.uint8)
    volume[40, 200:, :], atlas[40, 200:, :] = 255, 7  # in front, which is the picture's top
    _write_volume(tmp_path / "ch2.nii.gz", volume)
    _write_volume(tmp_path / "aal.nii.gz", atlas)
    (tmp_path / "aal.nii.txt").write_text("1 Precentral_L 2001\n7 Frontal_Mid_L 2201\n91 Cerebelum_Crus1_L 9001\n")
    scene = read_brain(tmp_path, BACKBONE)
    assert (len(scene.images), scene.images[0].shape, scene.classes) == (7, (3, 504, 420), 9)
    assert scene.trained.flatten(1).all(1).tolist() == [True] * 4 + [False] * 3
    assert torch.equal(scene.held, ~scene.trained)
    assert [int(each.count_nonzero()) > 0 for each in scene.truth] == [False] * 4 + [True, False, False]
    assert scene.truth[4, 0].unique().tolist() == [1]
    assert scene.truth[4, 4:].unique().tolist() == [0]
    assert scene.images[4][:, :14].min() > 0.9
    assert scene.images[4][:, 100:].max() < 0.1
    _write_volume(tmp_path / "ch2.nii.gz", volume, kind=4)
    with pytest.raises(ValueError, match="got type 4"):
        read_brain(tmp_path, BACKBONE)


def test_lobes_are_the_thousands_of_the_codes(tmp_path):
    (tmp_path / "a.txt").write_text("31 Cingulum_Ant_L 4001\n116 Vermis_10 9170\n\n")
    lobes = read_lobes(tmp_path / "a.txt")
    assert (lobes[31], lobes[116], int(lobes.sum())) == (3, 8, 11)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_heads_learn_from_some_tokens_and_are_scored_on_others(kind):
    torch.manual_seed(0)
    truth = torch.randint(0, 3, (1, 8, 30, 1)).expand(-1, -1, -1, 4)
    patches = torch.randn(1, 8, 30, 6) * 0.1
    patches[..., :3] += torch.nn.functional.one_hot(truth[..., 0], 3)
    trained = torch.zeros(1, 8, 30, dtype=torch.bool)
    trained[:, :, :15] = True
    scene = Scene("a", [], truth, trained, ~trained, 3)
    head = fit_head(patches[trained], truth[trained], kind, 3, steps=100)
    assert head(patches[trained]).shape == (120, 3, 4)
    assert mean_iou(head, patches, scene) > 0.95
    noise = torch.where(trained[..., None], patches, torch.randn_like(patches))
    assert mean_iou(head, noise, scene) < 0.5


def test_each_class_counts_as_much_and_absent_ones_not():
    truth = torch.tensor([0, 0, 0, 1]).reshape(1, 1, 4, 1)
    all_held = torch.ones(1, 1, 4, dtype=torch.bool)
    scene = Scene("a", [], truth, ~all_held, all_held, 3)
    always_0 = torch.nn.Unflatten(1, (3, 1))
    patches = torch.tensor([1.0, 0.0, 0.0]).expand(1, 1, 4, 3)
    assert mean_iou(always_0, patches, scene) == pytest.approx((3 / 4 + 0) / 2)


def test_scores_of_a_scene_go_on_where_they_stopped(monkeypatch):
    truth = torch.randint(0, 2, (1, 2, 6, 1))
    trained = torch.arange(6).expand(1, 2, 6) < 3
    scene = Scene("a", [torch.zeros(3, 4, 4)], truth, trained, ~trained, 2)
    asked = []

    def extract(backbone, image, setting, *, with_blocks):
        asked.append(setting.name)
        return SimpleNamespace(patches=torch.randn(2, 6, 4))

    monkeypatch.setattr("benchmarks.fidelity.features.extract", extract)
    rows = list(scenes.score_scene(BACKBONE, scene, [scenes.FULL, scenes.Setting("other")], 2))
    assert asked == ["full attention", "other"]
    assert [(row["scene"], row["setting"], row["seeds"]) for row in rows] == [("a", each, 2) for each in asked]
    assert rows[0]["own"] == rows[0]["full"]
    assert (rows[0]["unexplained"], rows[1]["unexplained"] > 0) == (0, True)
    assert list(scenes.score_scene(BACKBONE, scene, [], 2)) == []


def test_wrong_arguments_are_one_line(tmp_path, capsys):
    assert main(["--nuclei", str(tmp_path), "--seeds", "0"]) == 2
    assert capsys.readouterr().err == "benchmark heads: expected --seeds of at least 1, got 0\n"


def test_tables_of_heads_and_maps():
    row = {"scene": "nuclei", "seeds": 3, "setting": "b", "own": {"linear": 0.5, "mlp": 0.6}, "unexplained": 0.25}
    other = {**row, "scene": "brain", "seeds": 1, "setting": "a"}
    rows = [{**each, "full": {"linear": 0.1, "mlp": 0.2}} for each in (row, other)]
    assert make_scene_table(rows).splitlines() == [
        "| | nuclei, 3 seeds: own, full's (unexplained) | brain, 1 seed: own, full's (unexplained) |",
        "|---|---|---|",
        "| b | 0.500/0.600, 0.100/0.200 (0.250) | – |",
        "| a | – | 0.500/0.600, 0.100/0.200 (0.250) |",
    ]
    map_row = {"image": "Aqua", "size": 2044, "setting": "b", "difference": 0.01, "iou": 0.9}
    assert make_saliency_table([{**map_row, "setting": "full attention"}, map_row]).splitlines() == [
        "| | Aqua, 2,044 px |", "|---|---|", "| b | 0.010 / 0.90 |",
    ]  # fmt: skip
    assert make_scene_table([]) == ""
