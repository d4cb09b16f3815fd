from __future__ import annotations

import pytest
import timm
import torch
from PIL import Image
from skimage import data as photographs

from castvision.models.segmenter import create_segmenter
from tests.inference.prediction_cases import ATTO, save


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    torch.manual_seed(1)
    model = create_segmenter(ATTO, 3, head="LinearHead", model_kwargs={"depth": 2, "in_chans": 3})
    image = torch.from_numpy(photographs.astronaut()[:150, 150:260]).permute(2, 0, 1)[None] / 64 - 2
    with torch.no_grad():  # an untrained head prefers one class everywhere: these are as likely in the photograph
        for parameter in model.head.parameters():
            parameter.copy_(torch.randn_like(parameter))
        model.head.classifier.bias -= model.eval()(image).mean((0, 2, 3))
    return save(tmp_path_factory.mktemp("model") / "best.ckpt", model)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    torch.manual_seed(1)
    model = timm.create_model(ATTO, num_classes=3, depth=2, in_chans=3)
    return save(tmp_path_factory.mktemp("model") / "best.ckpt", model, task="classification")


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "astronaut.png"
    Image.fromarray(photographs.astronaut()[:150, 150:260]).save(path)
    return path
