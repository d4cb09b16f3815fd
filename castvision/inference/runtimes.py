"""What runs tiles: torch on any device, or numpy, for exported models where torch is not installed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

Pixels = np.ndarray[Any, np.dtype[Any]]


class Runtime(Protocol):
    """Arrays of one kind, and what is done with them beside arithmetic.

    Attributes:
        xp: The module of the arrays, torch or numpy.
        device: Where they are.
    """

    xp: Any
    device: Any

    def session(self) -> AbstractContextManager[Any]:
        """Around a whole run."""

    def put(self, values: Pixels) -> Any:
        """An array of numpy where the predictor is."""

    def take(self, values: Any) -> Pixels:
        """The reverse of ``put``."""

    def run(self, predict: Callable[[], Any]) -> Any:
        """What a predictor gives."""

    def check(self, output: Any) -> None:
        """Refuse what is no array of this kind."""

    def single(self, values: Any) -> Any:
        """As float32."""

    def softmax(self, values: Any) -> Any:
        """Of (B, classes, height, width) over the classes."""

    def best(self, values: Any) -> tuple[Pixels, Pixels]:
        """Of (classes, height, width) the largest value and its class, for each pixel."""


class NumpyRuntime:
    """Runs predictors that take and give arrays of numpy."""

    xp: Any = np
    device: Any = "cpu"

    def session(self) -> AbstractContextManager[Any]:
        """See `Runtime`."""
        return nullcontext()

    def put(self, values: Pixels) -> Any:
        """See `Runtime`."""
        return values

    def take(self, values: Any) -> Pixels:
        """See `Runtime`."""
        return np.asarray(values)

    def run(self, predict: Callable[[], Any]) -> Any:
        """See `Runtime`."""
        return predict()

    def check(self, output: Any) -> None:
        """See `Runtime`.

        Raises:
            TypeError: No array.
        """
        if not isinstance(output, np.ndarray):
            raise TypeError(f"expected the predictor to return an array, got {type(output).__name__}; wrap it")

    def single(self, values: Any) -> Any:
        """See `Runtime`."""
        return values.astype(np.float32, copy=False)

    def softmax(self, values: Any) -> Any:
        """See `Runtime`."""
        return softmax(values, 1)

    def best(self, values: Any) -> tuple[Pixels, Pixels]:
        """See `Runtime`."""
        label = values.argmax(axis=0)
        return np.take_along_axis(values, label[None], axis=0)[0], label


def softmax(values: Any, axis: int) -> Any:
    """Of float32 along an axis."""
    shifted = np.exp(values - values.max(axis=axis, keepdims=True))
    return shifted / shifted.sum(axis=axis, keepdims=True)
