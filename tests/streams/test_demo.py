"""`premonitor demo` as a person runs it, once on each Redis that it may find; and the parts of it that need no services."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from filecmp import cmpfiles
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from features import fact
from features.codes import codebook
from features.errors import InputError
from features.importers.build import build_log
from features.log import Log
from features.retell import is_told
from models import score
from streams import demo, demo_history, demo_patients, demo_run
from streams.admit import CONTROLS
from streams.cli import main
from streams.demo_board import Board, Question
from streams.demo_patients import Source, timed
from streams.demo_run import Proof, forgotten
from streams.demo_services import Wish
from streams.settings import load
from streams.topics import Names
from streams.verify import Comparison, Conservation
from tests.logs import events

COMMAND = str(Path(sys.executable).with_name("premonitor"))
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def played() -> list[Source]:
    return demo_patients.sources()


def environment(tmp_path: Path) -> dict[str, str]:
    """Settings that are meant for other workers must not reach the demo."""
    return {**os.environ, "TMPDIR": str(tmp_path), "PREMONITOR_PREFIX": "prod.", "PREMONITOR_KAFKA_TLS": "true"}


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Path, subprocess.Popen[str]]]]:
    """Both at once: they share nothing, and most of their time they wait."""
    started = {}
    for redis, words in {"server": [], "fake": ["--redis", "fake"]}.items():
        folder = tmp_path_factory.mktemp(redis)
        command = [COMMAND, "demo", "--seconds", "15", *words]
        pipe = subprocess.PIPE
        started[redis] = folder, subprocess.Popen(command, cwd=folder, env=environment(folder), stdout=pipe, stderr=pipe, text=True)
    yield started
    for _, process in started.values():
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize("redis", ["server", "fake"])
def test_the_demo_proves_itself(demos: dict[str, tuple[Path, subprocess.Popen[str]]], redis: str) -> None:
    """Every score is issued once and right, although the worker was killed; nothing is left behind."""
    folder, process = demos[redis]
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert out.startswith("missing 0, extra 0, different 0 of "), out
    assert "DOES NOT ADD UP" not in out
    for words in ("not for use", "first alert: ", "goes with", "SIGKILL", "goes on where that one was", "Stopped. Removed "):
        assert words in err, err
    assert ("fakeredis" in err) == (redis == "fake" or demo.redis_program() is None)
    assert "because" not in err
    assert not list(folder.iterdir())


def test_an_interrupt_ends_everything(tmp_path: Path) -> None:
    """Ctrl-C in the middle: exit 130, a last line, no process and no folder left."""
    log = tmp_path / "said"
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with log.open("wb") as said:
        process = subprocess.Popen([COMMAND, "demo", "--redis", "fake"], stderr=said, stdout=said, env=environment(temporary))
        pids = {int(pid) for pid in _children_when(process, log, "the worker reads")}
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert "Stopped. Removed " in log.read_text()
    assert pids
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert not list(temporary.iterdir())


def _children_when(process: subprocess.Popen[bytes], log: Path, words: str) -> Iterator[str]:
    for _ in range(600):
        if words in log.read_text():
            return iter(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
        assert process.poll() is None, log.read_text()
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError(log.read_text())


def test_the_samples_are_those_of_the_tests() -> None:
    """What is shipped is what the importers are tested on, under the same licence."""
    for ours, theirs in (("eicu", "eicu_demo_labs"), ("mimic", "mimic_iv_demo")):
        folders = demo_patients.DATA / ours, ROOT / "tests/data" / theirs
        names = [path.name for path in folders[1].iterdir()]
        assert sorted(path.name for path in folders[0].iterdir()) == sorted(names)
        assert cmpfiles(*folders, names, shallow=False)[1:] == ([], [])
    assert "ODbL" in (demo_patients.DATA / "SOURCE.md").read_text()


def test_known_time_never_goes_back(played: list[Source]) -> None:
    """One source follows the other; ticks stand where they hold; all of it fits the seconds."""
    moments, speeds = timed(played, seconds=60, speed=None)
    known = [m.known_us for m in moments]
    assert known == sorted(known)
    assert [m.at_s for m in moments] == sorted(m.at_s for m in moments)
    assert moments[-1].at_s == pytest.approx(60)
    assert all(speed > 0 for speed in speeds)
    assert len(moments) < 20_000, "the embedded broker forgets what is not read in time"
    ticks = [m for m in moments if m.feed == CONTROLS]
    assert all(m.event["stamp_us"] == m.known_us for m in ticks)
    assert moments[-1] in ticks


def test_a_speed_of_ones_own(played: list[Source]) -> None:
    """`--speed` is that of every source; what comes after `--seconds` is left out, `max` leaves nothing out."""
    moments, speeds = timed(played, seconds=3, speed=200_000.0)
    assert speeds == [200_000.0] * 3
    assert 0 < len(moments) < sum(len(s.moments) for s in played)
    assert moments[-1].at_s <= 3
    moments, _ = timed(played, seconds=3, speed=0.0)
    assert len(moments) == sum(len(s.moments) for s in played)


def test_the_proof_fails_where_it_should() -> None:
    """A score missing, a line that does not add up, a record that admission never read, or nothing at all: no proof."""
    line = Conservation("labs", read=3, facts=2, duplicates=1, conflicts=0, dead_letters=0)
    assert Proof(Comparison(expected=5), [line], sent=3).holds
    assert not Proof(Comparison(expected=5, missing=1), [line], sent=3).holds
    assert not Proof(Comparison(expected=5), [replace(line, facts=1)], sent=3).holds
    assert not Proof(Comparison(expected=5), [line], sent=4).holds
    assert not Proof(Comparison(expected=0), [line], sent=3).holds


def test_the_board_counts_what_is_under_way(played: list[Source]) -> None:
    """An event is under way until its fact or its dead letter is seen; a control is no event."""
    board = Board(played)
    board.feed(played[0].moments[:50], 0.0)
    events = sum(m.feed != CONTROLS for m in played[0].moments[:50])
    assert board.under_way == events
    for n in range(events - 1):
        value = bytes(65) + b"fact %d" % n
        board.take_fact(b"patient", value)
        board.take_fact(b"patient", value)  # told again after a crash
    board.take_fact(None, b"a tick")
    assert board.under_way == 1
    board.dead_letters.add(b"key")
    assert board.under_way == 0


# --- a site's own history --------------------------------------------------------------------------------------------------------------

BOOK = codebook()


def merged() -> list[tuple[str, dict[str, Any]]]:
    """Half a year of invented patients, of whom one turns out to be another."""
    told = events("simulated", patients=40)
    first, second = sorted({event["patient_id"] for _, event in told})[:2]
    when = {"event_time": "2025-04-01T09:00:00Z", "known_time": "2025-04-01T09:00:00Z"}
    return [*told, ("merges", {"id": "m1", "from_patient_id": first, "patient_id": second, **when})]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site folder with a log and a model."""
    folder = tmp_path_factory.mktemp("site")
    build_log(merged(), folder / "log", book=BOOK, source="an export of April")
    demo_patients.train(folder, BOOK)
    (folder / "premonitor.toml").write_text('site = "clinic"\nmodels = ["model.json"]\n')
    return folder


