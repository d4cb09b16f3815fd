"""A backbone and a head in one module: image in, logits for each pixel out."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.nn import functional

import castvision.heads
from castvision.models.one_size import compile_each_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Segmenter(nn.Module):
    """Any timm backbone with any of our heads.

    An image that is no multiple of a backbone's patches is padded with zeros at the bottom and right; the logits have
    the image's size.

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
        self.applies_norm = not self.is_feature_net and _is_isotropic(backbone)
        self.takes_mask = "token_mask" in inspect.signature(self._extractor(backbone)).parameters
        self.patch_size = _patch_size(backbone)
        self.backbone = backbone
        self.head = head

    def _extractor(self, backbone: nn.Module) -> Any:
        return backbone.forward if self.is_feature_net else backbone.forward_intermediates

    def forward(self, image: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        """Segment.

        Masked pixels (padding, no data) are read as zeros, and a token without any real pixel is masked out of the
        clusters of backbones that take a ``token_mask``. In training, and at the size the backbone was made for, a
        batch runs as one. Otherwise images of different sizes may stand in it, padded at the bottom and right: each
        size runs by itself, without its padding, so that neither attention nor convolutions nor pooling ever see it,
        and an image gives what it gives alone.

        Args:
            image: (B, in_chans, height, width), any size the backbone takes.
            pixel_mask: True where a pixel is real, (B, height, width) bool; None = everywhere. What the others hold
                (NaN too) makes no difference, and their logits mean nothing.

        Returns:
            (B, num_classes, height, width) logits.

        Raises:
            ValueError: A size the backbone does not take.
        """
        torch._assert(image.ndim == 4, "expected images (B, in_chans, height, width)")
        compile_each_size(image)
        if pixel_mask is None:
            logits: Tensor = self.head(self.features(image), image)
            return logits
        torch._assert(
            pixel_mask.shape == (image.shape[0], *image.shape[2:]) and pixel_mask.dtype == torch.bool,
            "expected pixel_mask (B, height, width) bool",
        )
        image = image.masked_fill(~pixel_mask[:, None], 0.0)
        if self.training or tuple(image.shape[-2:]) == native_size(self.backbone) or image.shape[0] == 0:
            logits = self.head(self.features(image, pixel_mask), image)
            return logits
        return self._forward_by_size(image, pixel_mask)

    def _forward_by_size(self, image: Tensor, pixel_mask: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        indices: list[Tensor] = []
        parts: list[Tensor] = []
        sizes = torch.stack([_extent(pixel_mask.any(dim=2)), _extent(pixel_mask.any(dim=1))], dim=1)  # (B, 2)
        for size in sorted({(rows, cols) for rows, cols in sizes.tolist()}):
            chosen = (sizes == sizes.new_tensor(size)).all(dim=1).nonzero()[:, 0]
            # an image without any real pixel is read like one with a single pixel
            rows, cols = max(size[0], 1), max(size[1], 1)
            part, mask = image[chosen, :, :rows, :cols], pixel_mask[chosen, :rows, :cols]
            logits = self.head(self.features(part, None if bool(mask.all()) else mask), part)
            parts.append(functional.pad(logits, (0, width - cols, 0, height - rows)))
            indices.append(chosen)
        return torch.cat(parts)[torch.cat(indices).argsort()]

    def features(self, image: Tensor, pixel_mask: Tensor | None = None) -> list[Tensor]:
        """The maps the head is given.

        Args:
            image: (B, in_chans, height, width).
            pixel_mask: (B, height, width) bool; only backbones that take a ``token_mask`` heed it.

        Returns:
            (B, C_i, rows_i, cols_i) each.

        Raises:
            ValueError: A size the backbone does not take.
        """
        return self._run(image, pixel_mask)

    def _run(self, image: Tensor, pixel_mask: Tensor | None, **options: Any) -> list[Tensor]:
        padded = pad_to_patches(image, self.patch_size)
        if not self.is_feature_net:
            options |= {"indices": self.out_indices, "norm": self.applies_norm, "output_fmt": "NCHW"}
            options["intermediates_only"] = True
        if self.takes_mask and pixel_mask is not None:
            options["token_mask"] = _real_tokens(pixel_mask, self.patch_size)
        try:
            maps: list[Tensor] = self._extractor(self.backbone)(padded, **options)
        except (AssertionError, RuntimeError) as error:
            weight = next(self.backbone.parameters(), padded)
            is_alike = (weight.dtype, weight.device) == (padded.dtype, padded.device)
            is_native = tuple(padded.shape[-2:]) == native_size(self.backbone)
            if isinstance(error, torch.OutOfMemoryError) or is_native or not is_alike:
                raise
            raise _wrong_size(self.backbone, padded, error) from error
        if str(getattr(self.backbone, "output_fmt", "")).endswith("NHWC") and self.is_feature_net:
            return [feature.permute(0, 3, 1, 2) for feature in maps]
        return list(maps)


def _extent(occupied: Tensor) -> Tensor:
    """(B,) one beyond the last True of each row of (B, N) bool."""
    return (occupied * torch.arange(1, occupied.shape[1] + 1, device=occupied.device)).amax(dim=1)


def pad_to_patches(image: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Zeros at the bottom and right of (B, C, height, width) up to whole patches."""
    if patch_size == (1, 1):
        return image
    down, across = (-size % patch for size, patch in zip(image.shape[-2:], patch_size, strict=True))
    return functional.pad(image, (0, across, 0, down))


def _real_tokens(pixel_mask: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """(B, N) bool: which patches of (B, height, width) hold a real pixel; all of an image that has none."""
    padded = pad_to_patches(pixel_mask[:, None].float(), patch_size)
    is_real = functional.max_pool2d(padded, patch_size).flatten(1) > 0
    return is_real | ~is_real.any(dim=1, keepdim=True)  # attention over nothing would be NaN


def unwrap(model: nn.Module) -> nn.Module:
    """The network with the blocks: a segmenter's backbone, without what wraps it.

    Args:
        model: A model of ours or timm's, such as a `Segmenter` or a wrapper that gathers feature maps; wrapped or
            not for averaging weights, for several processes, or by ``torch.compile``.
    """
    inner: Any = unwrap_model(model)
    backbone = inner.backbone if isinstance(inner, Segmenter) else inner
    network: nn.Module = getattr(backbone, "model", backbone)
    return network


def _patch_size(backbone: nn.Module) -> tuple[int, int]:
    """Pixels a side of the image must be a multiple of: whole patches, 1 for convolutional networks."""
    embed: Any = getattr(unwrap(backbone), "patch_embed", None)
    size = getattr(embed, "patch_size", 1)
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def native_size(backbone: nn.Module) -> tuple[int, int]:
    """(height, width) of the images a backbone was made for."""
    inner: Any = unwrap(backbone)
    size = getattr(getattr(inner, "patch_embed", None), "img_size", None)
    if size is None:
        size = (getattr(inner, "pretrained_cfg", None) or {"input_size": (3, 0, 0)})["input_size"][1:]
    return int(size[0]), int(size[1])


def _wrong_size(backbone: nn.Module, image: Tensor, error: Exception) -> ValueError:
    height, width = image.shape[-2:]
    name = type(unwrap(backbone)).__name__
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(
        f"expected images of a size that {name} takes, got {height}×{width} (height × width; {reason}); create the "
        f"backbone with img_size=({height}, {width}), or for any size with dynamic_img_size=True or "
        "strict_img_size=False where it offers that"
    )


def _is_feature_net(backbone: nn.Module) -> bool:
    return hasattr(getattr(backbone, "feature_info", None), "channels")


def _is_isotropic(backbone: nn.Module) -> bool:
    info: Any = backbone.feature_info
    return len({entry["reduction"] for entry in info}) == 1


def _resolve(backbone: nn.Module, out_indices: Sequence[int] | None) -> list[int]:
    """The default: the last map of an isotropic backbone, the last four of a hierarchical one."""
    info: Any = backbone.feature_info
    total = len(info)
    if out_indices is None:
        return [total - 1] if _is_isotropic(backbone) else list(range(max(0, total - 4), total))
    if not out_indices or not all(-total <= index < total for index in out_indices):
        raise ValueError(f"expected out_indices within {-total}..{total - 1} (the backbone's maps), got {out_indices=}")
    return sorted(index % total for index in out_indices)


def feature_layout(backbone: nn.Module, out_indices: Sequence[int] | None = None) -> tuple[list[int], list[int]]:
    """Channels and strides of the maps a `Segmenter` hands to its head.

    Args:
        backbone: As for `Segmenter`.
        out_indices: Positions in the backbone's ``feature_info``; None = the last one (the last four of a hierarchical
            backbone). A model made with ``features_only=True`` has chosen already and ignores this.

    Returns:
        (channels, strides).

    Raises:
        ValueError: An index that does not exist.
    """
    info: Any = backbone.feature_info
    if _is_feature_net(backbone):
        return [int(number) for number in info.channels()], [int(number) for number in info.reduction()]
    chosen = [info[index] for index in _resolve(backbone, out_indices)]
    return [int(entry["num_chs"]) for entry in chosen], [int(entry["reduction"]) for entry in chosen]


def create_segmenter(
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
        head_kwargs: For the head, beside channels, strides and classes, and image channels where it takes them.
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
        backbone.prune_intermediate_layers(list(out_indices), prune_norm=not _is_isotropic(backbone), prune_head=True)
    channels, strides = feature_layout(backbone, out_indices)
    head_class, more = getattr(castvision.heads, head), dict(head_kwargs or {})
    if "in_chans" in inspect.signature(head_class).parameters:  # a head that looks at the image itself
        more = {"in_chans": _in_chans(backbone, arguments), **more}
    made = head_class(channels, strides, num_classes, **more)
    return Segmenter(backbone, made, out_indices=out_indices)


def _in_chans(backbone: nn.Module, arguments: Mapping[str, Any]) -> int:
    if "in_chans" in arguments:
        return int(arguments["in_chans"])
    inner = unwrap(backbone)
    config = getattr(inner, "pretrained_cfg", None) or {"input_size": (3,)}
    return int(getattr(inner, "in_chans", config["input_size"][0]))
