from __future__ import annotations

import pytest
import torch

from castvision.data.transforms.batch_augmentation import BatchAugmentation, ChannelJitter, change_channels


def batch(channels=5, size=(32, 32), count=6):
    """Images whose first channel is +1 where the mask is 1 and -1 where it is 0."""
    mask = torch.zeros(count, *size, dtype=torch.int64)
    mask[:, : size[0] // 2, size[1] // 4 :] = 1
    image = (2.0 * mask - 1)[:, None].repeat(1, channels, 1, 1)
    mask[:, -3:] = 255
    return image, mask


@pytest.mark.parametrize("channels", [1, 3, 5, 12])
def test_image_and_mask_move_together(channels):
    torch.manual_seed(0)
    image, mask = batch(channels)
    moves = BatchAugmentation(vflip=0.5, rot90=0.75, degrees=20, translate=0.1, scale=(0.7, 1.3))
    moved, target, _ = moves(image, mask)
    assert (moved.shape, target.shape, target.dtype) == (image.shape, mask.shape, torch.int64)
    assert set(target.unique().tolist()) == {0, 1, 255}
    counted = target != 255
    assert ((moved[:, 0] > 0) != (target == 1))[counted].float().mean() < 0.03
    assert len({tuple(one.flatten().tolist()) for one in target}) == len(target)  # each its own draw


def test_what_comes_from_outside_is_ignored():
    torch.manual_seed(0)
    image, mask = torch.ones(4, 2, 32, 32), torch.zeros(4, 32, 32, dtype=torch.int64)
    moved, target, _ = BatchAugmentation(hflip=0.0, scale=(0.5, 0.5))(image, mask)
    assert (target == 0).float().mean().item() == pytest.approx(0.25, abs=0.05)
    assert (moved[:, 0][target == 255] < 0.75).all()
    assert (target[:, 8:24, 8:24] == 0).all()


def test_real_pixels_are_those_of_the_image_whatever_its_labels():
    torch.manual_seed(0)
    image, mask = torch.ones(4, 2, 32, 32), torch.zeros(4, 32, 32, dtype=torch.int64)
    moves = BatchAugmentation(degrees=30, translate=0.2, scale=(0.6, 1.2))
    state = torch.get_rng_state()
    _, target, is_real = moves(image, mask)
    assert torch.equal(is_real, target != 255)
    assert 0.3 < is_real.float().mean() < 0.95
    mask[:, 8:24] = 255
    torch.set_rng_state(state)
    _, target, same = moves(image, mask)
    assert torch.equal(same, is_real)
    assert (target[is_real] == 255).any()


def test_real_pixels_move_along():
    image, mask = torch.rand(3, 4, 16, 16), torch.zeros(3, 16, 16, dtype=torch.int64)
    is_real = torch.rand(3, 16, 16) > 0.5
    for moves, expected in ((BatchAugmentation(hflip=1.0), is_real.flip(-1)), (BatchAugmentation(hflip=0.0), is_real)):
        moved = moves(image, mask, is_real)[2]
        assert moved.dtype == torch.bool
        assert torch.equal(moved, expected)
        assert moves(image, mask)[2] is None  # nothing comes from outside
    assert BatchAugmentation(degrees=10)(image)[1:] == (None, None)


@pytest.mark.parametrize("moves", [{"hflip": 0.0}, {"degrees": 20.0, "scale": (0.6, 0.9)}])
def test_colours_leave_what_is_no_image_at_0(moves):
    image, mask = torch.rand(4, 3, 32, 32) + 1, torch.zeros(4, 32, 32, dtype=torch.int64)
    is_real = torch.ones(4, 32, 32, dtype=torch.bool)
    is_real[:, 20:] = False
    image, mask = image.masked_fill(~is_real[:, None], 0), mask.masked_fill(~is_real, 255)
    moved, _, there = BatchAugmentation(**moves, color=0.4)(image, mask, is_real)
    assert 0 < there.float().mean() < 1
    assert moved[~there[:, None].expand_as(moved)].abs().max() == 0
    assert moved[there[:, None].expand_as(moved)].abs().min() > 0


def test_mirror_images_are_exact():
    image, mask = torch.rand(3, 4, 16, 16), torch.randint(0, 5, (3, 16, 16))
    moved, target, _ = BatchAugmentation(hflip=1.0)(image, mask)
    assert torch.equal(moved, image.flip(-1))
    assert torch.equal(target, mask.flip(-1))
    moved, target, _ = BatchAugmentation(hflip=0.0, vflip=1.0)(image, mask)
    assert torch.equal(target, mask.flip(-2))


def test_quarter_turns_are_exact_up_to_rounding():
    torch.manual_seed(0)
    image, mask = torch.rand(8, 4, 16, 16), torch.randint(0, 5, (8, 16, 16))
    moved, target, _ = BatchAugmentation(hflip=0.0, rot90=1.0)(image, mask)
    for place in range(8):
        turns = [turn for turn in (1, 2, 3) if torch.equal(target[place], mask[place].rot90(turn))]
        assert len(turns) == 1
        torch.testing.assert_close(moved[place], image[place].rot90(turns[0], (1, 2)), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="expected square images"):
        BatchAugmentation(rot90=0.5)(torch.rand(1, 1, 8, 4))


def test_without_masks_and_without_anything():
    image = torch.rand(2, 7, 8, 8)
    moved, target, _ = BatchAugmentation(degrees=10, color=0.3)(image)
    assert moved.shape == image.shape
    assert target is None
    assert torch.equal(BatchAugmentation(hflip=0.0)(image)[0], image)


@pytest.mark.parametrize(
    "changes", [{"hflip": 2.0}, {"degrees": -1}, {"color": -1}, {"scale": (0, 1)}, {"scale": (2, 1)}, {"translate": 2}]
)
def test_arguments_are_checked(changes):
    with pytest.raises(ValueError, match="expected"):
        BatchAugmentation(**changes)


# ---------------------------------------------------------------- channels

ONE, ZERO = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)


