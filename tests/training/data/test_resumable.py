from __future__ import annotations

import pytest
import torch
from torch.utils.data import Dataset, RandomSampler

from castvision.training.data.resumable import FreshSampler, ResumableLoader, SeededItems, ShuffledSampler


class Drawn(Dataset):
    """Index and a random number."""

    def __len__(self):
        return 240

    def __getitem__(self, index):
        return torch.tensor(index), torch.rand(())


def loader(workers=0, sampler=None, seed=0):
    dataset = Drawn()
    sampler = sampler or ShuffledSampler(dataset, seed)
    return ResumableLoader(SeededItems(dataset, seed), sampler, batch_size=8, drop_last=True, num_workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_each_image_is_seen_once_in_an_epoch_that_was_interrupted(workers):
    """Stopped after step 14 of 30: before, 112 of these 240 images came twice, and 112 never."""
    first = loader(workers)
    first.sampler.set_epoch(3)
    begun = iter(first)
    seen = [torch.stack(next(begun)) for _ in range(14)]
    again = loader(workers)
    again.load_state_dict(first.state_dict())
    again.sampler.set_epoch(3)
    seen += [torch.stack(batch) for batch in again]
    indices, numbers = torch.cat(seen, dim=1)
    assert sorted(indices.long().tolist()) == list(range(240))
    whole = loader()
    whole.sampler.set_epoch(3)
    expected = torch.cat([torch.stack(batch) for batch in whole], dim=1)
    assert torch.equal(torch.stack([indices, numbers]), expected)
    assert again.state_dict() == {"epoch": 3, "batches": 30}


def test_the_next_epoch_is_whole():
    first = loader()
    first.load_state_dict({"epoch": 0, "batches": 30})
    first.sampler.set_epoch(1)
    assert sum(len(indices) for indices, _ in first) == 240


def test_random_changes_differ_between_epochs_and_seeds_and_leave_the_generator_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = loader()
    by_epoch = []
    for number in (0, 1, 0):
        one.sampler.set_epoch(number)
        drawn = {}
        for indices, numbers in one:
            drawn |= dict(zip(indices.tolist(), numbers.tolist(), strict=True))
        by_epoch.append(drawn)
    assert by_epoch[0] == by_epoch[2]
    assert all(by_epoch[0][index] != by_epoch[1][index] for index in range(240))
    assert len(set(by_epoch[0].values())) == 240
    other = SeededItems(Drawn(), 1)
    assert float(other[0][1]) != by_epoch[0][0]
    torch.random.set_rng_state(before)
    items = SeededItems(Drawn(), 0)
    items[7]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_fresh_indices_go_on():
    sampler = FreshSampler(24)
    sampler.set_epoch(2)
    sampler.start = 8
    assert list(sampler) == list(range(56, 72))
    assert list(sampler) == list(range(48, 72))


def test_a_sampler_of_ones_own_is_read_again():
    class Backwards(RandomSampler):
        epoch = 0

        def __iter__(self):
            return iter(range(239, -1, -1))

    again = loader(sampler=Backwards(Drawn()))
    again.load_state_dict({"epoch": 0, "batches": 28})
    assert torch.cat([indices for indices, _ in again]).tolist() == list(range(15, -1, -1))
