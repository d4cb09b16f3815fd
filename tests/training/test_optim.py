from __future__ import annotations

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

from castvision.models.context import create_context_segmenter
from castvision.models.segmenter import create_segmenter
from castvision.training.optim import BudgetSchedule, Schedule, apply_lr_scale, groups_of, parameter_groups

TINY_VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4, "img_size": 16, "num_classes": 2}


def _vit():
    return timm.create_model("vit_tiny_patch16_224", **TINY_VIT)


def _names(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [{names[id(parameter)] for parameter in group["params"]} for group in groups]


def test_schedule_warms_up_and_ends_at_its_floor():
    schedule = Schedule(warmup=0.25, final=0.1)
    assert [round(schedule.factor(share), 4) for share in (0, 0.125, 0.25, 0.625, 1, 2)] == [0, 0.5, 1, 0.55, 0.1, 0.1]
    assert Schedule(warmup=0).factor(0) == 1


def test_schedule_refuses_nonsense():
    with pytest.raises(ValueError, match="warmup"):
        Schedule(warmup=1.5)


def test_rates_are_taken_at_the_middle_of_each_step():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = BudgetSchedule(optimizer, Schedule(warmup=0.5), lambda steps: steps / 4)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.5, 1.5, 2 * 0.853553, 2 * 0.146447], abs=1e-5)


def test_schedule_is_resumed_by_its_step():
    def make():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
        return optimizer, BudgetSchedule(optimizer, Schedule(), lambda steps: steps / 10)

    optimizer, scheduler = make()
    for _ in range(6):
        optimizer.step()
        scheduler.step()
    again, resumed = make()
    resumed.load_state_dict(scheduler.state_dict())
    again.step()
    resumed.step()
    optimizer.step()
    scheduler.step()
    assert again.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_vectors_and_named_parameters_do_not_decay():
    model = timm.create_model("cast_vit_atto_patch4_32", depth=1, attention="paper")
    groups = parameter_groups(model, 0.1)
    by_decay = {group["weight_decay"]: names for group, names in zip(groups, _names(model, groups), strict=True)}
    assert any("surrogate_tokens" in name for name in by_decay[0.0])
    assert all(parameter.ndim > 1 for name, parameter in model.named_parameters() if name in by_decay[0.1])
    assert "blocks.0.attn.qkv.weight" in by_decay[0.1]
    assert by_decay[0.0] | by_decay[0.1] == {name for name, _ in model.named_parameters()}


def test_layer_decay_acts_and_survives_the_scheduler():
    """timm stores lr_scale and torch's schedulers ignore it: the rates themselves must differ, at every step."""
    model = _vit()
    groups = parameter_groups(model, 0.1, layer_decay=0.5)
    names = _names(model, groups)
    optimizer = torch.optim.SGD(groups, lr=1.0)
    apply_lr_scale(optimizer)
    scheduler = BudgetSchedule(optimizer, Schedule(warmup=0, final=0), lambda steps: steps / 10)

    def rate(name):
        return next(group["lr"] for group, inside in zip(optimizer.param_groups, names, strict=True) if name in inside)

    for _ in range(5):
        assert rate("blocks.0.attn.qkv.weight") == pytest.approx(rate("blocks.1.attn.qkv.weight") / 2)
        assert rate("patch_embed.proj.weight") == pytest.approx(rate("blocks.0.attn.qkv.weight") / 2)
        optimizer.step()
        scheduler.step()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model(torch.randn(2, 3, 16, 16)).square().sum().backward()
    for group in optimizer.param_groups:
        group["weight_decay"] = 0
    optimizer.step()
    for name in ("blocks.0.attn.qkv.weight", "head.weight"):
        parameter = model.get_parameter(name)
        torch.testing.assert_close(before[name] - parameter, rate(name) * parameter.grad, rtol=1e-3, atol=1e-6)


def test_a_segmenters_head_keeps_the_full_rate():
    model = create_segmenter("vit_tiny_patch16_224", 2, model_kwargs=TINY_VIT | {"num_classes": 0})
    groups = parameter_groups(model, 0.1, layer_decay=0.5)
    scales = {
        name: group["lr_scale"] for group, inside in zip(groups, _names(model, groups), strict=True) for name in inside
    }
    assert scales["head.mix.weight"] == 1
    plain = _vit()
    timms = param_groups_layer_decay(plain, 0.1, no_weight_decay_list=plain.no_weight_decay(), layer_decay=0.5)
    for group, inside in zip(timms, _names(plain, timms), strict=True):
        assert all(scales[f"backbone.{name}"] == group["lr_scale"] for name in inside if "head" not in name)
    assert scales["backbone.patch_embed.proj.weight"] < scales["backbone.blocks.0.mlp.fc1.weight"] < 1
    assert set(scales) == {name for name, _ in model.named_parameters()}


