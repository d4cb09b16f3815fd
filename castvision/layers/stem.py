"""Convolution stems: pixels to tokens by small overlapping kernels instead of one large patch."""

from collections.abc import Callable

import torch
from timm.layers import PatchEmbed
from torch import nn


class ConvStem(PatchEmbed):  # type: ignore[misc]
    """3x3 convolutions with GELU, halving the image until a token stands for ``patch_size`` pixels.

    Widths double with each halving and end at ``embed_dim``; a stride-1 convolution precedes every stride-2 one.
    Patch 4 and width 64: 3x3(16), 3x3/2(32), 3x3(32), 3x3/2(64). Patch 1 (one token a pixel): 3x3(C/4), 3x3(C).
    The last convolution is ``proj``, as in timm's ``PatchEmbed``, whose arguments and attributes it keeps.

    Raises:
        ValueError: A patch size that is no power of two or not square, or a width not divisible by it.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] | None = 224,
        patch_size: int | tuple[int, int] = 4,
        in_chans: int = 3,
        embed_dim: int = 768,
        norm_layer: Callable[..., nn.Module] | None = None,
        output_fmt: str | None = None,
        bias: bool = True,
        strict_img_size: bool = True,
        dynamic_img_pad: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            embed_dim=embed_dim,
            norm_layer=norm_layer,
            output_fmt=output_fmt,
            bias=bias,
            strict_img_size=strict_img_size,
            dynamic_img_pad=dynamic_img_pad,
            device=device,
            dtype=dtype,
        )
        size = self.patch_size[0]
        if size != self.patch_size[1] or size & (size - 1) or embed_dim % max(size, 4):
            raise ValueError(
                f"expected a square patch_size that is a power of two and divides embed_dim, got {patch_size=} "
                f"{embed_dim=}; use stem='patch' for others"
            )
        steps = _plan(in_chans, embed_dim, size)
        convs = [nn.Conv2d(i, o, 3, s, 1, bias=bias, device=device, dtype=dtype) for i, o, s in steps]
        first = [layer for conv in convs[:-1] for layer in (conv, nn.GELU())]
        self.proj = nn.Sequential(*first, convs[-1])

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """As timm's, for another image size; the patch size is the stem's architecture and stays."""
        if patch_size is not None and patch_size not in (self.patch_size, self.patch_size[0]):
            raise ValueError(f"expected patch_size={self.patch_size}, fixed by the convolution stem, got {patch_size=}")
        super().set_input_size(img_size=img_size)


def _plan(in_chans: int, embed_dim: int, patch_size: int) -> list[tuple[int, int, int]]:
    """(in, out, stride) of each convolution."""
    if patch_size == 1:
        return [(in_chans, embed_dim // 4, 1), (embed_dim // 4, embed_dim, 1)]
    steps, width, before = [], embed_dim // patch_size, in_chans
    while width < embed_dim:
        steps += [(before, width, 1), (width, 2 * width, 2)]
        before = width = 2 * width
    return steps
