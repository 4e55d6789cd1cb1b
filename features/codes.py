"""Code sets and units: which concept a source's code means, and its value in the concept's own unit."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from features.errors import InputError, Rejected

OTHER = 0
"""Concept of a code that is in no code set: kept in the log, read by no feature."""
VISIT_CONCEPTS = {"ambulatory": 1, "emergency": 2, "inpatient": 3, "observation": 4, "home": 5, "virtual": 6}
LAST_VISIT = max(VISIT_CONCEPTS.values())
DEATH = 10
MERGE, MERGED, CARRIED_TICK, CARRIED_MODEL = 11, 12, 13, 14
"""The redirect to another patient; the end of a merge; a tick and an activation that a merge carries (`features.merge`)."""
CONTROL_FLOOR = 65_000
"""Concepts from here on are not about a patient's body: controls of the log, and names."""
TICK, ACTIVATE = 65_000, 65_001
NAME = 65_535
"""A record of a history that holds the source's identifier of the encounter before it."""

_KIND_OF_CONCEPT = {"lab": "measurement", "vital": "measurement"}
_KIND_CONCEPT = {"medication_order": 30, "medication_administration": 31}


@dataclass(frozen=True, slots=True)
class Concept:
    """One thing that features may read. `low`/`high` are inclusive limits of normal in `unit`; None: no limit."""

    number: int
    name: str
    kind: str
    unit: str
    low: float | None
    high: float | None
    topic: str
    label: str


def _rows(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(files("features").joinpath("codes", name).read_text(encoding="utf-8").splitlines()))


class Codebook:
    """The code sets of one generation. Their hash is part of it: other code sets are another generation (S11).

    Example:
        >>> book = codebook()
        >>> book.concept(kind="lab", system="loinc", code="718-7") == book.by_name["hemoglobin"].number
        True
        >>> book.in_unit(book.by_name["albumin"].number, 35.0, "g/L")
        3.5
    """

    def __init__(self) -> None:
        tables = {name: _rows(name) for name in ("concepts.csv", "codes.csv", "charlson.csv", "cancer.csv", "units.csv")}
        self.content_hash = hashlib.blake2b(repr(sorted(tables.items())).encode(), digest_size=8).hexdigest()
        self.concepts = {c.number: c for c in map(_concept, tables["concepts.csv"])}
        self.by_name = {c.name: c for c in self.concepts.values()}
        self._exact: dict[tuple[str, str], int] = {}
        self._prefix: dict[tuple[str, str], int] = {}
        self.codes: dict[int, list[tuple[str, str]]] = {number: [] for number in self.concepts}
        """Concept → (system, code) of its rows, in the order of the files; a code that ends in `*` is a prefix."""
        for row in (*tables["codes.csv"], *tables["charlson.csv"], *tables["cancer.csv"]):
            self.codes[self.by_name[row["concept"]].number].append((row["system"], row["code"]))
            target = self._prefix if row["code"].endswith("*") else self._exact
            target[row["system"], row["code"].rstrip("*")] = self.by_name[row["concept"]].number
        self._units = {(self.by_name[r["concept"]].number, r["unit"]): float(r["factor"]) for r in tables["units.csv"]}
        self._longest = max((len(code) for _, code in self._prefix), default=0)
        self._seen: dict[tuple[str, str, str], int] = {}

    def concept(self, *, kind: str, system: str, code: str) -> int:
        """Number of the concept that a code means; `OTHER` where no code set has it."""
        key = (kind, system, code)
        number = self._seen.get(key)
        if number is None:
            if len(self._seen) > 200_000:  # a source that invents codes must not fill the memory
                self._seen.clear()
            number = _KIND_CONCEPT.get(kind) or self._look_up(system, code)
            if self.concepts[number].kind != _KIND_OF_CONCEPT.get(kind, kind):
                number = OTHER  # a LOINC code on the feed of conditions is no laboratory result
            self._seen[key] = number
        return number

    def _look_up(self, system: str, code: str) -> int:
        if system.startswith("icd"):
            code = code.replace(".", "").upper()
        exact = self._exact.get((system, code))
        if exact is not None:
            return exact
        for length in range(min(len(code), self._longest), 0, -1):
            found = self._prefix.get((system, code[:length]))
            if found is not None:
                return found
        return OTHER

    def in_unit(self, number: int, value: float, unit: str) -> float:
        """`value` in the concept's own unit.

        Raises:
            Rejected: reason `unit`, with the units that are known.
        """
        factor = self._units.get((number, unit))
        if factor is None:
            concept = self.concepts[number]
            known = ", ".join(u for n, u in self._units if n == number)
            raise Rejected(
                "unit",
                f"this unit is not known for {concept.name}; expected one of {known}. Convert at the source, "
                "or add it to features/codes/units.csv (a new generation)",
            )
        converted = value * factor
        if not math.isfinite(converted):
            raise Rejected("bad-value", f"the value is too large for {self.concepts[number].unit}")
        return converted

    def factor(self, number: int, unit: str) -> float:
        """What a value in the concept's own unit is divided by to be in `unit`."""
        if (number, unit) not in self._units:
            raise InputError(f"unit '{unit}' is not known for {self.concepts[number].name}: see features/codes/units.csv")
        return self._units[number, unit]

    def numbers(self, names: Iterable[str]) -> tuple[int, ...]:
        """Numbers of concepts by name, in order; a name that ends in `.*` means all that begin with it."""
        found: dict[int, None] = {}
        for name in names:
            hits = [c.number for c in self.concepts.values() if c.name == name or (name.endswith(".*") and c.name.startswith(name[:-1]))]
            if not hits:
                raise InputError(f"concept '{name}' is not in features/codes/concepts.csv. Known: {', '.join(sorted(self.by_name))}")
            found.update(dict.fromkeys(hits))
        return tuple(found)


def _concept(row: dict[str, str]) -> Concept:
    low, high = (float(row[side]) if row[side] else None for side in ("low", "high"))
    return Concept(int(row["number"]), row["concept"], row["kind"], row["unit"], low, high, row["topic"], row["label"])


@cache
def codebook() -> Codebook:
    """The code sets that are shipped."""
    return Codebook()
