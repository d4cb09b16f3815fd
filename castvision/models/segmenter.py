"""A backbone and a head in one module: image in, logits for each pixel out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import Tensor, nn

import castvision.heads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Segmenter(nn.Module):
    """Any timm backbone with any of our heads.

    Args:
        backbone: A timm model with ``forward_intermediates``, or one made with ``features_only=True``.
        head: Takes the backbone's feature maps and the image; see `castvision.heads`.
        out_indices: Which feature maps the head was built for; see `feature_layout`.

    Raises:
        TypeError: The backbone gives no feature maps.
        ValueError: An index that does not exist.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, *, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        self.is_feature_net = _is_feature_net(backbone)
        if not self.is_feature_net and not hasattr(backbone, "forward_intermediates"):
            raise TypeError(
                f"expected a timm model with forward_intermediates or one made with features_only=True, "
                f"got {type(backbone).__name__}"
            )
        self.out_indices = None if self.is_feature_net else _resolve(backbone, out_indices)
        self.backbone = backbone
        self.head = head

    def forward(self, image: Tensor) -> Tensor:
        """Segment.

        Args:
            image: (B, in_chans, height, width), any size the backbone takes.

        Returns:
            (B, num_classes, height, width) logits.
        """
        torch._assert(image.ndim == 4, "expected images (B, in_chans, height, width)")
        backbone: Any = self.backbone
        if self.is_feature_net:
            features = backbone(image)
        else:
            features = backbone.forward_intermediates(
                image, indices=self.out_indices, norm=True, output_fmt="NCHW", intermediates_only=True
            )
        logits: Tensor = self.head(features, image)
        return logits


def _is_feature_net(backbone: nn.Module) -> bool:
    return hasattr(getattr(backbone, "feature_info", None), "channels")


def _resolve(backbone: nn.Module, out_indices: Sequence[int] | None) -> list[int]:
    """The default: the last map of an isotropic backbone, the last four of a hierarchical one."""
    info: Any = backbone.feature_info
    total = len(info)
    if out_indices is None:
        is_isotropic = len({entry["reduction"] for entry in info}) == 1
        return [total - 1] if is_isotropic else list(range(max(0, total - 4), total))
    if not out_indices or not all(-total <= place < total for place in out_indices):
        raise ValueError(f"expected out_indices within {-total}..{total - 1} (the backbone's maps), got {out_indices=}")
    return sorted(place % total for place in out_indices)


def feature_layout(backbone: nn.Module, out_indices: Sequence[int] | None = None) -> tuple[list[int], list[int]]:
    """Channels and strides of the maps a `Segmenter` hands to its head.

    Args:
        backbone: As for `Segmenter`.
        out_indices: Places in the backbone's ``feature_info``; None = the last one (the last four of a hierarchical
            backbone). A model made with ``features_only=True`` has chosen already and ignores this.

    Returns:
        (channels, strides).

    Raises:
        ValueError: An index that does not exist.
    """
    info: Any = backbone.feature_info
    if _is_feature_net(backbone):
        return [int(number) for number in info.channels()], [int(number) for number in info.reduction()]
    places = _resolve(backbone, out_indices)
    return [int(info[place]["num_chs"]) for place in places], [int(info[place]["reduction"]) for place in places]


def create_segmenter(  # one for each key of the configuration
    model_name: str,
    num_classes: int,
    *,
    head: str = "UpsamplingHead",
    model_kwargs: Mapping[str, Any] | None = None,
    head_kwargs: Mapping[str, Any] | None = None,
    out_indices: Sequence[int] | None = None,
) -> Segmenter:
    """Build backbone and head by name.

    Args:
        model_name: Any timm model with feature maps.
        num_classes: Logits per pixel.
        head: A class of `castvision.heads`.
        model_kwargs: For ``timm.create_model``; ``features_only: True`` takes the maps of timm's feature wrapper.
        head_kwargs: For the head, beside channels, strides, classes and image channels.
        out_indices: See `feature_layout`.

    Returns:
        The segmenter, untrained unless ``model_kwargs`` says ``pretrained: True``.

    Raises:
        ValueError: Unknown head, fewer than two classes, or an index that does not exist.
        RuntimeError: Unknown model (timm's).
        TypeError: Unknown argument of the model or the head.
    """
    if head not in castvision.heads.__all__:
        raise ValueError(f"expected head in {sorted(castvision.heads.__all__)}, got {head=}")
    if num_classes < 2:
        raise ValueError(f"expected num_classes >= 2 (a background and something on it), got {num_classes=}")
    arguments = dict(model_kwargs or {})
    if arguments.get("features_only"):
        if out_indices is not None:
            arguments["out_indices"] = tuple(out_indices)
        backbone = timm.create_model(model_name, **arguments)
    else:
        backbone = timm.create_model(model_name, **{"num_classes": 0, **arguments})
        out_indices = _resolve(backbone, out_indices)
        # NOTE: drops the blocks and the classifier no map needs; an unused parameter breaks distributed training.
        backbone.prune_intermediate_layers(list(out_indices), prune_norm=False, prune_head=True)
    channels, strides = feature_layout(backbone, out_indices)
    in_chans = _in_chans(backbone, arguments)
    made = getattr(castvision.heads, head)(channels, strides, num_classes, in_chans=in_chans, **(head_kwargs or {}))
    return Segmenter(backbone, made, out_indices=out_indices)


def _in_chans(backbone: nn.Module, arguments: Mapping[str, Any]) -> int:
    if "in_chans" in arguments:
        return int(arguments["in_chans"])
    inner = getattr(backbone, "model", backbone)
    config = getattr(inner, "pretrained_cfg", None) or {"input_size": (3,)}
    return int(getattr(inner, "in_chans", config["input_size"][0]))
