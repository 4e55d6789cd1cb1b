"""What may be asked of the clinic: how much trouble its feeds make, and what changes in the world behind them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TypeVar

from features import event
from features.clock import ALWAYS_US, to_us
from features.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Knobs:
    """How often facts come in trouble of each kind, as shares from 0 (never) to 1 (wherever it is possible)."""

    late: float = 0.05  # of visits, labs, vitals: told over a day after the fact, some exactly 30 days after the visit was known
    corrected: float = 0.02  # of facts: a higher version with other content follows
    retracted: float = 0.01  # of facts: taken back as the next version, half by status, half on the feed `retractions`
    duplicated: float = 0.02  # of records: sent again with the same content, half of them at a later known_time
    conflicting: float = 0.005  # of records of care: the same id and version again with other content, later
    wrong_patient: float = 0.003  # of facts of care: first told under another patient, half of them retracted there
    booked: float = 0.1  # of ambulatory visits: told as planned days ahead
    rescheduled: float = 0.02  # of booked visits: a higher version with another start, still planned
    cancelled: float = 0.02  # of booked visits (which then do not take place) and of medication orders
    future_clock: float = 0.002  # of visits, labs, vitals: event_time after known_time, because the source's clock is ahead
    lower_version_late: float = 0.005  # of facts with several versions: the first comes after the second
    edges: float = 0.0  # of labs, vitals at visits: of no visit, but exactly 5, 30 or 90 days before it or a microsecond beside that
    second: float = 0.0  # of second results of one instant: told later; of second visits of one start: told as emergency visits
    missing: float = 0.0  # of laboratory panels and weights: never measured
    merges: float = 0.0  # of patients: half of their visits are told under a second id, until a merge says who that is

    def __post_init__(self) -> None:
        for name, share in asdict(self).items():
            if not 0 <= share <= 1:
                raise InputError(f"knob {name} must be a share from 0 to 1, got {share}")


@dataclass(frozen=True)
class Change:
    """From a midnight on, something has another value, for all or for one group."""

    value: float
    from_us: int = ALWAYS_US
    group: str = ""
    """A word of `features.clinic.people.groups`; empty: all."""


@dataclass(frozen=True)
class Outage:
    """A feed fails for what became known in [from, until)."""

    feed: str
    from_us: int
    until_us: int


@dataclass(frozen=True)
class Scenario:
    """The world behind the feeds, and what breaks in them for a time. The default is a stable clinic of one site."""

    sites: int = 1
    volume: float = 1.0
    """Ambulatory visits, as a factor; the hazard stays as it is."""
    drift: tuple[Change, ...] = ()
    """The hazard of an emergency visit times a factor."""
    slope: tuple[Change, ...] = ()
    """Differences in log hazard times a factor, about a fixed middle."""
    case_mix: tuple[Change, ...] = ()
    """Who enrols from then on is frailer by so many standard deviations."""
    bias: tuple[tuple[str, float], ...] = ()
    """(group, factor): the group's hazard times a factor, which shows in nothing else about them."""
    silent: tuple[Outage, ...] = ()
    """Nothing of the feed is ever told."""
    half_lost: tuple[Outage, ...] = ()
    """Each record of the feed is lost with a chance of one half."""
    unit_change: tuple[Change, ...] = ()
    """`value` is a site's number: its hemoglobin comes in g/L from then on, still labelled g/dL."""

    def __post_init__(self) -> None:
        if self.sites < 1 or not self.volume > 0:
            raise InputError(f"a clinic has at least one site and a volume above 0, got {self.sites} and {self.volume}")
        factors = [*((f"drift {c.value}", c.value) for c in self.drift), *((f"bias {g}={f}", f) for g, f in self.bias)]
        for what, factor in factors:
            if not 0 < factor < 100:
                raise InputError(f"{what}: a factor of the hazard lies above 0 and below 100")
        for change in self.slope:
            if not 0 <= change.value <= 10:
                raise InputError(f"slope {change.value}: a factor of log hazards lies between 0 and 10")
        for change in self.case_mix:
            if change.group or not abs(change.value) <= 5:
                raise InputError(f"case mix {change.value}: expected at most 5 standard deviations either way, for all who enrol")
        for outage in (*self.silent, *self.half_lost):
            if outage.feed not in event.FEEDS:
                raise InputError(f"feed {outage.feed} is not known; expected one of {', '.join(event.FEEDS)}")
            if outage.from_us >= outage.until_us:
                raise InputError(f"{outage.feed}: an outage ends after it begins")
        for change in self.unit_change:
            if change.group or change.value not in range(1, self.sites + 1):
                raise InputError(f"unit change at site {change.value:g}: sites are numbered from 1 to {self.sites}")


def _date_us(text: str) -> int:
    return to_us(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC))


def _read(parse: Callable[[str], T], form: str) -> Callable[[str], T]:
    """`parse`, with one sentence for all that can be wrong."""

    def reader(text: str) -> T:
        try:
            return parse(text)
        except ValueError:
            raise InputError(f"'{text}' is not of the form {form}") from None

    return reader


def _change(text: str) -> Change:
    value, at, date = text.partition("@")
    group, _, number = value.rpartition(":")
    return Change(float(number), _date_us(date) if at else Change(0).from_us, group)


def _outage(text: str) -> Outage:
    feed, _, days = text.partition("@")
    begin, _, end = days.partition("..")
    return Outage(feed, _date_us(begin), _date_us(end))


def _bias(text: str) -> tuple[str, float]:
    group, _, factor = text.partition("=")
    return group, float(factor)


change = _read(_change, "1.5@2025-03-01, 1.5, or black:1.5@2025-03-01 for one group")
"""A `Change` from text."""
site_change = _read(_change, "2@2025-03-01 (site, date)")
outage = _read(_outage, "labs@2025-03-01..2025-03-04 (the last day is not part of it)")
bias = _read(_bias, "black=1.3")
