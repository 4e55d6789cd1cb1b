"""Packing: the histories of a log do not depend on how it is cut into batches, and a booked visit gets exactly one tick."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features import codes, fact, history, usecase
from features.bookings import PartitionState
from features.clock import DAY_US, MINUTE_US, SECOND_US
from features.errors import InputError
from features.pack import Packed, Packer, Piece, index_times
from features.pack import pack as pack_together
from features.usecase import UseCase
from tests.oracle.packing import Slow
from tests.oracle.revision import walk
from tests.strategies import issued, use_cases

CHECKED = settings(max_examples=100, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
T = TypeVar("T")
BOOK = codes.codebook()
T_US = 1_777_798_800_000_000
HOUR_US = 60 * MINUTE_US
PATIENTS = [b"p1", b"p2", "p\N{GREEK SMALL LETTER ALPHA}".encode()]
TAIL = fact.Told("lab", "", "", None, None, "", None, None, "", "labs", 1)


def use_case(index: str = "", outcome: str = "visit.emergency", name: str = "one") -> UseCase:
    text = f"""
        name = "{name}"
        [index]
        classes = ["ambulatory"]
        {index}
        [outcome]
        concepts = ["{outcome}"]
        horizon_days = 60
        [[features]]
        name = "hemoglobin"
        concepts = ["hemoglobin"]
        aggregates = ["count"]
    """
    return usecase.parse(text, source="test.toml", book=BOOK)


START, LATER, END = use_case(), use_case("offset_hours = 4.0", "visit.inpatient", "later"), use_case('at = "end"', name="end")
SETS = [[START], [END], [START, LATER, END]]


class Entry(NamedTuple):
    """A record of one partition of `facts`."""

    key: bytes | None
    value: bytes
    place: int
    append_us: int


class Choices:
    """Many small choices out of drawn bytes."""

    def __init__(self, content: bytes) -> None:
        self._bytes: Iterator[int] = iter(content)

    def of(self, options: Sequence[T]) -> T:
        return options[next(self._bytes) % len(options)]

    def entry(self, place: int, stamp_us: int, merges: bool) -> Entry:
        """A result, a visit (mostly booked ahead), a death, a record of a merge, a tick or an activation."""
        what, given_stamp, key = self.of("llleeeeedmmttta" if merges else "llleeeeedttta"), self.of([True, False]), self.of(PATIENTS)
        if what in "ta":
            name = {"t": "tick", "a": "activate"}[what]
            return Entry(None, fact.control(name=name, number=place + 1, stamp_us=stamp_us, payload={"id": self.of([1, 2, 3])}), place, 0)
        about: dict[str, Any] = {"stamp_us": stamp_us if given_stamp else fact.NO_STAMP, "version": self.of([1, 1, 1, 2])}
        ahead_us = self.of([-DAY_US, 0, 5 * MINUTE_US, 5 * MINUTE_US + 1, DAY_US, 2 * DAY_US, 10 * DAY_US])
        about["status"] = fact.STATUS[self.of(["planned", "planned", "in-progress", "finished", "cancelled", "entered-in-error"])]
        kind, concept = "lab", 20
        if what == "e":
            kind, concept = "encounter", codes.VISIT_CONCEPTS[self.of(["ambulatory", "ambulatory", "emergency", "inpatient"])]
            about["value"] = self.of([math.nan, 0.0, float(HOUR_US), float(2 * DAY_US)])
        elif what == "d":
            kind, concept = "death", codes.DEATH
        elif what == "m":
            kind, concept = "merge", self.of([codes.MERGE, codes.MERGED, codes.CARRIED_TICK, codes.CARRIED_MODEL])
            about |= {"value": math.nan, "flags": self.of([0, fact.CARRIED])}
        source = self.of(["a", "b" * 60, "c"])
        head = fact.pack(identity=fact.fact_id(kind, source), event_us=stamp_us + ahead_us, concept=concept, **about)
        return Entry(key, fact.join(head, source.encode(), TAIL), place, stamp_us)


@st.composite
def partitions(draw: st.DrawFn, *, size_max: int = 30, merges: bool = False) -> list[Entry]:
    """One partition in log order; places grow, with gaps, stamps mostly grow."""
    out: list[Entry] = []
    place, stamp_us = -1, T_US
    for choices in map(Choices, draw(st.lists(st.binary(min_size=12, max_size=12), min_size=1, max_size=size_max))):
        place += choices.of([1, 1, 1, 7])
        stamp_us += choices.of([0, 0, SECOND_US, MINUTE_US, 5 * MINUTE_US, HOUR_US, DAY_US, DAY_US, 2 * DAY_US, -DAY_US])
        out.append(choices.entry(place, stamp_us, merges))
    return out


@dataclass
class Result:
    """All that packing gives, joined over the batches."""

    histories: dict[bytes, bytes] = field(default_factory=dict)
    booked: list[tuple[int, bytes]] = field(default_factory=list)
    controls: list[tuple[int, int]] = field(default_factory=list)

    def add(self, packed: Packed) -> None:
        for patient, told in packed.patients.items():
            self.histories[patient] = self.histories.get(patient, b"") + told.records
        self.booked += packed.booked
        self.controls += packed.controls


def piece(packer: Packer, batch: Sequence[Entry]) -> Piece:
    keys, values, places, appended = zip(*batch, strict=True) if batch else ((), (), (), ())
    return Piece(packer, keys, values, np.array(places, np.int64), np.array(appended, np.int64))


def pack(packer: Packer, batch: Sequence[Entry]) -> Packed:
    return packer.pack(*piece(packer, batch)[1:])


def packed(log: Sequence[Entry], use_cases: Iterable[UseCase], cuts: Iterable[int]) -> tuple[Result, PartitionState]:
    """A partition packed in the batches that lie between the cuts."""
    packer, result, begin = Packer(use_cases), Result(), 0
    for cut in [*sorted(cuts), len(log)]:
        result.add(pack(packer, log[begin:cut]))
        begin = cut
    return result, packer.state


@CHECKED
@given(partitions(), st.sampled_from(SETS), st.sets(st.integers(0, 30)))
def test_histories_do_not_depend_on_the_batches(log: list[Entry], use_cases: list[UseCase], cuts: set[int]) -> None:
    """Batches of 1, of 7, of 2,000 and any others give the same bytes, bookings, activations and state."""
    whole = packed(log, use_cases, [])
    for some in (range(len(log)), range(0, len(log), 7), {c for c in cuts if c < len(log)}):
        result, state = packed(log, use_cases, some)
        assert result == whole[0]
        assert (state.control_us, state.activations, sorted(state.booked)) == (
            whole[1].control_us, whole[1].activations, sorted(whole[1].booked),
        )  # fmt: skip


@CHECKED
@given(partitions(merges=True), st.sampled_from(SETS), st.sets(st.integers(0, 30)))
def test_a_batch_gives_what_its_records_give_one_by_one(log: list[Entry], use_cases: list[UseCase], cuts: set[int]) -> None:
    """Histories, bookings, controls and activations, and of each batch how far it reaches: the twin goes record by record."""
    packer, slow, result = Packer(use_cases), Slow(use_cases), Result()
    begin = 0
    for cut in [*sorted(c for c in cuts if c < len(log)), len(log)]:
        made = pack(packer, log[begin:cut])
        result.add(made)
        slow.oldest_us, slow.newest_us = {}, {}
        for entry in log[begin:cut]:
            slow.tell(entry)
        assert {patient: (told.oldest_us, told.newest_index_us) for patient, told in made.patients.items()} == {
            patient: (slow.oldest_us[patient], slow.newest_us[patient]) for patient in slow.oldest_us
        }
        begin = cut
    assert result == Result(slow.histories, slow.booked, slow.controls)
    assert (packer.state.control_us, packer.state.activations) == (slow.control_us, slow.activations)
    assert sorted(packer.state.booked) == sorted(slow.waiting)


@CHECKED
@given(partitions(), use_cases(leaks=False), use_cases(leaks=False))
def test_s11_histories_hold_what_any_use_case_with_their_index_times_needs(log: list[Entry], one: UseCase, other: UseCase) -> None:
    """Histories that were packed for one use case serve another of equal index times, whatever it reads: byte for byte the same. Of
    other index times they would lack the ticks of booked visits, which is why the worker refuses them by `index_times`."""
    made, wanted = packed(log, [one], [])[0].histories, packed(log, [other], [])[0].histories
    if index_times([one]) == index_times([other]):
        assert made == wanted
        for stored in made.values():
            assert issued(history.read([stored]), other) == [walk(stored, other)]
    else:
        assert {p: without_ticks(h) for p, h in made.items()} == {p: without_ticks(h) for p, h in wanted.items()}


def without_ticks(stored: bytes) -> bytes:
    records = np.frombuffer(stored, fact.HEAD)
    return records[records["concept"] != codes.TICK].tobytes()


@CHECKED
@given(st.lists(partitions(size_max=12, merges=True), min_size=2, max_size=3), st.sampled_from(SETS), st.data())
def test_partitions_do_not_mix(logs: list[list[Entry]], use_cases: list[UseCase], data: st.DataObject) -> None:
    """Batches of several partitions, packed at once, give what each partition gives alone: also where one has nothing to tell, and where
    the same name stands in two of them."""
    packers, results, at = [Packer(use_cases) for _ in logs], [Result() for _ in logs], [0] * len(logs)
    while any(at[n] < len(log) for n, log in enumerate(logs)):
        sizes = [data.draw(st.integers(0, 6)) for _ in logs]
        sizes = sizes if any(sizes) else [6] * len(logs)
        parts = [log[begin : begin + size] for log, begin, size in zip(logs, at, sizes, strict=True)]
        for result, made in zip(results, pack_together([piece(*one) for one in zip(packers, parts, strict=True)]), strict=True):
            result.add(made)
        at = [begin + size for begin, size in zip(at, sizes, strict=True)]
    for log, result, packer in zip(logs, results, packers, strict=True):
        alone, state = packed(log, use_cases, [])
        assert result == alone
        assert (packer.state.control_us, packer.state.activations) == (state.control_us, state.activations)
        assert sorted(packer.state.booked) == sorted(state.booked)


def ticks_of(stored: bytes) -> list[tuple[int, int]]:
    """(place, stamp) of the ticks of a history."""
    records = np.frombuffer(stored, fact.HEAD)
    ticks = records[records["concept"] == codes.TICK]
    return list(zip(ticks["place"].tolist(), ticks["stamp_us"].tolist(), strict=True))


def expected_ticks(log: Sequence[Entry], use_cases: Iterable[UseCase]) -> dict[bytes, set[tuple[int, int]]]:
    """By a loop: each index time that lies ahead is waited for, until the first control at which it is due."""
    out: dict[bytes, set[tuple[int, int]]] = {}
    controls: list[tuple[int, int]] = []
    latest_us = -(2**62)
    for entry in log:
        if entry.key is None:
            latest_us = max(latest_us, int(fact.heads([entry.value])["stamp_us"][0]))
            controls.append((entry.place, latest_us))
    for entry in log:
        (head,) = fact.heads([entry.value])
        if entry.key is None or not 0 < head["concept"] <= 6:
            continue
        stamp_us = int(head["stamp_us"]) if head["stamp_us"] != fact.NO_STAMP else entry.append_us
        stamp_us = max([stamp_us, *(us for place, us in controls if place < entry.place)])
        for case in use_cases:
            length = 0.0 if case.definition.index.at == "start" else float(head["value"])
            due_us = int(head["event_us"]) + case.offset_us - 5 * MINUTE_US + (0 if math.isnan(length) else int(length))
            after = [(place, us) for place, us in controls if place > entry.place and us >= due_us]
            if due_us > stamp_us and after and not math.isnan(length):
                out.setdefault(entry.key, set()).add(after[0])
    return out


@CHECKED
@given(partitions(), st.sampled_from(SETS))
def test_s7_a_booked_visit_gets_one_tick_when_it_is_due(log: list[Entry], use_cases: list[UseCase]) -> None:
    """At the first control whose time is at most five minutes before the index time, once for each patient, and never else."""
    found = {patient: ticks_of(stored) for patient, stored in packed(log, use_cases, [])[0].histories.items()}
    expected = expected_ticks(log, use_cases)
    assert {patient: ticks for patient, ticks in found.items() if ticks} == {patient: sorted(ticks) for patient, ticks in expected.items()}


@CHECKED
@given(partitions(), st.sampled_from(SETS), st.data())
def test_a_worker_that_starts_from_a_stored_state_goes_on_alike(log: list[Entry], use_cases: list[UseCase], data: st.DataObject) -> None:
    """The store keeps bookings until they are committed as served: with them, too, each visit gets its one tick."""
    cut = data.draw(st.integers(0, len(log) - 1))
    before, state = packed(log[:cut], use_cases, [])
    stored = PartitionState(state.control_us, copy.deepcopy(state.activations), sorted(before.booked))
    packer = Packer(use_cases, stored, exact_from=log[cut].place)
    before.add(pack(packer, log[cut:]))
    assert before == packed(log, use_cases, [])[0]


@CHECKED
@given(partitions(), st.sampled_from(SETS))
def test_a_history_is_the_log_of_its_patient(log: list[Entry], use_cases: list[UseCase]) -> None:
    """The heads in order with place and stamp filled in, names behind encounters, ticks between; no other patient's records."""
    for patient, stored in packed(log, use_cases, [])[0].histories.items():
        mine = [entry for entry in log if entry.key == patient]
        h = history.read([stored])
        rows = np.flatnonzero(h.concept != codes.TICK)
        assert [(h.place[r], h.id_hi[r], h.event_us[r]) for r in rows] == [
            (e.place, fact.heads([e.value])["id_hi"][0], fact.heads([e.value])["event_us"][0]) for e in mine
        ]
        for row, entry in zip(rows.tolist(), mine, strict=True):
            if h.concept[row] <= 6:
                assert h.name(row).encode() == fact.source_id(entry.value)
        assert (np.diff(h.place) > 0).all()
        control_us = [int(fact.heads([e.value])["stamp_us"][0]) for e in log if e.key is None]
        assert h.known_us[-1] >= max((int(r) for r in np.frombuffer(stored, fact.HEAD)["stamp_us"][h.at]), default=0)
        assert all(h.known_us[r] >= us for r in rows[-1:] for us in control_us[: sum(e.key is None and e.place < h.place[r] for e in log)])


