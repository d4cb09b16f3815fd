"""Many or huge images on a Dask cluster: each image is a unit of work, and so are some bands of a large one.

Units write files, whole or not at all, and may be worked on twice: a worker that is lost costs its unit only. Output is
that of one process, bit for bit, if workers have its number of threads (with another one torch rounds otherwise).
"""

from __future__ import annotations

import os
import socket
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from castvision.errors import FAILURES, one_line
from castvision.inference.embedding import EmbeddingRun
from castvision.inference.evaluation import Evaluation
from castvision.inference.feature_model import load_feature_model
from castvision.inference.files import PARTS, OutputFolder
from castvision.inference.parts import Part, PartSink, discard_parts, join_parts, plan_parts
from castvision.inference.prediction import PredictionRun
from castvision.inference.predictor import load_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from castvision.inference.embedding import Options as EmbeddingOptions
    from castvision.inference.evaluation import Tally
    from castvision.inference.prediction import Options as PredictionOptions

LOCAL = "local"


@dataclass(frozen=True)
class Prediction:
    """The run of ``castvision predict``, as every worker makes it for itself.

    Attributes:
        model: See `load_model`.
        attention: Likewise.
        device: Likewise.
        output: A folder that all workers and the command see under this path.
        options: How.
    """

    model: str
    attention: str | None
    device: str
    output: Path
    options: PredictionOptions

    def make(self) -> PredictionRun:
        """Load the model."""
        predictor = load_model(self.model, device=self.device, attention=self.attention)
        output = OutputFolder(self.output, overwrite=True, is_lent=True)
        return PredictionRun(predictor, output, replace(self.options, resume=True))


@dataclass(frozen=True)
class Embedding:
    """The run of ``castvision embed``; attributes as of `Prediction` and of `load_feature_model`."""

    model: str
    weights: Path | None
    attention: str | None
    device: str
    output: Path
    options: EmbeddingOptions

    def make(self) -> EmbeddingRun:
        """Load the model."""
        model = load_feature_model(
            self.model, weights=self.weights, attention=self.attention, device=torch.device(self.device)
        )
        output = OutputFolder(self.output, overwrite=True, is_lent=True)
        return EmbeddingRun(model, output, replace(self.options, resume=True))


@dataclass(frozen=True)
class Measurement:
    """The run of ``castvision evaluate``.

    Attributes:
        model: See `load_model`.
        attention: Likewise.
        device: Likewise.
        arguments: Of `Evaluation`, without the predictor.
        token: Another one for each run.
    """

    model: str
    attention: str | None
    device: str
    arguments: dict[str, Any] = field(repr=False)
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def make(self) -> Evaluation:
        """Load the model."""
        predictor = load_model(self.model, device=self.device, attention=self.attention)
        return Evaluation(predictor, **self.arguments)


_made: dict[str, Any] = {}
"""The run that this worker made last, by its description: a model is loaded once."""


def _run_of(work: Prediction | Embedding | Measurement) -> Any:
    key = repr(work)
    if key not in _made:
        _made.clear()
        _made[key] = work.make()
    return _made[key]


def part_paths(work: Prediction | Embedding, name: str, parts: list[Part]) -> list[Path]:
    """Where the parts of an image stand until they are joined."""
    return [work.output / PARTS / f"{name}.{part.first}" for part in parts]


def plan(work: Prediction | Embedding, path: Path) -> list[Part]:
    """A unit: how an image is cut; empty for one that is a unit by itself."""
    if not isinstance(work, Prediction):
        return []
    found = _run_of(work).bands(path)
    return [] if found is None else plan_parts(*found)


def work_on_part(work: Prediction, path: Path, name: str, mask: Path | None, part: Part) -> None:
    """A unit: some bands of a large image."""
    (target,) = part_paths(work, name, [part])
    if PartSink.facts_of(target).is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    sink = PartSink(target, part, f"{socket.gethostname()}-{os.getpid()}")
    try:
        sink.finish(_run_of(work).predict_bands(path, mask, sink))
    finally:
        sink.discard()


def work_on_image(
    work: Prediction | Embedding, path: Path, name: str, mask: Path | None, parts: list[Part], *_: Any
) -> None:
    """A unit: an image, or what is left to do when all its parts are there."""
    run, paths = _run_of(work), part_paths(work, name, parts)
    if isinstance(run, EmbeddingRun):
        run.embed(path, name, mask)
        return
    if parts and not (work.output / "records" / f"{name}.json").is_file():
        join_parts(paths, run.store(name))
    run.predict(path, name, mask)
    discard_parts(paths)


def measure_image(work: Measurement, path: Path) -> tuple[Tally, str | None]:
    """A unit: what is counted of an image, and what is said of its scale."""
    evaluation = _run_of(work)
    evaluation.tally = evaluation.tally.empty()
    told = evaluation.measure(path)
    return evaluation.tally, told


def _told(unit: Callable[..., Any], *arguments: Any) -> tuple[Any, str | None]:
    """A unit's result, or why it failed: what would fail again is not tried again."""
    failed = next((each[1] for each in arguments if isinstance(each, tuple) and len(each) == 2 and each[1]), None)
    if failed is not None:
        return None, failed
    try:
        return unit(*arguments), None
    except FAILURES as error:
        return None, one_line(error)


