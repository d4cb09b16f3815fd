from __future__ import annotations

import json
import math

import numpy as np
import pytest
import tifffile
import torch

from castvision.inference.predictor import load_model
from castvision.models.centres import CentreSegmenter, create_centre_segmenter
from castvision.models.recipe import Recipe, build
from castvision.training.tasks.instances import InstanceTask, centre_loss, centre_targets, offset_loss
from castvision_cli import main
from castvision_cli.train import main as train

ATTO = "cast_vit_atto_patch4_32"
TINY = {"depth": 1, "embed_dim": 32, "num_heads": 2, "in_chans": 1}


def test_targets_by_hand():
    objects = torch.tensor([[[4, 4, 0, 9], [4, 4, 0, 9], [0, 0, 0, 9]], [[0, 0, 0, 0]] * 3])
    heat, offsets = centre_targets(objects, sigma=2.0)
    assert heat.shape == (2, 3, 4)
    assert offsets.shape == (2, 2, 3, 4)
    first, second = ((0.5, 0.5), (1.0, 3.0))
    for y, x in np.ndindex(3, 4):
        squares = [(y - down) ** 2 + (x - across) ** 2 for down, across in (first, second)]
        assert heat[0, y, x] == pytest.approx(math.exp(-min(squares) / 8), rel=1e-5)
        wanted = {4: (0.5 - y, 0.5 - x), 9: (1.0 - y, 0.0), 0: (0.0, 0.0)}[int(objects[0, y, x])]
        assert tuple(offsets[0, :, y, x].tolist()) == pytest.approx(wanted)
    assert not heat[1].any()
    assert not offsets[1].any()


def test_losses_by_hand_leave_out_what_is_not_known():
    wanted = torch.tensor([[[0.0, 1.0], [0.5, 7.0]]])
    known = torch.tensor([[[True, True], [True, False]]])
    assert centre_loss(torch.zeros(1, 2, 2), wanted, known) == pytest.approx(1.25 / 3)
    offsets = torch.tensor([[[[1.0, -2.0], [9.0, 9.0]], [[3.0, 0.0], [9.0, 9.0]]]])
    inside = torch.tensor([[[True, True], [False, False]]])
    assert offset_loss(torch.zeros(1, 2, 2, 2), offsets, inside) == pytest.approx((4 + 2) / 2)
    for loss in (centre_loss(wanted, wanted, known & False), offset_loss(offsets, offsets, inside & False)):
        assert loss == 0


def test_the_loss_is_the_papers_sum():
    task = InstanceTask(ATTO, 2, model_kwargs=TINY, centre_sigma=3.0)
    torch.manual_seed(0)
    maps, target = torch.randn(2, 5, 8, 8), torch.randint(0, 2, (2, 8, 8))
    objects = target * torch.randint(1, 4, (2, 8, 8))
    target[0, 0] = 255
    heat, offsets = centre_targets(objects, 3.0)
    known = target != 255
    expected = torch.nn.functional.cross_entropy(maps[:, :2], target, ignore_index=255)
    expected += 200 * ((maps[:, 2] - heat) ** 2)[known].mean()
    errors = (maps[:, 3:] - offsets).abs().sum(dim=1)
    expected += 0.01 * errors[known & (objects > 0)].mean()
    torch.testing.assert_close(task.batch_loss(maps, target, {"objects": objects}), expected)
    with pytest.raises(ValueError, match="use InstanceDataModule"):
        task.batch_loss(maps, target, {})
    with pytest.raises(ValueError, match="centre_sigma=0"):
        InstanceTask(ATTO, 2, model_kwargs=TINY, centre_sigma=0)


@pytest.mark.parametrize("head", ["UpsamplingHead", "LinearHead", "FpnHead"])
def test_any_head_gives_three_maps_more_and_a_caller_the_classes(head):
    model = create_centre_segmenter(ATTO, 3, head=head, model_kwargs=TINY).eval()
    image = torch.randn(2, 1, 40, 48)
    mask = torch.ones(2, 40, 48, dtype=torch.bool)
    mask[0, 30:] = False
    with torch.inference_mode():
        everything, logits, ready = model.all_maps(image, mask), model(image, mask), model.with_centres(image, mask)
    assert everything.shape == (2, 6, 40, 48)
    torch.testing.assert_close(logits, everything[:, :3])
    torch.testing.assert_close(ready[:, :3], everything[:, :3].softmax(dim=1))
    torch.testing.assert_close(ready[:, 3:], everything[:, 3:])
    with pytest.raises(ValueError, match="num_classes >= 2"):
        create_centre_segmenter(ATTO, 1)


