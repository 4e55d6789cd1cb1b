"""Merges (S9): two names, one person: what each of them is asked and told, record by record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from features import fact, history
from features.clock import rfc3339
from features.codes import codebook
from features.importers.build import build_log
from features.log import Log
from features.merge import moves
from models import score
from models.score import activation
from streams.cli import main
from streams.merges import merges as merges_in
from tests.streams.test_alert import Bench, at
from tests.streams.test_alert_example import worked_example


def merge(bench: Bench, known: str, source: str, target: str, name: str = "m1") -> None:
    """Tell that `source` is `target`."""
    bench.tell("merges", at(known), at(known), target, id=name, from_patient_id=source)
    bench.log[-1].key = source.encode()


def carry(bench: Bench) -> int:
    """Let the worker carry out what is in the log: what it sends on is appended. Returns how many records."""
    fresh = Bench(bench.models, bench.log)
    sent = fresh.run(0, len(bench.log)).sent_on
    for key, value in sent:
        bench.log.append(type(bench.log[0])("facts", 0, len(bench.log), bench.log[-1].timestamp, key, value))
    return len(sent)


def scores(bench: Bench) -> list[score.Score]:
    """All that is issued over the log as it stands."""
    return [score.decode(value) for _, value in Bench(bench.models, bench.log).run(0, len(bench.log)).scores]


def brief(made: Sequence[score.Score]) -> list[tuple[str, str, int, float | None]]:
    return [(s.patient_id, s.encounter_id, s.revision, s.risk and round(s.risk, 2)) for s in made]


def test_row_12_of_the_worked_example() -> None:
    """C is P: an emergency visit and a result come over with an encounter that C was scored at; E2 is revised once, the alert told once."""
    bench = worked_example(("05-09T10:00:00", "emergency", "ED1"), ("05-28T09:00:00", "ambulatory", "E9"))
    told = len(bench.log)
    merge(bench, "06-05T09:00:00", "C", "P")
    assert carry(bench) >= 3
    made = [s for s in scores(bench) if s.known_time >= rfc3339(at("06-05T08:00:00"))]
    assert brief(made) == [("P", "E9", 1, 0.27), ("P", "E2", 1, 0.27)] or brief(made) == [("P", "E2", 1, 0.27), ("P", "E9", 1, 0.27)]
    assert {s.trigger for s in made} == {made[0].trigger}, "the end of the merge caused both"
    assert {s.model_version for s in made if s.encounter_id == "E9"} == {
        s.model_version for s in scores(bench) if s.encounter_id == "E9" and s.revision == 0
    }
    alerts = bench.alerts([told])
    last = [a for a in alerts if a.known_time >= rfc3339(at("06-05T08:00:00")) and a.patient_id == "P"]
    assert [(a.transition, a.support) for a in last] == [("updated", ["E2", "E9"])]


def clinic(bench: Bench | None = None) -> Bench:
    """P1 with a flagged visit E1; P2 with one result and a visit E2 on the day after."""
    bench = bench or Bench()
    bench.hb(at("05-02T08:00:00"), 9.0, "L1", 1, at("05-02T07:00:00"), "P1")
    bench.tell("encounters", at("05-03T09:00:00"), at("05-03T09:00:00"), "P1", id="E1", encounter_class="ambulatory")
    bench.tell("encounters", at("05-04T09:00:00"), at("05-04T09:00:00"), "P2", id="E2", encounter_class="ambulatory")
    return bench


def test_without_an_end_nothing_takes_effect() -> None:
    """What has arrived of a packet waits: the other patient's answers are as before until the end stands in the log."""
    bench = clinic()
    merge(bench, "05-05T09:00:00", "P1", "P2")
    before = brief(scores(bench))
    carry(bench)
    whole = bench.log
    for cut in range(len(clinic().log) + 1, len(whole)):
        bench.log = whole[:cut]
        assert brief(scores(bench)) == before, f"after {cut} records"
    bench.log = whole
    assert brief(scores(bench)) == [*before, ("P2", "E2", 1, 0.22)], "E1 keeps its answer, E2 sees the result of the other name"


def test_from_the_redirect_on_the_first_patient_issues_nothing() -> None:
    """Later facts of the first name count for the second one, and are told there under one revision."""
    bench = clinic()
    merge(bench, "05-05T09:00:00", "P1", "P2")
    carry(bench)
    before = len(scores(bench))
    bench.tell("encounters", at("05-06T09:00:00"), at("05-06T09:00:00"), "P1", id="E3", encounter_class="ambulatory")
    assert len(scores(bench)) == before
    n = len(bench.log)
    fresh = Bench(bench.models, bench.log)
    fresh.run(0, n - 1)
    for key, value in fresh.run(n - 1, n).sent_on:
        bench.log.append(type(bench.log[0])("facts", 0, len(bench.log), bench.log[-1].timestamp, key, value))
    assert brief(scores(bench)[before:]) == [("P2", "E3", 0, 0.22)]
    bench.hb(at("05-06T10:00:00"), None, "L1", 2, at("05-02T07:00:00"), "P1")  # taken back under the first name
    n = len(bench.log)
    fresh = Bench(bench.models, bench.log)
    fresh.run(0, n - 1)
    for key, value in fresh.run(n - 1, n).sent_on:
        bench.log.append(type(bench.log[0])("facts", 0, len(bench.log), bench.log[-1].timestamp, key, value))
    assert {s.encounter_id: s.risk and round(s.risk, 2) for s in scores(bench)[before:]} == {"E1": 0.1, "E2": 0.1, "E3": 0.1}
    assert {s.patient_id for s in scores(bench)[before:]} == {"P2"}