def test_a_log_of_ones_own_is_played_and_proved(site: Path, tmp_path: Path) -> None:
    """Every event of the log goes through the real worker, with the model of the site folder; it is marked and nothing stays."""
    command = [COMMAND, "demo", "--log", "log", "--seconds", "6", "--redis", "fake"]
    before = sorted(site.rglob("*"))
    done = subprocess.run(command, cwd=site, env=environment(tmp_path), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("missing 0, extra 0, different 0 of "), done.stdout
    assert f"sent by the demo {len(merged()):,}, read by admission {len(merged()):,}" in done.stdout
    assert "merges: read 1 = facts 1 + " in done.stdout
    assert "REPLAY of log (an export of April). Nothing leaves this machine" in done.stderr
    for words in ("SIGKILL", "(REPLAY), ", "Stopped. Removed ", "--log log --model "):
        assert words in done.stderr, done.stderr
    assert "not for use" not in done.stderr, "no model of its own is trained"
    assert "eICU" not in done.stderr
    assert sorted(site.rglob("*")) == before
    assert not list(tmp_path.iterdir())


REFUSED = [
    (["--log", "log", "--site", "none"], "--log needs a model"),
    (["--model", "model.json"], "add --log LOG"),
    (["--log", "log", "--kafka", "127.0.0.1:9092"], "no patient leaves this machine"),
    (["--log", "log", "--redis", "redis://127.0.0.1:6379/0"], "no patient leaves this machine"),
    (["--log", ".", "--model", "model.json"], "is not a log"),
    (["--log", "log", "--model", "log"], "no such model"),
]


@pytest.mark.parametrize(("words", "sentence"), REFUSED)
def test_what_does_not_go_together_is_refused(site: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str) -> None:
    """One sentence each, before anything is started."""
    monkeypatch.chdir(site)
    monkeypatch.setattr(demo_run, "play", lambda *_: pytest.fail("it was played"))
    done = CliRunner().invoke(main, ["demo", *words])
    assert isinstance(done.exception, InputError), done.output
    assert sentence in str(done.exception)


@pytest.mark.parametrize(("words", "own"), [([], False), (["--log", "log"], True), (["--log", "log", "--model", "model.json"], True)])
def test_the_models_of_the_site_are_those_of_its_log(site: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], own: bool) -> None:
    """Without a log the demo plays its own patients, in a site folder too."""
    wishes: list[Wish] = []
    monkeypatch.chdir(site)
    monkeypatch.setattr(demo_run, "play", lambda wish, *_: wishes.append(wish))
    done = CliRunner().invoke(main, ["demo", *words])
    assert done.exit_code == 0, done.output
    assert [path.resolve() for path in wishes[0].models] == [site / "model.json"] * own
    assert wishes[0].log == (Path("log") if own else None)


