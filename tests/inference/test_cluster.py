"""On a Dask cluster images are predicted as in one process, bit for bit, also where a worker is lost."""

from __future__ import annotations

import json
import os
import signal
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from castvision.inference import cluster
from castvision.inference.evaluation import Tally
from castvision.inference.files import OutputFolder
from castvision.inference.parts import Part, PartSink, join_parts, plan_parts
from castvision.inference.prediction import Options, PredictionRun
from castvision.inference.predictor import load_model
from castvision.inference.sinks import FileSink
from castvision.inference.tiling import make_grid
from castvision.metrics import MultiLabelScores
from castvision_cli import main
from tests.inference.prediction_cases import files_of
from tests.inference.tiling_cases import RNG, LocalNet, run

TILES = {"tile": (32, 32), "overlap": 8, "halo": None, "batch_size": 4, "precision": "fp32", "tta": "none"}
SIZES = {"a": (60, 60), "b": (60, 50), "long": (320, 100), "z": (33, 60)}
TIMED = ("seconds", "megapixels_per_second")


def test_parts_cover_an_image_once():
    grid = make_grid((700, 90), 32, 12, 3)
    parts = plan_parts(grid, 1)
    assert [part.first for part in parts] == list(range(0, len(grid.rows), 8))
    assert parts[-1].stop == len(grid.rows)
    assert (parts[0].top, parts[-1].bottom) == (0, 700)
    assert all(a.bottom == b.top and a.stop == b.first for a, b in pairwise(parts))
    assert plan_parts(make_grid((150, 90), 32, 12, 3), 1) == []


@pytest.mark.parametrize("output", ["labels", "probabilities"])
def test_parts_in_any_order_are_joined_to_the_bits_of_one_run(tmp_path, output):
    """With tiles that have no data, a part of which no tile is run, and two lots of bands at once."""
    image = RNG.normal(size=(700, 50, 3)).astype(np.float32)
    image[200:420] = np.nan
    image[600:, :20] = np.nan
    net, options = LocalNet(), {"output": output, "batch_size": 6}
    whole = FileSink(tmp_path / "whole")
    expected = run(image, net, sink=whole, **options)
    parts = [
        Part(part.first, part.stop, part.top, part.bottom) for part in plan_parts(make_grid((700, 50), 32, 12, 3), 2)
    ]
    paths = [tmp_path / f"part.{part.first}" for part in parts]
    assert len(parts) == 3
    for path, part in reversed(list(zip(paths, parts, strict=True))):
        sink = PartSink(path, part, "me")
        sink.finish(run(image, net, sink=sink, **options))
        sink.discard()
    join_parts(paths, tmp_path / "joined")
    joined = FileSink(tmp_path / "joined", resume=True)
    calls = []
    got = run(image, lambda batch: calls.append(1) or net(batch), sink=joined, **options)
    assert not calls
    assert joined.path.read_bytes() == whole.path.read_bytes()
    for name in ("seam", "tiles_run", "tiles_skipped", "class_pixels", "class_probability"):
        np.testing.assert_equal(getattr(got, name), getattr(expected, name))


def alike(one: Path, two: Path) -> None:
    """The same files with the same content, but for times in records."""
    assert files_of(one) == files_of(two)
    for name in files_of(one):
        first, second = (folder / name for folder in (one, two))
        if first.suffix != ".json" or name == "run.json":
            assert name == "run.json" or first.read_bytes() == second.read_bytes(), name
            continue
        contents = [json.loads(path.read_text()) for path in (first, second)]
        for content in contents:
            for record in content.get("images", [content]):
                for key in TIMED:
                    record.pop(key, None)
        assert contents[0] == contents[1], name


@pytest.fixture
def images(tmp_path):
    """Three of 60 pixels and one of 13 bands of tiles; one that is none."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, size in SIZES.items():
        Image.fromarray(RNG.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


class Here:
    """A client that works in this process, in the order of Dask's calls."""

    def submit(self, function, *arguments, pure=False):
        return Done(function(*(each.result() if isinstance(each, Done) else each for each in arguments)))


class Done:
    status = "finished"

    def __init__(self, value):
        self.value = value

    def result(self):
        return self.value


class Completed:
    """In the place of ``as_completed``."""

    def __init__(self, futures, raise_errors):
        self.futures = list(futures)

    def add(self, future):
        self.futures.append(future)

    def __iter__(self):
        while self.futures:
            yield self.futures.pop(0)


def predicted(folder, segmenter, images, *words):
    line = [
        "predict",
        str(images),
        "--model",
        str(segmenter),
        "--output",
        str(folder),
        "--tile",
        "32",
        "--device",
        "cpu",
    ]
    return main([*line, "--overlap", "8", "--geojson", "--probabilities", *words])


def test_units_write_what_one_process_writes(tmp_path, segmenter, images, monkeypatch):
    assert predicted(tmp_path / "one", segmenter, images) == 1
    output = tmp_path / "many"
    options = Options(tiles={**TILES, "context_size": None, "mask_nodata": True}, geojson=True, probabilities=True)
    work = cluster.Prediction(str(segmenter), None, "cpu", output, options)
    found = {path: path.stem for path in sorted(images.glob("*.png"))}
    monkeypatch.setattr(cluster, "completed_of", lambda futures: Completed(futures, False))
    reported = []
    failed = cluster.distribute(Here(), work, found, {}, lambda *told: reported.append(told))
    assert list(failed) == [images / "broken.png"]
    done = PredictionRun(load_model(segmenter), OutputFolder(output, overwrite=True), options)
    for path, name in found.items():
        if path not in failed:
            done.take(path, name)
    done.write_tables([{"image": str(path), "error": error} for path, error in failed.items()])
    (output / "run.json").write_text("{}")
    alike(tmp_path / "one", output)
    assert reported[-1][1:] == (7, 7)
    assert {told[0] for told in reported} == {None, *found}


