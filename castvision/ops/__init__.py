"""Pure functions on tensors: routing tokens to clusters and CAST attention over them.

Shape letters, used everywhere in the package:

    B batch    N tokens (prefix tokens not counted)    C channels    H heads    D head width (C = H * D)
    M clusters = surrogate tokens    K tokens per cluster    P prefix tokens

Sizes of images and grids are (height, width) and (rows, cols). Importing this package registers the custom operators
``torch.ops.castvision.*``, which compile, export, FX and TorchScript see as single nodes.
"""

from castvision.ops import _library as _library
from castvision.ops.attention import cast_attention
from castvision.ops.routing import ASSIGNMENTS, Routing, coverage, make_routing, window_size
from castvision.ops.surrogates import resample_surrogates

__all__ = [
    "ASSIGNMENTS",
    "Routing",
    "cast_attention",
    "coverage",
    "make_routing",
    "resample_surrogates",
    "window_size",
]
