"""`premonitor check`: what it says is what admission does; counts, reasons and line numbers, never a value."""

from __future__ import annotations

import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner, Result
from hypothesis import example, given
from hypothesis import settings as checked
from hypothesis import strategies as st

from features.codes import codebook
from features.decode import RECORD_BYTES_MAX
from features.errors import PremonitorError
from features.event import FEEDS
from streams import check
from streams.admit import Admission
from streams.cli import main


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREMONITOR_KNOWN_TIME", raising=False)


def run(*words: str, code: int = 0, stdin: bytes = b"") -> Result:
    """One command; an error with a sentence has its exit code, as the installed command gives it."""
    done = CliRunner().invoke(main, list(words), input=stdin)
    came = done.exception.exit_code if isinstance(done.exception, PremonitorError) else done.exit_code
    assert came == code, f"{done.output} {done.exception!r}"
    return done


HB = {
    "kind": "lab", "id": "L1", "patient_id": "MRN-4711", "code": "718-7", "unit": "g/dL", "value": 9.0,
    "event_time": "2026-05-03T07:30:00Z",
}  # fmt: skip


def line(**changes: Any) -> bytes:
    return json.dumps({k: v for k, v in {**HB, **changes}.items() if v is not None}).encode()


BAD = [
    line(unit="furlong"),
    line(event_time="2026-05-03T07:30:00"),
    b'{"patient_id": "MRN-4711", "value": furlong',
    line(id=None),
    b"[9.0]",
]
REASONS = {"unit": 1, "bad-time": 1, "not-json": 1, "missing-field": 1, "bad-value": 1}


def test_good_lines_pass() -> None:
    """From a file or from stdin, for one feed or for those that the lines say; empty lines are none; an unknown code is a fact."""
    both = line() + b"\r\n\n" + line(kind=None, feed="vitals", code="x", unit=None)
    assert run("check", "-", "--feed", "labs", stdin=line() + b"\n" + line(kind=None)).stdout.split() == [
        "labs", "2", "lines", "→", "2", "facts", "codes", "known", "2",
    ]  # fmt: skip
    document = json.loads(run("check", "-", "--json", stdin=both).stdout)
    assert (document["lines"], document["rejected"], document["causes"], document["format"]) == (2, 0, [], 1)
    assert document["feeds"] == {
        "labs": {"lines": 1, "facts": 1, "coded": 1, "rejected": {}},
        "vitals": {"lines": 1, "facts": 1, "coded": 0, "rejected": {}},
    }


def test_bad_lines_are_counted_by_reason_with_their_numbers(tmp_path: Path) -> None:
    """Exit 1; no value, no patient in either form."""
    file = tmp_path / "labs.jsonl"
    file.write_bytes(b"\n".join([line(), *BAD, b"", BAD[0]]))
    for flags in ([], ["--json"]):
        done = run("check", str(file), "--feed", "labs", *flags, code=1)
        assert not re.search("MRN|4711|furlong|9\\.0", f"{done.output} {done.exception}")
        assert str(done.exception) == "6 of 7 lines would become dead letters; see above"
    document = json.loads(done.stdout)
    assert document["feeds"]["labs"]["rejected"] == {**REASONS, "unit": 2}
    assert {cause["reason"]: cause["lines"] for cause in document["causes"]} == {
        "unit": [2, 8], "bad-time": [3], "not-json": [4], "missing-field": [5], "bad-value": [6],
    }  # fmt: skip


def test_lines_that_do_not_say_their_feed_are_refused() -> None:
    """Neither feed nor kind, or one that there is not; a kind of another feed than told is refused as admission does."""
    lines = [line(kind=None), line(feed="lab"), line(feed=5), line(kind="controls"), line(kind=[]), line()]
    found = check.check(BytesIO(b"\n".join(lines)), None, stamp="append", book=codebook(), progress=lambda n: None)
    assert {(c.feed, c.reason): c.lines for c in found.causes.values()} == {("unknown", "no-feed"): [1, 2, 3, 4, 5]}
    assert found.feeds["labs"].facts == 1
    found = check.check(BytesIO(line()), "vitals", stamp="append", book=codebook(), progress=lambda n: None)
    assert found.feeds["vitals"].rejected == {"bad-value": 1}


