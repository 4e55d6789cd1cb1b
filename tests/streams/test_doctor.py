"""Doctor and status: every fault has its line, its remedy and its exit code; lag and ages are told as they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from features.codes import codebook
from features.errors import PremonitorError
from models import artifact
from streams import dead_letters, doctor, status
from streams.cli import main
from streams.reader import Reach
from streams.settings import Settings
from tests.stand_in import any_visit, stand_in

SETTINGS = Settings(kafka_bootstrap="kafka:9092")
GOOD = {"controls": 1, "facts": 4, "scores": 4, "alerts": 4, "dead-letters": 4, "labs": 4, "encounters": 4}
KEPT = {"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete", "message.timestamp.type": "LogAppendTime"}
INFO = {"redis_version": "7.0.15", "maxmemory_policy": "noeviction", "aof_enabled": 1}
ABOUT = {"partitions": "4", "codes": "c", "format": "1"}

FAULTS: list[tuple[Callable[[], Sequence[doctor.Line]], str]] = [
    (lambda: doctor.topics(SETTINGS, {k: v for k, v in GOOD.items() if k != "scores"}), "topics missing: scores"),
    (lambda: doctor.topics(SETTINGS, {k: v for k, v in GOOD.items() if k not in ("labs", "encounters")}), "no feed has a topic"),
    (lambda: doctor.topics(SETTINGS, {**GOOD, "scores": 8}), "facts has 4 partitions, scores has 8"),
    (lambda: doctor.topics(SETTINGS, {**GOOD, "controls": 4}), "controls has 4 partitions"),
    (lambda: doctor.kept(SETTINGS, {"facts": {**KEPT, "retention.ms": "604800000"}}), "facts: retention.ms is 604800000, must be -1"),
    (lambda: doctor.kept(SETTINGS, {"facts": {**KEPT, "message.timestamp.type": "CreateTime"}}), "must be LogAppendTime"),
    (lambda: doctor.kept(SETTINGS, {"scores": {**KEPT, "cleanup.policy": "compact"}}), "scores: cleanup.policy is compact"),
    (lambda: doctor.server_lines({**INFO, "maxmemory_policy": "allkeys-lru"}, SETTINGS), "maxmemory-policy is allkeys-lru"),
    (lambda: doctor.server_lines({**INFO, "aof_enabled": 0}, SETTINGS), "appendonly is off"),
    (lambda: doctor.state_lines(SETTINGS, ABOUT, 12, "c"), "facts has 12 partitions, state was written with 4"),
    (lambda: doctor.state_lines(SETTINGS, ABOUT, 4, "d"), "state was written with code sets c, this version has d"),
    (lambda: doctor.state_lines(SETTINGS, {**ABOUT, "format": "2"}, 4, "c"), "state has format 2"),
    (lambda: doctor.place_lines({17: Reach(90, 100)}, {17: [88, 95]}), "17 (state at 88, log begins at 90)"),
    (lambda: doctor.place_lines({17: Reach(0, 100)}, {17: [88, 101]}), "17 (state at 101, log ends at 100)"),
    (lambda: [doctor.packages("1", ["faust-streaming==0.0.1"])], "faust-streaming is"),
    (lambda: [doctor.packages("1", ["no-such-package==0.0.1"])], "no-such-package is missing"),
    (lambda: doctor.models([Path("no-such.json")], codebook()), "model no-such.json does not load"),
]


@pytest.mark.parametrize(("lines", "words"), FAULTS, ids=[words for _, words in FAULTS])
def test_each_fault_has_its_line_and_its_remedy(lines: Callable[[], Sequence[doctor.Line]], words: str) -> None:
    """One ✗, and what to do about it."""
    (wrong,) = [line for line in lines() if line.good is False]
    assert words in wrong.what
    assert wrong.remedy
    assert wrong.text().startswith("✗ ")


def test_a_good_ground_has_no_fault(tmp_path: Path) -> None:
    """Feeds that are not there are worth a note; what may not be seen is not called wrong."""
    artifact.save(stand_in(any_visit()).artifact, tmp_path / "model.json")
    lines = [
        *doctor.machine(), *doctor.topics(SETTINGS, GOOD), *doctor.kept(SETTINGS, dict.fromkeys(GOOD, KEPT)),
        *doctor.kept(SETTINGS, {"facts": {}}), *doctor.server_lines(INFO, SETTINGS), *doctor.server_lines({"redis_version": "7"}, SETTINGS),
        *doctor.server_lines({**INFO, "maxmemory_policy": "allkeys-lru"}, Settings(allow_eviction=True)),
        *doctor.state_lines(SETTINGS, ABOUT, 4, "c"), *doctor.state_lines(SETTINGS, {}, 4, "c"),
        *doctor.place_lines({0: Reach(90, 100)}, {0: [90, 100]}), *doctor.models([tmp_path / "model.json"], codebook()),
    ]  # fmt: skip
    assert not [line for line in lines if line.good is False]
    notes = [line.what for line in lines if line.good is None]
    assert notes[0].startswith("feeds without a topic are not read: vitals")
    assert len(notes) == 5


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([doctor.Line(True, "good"), doctor.Line(None, "note")], 0),
        ([doctor.Line(False, "bad", "mend it")], 1),
        ([doctor.Line(False, "bad", "mend it"), doctor.Line(False, "gone", "start it", unreachable=True)], 3),
    ],
)
def test_doctors_exit_code(lines: list[doctor.Line], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 good, 1 a fault, 3 a service out of reach; the lines are on stdout in any case."""

    async def examine(*_: object) -> list[doctor.Line]:
        return lines

    monkeypatch.setattr(doctor, "examine", examine)
    for flags in ([], ["--json"]):
        answer = CliRunner().invoke(main, ["doctor", *flags])
        assert (answer.exception.exit_code if isinstance(answer.exception, PremonitorError) else answer.exit_code) == code
        assert lines[0].what in answer.stdout


