"""Chance by counters: a number is a function of seed, purpose, patient and index, never of what was drawn before it.

So more patients do not change the first ones, a knob that makes trouble does not change the care, and all of it runs in arrays.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from features.clock import SECOND_US

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
_Word = npt.NDArray[np.uint64]

_WEYL = 0x9E3779B97F4A7C15
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_30, _27, _31, _11 = (np.uint64(n) for n in (30, 27, 31, 11))


def _mixed(word: _Word) -> _Word:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection in which each bit depends on all others."""
    word = (word ^ (word >> _30)) * _FIRST
    word = (word ^ (word >> _27)) * _SECOND
    return word ^ (word >> _31)


class Draws:
    """Chance for patients by number.

    Args:
        seed: 0 or more.

    Example:
        >>> draws = Draws(7)
        >>> few, many = (draws.uniform("sex", np.arange(n)) for n in (3, 5))
        >>> bool((few == many[:3]).all())
        True
    """

    def __init__(self, seed: int) -> None:
        self._seed = _mixed(np.array([seed % 2**64], np.uint64))

    def uniform(self, purpose: str, who: Int, index: Int | int = 0) -> Float:
        """Numbers in [0, 1).

        Args:
            purpose: What the chance is about: another purpose, other numbers.
            who: Patient numbers, shape (n,).
            index: Which of the patient's numbers for this purpose: one for all, or shape (n,).
        """
        word = _mixed(self._seed + who.astype(np.uint64) * np.uint64(_WEYL))
        word = _mixed(word + np.uint64(zlib.crc32(purpose.encode()) * _WEYL % 2**64))
        word = _mixed(word + np.asarray(index).astype(np.uint64) * np.uint64(_WEYL))
        return (word >> _11).astype(np.float64) * 2.0**-53

    def chance(self, share: Float | float, purpose: str, who: Int, index: Int | int = 0) -> Mask:
        """True for about `share` of them: never at 0, always at 1."""
        return self.uniform(purpose, who, index) < share

    def normal(self, purpose: str, who: Int, index: Int | int = 0) -> Float:
        """Standard normal numbers."""
        radius: Float = np.sqrt(-2 * np.log1p(-self.uniform(purpose, who, index)))
        return radius * np.cos(2 * np.pi * self.uniform(purpose + " angle", who, index))

    def exponential(self, mean: Float | float, purpose: str, who: Int, index: Int | int = 0) -> Float:
        """Exponential numbers of this mean."""
        drawn: Float = -mean * np.log1p(-self.uniform(purpose, who, index))
        return drawn

    def span_us(self, low_us: Int | int, high_us: Int | int, purpose: str, who: Int, index: Int | int = 0) -> Int:
        """Whole seconds from `low_us` to below `high_us`, evenly."""
        span = low_us + self.uniform(purpose, who, index) * (np.asarray(high_us) - low_us)
        return span.astype(np.int64) // SECOND_US * SECOND_US

    def pick(self, weights: Sequence[float], purpose: str, who: Int, index: Int | int = 0) -> Int:
        """Which of some choices, by their weights."""
        edges = np.cumsum(weights) / sum(weights)
        return np.searchsorted(edges[:-1], self.uniform(purpose, who, index), side="right")
