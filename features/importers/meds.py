"""Tells a MEDS data set (Parquet: subject_id, time, code, numeric_value, text_value) as events of our feeds; its times are UTC.

Decisions:

- **One clock.** MEDS has one time a row: known_time = time. A lab drawn on Monday and resulted on Wednesday is known on Monday here, which
  flatters every model of it; the command says so, and the log's source line keeps it.
- **Codes** mean what the longest prefix in `CODES` and `VISITS` says; what follows the prefix is the code. A third part after `//` is the
  unit (`LAB//50811//g/dL`), else a column `unit`, which the standard allows and does not ask for. A code with another prefix is rejected,
  as nothing says what kind of fact it is; one with a prefix that is known, but in none of our code sets, is kept and read by no feature.
- **Values.** A 32-bit number becomes the shortest decimal that means it: 1.2, not 1.2000000476837158, which would be above a limit of 1.2.
  A text is a result without a number.
- **Visits.** A row with a prefix of `VISITS` opens one, the next row with the prefix of its end closes it: version 1 known at the start,
  version 2 at the end. A later start of the same class leaves an open one open. Nothing in MEDS ties the emergency visit to the stay that
  it led to: each is its own episode.
- **Static rows** have no time. They tell of the person (persons), true and known from the first row with a time on, mostly the birth.
- **Follow-up.** `observed` from the first row that is not the birth to the last one, of whatever code; a death ends it.
- **Ids and order.** A row has no id: it is `subject|n`, n its number among those of the subject, from 1; n is the ordinal too. The same
  data set extracted anew may number otherwise: one log is made of one extract.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.clock import TIME_MAX_US, TIME_MIN_US, rfc3339
from features.errors import InputError

CODES: dict[str, tuple[str, str]] = {
    "LOINC//": ("labs", "loinc"),
    "LOINC/": ("labs", "loinc"),
    "LAB//": ("labs", "mimic"),
    "LAB//RESULT//": ("labs", "mimic"),
    "ICD10CM//": ("conditions", "icd10cm"),
    "ICD10CM/": ("conditions", "icd10cm"),
    "ICD9CM//": ("conditions", "icd9cm"),
    "ICD9CM/": ("conditions", "icd9cm"),
    "DIAGNOSIS//ICD//10//": ("conditions", "icd10cm"),
    "DIAGNOSIS//ICD//9//": ("conditions", "icd9cm"),
    "RxNorm//": ("medication-orders", "rxnorm"),
    "RxNorm/": ("medication-orders", "rxnorm"),
    "GENDER//": ("persons", "sex"),
    "RACE//": ("persons", "race"),
    "ETHNICITY//": ("persons", "ethnicity"),
    "MEDS_BIRTH": ("persons", "birth"),
    "MEDS_DEATH": ("deaths", ""),
}
"""Prefix → feed and code system. A vocabulary is written with one slash (OMOP) or two (MIMIC)."""
VISITS: dict[str, tuple[str, str]] = {
    "ED_REGISTRATION": ("emergency", "ED_OUT"),
    "HOSPITAL_ADMISSION": ("inpatient", "HOSPITAL_DISCHARGE"),
    "Visit/ER": ("emergency", ""),
    "Visit/IP": ("inpatient", ""),
    "Visit/OP": ("ambulatory", ""),
}
"""Prefix of a start → class of the encounter and the prefix of its end ("": nothing tells its end)."""
SEX = {"F": "female", "M": "male", "FEMALE": "female", "MALE": "male"}
MEASURED = ("labs", "vitals")
"""Feeds whose rows have a value."""
COLUMNS: dict[str, Callable[[Any], bool]] = {
    "subject_id": pa.types.is_integer,
    "time": pa.types.is_timestamp,
    "code": lambda kind: _is_text(kind) or pa.types.is_dictionary(kind),
    "numeric_value": lambda kind: pa.types.is_floating(kind) or pa.types.is_integer(kind),
    "unit": lambda kind: _is_text(kind) or pa.types.is_dictionary(kind),
}
"""Columns that are read → whether a type is right for it; a file may be without the last two."""

Told = tuple[str, dict[str, Any]]


class _Row(NamedTuple):
    """One row of a subject."""

    n: int
    us: int | None
    """Time in µs since 1970; None: static."""
    code: str
    value: float | None
    unit: str


class _Meaning(NamedTuple):
    """What a code says. A visit `starts` as a class; `ends` names the prefix that ends it."""

    feed: str = "meds"
    system: str = ""
    rest: str = ""
    starts: str = ""
    ends: str = ""


def events(
    src: Path, codes: Mapping[str, tuple[str, str]] = CODES, visits: Mapping[str, tuple[str, str]] = VISITS, *, batch_rows: int = 100_000
) -> Iterator[Told]:
    """Tell a MEDS data set: (feed, event) in JSON form, or ("rejected", {feed, reason}) for a row that is no event.

    Rows that belong to none of the feeds are counted as those of a feed `meds`.

    Args:
        src: Folder of the data set (its folder `data` is read), a folder of Parquet files, or one file.
        codes: What prefixes of codes mean.
        visits: What prefixes begin a visit, and end it.
        batch_rows: How many rows are read at a time.
    Raises:
        InputError: no file, a damaged one, a column missing or of another type, or the rows of a subject lie apart.
    """
    meaning = _Meanings(codes, visits)
    done: set[int] = set()
    subject, rows = 0, list[_Row]()
    for path in _files(src):
        for subject_id, row in _rows(path, batch_rows):
            if subject_id is None:
                yield _rejected("meds", "patient-missing")
                continue
            if rows and subject_id != subject:
                yield from _subject(str(subject), rows, meaning)
                done.add(subject)
                rows = []
            if subject_id in done:
                raise InputError(f"{path}: the rows of a subject lie apart, MEDS keeps them together: sort the data set by subject_id")
            subject = subject_id
            rows.append(row._replace(n=len(rows) + 1))
    if rows:
        yield from _subject(str(subject), rows, meaning)


class _Meanings:
    """What codes mean, by the longest prefix; each code is looked up once."""

    def __init__(self, codes: Mapping[str, tuple[str, str]], visits: Mapping[str, tuple[str, str]]) -> None:
        self._codes, self._visits = codes, visits
        self._prefixes = sorted({*codes, *visits, *filter(None, (end for _, end in visits.values()))}, key=len, reverse=True)
        self._seen: dict[str, _Meaning] = {"": _Meaning()}

    def __call__(self, code: str) -> _Meaning:
        found = self._seen.get(code)
        if found is None:
            prefix = next((prefix for prefix in self._prefixes if code.startswith(prefix)), "")
            if prefix in self._codes:
                found = _Meaning(*self._codes[prefix], rest=code.removeprefix(prefix))
            elif prefix in self._visits:
                found = _Meaning("encounters", starts=self._visits[prefix][0], ends=self._visits[prefix][1])
            else:
                found = _Meaning("encounters", ends=prefix) if prefix else _Meaning()
            self._seen[code] = found
        return found


def _subject(subject: str, rows: list[_Row], meaning: _Meanings) -> Iterator[Told]:
    """The rows of one subject: static ones, then the others in the order of time, of one time in that of the file."""
    dated = list[tuple[int, _Row]]()
    static = list[_Row]()
    for row in rows:
        if row.us is None:
            static.append(row)
        elif TIME_MIN_US <= row.us < TIME_MAX_US:
            dated.append((row.us, row))
        else:
            yield _rejected(meaning(row.code).feed, "absurd-time")
    dated.sort(key=lambda pair: pair[0])
    contacts = [us for us, row in dated if meaning(row.code).system != "birth"]
    for row in static:
        told = meaning(row.code)
        if told.feed not in ("persons", "meds") or told.system == "birth":
            yield _rejected(told.feed, "time-missing")
        else:
            yield _told(subject, row, dated[0][0], told) if dated else _rejected(told.feed, "never-seen")
    if contacts:
        start, end = rfc3339(contacts[0]), rfc3339(contacts[-1])
        observed = {"id": f"observed-{subject}", "patient_id": subject, "event_time": start, "code": "observed"}
        yield "coverage", {**observed, "known_time": start}
        yield "coverage", {**observed, "version": 2, "known_time": end, "end_time": end}
    begun: dict[str, list[dict[str, Any]]] = {}
    for us, row in dated:
        told = meaning(row.code)
        if told.starts:
            visit = _event(subject, row, us, encounter_class=told.starts, status="in-progress")
            begun.setdefault(told.ends, []).append(visit)
            yield "encounters", visit
        elif told.ends:
            yield _ended(begun.get(told.ends, []), us)
        else:
            yield _told(subject, row, us, told)


def _told(subject: str, row: _Row, us: int, told: _Meaning) -> Told:
    """One row that is an event by itself."""
    if told.feed == "meds":
        return _rejected("meds", "code-unknown" if row.code else "code-missing")
    if told.feed == "deaths":
        return "deaths", _event(subject, row, us)
    code, _, unit = told.rest.partition("//") if told.feed in MEASURED else (told.rest, "", "")
    if told.system == "sex":
        code = SEX.get(code.upper(), code)
    if told.system == "birth":
        code = "birth"
    if not code:
        return _rejected(told.feed, "code-missing")
    about: dict[str, Any] = {"code_system": told.system, "code": code}
    if told.feed in MEASURED and row.value is not None:
        if math.isinf(row.value):
            return _rejected(told.feed, "bad-value")
        about |= {"value": row.value, "unit": unit or row.unit}
    return told.feed, _event(subject, row, us, **about)


def _ended(begun: list[dict[str, Any]], us: int) -> Told:
    """The visit of these that began last, with its end."""
    if not begun:
        return _rejected("encounters", "end-without-start")
    end = rfc3339(us)
    return "encounters", {**begun.pop(), "version": 2, "known_time": end, "end_time": end, "status": "finished"}


def _event(subject: str, row: _Row, us: int, **about: Any) -> dict[str, Any]:
    moment = rfc3339(us)
    return {"id": f"{subject}|{row.n}", "patient_id": subject, "event_time": moment, "known_time": moment, "ordinal": row.n, **about}


def _rejected(feed: str, reason: str) -> Told:
    return "rejected", {"feed": feed, "reason": reason}


def _files(src: Path) -> list[Path]:
    folder = src / "data" if (src / "data").is_dir() else src
    found = [src] if src.is_file() else sorted(folder.rglob("*.parquet"))
    if not found:
        raise InputError(f"{folder} has no .parquet file: give the folder of a MEDS data set, the one above data, or one of its files")
    return found


def _rows(path: Path, batch_rows: int) -> Iterator[tuple[int | None, _Row]]:
    """(subject, row) of each row of a file; n is not counted yet."""
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            for name, right in COLUMNS.items():
                needed = name in ("subject_id", "time", "code")
                if not right(schema.field(name).type) if name in schema.names else needed:
                    raise InputError(f"{path}: column {name} is missing or not of the type that MEDS gives it: extract it anew")
            for batch in file.iter_batches(batch_rows, columns=[name for name in COLUMNS if name in schema.names]):
                given = {name: batch.column(name) for name in batch.schema.names}
                nothing = pa.nulls(len(batch))
                times, codes = _us(given["time"]), _texts(given["code"])
                values, units = _decimals(given.get("numeric_value", nothing)), _texts(given.get("unit", nothing))
                for subject, us, code, value, unit in zip(given["subject_id"].to_pylist(), times, codes, values, units, strict=True):
                    yield subject, _Row(0, us, code, value, unit)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}): expected Parquet as MEDS has it; extract it anew") from error


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _us(times: Any) -> list[int | None]:
    whole = times.cast(pa.timestamp("us", tz=times.type.tz), safe=times.type.unit != "ns")
    moments: list[int | None] = whole.cast(pa.int64()).to_pylist()
    return moments


def _texts(column: Any) -> list[str]:
    return [text or "" for text in column.cast(pa.string()).to_pylist()]


def _decimals(column: Any) -> list[float | None]:
    """Numbers as they are meant; NaN is none."""
    short = pa.types.is_float32(column.type)
    return [None if x is None or math.isnan(x) else float(str(np.float32(x))) if short else float(x) for x in column.to_pylist()]
