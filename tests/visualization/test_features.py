from __future__ import annotations

import numpy as np
import pytest
import torch

from castvision.visualization.features import enlarged, heat_map, principal_colours, similarity


def test_equal_features_have_equal_colours_and_others_do_not():
    torch.manual_seed(0)
    wanted = torch.randn(6, 8, 16)
    colours = principal_colours(wanted, wanted)
    assert colours.shape == (6, 8, 3)
    assert 0 <= colours.min() < 0.1 < 0.9 < colours.max() <= 1
    assert torch.equal(principal_colours(wanted), colours)
    other = wanted.clone()
    other[2, 3] += 3
    changed = (principal_colours(other, wanted) != colours).any(-1)
    assert changed[2, 3]
    assert changed.sum() == 1


def test_the_colours_are_the_principal_components_however_near_their_variances_are():
    patches = torch.randn(8, 10, 64, generator=torch.Generator().manual_seed(0))
    centred = patches.flatten(0, 1) - patches.flatten(0, 1).mean(0)
    _, _, directions = torch.linalg.svd(centred.double(), full_matrices=False)
    expected = centred.double() @ directions[:3].T
    low, high = torch.quantile(expected, torch.tensor([0.01, 0.99], dtype=torch.float64), dim=0)
    expected = ((expected - low) / (high - low)).clamp(0, 1)
    found = principal_colours(patches).flatten(0, 1).double()
    apart = torch.minimum((found - expected).abs().amax(0), (1 - found - expected).abs().amax(0))  # of either sign
    assert apart.max() < 1e-4


def test_the_first_component_is_the_direction_of_most_variance():
    ramp = torch.linspace(-5, 5, 40).reshape(5, 8)
    torch.manual_seed(0)
    patches = torch.randn(5, 8, 6) * 0.01
    patches[..., 4] += ramp
    red = principal_colours(patches)[..., 0].flatten()
    assert torch.corrcoef(torch.stack([red, ramp.flatten()]))[0, 1].abs() > 0.99


def test_tokens_without_features_are_black_and_change_nothing():
    torch.manual_seed(0)
    patches = torch.randn(6, 8, 16)
    with_gap = torch.cat([patches, torch.full((1, 8, 16), float("nan"))])
    colours = principal_colours(with_gap)
    assert torch.equal(colours[:6], principal_colours(patches))
    assert not colours[6].any()


def test_too_little_for_three_components_is_refused():
    with pytest.raises(ValueError, match="at least 4 tokens of 3 channels"):
        principal_colours(torch.randn(1, 3, 8))


def test_similarity_is_the_cosine_to_the_token():
    patches = torch.tensor([[[2.0, 0], [5, 0]], [[0, 3], [-1, 0]], [[1, 1], [float("nan")] * 2]])
    found = similarity(patches, 0, 0)
    assert found.flatten()[:5].tolist() == pytest.approx([1, 1, 0, -1, 0.5**0.5])
    assert found[2, 1].isnan()
    with pytest.raises(ValueError, match="holds none"):
        similarity(patches, 2, 1)


def test_a_heat_map_goes_from_dark_to_bright():
    values = np.array([[0.0, 0.5, 1.0, np.nan]], np.float32)
    picture = heat_map(values)
    assert picture.dtype == np.uint8
    assert picture[0, 0].tolist() == [68, 1, 84]  # viridis
    assert picture[0, 2].tolist() == [253, 231, 36]
    assert picture[0, 3].tolist() == [0, 0, 0]
    assert (heat_map(values, high=2.0)[0, 2] == heat_map(values)[0, 1]).all()
    assert heat_map(np.ones((2, 2), np.float32)).shape == (2, 2, 3)


def test_enlarging_repeats_pixels():
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    big = enlarged(picture, 14)
    assert big.shape == (512, 512, 3)
    assert (big[::256, ::256] == picture).all()
    assert enlarged(np.zeros((100, 50, 3), np.uint8), 14).shape == (1400, 700, 3)
    assert enlarged(np.zeros((1500, 50, 3), np.uint8), 14).shape == (1500, 50, 3)
