from __future__ import annotations

from tests.inference.conftest import classifier, photo, segmenter

__all__ = ["classifier", "photo", "segmenter"]