def test_a_recipe_remembers_and_older_ones_do_not_know():
    recipe = Recipe("segmentation", ATTO, 2, model_kwargs=TINY, head="LinearHead", centres=True)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert isinstance(build(recipe), CentreSegmenter)
    plain = Recipe("segmentation", ATTO, 2, model_kwargs=TINY, head="LinearHead").to_dict()
    assert "centres" not in plain
    assert not isinstance(build(Recipe.from_dict(plain)), CentreSegmenter)
    with pytest.raises(ValueError, match="no context_size of a model that gives centres"):
        build(Recipe("segmentation", ATTO, 2, head="LinearHead", centres=True, context_size=(32, 32)))


def squares(root, size=48):
    """Bright squares of 10 pixels, in pairs that touch."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 1), ("test", 1)):
        for kind in ("images", "objects"):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            objects = np.zeros((size, size), np.uint16)
            for index, (y, x) in enumerate([(4, 4), (4, 28), (28, 4), (28, 28)]):
                y, x = y + rng.integers(0, 6), x + rng.integers(-3, 0)
                objects[y : y + 10, x : x + 10] = 20 * index + 1
                objects[y : y + 10, x + 10 : x + 20] = 20 * index + 2
            image = (
                np.where(objects > 0, 200, 20) + np.where(objects % 20 == 2, 40, 0) + rng.integers(0, 10, objects.shape)
            )
            tifffile.imwrite(root / split / f"images/{number}.tif", image.astype(np.uint8))
            tifffile.imwrite(root / split / f"objects/{number}.tif", objects)
    return root


def test_from_masks_of_objects_to_panoptic_quality_by_the_commands(tmp_path, capsys):
    """Train, predict and measure: the few steps learn little, but every door opens."""
    root, run = squares(tmp_path / "data"), tmp_path / "run"
    flags = [
        "--model.model_name",
        ATTO,
        "--model.model_kwargs",
        json.dumps({"depth": 1, "embed_dim": 32, "num_heads": 2}),
    ]
    flags += ["--data.img_size", "32", "--data.batch_size", "2", "--data.num_workers", "0", "--trainer.max_steps", "4"]
    flags += ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--ema", "null"]
    assert train(["--config", "instances", "--data.root", str(root), "--run_dir", str(run), *flags]) == 0
    model = load_model(run / "best.ckpt")
    assert model.gives_centres
    assert model.class_names == ("background", "object")
    assert InstanceTask.load_from_checkpoint(run / "best.ckpt").recipe.centres
    image, out = root / "test/images/0.tif", tmp_path / "out"
    words = [str(image), "--model", str(run / "best.ckpt"), "--output", str(out), "--instances", "centres"]
    assert main(["predict", *words, "--tile", "48"]) == 0
    with torch.inference_mode():
        maps = model.model.with_centres(model.prepare(tifffile.imread(image)[..., None]))[0]
    record = json.loads((out / "summary.json").read_text())["images"][0]
    assert record["classes"][1]["pixels"] == (maps[:2].argmax(dim=0) == 1).sum()
    assert record["instances"]["how"] == "centres"
    for how in ("components", "watershed", "centres"):
        folder = tmp_path / how
        words = ["--model", str(run / "best.ckpt"), "--images", str(root / "test/images"), "--output", str(folder)]
        assert main(["evaluate", *words, "--instance-masks", str(root / "test/objects"), "--instances", how]) == 0
        row = json.loads((folder / "metrics.json").read_text())["classes"][1]
        assert row["matched"] + row["missed"] == 8
    words = [str(image), "--model", str(run / "best.ckpt"), "--output", str(tmp_path / "no"), "--instances", "centres"]
    assert main(["predict", *words, "--tta", "flips"]) == 2
    assert "expected --instances centres without --tta" in capsys.readouterr().err