def test_an_event_may_stand_under_its_name() -> None:
    """As `premonitor import events` reads a line: the feed beside the event, and the event judged alone."""
    wrapped = [b'{"feed": "labs", "event": %b}' % told for told in (line(kind=None), BAD[0])]
    found = check.check(BytesIO(b"\n".join(wrapped)), None, stamp="append", book=codebook(), progress=lambda n: None)
    assert (found.feeds["labs"].facts, found.feeds["labs"].rejected) == (1, {"unit": 1})


def test_history_needs_known_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the worker is told: --known-time, or its variable."""
    run("check", "-", stdin=line())
    assert "known_time is required" in run("check", "-", "--known-time", "given", stdin=line(), code=1).stdout
    run("check", "-", "--known-time", "given", stdin=line(known_time="2026-05-03T09:00:00Z"))
    monkeypatch.setenv("PREMONITOR_KNOWN_TIME", "given")
    run("check", "-", stdin=line(), code=1)


def test_nothing_to_check_is_no_pass(tmp_path: Path) -> None:
    """An empty file would pass every check: exit 2. A file that is not there too."""
    assert "no line to check" in str(run("check", "-", stdin=b"\n\n", code=2).exception)
    run("check", str(tmp_path / "nowhere.jsonl"), code=2)


@pytest.mark.parametrize(
    ("length", "reasons"), [(RECORD_BYTES_MAX, {}), (RECORD_BYTES_MAX + 1, {"too-large": 1}), (3_000_000, {"too-large": 1})]
)
def test_a_line_may_be_as_long_as_a_record(length: int, reasons: dict[str, int]) -> None:
    """Both sides of the limit; the next line is read from its beginning."""
    long = line(facility="")
    long = long.replace(b'"facility": ""', b'"facility": ""' + b" " * (length - len(long)))
    for end in (b"\n", b"\r\n"):
        found = check.check(BytesIO(end.join([long, line()])), "labs", stamp="append", book=codebook(), progress=lambda n: None)
        assert (found.feeds["labs"].rejected, found.lines, found.feeds["labs"].facts) == (reasons, 2, 2 - len(reasons))


class Record(NamedTuple):
    """What admission reads of a Kafka record."""

    topic: str
    partition: int
    offset: int
    value: bytes
    timestamp: int = 0
    key: bytes | None = None


def spoiled() -> st.SearchStrategy[bytes]:
    """Lines near a good one: fields left out or replaced, bytes cut off."""
    values: list[Any] = [
        None,
        "",
        "x",
        5,
        -1,
        1e300,
        True,
        [],
        {},
        "2026-05-03T07:30:00Z",
        "1800-01-01T00:00:00Z",
        "lab",
        "vital",
        "g/dL",
        "kg",
    ]
    fields = st.sampled_from([*HB, "status", "schema_version", "comparator", "known_time", "end_time", "encounter_class", "target_kind"])
    changed = st.dictionaries(fields, st.sampled_from(values), max_size=3).map(lambda changes: line(**changes))
    return st.one_of(changed, changed.flatmap(lambda b: st.integers(0, len(b)).map(lambda n: b[:n])), st.binary(max_size=20))


@checked(max_examples=200, deadline=None, print_blob=True)
@given(feed=st.sampled_from(list(FEEDS)), stamp=st.sampled_from(["append", "given"]), lines=st.lists(spoiled(), min_size=1, max_size=5))
@example(feed="labs", stamp="append", lines=[line(), *BAD])
def test_check_says_what_admission_does(feed: str, stamp: str, lines: list[bytes]) -> None:
    """The same reasons, as often, for any lines: no second opinion."""
    kept = [one for one in lines if one.strip() and not re.search(rb"[\r\n]", one)]
    admission = Admission({feed: feed}, partitions=2, partition_of=lambda key: len(key) % 2, stamp=stamp, book=codebook())
    admitted = admission([(feed, *admission.read([Record(feed, 0, n, one) for n, one in enumerate(kept)]))])
    found = check.check(BytesIO(b"\n".join(kept)), feed, stamp=stamp, book=codebook(), progress=lambda n: None)
    came = {(feed, reason): n for reason, n in found.feeds[feed].rejected.items()} if kept else {}
    facts = found.feeds[feed].facts if kept else 0
    assert came | ({(feed, "fact"): facts} if facts else {}) == dict(admitted.counts)
    numbers = [number for cause in found.causes.values() for number in cause.lines]
    assert len(set(numbers)) == len(numbers) == found.rejected