def test_the_open_alert_moves_with_its_patient() -> None:
    """It closes under the first name as moved, and opens under the second with the same encounter."""
    bench = clinic()
    merge(bench, "05-05T09:00:00", "P1", "P2")
    carry(bench)
    alerts = bench.alerts()
    assert [(a.patient_id, a.transition, a.reason, a.support) for a in alerts] == [
        ("P1", "opened", "", ["E1"]),
        ("P1", "closed", "moved", ["E1"]),
        ("P2", "opened", "", ["E1", "E2"]),
    ]


def test_a_visit_that_was_due_before_keeps_its_model_and_its_count() -> None:
    """A model that was activated between the visit and the merge does not serve it."""
    from tests.streams.test_alert import model, use_case

    first, second = model(use_case()), model(use_case(), 2)
    bench = Bench([first, second])
    bench.log.pop()
    clinic(bench)
    bench.control(at("05-04T12:00:00"), "activate", {**activation(second, number=0), "id": 2})
    merge(bench, "05-05T09:00:00", "P1", "P2")
    carry(bench)
    bench.hb(at("05-05T10:00:00"), None, "L1", 2, at("05-02T07:00:00"), "P2")
    last = {s.encounter_id: s for s in scores(bench) if s.patient_id == "P2"}
    assert (last["E1"].revision, last["E1"].model_version) == (1, first.version)


def test_a_circle_of_merges_ends() -> None:
    """P1 is P2, and then P2 is P1: the second one is without effect, and nothing is sent round for ever."""
    bench = clinic()
    merge(bench, "05-05T09:00:00", "P1", "P2")
    carry(bench)
    merge(bench, "05-06T09:00:00", "P2", "P1", "m2")
    for _ in range(5):
        n = len(bench.log)
        fresh = Bench(bench.models, bench.log)
        fresh.run(0, n - 1)
        if not fresh.run(n - 1, n).sent_on:
            break
    else:
        pytest.fail("records go round")
    bench.tell("encounters", at("05-07T09:00:00"), at("05-07T09:00:00"), "P2", id="E4", encounter_class="ambulatory")
    assert "E4" in {s.encounter_id for s in scores(bench)}, "the second patient is still scored"


def test_a_history_says_where_its_patient_went() -> None:
    """`moves` reads the redirect and the name of the other one."""
    bench = clinic()
    merge(bench, "05-05T09:00:00", "P1", "P2")
    assert fact.key_of(msgspec.convert({"kind": "lab", "patient_id": "x"}, type=_Lab)) == "x"
    bench.step.desk  # noqa: B018 (the bench has a worker)
    bench.run(0, len(bench.log))
    stored = bench.stores[0].partitions[0].histories
    ((_, move),) = moves(history.read([stored[b"P1"]]))
    assert (move.target, move.place) == ("P2", len(bench.log) - 1)
    assert not moves(history.read([stored[b"P2"]]))


class _Lab(msgspec.Struct):
    kind: str
    patient_id: str


# --- undone -----------------------------------------------------------------------------------------------------------------------------


def undo(bench: Bench, known: str, source: str, target: str, name: str = "m1") -> None:
    """Tell that `source` is not `target` after all, and let the worker carry it out."""
    about = {"id": name, "from_patient_id": source, "version": 2, "status": "entered-in-error"}
    bench.tell("merges", at(known), at(known), target, **about)
    bench.log[-1].key = source.encode()
    send_on(bench)


def send_on(bench: Bench) -> None:
    """Append what the last record of the log sends on."""
    n = len(bench.log)
    fresh = Bench(bench.models, bench.log)
    fresh.run(0, n - 1)
    for key, value in fresh.run(n - 1, n).sent_on:
        bench.log.append(type(bench.log[0])("facts", 0, len(bench.log), bench.log[-1].timestamp, key, value))


def undone() -> Bench:
    """P1 became P2 on 5 May and is P1 again from 8 May; under P1 a visit E3 was told meanwhile."""
    bench = clinic()
    merge(bench, "05-05T09:00:00", "P1", "P2")
    carry(bench)
    bench.tell("encounters", at("05-06T09:00:00"), at("05-06T09:00:00"), "P1", id="E3", encounter_class="ambulatory")
    send_on(bench)
    undo(bench, "05-08T09:00:00", "P1", "P2")
    return bench


