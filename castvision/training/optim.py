"""Parameter groups, layer-wise learning-rate decay that acts, and the learning rate over the run."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch.optim.lr_scheduler import LambdaLR

from castvision.models.segmenter import Segmenter, unwrap

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from torch import nn
    from torch.optim import Optimizer

logger = logging.getLogger(__name__)

_SETTINGS = ("weight_decay", "betas", "momentum")
"""Of an optimiser that a checkpoint brings along and a run that goes on may change, beside its rate."""


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a half cosine, over the run's budget.

    The budget is the number of steps or ``max_time``, whichever is used up first: a run cut short by the clock still
    ends at ``final``.

    Args:
        warmup: Share of the budget spent warming up, 0 to 1.
        final: Last learning rate as a share of the highest.

    Raises:
        ValueError: A share outside [0, 1].
    """

    warmup: float = 0.1
    final: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.warmup < 1 and 0 <= self.final <= 1):
            raise ValueError(f"expected 0 <= warmup < 1 and 0 <= final <= 1, got {self.warmup=}, {self.final=}")

    def factor(self, progress: float) -> float:
        """The learning rate as a share of the highest.

        Args:
            progress: Share of the budget used, 0 to 1; more counts as 1.
        """
        progress = min(max(progress, 0.0), 1.0)
        if progress < self.warmup:
            return progress / self.warmup
        along = (progress - self.warmup) / (1 - self.warmup)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * along))