def tick(minute: int, place: int) -> Entry:
    return Entry(None, fact.control(name="tick", number=place + 1, stamp_us=T_US + minute * MINUTE_US, payload={}), place, 0)


def visit(place: int, *, ahead_us: int, key: bytes = b"p") -> Entry:
    head = fact.pack(identity=bytes([place]) * 16, event_us=T_US + ahead_us, stamp_us=T_US, concept=1, status=fact.PLANNED)
    return Entry(key, fact.join(head, b"E%d" % place, TAIL), place, 0)


@pytest.mark.parametrize(
    ("ahead_us", "ticks"), [(5 * MINUTE_US, []), (5 * MINUTE_US + 1, [1]), (6 * MINUTE_US, [1]), (6 * MINUTE_US + 1, [2])]
)
def test_s7_both_edges_of_due(ahead_us: int, ticks: list[int]) -> None:
    """Five minutes ahead is due at once; later ones wait for the first tick that is at most five minutes before."""
    log = [visit(0, ahead_us=ahead_us), tick(1, 1), tick(2, 2), tick(2, 3), tick(60, 4)]
    assert [place for place, _ in ticks_of(packed(log, [START], [])[0].histories[b"p"])] == ticks


def test_two_visits_that_become_due_together_share_a_tick() -> None:
    """A tick is told to a patient once at a place; another patient has its own."""
    log = [visit(0, ahead_us=HOUR_US), visit(1, ahead_us=HOUR_US + 1), visit(2, ahead_us=HOUR_US, key=b"q"), tick(59, 3), tick(61, 4)]
    result, state = packed(log, [START], [])
    assert {patient: [place for place, _ in ticks_of(stored)] for patient, stored in result.histories.items()} == {b"p": [3], b"q": [3]}
    assert state.booked == []