def test_lag_is_what_is_left_to_read() -> None:
    """From the commit, or from where the topic begins; a partition that was never committed lags as a whole."""
    partitions = {0: Reach(0, 10, 5_000), 1: Reach(40, 50, 7_000), 2: Reach(3, 3)}
    assert status.stand("labs", partitions, {0: 8, 1: 20}) == status.Stand("labs", 20, 12, 7_000_000)
    assert status.stand("labs", partitions, {0: 10, 1: 50, 2: 3}).lag == 0
    assert status.stand("scores", {0: Reach(0, 0)}, None) == status.Stand("scores", 0, None, None)


def test_status_as_text_and_as_json() -> None:
    """One line a topic; what is unknown is said."""
    stands = [status.Stand("labs", 1_200, 3, 60_000_000), status.Stand("deaths", 0, 0, None)]
    rows = [dead_letters.Row("unit", "labs", 2, 1, "labs[0]@4")]
    found = status.Status(
        stands, ["vitals"], [status.Stand("facts", 5, 0, 0)], rows, {("ed", "champion"): "ed-1", ("ed", "shadow:ed-2"): "ed-2"}
    )
    text = found.text(now_us=180_000_000)
    for line in (
        "labs           1,200           3  1970-01-01T00:01:00Z (2 min ago)",
        "no topic for vitals",
        "dead letters 2, 1 of them retried",
    ):
        assert line in text
    assert "active ed-2 is shadow of ed" in text
    assert "no model is active" in status.Status(stands, [], [], [], {}).text(0)
    assert json.loads(msgspec.json.encode(found.document()))["feeds"][1] == {"name": "deaths", "records": 0, "lag": 0, "last_record": None}


def test_a_model_file_of_any_bytes_is_a_line_not_a_crash(tmp_path: Path) -> None:
    """Text that is no UTF-8, no JSON, or no model."""
    for content in (b'{"version": "\xff"}', b"\x00", b"{}"):
        (tmp_path / "model.json").write_bytes(content)
        (line,) = doctor.models([tmp_path], codebook())
        assert (line.good, line.remedy) == (False, "Give a file as premonitor train wrote it")
