"""Objects of a model against true ones, image by image, for `castvision.inference.evaluation`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.ignored import IGNORED
from castvision.inference.instances.finding import find_instances
from castvision.inference.instances.quality import PanopticTally
from castvision.inference.instances.references import true_objects
from castvision.inference.maps import Kind, maps_of
from castvision.inference.prediction import things_of
from castvision.inference.sinks import FileSink

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from castvision.data import ImageReader
    from castvision.inference.instances.finding import InstanceOptions
    from castvision.inference.predictor import Predictor

Array = np.ndarray[Any, np.dtype[Any]]


class ObjectMeasure:
    """Finds objects as `castvision predict` does and counts them.

    Args:
        predictor: The model.
        how: How objects are found.
        references: For each image its mask of objects.
        tiles: Keywords of `tiled_inference`.
        fits: See `castvision.inference.evaluation.Evaluation`.

    Attributes:
        things: Classes that have objects.

    Raises:
        ValueError: A model that cannot give the objects asked for, or that is shown whole images brought to one size.
    """

    def __init__(
        self,
        predictor: Predictor,
        how: InstanceOptions,
        references: Mapping[Path, Path],
        tiles: dict[str, Any],
        fits: bool,
    ) -> None:
        if fits:
            raise ValueError(
                f"{predictor.parts.name} was trained on whole images brought to one size, and objects are measured at "
                "the images' own; give --tile"
            )
        self.things = things_of(predictor, how, tiles, fits)
        self.how, self.references, self.names = how, references, predictor.class_names

    @property
    def kind(self) -> Kind:
        """What a run over tiles must give."""
        return "image" if self.how.how == "centres" else "labels"

    def predicted(self, run: Callable[[FileSink], Any]) -> tuple[Array, Array, Array]:
        """Find the objects of one image.

        Args:
            run: Writes what `kind` says.

        Returns:
            (height, width) classes, (height, width) numbers of objects, and the class of each object, -1 first.
        """
        with tempfile.TemporaryDirectory() as folder:
            sink = FileSink(Path(folder) / "map")
            run(sink)
            maps = maps_of(sink, self.kind, len(self.names))
            more = {"probabilities": maps.probabilities, "fields": maps.fields}
            found = find_instances(maps.labels, self.how, self.things, **more)
            height, width = maps.labels.shape
            return maps.labels.read(0, 0, height, width), found.ids.read(0, 0, height, width), found.classes

    def compare(
        self, path: Path, image: ImageReader, level: int, labels: Array, found: tuple[Array, Array], truth: Array
    ) -> PanopticTally:
        """Count one image.

        Args:
            path: The image.
            image: The same, open.
            level: Of its pyramid.
            labels: (height, width) predicted classes, the dtype's largest where there is no data.
            found: Predicted objects and their classes.
            truth: (height, width) true classes, 255 = ignored.

        Returns:
            The counts of this image. Pixels whose true class has objects, but which are in none, are ignored.
        """
        true, classes = true_objects(self.references[path], image, level, truth, self.things)
        is_ignored = (truth == IGNORED) | (np.isin(truth, self.things) & (true == 0))
        counts = PanopticTally(len(self.names))
        counts.update(*found, true, classes, labels == np.iinfo(labels.dtype).max, is_ignored)
        return counts
