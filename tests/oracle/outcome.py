"""The slow twin of `features.outcome`: for one question it looks at every telling of every fact."""

from __future__ import annotations

from typing import Any, NamedTuple

DAY_US = 86_400_000_000
COVERED, DIED = "coverage.observed", "death"


class Told(NamedTuple):
    """One telling, in the order of the log."""

    id: str
    version: int
    gone: bool
    concept: str
    event_us: int
    length_us: int | None
    episode: int
    priority: str
    known_us: int


def chains(told: list[Told]) -> list[list[Told]]:
    """Of each id the tellings that ruled, in order: each has a higher version than all before it."""
    found: dict[str, list[Told]] = {}
    for one in told:
        chain = found.setdefault(one.id, [])
        if not chain or one.version > chain[-1].version:
            chain.append(one)
    return list(found.values())


def label(told: list[Told], *, outcome: dict[str, Any], index_us: int, episode: int, as_of_us: int) -> tuple[str, int | None, int | None]:
    """(status, when it was known, when the time at risk was over); None: never."""
    begin_us = index_us + outcome["gap_days"] * DAY_US
    end_us = begin_us + outcome["horizon_days"] * DAY_US

    def counts(one: Told) -> bool:
        own = one.episode == episode and one.episode != 0
        came_so = outcome["priorities"] is None or one.priority in outcome["priorities"]
        at_risk = begin_us < one.event_us <= end_us
        return not one.gone and one.concept in outcome["concepts"] and at_risk and came_so and (outcome["own_episode"] or not own)

    facts = [chain[-1] for chain in chains(told) if not chain[-1].gone]
    covered = [one.event_us + one.length_us if one.length_us is not None else as_of_us for one in facts if one.concept == COVERED]
    deaths_us = [one.event_us for one in facts if one.concept == DIED]
    mature = min([max(covered or [one.event_us for one in facts], default=-(2**62)), *deaths_us]) >= end_us
    known_us = [one.known_us for chain in chains(told) if counts(chain[-1]) for one in chain if counts(one)]
    if known_us:
        return "event", min(known_us), end_us if mature else None
    if mature:
        return "no_event", end_us, end_us
    return ("death" if min(deaths_us, default=2**62) <= end_us else "censored"), None, None
