"""Classes by name: what a checkpoint calls its classes against what the data call theirs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from castvision.checkpoint_facts import CHECKPOINT_KEY, stored_facts
from castvision.data.reading.folders import nfc
from castvision.models.segmenter import Segmenter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

_UNNAMED = re.compile(r"class \d+")


def stored_class_names(path: str | Path) -> list[str] | None:
    """The class names a checkpoint of ours remembers; its weights are not read.

    Args:
        path: Any file of weights.

    Returns:
        In the order of its logits; None for files of others, which name no classes.
    """
    facts = stored_facts(path)
    return None if facts is None else class_names_in({CHECKPOINT_KEY: facts})


def class_names_in(content: Mapping[str, Any]) -> list[str] | None:
    """The class names in a checkpoint that has been read; None if it has none."""
    facts = content.get(CHECKPOINT_KEY)
    names = facts.get("class_names") if isinstance(facts, dict) else None
    return [str(name) for name in names] if names else None


def are_named(class_names: Sequence[str] | None) -> bool:
    """Whether classes have names, rather than none or the stand-ins "class 0", "class 1" and so on."""
    return bool(class_names) and not all(_UNNAMED.fullmatch(name) for name in class_names or ())


def check_same_classes(stored: Sequence[str] | None, wanted: Sequence[str], path: str | Path) -> None:
    """Refuse a checkpoint whose classes have other names, or another order, than the data's.

    Classes without names agree by number, if there are as many.

    Args:
        stored: The checkpoint's.
        wanted: The data's.
        path: The checkpoint, for the message.

    Raises:
        ValueError: It names both.
    """
    if stored is None:
        return
    if not (are_named(stored) and are_named(wanted)):
        if len(stored) != len(wanted):
            raise ValueError(
                f"expected the {len(stored)} classes of the checkpoint ({str(path)!r}), got {len(wanted)}; to start "
                "from its weights with other classes, give it as init_from"
            )
        return
    stored, wanted = ([nfc(name) for name in names] for names in (stored, wanted))
    if stored == wanted:
        return
    what = "in another order" if sorted(stored) == sorted(wanted) else "of other names"
    raise ValueError(
        f"expected data of the checkpoint's classes, {_listed(stored)} ({str(path)!r}), got classes {what}: "
        f"{_listed(wanted)}; give class_names as the checkpoint has them, and say by label_map what the labels in the "
        "files mean"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def classifier_of(model: nn.Module) -> dict[str, Tensor]:
    """The parameters with a row for each class, by name: of a segmenter's head, or of a timm model's classifier.

    Args:
        model: Whose ``num_classes`` says how many rows there are.

    Returns:
        Empty where the model does not say where its classifier is.
    """
    if isinstance(model, Segmenter):
        owner: Any = getattr(model.head, "classifier", None)
    else:
        find = getattr(model, "get_classifier", None)
        owner = find() if find is not None else None
    parts = owner if isinstance(owner, (tuple, list)) else [owner]
    wanted = {id(parameter) for part in parts if isinstance(part, torch.nn.Module) for parameter in part.parameters()}
    return {name: value for name, value in model.named_parameters() if id(value) in wanted}


def reorder_classifier(
    model: nn.Module, fresh: Mapping[str, Tensor], stored: Sequence[str], wanted: Sequence[str]
) -> str | None:
    """Bring the rows of a classifier that was started from a checkpoint into the order of the data's classes, by name.

    Args:
        model: With the checkpoint's classifier; changed in place.
        fresh: The values of `classifier_of` before the checkpoint was loaded, for classes it does not know.
        stored: The checkpoint's classes.
        wanted: The data's, as many.

    Returns:
        What was done, for people; None if the classes agree.

    Raises:
        ValueError: Classes that differ, one name of two classes, or a model that does not say where its classifier is.
    """
    stored, wanted = ([nfc(name) for name in names] for names in (stored, wanted))
    if not (are_named(stored) and are_named(wanted)) or stored == wanted:
        return None
    parameters = classifier_of(model)
    if len({*stored}) < len(stored) or len({*wanted}) < len(wanted) or not parameters:
        check_same_classes(stored, wanted, "init_from")
    rows = [stored.index(name) if name in stored else None for name in wanted]
    with torch.no_grad():
        for name, parameter in parameters.items():
            before = parameter.detach().clone()
            for label, row in enumerate(rows):
                parameter[label] = fresh[name][label] if row is None else before[row]
    unknown = [name for name, row in zip(wanted, rows, strict=True) if row is None]
    told = f"the checkpoint's classes are {_listed(stored)}, the data's {_listed(wanted)}"
    return f"{told}: classifier brought into that order" + (f"; new for {_listed(unknown)}" if unknown else "")
