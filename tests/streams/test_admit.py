"""Admission: each feed record becomes a fact or a dead letter, in the order of source time, and no error repeats a patient's data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import pytest
from aiokafka.partitioner import DefaultPartitioner, murmur2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features import codes, fact
from features.clock import MINUTE_US, SECOND_US, TIME_MIN_US, rfc3339
from features.codes import codebook
from features.decode import RECORD_BYTES_MAX
from features.event import FEEDS
from streams.admit import CONTROLS, Admission, Admitted, Command, DeadLetter
from streams.bus import partitioner
from streams.driver import Driver, Topics

CHECKED = settings(max_examples=100, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
T = TypeVar("T")
PARTITIONS = 3
T_US = 1_777_798_800_000_000
NAMES = {f"gen1.{feed}": feed for feed in FEEDS} | {"gen1.controls": CONTROLS}


@dataclass
class FeedRecord:
    """What admission needs of a Kafka record."""

    topic: str
    partition: int
    offset: int
    value: bytes | None
    timestamp: int = T_US // 1000
    key: bytes | None = None


def admission(stamp: str = "append") -> Admission:
    return Admission(NAMES, partitions=PARTITIONS, partition_of=partitioner(PARTITIONS), stamp=stamp, book=codebook())


def admit(records: Sequence[FeedRecord], *, stamp: str = "append", times: Sequence[int] | None = None) -> Admitted:
    """One group: the records of one or more feed partitions, each with its own source time."""
    step, groups = admission(stamp), {}
    for n, record in enumerate(records):
        some = groups.setdefault((record.topic, record.partition), ([], []))
        (time_us,), read = step.read([record])
        some[0].append(times[n] if times else time_us)
        some[1].extend(read)
    return step([(topic, *told) for (topic, _), told in groups.items()])


def lab(patient: str = "p", **fields: Any) -> dict[str, Any]:
    told = {"id": "L", "patient_id": patient, "event_time": rfc3339(T_US), "known_time": rfc3339(T_US), "code": "718-7"}
    return told | {"value": 9.5, "unit": "g/dL"} | fields


def visit(patient: str = "p", **fields: Any) -> dict[str, Any]:
    told = {"id": "E", "patient_id": patient, "event_time": rfc3339(T_US), "known_time": rfc3339(T_US), "encounter_class": "home"}
    return told | fields


def sent(event: dict[str, Any], offset: int = 0, *, feed: str = "labs", partition: int = 0) -> FeedRecord:
    return FeedRecord(f"gen1.{feed}", partition, offset, msgspec.json.encode(event))


def letters(out: Admitted) -> list[DeadLetter]:
    return [msgspec.json.decode(value, type=DeadLetter) for _, value in out.dead_letters]


def told_of(out: Admitted) -> list[tuple[bytes | None, bytes]]:
    """(patient, source id) of all facts, partition by partition."""
    return [(key, fact.source_id(value)) for _, rows in sorted(out.facts.items()) for key, value in rows]


# --- what becomes of a record ----------------------------------------------------------------------------------------------------------

CANARY = "Jane-Doe-4711"


def without(event: dict[str, Any], name: str) -> dict[str, Any]:
    return {field: value for field, value in event.items() if field != name}


def _bad(event: dict[str, Any]) -> dict[str, tuple[str, bytes]]:
    """The eight kinds of records that cannot become facts: kind → (reason, bytes)."""
    encode = msgspec.json.encode
    return {
        "broken JSON": ("not-json", encode(event)[:-1]),
        "wrong type": ("bad-value", encode(event | {"value": CANARY})),
        "unknown unit": ("unit", encode(event | {"unit": CANARY})),
        "absurd time": ("absurd-time", encode(event | {"event_time": "1799-01-01T00:00:00Z"})),
        "missing id": ("missing-field", encode(without(event, "id"))),
        "10 MB": ("too-large", encode(event | {"extra": CANARY * (10_000_000 // len(CANARY))})),
        "unknown version": ("unknown-version", encode(event | {"schema_version": 2})),
        "date without zone": ("bad-time", encode(event | {"event_time": "2026-05-03T09:00:00"})),
    }


def test_s13_fifty_bad_records_of_each_kind_between_good_ones() -> None:
    """400 dead letters with their reasons, each with its position; the good records are admitted as if the bad ones were not there."""
    records: list[FeedRecord] = []
    bad = [(kind, lab(f"{CANARY}-{n}", id=f"{CANARY}/{n}")) for n in range(50) for kind in _bad(lab())]
    for n, (kind, event) in enumerate(bad):
        records.append(FeedRecord("gen1.labs", n % 2, 2 * n, _bad(event)[kind][1]))
        records.append(sent(lab(f"p{n}", id=f"L{n}"), 2 * n + 1, partition=n % 2))
    out = admit(records)
    good = [record for record in records if record.offset % 2]
    assert out.facts == admit(good).facts
    assert out.counts == Counter({("labs", "fact"): 400}) + Counter({("labs", reason): 50 for reason, _ in _bad(lab()).values()})
    found = {letter.where: letter for letter in letters(out)}
    assert len(found) == len({letter.id for letter in found.values()}) == 400
    for n, (kind, event) in enumerate(bad):
        letter, (reason, payload) = found[f"gen1.labs[{n % 2}]@{2 * n}"], _bad(event)[kind]
        assert (letter.feed, letter.reason) == ("labs", reason)
        assert letter.payload == (payload if len(payload) <= RECORD_BYTES_MAX else b"")
        assert CANARY not in f"{letter.id} {letter.where} {letter.feed} {letter.reason} {letter.detail}"


class Choices:
    """Many small choices out of drawn bytes."""

    def __init__(self, content: bytes) -> None:
        self._bytes: Iterator[int] = iter(content)

    def of(self, options: Sequence[T]) -> T:
        return options[next(self._bytes) % len(options)]

    def record(self, offset: int) -> FeedRecord:
        """A good record, a bad one, an empty one or a control."""
        feed, patient = self.of(["labs", "labs", "encounters", "conditions", "controls"]), self.of(["p1", "p2", "pΩ", "p4"])
        event = {"encounters": visit(patient), "conditions": without(lab(patient), "unit")}.get(feed, lab(patient))
        bad = list(_bad(event).values())
        value: bytes | None = msgspec.json.encode(event | {"id": self.of("abcdef")})
        if feed == "controls":
            value = self.of([b'{"control":"tick"}', b'{"control":"tick","stamp_us":5}', b"{}", b"\xff", None])
        elif self.of(range(3)) == 2:
            value = self.of([None, b"", *(payload for _, payload in bad if len(payload) <= RECORD_BYTES_MAX)])
        return FeedRecord(f"gen1.{feed}", self.of([0, 1]), offset, value, T_US // 1000 + self.of(range(4)))


groups = st.lists(st.binary(min_size=7, max_size=7), max_size=40).map(
    lambda told: [Choices(content).record(offset) for offset, content in enumerate(told)]
)


@CHECKED
@given(groups, st.sampled_from(["append", "given"]))
def test_s13_each_record_is_a_fact_or_a_dead_letter(records: list[FeedRecord], stamp: str) -> None:
    """The counts of a feed add up to what was read; each dead letter names its position; what is written again is the same."""
    out = admit(records, stamp=stamp)
    read = Counter(NAMES[record.topic] for record in records)
    counted: Counter[str] = Counter()
    for (feed, _), n in out.counts.items():
        counted[feed] += n
    assert counted == read
    facts = sum(n for (feed, what), n in out.counts.items() if what == "fact" and feed != CONTROLS)
    assert facts == sum(key is not None for key, _ in told_of(out))
    assert len(out.dead_letters) == sum(n for (_, what), n in out.counts.items() if what != "fact")
    positions = {f"{r.topic}[{r.partition}]@{r.offset}" for r in records}
    assert {letter.where for letter in letters(out)} <= positions
    controls = out.counts[CONTROLS, "fact"]
    assert [sum(key is None for key, _ in out.facts.get(p, [])) for p in range(PARTITIONS)] == [controls] * PARTITIONS
    assert admit(records, stamp=stamp) == out, "a record admitted twice after a crash is the same fact told twice"


@CHECKED
@given(st.data())
def test_planted_identifiers_are_in_payloads_only(data: st.DataObject) -> None:
    """Whatever field of whatever feed carries them, and whatever stands around them."""
    feed = data.draw(st.sampled_from([topic for topic, name in NAMES.items() if name != CONTROLS]))
    event: dict[str, Any] = (visit() if "encounters" in feed else lab()) | {"id": CANARY, "patient_id": CANARY}
    around = st.text(max_size=3) | st.sampled_from([" - at ", "`$.", "$.schema_version", "timezone "])
    names = st.sampled_from([*event, "status", "kind", "code", "schema_version", "target_kind", "extra"])
    for name in data.draw(st.lists(names, max_size=3, unique=True)):
        text = data.draw(around) + CANARY
        event[name] = data.draw(st.sampled_from([text, [text], {text: 1}, {"a": text}]))
    out = admit([FeedRecord(feed, 0, 0, json.dumps(event).encode())])
    for letter in letters(out):
        assert CANARY not in f"{letter.id} {letter.where} {letter.feed} {letter.reason} {letter.detail}"


@pytest.mark.parametrize("field", ["status", "kind"])
def test_an_identifier_that_looks_like_the_end_of_a_sentence(field: str) -> None:
    """` - at ` is where the decoder's own sentence goes on: what follows it in a word that was sent is no part of it."""
    (letter,) = letters(admit([sent(lab() | {field: f"x - at {CANARY}"})]))
    assert CANARY not in letter.detail


