"""ClusTR: keys and values aggregated over clusters of several scales, queries attend to those.

Xie, Zhang, Xia, van den Hengel and Wu, "ClusTR: Exploring Efficient Self-attention via Clustering for Vision
Transformers", arXiv 2208.13138.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from castvision.ops import check_choice
from castvision.ops.partitions import cluster_grid, sample_positions
from castvision.ops.surrogates import cluster_sums, nearest, routing_features, sample_surrogates
from castvision.peers.core import Core, with_prefix
from castvision.peers.density import density_peaks

if TYPE_CHECKING:
    from torch import Tensor

    from castvision.ops.options import Operands

CENTERS = ("density", "kmeans")


class Clustr(Core):
    """Attention of all queries to the mean keys and values of clusters.

    Density peaks with k nearest neighbours, on head means f of the keys of an image:

        ρ_i = exp(-mean over its k nearest j of |f_i - f_j|²),  δ_i = least |f_i - f_j| over j with ρ_j > ρ_i

    (the greatest distance there is for the densest), the M tokens of largest ρ δ are centres, every token joins the
    nearest. ``centers="kmeans"`` takes a regular grid of tokens and one step of k-means instead, as near and far does:
    the density's distances cost N². With several scales, each of a quarter of the clusters of the one before, the
    aggregated tokens of all stand side by side: Y = softmax(scale q [k̄_1; k̄_2; …]ᵀ) [v̄_1; v̄_2; …].

    The paper clusters projected tokens with learned parts between the stages of a pyramid; here keys and values that
    are there are averaged. Prefix keys stand beside the clusters.

    Args:
        num_heads: H.
        head_dim: D.
        seed: Not used.
        num_clusters: M of the first scale; None follows the number of tokens.
        cluster_factor: Where M follows N: M is about this times sqrt(N).
        scales: How many.
        centers: "density" or "kmeans".
        num_neighbors: k of the density.
        proportional: A cluster of n tokens weighs as n keys (log n is added to its logits); the paper's does not.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        seed: int = 0,
        *,
        num_clusters: int | None = None,
        cluster_factor: float = 2.0,
        scales: int = 2,
        centers: str = "density",
        num_neighbors: int = 5,
        proportional: bool = False,
    ) -> None:
        super().__init__(num_heads, head_dim, seed)
        check_choice("centers", centers, CENTERS)
        self.num_clusters, self.cluster_factor, self.scales = num_clusters, cluster_factor, scales
        self.centers, self.num_neighbors, self.proportional = centers, num_neighbors, proportional

    def attend(self, x: Operands, grid: tuple[int, int], dropout_p: float) -> Tensor:
        """See :meth:`Core.attend`."""
        features = routing_features(x.k)
        tokens, (number, heads, width) = torch.cat([x.k, x.v], -1).flatten(2), x.k.shape[1:]
        down, across = cluster_grid(*grid, self.num_clusters, self.cluster_factor)
        counts, means = [], []
        score = density_peaks(features, self.num_neighbors, x.token_mask) if self.centers == "density" else None
        for _ in range(self.scales):
            if score is None:
                positions = sample_positions(*grid, down, across, x.k)
                centers, usable = sample_surrogates(features, positions, 1, x.token_mask)
            else:
                chosen = score.topk(min(down * across, number), -1)[1]
                centers = features.gather(1, chosen[..., None].expand(-1, -1, width))
                usable = score.gather(1, chosen) >= 0
            labels = nearest(features, centers, usable)
            if x.token_mask is not None:
                labels = labels.masked_fill(~x.token_mask, centers.shape[1])
            count, total = cluster_sums(tokens, labels, centers.shape[1])
            counts.append(count)
            means.append(total / count.clamp(min=1))
            down, across = max(1, down // 2), max(1, across // 2)
        size, mean = torch.cat(counts, 1), torch.cat(means, 1)
        mean = mean.view(*mean.shape[:2], heads, 2 * width).transpose(1, 2)
        bias = size.log() if self.proportional else torch.zeros_like(size).masked_fill(size == 0, -torch.inf)
        prefix = 0 if x.prefix_k is None else x.prefix_k.shape[1]
        if not prefix and x.token_mask is not None:  # an image without a real token
            bias = bias.masked_fill(~x.token_mask.any(1)[:, None, None], 0.0)
        keys, values = (
            with_prefix(m, p) for m, p in zip(torch.split(mean, width, -1), (x.prefix_k, x.prefix_v), strict=True)
        )
        bias = F.pad(bias.transpose(1, 2)[:, None], (prefix, 0))  # B, 1, 1, P + M
        rows = F.scaled_dot_product_attention(
            x.q.transpose(1, 2), keys, values, attn_mask=bias, dropout_p=dropout_p, scale=x.scale
        )
        return rows.transpose(1, 2)
