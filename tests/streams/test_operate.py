"""What an operator is told of dead letters and settings. On real services: tests/live/test_operate.py."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from click.testing import CliRunner

from features.codes import codebook
from features.errors import CheckFailed, InputError
from streams import archive, dead_letters
from streams.admit import Admission, DeadLetter
from streams.bus import partitioner
from streams.cli import main
from streams.cli.operate import describe, without_secrets
from streams.dead_letters import Letters, Retried
from streams.settings import Settings

ROOT = Path(__file__).parents[2]
SETTINGS = Settings(kafka_bootstrap="kafka:9092")
HB = {
    "kind": "lab", "id": "L1", "patient_id": "MRN-4711", "code": "718-7", "unit": "furlong", "value": 9.0,
    "event_time": "2026-05-03T07:30:00Z", "known_time": "2026-05-03T09:00:00Z",
}  # fmt: skip


class Record(NamedTuple):
    """What the product reads of a Kafka record."""

    topic: str
    partition: int
    offset: int
    value: bytes | None
    timestamp: int = 0
    key: bytes | None = None


class TopicPartition(NamedTuple):
    topic: str
    partition: int


@dataclass
class Feeds:
    """Topics in memory and an admission that reads them; stands in for Kafka where dead letters are read and retried."""

    topics: dict[str, list[Any]] = field(default_factory=dict)
    read: int = 0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def put(self, topic: str, value: bytes | None, *, partition: int = 0) -> int:
        records = self.topics.setdefault(topic, [])
        offset = sum(r.partition == partition for r in records)
        records.append(Record(topic, partition, offset, value, timestamp=1_000 + len(records)))
        return offset

    def admit(self, *, again: bool = False) -> None:
        """Admit what came since, or all of it again, as after a restart."""
        admission = Admission({"labs": "labs"}, partitions=2, partition_of=partitioner(2), stamp="append", book=codebook())
        labs = self.topics["labs"][0 if again else self.read :]
        out = admission([("labs", *admission.read(labs))])
        self.counts += Counter() if again else out.counts
        for _, value in out.dead_letters:
            self.put("dead-letters", value)
        self.read = len(self.topics["labs"])

    def letters(self) -> Letters:
        letters = Letters(keep=lambda letter: True)
        for record in self.topics.get("dead-letters", []):
            letters.add(record)
        return letters


@pytest.fixture
def feeds(monkeypatch: pytest.MonkeyPatch) -> Feeds:
    """Feeds whose dead letters the product reads and retries."""
    made = Feeds()

    async def read_topic(settings: Settings, topic: str) -> AsyncIterator[list[Any]]:
        yield list(made.topics.get(topic, []))

    async def counts(client: object, names: Sequence[str]) -> dict[str, int]:
        return {"labs": 2}

    class Bus:
        def __init__(self, settings: Settings) -> None: ...

        async def start(self) -> None: ...

        async def stop(self) -> None: ...

        async def send_one(self, topic: str, value: bytes, *, partition: int, key: bytes | None = None) -> int:
            return made.put(topic, value, partition=partition)

    monkeypatch.setattr(dead_letters, "read_topic", read_topic)
    monkeypatch.setattr(dead_letters, "partition_counts", counts)
    monkeypatch.setattr(dead_letters, "Bus", Bus)
    return made


def retry(*names: str, reason: str | None = None) -> dead_letters.Retry:
    return asyncio.run(dead_letters.retry(SETTINGS, names, reason, codebook(), lambda n: None))


# --- dead letters -------------------------------------------------------------------------------------------------------------------


def test_a_position_counts_once_however_often_it_was_written(feeds: Feeds) -> None:
    """Admission writes a dead letter again after a restart; the newest is the position that was written last."""
    feeds.put("labs", json.dumps(HB).encode())
    feeds.put("labs", b"{", partition=1)
    feeds.put("labs", json.dumps({**HB, "id": "L2"}).encode(), partition=1)
    feeds.admit()
    feeds.admit(again=True)
    table = feeds.letters().table()
    assert [(r.reason, r.feed, r.count, r.retried, r.newest) for r in table] == [
        ("unit", "labs", 2, 0, "labs[1]@1"),
        ("not-json", "labs", 1, 0, "labs[1]@0"),
    ]
    assert [f.letter.where for f in feeds.letters().of("unit")] == ["labs[0]@0", "labs[1]@1"]


def test_what_was_retried_and_is_refused_again_is_a_dead_letter_of_its_own(feeds: Feeds, monkeypatch: pytest.MonkeyPatch) -> None:
    """S13 adds up before and after: one more read, one more refused; the mark itself is not counted."""

    async def committed(client: object, prefix: str, stage: str) -> dict[Any, int]:
        return {TopicPartition("labs", 0): feeds.read}

    monkeypatch.setattr(archive, "committed", committed)
    feeds.put("labs", json.dumps(HB).encode())
    feeds.put("labs", json.dumps({**HB, "id": "L2", "unit": "g/dL"}).encode())
    feeds.admit()
    assert asyncio.run(archive.feed_counts(SETTINGS)) == {"labs": {"rows": 2, "rejected": {"unit": 1}}}
    assert retry(reason="unit") == dead_letters.Retry(sent=1, refused_again=1)
    assert asyncio.run(archive.feed_counts(SETTINGS)) == {"labs": {"rows": 2, "rejected": {"unit": 1}}}
    feeds.admit()
    assert asyncio.run(archive.feed_counts(SETTINGS)) == {"labs": {"rows": 3, "rejected": {"unit": 2}}}
    assert feeds.counts == {("labs", "fact"): 1, ("labs", "unit"): 2}
    feeds.admit(again=True)
    assert [(r.count, r.retried) for r in feeds.letters().table()] == [(2, 1)], "written again behind its mark, it stays marked"


def test_a_retry_puts_the_same_bytes_into_the_same_partition_once(feeds: Feeds) -> None:
    """By id, by position or by reason; a second retry finds nothing to do."""
    value = json.dumps(HB).encode()
    feeds.put("labs", b"[]", partition=1)
    feeds.put("labs", value, partition=1)
    feeds.admit()
    assert retry("labs[1]@1").sent == 1
    assert (feeds.topics["labs"][-1].partition, feeds.topics["labs"][-1].value) == (1, value)
    found = feeds.letters().named("labs[1]@1")
    assert found.again == "labs[1]@2"
    assert "stands once more at labs[1]@2" in dead_letters.explain(found, SETTINGS, codebook())
    assert retry(found.letter.id) == retry(reason="unit") == dead_letters.Retry(before=1)
    assert len(feeds.topics["labs"]) == 3


def test_what_cannot_be_retried_is_counted_by_cause(feeds: Feeds) -> None:
    """Too large, empty, and not of a feed."""
    feeds.put("labs", b"x" * 70_000)
    feeds.put("labs", None)
    feeds.admit()
    control = DeadLetter("0" * 16, "controls[0]@3", "controls", "not-a-control", "controls are written by premonitor only", b"{}")
    feeds.put("dead-letters", msgspec.json.encode(control))
    assert retry("labs[0]@0", "labs[0]@1", "0" * 16) == dead_letters.Retry(not_kept=2, not_a_feed=1)
    assert len(feeds.topics["labs"]) == 2
    words = dead_letters.explain(feeds.letters().named("labs[0]@0"), SETTINGS, codebook())
    assert "it still lies at labs[0]@0" in words
    assert "today" not in words


def test_unknown_names_and_reasons_are_refused_before_anything_is_sent(feeds: Feeds) -> None:
    """The sentence says what there is."""
    feeds.put("labs", json.dumps(HB).encode())
    feeds.admit()
    with pytest.raises(InputError, match="no dead letter has the id or position 'labs\\[0\\]@9'"):
        retry("labs[0]@0", "labs[0]@9")
    with pytest.raises(InputError, match="Reasons of the dead letters: unit"):
        retry(reason="bad-time")
    assert len(feeds.topics["labs"]) == 1


def test_nothing_tells_what_a_record_says(feeds: Feeds) -> None:
    """Neither list nor explain nor the mark holds a patient, a value or the record."""
    feeds.put("labs", json.dumps(HB).encode())
    feeds.put("labs", b'{"patient_id": "MRN-4711", "value": furlong')
    feeds.admit()
    retry("labs[0]@0")
    letters = feeds.letters()
    told = [str(letters.table()), str(feeds.topics["dead-letters"][-1].value)]
    told += [dead_letters.explain(found, SETTINGS, codebook()) for found in letters.found.values()]
    assert not [text for text in told if re.search("MRN|4711|furlong", text)]


def test_every_reason_has_a_remedy() -> None:
    """Each reason of the source, as written there; an unknown one of a later version gets a sentence too."""
    texts = [p.read_text() for p in (*ROOT.glob("features/*.py"), ROOT / "streams/admit.py")]
    reasons = {r for text in texts for r in re.findall(r'Rejected\(\s*"([a-z-]+)"', text) + re.findall(r' reason = "([a-z-]+)"', text)}
    assert reasons == set(dead_letters.REMEDIES)
    letter = DeadLetter("ab" * 8, "labs[0]@1", "labs", "from-the-future", "?", b"")
    assert "premonitor dead-letters retry abab" in dead_letters.remedy(letter)


def test_today_says_what_would_become_of_it(feeds: Feeds) -> None:
    """After an upgrade the same bytes may be a fact: here known time is given or not."""
    bare = {k: v for k, v in HB.items() if k != "known_time"} | {"unit": "g/dL"}
    letter = DeadLetter("ab" * 8, "labs[0]@1", "labs", "missing-field", "known_time is required", json.dumps(bare).encode())
    found = dead_letters.Found(letter, 0, held=True)
    given = Settings(known_time="given")
    assert "it would become a fact: premonitor dead-letters retry abababababababab" in dead_letters.explain(found, SETTINGS, codebook())
    assert "it would be refused again as missing-field" in dead_letters.explain(found, given, codebook())


def test_a_foreign_record_among_the_dead_letters_is_named_by_its_position() -> None:
    """Only premonitor may write that topic."""
    for value in (b"hello", b'{"id": 1}', b'{"mark": "other"}', None):
        with pytest.raises(CheckFailed, match=r"^dead-letters\[0\]@7 is no dead letter"):
            dead_letters.read_record(Record("dead-letters", 0, 7, value))
    mark = Retried("a", "labs[0]@1", "labs[0]@2")
    assert dead_letters.read_record(Record("dead-letters", 0, 7, msgspec.json.encode(mark))) == mark


def test_a_payload_cannot_write_to_the_terminal() -> None:
    """Escapes and control characters are shown, not sent."""
    assert dead_letters.readable(b"\x1b[2Ja\r\xff\n\xc3\xa4") == "\\x1b[2Ja\\r\\xff\nä"


# --- settings and arguments --------------------------------------------------------------------------------------------------------


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREMONITOR_REDIS_PASSWORD", "hunter2")
    monkeypatch.setenv("PREMONITOR_REDIS_URL", "redis://me:hunter2@cache:6379/0?password=hunter2")
    monkeypatch.setenv("PREMONITOR_STAGES", '["admit"]')


@pytest.mark.usefixtures("environment")
def test_settings_show_where_each_value_came_from_and_no_secret() -> None:
    """Flag over environment over default."""
    told = Settings(kafka_bootstrap="kafka:9092", kafka_password="hunter2")
    rows = describe(told, {"kafka_bootstrap"})
    assert set(rows) == set(Settings.model_fields)
    assert rows["kafka_bootstrap"] == ("kafka:9092", "flag")
    assert rows["redis_url"] == ("redis://***@cache:6379/0?***", "env PREMONITOR_REDIS_URL")
    assert rows["redis_password"][0] == rows["kafka_password"][0] == "set"
    assert rows["attempts_max"] == (8, "default")
    for flags in ([], ["--json"]):
        answer = CliRunner().invoke(main, ["settings", "show", "--kafka", "kafka:9092", *flags])
        assert answer.exit_code == 0
        assert "hunter2" not in answer.output


def test_an_address_that_is_none_is_not_shown() -> None:
    assert without_secrets("redis://[me:hunter2@host") == "***"


@pytest.mark.parametrize(
    "words",
    [["rebuild"], ["rebuild", "--all", "--partition", "1"], ["rebuild", "--check"], ["dead-letters", "retry"],
     ["dead-letters", "retry", "labs[0]@1", "--reason", "unit"]],
)  # fmt: skip
def test_what_is_not_said_clearly_is_refused(words: list[str]) -> None:
    """Exit 2 and a sentence, before any service is asked."""
    answer = CliRunner().invoke(main, words)
    assert (answer.exit_code, "Error: " in answer.output) == (2, True)