def test_a_whole_log_is_played_in_the_order_in_which_it_was_known(site: Path) -> None:
    """Each fact that a source told, and only those: what the merge carried goes over again by itself."""
    log = Log(site / "log", BOOK)
    played, cut = demo_history.source(log)
    moments = [m for m in played.moments if m.feed != CONTROLS]
    told = [r for r in log.records() if r.patient_id is not None and is_told(r.value)]
    assert (played.name, played.rejected, cut) == ("REPLAY", 0, "")
    assert [m.known_us for m in moments] == [r.stamp_us for r in told]
    assert [m.event["id"] for m in moments if m.feed != "merges"] == [
        fact.source_id(r.value).decode() for r in told if fact.told(r.value).kind != "merge"
    ]
    assert len(moments) == len(merged()) < log.about["facts"]
    known = [m.known_us for m in played.moments]
    assert known == sorted(known)
    assert timed([played], seconds=9, speed=None, shares=(1.0,))[0][-1].at_s == pytest.approx(9)


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_of_a_long_log_the_last_stretch_is_played(site: Path, more: int) -> None:
    """One event over the limit, and the first is left out and the sentence says so; at the limit all are played."""
    log = Log(site / "log", BOOK)
    told = len(merged())
    played, cut = demo_history.source(log, events_max=told + more)
    assert played.events == min(told, told + more)
    assert ("are played, known since" in cut) == (more < 0)
    whole, _ = demo_history.source(log)
    assert [m.event for m in played.moments if m.feed != CONTROLS] == [m.event for m in whole.moments if m.feed != CONTROLS][
        -played.events :
    ]


def test_events_of_one_instant_are_cut_too(tmp_path: Path) -> None:
    """A night's load has one known time: never more than the limit is played."""
    at = {"event_time": "2026-05-03T07:30:00Z", "known_time": "2026-05-04T00:00:00Z"}
    told = [("deaths", {"id": f"d{n}", "patient_id": f"p{n}", **at}) for n in range(50)]
    build_log(told, tmp_path / "log", book=BOOK, source="")
    played, _ = demo_history.source(Log(tmp_path / "log", BOOK), events_max=20)
    assert [m.event["id"] for m in played.moments if m.feed != CONTROLS] == [f"d{n}" for n in range(30, 50)]
    assert timed([played], seconds=9, speed=None, shares=(1.0,))[1][0] > 0


def test_a_log_without_events_is_refused(tmp_path: Path) -> None:
    build_log([], tmp_path / "log", book=BOOK, source="")
    with pytest.raises(InputError, match="nothing to play"):
        demo_history.source(Log(tmp_path / "log", BOOK))


def test_the_board_counts_what_was_sent_and_what_a_champion_flags(site: Path) -> None:
    """A fact that a merge carries was not sent; a visit that a shadow flags is not listed."""
    log = Log(site / "log", BOOK)
    board = Board([demo_history.source(log)[0]], {"a": Question(horizon_days=30), "b": Question(horizon_days=30)})
    for record in log.records():
        board.take_fact(record.patient_id.encode() if record.patient_id else None, record.value)
    assert len(board.facts) == len(merged())
    made = {"patient_id": "p", "encounter_id": "e", "model_version": "m", "index_time": "", "known_time": "", "revision": 0, "trigger": ""}
    rest = {"status": "scored", "reason": "", "risk": 0.9, "flagged": True, "contributions": [], "missing": [], "row_digest": ""}
    for n, (use_case, role) in enumerate([("a", "champion"), ("a", "shadow"), ("b", "champion"), ("c", "shadow")]):
        issued = msgspec.convert({"score_id": str(n), "use_case": use_case, "role": role, **made, **rest}, score.Score)
        board.take_score(score.encode(issued), 0.0)
    assert (len(board.scores), board.flagged, board.horizon) == (4, 2, "risk in 30 days")
    assert Board([], {"a": Question(), "b": Question(horizon_days=30)}).horizon == "risk", "one heading cannot say two"


def test_what_the_broker_forgot_is_noticed() -> None:
    """It drops its oldest records behind some 5 MiB a partition: a proof without them would accuse the worker."""
    with closing(demo.MockBroker()) as broker:
        settings = load(kafka_bootstrap=broker.address, prefix="")
        feeder, batch = demo.Feeder(settings), [("patient_id", "p"), ("text", "x" * 500_000)]
        topic = Names("").scores
        feeder.send([(topic, dict(batch)) for _ in range(2)])
        assert asyncio.run(forgotten(settings)) == 0
        for _ in range(12):
            feeder.send([(topic, dict(batch))])
        assert asyncio.run(forgotten(settings)) > 0