# --- controls --------------------------------------------------------------------------------------------------------------------------

ACTIVATION = {"use_case": "u", "use_case_hash": "h", "model_version": "m", "role": "champion", "id": 0}


def control(offset: int, value: bytes | Command) -> FeedRecord:
    return FeedRecord("gen1.controls", 0, offset, value if isinstance(value, bytes) else msgspec.json.encode(value))


def test_s1_controls_stand_in_every_partition() -> None:
    """With one identity and one stamp, also where no fact is; an activation carries the number of its command."""
    out = admit([control(6, Command("tick")), control(7, Command("activate", TIME_MIN_US, ACTIVATION))])
    assert out.facts.keys() == set(range(PARTITIONS))
    assert len({tuple(rows) for rows in out.facts.values()}) == 1
    activate, tick = (value for _, value in out.facts[0])
    heads = fact.heads([activate, tick])
    assert heads["concept"].tolist() == [codes.ACTIVATE, codes.TICK], "an activation waits for nobody"
    assert heads["stamp_us"].tolist() == [TIME_MIN_US, T_US]
    assert fact.control_payload(activate) == ACTIVATION | {"id": 8}


UNREADABLE = {
    "no JSON": b"{",
    "no object": b"[]",
    "another control": b'{"control":"stop"}',
    "broken UTF-8": b'{"control":"tick","payload":{"a":"\xff"}}',
    "broken UTF-8 in the name": b'{"control":"\xff"}',
    "very deep": b'{"control":"tick","payload":{"a":' + b"[" * 5_000 + b"]" * 5_000 + b"}}",
    "a stamp of 70 bits": b'{"control":"tick","stamp_us":1000000000000000000000}',
    "a stamp in the year 144683": b'{"control":"tick","stamp_us":4503599627370496000}',
    "an activation of nothing": b'{"control":"activate"}',
    "an activation without a model": b'{"control":"activate","payload":{"use_case":"u","role":"champion"}}',
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_an_unreadable_control_is_a_dead_letter(what: str) -> None:
    """Whoever can write to the topic must not stop admission, nor put into `facts` what stops scoring for ever."""
    out = admit([control(0, UNREADABLE[what]), control(1, Command("tick")), sent(lab())])
    assert [letter.reason for letter in letters(out)] == ["not-a-control"]
    assert out.counts == {(CONTROLS, "not-a-control"): 1, (CONTROLS, "fact"): 1, ("labs", "fact"): 1}


# --- order and partitions --------------------------------------------------------------------------------------------------------------


told = st.tuples(st.sampled_from(["labs", "encounters", "deaths"]), st.integers(0, 1), st.sampled_from([0, 0, 1, 3]))


@CHECKED
@given(st.lists(told, max_size=40))
def test_s3_facts_are_in_the_order_of_source_time_with_encounters_last(told: list[tuple[str, int, int]]) -> None:
    """In each partition: by time; at one instant encounters behind all else; of one feed partition in its own order."""
    newest: dict[tuple[str, int], int] = {}
    records, times = [], []
    for n, (feed, partition, later) in enumerate(told):
        times.append(newest.get((feed, partition), 0) + later)
        newest[feed, partition] = times[-1]
        event = {"labs": lab(), "encounters": visit()}.get(feed, without(lab(), "code")) | {"id": f"{n}", "patient_id": f"p{n % 5}"}
        records.append(sent(event, n, feed=feed, partition=partition))
    facts = admit(records, times=times).facts
    assert sum(map(len, facts.values())) == len(told)
    for rows in facts.values():
        found = [int(fact.source_id(value)) for _, value in rows]
        assert found == sorted(found, key=lambda n: (times[n], told[n][0] == "encounters", found.index(n)))
        for source in newest:
            mine = [n for n in found if told[n][:2] == source]
            assert mine == sorted(mine)


@settings(CHECKED, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(["labs", "encounters"]), st.integers(0, 1), st.integers(0, 4)), max_size=20), st.data())
def test_s13_a_drained_backlog_is_in_known_time_order(told: list[tuple[str, int, int]], data: st.DataObject) -> None:
    """However the feeds are read: `facts` is by known time and, at one instant, encounters come behind all other facts."""
    topics = Topics()
    for n, (feed, partition, second) in sorted(enumerate(told), key=lambda x: x[1][2]):
        event = (visit if feed == "encounters" else lab)(id=f"{n}", known_time=rfc3339(T_US + second * SECOND_US))
        topics.append(feed, partition, [(None, msgspec.json.encode(event))], 0)
    driver = Driver([], codebook(), topics, partitions=2)
    while sum(driver.read_to.values()) < len(told):
        driver.admit(data.draw(st.integers(1, 3)), sources=data.draw(st.lists(st.sampled_from(driver.sources), min_size=1, max_size=4)))
    while driver.admit():
        pass
    facts = [told[int(fact.source_id(value))] for value in topics.values("facts")]
    order = [(second, feed == "encounters") for feed, _, second in facts]
    assert len(order) == len(told)
    assert order == sorted(order)


