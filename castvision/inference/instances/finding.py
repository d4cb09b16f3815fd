"""From the classes of pixels, and if there are any centres and offsets, to the objects of an image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from castvision.inference.instances.bands import bands_of
from castvision.inference.instances.components import renumber, write_components
from castvision.inference.instances.grouping import Grouping, write_groups
from castvision.inference.instances.splitting import check_installed, split_components
from castvision.inference.instances.table import Instances, mean_probabilities, measure, vote
from castvision.inference.sinks import FileSink
from castvision.visualization.pictures import background_class

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castvision.inference.instances.table import Array

How = Literal["components", "watershed", "centres"]


@dataclass(frozen=True)
class InstanceOptions:
    """How objects are found.

    Attributes:
        how: "components": connected pixels of a class; "watershed": these, cut apart where they are narrow; "centres":
            by the centres and offsets of a model that was trained to give them.
        things: Names of the classes that have objects; None = all but a background.
        depth: Of a cut by watershed, see `castvision.inference.instances.splitting.split_mask`.
        grouping: Of centres.
        min_area: Smaller objects are left out. In pixels.
    """

    how: How = "components"
    things: tuple[str, ...] | None = None
    depth: float = 1.0
    grouping: Grouping = field(default_factory=Grouping)
    min_area: int = 1

    def __post_init__(self) -> None:
        if self.how not in get_args(How):
            raise ValueError(f"expected objects by one of {get_args(How)}, got {self.how!r}")
        if not self.depth > 0:
            raise ValueError(f"expected a depth of cuts > 0, got {self.depth}")
        if self.how != "components":
            check_installed(f"--instances {self.how}")

    def classes(self, names: Sequence[str]) -> list[int]:
        """The classes that have objects.

        Args:
            names: Of all classes.

        Raises:
            ValueError: A name that is none, or no class is known to be a background.
        """
        if self.things is None:
            background = background_class(names)
            if background is None:
                raise ValueError(
                    f"none of the classes {', '.join(names[:8])} is called background; name those that have objects "
                    "with --things"
                )
            return [label for label in range(len(names)) if label != background]
        unknown = [name for name in self.things if name not in names]
        if unknown or not self.things:
            raise ValueError(
                f"expected --things among the classes {', '.join(names[:8])}, got {', '.join(unknown) or 'none'}"
            )
        return sorted({names.index(name) for name in self.things})


def find_instances(
    labels: FileSink,
    options: InstanceOptions,
    things: Sequence[int],
    *,
    probabilities: FileSink | None = None,
    fields: FileSink | None = None,
) -> Instances:
    """Find the objects of one image, of any size.

    Tiles and bands leave no trace: the result depends on the maps alone.

    Args:
        labels: (height, width) classes; no data is no class.
        options: How.
        things: Classes that have objects.
        probabilities: (height, width, classes) float32, for scores: the mean probability of its class over an object,
            times the heat of its centre where there are centres.
        fields: (height, width, 3), see `castvision.inference.instances.grouping.FIELDS`; for "centres".

    Returns:
        The objects; their map stands in a file beside that of the labels, which its ``discard`` deletes.

    Raises:
        ValueError: "centres" without fields; too many components, or too large ones.
    """
    ids = FileSink(labels.path.with_name(f"{labels.path.name}.instances"))
    try:
        return _found(ids, labels, probabilities, fields, options, np.asarray(things, np.int64))
    except BaseException:
        ids.discard()
        raise


def _found(
    ids: FileSink,
    labels: FileSink,
    probabilities: FileSink | None,
    fields: FileSink | None,
    options: InstanceOptions,
    things: Array,
) -> Instances:
    heats: Array | None = None
    if options.how == "centres":
        if fields is None:
            raise ValueError("expected centres and offsets beside the classes, got none; use components or watershed")
        _, heats = write_groups(labels, fields, ids, things, options.grouping)
        stands_for = np.arange(len(heats) + 1)
    else:
        stands_for, classes = write_components(labels, ids, things.tolist())
        if options.how == "watershed":
            stands_for, classes = split_components(ids, stands_for, classes, options.depth)
    numbers = renumber(ids, stands_for, options.min_area)
    count = len(numbers) - 1
    classes = vote(ids, labels, count, things) if heats is not None else classes[numbers]
    scores = None if probabilities is None else mean_probabilities(ids, probabilities, classes)
    if heats is not None and scores is not None:
        scores[1:] *= np.clip(heats[numbers[1:] - 1], 0, 1)
    shapes = measure(ids, count)
    wanted = sum(int(np.isin(band, things).sum()) for _, band in bands_of(labels))
    return Instances(ids, classes, shapes, scores, wanted - int(shapes.pixels[1:].sum()))
