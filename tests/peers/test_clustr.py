"""ClusTR against its equations, token by token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from castvision.ops.partitions import cluster_grid
from castvision.peers.clustr import Clustr
from castvision.peers.density import density_peaks
from tests.peers.cases import SCALE, Case, check_is_full, make_case


def peaks(features: Tensor, neighbors: int, real: Tensor) -> list[float]:
    """ρ δ, by the book."""
    there = [int(n) for n in real.nonzero()]
    far = torch.cdist(features, features)
    density = {}
    for i in there:
        others = sorted(float(far[i, j]) ** 2 for j in there if j != i)[:neighbors]
        density[i] = float(torch.tensor(-sum(others) / max(1, min(neighbors, len(others))), dtype=torch.float64).exp())
    score = [-1.0] * len(features)
    for i in there:
        denser = [float(far[i, j]) for j in there if (density[j], -j) > (density[i], -i)]
        score[i] = density[i] * (min(denser) if denser else max(float(far[i, j]) for j in there))
    return score


def definition(case: Case, core: Clustr) -> Tensor:
    p, (rows, cols), out = case.prefix, case.grid, []
    for b in range(len(case.q)):
        features = case.k[b, p:].detach().mean(1)
        real = torch.ones(rows * cols, dtype=torch.bool) if case.mask is None else case.mask[b]
        features = features * real[:, None]
        score = torch.tensor(peaks(features, core.num_neighbors, real), dtype=torch.float64)
        down, across = cluster_grid(rows, cols, core.num_clusters, core.cluster_factor)
        keys, values, sizes = [case.k[b, :p]], [case.v[b, :p]], [1] * p
        for _ in range(core.scales):
            centers = [n for n in score.argsort(descending=True)[: down * across].tolist() if score[n] >= 0]
            nearest = torch.cdist(features, features[centers]).argmin(1)
            for c in range(len(centers)):
                members = [p + n for n in range(rows * cols) if real[n] and nearest[n] == c]
                if members:
                    keys.append(case.k[b, members].mean(0, keepdim=True))
                    values.append(case.v[b, members].mean(0, keepdim=True))
                    sizes.append(len(members))
            down, across = max(1, down // 2), max(1, across // 2)
        logits = torch.einsum("nhd,mhd->hnm", case.q[b], torch.cat(keys)) * SCALE
        if core.proportional:
            logits = logits + torch.tensor(sizes).log()
        out.append(torch.einsum("hnm,mhd->nhd", logits.softmax(-1), torch.cat(values))[p:])
    found = torch.stack(out)
    return found if case.mask is None else found * case.mask[:, :, None, None]


@pytest.mark.parametrize("proportional", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("prefix", "number", "scales"), [(2, 9, 1), (0, 12, 2), (2, 20, 3)])
def test_definition(prefix: int, number: int, scales: int, masked: bool, proportional: bool) -> None:
    core = Clustr(2, 4, num_clusters=number, scales=scales, proportional=proportional)
    case = make_case(prefix=prefix, masked=masked)
    weight = torch.randn(2, 35, 2, 4, dtype=torch.float64)
    found, expected = case.run(core)[:, prefix:], definition(case, core)
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad((x * weight).sum(), (case.q, case.k, case.v)) for x in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("centers", ["density", "kmeans"])
@pytest.mark.parametrize("masked", [False, True])
def test_with_every_token_a_cluster_it_is_full_attention(centers: str, masked: bool) -> None:
    core = Clustr(2, 4, num_clusters=35, scales=1, centers=centers)
    check_is_full(core, make_case(masked=masked))


def test_peaks_are_found_where_tokens_gather() -> None:
    generator = torch.Generator().manual_seed(0)
    middles = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    features = (middles.repeat_interleave(20, 0) + torch.randn(60, 2, generator=generator))[None]
    chosen = density_peaks(features, 5, None)[0].topk(3)[1]
    assert sorted((chosen // 20).tolist()) == [0, 1, 2]


def test_of_equal_tokens_one_is_the_peak() -> None:
    score = density_peaks(torch.ones(1, 6, 3), 2, None)
    assert torch.equal(score, torch.zeros(1, 6))


def test_an_unknown_way_to_choose_is_refused() -> None:
    with pytest.raises(ValueError, match="centers to be one of density, kmeans"):
        Clustr(2, 4, centers="peaks")
