"""Tells a site's own CSV export as events of our feeds, as the mappings of `csv_mapping` say; in a stream, each row on its own.

Decisions:

- **Times** without a zone are read as `local_time` says; a date is the last second of its day.
- **Rows of one id.** Without a version column they amend each other in the order of the file: another content is the next version, the
  same content again is a repeat. An id is that of its feed: two mappings of one feed share theirs.
- **Ends.** What says its end before it came would tell the length of a stay at its start. So a finished visit, or a cover, whose end lies
  after its known time is told twice: without the end, and as the next version with it, known when it came.
- **Amendments** that hold no readable number, or no known unit, are told without a number: the one they replace must not stand. The first
  row of an id that has none is rejected.
- **Taken back** (cancelled, entered in error): whatever stands in value and unit does not matter.
- **Codes** of the system `local` mean what codes/local.csv says, beside the folder of mappings; one that is not in it is kept as it is, and
  no feature reads it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from features import event, fact
from features.clock import TIME_MAX_US, TIME_MIN_US, rfc3339
from features.codes import OTHER, Codebook
from features.errors import InputError, Rejected
from features.importers.build import END_TOLD, NOTES
from features.importers.csv_mapping import LOCAL, ROW_ORDER, After, Cell, LocalCode, MappingFile, load_all, local_codes
from features.importers.csv_table import CsvTable, Row
from features.importers.local_time import LocalTimes

Told = tuple[str, dict[str, Any]]
Get = Callable[[Row], str]
"""The text of a cell, stripped; "" where nothing stands."""

ASSUMED, REPEAT, LOCAL_UNIT, NO_NUMBER, BACKWARDS = (
    "known-time-assumed",
    "repeated-row",
    "unit-from-codes",
    "amended-without-number",
    "row-order-against-known-time",
)
_NUMBER = re.compile(r"(<=|>=|<|>|≤|≥)?\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)")
_SWAPPED = str.maketrans(".,", ",.")
_GROUPED = re.compile(r"(?<![0-9])[0-9]{1,3}[.,][0-9]{3}$")
_COMPARATOR = {"≤": "<=", "≥": ">="}
_GONE, _AMENDS = ("cancelled", "entered-in-error"), ("amended", "corrected")


def events(src: Path, mapping: Path, book: Codebook) -> Iterator[Told]:
    """Tell an export: (feed, event) in JSON form, or ("rejected", {feed, reason}) for a row that cannot be an event.

    All mappings and the first lines of all files are checked before the first row is read.

    Args:
        src: Folder of the export.
        mapping: Folder of mappings; codes/local.csv stands beside it.
        book: The code sets, to know which values need a unit.
    Raises:
        InputError: a mapping, a file or the local codes are wrong: file and line.
    """
    if not src.is_dir():
        raise InputError(f"{src} is no folder: give the folder in which the export stands")
    mapped = load_all(mapping)
    local = _local(mapping.parent / "codes" / "local.csv", mapped)
    versions = Versions()
    parts = []
    for one in mapped:
        for path in files(src, one):
            table = CsvTable(path, encoding=one.mapping.encoding, delimiter=one.mapping.delimiter, quote=one.mapping.quote)
            parts.append((table, Teller(one, table, local, book, versions)))
    return (told for table, teller in parts for row in table.rows() for told in teller.tell(row))


def files(src: Path, one: MappingFile) -> list[Path]:
    """The files of an export that a mapping reads, in the order of their names."""
    if (src / one.mapping.file).is_file():
        return [src / one.mapping.file]
    found = sorted(path for path in src.glob(one.mapping.file.lstrip("/")) if path.is_file())
    if not found:
        raise one.fault("file", f'file: there is no {one.mapping.file} in {src}. Name a file of it, or a pattern such as "labs_*.csv"')
    return found


def unread(src: Path, mapping: Path) -> list[str]:
    """Names of the CSV files of an export that no mapping reads."""
    read = {path for one in load_all(mapping) for path in files(src, one)}
    return [path.name for path in exports(src) if path not in read]


def exports(src: Path) -> list[Path]:
    """The files of a folder that look like CSV by their names."""
    endings = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
    return sorted(path for path in src.iterdir() if path.name.lower().endswith(endings) and path.is_file())


def _local(path: Path, mapped: list[MappingFile]) -> dict[str, LocalCode]:
    if path.is_file():
        return local_codes(path)
    for one in mapped:
        system = one.mapping.code_system
        if system is not None and system.constant == LOCAL:
            raise one.fault("code_system", f'code_system = "local" needs {path}, with the columns local_code,system,code,unit')
    return {}


def number(text: str, decimal: str = ".") -> tuple[float, str | None]:
    """(number, comparator) of a result.

    Raises:
        Rejected: `not-a-number`; `other-decimal-mark` where it would be one with the other of point and comma, and is not one of
            thousands: who then changed the mark would read 1,204 as 1.204.

    Example:
        >>> number("<0,2", decimal=",")
        (0.2, '<')
    """
    parts = _NUMBER.fullmatch(text if decimal == "." else text.translate(_SWAPPED))
    value = float(parts[2]) if parts else math.inf
    if parts is None and _NUMBER.fullmatch(text.translate(_SWAPPED) if decimal == "." else text) and not _GROUPED.search(text):
        raise Rejected("other-decimal-mark", f'the mapping says decimal = "{decimal}"')
    if parts is None or math.isinf(value):
        raise Rejected("not-a-number", "expected such as 4.1 or <0.2")
    return value, _COMPARATOR.get(parts[1], parts[1])


class Versions:
    """Numbers the rows of an id that have no version of their own."""

    def __init__(self) -> None:
        self._last: dict[bytes, tuple[int, int, int]] = {}

    def has(self, identity: bytes) -> bool:
        """Whether a row of this id was told."""
        return identity in self._last

    def next(self, identity: bytes, told: dict[str, Any], known_us: int, notes: set[str]) -> int:
        """The version of a row: one more than that before it, or the same where it says the same."""
        content = fact.hash64(repr([(key, value) for key, value in told.items() if key != "known_time"]))
        version, before, before_us = self._last.get(identity, (0, 0, known_us))
        if content == before:
            notes.add(REPEAT)
            return version
        if known_us < before_us:
            notes.add(BACKWARDS)
        self._last[identity] = version + 1, content, known_us
        return version + 1


class Teller:
    """Tells the rows of one table.

    Raises:
        InputError: the table lacks a column that the mapping names: the line of the mapping.
    """

    def __init__(self, mapped: MappingFile, table: CsvTable, local: dict[str, LocalCode], book: Codebook, versions: Versions) -> None:
        self._mapped, self._table = mapped, table
        self._mapping, self._local, self._book, self._versions = mapped.mapping, local, book, versions
        m = self._mapping
        self._feed, self._kind = m.feed, event.FEEDS[m.feed].model_fields["kind"].default
        self._blank = frozenset(m.blank)
        self._times = LocalTimes(m.zone, m.time_formats)
        self._id = [self._column("event_id", name) for name in m.event_id]
        self._get = {
            key: self._column(key, name)
            for key in ("patient_id", "event_time", "end_time", "ordinal", "episode_id", "value", "from_patient_id")
            if (name := getattr(m, key)) is not None
        }
        if not isinstance(m.known_time, After):
            self._get["known_time"] = self._column("known_time", m.known_time)
        if m.version != ROW_ORDER:
            self._get["version"] = self._column("version", m.version)
        for key in ("facility", "code", "code_system", "unit"):
            if (cell := getattr(m, key)) is not None:
                self._get[key] = self._cell(key, cell)
        self._words = {
            key: (words, self._cell(key, Cell(words.column, words.constant)))
            for key in ("status", "encounter_class", "priority", "expired", "target_kind")
            if (words := getattr(m, key)) is not None
        }

    def tell(self, row: Row) -> list[Told]:
        """The events of a row, or why it is none."""
        try:
            if len(row) != len(self._table.columns):
                raise Rejected("wrong-number-of-fields", "a row has as many fields as the first line has names")
            return [(self._feed, told) for told in self._events(row)]
        except Rejected as rejected:
            return [("rejected", {"feed": self._feed, "reason": rejected.reason})]

    def _events(self, row: Row) -> list[dict[str, Any]]:
        notes: set[str] = set()
        told: dict[str, Any] = {"id": self._source_id(row), "patient_id": self._needed(row, "patient_id", "patient-missing")}
        event_us = self._time(self._needed(row, "event_time", "time-missing"), notes)
        known_us = self._known(row, event_us, notes)
        told |= {"event_time": rfc3339(event_us), "known_time": rfc3339(known_us)}
        self._add_words(row, told)
        for key in ("episode_id", "facility", "from_patient_id"):
            if key in self._get and (text := self._get[key](row)):
                told[key] = text
        if "ordinal" in self._get and (text := self._get["ordinal"](row)):
            told["ordinal"] = _whole(text, "ordinal-not-a-number")
        end_us = self._end(row, event_us, notes)
        if end_us is not None:
            told["end_time"] = rfc3339(end_us)
        identity = fact.fact_id(self._kind, told["id"])
        version = _whole(self._needed(row, "version", "version-missing"), "version-not-a-number") if "version" in self._get else None
        if "code" in self._get:
            amends = told.get("status") in _AMENDS or (version > 1 if version is not None else self._versions.has(identity))
            self._add_code(row, told, notes, amends=amends)
        told["version"] = version if version is not None else self._versions.next(identity, told, known_us, notes)
        return self._in_time(told, known_us, end_us, notes)

    def _in_time(self, told: dict[str, Any], known_us: int, end_us: int | None, notes: set[str]) -> list[dict[str, Any]]:
        """The row as it could be told: an end not before it came."""
        if self._mapping.end_time is not None:
            told["version"] = 2 * told["version"] - (end_us is None)
        if not 1 <= told["version"] <= event.VERSION_MAX:
            raise Rejected("version-out-of-range", "versions count from 1 to 65535; with end_time to half as many")
        visit = self._feed == "encounters"
        if visit and "status" not in self._words:
            told["status"] = "in-progress" if end_us is None else "finished"
        noted = {NOTES: sorted(notes)} if notes else {}
        lasts = told["status"] == "finished" if visit else told.get("status") not in _GONE
        if end_us is None or known_us >= end_us or not lasts:
            return [told | noted]
        before = {key: value for key, value in told.items() if key not in ("end_time", "expired")}
        before |= {"version": told["version"] - 1} | ({"status": "in-progress"} if visit else {})
        assumed_us = self._mapping.known_time.span_us if isinstance(self._mapping.known_time, After) else 0
        return [before | noted, told | {"known_time": rfc3339(end_us + assumed_us), NOTES: [END_TOLD]}]

    def _source_id(self, row: Row) -> str:
        parts = [get(row) for get in self._id]
        if not all(parts):
            raise Rejected("id-missing", "every column of event_id needs a text")
        if len(parts) > 1:
            parts = [part.replace("\\", "\\\\").replace("|", "\\|") for part in parts]  # a|b and c is not a and b|c
        joined = "|".join(parts)
        return joined if len(joined) <= event.ID_LENGTH_MAX else fact.fact_id(self._kind, joined).hex()

    def _known(self, row: Row, event_us: int, notes: set[str]) -> int:
        if isinstance(self._mapping.known_time, After):
            notes.add(ASSUMED)
            return event_us + self._mapping.known_time.span_us
        return self._time(self._needed(row, "known_time", "known-time-missing"), notes)

    def _end(self, row: Row, event_us: int, notes: set[str]) -> int | None:
        text = self._get["end_time"](row) if "end_time" in self._get else ""
        if not text:
            return None
        end_us = self._time(text, notes)
        if end_us < event_us:
            raise Rejected("end-before-start", "end_time is before event_time")
        return end_us

    def _time(self, text: str, notes: set[str]) -> int:
        moment = self._times.read(text)
        if moment is None:
            raise Rejected("time-not-readable", "no format of time_formats fits")
        if not TIME_MIN_US <= moment.time_us < TIME_MAX_US:
            raise Rejected("absurd-time", "a time is outside 1900 to 2250")
        if moment.note:
            notes.add(moment.note)
        return moment.time_us

    def _add_words(self, row: Row, told: dict[str, Any]) -> None:
        for key, (words, get) in self._words.items():
            word = words.constant or words.words.get(get(row), "")
            if key == "expired":
                told[key] = word == "true"
            elif word:
                told[key] = word
            elif key != "priority":
                raise Rejected(f"{key.replace('_', '-')}-not-mapped", "the word is not listed in the mapping")

    def _add_code(self, row: Row, told: dict[str, Any], notes: set[str], *, amends: bool) -> None:
        """Code, value and unit; `amends` says that another row of the id may stand already."""
        code, unit = self._needed(row, "code", "code-missing"), ""
        if "code_system" in self._get:
            system = self._needed(row, "code_system", "code-system-missing")
            if system == LOCAL and code in self._local:
                meant = self._local[code]
                system, code, unit = meant.system, meant.code, meant.unit
            told["code_system"] = system
        told["code"] = code
        if "value" not in self._get:
            return
        try:
            told |= self._measured(row, told, unit, notes)
        except Rejected:
            if not amends and told.get("status") not in _GONE:
                raise
            notes.add(NO_NUMBER)

    def _measured(self, row: Row, told: dict[str, Any], local_unit: str, notes: set[str]) -> dict[str, Any]:
        value, comparator = number(self._needed(row, "value", "value-missing"), self._mapping.decimal)
        unit = self._get["unit"](row) if "unit" in self._get else ""
        unit = self._mapping.units.get(unit, unit)
        from_codes = not unit and bool(local_unit)
        system = told.get("code_system") or event.FEEDS[self._feed].model_fields["code_system"].default
        concept = self._book.concept(kind=self._kind, system=system, code=told["code"])
        if concept != OTHER:
            if not (unit or from_codes):
                raise Rejected("unit-missing", "a value of a code that features read needs a unit")
            self._book.in_unit(concept, value, unit or local_unit)
        if from_codes:
            notes.add(LOCAL_UNIT)
        return {"value": value, "unit": unit or local_unit} | ({"comparator": comparator} if comparator else {})

    def _needed(self, row: Row, key: str, reason: str) -> str:
        text = self._get[key](row)
        if not text:
            raise Rejected(reason, f"{key} is blank")
        return text

    def _cell(self, key: str, cell: Cell) -> Get:
        if cell.column:
            return self._column(key, cell.column)
        return lambda row: cell.constant

    def _column(self, key: str, name: str) -> Get:
        if name not in self._table.columns:
            found = ", ".join(filter(None, self._table.columns))
            raise self._mapped.fault(key, f'{key}: {self._table.path.name} has no column "{name}". It has: {found}')
        at, blank = self._table.columns.index(name), self._blank

        def get(row: Row) -> str:
            text = row[at].strip()
            return "" if text in blank else text

        return get


def _whole(text: str, reason: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise Rejected(reason, "expected a whole number")
    return int(text)
