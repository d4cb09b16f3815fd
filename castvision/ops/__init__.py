"""Pure functions on tensors: clustered attention, near and far or the paper's.

Where to read: :mod:`.attention`, the front end; :mod:`.near_far`, what the library is for; :mod:`.reference`, both
attentions written down as definitions. Shape letters, used everywhere in the package:

    B batch    N tokens (prefix tokens not counted)    C channels    H heads    D head width (C = H * D)
    M clusters    K tokens per window or cluster    W windows    P prefix tokens    R anchors

Tokens come before heads, (B, N, H, D). Sizes of images and grids are (height, width) and (rows, cols).
"""

from castvision.ops.attention import cast_attention
from castvision.ops.options import AttentionOptions, check_choice, make_options
from castvision.ops.partitions import ASSIGNMENTS, Routing, coverage
from castvision.ops.surrogates import resample_surrogates

__all__ = [
    "ASSIGNMENTS",
    "AttentionOptions",
    "Routing",
    "cast_attention",
    "check_choice",
    "coverage",
    "make_options",
    "resample_surrogates",
]
