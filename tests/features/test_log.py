"""The Parquet log: what was written is read back byte for byte and in order, whole or not at all."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features import clinic, codes, decode, fact
from features import log as log_module
from features.clock import DAY_US, SECOND_US, TIME_MAX_US, TIME_MIN_US, rfc3339
from features.codes import Codebook, codebook
from features.errors import InputError
from features.event import FEEDS
from features.importers.build import build_log
from features.log import Log, LogWriter, Record

CHECKED = settings(max_examples=30, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
BOOK = codebook()
T_US = 1_777_798_800_000_000
Entry = tuple[str | None, bytes]
"""(patient, value); patient None: a control."""

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
patients = st.sampled_from(["p1", "p2", "p3"]) | names
times_us = st.sampled_from([TIME_MIN_US, -1, 0, T_US, T_US + 1, TIME_MAX_US - 1])


def value_of(feed: str, event: dict[str, Any], told: int = 1) -> bytes:
    """The record of `facts` of an event."""
    return fact.convert(decode.decode(feed, msgspec.json.encode(event)), feed=feed, told=told, stamp="given", book=BOOK)[1]


@st.composite
def facts(draw: st.DrawFn) -> Entry:
    """Any fact that admission could have written with a stamp."""
    feed, patient = draw(st.sampled_from(["labs", "encounters", "conditions", "deaths", "merges"])), draw(patients)
    own: dict[str, Any] = {
        "labs": {"code": draw(st.sampled_from(["718-7", "x"])), "value": draw(st.sampled_from([None, -0.0, 1e-300, 9.5])), "unit": "g/dL"},
        "encounters": {"encounter_class": draw(st.sampled_from(list(codes.VISIT_CONCEPTS))), "facility": draw(names)},
        "conditions": {"code": draw(names), "code_system": draw(names)},
        "merges": {"from_patient_id": draw(patients.filter(lambda other: other != patient))},
    }.get(feed, {})
    event = {"id": draw(names), "patient_id": patient, "version": draw(st.integers(1, 65_535)), "ordinal": draw(st.integers(0, 2**32 - 1))}
    event |= {"event_time": rfc3339(draw(times_us)), "known_time": rfc3339(draw(times_us)), "episode_id": draw(st.none() | names)}
    return patient, value_of(feed, event | own, told=draw(st.integers(0, 2**64 - 1)))


@st.composite
def controls(draw: st.DrawFn) -> Entry:
    name, payload = draw(st.sampled_from(["tick", "activate"])), draw(st.dictionaries(names, names, max_size=2))
    return None, fact.control(name=name, number=draw(st.integers(1, 9)), stamp_us=draw(times_us), payload=payload)


entries = st.lists(facts() | facts() | facts() | controls(), max_size=25)


def write(path: Path, told: list[Entry], *, buckets: int = log_module.BUCKETS) -> None:
    with LogWriter(path, BOOK, "test", buckets=buckets) as writer:
        for patient, value in told:
            if patient is None:
                writer.control(value)
            else:
                writer.fact(patient, value)
        writer.close(feeds={})


def records_of(told: list[Entry]) -> list[Record]:
    """What must be read back."""
    return [Record(n, patient, int(fact.heads([value])["stamp_us"][0]), value) for n, (patient, value) in enumerate(told)]


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@CHECKED
@given(entries, st.sampled_from([1, 3]), st.sampled_from([2, 50_000]))
def test_a_log_gives_back_what_was_written(told: list[Entry], buckets: int, piece: int) -> None:
    """The same records, byte for byte and in the same order, whatever the number of buckets and the size of the pieces."""
    with folder() as root, pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_module, "PIECE_ROWS", piece)
        patch.setattr(log_module, "_GROUP_ROWS", 2 * piece)
        write(root / "log", told, buckets=buckets)
        log = Log(root / "log", BOOK)
        assert list(log.records()) == records_of(told)
        assert (log.about["facts"], log.about["controls"]) == (len([p for p, _ in told if p]), len([p for p, _ in told if not p]))


@CHECKED
@given(entries)
def test_a_bucket_holds_whole_patients_with_their_places(told: list[Entry]) -> None:
    """Each patient lies in one bucket, in log order; the place of a head is its seq; controls stand beside, stamps never falling."""
    with folder() as root:
        write(root / "log", told, buckets=3)
        log = Log(root / "log", BOOK)
        found: dict[str, list[int]] = {}
        for file in log.bucket_files():
            table, heads = log.bucket(file)
            assert heads["place"].tolist() == table["seq"].to_pylist() == sorted(table["seq"].to_pylist())
            for patient, seq in zip(table["patient_id"].to_pylist(), table["seq"].to_pylist(), strict=True):
                assert file.name == f"bucket-{log_module.bucket_of(patient, 3):03d}.parquet"
                found.setdefault(patient, []).append(seq)
        expected: dict[str, list[int]] = {}
        for n, (patient, _) in enumerate(told):
            if patient is not None:
                expected.setdefault(patient, []).append(n)
        assert found == expected
        stamps = [int(fact.heads([value])["stamp_us"][0]) for patient, value in told if patient is None]
        assert log.controls.seq.tolist() == [n for n, (patient, _) in enumerate(told) if patient is None]
        assert log.controls.stamp_us.tolist() == list(itertools.accumulate(stamps, max))


def lab(patient: str = "p", **fields: Any) -> tuple[str, dict[str, Any]]:
    """An event for `build_log`."""
    told = {"id": "L", "patient_id": patient, "event_time": rfc3339(T_US), "known_time": rfc3339(T_US), "code": "718-7"}
    return "labs", told | fields


def made(root: Path, *events: tuple[str, dict[str, Any]], name: str = "log") -> Log:
    build_log(events, root / name, book=BOOK, source="test")
    return Log(root / name, BOOK)


def content_of(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_an_existing_log_is_never_overwritten(tmp_path: Path) -> None:
    """Neither a log nor whatever else has the name; what is there stays as it is."""
    made(tmp_path, lab())
    before = content_of(tmp_path)
    with pytest.raises(InputError, match="never overwritten"):
        made(tmp_path, lab("other"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="never overwritten"):
        made(tmp_path, lab(), name="file")
    assert content_of(tmp_path) == before | {"file": b"mine"}


def test_nothing_is_left_of_a_log_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an exception between, in or behind the pieces there is no log, no part of one, and the next try works."""
    monkeypatch.setattr(log_module, "PIECE_ROWS", 1)

    def broken() -> Iterator[tuple[str, dict[str, Any]]]:
        yield from (lab(f"p{n}") for n in range(20))
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="gone"):
        build_log(broken(), tmp_path / "log", book=BOOK, source="test")
    with pytest.raises(msgspec.ValidationError), LogWriter(tmp_path / "log", BOOK, "test") as writer:
        for n in range(20):
            writer.fact(f"p{n}", fact.control(name="tick", number=n, stamp_us=0, payload={}))  # a control is no fact
        writer.close(feeds={})
    assert list(tmp_path.iterdir()) == []
    assert made(tmp_path, lab()).about["facts"] == 1


