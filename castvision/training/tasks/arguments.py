"""Kinds of a task's arguments: the command line judges them by the signature, Python does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any

from castvision.training.optim import Schedule

_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "model_name": (str, "the name of a timm model"),
    "num_classes": (Integral, "a whole number"),
    "model_kwargs": (Mapping, "a dictionary"),
    "head": (str, "the name of a class of castvision.heads"),
    "head_kwargs": (Mapping, "a dictionary"),
    "out_indices": (Sequence, "a list of numbers"),
    "context_size": (Sequence, "(height, width)"),
    "loss": (Mapping, "a dictionary such as {'ce': 1, 'dice': 1}"),
    "schedule": (Schedule, "a castvision.training.optim.Schedule, such as Schedule(warmup=0.1)"),
    "weight_decay": (Real, "a number"),
    "layer_decay": (Real, "a number"),
    "freeze": ((list, tuple), "a list of patterns"),
}


def check_kinds(**arguments: Any) -> None:
    """Refuse arguments of a kind that would fail later, and elsewhere, or mean something else.

    Args:
        **arguments: By their names in the signature; None passes.

    Raises:
        TypeError: Naming the argument, what it should be and what it is.
    """
    for name, value in arguments.items():
        kinds, wanted = _KINDS[name]
        is_text = isinstance(value, str) and kinds is Sequence  # a sequence of letters
        if value is not None and (is_text or isinstance(value, bool) or not isinstance(value, kinds)):
            raise TypeError(f"expected {name} to be {wanted}, got {name}={value!r}")


def check_optimizer(make: Any, weight_decay: float) -> None:
    """Refuse what cannot make an optimiser of a task's parameters.

    Args:
        make: What should.
        weight_decay: The task's, which its parameter groups have, and which alone acts.

    Raises:
        TypeError: It is an optimiser already, a name, or nothing that can be called.
        ValueError: It brings another weight decay along.
    """
    if not callable(make):
        got = make if isinstance(make, str) else type(make).__name__
        raise TypeError(
            "expected optimizer to be a class or a function of parameters, such as "
            f"functools.partial(torch.optim.AdamW, lr=1e-3), got optimizer={got}"
        )
    # of a class: the command line's calls a function of the parser's, and has defaults that nobody gave
    is_plain = isinstance(make, partial) and isinstance(make.func, type)
    own = make.keywords.get("weight_decay", weight_decay) if is_plain else weight_decay
    if own != weight_decay:
        raise ValueError(
            f"expected the weight decay as the task's own argument, which spares vectors, got weight_decay={own} of "
            f"the optimizer beside weight_decay={weight_decay} of the task; move it there"
        )


def refuse_parts(arguments: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    """Refuse arguments of a task that its checkpoint has the say in.

    Raises:
        ValueError: Naming the first.
    """
    for name in parts:
        if name in arguments:
            raise ValueError(
                f"expected no {name} beside a checkpoint, which says how its model is built, got {name}="
                f"{arguments[name]!r}; leave it out, or make a task of your own with the checkpoint as init_from"
            )


def given_classes(num_classes: int | None) -> int:
    """The number of classes of a task.

    Raises:
        ValueError: None was given, and no data were there to take it from.
        TypeError: No whole number.
    """
    if num_classes is None:
        raise ValueError("expected num_classes, got none; castvision train takes it from the data, Python does not")
    check_kinds(num_classes=num_classes)
    return int(num_classes)


def given_size(context_size: Sequence[int] | None) -> tuple[int, int] | None:
    """The size of a task's context.

    Raises:
        ValueError: Not two numbers.
        TypeError: Not a sequence.
    """
    check_kinds(context_size=context_size)
    if context_size is None:
        return None
    if len(context_size) != 2:
        raise ValueError(f"expected context_size to be (height, width), got {context_size=}")
    return int(context_size[0]), int(context_size[1])


def alpha_hint(found: int, wanted: int) -> str:
    """What else to set where an opacity channel makes the difference."""
    if found + 1 != wanted:
        return ""
    return f", or, if an alpha channel of the images is a band like the others, in_chans: {wanted} of the data"
