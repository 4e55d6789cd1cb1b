"""What importers of a source's tables share: where a table lies, and what a text says as a number."""

from __future__ import annotations

import math
from pathlib import Path


def find(table: str, *folders: Path) -> Path | None:
    """The file of a table, packed or not, in the first folder that has it."""
    places = (folder / f"{table}{ending}" for folder in folders for ending in (".csv.gz", ".csv"))
    return next((path for path in places if path.is_file()), None)


def finite(text: str) -> float | None:
    """The finite number that a text is, or None.

    Example:
        >>> finite("4.1"), finite("<0.2"), finite("inf")
        (4.1, None, None)
    """
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
