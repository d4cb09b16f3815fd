"""VECA: patches attend to a few learned cores and to nothing else; cores attend to all.

Song, Chen, Nan et al., "Elastic Attention Cores for Scalable Vision Transformers", arXiv 2605.12491.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional as F

from castvision.peers.core import Core

if TYPE_CHECKING:
    from torch import Tensor

    from castvision.ops.options import Operands


class Veca(Core):
    """Core-periphery attention: 2 N C + C² pairs for C cores.

    The model's prefix tokens (registers, and the class token) are the cores, which all blocks hand on. With q, k, v of
    the N patches and c as index of the cores,

        Y = softmax(scale q k_cᵀ) v_c,  Y_c = softmax(scale q_c [k_c; k]ᵀ) [v_c; v]

    No patch attends to a patch, itself neither. The second softmax is that of all peers' prefix tokens. The paper's
    nested training, with fewer cores at random, is left out: the number of cores is fixed.

    Args:
        num_heads: H.
        head_dim: D.
        seed: Not used.
    """

    no_conversion = "its patches attend to nothing but cores, which no pretrained model has"

    def attend(self, x: Operands, grid: tuple[int, int], dropout_p: float) -> Tensor:
        """See :meth:`Core.attend`."""
        if x.prefix_k is None or x.prefix_v is None:
            raise ValueError("expected cores for patches to attend to, got no prefix token; give reg_tokens")
        q, k, v = (each.transpose(1, 2) for each in (x.q, x.prefix_k, x.prefix_v))
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, scale=x.scale).transpose(1, 2)
