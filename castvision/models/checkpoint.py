"""Weights from elsewhere into our models: of plain ViTs, other image sizes, classifiers, training runs."""

from __future__ import annotations

import logging
import pickle
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm.models
from safetensors import SafetensorError
from timm.models.vision_transformer import checkpoint_filter_fn as vit_filter_fn
from torch import Tensor

from castvision.models.segmenter import Segmenter, unwrap
from castvision.ops import resample_surrogates

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

logger = logging.getLogger(__name__)

_OURS = ("surrogate_tokens", "phi.weight", "phi.bias", "local_conv.weight", "local_conv.bias", "log_scale")


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Adapt a state dict to ``model``; native ones pass unchanged.

    Unwraps training checkpoints (``state_dict``, ``model``, a ``model.`` or ``backbone.`` prefix), resamples patch and
    position embeddings as timm does, resamples surrogate tokens to the model's number of clusters, and lets a plain
    ViT keep the model's own start of what it lacks (surrogates, phi, local branch).

    Args:
        state_dict: Of a model of ours, of a timm ViT, or a Lightning checkpoint.
        model: The model to load into.

    Returns:
        A state dict with the model's keys, as far as the source has them.
    """
    state_dict = _below("backbone.", task_weights(state_dict.get("state_dict", state_dict)))
    out: dict[str, Tensor] = vit_filter_fn(state_dict, model)
    own = model.state_dict()
    plain = not any(k.endswith(_OURS) for k in out)
    for key, value in own.items():
        if key.endswith("surrogate_tokens") and key in out and out[key].shape[1] != value.shape[1]:
            out[key] = resample_surrogates(out[key], value.shape[1])
        elif plain and key.endswith(_OURS):
            out[key] = value
    return out


def task_weights(saved: Mapping[str, Any]) -> dict[str, Tensor]:
    """A model's weights among those of a training task, which may hold losses' and augmentations' beside them.

    Args:
        saved: A state dict, with or without the prefixes of a task (``model.``), of several processes or of compiling.

    Returns:
        Name to tensor, without prefixes; what is no tensor is left out.
    """
    state: dict[str, Any] = timm.models.clean_state_dict(dict(saved))
    state = timm.models.clean_state_dict(_below("model.", state))
    return {str(key): value for key, value in state.items() if isinstance(value, Tensor)}


def _below(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """What has the prefix, without it; all, if nothing has."""
    chosen = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return chosen or dict(state)


@dataclass(frozen=True)
class InitReport:
    """What became of the checkpoint's weights.

    Attributes:
        used: Loaded.
        left: In the file, without a place in the model, or with another shape (named "KEY (shape → shape)").
        fresh: In the model, not in the file: initialised at random.
    """

    used: tuple[str, ...]
    left: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        """Three numbers and the names of what is not used."""
        return (
            f"{len(self.used)} weights used, {len(self.left)} left{_listed(self.left)}, "
            f"{len(self.fresh)} new{_listed(self.fresh)}"
        )


def _listed(names: Sequence[str], limit: int = 8) -> str:
    if not names:
        return ""
    more = f", … {len(names) - limit} more" if len(names) > limit else ""
    return f" ({', '.join(names[:limit])}{more})"


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a file of weights: safetensors, a timm or torch file, or a Lightning checkpoint.

    Args:
        path: The file.

    Returns:
        Name to tensor, without wrappers' prefixes.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Damaged, or no weights inside.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a checkpoint at {str(path)!r}, found no such file; check the path")
    try:
        state = task_weights(timm.models.load_state_dict(str(path), device="cpu", weights_only=True))
    except AttributeError as error:
        raise ValueError(f"expected weights in {str(path)!r}, found none: {' '.join(str(error).split())}") from error
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"cannot read the checkpoint {str(path)!r}, is it damaged? {reason}") from error
    if not state:
        raise ValueError(f"expected weights in {str(path)!r}, found none in a dict")
    return state


def initialize_from(model: nn.Module, path: str | Path) -> InitReport:
    """Load the weights of a file into a model, as far as they fit.

    A segmenter's checkpoint fills a segmenter; a classifier's (timm's, for example) fills a segmenter's backbone,
    and the other way round. Position embeddings and patch sizes are resampled by the model's own
    ``checkpoint_filter_fn``. A classifier or a head for another number of classes starts anew.

    Args:
        model: A timm model or a `Segmenter`; changed in place.
        path: See `load_state_dict`.

    Returns:
        What was used and what was left; also logged.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Damaged, or the checkpoint of another architecture; the model is then unchanged.
    """
    state = load_state_dict(path)
    target: nn.Module = model
    is_segmenters = any(key.startswith("backbone.") for key in state)
    if isinstance(model, Segmenter) and not is_segmenters:
        target = unwrap(model)
    elif is_segmenters and not isinstance(model, Segmenter):
        state = _below("model.", _below("backbone.", state))
    fitting, report = _match(_adapt(state, target, path), target)
    _refuse_stranger(report, target, path)
    target.load_state_dict(fitting, strict=False)  # what does not fit stands in the report
    logger.info("started from %s: %s", path, report)
    return report


def _adapt(state: dict[str, Tensor], target: nn.Module, path: str | Path) -> dict[str, Tensor]:
    if isinstance(target, Segmenter):
        return state
    adapt = getattr(sys.modules[type(target).__module__], "checkpoint_filter_fn", None)
    if adapt is None:
        return state
    try:
        return dict(adapt(state, target))
    except (RuntimeError, KeyError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(f"{str(path)!r} is no checkpoint of a {type(target).__name__}: {error}") from error


def _match(state: dict[str, Tensor], target: nn.Module) -> tuple[dict[str, Tensor], InitReport]:
    own = target.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    left = []
    for key, value in state.items():
        if key in own and key not in fitting:
            left.append(f"{key} {tuple(value.shape)} → {tuple(own[key].shape)}")
        elif key not in own:
            left.append(key)
    fresh = tuple(key for key in own if key not in fitting)
    return fitting, InitReport(tuple(fitting), tuple(left), fresh)


def _refuse_stranger(report: InitReport, target: nn.Module, path: str | Path) -> None:
    """A checkpoint fits if everything but the end (classifier, head, final norm) has its place and shape."""
    ends = ("head.", "fc.", "classifier.", "norm.", "fc_norm.")
    misfits = [name for name in report.left if "→" in name and not name.startswith(ends)]
    needed = [name for name, _ in target.named_parameters() if not name.startswith(ends)]
    found = sum(name in set(report.used) for name in needed)
    if misfits or found < 0.5 * len(needed):
        example = f"; {misfits[0]}" if misfits else ""
        raise ValueError(
            f"{str(path)!r} is the checkpoint of another architecture: {found} of {len(needed)} weights of "
            f"{type(target).__name__} have their place and shape in it{example}; "
            f"give the model_name and model_kwargs it was made with"
        )


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Stop gradients of the parameters whose names match.

    Args:
        model: Changed in place.
        patterns: Shell patterns such as "backbone.blocks.0.*"; a bare module name ("backbone") stands for all inside.

    Returns:
        Names of the frozen parameters.

    Raises:
        ValueError: A pattern matches nothing, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen: set[str] = set()
    for pattern in patterns:
        hits = {name for name in names if fnmatch(name, pattern) or fnmatch(name, f"{pattern}.*")}
        if not hits:
            tops = sorted({name.split(".")[0] for name in names})
            raise ValueError(
                f"the pattern {pattern!r} of freeze matches no parameter; names begin with {', '.join(tops)}"
            )
        frozen |= hits
    if names and len(frozen) == len(names):
        raise ValueError(f"freeze leaves nothing to train, got {list(patterns)}; leave the head out")
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    return sorted(frozen)