@CHECKED
@given(st.binary(min_size=1) | st.text(min_size=1).map(str.encode), st.integers(1, 300))
def test_patients_lie_where_kafkas_own_clients_put_them(patient: bytes, partitions: int) -> None:
    """murmur2 modulo the number of partitions, as aiokafka's default partitioner."""
    expected = DefaultPartitioner()(patient, list(range(partitions)), list(range(partitions)))
    assert partitioner(partitions)(patient) == expected


KAFKAS_OWN = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536, b"abc": 479470107}


@pytest.mark.parametrize("key", KAFKAS_OWN)
def test_murmur2_is_that_of_the_java_client(key: bytes) -> None:
    """Values from Kafka's own tests: a patient's partition is for ever."""
    hashed = KAFKAS_OWN[key] & 0x7FFFFFFF
    assert murmur2(key) & 0x7FFFFFFF == hashed
    assert partitioner(64)(key) == hashed % 64


def source_us(record: FeedRecord, *, stamp: str = "append") -> int:
    ((time_us,), _) = admission(stamp).read([record])
    return time_us


# --- source time -----------------------------------------------------------------------------------------------------------------------


def test_source_time_is_the_records_own_or_in_a_history_the_known_time() -> None:
    """A live feed goes by Kafka's timestamp; a history by what it carries; what cannot be read waits for nobody."""
    later = lab(known_time=rfc3339(T_US + MINUTE_US))
    assert source_us(sent(later)) == T_US
    assert source_us(sent(later), stamp="given") == T_US + MINUTE_US
    for value in (None, b"", b"\xff", b"{}", b'{"known_time": 5}', b"[" * 9_999, b"x" * (RECORD_BYTES_MAX + 1)):
        assert source_us(FeedRecord("gen1.labs", 0, 0, value), stamp="given") <= T_US
    assert source_us(control(0, Command("activate", T_US, ACTIVATION))) == TIME_MIN_US
    assert source_us(control(0, Command("tick", T_US + 1)), stamp="given") == T_US + 1


