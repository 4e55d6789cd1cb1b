"""Who the demo plays, and when: licensed samples of eICU and MIMIC-IV and invented patients, one source after the other.

Each source keeps its own dates; they follow each other (2000 on, 2111 on, then the invented ones), so that known time never goes back,
and long pauses in which nobody tells anything are cut short.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from features import clinic, usecase
from features.clock import DAY_US, SECOND_US, from_us, to_us
from features.codes import Codebook
from features.importers import eicu, mimic
from features.importers.build import build_log
from features.log import Log
from models import artifact
from models.artifact import Artifact
from streams.admit import CONTROLS

DATA = Path(__file__).with_name("demo_data")
USE_CASE = "ed_60d_any"
TICK_US = DAY_US
PAUSE_US = DAY_US // 4
"""A stretch of a source in which nothing becomes known counts as so long at most."""
SHARES = (0.25, 0.20, 0.55)
"""Of the time that the feeds are played, by source."""
INVENTED, INVENTED_DAYS = 30, 181
SEED = 2202
TRAINED_ON, TRAINED_DAYS = 80, 365


@dataclass(slots=True)
class Moment:
    """One event of a feed, or a tick (feed `controls`), and when it is sent."""

    source: int
    feed: str
    event: dict[str, Any]
    known_us: int
    at_s: float = 0.0
    """After the start of the feeds."""


@dataclass(frozen=True, slots=True)
class Source:
    """One hospital of the demo, its moments in the order of known time."""

    name: str
    what: str
    patients: int
    rejected: int
    """Rows that the importer could not make events of, such as results without a number."""
    moments: list[Moment]

    @property
    def events(self) -> int:
        return sum(m.feed != CONTROLS for m in self.moments)

    @property
    def years(self) -> str:
        """From which year to which."""
        first, last = from_us(self.moments[0].known_us).year, from_us(self.moments[-1].known_us).year
        return f"{first}" if first == last else f"{first}–{last}"


def sources() -> list[Source]:
    """The three hospitals, each later than the one before."""
    found = [
        as_source(0, "eICU demo", "a de-identified sample, artificial dates", eicu.events(DATA / "eicu")),
        as_source(1, "MIMIC-IV demo", "a de-identified sample, shifted dates", mimic.events(DATA / "mimic")),
    ]
    year = from_us(max(s.moments[-1].known_us for s in found)).year + 1
    start = datetime(year, 1, 1, tzinfo=UTC)
    end = from_us(to_us(start) + INVENTED_DAYS * DAY_US)
    told = clinic.events(patients=INVENTED, start=start, end=end, seed=SEED)
    return [*found, as_source(2, "invented", "told by the simulated clinic", told)]


def as_source(number: int, name: str, what: str, told: Iterable[tuple[str, dict[str, Any]]]) -> Source:
    """A source from (feed, event), of which at least one is an event with its known time; `number` is its place among those played."""
    rejected, events = 0, []
    for feed, event in told:
        if feed == "rejected":
            rejected += 1
        else:
            events.append(Moment(number, feed, event, to_us(datetime.fromisoformat(event["known_time"]))))
    events.sort(key=lambda m: (m.known_us, m.feed == "encounters"))  # at one instant encounters come last (S3)
    return Source(name, what, len({m.event["patient_id"] for m in events}), rejected, list(_with_ticks(events)))


def _with_ticks(events: list[Moment]) -> Iterator[Moment]:
    """A tick each day while anything is told, and one behind the last event: without time no alert is withdrawn and none expires."""
    tick_us = 0
    for before, now in pairwise([*events[:1], *events]):
        if now.known_us - before.known_us > 2 * TICK_US:  # one tick ends what was open, one begins what follows
            yield _tick(before, (before.known_us // TICK_US + 1) * TICK_US)
            tick_us = now.known_us // TICK_US * TICK_US
        tick_us = tick_us or (now.known_us // TICK_US + 1) * TICK_US
        while tick_us <= now.known_us:
            yield _tick(now, tick_us)
            tick_us += TICK_US
        yield now
    yield _tick(events[-1], max(tick_us, events[-1].known_us + TICK_US))


def _tick(near: Moment, at_us: int) -> Moment:
    return Moment(near.source, CONTROLS, {"control": "tick", "stamp_us": at_us, "payload": {}}, at_us)


def timed(
    played: list[Source], *, seconds: float, speed: float | None, shares: Sequence[float] = SHARES
) -> tuple[list[Moment], list[float]]:
    """When each moment is sent, and how many times as fast as its own time each source goes.

    Args:
        played: The sources.
        seconds: How long all of it lasts; with a speed, what would come later is left out.
        speed: The same for all sources; None: what makes them fit. 0: all at once.
        shares: Of the seconds, by source, where no speed is given.
    """
    moments: list[Moment] = []
    speeds, begin_s = [], 0.0
    for source, share in zip(played, shares, strict=True):
        own_s, at = [], 0.0
        for before, now in pairwise([source.moments[0], *source.moments]):
            at += min(now.known_us - before.known_us, PAUSE_US) / SECOND_US
            own_s.append(at)
        factor = speed if speed is not None else at / (seconds * share)
        for moment, own in zip(source.moments, own_s, strict=True):
            moment.at_s = begin_s + (own / factor if factor else 0.0)
        moments += source.moments
        begin_s = moments[-1].at_s
        speeds.append(factor)
    return ([m for m in moments if m.at_s <= seconds] if speed else moments), speeds


def train(folder: Path, book: Codebook) -> Artifact:
    """A model of invented patients (others than those that are played), written to `folder/model.json`."""
    from models import train as training  # here: scikit-learn takes seconds to import

    log, start = folder / "training-log", datetime(2023, 1, 1, tzinfo=UTC)
    end = from_us(to_us(start) + TRAINED_DAYS * DAY_US)
    build_log(clinic.events(patients=TRAINED_ON, start=start, end=end, seed=SEED + 1), log, book=book, source="simulated")
    made = training.train(Log(log, book), usecase.load(USE_CASE, book))
    artifact.save(made, folder / "model.json")
    shutil.rmtree(log)
    return made
