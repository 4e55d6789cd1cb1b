"""The contract of the feeds: pydantic and msgspec give one verdict, and a refusal has a stable reason without the patient's data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, TypeVar

import msgspec
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features import decode, event, fact
from features.codes import codebook
from features.errors import Rejected

CHECKED = settings(max_examples=100, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
T = TypeVar("T")
FEEDS = sorted(event.FEEDS)
TIME = "2026-05-03T09:00:00+02:00"
COMMON: dict[str, Any] = {
    "schema_version": 1, "id": "x1", "patient_id": "p1", "version": 1, "event_time": TIME, "known_time": TIME, "ordinal": 0,
    "episode_id": "s1",
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "encounters": {
        "kind": "encounter", "encounter_class": "inpatient", "status": "finished", "end_time": TIME, "priority": "urgent", "expired": False,
        "facility": "north",
    },
    "labs": {
        "kind": "lab", "code": "718-7", "code_system": "loinc", "value": 9.5, "comparator": "<", "unit": "g/dL", "status": "corrected"
    },
    "vitals": {
        "kind": "vital", "code": "29463-7", "code_system": "loinc", "value": 70.0, "comparator": None, "unit": "kg", "status": "final"
    },
    "medication-orders": {"kind": "medication_order", "code": "308136", "code_system": "rxnorm", "status": "cancelled"},
    "medication-administrations": {"kind": "medication_administration", "code": "308136", "code_system": "rxnorm", "status": "final"},
    "conditions": {"kind": "condition", "code": "C50.9", "code_system": "icd10cm", "status": "amended"},
    "coverage": {"kind": "coverage", "code": "observed", "code_system": "coverage", "end_time": TIME, "status": "final"},
    "persons": {"kind": "person", "code": "female", "code_system": "sex", "status": "final"},
    "deaths": {"kind": "death", "status": "entered-in-error"},
    "retractions": {"kind": "retraction", "target_kind": "lab"},
    "merges": {"kind": "merge", "from_patient_id": "p2", "status": "entered-in-error"},
}  # fmt: skip
VALID = {feed: {name: json.dumps(value) for name, value in (COMMON | OWN[feed]).items()} for feed in FEEDS}
"""A valid record of each feed with every field of its contract; field → JSON text."""

NUMBERS = [
    "0", "1", "-1", "2", "1.0", "1.5", "-0", "-0.0", "1e2", "1E+2", "1e-400", "1e308", "1e400", "-1e400", "65535", "65536", "4294967295",
    "4294967296", "9223372036854775808", "18446744073709551616", "1" + 40 * "0", "01", "1.", ".5", "+1", "0x1", "NaN", "Infinity",
]  # fmt: skip
ODD_TIMES = [
    "2026-05-03", "2026-05-03T09:00:00", "2026-05-03T09:00Z", "2026-05-03 09:00:00Z", "2026-05-03T09:00:00z", "2026-05-03t09:00:00Z",
    "2026-05-03T09:00:00+0200", "2026-05-03T09:00:00+02", "2026-05-03T09:00:00-00:00", "2026-05-03T24:00:00Z", "2026-06-30T23:59:60Z",
    "2026-02-29T00:00:00Z", "2024-02-29T00:00:00Z", "0000-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00",
    "2026-05-03T09:00:00.1234567Z", "9999-12-31T23:59:59.9999999Z", "2026-05-03T09:00:00,5Z", "2026-05-03T09:00:00+24:00",
    "20260503T090000Z", "2026-05-03T09:00:00+23:59",
    "2026-05-03T09:00:00 Z", " 2026-05-03T09:00:00Z", "2026-05-03T09:00:00+02:00[Europe/Berlin]", "1777798800",
    "٢٠٢٦-05-03T09:00:00Z", "2026-123T09:00:00Z", "now",
]  # fmt: skip
TEXTS = ["", " ", *(c * n for c, n in product("xé😀", (64, 65, 128, 129))), "\0", "a|b", "1", "true", "null", "Final"]
WORDS = sorted({value for own in OWN.values() for value in own.values() if isinstance(value, str)} | {*event.KINDS, "planned", "virtual"})
JUNK = [
    "null", "true", "false", *NUMBERS, *(json.dumps(text, ensure_ascii=False) for text in [*ODD_TIMES, *TEXTS, *WORDS]),
    *(json.dumps(text) for text in TEXTS), '"\\ud800"', '"\\ud83d\\ude00"', '"a\tb"', '"open', "[]", "{}", "[[1]]", '{"a": {"b": null}}',
    "[" * 40 + "]" * 40, "",
]  # fmt: skip
MORE = ["extra", "Status", "status ", "patientId", "", "kind2"]


def text_of(fields: dict[str, str]) -> bytes:
    return ("{" + ", ".join(f"{json.dumps(name)}: {value}" for name, value in fields.items()) + "}").encode()


def by_pydantic(feed: str, value: bytes) -> event.Event | None:
    try:
        return event.validate(feed, value)
    except (pydantic.ValidationError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def by_msgspec(feed: str, value: bytes) -> Any:
    try:
        return decode.decode(feed, value)
    except Rejected:
        return None


def assert_one_verdict(feed: str, value: bytes) -> bool:
    """Both accept and read the same, or both refuse; whether they accepted."""
    slow, hot = by_pydantic(feed, value), by_msgspec(feed, value)
    assert (slow is None) == (hot is None), f"{feed}: pydantic {'refuses' if slow is None else 'accepts'}, msgspec not: {value!r}"
    if slow is not None:
        assert {name: getattr(hot, name) for name in type(slow).model_fields} == dict(slow)
    return slow is not None


class Choices:
    """Many small choices out of drawn bytes: thousands of records would else need tens of thousands of draws."""

    def __init__(self, content: bytes) -> None:
        self._bytes: Iterator[int] = iter(content)

    def of(self, options: Sequence[T]) -> T:
        return options[next(self._bytes) % len(options)]

    def mutated(self, feed: str) -> dict[str, str]:
        """A valid record with up to three fields changed, left out or added."""
        fields = dict(VALID[feed])
        for _ in range(self.of([0, 1, 1, 1, 2, 3])):
            what, name, junk = self.of("ccccdn"), self.of(list(VALID[feed])), self.of(JUNK)
            if what == "n":
                fields[self.of(MORE)] = junk if junk not in ("NaN", "Infinity") else "0"
            elif what == "d":
                fields.pop(name, None)
            else:
                fields[name] = junk
        return fields


@pytest.mark.parametrize("feed", FEEDS)
@CHECKED
@given(st.lists(st.binary(min_size=14, max_size=14), min_size=40, max_size=40))
def test_pydantic_and_msgspec_give_one_verdict(feed: str, content: list[bytes]) -> None:
    """Thousands of records with wrong types, bounds, dates, nulls, missing and added fields: one verdict and, if read, one content."""
    for choices in map(Choices, content):
        assert_one_verdict(feed, text_of(choices.mutated(feed)))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=70),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
times = st.builds(
    lambda at, zone: at.isoformat() + zone, st.datetimes(), st.sampled_from(["Z", "", "+02:00", "-11:30", "+14:00", "+00:00", "z", "+2:00"])
)


@CHECKED
@given(st.sampled_from(FEEDS), st.data())
def test_any_value_in_any_field_gives_one_verdict(feed: str, data: st.DataObject) -> None:
    """Values that nobody thought of, in two fields of the contract or beside it."""
    fields = dict(VALID[feed])
    for _ in range(2):
        name = data.draw(st.sampled_from(list(fields)) | st.text(max_size=8))
        fields[name] = json.dumps(data.draw(json_values | times), ensure_ascii=data.draw(st.booleans()))
    assert_one_verdict(feed, text_of(fields))


@pytest.mark.parametrize("feed", FEEDS)
def test_the_full_record_is_read_by_both(feed: str) -> None:
    """The valid record that is mutated has every field of its contract and is read; so is the one with only what is required."""
    assert VALID[feed].keys() == event.FEEDS[feed].model_fields.keys()
    assert assert_one_verdict(feed, text_of(VALID[feed]))
    required = {name for name, field in event.FEEDS[feed].model_fields.items() if field.is_required()}
    assert assert_one_verdict(feed, text_of({name: text for name, text in VALID[feed].items() if name in required}))
    for name in required:
        assert not assert_one_verdict(feed, text_of({other: text for other, text in VALID[feed].items() if other != name}))


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(b"NaN", id="NaN is not JSON"),
        pytest.param(b'"\xff"', id="broken UTF-8"),
        pytest.param(b"[" * 201 + b"]" * 201, id="201 levels deep"),
    ],
)
def test_what_stands_in_an_ignored_field_gives_one_verdict(odd: bytes) -> None:
    """A field that the contract does not know is ignored, but its bytes must be JSON in UTF-8 for both."""
    assert_one_verdict("labs", text_of(VALID["labs"] | {"extra": '"here"'}).replace(b'"here"', odd))


# --- reasons ---------------------------------------------------------------------------------------------------------------------------


def reason_of(feed: str, value: bytes | None) -> str:
    """Why a record cannot become a fact; empty where it can."""
    try:
        fact.convert(decode.decode(feed, value), feed=feed, told=1, stamp="append", book=codebook())
    except Rejected as rejected:
        return rejected.reason
    return ""


def lab(**changes: str) -> bytes:
    return text_of({name: text for name, text in (VALID["labs"] | changes).items() if text})


CONTRACT: list[tuple[str, str, bytes | None]] = [
    ("broken JSON", "not-json", lab()[:-1]),
    ("broken JSON", "not-json", b""),
    ("broken JSON", "not-json", b"\xff\xfe"),
    ("broken JSON", "not-json", lab(code='"\\ud800"')),
    ("broken JSON", "not-json", lab(extra="[" * 5_000 + "]" * 5_000)),
    ("wrong type", "bad-value", lab(value='"9.5"')),
    ("wrong type", "bad-value", lab(version="1.0")),
    ("wrong type", "bad-value", lab(id="7")),
    ("wrong type", "bad-value", b"[]"),
    ("a word outside the list", "bad-value", lab(status='"done"')),
    ("a number out of its bounds", "bad-value", lab(version="0")),
    ("unknown unit", "unit", lab(unit='"mg/L"')),
    ("unknown unit", "unit", lab(unit="")),
    ("absurd time", "absurd-time", lab(event_time='"1899-12-31T23:59:59.999999Z"')),
    ("absurd time", "absurd-time", lab(event_time='"2250-01-01T00:00:00Z"')),
    ("absurd time", "absurd-time", lab(known_time='"9999-12-31T23:59:59-14:00"')),
    ("absurd time", "absurd-time", lab(known_time='"0001-01-01T00:00:00+14:00"')),
    ("missing id", "missing-field", lab(id="")),
    ("missing id", "missing-field", b"{}"),
    ("10 MB", "too-large", lab(extra='"' + "x" * 10_000_000 + '"')),
    ("unknown version", "unknown-version", lab(schema_version="2")),
    ("unknown version", "unknown-version", lab(schema_version='"1"')),
    ("unknown version", "unknown-version", lab(schema_version="1.0")),
    ("date without zone", "bad-time", lab(event_time='"2026-05-03T09:00:00"')),
    ("date without zone", "bad-time", lab(known_time='"2026-05-03T09:00:00"')),
    ("date without clock time", "bad-time", lab(event_time='"2026-05-03"')),
    ("no value", "empty", None),
]


@pytest.mark.parametrize(("what", "reason", "value"), CONTRACT, ids=[f"{what} {n}" for n, (what, *_) in enumerate(CONTRACT)])
def test_the_reason_of_a_refusal_is_part_of_the_contract(what: str, reason: str, value: bytes | None) -> None:
    """Sources and runbooks know these words; whoever changes one breaks them."""
    assert reason_of("labs", lab()) == ""
    assert reason_of("labs", value) == reason, what


@pytest.mark.parametrize("feed", FEEDS)
def test_reasons_are_the_same_on_every_feed(feed: str) -> None:
    """What is common to all events is refused alike."""
    full = VALID[feed]
    assert reason_of(feed, text_of(full | {"schema_version": "2"})) == "unknown-version"
    assert reason_of(feed, text_of({k: v for k, v in full.items() if k != "patient_id"})) == "missing-field"
    assert reason_of(feed, text_of(full | {"event_time": '"2026-05-03T09:00:00"'})) == "bad-time"
    assert reason_of(feed, text_of(full | {"event_time": '"2250-01-01T00:00:00Z"', "end_time": "null"})) == "absurd-time"
    assert reason_of(feed, text_of(full | {"kind": '"other"'})) == "bad-value"
    assert reason_of(feed, text_of(full)[:-2]) == "not-json"


@pytest.mark.parametrize(("more", "reason"), [(0, ""), (1, "too-large")])
def test_the_largest_record_that_is_read(more: int, reason: str) -> None:
    """Up to the limit it is read, one byte more is not."""
    padding = decode.RECORD_BYTES_MAX - len(lab(extra='""')) + more
    value = lab(extra='"' + "x" * padding + '"')
    assert len(value) == decode.RECORD_BYTES_MAX + more
    assert reason_of("labs", value) == reason


HOSTILE = ["$.schema_version", "timezone", "RFC3339", "missing required field", "Invalid enum value", " - at ", "`", "$"]
LISTS = [("labs", "status"), ("labs", "comparator"), ("labs", "kind"), ("encounters", "encounter_class"), ("retractions", "target_kind")]


@pytest.mark.parametrize("words", HOSTILE)
def test_the_reason_does_not_depend_on_the_words_that_were_sent(words: str) -> None:
    """A word outside the list is a bad value whatever the word."""
    reasons = {(feed, name): reason_of(feed, text_of(VALID[feed] | {name: json.dumps(words)})) for feed, name in LISTS}
    assert reasons == dict.fromkeys(LISTS, "bad-value")


CANARY = "Jane-Doe-4711"


def assert_nothing_is_repeated(feed: str, fields: dict[str, str]) -> None:
    try:
        fact.convert(decode.decode(feed, text_of(fields)), feed=feed, told=1, stamp="append", book=codebook())
    except Rejected as rejected:
        assert CANARY not in f"{rejected} {rejected.reason} {rejected.detail} {rejected.args}"


@CHECKED
@given(st.sampled_from(FEEDS), st.data())
def test_a_refusal_never_repeats_what_was_sent(feed: str, data: st.DataObject) -> None:
    """An identifier planted in any field, as a text, a key or deeper, is not in the error."""
    fields, about = dict(VALID[feed]), st.text(max_size=5)
    for name in data.draw(st.lists(st.sampled_from(list(fields)), min_size=1, max_size=4, unique=True)):
        text = json.dumps(data.draw(about) + CANARY + data.draw(about))
        fields[name] = data.draw(st.sampled_from([text, f"[{text}]", f"{{{text}: 1}}", f'{{"a": {text}}}']))
    assert_nothing_is_repeated(feed, fields)


@pytest.mark.parametrize("words", HOSTILE)
def test_a_refusal_never_repeats_words_that_look_like_its_own(words: str) -> None:
    """The sentence of the decoder quotes the word that was sent: whatever it is, it is cut out whole."""
    for feed, name in LISTS:
        assert_nothing_is_repeated(feed, VALID[feed] | {name: json.dumps(words + CANARY)})


# --- JSON Schema -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("feed", FEEDS)
def test_each_feed_has_a_json_schema(feed: str) -> None:
    """It says every field, what is required, the bounds and the lists, and it can be written as JSON."""
    schema = json.loads(json.dumps(event.json_schema()[feed]))
    model = event.FEEDS[feed]
    assert schema["type"] == "object"
    assert schema["description"]
    assert schema["properties"].keys() == model.model_fields.keys()
    assert set(schema["required"]) == {name for name, field in model.model_fields.items() if field.is_required()}
    assert schema.get("additionalProperties") is not False, "a source may send more"
    said = schema["properties"]
    assert said["event_time"] == {**said["event_time"], "type": "string", "format": "date-time"}
    assert said["id"] == {**said["id"], "type": "string", "minLength": 1, "maxLength": 64}
    assert said["version"] == {**said["version"], "type": "integer", "minimum": 1, "maximum": 65_535}
    assert said["ordinal"] == {**said["ordinal"], "minimum": 0, "maximum": 2**32 - 1}
    assert said["schema_version"]["const"] == 1
    assert said["kind"]["const"] == json.loads(VALID[feed]["kind"])


def test_feeds_and_kinds_name_each_other() -> None:
    """One feed a kind, one kind a feed, one decoder a feed."""
    assert list(event.json_schema()) == list(event.FEEDS) == list(decode.STRUCTS)
    assert {event.FEED_OF_KIND[kind]: cls for kind, cls in event.KINDS.items()} == event.FEEDS