def check_address(address: str) -> None:
    """Refuse what `connected` could not use.

    Raises:
        ImportError: Dask is not installed.
        ValueError: No such address.
    """
    if find_spec("distributed") is None:
        raise ImportError("--cluster needs dask.distributed: pip install 'castvision[cluster]'")
    kind, _, number = address.partition(":")
    is_local = kind == LOCAL and (not number or (number.isdecimal() and int(number) >= 1))
    if address == f"{LOCAL}:" or not (is_local or "://" in address):
        raise ValueError(f"expected --cluster local, local:N or tcp://HOST:PORT, got {address!r}")


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """A client of a cluster.

    Args:
        address: ``local`` or ``local:N``: N processes of this machine, each with as many threads of torch as this one;
            or a scheduler's, such as ``tcp://host:8786``.

    Raises:
        ImportError: Dask is not installed.
        ValueError: No such address.
        OSError: Nobody answers there.
    """
    check_address(address)
    import dask
    from distributed import Client, LocalCluster

    kind, _, number = address.partition(":")
    if kind != LOCAL:
        with Client(address, timeout="30s") as client:
            yield client
        return
    processes = int(number) if number else max(1, (os.cpu_count() or 1) // torch.get_num_threads())
    threads = str(torch.get_num_threads())
    with (
        # Dask would have workers give memory back at once, and take it anew for every layer: twice the time
        dask.config.set({"distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": threads}}),
        LocalCluster(
            n_workers=processes, threads_per_worker=1, dashboard_address=None, host="127.0.0.1", memory_limit=0,
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        yield client


def distribute(
    client: Any,
    work: Prediction | Embedding,
    images: Mapping[Path, str],
    masks: Mapping[Path, Path],
    report: Callable[[Path | None, int, int], None] = lambda path, done, total: None,
) -> dict[Path, str]:
    """Work on images, on all workers.

    Args:
        client: Of a cluster, whose workers see images and output under the paths they have here.
        work: What is done.
        images: Each image and its name.
        masks: Of some of them, where to work.
        report: Told the image that is done, or None for a part of one, and units done and in all.

    Returns:
        Why images failed; of the others, files and records are in the output.
    """
    submit = client.submit
    plans = {path: submit(_told, plan, work, path, pure=False) for path in images}
    owner = {future: path for path, future in plans.items()}
    final: dict[Any, Path] = {}
    failed: dict[Path, str] = {}
    done, total = 0, len(images)
    waiting = completed_of(list(owner))
    for future in waiting:
        path = owner[future]
        problem = _problem(future)
        if problem is None and future in plans.values():
            parts = future.result()[0]
            mine = path, images[path], masks.get(path)
            units = [submit(_told, work_on_part, work, *mine, part, pure=False) for part in parts]
            last = submit(_told, work_on_image, work, *mine, parts, *units, pure=False)
            total += len(units)
            final[last] = path
            for unit in (*units, last):
                owner[unit] = path
                waiting.add(unit)
            continue
        done += 1
        if problem is not None:
            failed.setdefault(path, problem)
        if future in final or future in plans.values():
            report(path, done, total)
        else:
            report(None, done, total)
    _clear_parts(work.output / PARTS, tuple(f"{images[path]}." for path in failed))
    return failed


def _clear_parts(folder: Path, kept: tuple[str, ...]) -> None:
    """Take away the folder of parts, but for those whose names begin so: of images that failed, for `--resume`."""
    for path in [*sorted(folder.rglob("*"), reverse=True), folder]:
        if path.is_dir():
            with suppress(OSError):  # it holds such parts
                path.rmdir()
        elif not path.relative_to(folder).as_posix().startswith(kept):
            path.unlink(missing_ok=True)


def measure(
    client: Any,
    work: Measurement,
    images: Iterable[Path],
    report: Callable[[Path | None, int, int], None] = lambda path, done, total: None,
) -> tuple[dict[Path, tuple[Tally, str | None]], dict[Path, str]]:
    """Measure images, on all workers.

    Args:
        client: See `distribute`.
        work: How.
        images: Which.
        report: See `distribute`.

    Returns:
        What was counted of each image, in order, and why others failed.
    """
    owner = {client.submit(_told, measure_image, work, path, pure=False): path for path in images}
    found: dict[Path, tuple[Tally, str | None]] = {}
    failed: dict[Path, str] = {}
    for done, future in enumerate(completed_of(list(owner)), start=1):
        path, problem = owner[future], _problem(future)
        if problem is None:
            found[path] = future.result()[0]
        else:
            failed[path] = problem
        report(path, done, len(owner))
    in_order = list(owner.values())
    return (
        {path: found[path] for path in in_order if path in found},
        {path: failed[path] for path in in_order if path in failed},
    )


def completed_of(futures: list[Any]) -> Any:
    """Futures as they are done, to which others can be added."""
    from distributed import as_completed

    return as_completed(futures, raise_errors=False)


def _problem(future: Any) -> str | None:
    if future.status == "finished":
        told: str | None = future.result()[1]
        return told
    if future.status == "cancelled":
        return "the cluster dropped it"
    return one_line(future.exception())
