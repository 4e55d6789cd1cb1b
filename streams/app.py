"""The worker: one Faust app without Faust's own Kafka clients; intakes feed agents through channels.

`Clients` is started first and stopped last: bus and Redis, then the intakes as its children, which stop in reverse. The app boots
without Faust's consumer, whose rebalances would empty our channels; every agent is a channel agent.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import Any

import faust
from faust.app.base import BootStrategy
from mode.supervisors import CrashingSupervisor

from features.clock import Clock
from features.codes import Codebook
from features.errors import PremonitorError, ServiceError
from features.memory import keep_freed
from models.artifact import Model
from streams import agents, collector, store_redis
from streams.activation import tick_for_ever
from streams.admit import Admission
from streams.alert_desk import AlertDesk
from streams.align import Align
from streams.bus import Bus, partitioner
from streams.intake import Intake
from streams.logs import LOGGING
from streams.metrics import Health, Metrics
from streams.preflight import Ground
from streams.rebuild import rebuild_patients
from streams.settings import Settings
from streams.steps import ScoreStep
from streams.topics import Names

EXIT_STUCK = 70
FUTURE_US = 60_000_000
"""A feed record's time further ahead than this counts as that of the record before (S13)."""


class _ServicesOnly(BootStrategy):
    enable_kafka = False


class Clients(faust.Service):
    """Bus, Redis and intakes, started and stopped in the one right order."""

    worker: Worker

    async def on_start(self) -> None:
        self.worker.app.flow_control.resume()  # without Faust's consumer nobody else does: a put would wait for ever
        try:
            await self.worker.connect(self)
        except Exception as error:
            await self.crash(error)

    async def on_stop(self) -> None:
        await self.worker.disconnect()


