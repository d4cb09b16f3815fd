"""Small trained models that come with the package: weights and the facts of their training, a file each."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "weights"


def shipped_file(name: str) -> Path | None:
    """The checkpoint of a trained model that comes with the package.

    Args:
        name: Such as "pathfinder32_join".

    Returns:
        The file, or None if there is none of this name.
    """
    return next((path for path in FOLDER.glob("*.safetensors") if path.stem == name), None)


def shipped_names() -> list[str]:
    """Their names."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))