class BudgetSchedule(LambdaLR):
    """A torch scheduler that asks how much of the budget is used; each step's rate is that of its middle.

    Neither the first nor the last step is wasted at rate 0 then. Groups that an optimiser is given later, such as those
    of Lightning's ``BackboneFinetuning``, keep the rates that they come with.

    Args:
        optimizer: Its groups' current rates are the highest ones.
        schedule: The curve.
        progress: Given the number of steps taken, the share of the budget used.
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule, progress: Callable[[float], float]) -> None:
        self._settings = [
            {name: group[name] for name in _SETTINGS if name in group} for group in optimizer.param_groups
        ]
        super().__init__(optimizer, lambda step: schedule.factor(progress(step + 0.5)))

    def get_lr(self) -> list[Any]:
        """The rates of the next step."""
        later = self.optimizer.param_groups[len(self.base_lrs) :]
        return [*super().get_lr(), *(group["lr"] for group in later)]

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule is; settings are the run's own."""
        return {name: value for name, value in super().state_dict().items() if name != "_settings"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the groups' highest rates, all by one factor where this run's largest is another."""
        wanted = max(self.base_lrs)
        super().load_state_dict(state_dict)
        if (stored := max(self.base_lrs)) > 0:
            self.base_lrs = [rate * (wanted / stored) for rate in self.base_lrs]

    def refresh(self) -> None:
        """Set the rates of the next step anew; a run that goes on with another budget brings those of the old one.

        So does one with another weight decay, betas or momentum; the first that differs is said.
        """
        changes: list[str] = []
        groups = self.optimizer.param_groups[: len(self._settings)]
        for group, wanted in zip(groups, self._settings, strict=True):
            changes += [f"{name} {value} (was {group[name]})" for name, value in wanted.items() if group[name] != value]
            group.update(wanted)
        if changes:
            logger.info("the run goes on with another %s", changes[0])
        for group, highest, factor in zip(groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["lr"] = highest * factor(self.last_epoch)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """As timm makes them: no decay on vectors and what ``no_weight_decay()`` names, ``lr_scale`` by depth.

    Args:
        model: A timm model or a `Segmenter`, of which all that is not the network keeps the full rate.
        weight_decay: For matrices.
        layer_decay: Factor from one layer to the one below it; 1 = all alike.

    Returns:
        Groups with "params", "weight_decay" and, with layer decay, "lr_scale". Frozen parameters are left out.

    Raises:
        ValueError: ``weight_decay`` < 0, or ``layer_decay`` outside (0, 1].
    """
    if not 0 <= weight_decay < math.inf or not 0 < layer_decay <= 1:
        raise ValueError(
            f"expected a finite weight_decay >= 0 and 0 < layer_decay <= 1, got {weight_decay=}, {layer_decay=}"
        )
    find: Any = getattr(model, "no_weight_decay", set)
    skip: set[str] = find()
    if isinstance(model, Segmenter):
        network = unwrap(model)
        others = groups_beside(model, network, weight_decay, skip)
        groups = parameter_groups(network, weight_decay, layer_decay)
        for group in groups:
            group["lr_scale"] *= layer_decay  # the head is a layer above it, as a classifier is in timm's groups
        return [*groups, *others]
    if layer_decay == 1:
        groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=skip)
        return [{"lr_scale": 1.0, **group} for group in groups]
    groups = param_groups_layer_decay(model, weight_decay, no_weight_decay_list=skip, layer_decay=layer_decay)
    return list(groups)


def groups_of(outer: nn.Module, model: nn.Module, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Groups of a model, and of what learns beside it and is no part of it; see `parameter_groups`.

    Args:
        outer: Holds the model and the rest.
        model: The model.
        weight_decay: For matrices.
        layer_decay: Of the model.

    Raises:
        ValueError: All is frozen.
    """
    groups = parameter_groups(model, weight_decay, layer_decay)
    groups += [group for group in groups_beside(outer, model, weight_decay) if group["params"]]
    if not any(group["params"] for group in groups):
        raise ValueError(
            f"expected parameters to train, got a {type(model).__name__} that is frozen wholly (Lightning's "
            "BackboneFinetuning freezes a classifier's head, too); name what is to stay as it is by freeze, such as "
            "[patch_embed, blocks]"
        )
    return groups


def groups_beside(
    outer: nn.Module, inner: nn.Module, weight_decay: float, skip: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Groups of what a module holds beside one inside it, at the full rate; see `parameter_groups`.

    Args:
        outer: The module.
        inner: Whose parameters are left out.
        weight_decay: For matrices.
        skip: Names of others that have none.
    """
    inside = set(inner.parameters())
    groups = param_groups_weight_decay(outer, weight_decay, no_weight_decay_list=skip)
    for group in groups:
        group |= {"lr_scale": 1.0, "params": [each for each in group["params"] if each not in inside]}
    return list(groups)


def check_finite(optimizer: Optimizer) -> None:
    """Refuse settings of an optimiser that are NaN or infinite: torch takes both.

    Raises:
        ValueError: Naming the setting.
    """
    for group in optimizer.param_groups:
        for name, value in group.items():
            numbers = value if isinstance(value, tuple | list) and name != "params" else [value]
            if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
                raise ValueError(f"expected finite settings of the optimizer, got {name}={value}")


def check_goes_on(optimizer: Optimizer, stored: Sequence[Mapping[str, Any]] | None) -> None:
    """Refuse an optimiser that cannot take up the state in a checkpoint: torch takes that of another kind.

    Args:
        optimizer: As configured.
        stored: The optimisers' states in a checkpoint to go on from; None = training begins.

    Raises:
        ValueError: Another kind of optimiser, or other parameters in its groups.
    """
    if not stored:
        return
    groups, wanted = stored[0]["param_groups"], optimizer.param_groups
    same_kind = all(set(mine) - set(theirs) <= {"initial_lr"} for mine, theirs in zip(wanted, groups, strict=False))
    sizes = [[len(group["params"]) for group in each] for each in (wanted, groups)]
    # NOTE: callbacks such as BackboneFinetuning give an optimiser further groups, behind its own
    if not same_kind or sizes[1][: len(sizes[0])] != sizes[0]:
        raise ValueError(
            f"expected to go on with the optimizer of the checkpoint, got {type(optimizer).__name__} with "
            f"{sum(sizes[0])} parameters in {len(sizes[0])} groups for a state of {sum(sizes[1])} in {len(sizes[1])}; "
            "leave optimizer, layer_decay and freeze as they were, or start from its weights with --init-from"
        )


def is_fused(optimizer: Optimizer) -> bool:
    """Whether the step of an optimiser is one fused call, which unscales gradients by itself."""
    return any(group.get("fused") for group in optimizer.param_groups)


def apply_lr_scale(optimizer: Optimizer) -> None:
    """Multiply each group's ``lr_scale`` into its rate: torch's schedulers know nothing of it."""
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * group.pop("lr_scale", 1.0)
