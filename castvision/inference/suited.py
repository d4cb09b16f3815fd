"""Whether a model is one that a command has a use for, told by its task alone: before it is built, or after."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from castvision.data import ImageReader

NO_CLASSES = "was trained for its features and has no classes; train a classifier or segmenter with --init-from it"
_NEEDED = {
    "segmentation": "needs --masks",
    "classification": "takes folders of classes, no --masks and no --labels",
    "features": "has no classes to measure; train a classifier or segmenter with --init-from it",
    "multilabel": "needs --labels LIST.csv, which names its images (path,NAME1,NAME2,… or path,labels)",
}


def check_predicts(name: str, task: str | None) -> None:
    """Refuse a model without predictions.

    Args:
        name: The model's.
        task: What it was trained for; None = it is untrained.

    Raises:
        ValueError: Untrained, or trained for its features alone.
    """
    if task is None:
        raise ValueError(f"{name} is untrained: its predictions mean nothing; give a checkpoint")
    if task == "features":
        raise ValueError(f"{name} {NO_CLASSES}")


def check_measurable(name: str, task: str | None, *, has_masks: bool, has_table: bool, has_label_map: bool) -> None:
    """Refuse known answers that are none of the model's.

    Args:
        name: The model's.
        task: What it was trained for; None = it is untrained.
        has_masks: Whether the answers are masks.
        has_table: Whether they are a list of labels.
        has_label_map: Whether it is said what the masks' labels mean.

    Raises:
        ValueError: An untrained model, another kind of answers, or a meaning of labels where there are none.
    """
    if task is None:
        raise ValueError(f"{name} is untrained: there is nothing to measure; give a checkpoint")
    given = "segmentation" if has_masks else "multilabel" if has_table else "classification"
    if task != given:
        raise ValueError(f"{name} is a {task} model: it {_NEEDED[task]}")
    if has_label_map and not has_masks:
        raise ValueError(f"expected no --label-map: a {task} model is measured without masks")


def check_place(reader: ImageReader, place: tuple[int, int] | None) -> None:
    """Refuse a pixel that an image does not have.

    Args:
        reader: The image.
        place: (y, x); None = none is asked for.

    Raises:
        ValueError: It lies outside.
    """
    if place is not None and not (0 <= place[0] < reader.height and 0 <= place[1] < reader.width):
        raise ValueError(
            f"expected --similar-to Y,X inside the {reader.height} × {reader.width} pixels of {reader.name!r}, got "
            f"{place[0]},{place[1]}; the row comes first"
        )
