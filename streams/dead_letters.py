"""Dead letters: what could not become a fact, why, what to do about it, and how it is tried again.

The topic holds two kinds of records: the dead letter itself, and a mark that its payload was put on its feed once more. A record that
is tried again stands at a new position of its feed and is counted there anew, whatever becomes of it: S13's line goes on adding up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from features import fact
from features.codes import Codebook
from features.decode import RECORD_BYTES_MAX, decode
from features.errors import CheckFailed, InputError, Rejected
from streams.admit import DeadLetter
from streams.bus import Bus
from streams.reader import read_topic
from streams.settings import Settings
from streams.topics import Names, partition_counts

TOO_LARGE = "too-large"
_AT_ONCE = 100
"""Records that are tried again together: a crash between them and their marks repeats so many at most, as duplicates of themselves."""


class Retried(msgspec.Struct, frozen=True, tag_field="mark", tag="retried"):
    """Marks a dead letter: its payload stands at `again` once more."""

    id: str
    where: str
    again: str


class _Mark(msgspec.Struct):
    mark: str = ""


def read_record(record: Any) -> DeadLetter | Retried:
    """One record of the topic.

    Raises:
        CheckFailed: somebody else wrote it.
    """
    try:
        is_mark = msgspec.json.decode(record.value or b"", type=_Mark).mark
        return msgspec.json.decode(record.value, type=Retried) if is_mark else msgspec.json.decode(record.value, type=DeadLetter)
    except msgspec.DecodeError:
        where = f"{record.topic}[{record.partition}]@{record.offset}"
        raise CheckFailed(f"{where} is no dead letter: only premonitor may write that topic") from None


@dataclass
class Found:
    """A dead letter with what became of it. Payloads are kept where they were asked for."""

    letter: DeadLetter
    written_ms: int
    held: bool
    """The topic has its payload."""
    again: str = ""
    """Where it stands once more; empty: not tried again yet."""


@dataclass(frozen=True, slots=True)
class Row:
    """The dead letters of one feed for one reason. `newest` is topic[partition]@offset."""

    reason: str
    feed: str
    count: int
    retried: int
    newest: str


@dataclass
class Letters:
    """All dead letters, each position of a feed once: it is written again where admission started anew."""

    keep: Callable[[DeadLetter], bool] = lambda letter: False
    """Whose payload is wanted."""
    found: dict[str, Found] = field(default_factory=dict)

    def add(self, record: Any) -> None:
        """Take one record of the topic."""
        came = read_record(record)
        if isinstance(came, Retried):
            if came.id in self.found:
                self.found[came.id].again = came.again
        elif came.id not in self.found:
            letter = came if self.keep(came) else msgspec.structs.replace(came, payload=b"")
            self.found[came.id] = Found(letter, record.timestamp, bool(came.payload))

    def table(self, reason: str | None = None) -> list[Row]:
        """Counts by reason and feed, the most frequent first."""
        groups: dict[tuple[str, str], list[Found]] = {}
        for found in self.of(reason):
            groups.setdefault((found.letter.reason, found.letter.feed), []).append(found)
        rows = [
            Row(why, feed, len(all_), sum(bool(f.again) for f in all_), max(all_, key=lambda f: f.written_ms).letter.where)
            for (why, feed), all_ in groups.items()
        ]
        return sorted(rows, key=lambda row: (-row.count, row.reason, row.feed))

    def of(self, reason: str | None) -> list[Found]:
        """Those with a reason, in the order in which they were written.

        Raises:
            InputError: nothing was refused for that reason.
        """
        if reason is None:
            return list(self.found.values())
        some = [f for f in self.found.values() if f.letter.reason == reason]
        if not some:
            known = ", ".join(sorted({f.letter.reason for f in self.found.values()})) or "none at all"
            raise InputError(f"nothing was refused as '{reason}'. Reasons of the dead letters: {known}")
        return some

    def named(self, name: str) -> Found:
        """The one with this id, or at this position.

        Raises:
            InputError: there is none.
        """
        for found in self.found.values():
            if name in (found.letter.id, found.letter.where):
                return found
        raise InputError(f"no dead letter has the id or position '{name}'. Expected 16 hex digits or 'labs[0]@12', as printed by: {LIST}")


LIST = "premonitor dead-letters list --reason REASON"


async def read(settings: Settings, keep: Callable[[DeadLetter], bool] = lambda letter: False) -> Letters:
    """All dead letters of a prefix.

    Raises:
        ServiceError: Kafka is out of reach.
        InputError: there is no such topic.
    """
    letters = Letters(keep)
    async for records in read_topic(settings, Names(settings.prefix).dead_letters):
        for record in records:
            letters.add(record)
    return letters


# --- explain ------------------------------------------------------------------------------------------------------------------------

_CONTRACT = "Compare the source with the contract: premonitor schema {feed}. What it sends anew needs no retry"
REMEDIES = {
    "empty": "Nothing was sent, so there is nothing to retry. To take a fact back, let the source send a retraction",
    TOO_LARGE: "One event is a few hundred bytes: let the source send events one by one. It is not kept here and cannot be retried; "
    "it still lies at {where}",
    "not-json": "Let the source send one JSON object in UTF-8 as each record: premonitor schema {feed}",
    "missing-field": _CONTRACT,
    "bad-value": _CONTRACT,
    "bad-time": "Times are RFC 3339 with a zone, such as 2026-05-03T09:00:00+02:00. Mend the source; what it sends anew needs no retry",
    "absurd-time": "Mend the date in the source; what it sends anew needs no retry",
    "end-before-start": "Mend the times in the source; what it sends anew needs no retry",
    "unknown-version": "Send schema_version 1; or upgrade premonitor, then: premonitor dead-letters retry {id}",
    "unit": "Let the source send one of these units. A new unit is another code set, and so a new generation under another --prefix",
    "not-a-control": "Find out who else writes the topic controls, and forbid it: only premonitor may",
}


def remedy(letter: DeadLetter) -> str:
    """What to do about it."""
    words = REMEDIES.get(letter.reason, "Mend the source, or upgrade premonitor, then: premonitor dead-letters retry {id}")
    return words.format(feed=letter.feed, where=letter.where, id=letter.id)


def verdict(letter: DeadLetter, settings: Settings, book: Codebook) -> str:
    """What would become of its payload now: `fact`, or the reason of its rejection. Needs the payload."""
    try:
        fact.convert(decode(letter.feed, letter.payload), feed=letter.feed, told=0, stamp=settings.known_time, book=book)
    except Rejected as rejected:
        return rejected.reason
    return "fact"


def explain(found: Found, settings: Settings, book: Codebook) -> str:
    """Where, which rule, what to do; never what the record says."""
    letter = found.letter
    lines = [f"{letter.where} was refused as {letter.reason} (id {letter.id})", f"rule    {letter.detail}", f"remedy  {remedy(letter)}"]
    if found.again:
        lines.append(f"retried it stands once more at {found.again}; were it refused again, that would be a dead letter of its own")
    elif letter.payload and letter.feed in _feeds(settings).values():
        now = verdict(letter, settings, book)
        fate = f"become a fact: premonitor dead-letters retry {letter.id}" if now == "fact" else f"be refused again as {now}"
        lines.append(f"today   with this version and known time '{settings.known_time}' it would {fate}")
    return "\n".join(lines)


def readable(payload: bytes) -> str:
    """A payload as text for a terminal: what is not printable is written as an escape."""
    text = payload.decode("utf-8", errors="backslashreplace")
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


# --- retry --------------------------------------------------------------------------------------------------------------------------


def _feeds(settings: Settings) -> dict[str, str]:
    return Names(settings.prefix).feeds


@dataclass
class Retry:
    """What a retry did."""

    sent: int = 0
    refused_again: int = 0
    """Of those sent, how many this version would refuse again."""
    before: int = 0
    """Were retried already."""
    not_kept: int = 0
    """Have no payload here: too large, or nothing was sent."""
    not_a_feed: int = 0
    """Came from the controls, or from a feed whose topic is gone."""

    def sentence(self) -> str:
        parts = [f"put on their feeds again: {self.sent:,}"]
        parts += [f"of them this version would refuse again: {self.refused_again:,}"] if self.refused_again else []
        parts += [f"retried before: {self.before:,}"] if self.before else []
        if self.not_kept:
            parts.append(f"not kept here (over {RECORD_BYTES_MAX:,} bytes, or empty), only in their feeds: {self.not_kept:,}")
        parts += [f"from no feed that there is: {self.not_a_feed:,}"] if self.not_a_feed else []
        return " · ".join(parts)


def choose(letters: Letters, names: Sequence[str], reason: str | None, topics: Mapping[str, int]) -> tuple[list[Found], Retry]:
    """Those that can be tried again, in the order of their writing, and the counts of those that cannot.

    Args:
        letters: All of them, with the payloads of those in question.
        names: Ids or positions.
        reason: Where no names are given: all with this reason.
        topics: Topic → partitions of the feeds that there are.
    Raises:
        InputError: an unknown id or reason.
    """
    wanted = {letters.named(name).letter.id for name in names} if names else {f.letter.id for f in letters.of(reason)}
    done, ready = Retry(), []
    for found in letters.found.values():
        if found.letter.id not in wanted:
            continue
        if found.again:
            done.before += 1
        elif _origin(found.letter)[0] not in topics:
            done.not_a_feed += 1
        elif not found.held:
            done.not_kept += 1
        else:
            ready.append(found)
    return ready, done


async def retry(settings: Settings, names: Sequence[str], reason: str | None, book: Codebook, progress: Callable[[int], None]) -> Retry:
    """Put payloads on their feeds again, each in the partition that it came in, and mark the dead letters.

    Raises:
        InputError: an unknown id or reason.
        ServiceError: Kafka is out of reach; what was marked was sent, and the next call goes on with the rest.
    """
    picked = set(names)
    letters = await read(settings, lambda letter: letter.reason == reason or not picked.isdisjoint((letter.id, letter.where)))
    topics = await partition_counts(settings.kafka(), list(_feeds(settings)))
    ready, done = choose(letters, names, reason, topics)
    if not ready:
        return done
    bus = Bus(settings)
    await bus.start()
    try:
        for begin in range(0, len(ready), _AT_ONCE):
            piece = [found.letter for found in ready[begin : begin + _AT_ONCE]]
            places = await asyncio.gather(*(_send(bus, topics, letter) for letter in piece))
            marks = [Retried(letter.id, letter.where, again) for letter, again in zip(piece, places, strict=True)]
            await asyncio.gather(*(_mark(bus, settings, mark) for mark in marks))
            done.sent += len(piece)
            done.refused_again += sum(verdict(letter, settings, book) != "fact" for letter in piece)
            progress(done.sent)
    finally:
        await bus.stop()
    return done


def _origin(letter: DeadLetter) -> tuple[str, int]:
    """Topic and partition in which it came."""
    topic, _, partition = letter.where.rpartition("@")[0].removesuffix("]").rpartition("[")
    return topic, int(partition)


async def _send(bus: Bus, topics: Mapping[str, int], letter: DeadLetter) -> str:
    topic, partition = _origin(letter)
    partition %= topics[topic]
    return f"{topic}[{partition}]@{await bus.send_one(topic, letter.payload, partition=partition)}"


async def _mark(bus: Bus, settings: Settings, mark: Retried) -> None:
    await bus.send_one(Names(settings.prefix).dead_letters, msgspec.json.encode(mark), partition=0, key=mark.id.encode())
