"""Drafts mappings from the first lines of an export: what names and samples tell, and TODO where they do not.

A draft is read by a person before anything is imported, and refused while a TODO stands in it. It guesses by the words of column
names, and by samples only where they cannot mislead: a time format must fit, a day that could be a month is left open, and the
time zone always is. No cell of the export is copied but words of status and class, which are a vocabulary, and local codes.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice, product
from pathlib import Path

from features.errors import InputError
from features.importers.csv_files import exports
from features.importers.csv_mapping import LOCAL, TODO
from features.importers.csv_table import CsvTable

CODES = "local.csv"
SAMPLE_ROWS, VOCABULARY_MAX, LOCAL_CODES_MAX = 300, 15, 2_000

_FEED_WORDS = {
    "medication-administrations": "administ|admin|given|mar",
    "medication-orders": "med|meds|drug|drugs|order|orders|prescri|rx",
    "labs": "lab|labs|labor|result|results",
    "vitals": "vital|vitals|flowsheet|flowsheets|weight|weights",
    "conditions": "diag|dx|problem|problems|condition|conditions",
    "coverage": "cover|insur|payer|payers",
    "deaths": "death|deaths|deceased|mortality",
    "encounters": "enc|encounter|encounters|visit|visits|adt|admission|admissions|appointment|appointments|stay|stays",
    "persons": "person|persons|patient|patients|demog",
}
"""Feed → what a word of the file's name begins with; the first that fits, as "med_admin" is no order."""
_NUMBERED = "(id|no|nr|num|number|key|csn)"
_PATIENT = [rf"(pat|patient|subject|person)(_{_NUMBERED})?", "(.*_)?mrn(_.*)?", rf"(pat|patient)(?!.*(enc|csn|visit)).*_{_NUMBERED}"]
_EVENT_TIME = {
    "labs": ["(.*_)?(collect|collected|collection|drawn|draw|taken|specimen|sample)(_.*)?", "(.*_)?(chart|effective|observ)[a-z]*(_.*)?"],
    "vitals": ["(.*_)?(taken|measured|observed|chart|recorded|effective)(_.*)?"],
    "encounters": ["(.*_)?(start|begin|arriv|admit|admission|checkin|contact)[a-z]*(_.*)?"],
    "medication-orders": ["(.*_)?(order|ordered|ordering|authored|written|prescribed)(_.*)?", "(.*_)?start(_.*)?"],
    "medication-administrations": ["(.*_)?(taken|given|administered|admin)(_.*)?"],
    "conditions": ["(.*_)?(diagnosis|dx|noted|onset)(_.*)?"],
    "coverage": ["(.*_)?(start|begin|effective|from)(_.*)?"],
    "deaths": ["(.*_)?(death|died|deceased)(_.*)?"],
    "persons": [],
}
_KNOWN_TIME = ["(.*_)?(filed|released|verified|resulted|result|stored|issued|reported|validated)(_.*)?"]
_KNOWN_TIME += ["(.*_)?(recorded|entered|updated|update|created|known|entry)(_.*)?"]
_END_TIME = ["(.*_)?(end|ended|discharge|disch|depart|departure|checkout|to|until)(_.*)?"]
_EVENT_ID = {
    "labs": [rf"(.*_)?(result|lab|observation|record|accession)_{_NUMBERED}"],
    "vitals": [rf"(.*_)?(vital|measurement|meas|observation|record)_{_NUMBERED}"],
    "encounters": [rf"(.*_)?(enc|encounter|visit|stay|case|csn|hadm)(_{_NUMBERED})*"],
    "medication-orders": [rf"(.*_)?(order|med|prescription)_{_NUMBERED}"],
    "medication-administrations": [rf"(.*_)?(admin|administration|mar)_{_NUMBERED}"],
    "conditions": [rf"(.*_)?(dx|diagnosis|problem|condition|record)_{_NUMBERED}"],
    "coverage": [rf"(.*_)?(coverage|policy|member)_{_NUMBERED}"],
}
_CODE = {
    "labs": ["(.*_)?loinc(_.*)?", "(test|component|item|analyte|lab)(_(code|id))?", "(.*_)?code"],
    "vitals": ["(.*_)?loinc(_.*)?", "(item|measure|flowsheet)(_(code|id))?", "(.*_)?code"],
    "conditions": ["(.*_)?icd(_?[0-9]+)?(_.*)?", "(dx|diagnosis)(_code)?", "(.*_)?code"],
    "coverage": ["(payer|plan|insurance|coverage)(_(type|class|code))?"],
}
_CODE["medication-orders"] = _CODE["medication-administrations"] = ["(.*_)?rxnorm(_.*)?", "(drug|medication|med)(_code)?", "(.*_)?code"]
_CLASS = ["(.*_)?(class|patclass)", "(patient|pat|enc|encounter|visit)_type"]
_VALUE = ["(result_|ord_|lab_|obs_)?val(ue)?(_num|_numeric)?|valuenum|wert", "result|reading|measurement|weight"]
_STATUS_WORDS = {"f": "final", "c": "corrected", "p": "preliminary", "x": "cancelled", "w": "entered-in-error", "canceled": "cancelled"}
_CLASS_WORDS = {
    **dict.fromkeys(("o", "op", "amb", "outpatient", "ambulatory", "clinic"), "ambulatory"),
    **dict.fromkeys(("e", "er", "ed", "emer", "emergency"), "emergency"),
    **dict.fromkeys(("i", "ip", "imp", "inpatient"), "inpatient"),
    **dict.fromkeys(("obs", "obsenc", "observation"), "observation"),
    **dict.fromkeys(("hh", "home"), "home"),
    **dict.fromkeys(("vr", "virtual", "telehealth", "video"), "virtual"),
}
_DAYS = ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%m-%d-%Y", "%d-%m-%Y", "%d-%b-%Y", "%d%b%Y")
_CLOCKS = ("%H:%M:%S", "%H:%M", "%H:%M:%S.%f", "%I:%M %p", "%I:%M:%S %p", "%H:%M:%S%z", "%H:%M:%S.%f%z")
_FORMATS = [*_DAYS, *(f"{day}{gap}{clock}" for day, gap, clock in product(_DAYS, (" ", "T"), _CLOCKS) if gap == " " or day == _DAYS[0])]
_LIKE_A_TIME = re.compile(r"[0-9]{1,4}[-./]?[0-9A-Za-z]{1,3}[-./]?[0-9]{2,4}([ T].*)?")


