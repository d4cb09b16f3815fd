"""Code that takes arrays of torch and of numpy alike: exported models are run where torch is not installed."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def namespace(values: Any) -> Any:
    """The module whose functions work on an array.

    torch and numpy call what is used of them here by the same names, with the same arguments in the same places (both
    follow the array API standard): ``flip``, ``rot90``, ``where``, ``stack``, ``isfinite``, ``clip``, ``asarray``, …

    Args:
        values: A tensor or an array of numpy.
    """
    return np if isinstance(values, np.ndarray) else sys.modules["torch"]