def test_a_log_that_was_not_closed_is_not_there(tmp_path: Path) -> None:
    """It has its name only when it is whole; what a killed run left is swept away by the next one."""
    with LogWriter(tmp_path / "log", BOOK, "test") as writer:
        writer.fact("p", value_of(*lab()))
    assert not (tmp_path / "log").exists()
    with pytest.raises(InputError, match="is not a log"):
        Log(tmp_path / "log", BOOK)
    made(tmp_path, lab("other"))
    assert [file.name for file in tmp_path.iterdir()] == ["log"]


def test_another_code_set_is_another_generation(tmp_path: Path) -> None:
    """Concepts are numbers of one code set: a log made with another one is refused (S11), as is another format."""
    made(tmp_path, lab())
    other = Codebook()
    other.content_hash = "0123456789abcdef"
    with pytest.raises(InputError, match=f"{BOOK.content_hash}.*0123456789abcdef.*S11"):
        Log(tmp_path / "log", other)
    about = tmp_path / "log" / "log.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"format": 2}))
    with pytest.raises(InputError, match="has format 2, this version reads 1"):
        Log(tmp_path / "log", BOOK)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"format": 1}', "\x00"])
def test_what_is_not_a_log_is_refused_with_a_sentence(tmp_path: Path, text: str | None) -> None:
    """No log.json, an empty or a damaged one: InputError, never a traceback."""
    if text is not None:
        (tmp_path / "log.json").write_text(text)
    with pytest.raises(InputError):
        Log(tmp_path, BOOK)