@dataclass
class Draft:
    """One file to write."""

    path: Path
    text: str
    todo: list[str] = field(default_factory=list)
    """Keys that are left to a person."""


def drafts(src: Path, mapping: Path) -> list[Draft]:
    """Drafts of a mapping for each CSV file of a folder, and of codes/local.csv beside them where one needs it and none is there.

    Raises:
        InputError: no CSV file; a mapping of that name exists already: nothing is overwritten.
    """
    if not src.is_dir() or not exports(src):
        raise InputError(f"{src} has no file *.csv, *.tsv or *.txt (.gz too): give the folder in which the export stands")
    tables = _tables(src, mapping)
    there = [path for path in tables if path.exists()]
    if there:
        raise InputError(f"{there[0]} exists already and is not overwritten: move it away, or give another --mapping")
    found, local = [], Counter[str]()
    for path, (table, file) in tables.items():
        guess = _Guess(table, file)
        found.append(guess.draft(path))
        if guess.values.get("code_system") == LOCAL:
            local.update(guess.local_codes())
    codes = mapping.parent / "codes" / CODES
    if local and (not codes.exists() or len(codes.read_text(encoding="utf-8").split()) == 1):  # only its header
        found.append(_draft_of_codes(codes, local))
    return found


def _tables(src: Path, mapping: Path) -> dict[Path, tuple[CsvTable, str]]:
    """Mapping to write → (table, its `file`). Files whose names differ in numbers only, with the same columns, share one."""
    series: dict[tuple[str, ...], list[CsvTable]] = {}
    for path in exports(src):
        table = CsvTable(path)
        series.setdefault((re.sub("[0-9]+", "*", path.name), *table.columns), []).append(table)
    found: dict[Path, tuple[CsvTable, str]] = {}
    for (pattern, *_), tables in series.items():
        file = pattern if len(tables) > 1 else tables[0].path.name
        stem = re.sub(r"\.(csv|tsv|txt)(\.gz)?$", "", file, flags=re.IGNORECASE)
        path = mapping / f"{re.sub('[^A-Za-z0-9_-]+', '_', stem).strip('_') or 'table'}.toml"
        while path in found:
            path = path.with_stem(f"{path.stem}_2")
        found[path] = tables[0], file
    return found


def write(found: list[Draft]) -> None:
    """Write drafts; a mapping that came to be in between is not overwritten."""
    for draft in found:
        draft.path.parent.mkdir(parents=True, exist_ok=True)
        with draft.path.open("w" if draft.path.name == CODES else "x", encoding="utf-8", newline="\n") as file:
            file.write(draft.text)


