"""Segmentation decoders: a list of feature maps and the image in, one logit map at the image's size out.

A head is built from (channels, strides) alone, so that it works on any backbone.
"""

from castvision.heads.fpn import FpnHead
from castvision.heads.linear import LinearHead
from castvision.heads.mlp import MlpHead
from castvision.heads.uper import UperHead
from castvision.heads.upsampling import UpsamplingHead

__all__ = ["FpnHead", "LinearHead", "MlpHead", "UperHead", "UpsamplingHead"]
