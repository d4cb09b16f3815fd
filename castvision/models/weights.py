"""What to do when weights cannot be had: one line with the way out."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import timm
from huggingface_hub import constants, get_session
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

from castvision.errors import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

_HUBS = ("hf-hub:", "hf_hub:")
_SECONDS = 3.0
"""For the hub to answer at all, before it is asked for weights."""
_CLIENTS = ("httpx", "httpcore", "requests", "urllib3")  # of HTTP, whichever of them the hub's library uses


@contextmanager
def explained(model_name: str, pretrained: bool = True) -> Iterator[None]:
    """Around building a model: errors of the hub and of weights that do not fit become one line with the remedy.

    Args:
        model_name: As it was asked for.
        pretrained: Whether weights are loaded; False changes no error.

    Raises:
        ConnectionError: The hub cannot be reached, or refuses.
        ValueError: Weights of another architecture, or none.
    """
    is_asked = pretrained and _hub_id(model_name) is not None and not constants.HF_HUB_OFFLINE
    trouble = _trouble_reaching_hub() if is_asked else None
    if trouble:  # what was fetched before serves without the hub; for what was not, it would try for a minute
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    except GatedRepoError as error:
        raise ConnectionError(
            f"the weights of {model_name} are gated: accept their licence on {_page(model_name)}, then log in with "
            "`hf auth login` or set HF_TOKEN"
        ) from error
    except Exception as error:
        told = isinstance(error, (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError))
        if not told and not type(error).__module__.startswith(_CLIENTS):
            _explain_misfit(model_name, pretrained, error)
            raise
        raise ConnectionError(
            f"cannot get the weights of {model_name} from {_page(model_name)}: {trouble or one_line(error, 120)}; "
            "connect, or fetch its model.safetensors elsewhere and give pretrained_cfg_overlay={'file': PATH}"
        ) from error
    finally:
        if trouble:
            constants.HF_HUB_OFFLINE = False


def _trouble_reaching_hub() -> str | None:
    """Why there is no connection; None where there is one, or where it is only slow."""
    try:
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception as error:  # of whichever client
        is_slow = "Timeout" in type(error).__name__
        return None if is_slow or not type(error).__name__.startswith("Connect") else one_line(error, 120)
    return None


def _explain_misfit(model_name: str, pretrained: bool, error: Exception) -> None:
    """Raise what it means if timm found no weights, or those of another architecture."""
    if pretrained and "No pretrained weights" in str(error):
        tagged = [name for name in timm.list_models(f"{model_name}*", pretrained=True) if "." in name]
        remedy = f"name those you want: {', '.join(tagged)}" if tagged else "leave pretrained out"
        raise ValueError(f"{model_name} has no weights of its own; {remedy}") from error
    if pretrained and "state_dict" in str(error):
        raise ValueError(
            f"expected weights of {model_name}, got those of another architecture: {one_line(error, 200)}; give the "
            "model that they were made with"
        ) from error


def _hub_id(model_name: str) -> str | None:
    """Where the hub has a model's weights; None where they come from elsewhere."""
    if model_name.startswith(_HUBS):
        return model_name.split(":", 1)[1]
    cfg = timm.get_pretrained_cfg(model_name) if timm.is_model(model_name.split(".")[0]) else None
    return None if cfg is None else cfg.hf_hub_id


def _page(model_name: str) -> str:
    place = _hub_id(model_name)
    return f"https://huggingface.co/{place}" if place else "the network"
