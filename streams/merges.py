"""The merges of a log, for people: who went over to whom and when, and of undone ones what nobody but a person can tell (S9).

When a merge is undone, the facts of the first name go back by themselves. What the source told under the second name in between may be
about either person: it stays there, and is listed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from features import codes, fact
from features.clock import rfc3339
from features.log import Log
from features.merge import number


@dataclass
class Found:
    """One merge. `known` and `undone` are the times at which the log learned of it; `undone` is empty while it holds."""

    origin: str
    target: str
    known: str
    number: int
    undone: str = ""
    carried: int = 0
    """Facts that went over, repeats left out."""
    complete: bool = False
    """Its end stands in the log: without, nothing took effect."""
    over: bool = False
    """Its undoing stands in the log: what follows is not its matter."""
    unclear: list[str] = field(default_factory=list)
    """`feed source-id` of what was told under the second name between the end and its undoing."""

    def document(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name not in ("number", "over")}

    def sentence(self) -> str:
        words = f"{self.origin} → {self.target}  {self.known}  {self.carried:,} facts" + ("" if self.complete else ", not carried out yet")
        if self.undone:
            words += f"; undone {self.undone}"
        if self.unclear:
            words += f"; look at {len(self.unclear):,} told of {self.target} meanwhile: {', '.join(self.unclear[:5])}"
            words += f" and {len(self.unclear) - 5:,} more (--json)" if len(self.unclear) > 5 else ""
        return words


def merges(log: Log) -> list[Found]:
    """The merges of a log in the order in which it learned of them."""
    found: dict[bytes, tuple[int, Found]] = {}
    for seq, patient, head, source, _ in _rows(log):
        if head["concept"] != codes.MERGE:
            continue
        identity, known = head.tobytes()[:16], rfc3339(int(head["stamp_us"]))
        if head["status"] < fact.GONE:
            found.setdefault(identity, (seq, Found(patient, source, known, number(identity))))
        elif identity in found:
            found[identity][1].undone = known
    in_order = [one for _, one in sorted(found.values(), key=lambda pair: pair[0])]
    of_target: dict[str, list[Found]] = {}
    for one in in_order:
        of_target.setdefault(one.target, []).append(one)
    told: set[tuple[int, bytes, int]] = set()
    for _, patient, head, source, feed in _rows(log):
        for one in of_target.get(patient, ()):
            _look(one, head, f"{feed} {source}", told)
    for one in in_order:
        if not one.undone:
            one.unclear.clear()
    return in_order


def _look(one: Found, head: Any, name: str, told: set[tuple[int, bytes, int]]) -> None:
    """Learn one record of the second name, in log order."""
    if one.over:
        return
    mine = head["merge"] == one.number
    key = one.number, head.tobytes()[:16], int(head["version"])
    if mine and head["concept"] == codes.MERGED:
        one.complete |= bool(head["status"] < fact.GONE)
        one.over = bool(head["status"] >= fact.GONE)
    elif mine and head["concept"] not in (codes.CARRIED_TICK, codes.CARRIED_MODEL) and key not in told:
        told.add(key)
        one.carried += 1
    elif one.complete and not head["merge"]:
        one.unclear.append(name)


def _rows(log: Log) -> Iterator[tuple[int, str, Any, str, str]]:
    """(place, patient, head, source id, feed) of all facts, bucket by bucket in log order."""
    for file in log.bucket_files():
        table, heads = log.bucket(file)
        columns = (table[name].to_pylist() for name in ("seq", "patient_id", "source_id", "feed"))
        for seq, patient, source, feed, head in zip(*columns, heads, strict=True):
            yield seq, patient, head, source, feed