class Worker:
    """Builds the app; `run` runs it until a signal or a crash.

    Args:
        settings: Checked settings.
        models: All models that the log may activate.
        book: The code sets.
        ground: What was found before the start: partitions and feeds.
        clock: Where the time comes from.
    """

    def __init__(self, settings: Settings, models: Sequence[Model], book: Codebook, ground: Ground, clock: Clock) -> None:
        self.settings, self.names, self.clock = settings, Names(settings.prefix), clock
        self.metrics, self.intakes = Metrics(), list[Intake]()
        self.buses = {stage: Bus(settings) for stage in settings.stages}
        """One each: a producer has one request under way to a broker, and the stages would wait for each other's."""
        self._tasks: list[asyncio.Task[None]] = []
        self._health: Health | None = None
        self._passes = self._audited = 0
        self._watchdog = threading.Timer(settings.stop_within_s, self._give_up)
        self._watchdog.daemon = True
        self._folder = tempfile.TemporaryDirectory(prefix="premonitor-")
        self.app = faust.App(
            "premonitor",
            broker="kafka://" + settings.kafka_bootstrap,
            store="memory://",
            web_enabled=False,
            topic_disable_leader=True,
            topic_allow_declare=False,
            agent_supervisor=CrashingSupervisor,
            datadir=self._folder.name,
        )
        self.app.boot_strategy = _ServicesOnly(self.app)
        self.app.service(type("PremonitorClients", (Clients,), {"worker": self, "__module__": __name__}))
        self._partition_of = partitioner(ground.partitions)
        self._plans: list[Callable[[dict[str, Any]], Intake]] = []
        if "score" in settings.stages:
            self._plan_score(models)
        if "admit" in settings.stages:
            self._plan_admit(ground, book)

    def _plan_score(self, models: Sequence[Model]) -> None:
        settings, names, channel = self.settings, self.names, self.app.channel()
        self.redis = store_redis.connect(settings)
        store = store_redis.RedisStore(self.redis, prefix=settings.prefix)
        use_cases = [m.use_case for m in models]

        async def rebuild(partition: int, patients: list[bytes]) -> None:
            n = await rebuild_patients(settings, names.facts, store, use_cases, partition, patients)
            self.metrics.rebuilt(n)

        alert_store = store_redis.RedisStore(self.redis, prefix=settings.prefix, kind="a")
        step = ScoreStep(store, models, rebuild=rebuild, alerts=AlertDesk(alert_store, use_cases), at=self.crash_at)
        agents.score_agent(self.app, channel, step, self.buses["score"], names, self.metrics, self.crash_at, self._partition_of)

        async def look(intake: Intake) -> None:
            await self._audit(intake, step, rebuild)

        self._plans.append(lambda service: Intake("score", [names.facts], channel, settings, places=step, on_idle=look, **service))

    def _plan_admit(self, ground: Ground, book: Codebook) -> None:
        settings, channel, live = self.settings, self.app.channel(), self.settings.known_time == "append"
        admission = Admission(
            ground.feeds, partitions=ground.partitions, partition_of=self._partition_of, stamp=settings.known_time, book=book
        )
        align: Align[Any] = Align(
            read=admission.read,
            ceiling_us=(lambda: self.clock.now_us() + FUTURE_US) if live else (lambda: 2**62),
            monotonic_s=self.clock.monotonic_s,
            wait_s=settings.align_wait_s,
            keep_max=settings.align_records_max,
        )
        agents.admit_agent(self.app, channel, admission, self.buses["admit"], self.names, self.metrics, self.crash_at)
        self._plans.append(lambda service: Intake("admit", list(ground.feeds), channel, settings, align=align, **service))

    def crash_at(self, step: str) -> None:
        """Ends the process at a named step, where a test asked for it."""
        name, _, n = self.settings.crash_at.rpartition(":")
        if name == step:
            self._passes += 1
            if self._passes == int(n):
                os._exit(137)

    async def connect(self, clients: Clients) -> None:
        """Start the buses and the intakes."""
        for bus in self.buses.values():
            await bus.start()
        service = {"loop": clients.loop, "beacon": clients.beacon}
        for plan in self._plans:
            intake = plan(service)
            self.intakes.append(intake)
            await clients.add_runtime_dependency(intake)
        self._tasks = [asyncio.create_task(self._watch())]
        if "admit" in self.settings.stages and self.settings.known_time == "append":
            self._tasks.append(asyncio.create_task(self._tick(clients)))
        if self.settings.health_port is not None:
            self._health = Health(
                self.metrics, host=self.settings.health_host, port=self.settings.health_port, alive=self.alive, ready=self.ready
            )
        collector.start()
        clients.log.warning("worker %s is reading", self.settings.worker_name)

    async def disconnect(self) -> None:
        """Stop in reverse."""
        self._begin_end()
        for task in self._tasks:
            task.cancel()
        for intake in reversed(self.intakes):
            await intake.stop()
        for bus in self.buses.values():
            await bus.stop()
        if "score" in self.settings.stages:
            await self.redis.aclose()
        if self._health:
            self._health.close()

    def _begin_end(self) -> None:
        """From here on the process ends within `stop_within_s`, whatever hangs: in our services, or in Faust's before or behind them."""
        if self._watchdog.ident is None:
            self._watchdog.start()

    def _give_up(self) -> None:
        reason = self.app.crash_reason
        self.app.log.critical("the stop took more than %g s and was cut off: %s", self.settings.stop_within_s, reason or "no crash")
        os._exit(reason.exit_code if isinstance(reason, PremonitorError) else EXIT_STUCK)

    def ended(self) -> None:
        """Everything has stopped: nobody needs to be watched."""
        self._watchdog.cancel()

    def alive(self) -> bool:
        """The loop turns: every intake polled lately."""
        now_s = self.clock.monotonic_s()
        return bool(self.intakes) and all(now_s - i.heartbeat_s < 30 for i in self.intakes)

    def ready(self) -> bool:
        """Every intake has its partitions and nothing is failing."""
        return self.alive() and all(i.assigned.is_set() and not i.tries and not i.unanswered for i in self.intakes)

    async def _watch(self) -> None:
        while True:
            if self.app.should_stop:
                self._begin_end()
            for intake in self.intakes:
                self.metrics.intake(intake.name, intake.counts, intake.lag())
            await asyncio.sleep(1.0)

    async def _tick(self, clients: Clients) -> None:
        """Ticks are written by the owner of the controls: of several workers, one."""
        try:
            await tick_for_ever(self.settings, self.buses["admit"], mine=lambda: any(i.owns(self.names.controls) for i in self.intakes))
        except PremonitorError as error:
            await clients.crash(error)

    async def _audit(self, intake: Intake, step: ScoreStep, rebuild: Callable[[int, list[bytes]], Any]) -> None:
        """Idle check of one partition after the other: histories that are gone or cut short are made anew."""
        mine = sorted(intake.finished)
        if not mine:
            return
        self._audited += 1
        partition = mine[self._audited % len(mine)].partition
        damaged = await step.store.audit(partition)
        if damaged:
            intake.counts["histories_damaged"] += len(damaged)
            intake.log.warning("partition %d: %d histories are gone or cut short: rebuilding them", partition, len(damaged))
            await rebuild(partition, damaged)
        if await step.alerts.store.audit(partition):
            intake.log.warning("partition %d: score histories are gone or cut short: reading the partition again", partition)
            await step.alerts.store.forget(partition)


def run(settings: Settings, models: Sequence[Model], book: Codebook, ground: Ground, clock: Clock) -> None:
    """Run a worker to its end.

    Raises:
        PremonitorError: what it crashed of, with its exit code.
    """
    keep_freed()
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    worker = Worker(settings, models, book, ground, clock)
    process = faust.Worker(worker.app, loglevel="WARN", redirect_stdouts=False, loop=loop, quiet=True, logging_config=LOGGING)
    process.spinner = None  # it hides the cursor, also where stdout is a file of JSON lines
    code: object = 0
    try:
        process.execute_from_commandline()
    except SystemExit as stop:
        code = stop.code
    finally:
        worker.ended()
    reason = process.crash_reason
    if isinstance(reason, PremonitorError):
        raise reason
    if reason is not None or code:
        raise ServiceError(f"the worker crashed of {type(reason).__name__}; nothing was skipped: the next start goes on where it was")
