"""`premonitor demo` as a person runs it, once on each Redis that it may find; and the parts of it that need no services."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from filecmp import cmpfiles
from pathlib import Path

import pytest

from streams import demo, demo_patients
from streams.admit import CONTROLS
from streams.demo_board import Board
from streams.demo_patients import Source, timed
from streams.demo_run import Proof
from streams.verify import Comparison, Conservation

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
        board.take_fact(b"patient", b"fact %d" % n)
        board.take_fact(b"patient", b"fact %d" % n)  # told again after a crash
    board.take_fact(None, b"a tick")
    assert board.under_way == 1
    board.dead_letters.add(b"key")
    assert board.under_way == 0
