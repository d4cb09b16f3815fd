"""Channels of other files in another order: their names tell."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile

from castvision.data.datasets.sources import ImageSources
from castvision.data.reading import open_image
from castvision.data.reading.agreement import check_same_order
from castvision.inference.predictor import load_model
from castvision.inference.tile_model import open_for
from castvision.models.recipe import Recipe
from castvision.training import SegmentationDataModule, WindowDataModule
from castvision_cli.predict import main
from tests.inference.prediction_cases import ATTO, save

NAMES = ("blue", "green", "red")


def write(path, names=NAMES):
    """Three bands of 16 bits, described as GDAL does."""
    items = "".join(
        f'<Item name="DESCRIPTION" sample="{band}" role="description">{name}</Item>' for band, name in enumerate(names)
    )
    tags = [(42112, "s", 0, f"<GDALMetadata>{items}</GDALMetadata>", True)] if names else None
    pixels = np.random.default_rng(len(path.name)).integers(1, 60_000, (40, 40, 3), dtype=np.uint16)
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig", metadata=None, extratags=tags)
    return path


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (NAMES, None),
        (("red", "green", "blue"), "read them as bands 3,2,1"),
        (("green", "red", "blue"), "read them as bands 3,1,2"),
        ((" Red", "Green", "BLUE"), "read them as bands 3,2,1"),
        (("Blue", "Green", "Red"), None),
        (("B02", "B03", "B04"), None),  # one band has many names
        (("blue", "green", "nir"), None),
        (("red", "red", "blue"), None),
        ((), None),
    ],
)
def test_the_same_names_in_another_order(tmp_path, names, hint):
    with open_image(write(tmp_path / "a.tif", names)) as image:
        check_same_order(None, image)
        if hint is None:
            check_same_order(NAMES, image)
        else:
            with pytest.raises(ValueError, match=rf"channels blue, green, red in this order in .*a\.tif.*; {hint}"):
                check_same_order(NAMES, image)


def test_bands_are_put_in_order(tmp_path):
    path = write(tmp_path / "a.tif", ("red", "green", "blue"))
    with open_image(path, bands=[3, 2, 1]) as image:
        check_same_order(NAMES, image)
    with open_image(path, bands=[2, 3, 1]) as image, pytest.raises(ValueError, match="choose other bands"):
        check_same_order(NAMES, image)


def test_colours_of_bands_and_pretrained_weights(tmp_path):
    """Weights of timm want red, green and blue; what GDAL says of the colours of bands counts where none has a name."""
    colours = [
        f'<Item name="COLORINTERP" sample="{band}" role="colorinterp">{name}</Item>'
        for band, name in enumerate(("Blue", "Green", "Red"))
    ]
    tags = [(42112, "s", 0, f"<GDALMetadata>{''.join(colours)}</GDALMetadata>", True)]
    pixels = np.ones((40, 40, 3), np.uint8)
    tifffile.imwrite(tmp_path / "bgr.tif", pixels, photometric="minisblack", planarconfig="contig", extratags=tags)
    predictor = load_model("cast_vit_tiny_patch16_224")
    with pytest.raises(
        ValueError, match=r"red, green, blue in this order in .*got Blue, Green, Red; read them as bands 3"
    ):
        open_for(predictor, tmp_path / "bgr.tif")
    open_for(predictor, tmp_path / "bgr.tif", bands=[3, 2, 1]).close()
    open_for(predictor, write(tmp_path / "ome.tif", ("dapi", "gfp", "rfp"))).close()


def masked(root, split, name, names):
    write(root / split / f"images/{name}.tif", names)
    (root / split / "masks").mkdir(exist_ok=True)
    labels = np.random.default_rng(0).integers(0, 2, (40, 40), dtype=np.uint8)
    tifffile.imwrite(root / split / f"masks/{name}.tif", labels)


@pytest.mark.parametrize("kind", [WindowDataModule, SegmentationDataModule])
def test_training_wants_one_order_and_remembers_it(tmp_path, kind):
    for split in ("train", "val"):
        masked(tmp_path, split, split, NAMES)
    size = {"size": 32, "train_length": 16} if kind is WindowDataModule else {"img_size": 32}
    data = kind(str(tmp_path), class_names=["a", "b"], num_workers=0, **size)
    assert data.description()["channel_names"] == list(NAMES)
    masked(tmp_path, "val", "other", NAMES[::-1])
    with pytest.raises(ValueError, match=r"blue, green, red in this order in .*other\.tif', got red, green, blue"):
        kind(str(tmp_path), class_names=["a", "b"], num_workers=0, **size)


def test_the_first_image_speaks_for_all(tmp_path):
    pairs = [(write(tmp_path / "a.tif", ()), None), (write(tmp_path / "b.tif"), None)]
    ImageSources(pairs)
    with pytest.raises(ValueError, match=r"red, green, blue in this order in .*b\.tif"):
        ImageSources([(write(tmp_path / "c.tif", NAMES[::-1]), None), pairs[1]])


def test_prediction_knows_the_order_of_training(tmp_path, segmenter, capsys):
    named = save(tmp_path / "named.ckpt", load_model(str(segmenter)).model, channel_names=list(NAMES))
    predictor = load_model(str(named))
    assert predictor.parts.input.channel_names == NAMES
    image, other = write(tmp_path / "image.tif"), write(tmp_path / "other.tif", NAMES[::-1])
    open_for(predictor, image).close()
    with pytest.raises(ValueError, match="read them as bands 3,2,1"):
        open_for(predictor, other)
    open_for(predictor, other, bands=[3, 2, 1]).close()
    out = tmp_path / "out"
    assert main([str(other), "--model", str(named), "--output", str(out)]) == 2
    assert "got red, green, blue; read them as bands 3,2,1" in capsys.readouterr().err
    assert not out.exists()
    assert main([str(other), "--model", str(named), "--output", str(out), "--bands", "3,2,1", "--tile", "32"]) == 0


def test_checkpoints_without_names_are_read_and_written_as_before():
    facts = {
        "task": "segmentation", "model_name": ATTO, "model_kwargs": {}, "num_classes": 2, "class_names": ["a", "b"],
        "head": "LinearHead", "head_kwargs": {}, "out_indices": None, "in_chans": 3, "img_size": [32, 32],
        "mean": [0.5], "std": [0.5],
    }  # fmt: skip
    recipe = Recipe.from_dict(facts)
    assert recipe.input is not None and recipe.input.channel_names is None
    assert "channel_names" not in recipe.to_dict()
    named = Recipe.from_dict({**facts, "channel_names": list(NAMES)})
    assert json.loads(json.dumps(named.to_dict()))["channel_names"] == list(NAMES)
    assert Recipe.from_dict(named.to_dict()) == named