def test_an_empty_log(tmp_path: Path) -> None:
    """No events make a log without records."""
    log = made(tmp_path)
    assert (list(log.records()), log.bucket_files(), log.about["facts"]) == ([], [], 0)


def simulated(root: Path, name: str, seed: int) -> dict[str, bytes]:
    span = {"start": datetime(2026, 1, 1, tzinfo=UTC), "end": datetime(2026, 7, 1, tzinfo=UTC)}
    counts = build_log(clinic.events(patients=50, seed=seed, **span), root / name, book=BOOK, source="clinic")
    assert counts.keys() <= FEEDS.keys()
    assert all(count.rows == count.facts + count.rejected.total() for count in counts.values())
    return content_of(root / name)


def test_a_simulated_log_has_the_same_bytes_for_the_same_seed(tmp_path: Path) -> None:
    """50 patients: equal seeds give equal files, another seed other ones; the counts of log.json are those of its records."""
    first = simulated(tmp_path, "one", 7)
    assert first == simulated(tmp_path, "two", 7)
    assert first["log.json"] != simulated(tmp_path, "three", 8)["log.json"]
    log = Log(tmp_path / "one", BOOK)
    told = list(log.records())
    assert [r.seq for r in told] == list(range(len(told)))
    assert log.about["facts"] == sum(r.patient_id is not None for r in told) == sum(f["facts"] for f in log.about["feeds"].values())
    assert log.about["controls"] == sum(r.patient_id is None for r in told) > 100
    assert len(first) > 10, "the patients lie in several buckets"


def test_s3_a_log_is_sorted_by_known_time_and_encounters_come_last(tmp_path: Path) -> None:
    """At one instant index encounters stand behind other facts, then the source's order; rows that cannot be facts are counted."""
    at = [{"known_time": rfc3339(T_US + n * SECOND_US)} for n in (0, 1)]
    visit = ("encounters", {"id": "E", "patient_id": "p", "event_time": rfc3339(T_US), "encounter_class": "home"})
    events = [lab(id="late", **at[1]), ("encounters", visit[1] | at[0]), lab(id="b", **at[0]), lab(id="a", **at[0]), lab(known_time="now")]
    log = made(tmp_path, *events, ("rejected", {"feed": "labs", "reason": "no-patient"}))
    assert [fact.source_id(r.value).decode() for r in log.records() if r.patient_id] == ["b", "a", "E", "late"]
    about = {"rows": 5, "facts": 3, "coded": 3, "codes": 1, "codes_known": 1, "noted": {}}
    assert log.about["feeds"]["labs"] == about | {"rejected": {"bad-time": 1, "no-patient": 1}}


@pytest.mark.parametrize(("gap_us", "ticks"), [(0, 1), (DAY_US, 2), (2 * DAY_US, 3), (40 * DAY_US, 3)])
def test_ticks_stand_where_time_can_matter(tmp_path: Path, gap_us: int, ticks: int) -> None:
    """Daily ticks follow each fact for two days, and one stands at the end; a long silence has none."""
    log = made(tmp_path, lab(), lab(id="M", known_time=rfc3339(T_US + gap_us)))
    told = list(log.records())
    stamps = [r.stamp_us for r in told if r.patient_id is None]
    assert [r.stamp_us for r in told] == sorted(r.stamp_us for r in told)
    assert all(stamp_us % DAY_US == 0 and stamp_us > T_US for stamp_us in stamps), [rfc3339(max(s, TIME_MIN_US)) for s in stamps]
    assert len(stamps) == ticks
    assert told[-1].patient_id is None


def test_a_log_is_read_from_any_place(tmp_path: Path) -> None:
    """Records from a place on are the end of all records, whatever bucket they lie in."""
    simulated(tmp_path, "one", 7)
    log = Log(tmp_path / "one", BOOK)
    told = list(log.records())
    for since in (0, 1, len(told) // 2, len(told) - 1, len(told)):
        assert list(log.records(since)) == told[since:]
