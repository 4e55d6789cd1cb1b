"""Progress: what a long command is told of itself while it runs."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int], None]
"""Told how much was done so far."""


def unheard(n: int) -> None:
    """Progress that nobody follows."""