def test_a_field_that_is_ignored_does_not_move_a_record() -> None:
    """The contract lets a source send more; `stamp_us` is a field of controls, not of events."""
    assert source_us(sent(lab(stamp_us=5)), stamp="given") == T_US
    assert source_us(sent(lab(stamp_us="x")), stamp="given") == T_US


STRAYS: list[Callable[[], dict[str, Any]]] = [
    lambda: lab(known_time="9999-12-31T23:59:59Z"),
    lambda: lab(known_time="2250-01-01T00:00:00Z"),
]


@pytest.mark.parametrize("stray", STRAYS)
def test_a_record_that_is_refused_for_its_time_does_not_move_its_feed(stray: Callable[[], dict[str, Any]]) -> None:
    """One dead letter from the year 9999 must not put all later records of its feed behind those of the others."""
    topics = Topics()
    for feed, event in (
        ("labs", stray()),
        ("labs", lab(id="early")),
        ("encounters", visit(id="late", known_time=rfc3339(T_US + MINUTE_US))),
    ):
        topics.append(feed, 0, [(None, msgspec.json.encode(event))], 0)
    driver = Driver([], codebook(), topics, partitions=1)
    while driver.admit():
        pass
    assert [fact.source_id(value) for value in topics.values("facts")] == [b"early", b"late"]
