"""Modules that own parameters: CAST attention, its baselines behind the same interface, the block, stems, positions."""

from castvision.layers.block import CastBlock
from castvision.layers.cast_attention import CastAttention
from castvision.layers.full_attention import FullAttention
from castvision.layers.positions import RotaryPositions
from castvision.layers.stem import ConvStem

__all__ = ["CastAttention", "CastBlock", "ConvStem", "FullAttention", "RotaryPositions"]
