from __future__ import annotations

import pytest
import torch

from castvision.data.transforms.batch_augmentation import ChannelJitter, change_channels

ONE, ZERO = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)


def test_known_values():
    image = torch.tensor([[[0.0, 1.0], [2.0, 4.0]]])
    torch.testing.assert_close(change_channels(image, ZERO, ONE, ONE), image)
    torch.testing.assert_close(change_channels(image, ZERO, ONE, 2 * ONE), image**2 / 4)
    torch.testing.assert_close(change_channels(image, ZERO, 2 * ONE, ONE), 1.75 + 2 * (image - 1.75))
    shifted = change_channels(image, ONE, ONE, ONE)
    torch.testing.assert_close(shifted - image, image.std(correction=0).expand(1, 2, 2))


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
