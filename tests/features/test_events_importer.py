"""JSON lines in the form of our feeds: a log made from them is the log of the events; what is broken is rejected and counted."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from features import clinic
from features.codes import codebook
from features.decode import RECORD_BYTES_MAX, decode
from features.errors import InputError, Rejected
from features.event import FEEDS
from features.importers import events
from features.importers.build import NOTES, FeedCounts, build_log, checked
from features.log import Log
from streams.cli import main

BOOK = codebook()
SEED = 7
LAB = {"id": "l1", "patient_id": "p1", "event_time": "2026-05-03T09:00:00Z", "known_time": "2026-05-03T10:00:00Z", "code": "x"}


@pytest.fixture(scope="module")
def simulated() -> list[tuple[str, dict[str, Any]]]:
    print(f"seed {SEED}")
    span = {"start": datetime(2025, 1, 1, tzinfo=UTC), "end": datetime(2025, 5, 1, tzinfo=UTC)}
    return list(clinic.events(patients=25, seed=SEED, **span))


def wrapped(told: list[tuple[str, dict[str, Any]]]) -> str:
    return "".join(json.dumps({"feed": feed, "event": event}) + "\n" for feed, event in told)


def counted(path: Path) -> dict[str, tuple[int, int, Counter[str]]]:
    """Feed → (rows, facts, rejected)."""
    counts: dict[str, FeedCounts] = {}
    list(checked(events.events(path), counts, book=BOOK))
    return {feed: (count.rows, count.facts, count.rejected) for feed, count in counts.items()}


@pytest.mark.parametrize("name", ["all.jsonl", "all.jsonl.gz"])
def test_one_file_gives_the_log_of_its_events(simulated: list[tuple[str, dict[str, Any]]], tmp_path: Path, name: str) -> None:
    data = wrapped(simulated).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    build_log(simulated, tmp_path / "direct", book=BOOK, source="test")
    done = CliRunner().invoke(main, ["import", "events", str(tmp_path / name), "--out", str(tmp_path / "log"), "--json"])
    assert done.exit_code == 0, done.output
    read, direct = Log(tmp_path / "log", BOOK), Log(tmp_path / "direct", BOOK)
    assert list(read.records()) == list(direct.records())
    assert json.loads(done.stdout)["feeds"] == direct.about["feeds"]


def test_a_folder_gives_the_events_of_each_feed(simulated: list[tuple[str, dict[str, Any]]], tmp_path: Path) -> None:
    by_feed: dict[str, list[dict[str, Any]]] = {}
    for feed, event in simulated:
        by_feed.setdefault(feed, []).append(event)
    for n, (feed, told) in enumerate(sorted(by_feed.items())):
        data = "".join(json.dumps(event) + "\r\n\n" for event in told).encode()
        (tmp_path / f"{feed}.jsonl{'.gz' * (n % 2)}").write_bytes(gzip.compress(data) if n % 2 else data)
    read: dict[str, list[dict[str, Any]]] = {}
    for feed, event in events.events(tmp_path):
        read.setdefault(feed, []).append(event)
    assert read == by_feed and len(by_feed) > 5


BROKEN = [
    (b"{", "not-json"),
    (b"[1]", "bad-value"),
    (b"\xff", "not-json"),
    (b'{"id": "\xff"}', "not-json"),
    (json.dumps(LAB | {"patient_id": ""}).encode(), "bad-value"),
    (json.dumps(LAB | {"event_time": "2026-05-03"}).encode(), "bad-time"),
    (json.dumps({**LAB, "value": 1}).replace(": 1}", ": 1e999}").encode(), "bad-value"),
    (b'{"id": "l1"}', "missing-field"),
    (json.dumps({key: value for key, value in LAB.items() if key != "known_time"}).encode(), "missing-field"),
    (json.dumps(LAB | {"facility": "x" * RECORD_BYTES_MAX}).encode(), "too-large"),
    (b"x" * (5 * RECORD_BYTES_MAX), "too-large"),
]


@pytest.mark.parametrize(("line", "reason"), BROKEN, ids=range(len(BROKEN)))
def test_a_broken_line_is_rejected_with_its_reason_and_the_others_are_read(tmp_path: Path, line: bytes, reason: str) -> None:
    good = json.dumps(LAB).encode()
    (tmp_path / "labs.jsonl").write_bytes(b"\n".join([good, line, b"  ", good]))  # the last line has no end
    assert counted(tmp_path / "labs.jsonl") == counted(tmp_path) == {"labs": (3, 2, Counter({reason: 1}))}


WRAPPED = [
    (b"{", "unknown", "not-json"),
    (b"\xff", "unknown", "not-json"),
    (b'{"event": {}}', "unknown", "no-feed"),
    (b'{"event": {"kind": "lab"}}', "unknown", "no-feed"),
    (b'{"feed": 1, "event": {}}', "unknown", "no-feed"),
    (b"[]", "unknown", "no-feed"),
    (b'{"feed": "lab", "event": {}}', "unknown", "no-feed"),
    (b'{"kind": "labs"}', "unknown", "no-feed"),
    (b'{"feed": "labs"}', "labs", "missing-field"),
    (b'{"kind": "lab"}', "labs", "missing-field"),
    (b'{"feed": "labs", "event": 3}', "labs", "bad-value"),
    (b'{"feed": "deaths", "event": {}}', "deaths", "missing-field"),
    (b'{"feed": "labs", "event": {"id": "' + b"x" * (5 * RECORD_BYTES_MAX) + b'"}}', "unknown", "too-large"),
]


@pytest.mark.parametrize(("line", "feed", "reason"), WRAPPED, ids=range(len(WRAPPED)))
def test_a_broken_line_that_should_name_its_feed(tmp_path: Path, line: bytes, feed: str, reason: str) -> None:
    (tmp_path / "all.jsonl").write_bytes(line + b"\n")
    assert counted(tmp_path / "all.jsonl") == {feed: (1, 0, Counter({reason: 1}))}


@pytest.mark.parametrize(
    "line", [{"feed": "labs", "event": LAB}, {"feed": "labs", **LAB}, {"kind": "lab", **LAB}, {"event": LAB, "feed": "labs"}]
)
def test_a_line_may_name_its_feed_in_three_ways(tmp_path: Path, line: dict[str, Any]) -> None:
    (tmp_path / "all.jsonl").write_text(json.dumps(line))
    ((feed, event),) = events.events(tmp_path / "all.jsonl")
    assert feed == "labs" and LAB.items() <= event.items()


def test_only_fields_of_the_contract_are_read(tmp_path: Path) -> None:
    (tmp_path / "labs.jsonl").write_text(json.dumps(LAB | {NOTES: 3, "name": "A. Person", "deep": [[1]]}))
    assert list(events.events(tmp_path)) == [("labs", LAB)]


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([*LAB.values(), "final", 10**30])


@settings(max_examples=200, deadline=None, print_blob=True)
@given(
    feed=st.sampled_from(list(FEEDS)),
    changes=st.dictionaries(st.sampled_from([*LAB, "value", "version", "status", "kind", "unit", "more"]), values),
)
def test_the_verdict_is_that_of_admission(tmp_path_factory: pytest.TempPathFactory, feed: str, changes: dict[str, Any]) -> None:
    """Twin: `decode` of the line itself, which a live feed would do."""
    line = json.dumps(LAB | changes).encode()
    path = tmp_path_factory.getbasetemp() / f"{feed}.jsonl"
    path.write_bytes(line)
    try:
        decode(feed, line)
        expected = None
    except Rejected as rejected:
        expected = rejected.reason
    ((named, event),) = events.events(path)
    assert (named, event.get("reason")) == (("rejected", expected) if expected else (feed, None))


def test_folders_and_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no \*\.jsonl"):
        events.events(tmp_path)
    (tmp_path / "labs.jsonl").write_text("")
    (tmp_path / "laboratory.jsonl").write_text("")
    with pytest.raises(InputError, match=r"laboratory\.jsonl is named like no feed.*Feeds: encounters, labs"):
        events.events(tmp_path)
    (tmp_path / "all.jsonl.gz").write_bytes(b"no archive")
    with pytest.raises(InputError, match="is it whole"):
        list(events.events(tmp_path / "all.jsonl.gz"))
