"""The demo's story: services, a real worker, three hospitals on the feeds, a kill, and the proof at the end."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from features import tables
from features.codes import Codebook, codebook
from features.errors import CheckFailed, InputError, ServiceError
from features.log import Log
from models import artifact, score
from models.artifact import Model
from streams import demo, demo_history, demo_patients, doctor, topics
from streams.archive import archive
from streams.demo_board import Board, Question
from streams.demo_patients import Moment, Source
from streams.demo_services import PARTITIONS, Wish, foreign_settings, services
from streams.demo_view import View
from streams.issued import issued
from streams.reader import reach
from streams.settings import Settings
from streams.topics import Names
from streams.verify import Comparison, Conservation, conservation, verify

STEP_S = 0.2
"""Between two sendings: what falls due in between is sent together."""
KILL_AT = 0.4
"""Of the last source's time."""
PATIENCE_S = 90.0
"""For the worker to begin, and to be done when all is sent."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What the demo ends with."""

    found: Comparison
    lines: list[Conservation]
    sent: int

    @property
    def read(self) -> int:
        return sum(line.read for line in self.lines)

    @property
    def holds(self) -> bool:
        return self.found.equal and self.found.expected > 0 and all(line.holds for line in self.lines) and self.read == self.sent

    def text(self) -> list[str]:
        count = f"sent by the demo {self.sent:,}, read by admission {self.read:,}"
        return [self.found.sentence(), *self.found.examples, *(line.sentence() for line in self.lines), count]


def play(wish: Wish, view: View, report: Callable[[Proof], None]) -> None:
    """Run the whole demo; everything that it started is ended when this returns or raises.

    Args:
        wish: What was asked for.
        view: Where it is shown.
        report: Takes the proof, before everything is ended.
    Raises:
        PremonitorError: a service, the worker or a setting failed.
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP.
    """
    with _signals() as ignore_signals, ExitStack() as stack:
        try:
            folder, scratch = _folders(wish, stack, view)
            stack.callback(demo.end_children)
            stack.callback(view.close)
            for line in doctor.machine():
                view.tell(line.text())
            proof = _play(wish, folder, scratch, stack, view)
            view.close()
            report(proof)
        finally:
            ignore_signals()  # what follows ends everything, within seconds


def _play(wish: Wish, folder: Path, scratch: Path, stack: ExitStack, view: View) -> Proof:
    book = codebook()
    own = None if wish.log is None else Log(wish.log, book)
    if own is not None:
        view.head(demo_history.heading(own))
    settings = services(wish, scratch, stack, view.tell)
    played, shares, paths = _invented(folder, book, view) if own is None else _own(own, wish, view)
    moments, speeds = demo_patients.timed(played, seconds=wish.seconds, speed=wish.speed, shares=shares)
    models = [artifact.load(path, book) for path in paths]
    if own is not None:
        view.tell(f"– scored by {', '.join(model.version for model in models)}")
    board = Board(played, {model.use_case.name: _question(model) for model in reversed(models)})  # the first is champion
    log = stack.enter_context((folder / "worker.log").open("ab"))
    session_s = demo.SESSION_S if wish.kafka is None else demo.SESSION_LEAST_S
    start = partial(demo.worker, settings, paths, log, scratch=scratch, session_s=session_s, forget=foreign_settings(wish))
    story = _Story(settings, start, board, view, stack)
    for source, speed in zip(played, speeds, strict=True):
        view.tell(_about(source, speed))
    story.run(moments, kill_at_s=_kill_at(moments) if wish.kill else None)
    return _prove(settings, folder, models, book, sent=board.sent.total(), keep=wish.keep is not None)


def _invented(folder: Path, book: Codebook, view: View) -> tuple[list[Source], tuple[float, ...], list[Path]]:
    """The shipped sources, their shares of the time, and a model for them."""
    made = demo_patients.train(folder, book)
    view.tell(f"✓ a model, trained on {made.training['encounters']:,} visits of invented patients a moment ago: not for use")
    return demo_patients.sources(), demo_patients.SHARES, [folder / "model.json"]


def _own(log: Log, wish: Wish, view: View) -> tuple[list[Source], tuple[float, ...], list[Path]]:
    """The same of a site's own log."""
    history, cut = demo_history.source(log)
    for words in filter(None, (cut, demo_history.FAST)):
        view.tell(words)
    return [history], (1.0,), list(wish.models)


