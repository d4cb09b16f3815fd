"""The picture of samples as a model gets them: images, masks laid over them, labels in the captions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from castvision.losses import IGNORED
from castvision.visualization import pictures, plots
from castvision.visualization.plots import Panel, shorten

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_OPACITY = 0.5


def visible(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Undo a normalisation, one range of values for all images.

    The range is 0..1 where the values keep to it, give or take a change of colours; of floats in other units it is
    2.5 standard deviations to both sides of the mean.

    Args:
        images: (B, C, height, width) float32, normalised.
        mean: What was subtracted, per channel.
        std: What was divided by, per channel.

    Returns:
        (B, height, width, C) uint8.
    """
    shift, scale = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    values = images * scale + shift
    low, span = torch.zeros_like(shift), torch.ones_like(scale)
    if values.min() < -0.5 or values.max() > 1.5:
        low, span = shift - 2.5 * scale, 5 * scale
    shown = ((values - low) / span).clamp(0, 1) * 255
    return shown.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def draw_samples(
    images: np.ndarray[Any, np.dtype[np.uint8]],
    targets: Tensor,
    names: Sequence[str],
    class_names: Sequence[str],
    heading: str,
) -> bytes:
    """Draw samples as a contact sheet.

    Args:
        images: (B, height, width, C) uint8, see `visible`.
        targets: (B,) labels, (B, classes) zeros and ones, or (B, height, width) labels, 255 = ignored.
        names: One for each image.
        class_names: One for each class.
        heading: Above the sheet.

    Returns:
        The bytes of a PNG.
    """
    background = pictures.background_class(class_names)
    panels: list[Panel] = []
    for image, target, name in zip(images, targets, names, strict=True):
        shown, caption = pictures.display_picture(image), shorten(name, 34)
        if target.ndim < 2:
            labels = [int(target)] if target.ndim == 0 else target.nonzero()[:, 0].tolist()
            text = ", ".join(class_names[label] for label in labels) or "no label"
            panels.append(Panel(f"{caption}\n{shorten(text, 34)}", shown))
            continue
        mask = target.numpy().copy()
        mask[mask == IGNORED] = -1  # drawn dark
        overlay = pictures.overlay_mask(shown, mask, opacity=_OPACITY, untinted=background)
        panels += [Panel(caption, shown), Panel(_shares(mask, class_names), overlay)]
    figure = plots.plot_grid(panels, heading, columns=4)
    if targets.ndim == 3:
        from matplotlib.patches import Patch

        colours = pictures.cluster_colours(len(class_names)) / 255
        handles = []
        for label in sorted(set(targets.flatten().tolist()) - {IGNORED})[:20]:
            face = "none" if label == background else tuple(colours[label])
            handles.append(Patch(facecolor=face, edgecolor="0.5", label=shorten(class_names[label], 26)))
        if (targets == IGNORED).any():
            handles.append(Patch(facecolor="0.15", edgecolor="0.5", label="ignored (255)"))
        figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
    return plots.as_png(figure)


def _shares(mask: pictures.Labels, class_names: Sequence[str]) -> str:
    """The two largest classes with their share of the pixels, and what is ignored."""
    counts = np.bincount(mask.ravel() + 1, minlength=len(class_names) + 1) / mask.size
    largest = sorted(range(len(class_names)), key=lambda label: -counts[label + 1])[:2]
    parts = [f"{shorten(class_names[label], 18)} {counts[label + 1]:.0%}" for label in largest if counts[label + 1] > 0]
    return ", ".join([*parts, *([f"ignored {counts[0]:.0%}"] if counts[0] > 0 else [])])