def test_parts_are_kept_of_images_that_failed_alone(tmp_path, segmenter, images, monkeypatch):
    """What is joined needs no parts, nor what a lost worker began; what failed goes on from its own."""
    (images / "inner").mkdir()
    for name in ("inner/long", "long.too"):
        (images / f"{name}.png").write_bytes((images / "long.png").read_bytes())
    output, parts = tmp_path / "many", tmp_path / "many" / cluster.PARTS
    options = Options(tiles={**TILES, "context_size": None, "mask_nodata": True})
    work = cluster.Prediction(str(segmenter), None, "cpu", output, options)
    found = {images / f"{name}.png": name for name in ("long", "inner/long", "long.too")}
    monkeypatch.setattr(cluster, "completed_of", lambda futures: Completed(futures, False))
    parts.mkdir(parents=True)
    (parts / "long.0.draft-of-a-lost-worker").write_bytes(b"begun")
    with monkeypatch.context() as patch:
        original = cluster.join_parts

        def full(paths, target):
            if "inner" in str(paths[0]):
                raise OSError("no space left")
            original(paths, target)

        patch.setattr(cluster, "join_parts", full)
        failed = cluster.distribute(Here(), work, found, {})
    assert list(failed) == [images / "inner/long.png"]
    left = files_of(parts)
    assert len(left) >= 4 and all(str(name).startswith("inner/long.") for name in left)
    assert cluster.distribute(Here(), work, found, {}) == {}
    assert not parts.exists()


def test_counts_of_units_are_those_of_one_process(tmp_path, segmenter, images, monkeypatch):
    (tmp_path / "masks").mkdir()
    for path in images.glob("*.png"):
        size = SIZES.get(path.stem, (8, 8))
        Image.fromarray(RNG.integers(0, 3, size, dtype=np.uint8)).save(tmp_path / "masks" / path.name)

    @contextmanager
    def here(address):
        yield Here()

    monkeypatch.setattr(cluster, "find_spec", lambda name: object())
    monkeypatch.setattr(cluster, "connected", here)
    monkeypatch.setattr(cluster, "completed_of", lambda futures: Completed(reversed(futures), False))
    line = ["evaluate", "--model", str(segmenter), "--images", str(images), "--masks", str(tmp_path / "masks")]
    assert main([*line, "--output", str(tmp_path / "one"), "--device", "cpu"]) == 1
    assert main([*line, "--output", str(tmp_path / "many"), "--device", "cpu", "--cluster", "local:2"]) == 1
    for name in files_of(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes(), name


def test_answers_of_several_labels_are_merged() -> None:
    names, generator = 3, torch.Generator().manual_seed(0)
    whole = Tally(torch.zeros(names, names, dtype=torch.int64), None, (MultiLabelScores(names), torch.zeros(3).long()))
    merged = whole.empty()
    for _ in range(5):
        said, truth = torch.rand(names, generator=generator), torch.randint(0, 2, (names,), generator=generator)
        whole.answer(said, truth)
        one = whole.empty()
        one.answer(said, truth)
        merged.merge(one)
    assert torch.equal(whole.labels[0].compute(), merged.labels[0].compute())
    assert torch.equal(whole.labels[1], merged.labels[1])


@pytest.mark.parametrize("address", ["local:0", "local:", "local:x", "host:8786", ""])
def test_addresses_that_are_none(address, monkeypatch):
    monkeypatch.setattr(cluster, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match="expected --cluster local, local:N or tcp://HOST:PORT"):
        cluster.check_address(address)


def test_without_dask(tmp_path, segmenter, images, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    assert predicted(tmp_path / "out", segmenter, images, "--cluster", "local:2") == 2
    assert "pip install 'castvision[cluster]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class Mortal(cluster.Prediction):
    """Kills the first worker that is about to join the parts of an image."""

    def make(self):
        made = super().make()
        mark, original = self.output.parent / "killed", made.store

        def store(name):
            if name == "long" and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return original(name)

        made.store = store
        return made


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_two_workers_one_of_them_killed(tmp_path, segmenter, images, capsys):
    pytest.importorskip("distributed")
    assert predicted(tmp_path / "one", segmenter, images) == 1
    assert predicted(tmp_path / "two", segmenter, images, "--cluster", "local:2") == 1
    alike(tmp_path / "one", tmp_path / "two")
    assert not (tmp_path / "two" / cluster.PARTS).exists()
    assert "broken.png" in capsys.readouterr().out
    output = tmp_path / "three"
    options = Options(tiles={**TILES, "context_size": None, "mask_nodata": True}, geojson=True, probabilities=True)
    work = Mortal(str(segmenter), None, "cpu", output, options)
    found = {path: path.stem for path in sorted(images.glob("*.png"))}
    with cluster.connected("local:2") as client:
        failed = cluster.distribute(client, work, found, {})
    assert list(failed) == [images / "broken.png"]
    assert (tmp_path / "killed").exists()
    for name in files_of(output):
        if not name.endswith(".json"):
            assert (output / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
