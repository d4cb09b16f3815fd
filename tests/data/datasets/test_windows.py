"""Training windows: where they lie, what is ignored, what is refused; every pixel value says where it comes from."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch.nn import functional
from torch.utils.data import DataLoader

from castvision.data import ChannelStatistics, ImageSources, WindowDataset
from castvision.data.datasets.regions import Block
from castvision.data.datasets.sources import ClassIndex

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 300, 520


def places(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Each pixel holds its row and column."""
    return np.stack(np.mgrid[:height, :width], axis=-1).astype(np.float32)


@pytest.fixture
def pair(tmp_path):
    """An image of places, and a mask with a common class 0, a rare class 3 and unlabelled pixels."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[280:284, 500:504] = 3
    mask[:50] = 255
    tifffile.imwrite(tmp_path / "a.tif", places(), photometric="minisblack", planarconfig="contig", tile=(64, 64))
    Image.fromarray(mask).save(tmp_path / "a.png")
    return tmp_path / "a.tif", tmp_path / "a.png", mask


def corner(image: torch.Tensor) -> tuple[int, int]:
    return int(image[0, 0, 0]), int(image[1, 0, 0])


def test_random_windows_lie_inside_and_depend_on_seed_and_index_only(pair):
    image_path, mask_path, mask = pair
    sources = ImageSources([(image_path, mask_path)])
    data = WindowDataset(sources, 64, seed=1)
    assert len(data) == 1 << 40
    corners = set()
    for index in range(60):
        image, labels = data[index]
        y, x = corner(image)
        assert image.dtype == torch.float32 and labels.dtype == torch.int64
        np.testing.assert_array_equal(image, places()[y : y + 64, x : x + 64].transpose(2, 0, 1))
        np.testing.assert_array_equal(labels, mask[y : y + 64, x : x + 64])
        corners.add((y, x))
    assert len(corners) > 55 and min(y for y, _ in corners) < 40 and max(y for y, _ in corners) > 196
    again = WindowDataset(ImageSources([(image_path, mask_path)]), 64, seed=1)
    other = WindowDataset(sources, 64, seed=2)
    assert torch.equal(again[7][0], data[7][0]) and not torch.equal(other[7][0], data[7][0])
    assert torch.equal(data[(1 << 40) - 1][0], again[(1 << 40) - 1][0])
    with pytest.raises(IndexError):
        data[1 << 40]


def test_classes_are_met_equally_often_and_anywhere_in_the_window(pair):
    image_path, mask_path, _ = pair
    data = WindowDataset(ImageSources([(image_path, mask_path)]), 32, balance="class")
    assert data.index.present == [0, 3] and data.index.counts[3] == 16 and data.index.counts[0] == 250 * 520 - 16
    with_rare = [bool((data[index][1] == 3).any()) for index in range(200)]
    assert 80 < sum(with_rare) < 125  # a window of class 0 seldom meets class 3: 0.1 % of the ground
    rows = {int((data[index][1] == 3).nonzero()[0, 0]) for index in range(200) if with_rare[index]}
    assert len(rows) > 10  # not always in the middle


def test_every_pixel_of_a_class_can_be_drawn(tmp_path):
    mask = np.where(RNG.random((700, 900)) < 0.00002, 7, 255).astype(np.uint8)
    mask[699, 899] = 7
    tifffile.imwrite(tmp_path / "m.tif", mask, tile=(64, 64), compression="zlib")
    tifffile.imwrite(tmp_path / "i.tif", mask, tile=(64, 64), compression="zlib")
    sources = ImageSources([(tmp_path / "i.tif", tmp_path / "m.tif")])
    index = ClassIndex(sources, [(0, Block(3, 5, 697, 895))])
    rng = np.random.default_rng(0)
    drawn = {index.draw(rng, sources)[1:] for _ in range(400)}
    assert drawn == {(row, column) for row, column in np.argwhere(mask == 7).tolist() if row >= 3 and column >= 5}


def test_the_grid_covers_every_pixel_once_and_pads_with_ignored(pair):
    image_path, mask_path, mask = pair
    data = WindowDataset(ImageSources([(image_path, mask_path)]), 128, sampling="grid")
    assert len(data) == 3 * 5
    seen = np.full((3 * 128, 5 * 128), -1)
    for image, labels, extras in data:
        y, x = corner(image)
        assert extras["pixel_mask"].sum() == min(128, HEIGHT - y) * min(128, WIDTH - x)
        assert extras["pixel_mask"][: HEIGHT - y, : WIDTH - x].all()
        seen[y : y + 128, x : x + 128] = labels.numpy()
        assert (image[:, labels.shape[0] - (y + 128 - HEIGHT) :] == 0).all() or y + 128 <= HEIGHT
    np.testing.assert_array_equal(seen[:HEIGHT, :WIDTH], mask)
    assert (seen[HEIGHT:] == 255).all() and (seen[:, WIDTH:] == 255).all()
    assert len(WindowDataset(data.sources, 128, sampling="grid", stride=64)) == 4 * 8
    assert len(WindowDataset(data.sources, 1000, sampling="grid")) == 1
    assert len(WindowDataset(data.sources, 50, sampling="grid").keep_labelled()) == 5 * 11  # the first row has none


def test_windows_never_leave_their_region(pair):
    image_path, mask_path, _ = pair
    sources = ImageSources([(image_path, mask_path)])
    region = (0, Block(200, 400, 90, 110))
    for how in ({}, {"balance": "class"}, {"sampling": "grid"}):
        for size in (40, 128):  # also larger than the region
            data = WindowDataset(sources, size, regions=[region], **how)
            for index in range(min(len(data), 40)):
                image, labels, *extras = data[index]
                known = labels != 255
                rows, columns = image[0][known], image[1][known]
                assert rows.min() >= 200 and rows.max() < 290 and columns.min() >= 400 and columns.max() < 510
                assert (image[:, ~known] == 0).all()
                assert len(extras) == data.has_gaps == (size == 128 or "sampling" in how)
                assert not extras or torch.equal(extras[0]["pixel_mask"], known)


def test_symmetries(pair):
    image_path, mask_path, mask = pair
    data = WindowDataset(ImageSources([(image_path, mask_path)]), 16, symmetries=True)
    turns = set()
    for index in range(80):
        image, labels = data[index]
        rows, columns = image.long()
        assert torch.equal(labels, torch.from_numpy(mask)[rows, columns].long())
        turns.add((int(rows[1, 0] - rows[0, 0]), int(rows[0, 1] - rows[0, 0]), int(columns[0, 1] - columns[0, 0]),
                   int(columns[1, 0] - columns[0, 0])))  # fmt: skip
    assert len(turns) == 8


@pytest.mark.parametrize("how", [{}, {"symmetries": True}, {"sampling": "grid"}])
def test_the_context_shows_at_the_windows_place_what_the_window_shows(pair, how):
    """Pixels that hold their places: means of a window's quarters stand in the context where the window says."""
    image_path, mask_path, _ = pair
    statistics = ChannelStatistics((150.0, 260.0), (10.0, 10.0))
    data = WindowDataset(ImageSources([(image_path, mask_path)], context_size=(30, 30)), 64, statistics, **how)
    centres = torch.cartesian_prod(torch.tensor([0.25, 0.75]), torch.tensor([0.25, 0.75]))  # (4, 2)
    for index in range(20):
        image, _, extras = data[index]
        context, window = extras["context"], extras["window"]
        assert context.shape == (2, 30, 30) and context.dtype == window.dtype == torch.float32
        assert torch.allclose(window[2:].prod(), torch.tensor(64 * 64 / (HEIGHT * WIDTH)))
        if (window[:2] + window[2:] > 1).any():  # hangs over the border
            continue
        places = (window[:2] + window[2:] * centres).clamp(0.02, 0.98)
        found = functional.grid_sample(context[None], 2 * places.flip(-1)[None, None] - 1, align_corners=False)[0, :, 0]
        shown = functional.avg_pool2d(image, 32).flatten(1)  # (2, 4)
        assert (found - shown).abs().max() < 0.7  # places in tens of pixels