@pytest.mark.parametrize("cuts", [[], [1], [1, 2], [2], [3]])
def test_s3_a_stamp_is_folded_with_the_controls_before_it(cuts: list[int]) -> None:
    """A fact whose own stamp is older than a tick before it is known at that tick; a tick that goes back has no effect."""
    log = [tick(10, 0), tick(5, 1), visit(2, ahead_us=0), tick(20, 3)]
    result, state = packed(log, [START], cuts)
    assert history.read([result.histories[b"p"]]).known_us.tolist() == [T_US + 10 * MINUTE_US]
    assert state.control_us == T_US + 20 * MINUTE_US


def test_an_activation_told_twice_is_one() -> None:
    """Admission may repeat a control after a crash: the first place counts."""
    value = fact.control(name="activate", number=5, stamp_us=T_US, payload={"id": 5, "role": "champion"})
    _, state = packed([Entry(None, value, place, 0) for place in (3, 9)], [START], [])
    assert state.activations == [{"id": 5, "role": "champion", "place": 3}]


def test_what_a_partition_must_not_hold() -> None:
    """A fact without a key, an unreadable record, and more records than a place can count."""
    good = visit(0, ahead_us=0)
    for bad, sentence in (
        (good._replace(key=None), "without a key"),
        (good._replace(value=b"{}"), "deploy readers before writers"),
        (good._replace(place=fact.PLACE_MAX + 1), r"2\*\*32"),
    ):
        with pytest.raises(InputError, match=sentence):
            packed([good, bad], [START], [])
    assert packed([good._replace(place=fact.PLACE_MAX)], [START], [])[0].histories.keys() == {b"p"}
    assert packed([], [START], [])[0] == Result()
