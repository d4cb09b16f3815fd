"""Segmentation decoders: a list of feature maps and the image in, one logit map at the image's size out.

A head is built from (channels, strides) alone, so that it works on any backbone.
"""

from castvision.heads.linear import LinearHead
from castvision.heads.upsampling import UpsamplingHead

__all__ = ["LinearHead", "UpsamplingHead"]