def test_windows_without_context_are_the_same_windows(pair):
    image_path, mask_path, _ = pair
    plain, shown = (
        WindowDataset(ImageSources([(image_path, mask_path)], context_size=size), 64, symmetries=True)
        for size in (None, (8, 8))
    )
    for index in range(5):
        assert len(plain[index]) == 2
        assert all(torch.equal(*pair) for pair in zip(plain[index], shown[index], strict=False))
    copy = pickle.loads(pickle.dumps(shown))
    assert torch.equal(copy[3][2]["context"], shown[3][2]["context"])


def test_context_in_the_units_of_the_windows_and_beyond_the_border(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.full((20, 30), 51, np.uint8))
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "m.png")
    sources = ImageSources([(tmp_path / "a.tif", tmp_path / "m.png")], context_size=(4, 6))
    image, _, extras = WindowDataset(sources, 40, ChannelStatistics((0.1,), (0.5,)), sampling="grid")[0]
    assert image[0, 0, 0] == pytest.approx(0.2) and extras["context"].numpy() == pytest.approx(0.2)
    assert extras["window"].tolist() == pytest.approx([0, 0, 40 / 20, 40 / 30])


def test_what_context_does_not_go_with(pair):
    image_path, mask_path, _ = pair
    sources = ImageSources([(image_path, mask_path)], context_size=(4, 6))
    with pytest.raises(ValueError, match=r"square context_size with symmetries .*\(4, 6\)"):
        WindowDataset(sources, 16, symmetries=True)
    with pytest.raises(ValueError, match="no transform"):
        WindowDataset(sources, 16, transform=object())
    with pytest.raises(ValueError, match="context_size >= 1"):
        ImageSources([(image_path, mask_path)], context_size=(0, 6))


