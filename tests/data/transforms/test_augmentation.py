from __future__ import annotations

import numpy as np
import pytest
import torch

from castvision.data.datasets.batch import pad_collate
from castvision.data.transforms.augmentation import Augmentation, SampleTransform

DTYPES = {"uint8": 255, "uint16": 65535, "float32": 1}


def checker(height, width, channels, dtype="float32"):
    """Pixels whose first channel is 1 exactly where the mask is 1: whatever moves one must move the other."""
    mask = np.zeros((height, width), np.uint8)
    mask[: height // 2, width // 3 :] = 1
    pixels = np.repeat(mask[..., None], channels, axis=-1).astype(np.float64) * DTYPES[dtype]
    return pixels.astype(dtype), mask


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 12, 64])
def test_image_and_mask_move_together(dtype, channels):
    torch.manual_seed(0)
    pixels, mask = checker(48, 66, channels, dtype)
    how = Augmentation(scale=(0.5, 2.0), hflip=0.5, vflip=0.5, rot90=1.0)
    transform = SampleTransform(40, (0.5,), (0.25,), augmentation=how)
    for _ in range(8):
        image, target, _ = transform.pair(pixels, mask)
        assert (image.dtype, image.shape, target.shape) == (torch.float32, (channels, 40, 40), (40, 40))
        assert set(target.unique().tolist()) <= {0, 1, 255}
        assert (image[:, target == 255] == 0).all()
        shown = (image[0] * 0.25 + 0.5 > 0.5).long()
        differing = (shown != target) & (target != 255)
        assert differing.float().mean() < 0.03  # interpolated borders


@pytest.mark.parametrize("shape", [(1, 1), (200, 3), (3, 200), (64, 64), (31, 57), (5000, 2)])
def test_evaluation_loses_nothing_of_any_shape(shape):
    pixels = np.ones((*shape, 3), np.float32)
    image, target, extras = SampleTransform(64, (0.0,), (1.0,)).pair(pixels, np.ones(shape, np.uint8))
    inside = target != 255
    assert torch.equal(extras["pixel_mask"], inside)
    scale = 64 / max(shape)
    expected = tuple(max(1, round(side * scale)) for side in shape)
    rows, cols = inside.any(1).sum().item(), inside.any(0).sum().item()
    assert (rows, cols) == expected
    assert inside.sum() == rows * cols
    assert (target[inside] == 1).all()
    torch.testing.assert_close(image[:, inside], torch.ones(3, rows * cols))
    assert (image[:, ~inside] == 0).all()


def test_evaluation_at_the_images_size_changes_nothing_but_units():
    pixels = np.random.default_rng(0).integers(0, 65536, (37, 23, 4), dtype=np.uint16)
    mask = np.random.default_rng(1).integers(0, 3, (37, 23), dtype=np.uint8)
    image, target = SampleTransform(512, (0.25,) * 4, (0.5,) * 4, fit=False).pair(pixels, mask)
    expected = (pixels.transpose(2, 0, 1) / 65535 - 0.25) / 0.5
    torch.testing.assert_close(image, torch.tensor(expected, dtype=torch.float32))
    assert target.tolist() == mask.tolist()


def test_16_bits_are_not_cut_to_8():
    pixels = np.zeros((8, 8, 3), np.uint16)
    pixels[..., 1] = 1  # 1 / 65535: nothing in 8 bits
    for how in (None, Augmentation(scale=(1.0, 1.0))):
        assert (SampleTransform(8, (0.0,), (1.0,), augmentation=how).image(pixels)[1] > 0).all()


def test_a_native_crop_covers_a_small_image_whole():
    torch.manual_seed(0)
    pixels, mask = np.ones((10, 12, 2), np.float32), np.ones((10, 12), np.uint8)
    transform = SampleTransform(32, (0.0,), (1.0,), augmentation=Augmentation(scale=(1.0, 1.0)), fit=False)
    for _ in range(5):
        image, target, _ = transform.pair(pixels, mask)
        assert (target == 1).sum() == 120
        assert image.sum() == 240


def test_pixels_of_the_image_are_real_and_no_others():
    """Ignored ones, too; a 20 × 40 image in 40 × 40, in evaluation at the top, in training anywhere."""
    pixels, mask = np.ones((20, 40, 3), np.uint8), np.full((20, 40), 255, np.uint8)
    _, target, extras = SampleTransform(40, (0.0,), (1.0,)).pair(pixels, mask)
    expected = torch.zeros(40, 40, dtype=torch.bool)
    expected[:20] = True
    assert torch.equal(extras["pixel_mask"], expected)
    assert (target == 255).all()
    mask[:, :8] = 1
    how = Augmentation(scale=(1, 1), hflip=0.0, rot90=1.0)
    transform = SampleTransform(40, (0.0,), (1.0,), augmentation=how)
    torch.manual_seed(0)
    samples = [transform.pair(pixels, mask) for _ in range(24)]
    areas = [(extras["pixel_mask"], target) for _, target, extras in samples]
    assert {(area.any(1).sum().item(), area.any(0).sum().item(), area.sum().item()) for area, _ in areas} == {
        (20, 40, 800), (40, 20, 800),
    }  # fmt: skip
    assert all((target == 1).sum() == 160 and area[target == 1].all() for area, target in areas)
    assert all((image[:, extras["pixel_mask"]] > 0).all() for image, _, extras in samples)
    mirrored = SampleTransform(40, (0.0,), (1.0,), augmentation=Augmentation(scale=(1, 1), hflip=1.0))
    plain = SampleTransform(40, (0.0,), (1.0,), augmentation=Augmentation(scale=(1, 1), hflip=0.0))
    tall = np.ones((40, 20, 3), np.uint8), np.ones((40, 20), np.uint8)
    torch.manual_seed(0)
    area = mirrored.pair(*tall)[2]["pixel_mask"]
    torch.manual_seed(0)
    assert torch.equal(area, plain.pair(*tall)[2]["pixel_mask"].flip(-1))


