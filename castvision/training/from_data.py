"""What a configuration leaves open of the model is taken from the data (classes, channels, sizes), or the reverse."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import timm

if TYPE_CHECKING:
    from castvision.training.data.data_module import ImageDataModule

logger = logging.getLogger(__name__)


def trial_arguments(model: Any) -> None:
    """Complete a model's configuration by any values, so that it can be built once, before the data are read.

    Args:
        model: ``class_path`` and ``init_args``; changed in place. Weights are not started from anything.
    """
    arguments = model.get("init_args") or {}
    if "num_classes" in arguments and arguments["num_classes"] is None:
        weights = [arguments.get(name) for name in ("class_weights", "pos_weight")]
        arguments["num_classes"] = next((len(given) for given in weights if isinstance(given, list)), 2)
    arguments["init_from"] = arguments["freeze"] = None
    kwargs = arguments.get("model_kwargs") or {}
    if kwargs.get("pretrained"):
        arguments["model_kwargs"] = {**kwargs, "pretrained": False}


def share_normalisation(model: Any, data: Any) -> None:
    """Images without labels are normalised as the weights of a named model want them, unless the data say otherwise.

    A model whose images come otherwise than in its training is no teacher of anybody.

    Args:
        model: The model's configuration: ``class_path`` and ``init_args``.
        data: The data's, likewise; changed in place.
    """
    options = data.get("init_args") or {}
    name = str((model.get("init_args") or {}).get("model_name"))
    is_open = options.get("mean") is None and options.get("std") is None
    if not str(data.get("class_path")).endswith("UnlabelledFolderDataModule") or not is_open:
        return
    wanted = timm.get_pretrained_cfg(name) if timm.is_model(name.split(".")[0]) else None
    if wanted is not None and len(wanted.mean) == len(wanted.std) == 3:
        options["mean"], options["std"] = list(wanted.mean), list(wanted.std)


def complete(model: Any, options: Any, data: ImageDataModule) -> None:
    """Fill in what is open, and say in one line what was taken.

    Args:
        model: The model's configuration: ``class_path`` and ``init_args``; changed in place. What stands there stays.
        options: The data's, likewise, of which only a batch size that was left open is filled in.
        data: As they are.
    """
    arguments, taken = model.get("init_args") or {}, []
    if "num_classes" in arguments and arguments["num_classes"] is None:
        arguments["num_classes"] = len(data.class_names)
        names = ", ".join(data.class_names[:8]) + (", …" if len(data.class_names) > 8 else "")
        taken.append(f"{len(data.class_names)} classes ({names})")
    if "context_size" in arguments and arguments["context_size"] is None and data.context_size is not None:
        arguments["context_size"] = data.context_size
        taken.append(f"context_size {list(data.context_size)}")
    if "model_kwargs" in arguments:
        kwargs = dict(arguments["model_kwargs"] or {})
        if "in_chans" not in kwargs:
            kwargs["in_chans"] = data.in_chans
            taken.append(f"in_chans {data.in_chans}")
        if "img_size" not in kwargs and _has_size(arguments["model_name"]):
            height, width = data.img_size
            kwargs["img_size"] = height if height == width else [height, width]
            taken.append(f"img_size {kwargs['img_size']}")
        arguments["model_kwargs"] = kwargs
    given = options.get("init_args") or {}
    if "batch_size" in given and given["batch_size"] is None:
        given["batch_size"] = data.batch_size
        taken.append(f"batch_size {data.batch_size} ({data.steps_an_epoch:,} steps an epoch)")
    if taken:
        logger.info("taken from the data: %s", ", ".join(taken))


def _has_size(model_name: str) -> bool:
    """Whether a model is made for one size of images, as timm's ``create_model`` decides it; ours all are."""
    if not timm.is_model(model_name.split(".")[0]):
        return False
    settings = timm.get_pretrained_cfg(model_name)
    return model_name.startswith("cast_vit_") or bool(settings is not None and settings.fixed_input_size)
