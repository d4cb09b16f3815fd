from __future__ import annotations

import torch

from castvision.inference.blending import blend, hann_ramp


def test_weights_rise_mirror_and_sum_to_one_exactly():
    for width in (1, 2, 31, 32, 500):
        ramp = hann_ramp(width)
        assert ramp.dtype == torch.float32
        assert (ramp.diff() > 0).all()
        assert torch.equal(ramp + (1 - ramp), torch.ones(width))
        assert torch.equal(ramp.flip(0), 1 - ramp)
    assert hann_ramp(0).shape == (0,)


def test_blending_agreeing_tiles_is_exact():
    torch.manual_seed(0)
    values = torch.randn(3, 20, 64) * torch.logspace(-6, 6, 64)
    assert torch.equal(blend(values, values.clone(), hann_ramp(64)), values)