def test_the_mask_is_aligned_with_the_image_when_reduced():
    """Nearest neighbour of the plain kind is half a pixel off."""
    pixels, mask = checker(96, 96, 1)
    image, target, _ = SampleTransform(40, (0.0,), (1.0,)).pair(pixels, mask)
    assert ((image[0] > 0.5) == (target == 1)).all()


@pytest.mark.parametrize(
    ("dtype", "channels"), [("uint8", 1), ("uint8", 3), ("uint16", 3), ("uint16", 7), ("float32", 3)]
)
def test_colours_change_and_stay_finite(dtype, channels):
    torch.manual_seed(0)
    top = DTYPES[dtype]
    pixels = (np.random.default_rng(0).random((16, 16, channels)) * top).astype(dtype)
    transform = SampleTransform(16, (0.5,), (0.5,), augmentation=Augmentation(scale=(1, 1), hflip=0.0, color=0.4))
    first, second = transform.image(pixels), transform.image(pixels)
    assert torch.isfinite(first).all()
    assert (first - second).abs().mean() > 0.01


def test_floats_in_other_units_keep_their_contrast_under_colour():
    """Height in metres: a clipping change of colours would make it all 1."""
    pixels = np.linspace(200, 900, 256, dtype=np.float32).reshape(16, 16, 1)
    transform = SampleTransform(16, (550.0,), (200.0,), augmentation=Augmentation(scale=(1, 1), hflip=0.0, color=0.2))
    assert 0.5 < transform.image(pixels).std() < 2


@pytest.mark.parametrize(
    ("pixels", "mean", "std"),
    [
        (np.float32(285) + 5 * np.random.default_rng(0).standard_normal((16, 32, 1)).astype(np.float32), 285.0, 5.0),
        (np.random.default_rng(0).integers(180, 220, (16, 32, 3), dtype=np.uint8), 200 / 255, 12 / 255),
    ],
    ids=["kelvin", "colours"],
)
def test_colours_of_a_padded_image_are_those_of_it_alone(pixels, mean, std):
    """In the range of its padding, 285 K became 226 K."""
    how = {"augmentation": Augmentation(scale=(1, 1), hflip=0.0, color=0.3)}
    transform = SampleTransform(32, (mean,), (std,), **how)
    padded, square = [], []
    for seed in range(8):
        torch.manual_seed(seed)
        image, _, extras = transform.pair(pixels, np.zeros(pixels.shape[:2], np.uint8))
        padded.append(image[:, extras["pixel_mask"]].mean())
        assert image[:, ~extras["pixel_mask"]].abs().max() == 0
        torch.manual_seed(seed)
        square.append(transform.image(np.concatenate([pixels, pixels])).mean())
    torch.testing.assert_close(torch.stack(padded), torch.stack(square), atol=0.1, rtol=0)


def test_the_same_torch_seed_gives_the_same_sample_and_workers_differ():
    pixels, mask = checker(48, 48, 3)
    transform = SampleTransform(24, (0.5,), (0.5,), augmentation=Augmentation(rot90=1.0, color=0.3))
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append([transform.pair(pixels, mask)[0] for _ in range(4)])
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))


@pytest.mark.parametrize(
    "changes", [{"scale": (0, 1)}, {"scale": (2, 1)}, {"hflip": 1.5}, {"rot90": -0.1}, {"color": -1}, {"color": 2}]
)
def test_augmentation_is_checked(changes):
    with pytest.raises(ValueError, match="expected"):
        Augmentation(**changes)


def test_transforms_are_checked():
    for arguments in ((0, (0.0,), (1.0,)), (8, (0.0,), (0.0,))):
        with pytest.raises(ValueError, match="expected img_size >= 1 and std > 0"):
            SampleTransform(*arguments)


def test_pad_collate():
    samples = [
        (torch.ones(2, 3, 5), torch.ones(3, 5, dtype=torch.int64)),
        (torch.ones(2, 6, 2), torch.zeros(6, 2).long()),
    ]
    batch = pad_collate(samples, multiple=4)
    is_real = batch.extras["pixel_mask"]
    assert (batch.image.shape, batch.target.shape) == ((2, 2, 8, 8), (2, 8, 8))
    assert is_real.sum(dim=(1, 2)).tolist() == [15, 12]
    assert (batch.target[~is_real] == 255).all()
    assert (batch.image.sum(dim=1)[~is_real] == 0).all()
    assert (batch.target[0, :3, :5] == 1).all()
    assert pad_collate(samples).image.shape == (2, 2, 6, 5)
    own = torch.eye(3, 5) > 0
    batch = pad_collate([(*samples[0], {"pixel_mask": own}), samples[1]])
    assert torch.equal(batch.extras["pixel_mask"][0, :3], own)
    assert batch.extras["pixel_mask"].sum(dim=(1, 2)).tolist() == [3, 12]
    with pytest.raises(ValueError, match=r"\[2, 3\]"):
        pad_collate([samples[0], (torch.ones(3, 2, 2), torch.ones(2, 2))])
    with pytest.raises(ValueError, match="a mask of the image's size"):
        pad_collate([(torch.ones(2, 3, 5), torch.ones(5, 3))])
    with pytest.raises(ValueError, match="multiple=0"):
        pad_collate(samples, 0)