def test_nodata_is_ignored_and_unlabelled_sources_give_255(tmp_path):
    pixels = np.full((20, 30, 2), 5, np.int16)
    pixels[:10] = -9
    pixels[12, :, 0] = -9  # one channel only
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", planarconfig="contig",
                     extratags=[(42113, 2, None, "-9", True)])  # fmt: skip
    Image.fromarray(np.ones((20, 30), np.uint8)).save(tmp_path / "m.png")
    statistics = ChannelStatistics((1.0, 2.0), (2.0, 2.0))
    sources = ImageSources([(tmp_path / "a.tif", tmp_path / "m.png")])
    image, labels, extras = WindowDataset(sources, 20, statistics)[0]
    assert extras["pixel_mask"].all(dim=1).tolist() == [False] * 10 + [True] * 10
    turned = WindowDataset(sources, 20, symmetries=True, seed=2)
    assert all(torch.equal(is_real["pixel_mask"], target == 1) for _, target, is_real in (turned[i] for i in range(8)))
    assert (labels[:10] == 255).all() and (labels[10:] == 1).all()
    assert (image[:, :10] == 0).all() and (image[0, 12] == 0).all() and (image[1, 12] == 1.5).all()
    assert (image[0, 13] == 2).all()
    assert (WindowDataset(ImageSources([(tmp_path / "a.tif", None)]), 20)[0][1] == 255).all()


def test_the_nodata_value_of_a_mask_is_ignored(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((20, 20), np.uint8))
    tifffile.imwrite(tmp_path / "m.tif", np.eye(20, dtype=np.uint8), extratags=[(42113, 2, None, "0", True)])
    sources = ImageSources([(tmp_path / "a.tif", tmp_path / "m.tif")])
    assert ClassIndex(sources, [(0, Block(0, 0, 20, 20))]).present == [1]


def test_nan_is_no_data_whether_the_file_says_so_or_not(tmp_path):
    pixels = np.zeros((40, 40), np.float32)
    pixels[21, 33] = np.nan
    Image.fromarray(np.ones((40, 40), np.uint8)).save(tmp_path / "m.png")
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    data = WindowDataset(ImageSources([(tmp_path / "a.tif", tmp_path / "m.png")]), 20, sampling="grid")
    assert data[0][0].isfinite().all()
    image, labels, extras = data[3]
    assert image.isfinite().all() and (labels == 255).nonzero().tolist() == [[1, 13]]
    assert (~extras["pixel_mask"]).nonzero().tolist() == [[1, 13]]
    tifffile.imwrite(tmp_path / "b.tif", pixels, extratags=[(42113, 2, None, "nan", True)])
    data = WindowDataset(ImageSources([(tmp_path / "b.tif", tmp_path / "m.png")]), 20, sampling="grid")
    image, labels, extras = data[3]
    assert image.isfinite().all() and labels[1, 13] == 255 and (labels == 255).sum() == 1
    assert (~extras["pixel_mask"]).nonzero().tolist() == [[1, 13]]