def test_what_a_segmenter_has_beside_network_and_head_is_trained():
    """The embedding that says a token is of the surroundings stayed at its random start."""
    kwargs = {"depth": 1, "in_chans": 1}
    model = create_context_segmenter("cast_vit_atto_patch4_32", 2, context_size=(16, 16), model_kwargs=kwargs)
    groups = parameter_groups(model, 0.1, layer_decay=0.5)
    names = _names(model, groups)
    assert set.union(*names) == {name for name, _ in model.named_parameters()}
    assert sum(map(len, names)) == len(list(model.parameters()))
    (own,) = (group for group, inside in zip(groups, names, strict=True) if "context_embed" in inside)
    assert (own["weight_decay"], own["lr_scale"]) == (0, 1)


def test_frozen_parameters_are_left_out():
    model = _vit()
    model.patch_embed.requires_grad_(False)
    assert not any("patch_embed" in name for names in _names(model, parameter_groups(model, 0.1)) for name in names)


@pytest.mark.parametrize(("weight_decay", "layer_decay"), [(-1, 1), (0.1, 0), (0.1, 1.5)])
def test_nonsense_is_refused(weight_decay, layer_decay):
    with pytest.raises(ValueError, match="layer_decay"):
        parameter_groups(_vit(), weight_decay, layer_decay)


def test_a_longer_run_follows_the_new_schedule_from_its_first_step():
    """Half of a run of 4 steps, then on as the third step of 8; a finished one goes on, too, not at rate 0."""

    def make(total):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
        return optimizer, BudgetSchedule(optimizer, Schedule(warmup=0.0), lambda steps: steps / total)

    for done in (2, 4):
        (short, schedule), (long, again) = make(4), make(8)
        for _ in range(done):
            short.step()
            schedule.step()
        long.load_state_dict(short.state_dict())
        again.load_state_dict(schedule.state_dict())
        again.refresh()
        assert long.param_groups[0]["lr"] == pytest.approx(2.0 * Schedule(warmup=0.0).factor((done + 0.5) / 8))
        assert again.get_last_lr() == [long.param_groups[0]["lr"]]


@pytest.mark.parametrize("lr", [2.0, 0.5])
def test_a_run_that_goes_on_has_its_own_rate(lr):
    """The groups keep their proportions, which layer decay made."""

    def make(highest):
        groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate * highest} for rate in (0.25, 1.0)]
        optimizer = torch.optim.SGD(groups)
        return optimizer, BudgetSchedule(optimizer, Schedule(warmup=0.0), lambda steps: steps / 8)

    (_, before), (optimizer, schedule) = make(2.0), make(lr)
    schedule.load_state_dict(before.state_dict())
    schedule.refresh()
    assert schedule.base_lrs == [0.25 * lr, lr]
    assert optimizer.param_groups[1]["lr"] == lr * Schedule(warmup=0.0).factor(0.5 / 8)


@pytest.mark.parametrize(("decay", "betas"), [(0.05, (0.9, 0.999)), (0.3, (0.9, 0.999)), (0.05, (0.8, 0.99))])
def test_a_run_that_goes_on_has_its_own_decay_and_betas(decay, betas, caplog):
    """torch takes the checkpoint's; vectors keep none, and what has not changed is not said."""

    def run(decay, betas):
        groups = parameter_groups(torch.nn.Linear(2, 2), decay)
        optimizer = torch.optim.AdamW(groups, lr=1.0, betas=betas)
        return optimizer, BudgetSchedule(optimizer, Schedule(), lambda steps: steps / 8)

    first, schedule = run(0.05, (0.9, 0.999))
    second, resumed = run(decay, betas)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    with caplog.at_level("INFO"):
        resumed.refresh()
    assert {(group["weight_decay"], group["betas"]) for group in second.param_groups} == {(0.0, betas), (decay, betas)}
    assert ("goes on with another" in caplog.text) is ((decay, betas) != (0.05, (0.9, 0.999)))
    assert all(value is not resumed._settings for value in resumed.state_dict().values())


def test_groups_that_come_later_keep_their_rates():
    """As those of Lightning's BackboneFinetuning, also in a run that goes on with them."""

    def make(*later):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
        scheduler = BudgetSchedule(optimizer, Schedule(warmup=0), lambda steps: steps / 4)
        for rate in later:
            optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate})
        return optimizer, scheduler

    optimizer, scheduler = make(0.5)
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([2 * 0.691342, 0.5], abs=1e-5)
    again, resumed = make(0.25)
    resumed.load_state_dict(scheduler.state_dict())
    resumed.refresh()
    assert [group["lr"] for group in again.param_groups] == pytest.approx([2 * 0.691342, 0.25], abs=1e-5)


def test_a_model_that_is_frozen_wholly_is_refused():
    """As a classifier is by Lightning's BackboneFinetuning; torch told of an empty list of parameters."""
    outer = torch.nn.ModuleDict({"model": _vit().requires_grad_(False)})
    with pytest.raises(ValueError, match="expected parameters to train, got a VisionTransformer that is frozen wholly"):
        groups_of(outer, outer["model"], 0.1, 1.0)
    outer["beside"] = torch.nn.Linear(2, 2)
    assert sum(len(group["params"]) for group in groups_of(outer, outer["model"], 0.1, 1.0)) == 2
