"""Random numbers inside the compiled code: one independent stream for each (seed, split, index).

SplitMix64 (Steele, Lea & Flood 2014): a counter that advances by an odd step, and a mixing function. Start and step of
an image's stream are hashes of its three numbers, so that an image never depends on which worker or batch made it.
"""

# mypy: disable-error-code="arg-type"
from __future__ import annotations

import numpy as np

from castvision.data.synthetic.pathfinder.compiled import kernel

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_LOW = np.uint64(0xFFFFFFFF)
_ONE = np.uint64(1)
_HALF = np.uint64(32)
_TO_UNIT = 1.0 / 9007199254740992.0  # 2 ** -53


@kernel
def mix(value: np.uint64) -> np.uint64:
    """SplitMix64's finaliser: a bijection of 64 bits in which every input bit moves every output bit."""
    value = (value ^ (value >> np.uint64(30))) * _FIRST
    value = (value ^ (value >> np.uint64(27))) * _SECOND
    return value ^ (value >> np.uint64(31))


@kernel
def start_stream(rng: np.ndarray, seed: np.uint64, split: np.uint64, index: np.uint64) -> None:
    """Set ``rng`` (2 words: counter, step) to the stream of an image."""
    key = mix(seed + _GOLDEN)
    key = mix((key ^ split) + _GOLDEN)
    key = mix((key ^ index) + _GOLDEN)
    rng[0] = key
    rng[1] = mix(key + _GOLDEN) | _ONE


@kernel
def next_bits(rng: np.ndarray) -> np.uint64:
    """64 random bits."""
    rng[0] += rng[1]
    return mix(rng[0])


@kernel
def below(rng: np.ndarray, count: int) -> int:
    """A whole number in [0, count), for counts far below 2 ** 32."""
    return np.int64(((next_bits(rng) >> _HALF) * np.uint64(count)) >> _HALF)  # type: ignore[return-value] # numba: no int() here


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
