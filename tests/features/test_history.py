"""The fold of histories: what is known at a place, and which version of a fact rules there (S2, S3, S4)."""

from __future__ import annotations

from itertools import permutations
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features import codes, fact, history
from features.clock import DAY_US, NEVER_US
from features.history import Histories
from tests.oracle import fold
from tests.oracle.record import Record, parse
from tests.strategies import CHECKED, STARTS, T_US, TICK, Telling, encounter, histories, lab, log, logs, retraction

Entries = list[tuple[Telling, int, int]]


def there(h: Histories, place: int, seg: int = 0) -> set[tuple[bytes, int, int]]:
    """(id, version, place) of the facts of a patient that are there at a place, by the product."""
    rows = np.flatnonzero(h.present & (h.seg == seg) & (h.place <= place) & (place < h.until))
    return {(h.id_hi[i].tobytes() + h.id_lo[i].tobytes(), int(h.version[i]), int(h.place[i])) for i in rows.tolist()}


def expected(records: list[Record]) -> set[tuple[bytes, int, int]]:
    """The same by the oracle."""
    return {(r.id_bytes, r.version, r.place) for r in fold.present(records)}


def left_of(told: list[Telling]) -> set[tuple[bytes, int]]:
    """(id, version) of the facts that are there once all was told, in this order."""
    h = history.read([log(*((telling, n, T_US) for n, telling in enumerate(told)))])
    return {(identity, version) for identity, version, _ in there(h, len(told))}


@CHECKED
@given(histories())
def test_s4_the_fold_agrees_with_the_oracle(patient: bytes) -> None:
    """At each place the facts that are there are those that a look at all records before it finds."""
    h, records = history.read([patient]), parse(patient)
    for n, record in enumerate(records):
        assert there(h, record.place) == expected(records[: n + 1])
    assert (h.duplicates, h.conflicts) == fold.repeats(records)


@CHECKED
@given(st.lists(histories(size_max=8), max_size=4))
def test_s4_patients_do_not_mix(patients: list[bytes]) -> None:
    """The same ids under several patients of a batch are different facts."""
    h = history.read(patients)
    for seg, patient in enumerate(patients):
        assert there(h, fact.PLACE_MAX, seg) == expected(parse(patient))


@CHECKED
@given(logs(), st.data())
def test_s2_a_prefix_folds_to_what_ruled_then(entries: Entries, data: st.DataObject) -> None:
    """What was there at a place is still what was there at that place, whatever came later."""
    cut = data.draw(st.integers(1, len(entries)))
    place = entries[cut - 1][1]
    assert there(history.read([log(*entries)]), place) == there(history.read([log(*entries[:cut])]), place)


@CHECKED
@given(histories(), st.data())
def test_s3_known_time_is_the_greatest_stamp_so_far(patient: bytes, data: st.DataObject) -> None:
    """known(k) never goes back, and repeats, conflicts and ticks move it too."""
    h, records = history.read([b"", patient]), parse(patient)
    assert h.known_us.tolist() == [fold.known_us(records[: n + 1]) for n in range(len(records))]
    place = data.draw(st.integers(0, records[-1].place + 2))
    so_far = [r for r in records if r.place <= place]
    assert history.known_at(h, 1, place) == (fold.known_us(so_far) if so_far else -NEVER_US)


@pytest.mark.parametrize("stamp_us", [T_US - DAY_US, T_US, T_US + DAY_US])
def test_s3_known_time_is_not_clamped_to_event_time(stamp_us: int) -> None:
    """A source whose clock is odd tells of what has not happened yet: the stamp stays what it is."""
    assert history.read([log((lab("L", T_US), 0, stamp_us))]).known_us.tolist() == [stamp_us]


@CHECKED
@given(logs(), st.data())
def test_s4_idempotent_under_repeats(entries: Entries, data: st.DataObject) -> None:
    """Any record told again, anywhere later and at any stamp, changes nothing but the count of duplicates."""
    before = history.read([log(*((telling, 2 * place, stamp_us) for telling, place, stamp_us in entries))])
    again = data.draw(st.integers(0, len(entries) - 1))
    after = data.draw(st.integers(again, len(entries) - 1))
    repeated = [(telling, 2 * place, stamp_us) for telling, place, stamp_us in entries]
    repeated.insert(after + 1, (entries[again][0], 2 * entries[after][1] + 1, T_US - DAY_US))
    h = history.read([log(*repeated)])
    for _, place, _ in repeated:
        assert there(h, place) == there(before, place)
    first = next(n for n, (telling, _, _) in enumerate(entries) if telling.key == entries[again][0].key)
    is_repeat = entries[again][0].kind != "control" and entries[first][0] == entries[again][0]
    assert (h.duplicates - before.duplicates) == is_repeat


@CHECKED
@given(logs(conflicts=False), st.randoms(use_true_random=False))
def test_s4_order_of_told_does_not_matter(entries: Entries, random: Random) -> None:
    """Without conflicts the facts that are there after k are the same for every order in which they were told."""
    told = [telling for telling, _, _ in entries]
    assert left_of(told) == left_of(random.sample(told, len(told)))


