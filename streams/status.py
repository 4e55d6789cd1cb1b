"""Status: how far each feed and the log have been read, what came out, what was refused, and which models are active."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, tzinfo
from typing import Any

from features.clock import DAY_US, MINUTE_US, SECOND_US, from_us, rfc3339
from streams import activation, dead_letters
from streams.reader import Reach, reach
from streams.settings import Settings
from streams.topics import Names, committed, described

HOUR_US = 60 * MINUTE_US


@dataclass(frozen=True, slots=True)
class Stand:
    """One topic. `lag`: records that are not read yet; None where nothing of ours reads it."""

    name: str
    records: int
    lag: int | None
    last_us: int | None
    """Time of the newest record; None: there is none."""


@dataclass(frozen=True, slots=True)
class Status:
    """Everything that `premonitor status` shows."""

    feeds: list[Stand]
    absent: list[str]
    """Feeds without a topic."""
    inside: list[Stand]
    """Controls, facts, scores and alerts."""
    dead_letters: list[dead_letters.Row]
    active: dict[tuple[str, str], str]
    """(use case, role) → version."""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "feeds": [_plain(stand) for stand in self.feeds],
            "feeds_without_topic": self.absent,
            "topics": [_plain(stand) for stand in self.inside],
            "dead_letters": [asdict(row) for row in self.dead_letters],
            "models": [{"use_case": name, "role": role, "version": version} for (name, role), version in sorted(self.active.items())],
        }

    def text(self, now_us: int, zone: tzinfo = UTC) -> str:
        """For a person; ages are told as of `now_us`, times in `zone`."""
        width = max(len(s.name) for s in (*self.feeds, *self.inside))
        lines = [f"{'feed':<{width}} {'records':>13} {'lag':>11}  last record"]
        lines += [_line(s, width, now_us, zone) for s in self.feeds]
        lines += [f"no topic for {', '.join(self.absent)}"] if self.absent else []
        lines += ["", f"{'topic':<{width}} {'records':>13} {'lag':>11}  last record"]
        lines += [_line(s, width, now_us, zone) for s in self.inside]
        total, retried = sum(r.count for r in self.dead_letters), sum(r.retried for r in self.dead_letters)
        lines += ["", f"dead letters {total:,}" + (f", {retried:,} of them retried" if retried else "")]
        lines += [f"  {row.reason:<{width - 2}} {row.count:>13,}  {row.feed}" for row in self.dead_letters]
        lines += ["", *(f"active {version} is {role.partition(':')[0]} of {name}" for (name, role), version in sorted(self.active.items()))]
        return "\n".join(lines if self.active else [*lines, "no model is active: a worker with --model makes it so"])


def _plain(stand: Stand) -> dict[str, Any]:
    last = rfc3339(stand.last_us) if stand.last_us is not None else None
    return {"name": stand.name, "records": stand.records, "lag": stand.lag, "last_record": last}


def _line(stand: Stand, width: int, now_us: int, zone: tzinfo) -> str:
    lag = "" if stand.lag is None else f"{stand.lag:,}"
    last = "–" if stand.last_us is None else f"{_local(stand.last_us, zone)} ({age(now_us - stand.last_us)})"
    return f"{stand.name:<{width}} {stand.records:>13,} {lag:>11}  {last}"


def _local(time_us: int, zone: tzinfo) -> str:
    """A time to the second, with its offset from UTC."""
    return from_us(time_us - time_us % SECOND_US).astimezone(zone).isoformat().replace("+00:00", "Z")


def age(span_us: int) -> str:
    """How long ago, in one unit.

    Example:
        >>> age(90 * SECOND_US), age(3 * DAY_US), age(-HOUR_US), age(0)
        ('1 min ago', '3 d ago', 'in the future', 'now')
    """
    if span_us < -MINUTE_US:
        return "in the future"
    for unit_us, name in ((DAY_US, "d"), (HOUR_US, "h"), (MINUTE_US, "min"), (SECOND_US, "s")):
        if span_us >= unit_us:
            return f"{span_us // unit_us:,} {name} ago"
    return "now"


def stand(name: str, partitions: dict[int, Reach], done: dict[int, int] | None) -> Stand:
    """One topic from the reach of its partitions.

    Args:
        name: To be shown.
        partitions: Partition → reach.
        done: Partition → place up to which it was read; None: nothing of ours reads it.
    """
    lag = None if done is None else sum(max(r.end - max(done.get(p, 0), r.begin), 0) for p, r in partitions.items())
    times = [r.last_ms * 1000 for r in partitions.values() if r.last_ms is not None]
    return Stand(name, sum(r.end - r.begin for r in partitions.values()), lag, max(times, default=None))


async def status(settings: Settings) -> Status:
    """How everything under a prefix stands.

    Raises:
        ServiceError: Kafka is out of reach.
        InputError: the topics do not exist.
    """
    names = Names(settings.prefix)
    letters = await dead_letters.read(settings)
    active = await activation.active(settings)
    inside = {names.controls: "admit", names.facts: "score", names.scores: None, names.alerts: None}
    admitted = await committed(settings.kafka(), settings.prefix, "admit")
    scored = await committed(settings.kafka(), settings.prefix, "score")
    topics = await described(settings.kafka(), [*names.feeds, *inside])
    found = await reach(settings, topics, dated=topics)
    done: dict[str, dict[int, int]] = {}
    for tp, place in (*admitted.items(), *scored.items()):
        done.setdefault(tp.topic, {})[tp.partition] = place
    return Status(
        feeds=[stand(topic, found[topic], done.get(topic, {})) for topic in names.feeds if topic in found],
        absent=[topic for topic in names.feeds if topic not in found],
        inside=[stand(topic, found[topic], done.get(topic, {}) if stage else None) for topic, stage in inside.items() if topic in found],
        dead_letters=letters.table(),
        active=active,
    )
