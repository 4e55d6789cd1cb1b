"""The fact: what each kind of event becomes, how it is told apart from others, and what is written and read back."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import codes, decode, event, fact, history
from features.clock import DAY_US, TIME_MAX_US, TIME_MIN_US, rfc3339
from features.errors import InputError, Rejected

CHECKED = settings(max_examples=100, deadline=None, print_blob=True)
BOOK = codes.codebook()
T_US = 1_777_798_800_000_000
"""2026-05-03 09:00 UTC."""
NAN = math.nan


def converted(feed: str, *, stamp: str = "append", **fields: Any) -> tuple[int, bytes]:
    """An event of a feed as (source time, value of `facts`)."""
    sent = {"id": "x", "patient_id": "p", "event_time": rfc3339(T_US), **fields}
    return fact.convert(decode.decode(feed, msgspec.json.encode(sent)), feed=feed, told=7, stamp=stamp, book=BOOK)


def head_of(value: bytes) -> dict[str, Any]:
    """The fields of a head as plain numbers."""
    (head,) = fact.heads([value])
    return {name: head[name].item() for name in fact.HEAD.names}


def head(feed: str, **fields: Any) -> dict[str, Any]:
    return head_of(converted(feed, **fields)[1])


def reason(feed: str, **fields: Any) -> str:
    with pytest.raises(Rejected) as caught:
        converted(feed, **fields)
    return caught.value.reason


# --- heads and identity ----------------------------------------------------------------------------------------------------------------

_fields = {
    "event_us": st.integers(-(2**63), 2**63 - 1),
    "stamp_us": st.integers(-(2**63), 2**63 - 1),
    "value": st.floats(allow_nan=True),
    "episode": st.integers(0, 2**64 - 1),
    "place": st.integers(0, fact.PLACE_MAX),
    "ordinal": st.integers(0, 2**32 - 1),
    "version": st.integers(0, 2**16 - 1),
    "concept": st.integers(0, 2**16 - 1),
    "status": st.integers(0, 255),
    "flags": st.integers(0, 255),
}
heads = st.fixed_dictionaries(_fields)
TAIL = fact.Told("lab", "", "", None, None, "", None, None, "", "labs", 1)


@CHECKED
@given(st.lists(st.tuples(st.binary(min_size=16, max_size=16), heads), max_size=5), st.binary(max_size=300))
def test_heads_read_what_pack_wrote(told: list[tuple[bytes, dict[str, Any]]], source: bytes) -> None:
    """Every field of every record of a batch comes back, whatever stands behind the head."""
    values = [fact.join(fact.pack(identity=identity, **fields), source, TAIL) for identity, fields in told]
    found = fact.heads(values)
    assert found.dtype.itemsize == fact.HEAD_BYTES == 64
    for row, (identity, fields) in zip(found, told, strict=True):
        assert row.tobytes()[:16] == identity
        assert {n: row[n].item() for n in fields if n != "value"} == {n: x for n, x in fields.items() if n != "value"}
        np.testing.assert_array_equal(row["value"], fields["value"])
    assert [fact.source_id(value) for value in values] == [source] * len(values)
    assert [fact.told(value) for value in values] == [TAIL] * len(values)


@pytest.mark.parametrize("value", [b"", b"\x01", b"\x01" * 66, b"\x00" + b"\x01" * 80, b"\x02" + bytes(80)])
def test_another_format_stops_the_reader(value: bytes) -> None:
    """A record that this version cannot read is never guessed: readers are deployed before writers."""
    good = converted("deaths")[1]
    with pytest.raises(InputError, match="deploy readers before writers"):
        fact.heads([good, value])


@CHECKED
@given(st.lists(st.tuples(st.sampled_from([*event.KINDS, "control"]), st.text(min_size=1, max_size=8)), unique=True, max_size=40))
def test_s1_a_fact_is_its_kind_and_its_source_id(pairs: list[tuple[str, str]]) -> None:
    """The same id of another kind is another fact; the same pair is the same fact, for ever."""
    assert len({fact.fact_id(kind, source) for kind, source in pairs}) == len(pairs)
    assert not any("|" in kind for kind in event.KINDS), "the separator stands in no kind"


def test_s1_identities_do_not_change_between_versions() -> None:
    """They stand in logs and in score records: a new hash would be a new generation."""
    assert fact.fact_id("encounter", "e000001").hex() == "9300dc7c0ba6414dece2765958ad014a"
    assert fact.hash64("e000001") == 8_312_531_534_539_987_446


@CHECKED
@given(st.text(max_size=80))
def test_an_episode_is_never_zero(text: str) -> None:
    """0 means none."""
    assert 0 < fact.hash64(text) < 2**64


# --- each kind -------------------------------------------------------------------------------------------------------------------------

HOUR = rfc3339(T_US + DAY_US // 24)
LATER = {"end_time": HOUR}
KINDS: list[tuple[str, dict[str, Any], str, float, int, str]] = [
    ("encounters", {"encounter_class": "ambulatory"}, "visit.ambulatory", NAN, 0, "in-progress"),
    ("encounters", {"encounter_class": "virtual", "status": "planned"}, "visit.virtual", NAN, 0, "planned"),
    ("encounters", {"encounter_class": "inpatient", **LATER, "expired": True}, "visit.inpatient", DAY_US / 24, 4, "in-progress"),
    ("encounters", {"encounter_class": "emergency", "priority": "emergency"}, "visit.emergency", NAN, 8, "in-progress"),
    ("encounters", {"encounter_class": "home", "priority": "urgent", "status": "cancelled"}, "visit.home", NAN, 16, "cancelled"),
    ("encounters", {"encounter_class": "observation", "priority": "elective"}, "visit.observation", NAN, 24, "in-progress"),
    ("labs", {"code": "718-7", "value": 9.5, "unit": "g/dL"}, "hemoglobin", 9.5, 0, "final"),
    ("labs", {"code": "718-7", "value": 95, "unit": "g/L", "comparator": "<"}, "hemoglobin", 9.5, 1, "final"),
    ("labs", {"code": "718-7", "value": 10.0, "unit": "mmol/L", "comparator": ">="}, "hemoglobin", 16.114, 2, "final"),
    ("labs", {"code": "718-7", "status": "preliminary"}, "hemoglobin", NAN, 0, "preliminary"),
    ("labs", {"code": "718-7", "unit": "furlong", "status": "entered-in-error"}, "hemoglobin", NAN, 0, "entered-in-error"),
    ("labs", {"code": "999-9", "value": 5.0, "unit": "furlong", "comparator": "<="}, "other", 5.0, 1, "final"),
    ("vitals", {"code": "29463-7", "value": 1_000.0, "unit": "g", "comparator": ">"}, "weight", 1.0, 2, "final"),
    ("medication-orders", {"code": "anything", "status": "cancelled"}, "medication.order", NAN, 0, "cancelled"),
    ("medication-administrations", {"code": "anything"}, "medication.administration", NAN, 0, "final"),
    ("conditions", {"code": "c50.9"}, "condition.cancer.breast", NAN, 0, "final"),
    ("conditions", {"code": "C509", "code_system": "snomed"}, "other", NAN, 0, "final"),
    ("coverage", {"code": "observed"}, "coverage.observed", NAN, 0, "final"),
    ("coverage", {"code": "medicaid", **LATER}, "coverage.medicaid", DAY_US / 24, 0, "final"),
    ("persons", {"code": "female", "code_system": "sex"}, "person.female", NAN, 0, "final"),
    ("deaths", {}, "death", NAN, 0, "final"),
    ("retractions", {"target_kind": "lab"}, "other", NAN, 0, "entered-in-error"),
    ("merges", {"from_patient_id": "q"}, "merge", NAN, 0, "final"),
]


@pytest.mark.parametrize(("feed", "fields", "concept", "value", "flags", "status"), KINDS)
def test_what_each_kind_becomes(feed: str, fields: dict[str, Any], concept: str, value: float, flags: int, status: str) -> None:
    """Concept, value in its unit, flags and status of the head; time, version and ordinal as they were told."""
    found = head(feed, version=3, ordinal=2, **fields)
    assert found["concept"] == BOOK.by_name[concept].number
    assert found["value"] == pytest.approx(value, rel=1e-15, nan_ok=True)
    assert (found["flags"], fact.STATUS_NAME[found["status"]]) == (flags, status)
    assert (found["event_us"], found["version"], found["ordinal"], found["place"], found["merge"]) == (T_US, 3, 2, 0, 0)
    assert found["stamp_us"] == fact.NO_STAMP


def test_every_kind_is_in_the_table() -> None:
    assert {feed for feed, *_ in KINDS} == event.FEEDS.keys()


def test_the_tail_is_what_the_source_said() -> None:
    """Raw code, value and unit stay, so that other code sets can read the log anew (S11)."""
    sent = {"code": "718-7", "value": 95.0, "unit": "g/L", "comparator": "<", "known_time": HOUR, "episode_id": "stay"}
    time_us, value = converted("labs", **sent)
    assert time_us == T_US + DAY_US // 24, "the source time is when it was known"
    assert fact.told(value) == fact.Told("lab", "loinc", "718-7", 95.0, "<", "g/L", time_us, "stay", "", "labs", 7)
    assert fact.told(converted("encounters", encounter_class="home", facility="north")[1]).facility == "north"
    assert converted("deaths")[0] == T_US, "where that is not told, when it happened"


def test_s9_a_merge_says_who_was_merged() -> None:
    """The redirect stands under the one who goes over and names the other: without both in the log it could never take effect."""
    assert b"the-other-patient" in converted("merges", patient_id="the-other-patient", from_patient_id="goes")[1]
    sent = {"id": "x", "patient_id": "stays", "from_patient_id": "goes", "event_time": rfc3339(T_US)}
    assert fact.key_of(decode.decode("merges", msgspec.json.encode(sent))) == "goes"
    sent["encounter_class"] = "ambulatory"
    assert fact.key_of(decode.decode("encounters", msgspec.json.encode(sent))) == "stays"
    with pytest.raises(Rejected, match="themselves"):
        converted("merges", from_patient_id="p")


STRANGERS = [
    ("conditions", {"code": "718-7", "code_system": "loinc"}),
    ("labs", {"code": "C509", "code_system": "icd10cm"}),
    ("labs", {"code": "observed", "code_system": "coverage"}),
    ("persons", {"code": "medicaid", "code_system": "coverage"}),
]


@pytest.mark.parametrize(("feed", "fields"), STRANGERS)
def test_a_code_means_nothing_on_a_feed_of_another_kind(feed: str, fields: dict[str, Any]) -> None:
    """A lab whose code is that of a diagnosis is no diagnosis: concepts have a kind."""
    found = BOOK.concepts[head(feed, **fields)["concept"]]
    assert found.name == "other", f"{feed} with {fields} counts as {found.name}, a {found.kind}"


@pytest.mark.parametrize(("code", "unit"), [("4544-3", "L/L"), ("718-7", "mmol/L")])
def test_a_value_stays_finite_in_the_unit_of_its_concept(code: str, unit: str) -> None:
    """The contract refuses infinite values; changing the unit must not make one, or a score of it has no risk."""
    try:
        value = head("labs", code=code, unit=unit, value=1.7e308)["value"]
    except Rejected:
        return
    assert math.isfinite(value)


def test_s4_a_retraction_takes_the_id_of_its_target() -> None:
    """It is the next version of the fact that it takes back, of every kind; its own kind stands in the tail."""
    kinds = [kind for kind in event.KINDS if kind not in ("retraction", "merge")]
    for kind in kinds:
        value = converted("retractions", target_kind=kind, version=2)[1]
        found = head_of(value)
        assert value[1:17] == fact.fact_id(kind, "x")
        assert (found["status"], found["version"]) == (fact.STATUS["entered-in-error"], 2)
        assert fact.told(value).kind == "retraction"
        assert found["episode"] == (fact.hash64("x") if kind == "encounter" else 0)
    assert len({fact.fact_id(kind, "x") for kind in kinds}) == len(kinds)


def test_an_encounter_without_an_episode_is_its_own() -> None:
    """Other facts without one have none; the same name of an episode is the same number on every feed."""
    assert head("encounters", encounter_class="home")["episode"] == fact.hash64("x")
    assert head("encounters", encounter_class="home", episode_id="s")["episode"] == fact.hash64("s")
    assert head("deaths")["episode"] == 0
    assert head("deaths", episode_id="s")["episode"] == fact.hash64("s")


@pytest.mark.parametrize("feed", ["encounters", "coverage"])
@pytest.mark.parametrize(("length_us", "expected"), [(-1, "end-before-start"), (0, 0.0), (1, 1.0), (DAY_US, float(DAY_US))])
def test_an_end_is_not_before_its_start(feed: str, length_us: int, expected: float | str) -> None:
    """At the start it is allowed, a microsecond before it not."""
    fields = {"encounter_class": "home"} if feed == "encounters" else {"code": "observed"}
    fields["end_time"] = rfc3339(T_US + length_us)
    if isinstance(expected, str):
        assert reason(feed, **fields) == expected
    else:
        assert head(feed, **fields)["value"] == expected


@pytest.mark.parametrize("field", ["event_time", "known_time", "end_time"])
def test_times_are_admitted_from_1900_to_2250(field: str) -> None:
    """1900-01-01T00:00:00Z is in, 2250-01-01T00:00:00Z is out, whatever the zone they are written in."""
    first = "0001-01-01T00:00:00Z" if field == "end_time" else rfc3339(TIME_MIN_US - 1)
    fields: dict[str, Any] = {"encounter_class": "home", "event_time": rfc3339(TIME_MIN_US)}
    for time, expected in ((first, "absurd-time"), (rfc3339(TIME_MAX_US), "absurd-time"), ("2250-01-01T05:00:00+04:59", "absurd-time")):
        assert reason("encounters", **fields | {field: time}) == expected
    for time in (rfc3339(TIME_MIN_US), rfc3339(TIME_MAX_US - 1), "2250-01-01T05:00:00+05:01"):
        converted("encounters", **fields | {field: time})


def test_s3_the_stamp_is_the_given_time_or_left_to_the_append_time() -> None:
    """A log that is built from history needs the known time of each record."""
    known_us, value = converted("deaths", stamp="given", known_time=HOUR)
    assert head_of(value)["stamp_us"] == known_us == T_US + DAY_US // 24
    assert head("deaths", known_time=HOUR)["stamp_us"] == fact.NO_STAMP
    assert reason("deaths", stamp="given") == "missing-field"
    assert fact.NO_STAMP < TIME_MIN_US


# --- names -----------------------------------------------------------------------------------------------------------------------------

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64)


@CHECKED
@given(st.lists(names, min_size=1, max_size=4), st.booleans())
def test_names_survive_the_history(sources: list[str], with_labs: bool) -> None:
    """Names of 1 to 64 characters, up to 256 bytes cut anywhere between two records, are read back from beside their encounter."""
    parts: list[bytes] = []
    for place, source in enumerate(sources):
        found = fact.heads([converted("encounters", id=source, encounter_class="home")[1]])
        found["place"] = place
        parts += [found.tobytes(), fact.name_records(source.encode(), place=place)]
        if with_labs:
            parts.append(fact.pack(identity=fact.fact_id("lab", "x"), event_us=T_US, concept=20, place=place))
    h = history.read([b"".join(parts)])
    assert [h.name(row) for row in np.flatnonzero(h.concept != 20).tolist()] == sources
    assert {len(part) % fact.HEAD_BYTES for part in parts} == {0}


@pytest.mark.parametrize(
    "source", ["x", "x" * 48, "x" * 49, "é" * 24, "é" * 24 + "x", "x" + "é" * 24, "😀" * 12, "x" + "😀" * 63, "\0" * 64]
)
def test_names_at_the_edges_of_a_record(source: str) -> None:
    """A name that fills its records exactly, one byte more, a character that lies across two of them, and zero bytes."""
    records = np.frombuffer(fact.name_records(source.encode(), place=5), fact.HEAD)
    assert len(records) == -(-len(source.encode()) // fact.NAME_CHUNK)
    assert set(records["place"].tolist()) == {5}
    assert fact.name_at(records, 0) == source


# --- conflicts and controls ------------------------------------------------------------------------------------------------------------

SAME: dict[str, Any] = {"identity": bytes(range(16)), "event_us": 1, "value": 2.0, "episode": 3, "ordinal": 4, "concept": 20, "flags": 1}
OTHER: list[tuple[dict[str, Any], bool]] = [
    ({}, False), ({"stamp_us": 99}, False), ({"place": 99}, False), ({"event_us": 2}, True), ({"value": 2.5}, True), ({"value": NAN}, True),
    ({"episode": 9}, True), ({"ordinal": 9}, True), ({"concept": 21}, True), ({"status": 7}, True), ({"flags": 2}, True),
    ({"status": 9}, True),
]  # fmt: skip


@pytest.mark.parametrize(("change", "conflict"), OTHER)
def test_s4_the_content_that_decides_a_conflict(change: dict[str, Any], conflict: bool) -> None:
    """The same id and version with other content is a conflict; when it was told and where it stands is not content."""
    again = SAME | {"place": 8} | change
    h = history.read([fact.pack(**SAME, place=7) + fact.pack(**again)])
    assert (h.duplicates, h.conflicts) == ((0, 1) if conflict else (1, 0))
    assert h.until.tolist() == [history.NEVER, 0]


def test_s4_two_results_without_a_number_are_the_same() -> None:
    """NaN equals no number, but two records with it are one content."""
    assert history.read([fact.pack(**SAME | {"value": NAN}) * 2]).duplicates == 1


@CHECKED
@given(st.sampled_from(["tick", "activate"]), st.integers(1, 2**40), st.integers(TIME_MIN_US, TIME_MAX_US), st.dictionaries(names, names))
def test_controls_carry_their_payload(name: str, number: int, stamp_us: int, payload: dict[str, str]) -> None:
    """A control is told apart by its number, holds from its stamp, and is written in one way only."""
    value = fact.control(name=name, number=number, stamp_us=stamp_us, payload=payload)
    found = head_of(value)
    assert fact.control_payload(value) == payload
    assert (found["stamp_us"], found["event_us"]) == (stamp_us, stamp_us)
    assert found["concept"] == {"tick": codes.TICK, "activate": codes.ACTIVATE}[name] >= codes.CONTROL_FLOOR
    assert value[1:17] != fact.control(name=name, number=number + 1, stamp_us=stamp_us, payload=payload)[1:17]
    assert value == fact.control(name=name, number=number, stamp_us=stamp_us, payload=dict(reversed(payload.items())))
