from __future__ import annotations

import numpy as np
import pytest
import torch

from castvision.visualization.features import enlarged, heat_map, principal_colours, similarity


def test_three_components_are_the_first_three_though_others_are_nearly_as_large() -> None:
    spread = torch.arange(1, 65) ** -0.5
    patches = torch.randn(20, 20, 64, generator=torch.Generator().manual_seed(0)) * spread
    tokens = (patches - patches.mean((0, 1))).flatten(0, 1).double()
    directions = torch.linalg.svd(tokens, full_matrices=False)[2][:3]
    colours = principal_colours(patches).flatten(0, 1)
    for colour, exact in zip(colours.T, (tokens @ directions.T).T, strict=True):
        low, high = exact.quantile(0.01), exact.quantile(0.99)
        placed = ((exact - low) / (high - low)).clamp(0, 1).float()
        assert min((colour - placed).abs().max(), (colour - 1 + placed).abs().max()) < 0.01


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


def test_the_random_state_is_left_alone():
    state = torch.get_rng_state()
    principal_colours(torch.randn(4, 4, 5))
    assert not torch.equal(torch.get_rng_state(), state)  # by randn
    state = torch.get_rng_state()
    principal_colours(torch.ones(4, 4, 5) * torch.arange(4.0)[:, None, None])
    assert torch.equal(torch.get_rng_state(), state)


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