def test_levels_read_the_mask_without_blending(tmp_path):
    full = RNG.integers(0, 256, (200, 240), np.uint8)
    mask = RNG.integers(0, 5, (200, 240)).astype(np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(full, subifds=1, tile=(32, 32))
        writer.write(full[::2, ::2], subfiletype=1, tile=(32, 32))
    tifffile.imwrite(tmp_path / "m.tif", mask)
    tifffile.imwrite(tmp_path / "small.tif", mask[::2, ::2])
    sources = ImageSources(
        [(tmp_path / "a.tif", tmp_path / "m.tif"), (tmp_path / "a.tif", tmp_path / "small.tif")], level=1
    )
    assert sources.sizes == [(100, 120)] * 2
    data = WindowDataset(sources, 50, sampling="grid")
    image, labels, *_ = data[1]
    np.testing.assert_allclose(image[0] * 255, full[::2, ::2][:50, 50:100], atol=1e-4)
    np.testing.assert_array_equal(labels, mask[1::2, 1::2][:50, 50:100])
    np.testing.assert_array_equal(data[7][1], mask[::2, ::2][:50, 50:100])
    with pytest.raises(ValueError, match=r"level in 0\.\.1 of .*a\.tif', got level=2"):
        ImageSources([(tmp_path / "a.tif", None)], level=2)


def test_loader_processes_and_pickles(pair):
    image_path, mask_path, _ = pair
    data = WindowDataset(ImageSources([(image_path, mask_path)]), 32, balance="class", symmetries=True)
    expected = [data[index] for index in range(8)]  # the files are open when the processes start
    loader = DataLoader(data, batch_size=2, sampler=range(8), num_workers=2)
    for number, (images, labels) in enumerate(loader):
        for place in range(2):
            assert torch.equal(images[place], expected[2 * number + place][0])
            assert torch.equal(labels[place], expected[2 * number + place][1])
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy[5][0], expected[5][0])


def test_few_files_are_open_at_a_time(tmp_path):
    for number in range(12):
        tifffile.imwrite(tmp_path / f"{number}.tif", np.full((16, 16), number, np.uint8))
    sources = ImageSources([(tmp_path / f"{number}.tif", None) for number in range(12)])
    data = WindowDataset(sources, 16, sampling="grid")
    assert [round(float(image[0, 0, 0]) * 255) for image, _ in data] == list(range(12))
    assert len(sources._open) == 8
    sources.close()
    assert not sources._open


class Halved:
    def pair(self, pixels, mask):
        return torch.from_numpy(pixels[::2, ::2].astype(np.float32).transpose(2, 0, 1)), torch.from_numpy(
            mask[::2, ::2]
        ).long()


def test_a_transform_takes_pixels_and_labels_together(pair):
    image_path, mask_path, mask = pair
    image, labels = WindowDataset(ImageSources([(image_path, mask_path)]), 32, transform=Halved())[3]
    assert image.shape == (2, 16, 16)
    rows, columns = image.long()
    assert torch.equal(labels, torch.from_numpy(mask)[rows, columns].long())


def test_what_does_not_fit_is_refused_at_once(pair, tmp_path):
    image_path, mask_path, _ = pair
    Image.fromarray(np.zeros((HEIGHT, WIDTH + 1), np.uint8)).save(tmp_path / "wide.png")
    with pytest.raises(ValueError, match=r"300 × 520 \(.*a\.tif'\), got 300 × 521 in .*wide\.png"):
        ImageSources([(image_path, tmp_path / "wide.png")])
    with pytest.raises(ValueError, match=r"2 channel\(s\) as in .*a\.tif', got 1 in .*wide\.png"):
        ImageSources([(image_path, None), (tmp_path / "wide.png", None)])
    with pytest.raises(ValueError, match="got none"):
        ImageSources([])
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        ImageSources([(image_path, tmp_path / "gone.png")])
    sources = ImageSources([(image_path, mask_path)], num_classes=3)
    with pytest.raises(
        ValueError, match=r"labels 0\.\.2 \(or 255, ignored\) in .*a\.png', got 3 at row 280, column 500"
    ):
        WindowDataset(sources, 32, balance="class")
    for wrong in ({"size": 0}, {"sampling": "random", "stride": 4}, {"sampling": "grid", "balance": "class"},
                  {"sampling": "all"}, {"balance": "pixel"}, {"sampling": "grid", "symmetries": True},
                  {"regions": []}, {"regions": [(0, (0, 0, HEIGHT, WIDTH + 1))]}):  # fmt: skip
        with pytest.raises(ValueError, match="expected"):
            WindowDataset(sources, **{"size": 32, **wrong})
    with pytest.raises(ValueError, match="found none in the masks"):
        WindowDataset(ImageSources([(image_path, None)]), 32, balance="class")
    with pytest.raises(ValueError, match="expected a grid"):
        WindowDataset(sources, 32).keep_labelled()
