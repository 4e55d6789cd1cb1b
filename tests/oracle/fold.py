"""What is known after the records of one patient up to a place, from the words of S3 and S4, with nothing remembered in between."""

from __future__ import annotations

from tests.oracle.record import CONTROLS, GONE, Record


def first_tellings(records: list[Record]) -> dict[tuple[tuple[int, int], int], Record]:
    """The first occurrence of each (id, version): it alone counts."""
    first: dict[tuple[tuple[int, int], int], Record] = {}
    for r in records:
        if r.concept < CONTROLS:
            first.setdefault((r.id, r.version), r)
    return first


def ruling(records: list[Record]) -> dict[tuple[int, int], Record]:
    """Per id the highest version that was told, whatever the order; it may say that the fact is gone."""
    rules: dict[tuple[int, int], Record] = {}
    for (identity, version), r in first_tellings(records).items():
        if identity not in rules or version > rules[identity].version:
            rules[identity] = r
    return rules


def present(records: list[Record]) -> list[Record]:
    """The facts that are there: those that rule and are neither cancelled nor entered in error."""
    return [r for r in ruling(records).values() if r.status not in GONE]


def known_us(records: list[Record]) -> int:
    """The greatest stamp so far (S3); repeats, conflicts and ticks count too."""
    return max(r.stamp_us for r in records)


def repeats(records: list[Record]) -> tuple[int, int]:
    """(duplicates, conflicts) among the records: the same (id, version) again, with the same or with other content."""
    first = first_tellings(records)
    again = [(r, first[r.id, r.version]) for r in records if r.concept < CONTROLS and r is not first[r.id, r.version]]
    same = sum(r.same_content(original) for r, original in again)
    return same, len(again) - same