def _question(model: Model) -> Question:
    definition, words = model.use_case.definition, {}
    if definition.outcome.concepts != ["visit.emergency"]:
        words["outcome"] = "what it foresaw has come"
    return Question(definition.background, model.artifact.threshold, definition.outcome.horizon_days, **words)


def _about(source: Source, speed: float) -> str:
    pace = f"x{round(speed, -3 if speed > 10_000 else 0):,.0f}" if speed else "all at once"
    return f"– {source.name}: {source.patients} patients, {source.events:,} events, {pace} ({source.what})"


def _kill_at(moments: list[Moment]) -> float:
    last = moments[-1].source
    begin_s = next(m.at_s for m in moments if m.source == last)
    return begin_s + KILL_AT * (moments[-1].at_s - begin_s)


@contextmanager
def _signals() -> Iterator[Callable[[], None]]:
    """A closed terminal and a polite kill are a Ctrl-C: whatever ends the demo, its children end too."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def ignore() -> None:
        for s in before:
            signal.signal(s, signal.SIG_IGN)

    try:
        yield ignore
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _folders(wish: Wish, stack: ExitStack, view: View) -> tuple[Path, Path]:
    """Where the results go, and where everything else goes, which is removed in any case."""
    if wish.keep is not None and wish.keep.exists():
        raise InputError(f"--keep {wish.keep} exists already: give another folder or remove it")
    scratch = Path(tempfile.mkdtemp(prefix="premonitor-demo-"))

    def remove() -> None:
        shutil.rmtree(scratch, ignore_errors=True)
        kept = "--keep DIR keeps it." if wish.keep is None else f"Kept {wish.keep}."
        view.tell(f"Stopped. Removed {scratch}. {kept}")

    stack.callback(remove)
    if wish.keep is not None:
        wish.keep.mkdir(parents=True)
    return wish.keep or scratch, scratch


class _Story:
    """Feeds, watches, kills and waits."""

    def __init__(self, settings: Settings, start: Callable[[], demo.Child], board: Board, view: View, stack: ExitStack) -> None:
        self.settings, self.board, self.view, self._start = settings, board, view, start
        self.names = Names(settings.prefix)
        self.feeder = demo.Feeder(settings)
        read = dict.fromkeys((self.names.facts, self.names.scores, self.names.alerts, self.names.dead_letters), PARTITIONS)
        asyncio.run(topics.partition_counts(settings.kafka(), list(read)))  # asking makes them, on the mock
        self.tail = demo.Tail(settings, read)
        self.worker = self._start()
        stack.callback(self.tail.close)
        stack.callback(lambda: self.worker.close())
        self.state, self.begun_s = "starting", time.monotonic()
        self.missed = 0
        """Events under way at the kill."""

    @property
    def at_s(self) -> float:
        return time.monotonic() - self.begun_s

    def run(self, moments: list[Moment], *, kill_at_s: float | None) -> None:
        """Everything from the first word of the worker to its orderly end."""
        self.view.tell(f"– premonitor worker --kafka {self.settings.kafka_bootstrap} --known-time given: pid {self.worker.pid}")
        self._until(lambda: self.board.controls["activate"] > 0, "begin")
        self.view.tell(f"✓ the worker reads, {self.at_s:.1f} s after its start")
        self.begun_s, self.state = time.monotonic(), "running"
        self._feed(moments, kill_at_s)
        self.view.tell(f"all {self.board.sent.total():,} events are sent; waiting for the worker to be done", self.at_s)
        self._until(lambda: self.board.under_way <= 0, "admit what was sent")
        with ThreadPoolExecutor(1) as pool:  # beside the numbers, which go on
            asked: list[Future[int]] = []
            self._until(lambda: self._nothing_left(pool, asked), "be done")
        code = self.worker.stop()
        self.state = f"stopped with exit code {code}"
        self._look()
        again = f"; {self.board.repeats:,} scores told twice, with the same ids" if self.board.repeats else ""
        self.view.tell(f"the worker was asked to stop: {self.state}{again}", self.at_s)
        if code:
            raise CheckFailed(f"the worker did not stop in good order: {self.worker.last_words()}")

    def _feed(self, moments: list[Moment], kill_at_s: float | None) -> None:
        n, next_s, source = 0, 0.0, -1
        while n < len(moments):
            now_s = self.at_s
            if kill_at_s is not None and now_s >= kill_at_s:
                kill_at_s = None
                self._kill()
            if now_s >= next_s:
                next_s, begin = now_s + STEP_S, n
                while n < len(moments) and moments[n].at_s <= now_s:
                    n += 1
                due = moments[begin:n]
                if due and due[-1].source != source:
                    source = due[-1].source
                    about = self.board.sources[source]
                    self.view.tell(f"{about.name}: {about.patients} patients, years {about.years}", now_s)
                self.board.feed(due, self.at_s)
                self.feeder.send((m.feed, m.event) for m in due)
            self._look()

    def _look(self) -> None:
        """Take in what came, tell what is new, show the numbers."""
        for topic, key, value in self.tail.read(0.02):
            if topic == self.names.facts:
                self.board.take_fact(key, value)
            elif topic == self.names.scores:
                self.board.take_score(value, self.at_s)
            elif topic == self.names.alerts:
                self.board.take_alert(value)
            else:
                self.board.dead_letters.add(key or b"")
        self._recovered()
        for words in self.board.story:
            self.view.tell(words, self.at_s)
        self.board.story.clear()
        self.view.show(self.board, self.at_s, self.state)
        if not self.worker.running and self.state in ("starting", "running", "starting again"):
            raise ServiceError(f"the worker ended with exit code {self.worker.code}: {self.worker.last_words()}")

    def _kill(self) -> None:
        before = self.worker.pid
        self.worker.kill()
        self.board.outage = (self.at_s, float("inf"))
        self.view.tell(f"the worker (pid {before}) is killed: SIGKILL, without warning. The feeds go on", self.at_s)
        self.worker = self._start()
        self.state = "starting again"

    def _recovered(self) -> None:
        """Whether the worker has made up for the kill: all that was sent a second ago is in the log."""
        if self.state != "starting again" or self.board.outage is None:
            return
        begin_s, _ = self.board.outage
        self.missed = max(self.missed, self.board.under_way)
        if (self.missed and self.board.under_way * 4 < self.missed) or (not self.board.under_way and self.at_s - begin_s > 3):
            self.state, self.board.outage = "running", (begin_s, self.at_s)
            words = f"the next worker (pid {self.worker.pid}) goes on where that one was, {self.at_s - begin_s:.1f} s after the kill"
            self.view.tell(words, self.at_s)

    def _nothing_left(self, pool: ThreadPoolExecutor, asked: list[Future[int]]) -> bool:
        """Whether the last question found everything done; asks anew when it did not."""
        if asked and asked[-1].done() and asked[-1].result() == 0:
            return True
        if not asked or asked[-1].done():
            asked.append(pool.submit(lambda: asyncio.run(_left(self.settings))))
        return False

    def _until(self, done: Callable[[], bool], what: str) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while not done():
            self._look()
            if time.monotonic() > end_s:
                raise CheckFailed(f"the worker did not {what} within {PATIENCE_S:.0f} s: {self.worker.last_words()}")


async def _left(settings: Settings) -> int:
    """Records that admission or scoring has not committed."""
    names, left = Names(settings.prefix), 0
    for stage, wanted in (("admit", [*names.feeds, names.controls]), ("score", [names.facts])):
        done = await topics.committed(settings.kafka(), settings.prefix, stage)
        ends = {(topic, p): r.end for topic, partitions in (await reach(settings, wanted)).items() for p, r in partitions.items()}
        left += sum(ends.values()) - sum(done.values())
    return left


async def forgotten(settings: Settings) -> int:
    """Records of the log and of scores that the broker has dropped to make room: without them nothing can be proved."""
    names = Names(settings.prefix)
    found = await reach(settings, [names.facts, names.scores])
    return sum(r.begin for partitions in found.values() for r in partitions.values())


def _prove(settings: Settings, folder: Path, models: list[Model], book: Codebook, *, sent: int, keep: bool) -> Proof:
    """Archive the log from the topic, compute every score anew from it, compare bytes."""
    if lost := asyncio.run(forgotten(settings)):
        remedy = "Play less: one model, or --speed with --seconds, which leaves out what comes later"
        raise CheckFailed(f"the broker forgot {lost:,} records of facts and scores (it holds 5 MiB a partition): no proof. {remedy}")
    asyncio.run(archive(settings, folder / "log", book, lambda n: None))
    log = Log(folder / "log", book)
    came = asyncio.run(issued(settings))
    if keep and came:
        tables.write(
            folder / "scores.parquet", tables.SCORE_SCHEMA, tables.score_pieces([[(score.decode(v), v) for _, v in came]]), lambda n: None
        )
    return Proof(verify(log, models, came), conservation(log), sent)
