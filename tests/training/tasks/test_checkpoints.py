"""Tasks made from their own checkpoints."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from castvision.models.recipe import InputFormat, save
from castvision.training.tasks.classification import ClassificationTask
from castvision.training.tasks.instances import InstanceTask
from castvision.training.tasks.segmentation import SegmentationTask
from tests.training.tasks.test_tasks import TINY_VIT, _classification, _segmentation


@pytest.mark.parametrize("make", [_classification, _segmentation])
def test_a_task_is_loaded_from_its_checkpoint(make, tmp_path):
    task, path = make(), tmp_path / "a.ckpt"
    seen = InputFormat(1, (16, 16), (0.5,), (0.25,))
    save(path, replace(task.recipe, class_names=("ground", "tree"), input=seen), task.model)
    loaded = type(task).load_from_checkpoint(path, weight_decay=0.2).eval()
    image = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(loaded(image), task.eval()(image), rtol=0, atol=0)
    assert (loaded.class_names, loaded.weight_decay) == (["ground", "tree"], 0.2)
    other = _segmentation if make is _classification else _classification
    with pytest.raises(ValueError, match="expected a checkpoint of a"):
        type(other()).load_from_checkpoint(path)
    for wrong in ({"strict": False}, {"weights_only": False}, {"hparams_file": "hparams.yaml"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*leave them out"):
            type(task).load_from_checkpoint(path, **wrong)


@pytest.mark.parametrize(("stored", "wanted"), [(SegmentationTask, InstanceTask), (InstanceTask, SegmentationTask)])
def test_models_with_and_without_centres_are_not_taken_for_each_other(stored, wanted, tmp_path):
    task = stored("vit_tiny_patch16_224", 2, model_kwargs=TINY_VIT)
    save(tmp_path / "a.ckpt", replace(task.recipe, input=InputFormat(1, (16, 16), (0.5,), (0.25,))), task.model)
    with pytest.raises(ValueError, match=f"centres of objects for {wanted.__name__}.*load it by {stored.__name__}"):
        wanted.load_from_checkpoint(tmp_path / "a.ckpt")


class _Rescaled(ClassificationTask):
    """A task of someone's own, with layers beside the model."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.rescale = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))

    def forward(self, image, **extras):
        return self.rescale(super().forward(image, **extras))


@pytest.mark.filterwarnings("ignore")
def test_what_a_task_has_beside_its_model_is_trained_and_loaded(tmp_path):
    torch.manual_seed(0)
    task = _Rescaled("vit_tiny_patch16_224", 2, model_kwargs=TINY_VIT)
    before = {name: value.clone() for name, value in task.rescale.state_dict().items()}
    trainer = Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(task, DataLoader([(torch.randn(4, 1, 16, 16), torch.tensor([0, 1, 1, 0]))] * 2, batch_size=None))
    after = task.rescale.state_dict()
    assert not any(torch.equal(after[name], value) for name, value in before.items())
    decays = [group["weight_decay"] for group in trainer.optimizers[0].param_groups if group["params"]]
    assert sum(value > 0 for value in decays) == 2  # of the model's matrices, and of the layer's
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = _Rescaled.load_from_checkpoint(tmp_path / "a.ckpt").eval()
    image = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(loaded(image), task.eval()(image))


@pytest.mark.parametrize("argument", [{"num_classes": 3}, {"model_name": "vit_tiny_patch16_224"}, {"head": "FpnHead"}])
def test_what_a_checkpoint_says_is_no_argument(argument, tmp_path):
    task = _segmentation()
    save(tmp_path / "a.ckpt", task.recipe, task.model)
    with pytest.raises(ValueError, match=f"expected no {next(iter(argument))} beside a checkpoint.*init_from"):
        SegmentationTask.load_from_checkpoint(tmp_path / "a.ckpt", **argument)
