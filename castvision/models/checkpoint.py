"""Weights from elsewhere into our models: plain ViTs, other image sizes, Lightning checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from timm.models.vision_transformer import checkpoint_filter_fn as vit_filter_fn

from castvision.ops import resample_surrogates

if TYPE_CHECKING:
    from torch import Tensor, nn

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
    state_dict = state_dict.get("state_dict", state_dict)
    for prefix in ("model.", "backbone."):
        if any(k.startswith(prefix) for k in state_dict):
            state_dict = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    out: dict[str, Tensor] = vit_filter_fn(state_dict, model)
    own = model.state_dict()
    plain = not any(k.endswith(_OURS) for k in out)
    for key, value in own.items():
        if key.endswith("surrogate_tokens") and key in out and out[key].shape[1] != value.shape[1]:
            out[key] = resample_surrogates(out[key], value.shape[1])
        elif plain and key.endswith(_OURS):
            out[key] = value
    return out
