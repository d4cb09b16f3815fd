"""The smallest decoder: one linear map for each token, enlarged bilinearly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from castvision.heads.features import FeatureMaps, check_layout, check_options, resample

if TYPE_CHECKING:
    from collections.abc import Sequence


class LinearHead(nn.Module):
    """A 1×1 convolution on the concatenated feature maps, enlarged to the image.

    Args:
        channels: Channels of each feature map.
        strides: Pixels per cell of each feature map.
        num_classes: Logits per pixel.
        dropout: Probability of dropping a feature channel.

    Raises:
        ValueError: Sizes no head can be built from, or a dropout outside [0, 1).
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_layout(channels, strides, num_classes)
        check_options(1, dropout)
        self.maps = FeatureMaps(channels, strides)
        self.stride = min(strides)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(sum(channels), num_classes, kernel_size=1)

    def forward(self, features: Sequence[Tensor], image: Tensor) -> Tensor:
        """Decode.

        Args:
            features: One (B, C_i, rows_i, cols_i) for each entry of ``channels``.
            image: (B, in_chans, height, width); only its size matters here.

        Returns:
            (B, num_classes, height, width) logits.
        """
        logits: Tensor = self.classifier(self.dropout(self.maps(features)))  # (B, num_classes, rows, cols)
        return resample(logits, self.stride, 1, (image.shape[-2], image.shape[-1]))
