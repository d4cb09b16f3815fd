"""Options of ``castvision predict`` and ``evaluate`` for single objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from castvision_cli.arguments import above_zero, positive

if TYPE_CHECKING:
    import argparse

    from castvision.inference.instances.finding import InstanceOptions

FILES = ("tiff", "coco", "geojson", "csv")


def listed(text: str) -> tuple[str, ...]:
    """A parser's type: names between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def add_instance_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """How objects are found; see `instances_asked_for`."""
    group = parser.add_argument_group("single objects")
    add = group.add_argument
    add(
        "--instances",
        choices=("components", "watershed", "centres"),
        help="find objects: connected pixels of a class; these, cut where they are narrow; or by the centres of "
        "a model trained with --config instances",
    )
    add("--things", type=listed, metavar="NAME,…", help="classes that have objects (default: all but a background)")
    add(
        "--split-depth",
        type=above_zero,
        default=1.0,
        metavar="PIXELS",
        help="watershed: how much narrower, on each side, a neck must be than the smaller of two parts (default: 1)",
    )
    add(
        "--centre-threshold",
        type=above_zero,
        default=0.1,
        metavar="HEAT",
        help="centres: smallest heat of a centre, 0..1 (default: 0.1)",
    )
    add(
        "--centre-kernel",
        type=positive,
        default=7,
        metavar="PIXELS",
        help="centres: side of the square of which a centre is the maximum, odd (default: 7); wider than the noise, "
        "narrower than two objects that touch",
    )
    return group


def check_instance_options(arguments: argparse.Namespace) -> None:
    """Refuse options of single objects that do not go together.

    Raises:
        ValueError: It names the options.
    """
    files = getattr(arguments, "instance_files", None)
    unknown = sorted({*(files or ())} - {*FILES})
    if unknown:
        raise ValueError(f"expected --instance-files of {', '.join(FILES)}, got {', '.join(unknown)}")
    if arguments.instances is None and (arguments.things or files):
        raise ValueError(
            "expected --instances beside --things and --instance-files, got none; say how objects are found"
        )
    if arguments.instances == "centres" and arguments.cluster is not None:
        raise ValueError("expected --instances centres without --cluster; components and watershed work with it")


def instances_asked_for(arguments: argparse.Namespace, **more: Any) -> InstanceOptions | None:
    """How objects are to be found; None where they are not asked for.

    Args:
        arguments: Of the command.
        **more: Further attributes of `InstanceOptions`.

    Raises:
        ImportError: scikit-image is needed and not installed.
        ValueError: A kernel that is not odd.
    """
    if arguments.instances is None:
        return None
    from castvision.inference.instances.finding import InstanceOptions
    from castvision.inference.instances.grouping import Grouping

    grouping = Grouping(arguments.centre_threshold, arguments.centre_kernel)
    return InstanceOptions(arguments.instances, arguments.things, arguments.split_depth, grouping, **more)
