"""Feature maps at strides 4, 8, 16 and 32 from an isotropic backbone, without parameters.

Decoders (U-Net, FPN, UPerNet, DeepLab, Mask2Former) expect a pyramid. Four blocks spread over the depth are tapped and
resized: bilinear up, average pooling down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F

from castvision.heads.features import resample
from castvision.models.timm_private import FeatureInfo, feature_take_indices

if TYPE_CHECKING:
    from collections.abc import Sequence

REDUCTIONS = (4, 8, 16, 32)


class FeaturePyramid(nn.Module):
    """What ``features_only=True`` gives for the pyramid variants.

    Args:
        model: A backbone with ``forward_intermediates``; it is pruned after the last block that is needed.
        out_indices: Which of the four levels, as timm reads indices.
        output_stride: Coarser levels keep this stride: 8, 16 or 32.
        norm: Apply the backbone's final norm to the maps.
        output_fmt: Only "NCHW".

    Raises:
        ValueError: An output stride or format that is not offered.
    """

    def __init__(
        self,
        model: nn.Module,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        output_stride: int = 32,
        norm: bool = False,
        output_fmt: str = "NCHW",
    ) -> None:
        super().__init__()
        if output_stride not in REDUCTIONS[1:] or output_fmt != "NCHW":
            raise ValueError(
                f"expected output_stride 8, 16 or 32 and output_fmt 'NCHW', got {output_stride=} {output_fmt=}"
            )
        self.levels, _ = feature_take_indices(len(REDUCTIONS), out_indices)
        depth = len(model.blocks)  # type: ignore[arg-type]
        taps = [max(0, (level + 1) * depth // len(REDUCTIONS) - 1) for level in range(len(REDUCTIONS))]
        self.taps = [taps[level] for level in self.levels]
        self.reductions = [min(REDUCTIONS[level], output_stride) for level in self.levels]
        model.prune_intermediate_layers(self.taps, prune_norm=not norm)  # type: ignore[operator]
        info = [
            {"module": f"blocks.{tap}", "num_chs": model.embed_dim, "reduction": min(r, output_stride)}
            for tap, r in zip(taps, REDUCTIONS, strict=True)
        ]
        self.feature_info = FeatureInfo(info, tuple(self.levels))
        self.model, self.norm = model, norm

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in the backbone's blocks."""
        self.model.set_grad_checkpointing(enable)  # type: ignore[operator]

    def forward(self, x: Tensor, token_mask: Tensor | None = None) -> list[Tensor]:
        """Maps (B, C, ceil(height / r), ceil(width / r)) for each level's reduction r.

        ``token_mask``, (B, N) bool, is handed to the backbone: True where a token is real.
        """
        height, width = x.shape[-2:]
        masked = {} if token_mask is None else {"token_mask": token_mask}
        maps: list[Tensor] = self.model.forward_intermediates(  # type: ignore[operator]
            x, indices=sorted(set(self.taps)), norm=self.norm, intermediates_only=True, **masked
        )
        patch_embed: Any = self.model.patch_embed
        patch: int = patch_embed.patch_size[0]
        by_tap = dict(zip(sorted(set(self.taps)), maps, strict=True))
        return [
            _resize(by_tap[tap], patch, r, (-(-height // r), -(-width // r)))
            for tap, r in zip(self.taps, self.reductions, strict=True)
        ]


def _resize(x: Tensor, patch: int, reduction: int, size: tuple[int, int]) -> Tensor:
    if reduction == patch:
        return x
    if reduction > patch and reduction % patch == 0:
        factor = reduction // patch
        return F.avg_pool2d(x, factor, ceil_mode=True, count_include_pad=False)
    return resample(x, patch, reduction, size)
