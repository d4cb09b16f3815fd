"""What all generators stand on: compilation by numba, and one random stream for each (seed, split, index)."""

# mypy: disable-error-code="arg-type"
from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any, SupportsIndex, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., object])

SPLITS: dict[str, int] = {"train": 0, "val": 1, "test": 2, "written": 3}
"""Numbers of the splits: the same index gives another image in each."""


# Inner functions get arrays from their caller and make none, so they do without numba's reference counting: its atomic
# additions for each of the tables, at each call, take four fifths of the time. Nobody calls them from Python.
_INNER: dict[str, Any] = {
    "nogil": True,
    "forceinline": True,
    "_nrt": False,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}


def kernel(function: Function) -> Function:
    """Compile a function that only other compiled functions call, and that creates no array."""
    return cast(Function, numba.njit(**_INNER)(function))


def entry_kernel(function: Function) -> Function:
    """Compile a function that Python calls, and keep the result for the next process.

    numba looks for a writable folder (``NUMBA_CACHE_DIR``, ``__pycache__``, the user's cache folder). Where there is
    none, as in a read-only installation without a home, the function is compiled anew in every process.
    """
    try:
        return cast(Function, numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:  # numba's "cannot cache function: no locator available"
        return cast(Function, numba.njit(nogil=True)(function))


def _digest_sources() -> int:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return int.from_bytes(digest.digest()[:4], "little")


SOURCES = _digest_sources()
"""A number that changes whenever a source file of the generators does.

NOTE: numba's cache looks only at the file of the function that it stores, not at the functions which were inlined into
it. A default value is part of the key of the cache, so every entry kernel ends with ``sources: int = SOURCES`` (which
nobody passes or reads): it is compiled anew after any edit.
"""


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_TO_UNIT = 1.0 / 9007199254740992.0  # 2 ** -53


def check_stream(seed: SupportsIndex, split: str, index: SupportsIndex = 0) -> None:
    """Raise unless the three name a random stream.

    Raises:
        ValueError: An unknown split, or a number outside 0..2 ** 63 - 1.
        TypeError: A number that is not whole.
    """
    if split not in SPLITS:
        raise ValueError(f"expected split to be one of {', '.join(SPLITS)}, got {split=}")
    for name, value in (("seed", seed), ("index", index)):
        try:
            number = operator.index(value)
        except TypeError:
            raise TypeError(f"expected {name} to be a whole number, got {name}={value!r}") from None
        if not 0 <= number < 2**63:
            raise ValueError(f"expected 0 <= {name} < 2**63, got {name}={number}")


def _mix(value: Any) -> Any:
    """SplitMix64's finaliser: a bijection of 64 bits in which every input bit moves every output bit."""
    value = (value ^ (value >> np.uint64(30))) * _FIRST
    value = (value ^ (value >> np.uint64(27))) * _SECOND
    return value ^ (value >> np.uint64(31))


mix = kernel(_mix)


def start_streams(seed: int, split: int, indices: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Where the random streams of some images begin.

    The generator is SplitMix64 (Steele, Lea & Flood 2014): a counter that advances by an odd step, and a mixing
    function. Both are hashes of seed, split and index, so that an image never depends on which worker or batch made it.

    Args:
        seed: 0 <= seed < 2 ** 63.
        split: A number of :data:`SPLITS`.
        indices: (B,), at least 0.

    Returns:
        (B, 2) uint64: counter and step of each stream.
    """
    key = _mix(np.array([seed], np.uint64) + _GOLDEN)
    key = _mix((key ^ np.uint64(split)) + _GOLDEN)
    key = _mix((key ^ indices.astype(np.uint64)) + _GOLDEN)
    return np.stack([key, _mix(key + _GOLDEN) | np.uint64(1)], 1)


@kernel
def next_bits(rng: np.ndarray) -> np.uint64:
    """64 random bits of a stream (2 words: counter, step), which advances."""
    rng[0] += rng[1]
    return mix(rng[0])  # type: ignore[no-any-return] # also mixes arrays


@kernel
def below(rng: np.ndarray, count: int) -> int:
    """A whole number in [0, count), for counts far below 2 ** 32."""
    return high_below(next_bits(rng), count)


@kernel
def unit(rng: np.ndarray) -> float:
    """A number in [0, 1)."""
    return np.float64(next_bits(rng) >> np.uint64(11)) * _TO_UNIT


@kernel
def high_below(bits: np.uint64, count: int) -> int:
    """A number in [0, count) from the upper half of 64 bits."""
    return np.int64(((bits >> _HALF) * np.uint64(count)) >> _HALF)  # type: ignore[return-value] # numba: no int() here


@kernel
def low_unit(bits: np.uint64) -> float:
    """A number in [0, 1) from the lower half of 64 bits."""
    return np.float64(bits & _LOW) * (1.0 / 4294967296.0)