def test_an_undone_merge_carries_back_in_one_step() -> None:
    """P2's own visit loses what P1 had brought, P1's visits are withdrawn there, and P1 is asked for them again."""
    bench = undone()
    made = [s for s in scores(bench) if s.known_time >= rfc3339(at("05-08T00:00:00"))]
    assert sorted((s.patient_id, s.encounter_id, s.revision, s.status, s.risk and round(s.risk, 2)) for s in made) == [
        ("P1", "E3", 0, "scored", 0.22),
        ("P2", "E1", 1, "withdrawn", None),
        ("P2", "E2", 2, "scored", 0.1),
        ("P2", "E3", 1, "withdrawn", None),
    ]
    bench.hb(at("05-09T08:00:00"), None, "L1", 2, at("05-02T07:00:00"), "P1")
    assert sorted(brief(scores(bench)[-2:])) == [("P1", "E1", 1, 0.1), ("P1", "E3", 1, 0.1)]


def test_alerts_go_back_with_an_undone_merge() -> None:
    """P1's alert opens again for the visits that support it, P2's loses its support."""
    told = [(a.patient_id, a.transition, a.reason, a.support) for a in undone().alerts()]
    assert told[:4] == [
        ("P1", "opened", "", ["E1"]),
        ("P1", "closed", "moved", ["E1"]),
        ("P2", "opened", "", ["E1", "E2"]),
        ("P2", "updated", "", ["E1", "E2", "E3"]),
    ]
    assert told[4:] == [("P1", "opened", "", ["E1", "E3"]), ("P2", "withdrawing", "", [])]


def test_the_same_two_are_merged_again_under_a_new_id() -> None:
    """After an undone merge another one brings everything once more."""
    bench = undone()
    merge(bench, "05-10T09:00:00", "P1", "P2", "m2")
    send_on(bench)
    last = {s.encounter_id: (s.status, s.risk and round(s.risk, 2)) for s in scores(bench) if s.patient_id == "P2"}
    assert last == {"E1": ("withdrawn", None), "E2": ("scored", 0.22), "E3": ("withdrawn", None)}, "E1 and E3 keep their answers of P1"
    bench.hb(at("05-11T08:00:00"), None, "L1", 2, at("05-02T07:00:00"), "P2")
    last = {s.encounter_id: (s.status, s.risk and round(s.risk, 2)) for s in scores(bench) if s.patient_id == "P2"}
    assert last == {"E1": ("scored", 0.1), "E2": ("scored", 0.1), "E3": ("scored", 0.1)}


def test_batches_do_not_matter_to_an_undone_merge() -> None:
    """Record by record, or all at once: the same scores."""
    bench = undone()
    whole, fresh = {s.score_id: s for s in scores(bench)}, Bench(bench.models, bench.log)
    by_one = [score.decode(v) for n in range(len(bench.log)) for _, v in fresh.run(n, n + 1).scores]
    assert {s.score_id: s for s in by_one} == whole
    assert len(by_one) == len(whole)


def test_the_list_names_what_a_person_must_look_at(tmp_path: Path) -> None:
    """Facts told under the second name while the merge held; of a merge that holds nothing is unclear."""
    about = {"encounter_class": "ambulatory", "status": "in-progress"}

    def visit(patient: str, name: str, day: int) -> tuple[str, dict[str, Any]]:
        when = f"2025-03-{day:02}T09:00:00Z"
        return "encounters", {"id": name, "patient_id": patient, "event_time": when, "known_time": when, **about}

    def joined(name: str, source: str, day: int, **fields: Any) -> tuple[str, dict[str, Any]]:
        when = f"2025-03-{day:02}T09:00:00Z"
        return "merges", {"id": name, "patient_id": "B", "from_patient_id": source, "event_time": when, "known_time": when, **fields}

    told = [visit("A", "E1", 1), visit("B", "E2", 2), joined("m1", "A", 3), visit("B", "E3", 4), visit("A", "E4", 5)]
    told += [joined("m1", "A", 6, version=2, status="entered-in-error"), visit("B", "E5", 7), joined("m2", "C", 8), visit("C", "E6", 9)]
    build_log(told, tmp_path / "log", book=codebook(), source="test")
    first, second = merges_in(Log(tmp_path / "log", codebook()))
    assert (first.origin, first.target, first.undone, first.carried, first.unclear) == (
        "A", "B", "2025-03-06T09:00:00Z", 2, ["encounters E3"],
    )  # fmt: skip
    assert (second.origin, second.undone, second.carried, second.unclear, second.complete) == ("C", "", 1, [], True)
    assert "look at 1 told of B meanwhile: encounters E3" in first.sentence()
    outcome = CliRunner().invoke(main, ["merges", str(tmp_path / "log"), "--json"])
    assert outcome.exit_code == 0
    assert [one["origin"] for one in json.loads(outcome.output)["merges"]] == ["A", "C"]
