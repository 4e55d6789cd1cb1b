"""One code path: live, replayed and backfilled scores are the same bytes, whatever the batch size and the partition count."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.codes import codebook
from features.importers.build import build_log
from features.log import Log
from models import score
from models.artifact import Model
from streams.backfill import backfill
from streams.driver import Driver, Topics
from streams.replay import activations, rows
from streams.verify import compare, conservation, told_of_two_patients, verify
from tests import logs
from tests.stand_in import any_visit, stand_in

CHECKED = settings(max_examples=100, deadline=None, print_blob=True)
Issued = dict[str, bytes]


@pytest.fixture(scope="module")
def model() -> Model:
    return stand_in(any_visit())


@pytest.fixture(scope="module", params=logs.KINDS)
def log(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Log:
    return logs.build(request.param, tmp_path_factory.mktemp("logs") / request.param)


@pytest.fixture(scope="module")
def expected(log: Log, model: Model) -> Issued:
    return {made.score_id: value for batch in backfill(log, [model]) for made, value in batch}


def driven(log: Log, model: Model, *, partitions: int, batch: int) -> tuple[Issued, list[bytes]]:
    """The scores and alerts of a log, driven through the steps."""

    async def run() -> Topics:
        topics = Topics()
        driver = Driver([model], codebook(), topics, partitions=partitions)
        for partition in range(partitions):
            topics.append("facts", partition, [(None, value) for value in activations(log, [model])], 0)
        for partition, some in rows(list(log.records()), partitions, driver.partition_of).items():
            topics.append("facts", partition, some, 0)
        await driver.drain(batch=batch)
        return topics

    topics = asyncio.run(run())
    issued = [(score.decode(value).score_id, value) for value in topics.values("scores")]
    assert len(issued) == len(dict(issued)), "a score was issued twice without a fault"
    return dict(issued), sorted(topics.values("alerts"))


def test_there_is_something_to_compare(log: Log, expected: Issued) -> None:
    """Each log gives scores, and the simulated one gives revisions."""
    assert len(expected) >= 10
    revisions = [score.decode(value).revision for value in expected.values()]
    assert log.about["source"] != "simulated" or max(revisions) > 2


@pytest.mark.parametrize("partitions", [1, 4, 64])
def test_any_number_of_partitions_gives_the_same_bytes(log: Log, model: Model, expected: Issued, partitions: int) -> None:
    """Nothing issued depends on a partition (S2)."""
    assert driven(log, model, partitions=partitions, batch=2_000)[0] == expected


@pytest.mark.parametrize("batch", [1, 7])
def test_any_batch_size_gives_the_same_bytes(log: Log, model: Model, expected: Issued, batch: int) -> None:
    """A row and a risk have the same bits in a batch of one and of thousands (S6)."""
    assert driven(log, model, partitions=4, batch=batch)[0] == expected


def test_alerts_do_not_depend_on_batches_or_partitions(log: Log, model: Model) -> None:
    """Alert records are a function of the log (S12)."""
    one = driven(log, model, partitions=1, batch=2_000)[1]
    assert one == driven(log, model, partitions=4, batch=7)[1] == driven(log, model, partitions=64, batch=500)[1]


def test_verify_finds_nothing(log: Log, model: Model, expected: Issued) -> None:
    """S14 on a sound log: missing 0, extra 0, different 0, and every feed adds up (S13)."""
    assert verify(log, [model], expected.items()).equal
    assert all(line.holds for line in conservation(log))


def test_verify_names_a_deleted_and_a_changed_score(log: Log, model: Model, expected: Issued) -> None:
    """One score gone and one bit changed are found and named."""
    ids = sorted(expected)
    broken = dict(expected)
    del broken[ids[0]]
    broken[ids[1]] = broken[ids[1]][:-2] + bytes([broken[ids[1]][-2] ^ 1]) + broken[ids[1]][-1:]
    found = verify(log, [model], broken.items())
    assert (found.missing, found.extra, found.different) == (1, 0, 1)
    assert {f"missing: score {ids[0]}", f"different: score {ids[1]}"} == set(found.examples)


def test_verify_names_a_deleted_fact(model: Model, tmp_path: Path) -> None:
    """A log that lost a fact no longer gives the issued scores, and its feed does not add up."""
    whole = logs.build("simulated", tmp_path / "whole")
    issued = {made.score_id: value for batch in backfill(whole, [model]) for made, value in batch}
    told = logs.events("simulated")
    first_visit = next(n for n, (feed, event) in enumerate(told) if feed == "encounters" and event["status"] == "in-progress")
    build_log(told[:first_visit] + told[first_visit + 1 :], tmp_path / "less", book=codebook(), source="less")
    found = verify(Log(tmp_path / "less", codebook()), [model], issued.items())
    assert found.extra or found.different


def test_comparing_counts_repeats_once() -> None:
    """The same id with the same bytes twice is no difference; with other bytes it is."""
    assert compare([("a", b"1"), ("a", b"1")], [("a", b"1")]).equal
    assert compare([("a", b"1"), ("a", b"2")], [("a", b"1")]).different == 1


records = st.tuples(st.sampled_from("abcdef"), st.sampled_from([b"1", b"2"]))


@CHECKED
@given(st.lists(records, max_size=12), st.lists(records, max_size=6, unique_by=lambda record: record[0]))
def test_s14_verify_tells_the_difference_of_the_two_sets(issued: list[tuple[str, bytes]], expected: list[tuple[str, bytes]]) -> None:
    """Missing, extra and different are told apart by id; the same id with the same bytes twice is no difference, with other bytes it is."""
    found, first, due = compare(issued, expected), dict(reversed(issued)), dict(expected)
    assert found.equal == (set(issued) == set(expected))
    assert (found.missing, found.extra) == (len(due.keys() - first.keys()), len(first.keys() - due.keys()))
    again = sum(value != first[score_id] for score_id, value in issued)
    assert found.different == again + sum(due[score_id] != first[score_id] for score_id in due.keys() & first.keys())


@CHECKED
@given(st.data())
def test_s14_any_one_score_that_is_gone_changed_or_made_up_is_named(expected: Issued, data: st.DataObject) -> None:
    """Whichever score of a log, and whichever bit of it."""
    chosen = data.draw(st.sampled_from(sorted(expected)))
    without = {score_id: value for score_id, value in expected.items() if score_id != chosen}
    found = compare(without.items(), expected.items())
    assert (found.missing, found.extra, found.different, found.examples) == (1, 0, 0, [f"missing: score {chosen}"])
    found = compare(expected.items(), without.items())
    assert (found.missing, found.extra, found.different, found.examples) == (0, 1, 0, [f"extra: score {chosen}"])
    changed = bytearray(expected[chosen])
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    found = compare((expected | {chosen: bytes(changed)}).items(), expected.items())
    assert (found.missing, found.extra, found.different, found.examples) == (0, 0, 1, [f"different: score {chosen}"])


def test_an_encounter_told_under_two_patients_has_scores_of_its_own_for_each(model: Model, tmp_path: Path) -> None:
    """A visit that is corrected to another patient is the same encounter under both: their score ids must differ."""
    visit = {"id": "e1", "encounter_class": "ambulatory", "event_time": "2025-03-01T09:00:00Z", "known_time": "2025-03-01T09:00:00Z"}
    told = [("encounters", {**visit, "patient_id": "p1"}), ("encounters", {**visit, "patient_id": "p2"})]
    build_log(told, tmp_path / "log", book=codebook(), source="two patients")
    issued = [made for batch in backfill(Log(tmp_path / "log", codebook()), [model]) for made, _ in batch]
    assert {made.patient_id for made in issued} == {"p1", "p2"}
    assert len({made.score_id for made in issued}) == 2
    assert len(told_of_two_patients(Log(tmp_path / "log", codebook()))) == 1
