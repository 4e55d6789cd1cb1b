"""Python's collector, kept out of the way: its rounds go with the size of the polls.

A round looks at what the event loop left behind, two microseconds an object. Rare rounds are cheap in a backlog, where each looks over
a poll that is still in hand; live they are long, and a score that waits for one waits a tenth of a second.
"""

from __future__ import annotations

import gc

YOUNG_MIN = 10_000
YOUNG_OF_A_RECORD = 20
"""A poll of so many records makes so many objects, and more."""
_polls: dict[str, int] = {}
"""Who polls → how many records the last poll had."""


def start() -> None:
    """Leave what the start made alone for ever."""
    gc.collect()
    gc.freeze()
    pace("", 0)


def pace(who: str, records: int) -> None:
    """A poll of so many records is in hand; the larger one counts where several poll."""
    _polls[who] = records
    gc.set_threshold(max(YOUNG_MIN, YOUNG_OF_A_RECORD * max(_polls.values())), 20, 100)
