"""The mapping of one CSV export to one feed: a TOML file that says which column is what. There is no expression language.

    mapping_version = 1
    feed = "labs"
    file = "labs.csv"                       # or "labs_*.csv": several with the same columns
    timezone = "America/Denver"             # of the times without one; required, as a guess would be wrong twice a year
    patient_id = "MRN"
    event_id = ["ORDER", "LINE"]            # the columns that tell one fact from all others
    event_time = "COLLECTED"
    known_time = "FILED"                    # or { after_event = "4h" }: assumed, and said so in every count
    code = "TEST"                           # a column, or { constant = "29463-7" }
    code_system = "local"                   # a word, or { column = "VOCABULARY" }; local: codes/local.csv says what a code means
    value = "RESULT"                        # 4.1, "<0.2" keeps number and comparator
    unit = "UNIT"
    status = { column = "STATE", F = "final", C = "corrected", X = "cancelled" }

Keys that are left out: `Mapping` has all of them with what they default to.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator

from features import event, toml
from features.clock import DAY_US, HOUR_US, MINUTE_US
from features.errors import InputError
from features.importers import local_time

ROW_ORDER = "row order within id"
TODO = "TODO"
LOCAL = "local"
"""The code system whose codes are looked up in codes/local.csv."""
TIME_FORMATS = ["%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%d %H:%M:%S.%f", "%Y-%m-%d"]

_UNITS_US = {"min": MINUTE_US, "h": HOUR_US, "d": DAY_US}
_ALWAYS = ("mapping_version", "feed", "file", "timezone", "patient_id", "event_id", "event_time", "known_time")
EXAMPLES = {
    "mapping_version": "Example: mapping_version = 1",
    "feed": f'One of {", ".join(event.FEEDS)}. Example: feed = "labs"',
    "file": 'Example: file = "labs.csv"',
    "timezone": 'Times like "2026-11-01 01:30:00" are ambiguous without it. Example: timezone = "America/Denver"',
    "patient_id": 'It is the column that names the person. Example: patient_id = "MRN"',
    "event_id": 'It lists the columns that tell one fact from all others. Example: event_id = ["ORDER", "LINE"]',
    "event_time": 'It is the column of when it was true at the bedside. Example: event_time = "COLLECTED"',
    "known_time": (
        "No score may read what was not known yet. It is the column of when it was filed; where the export has none, "
        'say how long after the event: known_time = { after_event = "4h" }'
    ),
    "code": 'Example: code = "TEST" for a column, code = { constant = "29463-7" } for all rows',
    "code_system": 'Example: code_system = "sex" for all rows, code_system = { column = "KIND" } for a column',
    "encounter_class": 'Example: encounter_class = { column = "CLASS", E = "emergency", I = "inpatient" }',
    "target_kind": 'Example: target_kind = "lab"',
    "from_patient_id": 'Example: from_patient_id = "OLD_MRN"',
}
"""What a key is for, said where it is missing."""


@dataclass(frozen=True, slots=True)
class Cell:
    """Where a text comes from: a column, or the same one for all rows (then `column` is empty)."""

    column: str = ""
    constant: str = ""


@dataclass(frozen=True, slots=True)
class After:
    """A known time that the export does not have: assumed this long after the event."""

    span_us: int


@dataclass(frozen=True, slots=True)
class Words:
    """A column whose words mean ours, or one of our words for all rows (then `column` is empty)."""

    column: str
    words: dict[str, str]
    constant: str = ""


def _cell(bare: Literal["column", "constant"]) -> PlainValidator:
    """A bare text is the one, a table with one key may be either."""

    def read(value: Any) -> Cell:
        if isinstance(value, str) and value:
            return Cell(**{bare: value})
        match value:
            case {"column": str(name)} if len(value) == 1 and name:
                return Cell(column=name)
            case {"constant": str(word)} if len(value) == 1 and word:
                return Cell(constant=word)
        raise ValueError('expected "NAME", { column = "NAME" } or { constant = "WORD" }')

    return PlainValidator(read)


def _known(value: Any) -> str | After:
    if isinstance(value, str) and value:
        return value
    match value:
        case {"after_event": str(text)} if len(value) == 1:
            parts = re.fullmatch(r"([0-9]{1,5})(min|h|d)", text)
            if parts:
                return After(int(parts[1]) * _UNITS_US[parts[2]])
    raise ValueError('expected a column such as "FILED", or { after_event = "4h" } with a whole number of min, h or d')


def _words(name: str, ours: tuple[str, ...]) -> PlainValidator:
    def read(value: Any) -> Words:
        if isinstance(value, str) and value in ours:
            return Words("", {}, value)
        if isinstance(value, dict):
            words = dict(value)
            column = words.pop("column", name)
            if column and isinstance(column, str) and words and all(word in ours for word in words.values()):
                return Words(column, words)
        raise ValueError(f'expected {{ column = "NAME", X = "{ours[0]}" }} with words of {", ".join(ours)}, or one of them for all rows')

    return PlainValidator(read)


def _checked(check: Callable[[str], Any]) -> AfterValidator:
    def read(value: str) -> str:
        check(value)
        return value

    return AfterValidator(read)


def _codec(name: str) -> None:
    try:
        "".encode(name)
    except LookupError:
        raise ValueError('no such encoding; expected such as "utf-8", "latin-1", "cp1252" or "utf-16"') from None


def _kinds(name: str, *classes: type[event.Event]) -> tuple[str, ...]:
    """The words that a field of these classes may have."""
    found: dict[str, None] = {}
    for cls in classes:
        annotation = cls.model_fields[name].annotation
        for part in (annotation, *get_args(annotation)):
            found.update(dict.fromkeys(word for word in get_args(part) if isinstance(word, str)))
    return tuple(found)


STATUSES = _kinds("status", event.Encounter, event.Lab, event.Condition)
CLASSES = _kinds("encounter_class", event.Encounter)
PRIORITIES = _kinds("priority", event.Encounter)

Column = Annotated[str, Field(min_length=1)]
AnyCell = Annotated[Cell, _cell("column")]


class Mapping(BaseModel):
    """One file of a mapping folder."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True, arbitrary_types_allowed=True)

    mapping_version: Literal[1]
    feed: Literal[tuple(event.FEEDS)]  # type: ignore[valid-type]
    file: str = Field(min_length=1)
    """A file of the export, or a pattern with `*` for several of the same columns, read in the order of their names."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """None: found from the first line."""
    encoding: Annotated[str, _checked(_codec)] | None = None
    """None: found from the bytes."""
    quote: str = Field(default='"', max_length=1)
    """Around fields; "" where the export does not quote."""
    blank: list[str] = ["NULL", "null", "\\N"]
    """Words that mean that nothing stands there."""
    decimal: Literal[".", ","] = "."
    """Thousands are never grouped: `1,204` is no number here, since it would be two."""
    timezone: Annotated[str, _checked(local_time.zone)]
    time_formats: list[Annotated[str, _checked(local_time.checked_format)]] = Field(default=TIME_FORMATS, min_length=1)
    """Of `strptime`; the first that fits. One without a time of day makes dates; `%Y-%m-%d 00:00:00` does so with midnights."""
    patient_id: Column
    event_id: list[Column] = Field(min_length=1)
    event_time: Column
    known_time: Annotated[str | After, PlainValidator(_known)]
    end_time: Column | None = None
    """Of a visit or a cover. Where it lies after the known time, the row is told twice: without the end, and with it when it came."""
    version: Column = ROW_ORDER
    """A column of whole numbers from 1; by default the rows of an id amend each other in the order of the file."""
    ordinal: Column | None = None
    episode_id: Column | None = None
    facility: AnyCell | None = None
    code: AnyCell | None = None
    code_system: Annotated[Cell, _cell("constant")] | None = None
    value: Column | None = None
    unit: AnyCell | None = None
    """Where it is blank, the unit in codes/local.csv counts."""
    units: dict[str, str] = {}
    """Unit as the export writes it → UCUM."""
    status: Annotated[Words, _words("status", STATUSES)] | None = None
    """A word that is not listed rejects its row."""
    encounter_class: Annotated[Words, _words("encounter_class", CLASSES)] | None = None
    """A word that is not listed rejects its row."""
    priority: Annotated[Words, _words("priority", PRIORITIES)] | None = None
    """A word that is not listed says nothing."""
    expired: Annotated[Words, _words("expired", ("true", "false"))] | None = None
    """A word that is not listed is false."""
    target_kind: Annotated[Words, _words("target_kind", tuple(event.KINDS))] | None = None
    from_patient_id: Column | None = None

    @property
    def zone(self) -> ZoneInfo:
        return local_time.zone(self.timezone)


_OF_FEEDS = [
    *("end_time", "facility", "code", "code_system", "value", "unit", "status", "encounter_class", "priority", "expired"),
    *("target_kind", "from_patient_id"),
]
"""Keys that only some feeds have."""


@dataclass(frozen=True, slots=True)
class MappingFile:
    """A checked mapping, and its text, so that a fault found later can be shown in it."""

    path: Path
    text: str
    mapping: Mapping

    def fault(self, key: str, words: str) -> InputError:
        return _fault(self.path, self.text, key, words)


def load_all(folder: Path) -> list[MappingFile]:
    """The mappings of a folder in the order of their names.

    Raises:
        InputError: there is none, or one is wrong: file and line.
    """
    paths = sorted(folder.glob("*.toml"))
    if not paths:
        raise InputError(f"{folder} holds no mapping (*.toml). Draft some: premonitor import csv SOURCE --mapping {folder} --suggest")
    return [load(path) for path in paths]


def load(path: Path) -> MappingFile:
    """One mapping.

    Raises:
        InputError: file:line, the key, what is wrong and an example.
    """
    text = toml.read(path)
    raw = toml.raw(text, source=str(path))
    for key, value in raw.items():
        if TODO in _texts(value):
            raise _fault(path, text, key, f"{key} is still {TODO}. {EXAMPLES.get(key, 'Say what it is, or strike the line out')}")
    cls = event.FEEDS.get(str(raw.get("feed")))
    needed = [*_ALWAYS, *(key for key in _OF_FEEDS if cls is not None and key in cls.model_fields and cls.model_fields[key].is_required())]
    for key in needed:
        if key not in raw:
            raise _fault(path, text, "event_time" if "time" in key else "feed", f"{key} is missing. {EXAMPLES[key]}")
    mapped = MappingFile(path, text, toml.parse(text, Mapping, source=str(path)))
    for key in _OF_FEEDS:
        if key in raw and cls is not None and key not in cls.model_fields:
            raise mapped.fault(key, f"{key} is nothing that {mapped.mapping.feed} have: strike it out, or is it another feed?")
    status = mapped.mapping.status
    if status is not None and cls is not None:
        allowed = _kinds("status", cls)
        for word in (*status.words.values(), *filter(None, [status.constant])):
            if word not in allowed:
                raise mapped.fault("status", f'status: {mapped.mapping.feed} have no "{word}"; expected one of {", ".join(allowed)}')
    return mapped


def _texts(value: Any) -> list[str]:
    """All texts of a value, a table's and a list's too."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in parts for text in _texts(part)]


def _fault(path: Path, text: str, key: str, words: str) -> InputError:
    return InputError(f"{path}:{toml.line_of(text, (key,))} {words}")


@dataclass(frozen=True, slots=True)
class LocalCode:
    """What one of the site's own codes means."""

    system: str
    code: str
    unit: str


def local_codes(path: Path) -> dict[str, LocalCode]:
    """The site's own codes: a CSV with the columns local_code, system, code, unit. A row without a code is not decided yet.

    Raises:
        InputError: file and line; a missing file, other columns, a code twice with two meanings.
    """
    names = ["local_code", "system", "code", "unit"]
    found: dict[str, LocalCode] = {}
    rows = csv.DictReader(toml.read(path).lstrip("\ufeff").splitlines(), restval="")
    if not set(names) <= set(rows.fieldnames or []):
        raise InputError(f"{path}:1 needs the columns {','.join(names)}, separated by commas")
    for row in rows:
        local, system, code, unit = (row[name].strip() for name in names)
        if not code or not local:
            continue
        meant = LocalCode(system or "loinc", code, unit)
        if found.setdefault(local, meant) != meant:
            raise InputError(f"{path}:{rows.line_num} gives the code of an earlier line another meaning: keep one of them")
    return found
