from __future__ import annotations

from castvision.data.datasets.checking import spread
from castvision.training.data.resumable import FreshSampler, ShuffledSampler


def test_fresh_indices_never_repeat():
    sampler = FreshSampler(5)
    seen = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        seen += list(sampler)
    assert seen == list(range(15))
    assert len(sampler) == 5


def test_processes_share_fresh_indices():
    shares = []
    for rank in range(2):
        sampler = FreshSampler(6)
        sampler.num_replicas, sampler.rank, sampler.num_samples = 2, rank, 3
        sampler.set_epoch(1)
        shares.append(list(sampler))
    assert shares == [[6, 8, 10], [7, 9, 11]]


def test_a_shuffle_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        sampler = ShuffledSampler(range(20), seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 1) == order(0, 1)
    assert sorted(order(0, 1)) == list(range(20))
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)


def test_spread_indices():
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, 7) == spread(3, None) == [0, 1, 2]