def test_known_values():
    image = torch.tensor([[[0.0, 1.0], [2.0, 4.0]]])
    torch.testing.assert_close(change_channels(image, ZERO, ONE, ONE), image)
    torch.testing.assert_close(change_channels(image, ZERO, ONE, 2 * ONE), image**2 / 4)
    torch.testing.assert_close(change_channels(image, ZERO, 2 * ONE, ONE), 1.75 + 2 * (image - 1.75))
    shifted = change_channels(image, ONE, ONE, ONE)
    torch.testing.assert_close(shifted - image, image.std(correction=0).expand(1, 2, 2))


def test_padding_is_in_no_range_mean_or_std():
    image = torch.rand(2, 3, 8, 8) + 300
    padded = torch.nn.functional.pad(image, (0, 8, 0, 4))
    is_real = torch.nn.functional.pad(torch.ones(2, 8, 8, dtype=torch.bool), (0, 8, 0, 4))
    torch.manual_seed(0)
    alone = ChannelJitter()(image)
    torch.manual_seed(0)
    beside = ChannelJitter()(padded, is_real)
    torch.testing.assert_close(beside, torch.nn.functional.pad(alone, (0, 8, 0, 4)))
    nothing = ChannelJitter()(padded, torch.zeros_like(is_real))
    assert torch.equal(nothing, padded)


@pytest.mark.parametrize("per_channel", [False, True])
def test_it_commutes_with_normalisation(per_channel):
    image = torch.rand(3, 5, 16, 12, dtype=torch.float64)
    jitter = ChannelJitter(0.3, 0.3, 0.3, per_channel)
    results = []
    for units in (image, (image - 0.4) / 0.2, 5000 * image - 300):
        torch.manual_seed(0)
        results.append(jitter(units.float()))
    torch.testing.assert_close((results[0] - 0.4) / 0.2, results[1], atol=2e-5, rtol=0)
    torch.testing.assert_close(5000 * results[0] - 300, results[2], atol=2e-2, rtol=0)


@pytest.mark.parametrize("channels", [1, 3, 5, 64])
def test_each_image_of_a_batch_has_its_own_draw(channels):
    torch.manual_seed(0)
    image = torch.rand(1, channels, 8, 8).expand(4, -1, -1, -1)
    result = ChannelJitter()(image)
    assert result.shape == image.shape
    assert not torch.allclose(result[0], result[1])
    assert ChannelJitter()(image[0]).shape == image[0].shape


def test_channels_drift_together_or_apart():
    torch.manual_seed(0)
    image = torch.rand(1, 8, 8).expand(4, -1, -1)
    together, apart = ChannelJitter()(image), ChannelJitter(per_channel=True)(image)
    torch.testing.assert_close(together[0], together[1])
    assert not torch.allclose(apart[0], apart[1])


def test_constant_channels_and_half_precision():
    assert torch.equal(ChannelJitter()(torch.full((2, 4, 4), 7.0)), torch.full((2, 4, 4), 7.0))
    half = ChannelJitter()(torch.rand(2, 3, 8, 8, dtype=torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert torch.isfinite(half).all()


def test_strengths_are_checked():
    with pytest.raises(ValueError, match="gamma=-1"):
        ChannelJitter(gamma=-1)