@CHECKED
@given(logs(), st.data())
def test_s4_amended_then_retracted_was_never_there(entries: Entries, data: st.DataObject) -> None:
    """After a retraction above all its versions, told before, between or after them, the rest is as without the fact."""
    gone = data.draw(st.sampled_from([telling for telling, _, _ in entries]))
    told = [telling for telling, _, _ in entries]
    told.insert(data.draw(st.integers(0, len(told))), retraction(gone.kind, gone.source, 5))
    assert left_of(told) == left_of([telling for telling in told if telling.key[:2] != gone.key[:2]])


@pytest.mark.parametrize("status", ["cancelled", "entered-in-error"])
def test_s4_gone_is_gone_from_there_on(status: str) -> None:
    """A cancelled or mistaken fact is there until the place that says so, and not at it."""
    told = lab("L", T_US), lab("L", T_US, version=2, status=fact.STATUS[status])
    h = history.read([log((told[0], 3, T_US), (told[1], 8, T_US))])
    assert [len(there(h, place)) for place in (2, 3, 7, 8, 9)] == [0, 1, 1, 0, 0]


def test_s4_a_lower_version_that_comes_later_has_no_effect() -> None:
    """Version 2 rules though version 1 was told after it, and a retraction below what rules takes nothing back."""
    newer, older = lab("L", T_US, 13.0, version=2), lab("L", T_US, 9.0)
    h = history.read([log((newer, 0, T_US), (older, 1, T_US), (retraction("lab", "L", 1), 2, T_US))])
    assert [(version, place) for _, version, place in there(h, 2)] == [(2, 0)]
    assert (h.duplicates, h.conflicts) == (0, 1)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_s4_retracted_in_any_order(order: tuple[int, ...]) -> None:
    """Told, amended and retracted: absent in each of the six orders."""
    told = [lab("L", T_US), lab("L", T_US, 13.0, version=2), retraction("lab", "L", 3)]
    other = lab("other", T_US)
    assert left_of([other, *(told[n] for n in order)]) == left_of([other])


CHANGES: list[dict[str, float]] = [
    {"event_us": T_US + 1},
    {"value": 9.5},
    {"value": float("nan")},
    {"episode": 7},
    {"ordinal": 1},
    {"concept": 21},
    {"status": fact.STATUS["corrected"]},
    {"flags": fact.BELOW},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_s4_other_content_under_one_version_is_a_conflict_without_effect(change: dict[str, float]) -> None:
    """Of equal versions the first one told counts; the other is counted as a conflict, a mere repeat as a duplicate."""
    first = lab("L", T_US, 9.0)
    for second, counted in ((first, (1, 0)), (first._replace(**change), (0, 1))):  # type: ignore[arg-type]
        h = history.read([log((first, 0, T_US), (second, 1, T_US + DAY_US))])
        assert (h.duplicates, h.conflicts) == counted
        assert {place for _, _, place in there(h, 1)} == {0}


def test_s1_an_id_has_128_bits() -> None:
    """Facts whose ids agree in one half are different facts."""
    ids = [(1).to_bytes(8, "little") + (2).to_bytes(8, "little"), bytes(7) + b"\1" + (2).to_bytes(8, "little"), bytes(16)]
    heads = [fact.pack(identity=identity, event_us=T_US, concept=20, place=n) for n, identity in enumerate([*ids, ids[0]])]
    h = history.read([b"".join(heads)])
    assert len(there(h, 9)) == 3
    assert (h.duplicates, h.conflicts) == (1, 0)


@pytest.mark.parametrize("source", ["E", "E" * 48, "E" * 49, "é" * 64, "𝔼" * 64])
def test_the_name_of_an_encounter_comes_back(source: str) -> None:
    """Source ids of any length and script are read back whole, also beside other names."""
    other = encounter("other", STARTS[1])
    h = history.read([log((encounter(source, T_US), 0, T_US), (other, 1, T_US)), log((other, 0, T_US))])
    assert [h.name(row) for row in range(3)] == [source, "other", "other"]
    assert [r.name.decode() for r in parse(log((encounter(source, T_US), 0, T_US)))] == [source]


def test_a_tick_is_no_fact() -> None:
    """Ticks are never there, and two of one number are no repeat."""
    h = history.read([log((TICK, 0, T_US), (TICK, 1, T_US))])
    assert not h.present.any()
    assert (h.duplicates, h.conflicts) == (0, 0)
    assert h.concept.tolist() == [codes.TICK] * 2


@pytest.mark.parametrize("patients", [[], [b""], [b"", b""]])
def test_nothing_told_is_nothing_known(patients: list[bytes]) -> None:
    """Empty histories have no rows."""
    h = history.read(patients)
    assert (len(h.seg), h.start.tolist()) == (0, [0] * (len(patients) + 1))