def _draft_of_codes(path: Path, local: Counter[str]) -> Draft:
    """The local codes, most frequent first; what each means is left open."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["local_code", "system", "code", "unit"])
    rows.writerows([code, "", "", ""] for code, _ in local.most_common(LOCAL_CODES_MAX))
    return Draft(path, text.getvalue(), ["what each code means"])


def _named(name: str) -> str:
    """The words of a column's or file's name: "PatientID" and "patient id" are patient_id."""
    return "_".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", name)).lower()


class _Guess:
    """What can be told of one table."""

    def __init__(self, table: CsvTable, file: str) -> None:
        self.table, self.file = table, file
        rows = [row for row in islice(table.rows(), SAMPLE_ROWS) if len(row) == len(table.columns)]
        self.rows = len(rows)
        self.samples = {name: [row[n].strip() for row in rows if row[n].strip()] for n, name in enumerate(table.columns) if name}
        self.formats = {name: formats for name, texts in self.samples.items() if (formats := _formats(texts))}
        self.values: dict[str, object] = {}
        """Key → what to write; `TODO` where a person must say."""
        self.hints: dict[str, str] = {}
        self.feed = self._feed()
        self._guess()

    def _feed(self) -> str:
        words = _named(self.table.path.name.split(".")[0]).split("_")
        for feed, starts in _FEED_WORDS.items():
            if any(re.fullmatch(rf"({starts})[a-z]*" if len(word) > 4 else starts, word) for word in words):
                return feed
        return TODO

    def _guess(self) -> None:
        feed, table, times = self.feed, self.table, list(self.formats)
        self.values = {"mapping_version": 1, "feed": feed, "file": self.file, "delimiter": table.delimiter}
        self.values["encoding"] = table.encoding.removesuffix("-sig")
        self.values["timezone"] = TODO
        self.hints["timezone"] = 'of times without one, such as "America/Denver"'
        self._column("patient_id", _PATIENT)
        self._column("event_id", _EVENT_ID.get(feed, []), as_list=True)
        if self.values["event_id"] == [TODO] and (alone := self._different_in_each_row()):
            self.hints["event_id"] = "different in each row that was looked at: " + ", ".join(alone)
        self._column("event_time", _EVENT_TIME.get(feed, []), among=times)
        rest = [name for name in times if name != self.values["event_time"]]
        self._column("known_time", _KNOWN_TIME, among=rest)
        if self.values["known_time"] == TODO:
            self.hints["known_time"] = f'a column ({", ".join(rest) or "none has times"}), or {{ after_event = "4h" }}: assumed'
        self._add_formats()
        if feed in ("encounters", "coverage"):
            self._column("end_time", _END_TIME, among=rest, optional=True)
        else:
            self._column("episode_id", [rf"(.*_)?(enc|encounter|visit|csn|hadm|stay)(_{_NUMBERED})*"], optional=True)
        if feed == "encounters":
            self._add_words("encounter_class", _CLASS, _CLASS_WORDS)
        if feed in _CODE:
            self._add_code()
        if feed == "persons":
            self.values |= {"code_system": TODO, "code": TODO}
            self.hints["code_system"] = "sex, race, ethnicity or birth: one mapping of this file for each"
        if feed in ("labs", "vitals"):
            self._add_value()
        self._add_words(
            "status", ["(.*_)?(status|state)"], _STATUS_WORDS | ({} if feed != "encounters" else {"f": "finished"}), optional=True
        )

    def _matching(self, patterns: list[str], among: list[str] | None = None) -> list[str]:
        """The columns that the first fitting pattern fits."""
        for pattern in patterns:
            found = [name for name in among or self.samples if re.fullmatch(pattern, _named(name))]
            if found:
                return found
        return []

    def _different_in_each_row(self) -> list[str]:
        """The columns that tell rows apart, times left out: two results may well be of one minute."""
        return [name for name, texts in self.samples.items() if name not in self.formats and len(set(texts)) == self.rows > 1]

    def _column(
        self, key: str, patterns: list[str], *, among: list[str] | None = None, optional: bool = False, as_list: bool = False
    ) -> None:
        found = self._matching(patterns, among) if among is None or among else []
        if len(found) == 1:
            self.values[key] = [found[0]] if as_list else found[0]
        elif not optional:
            self.values[key] = [TODO] if as_list else TODO
            self.hints[key] = "one of " + ", ".join(found or among or self.samples)

    def _add_formats(self) -> None:
        times = [str(self.values[key]) for key in ("event_time", "known_time")]
        ways = [self.formats[name] for name in times if name in self.formats] or list(self.formats.values())
        if ways and all(len(way) == 1 for way in ways):
            self.values["time_formats"] = list(dict.fromkeys(form for way in self.formats.values() if len(way) == 1 for form in way[0]))
        else:
            self.values["time_formats"] = [TODO]
            forms = {form: None for way in ways for forms in way for form in forms}
            self.hints["time_formats"] = "which of " + ", ".join(forms or {"%Y-%m-%d %H:%M:%S": None})

    def _add_code(self) -> None:
        self._column("code", _CODE[self.feed])
        if self.values["code"] == TODO:
            self.values["code_system"] = TODO
            return
        texts = self.samples[str(self.values["code"])]
        if texts and all(re.fullmatch("[0-9]{1,5}-[0-9]", text) for text in texts):
            self.values["code_system"] = "loinc"
        elif self.feed == "conditions" and texts and all(re.fullmatch(r"[A-Z][0-9][0-9A-Z](\.?[0-9A-Z]{1,4})?", text) for text in texts):
            self.values["code_system"] = "icd10cm"
        elif self.feed != "coverage":
            self.values["code_system"] = LOCAL

    def _add_value(self) -> None:
        self._column("value", _VALUE)
        texts = self.samples.get(str(self.values["value"]), [])
        if any(re.fullmatch("[<>=]*[0-9]+,[0-9]+", text) for text in texts):
            grouped = any("." in text and re.search("[0-9]", text) for text in texts)
            self.values["decimal"] = TODO if grouped else ","
        self._column("unit", ["(.*_)?(unit|units|uom|einheit)(_.*)?"], optional=True)

    def _add_words(self, key: str, patterns: list[str], ours: dict[str, str], *, optional: bool = False) -> None:
        found = self._matching(patterns)
        if len(found) != 1:
            if not optional:
                self.values[key] = TODO
                self.hints[key] = '{ column = "CLASS", E = "emergency", … }, or one class for all rows'
            return
        words = sorted(set(self.samples[found[0]]))
        if len(words) > VOCABULARY_MAX:
            words = [TODO]
        known = set(ours.values()) | {"planned", "in-progress", "finished", "amended"}
        self.values[key] = {"column": found[0]} | {w: ours.get(w.lower(), w.lower() if w.lower() in known else TODO) for w in words}

    def local_codes(self) -> Counter[str]:
        """How often each code of the whole table occurs; nothing if there are too many to be codes."""
        at, found = self.table.columns.index(str(self.values["code"])), Counter[str]()
        for row in self.table.rows():
            if len(row) == len(self.table.columns) and row[at].strip():
                found[row[at].strip()] += 1
                if len(found) > LOCAL_CODES_MAX:
                    return Counter()
        return found

    def draft(self, path: Path) -> Draft:
        """The text of the mapping."""
        lines = [
            f"# Drafted from the first {SAMPLE_ROWS} rows of {self.table.path.name}. Read each line, mend each {TODO}, then:",
            f"# premonitor import csv EXPORT --mapping {path.parent.name} --check",
            f"# Columns: {', '.join(self.samples)}",
        ]
        todo = [key for key, value in self.values.items() if TODO in _toml(value)]
        for key, value in self.values.items():
            hint = self.hints.get(key, "") if key in todo else ""
            lines.append(f"{key} = {_toml(value)}" + (f"  # {hint}" if hint else ""))
        return Draft(path, "\n".join(lines) + "\n", todo)


def _formats(texts: list[str]) -> list[list[str]]:
    """The ways to read the texts of a column as times, each a list of formats; none: they are no times, several: it cannot be told."""
    if not texts or not all(_LIKE_A_TIME.fullmatch(text) for text in texts):
        return []
    fitting = {text: [form for form in _FORMATS if _fits(text, form)] for text in dict.fromkeys(texts)}
    if not all(fitting.values()):
        return []
    ways: list[list[str]] = []
    for day in _DAYS:
        ofday = [[form for form in forms if form.startswith(day)] for forms in fitting.values()]
        if all(ofday):
            ways.append(list(dict.fromkeys(forms[0] for forms in ofday)))
    return ways or [list(dict.fromkeys(forms[0] for forms in fitting.values()))]


def _fits(text: str, form: str) -> bool:
    try:
        datetime.strptime(text, form)  # noqa: DTZ007 (only whether it fits)
    except ValueError:
        return False
    return True


def _toml(value: object) -> str:
    """TOML of a text, a number, a list or a table in one line; a JSON text is one."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _key(text: str) -> str:
    return text if re.fullmatch("[A-Za-z0-9_-]+", text) else json.dumps(text, ensure_ascii=False)
