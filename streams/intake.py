"""Intake: a Faust service that owns a Kafka consumer, hands each poll to an agent's channel, and commits what is done.

Two tasks. `read` polls and puts the batches on the channel. `settle` takes them in the same order, awaits the agent's report and the
acknowledgements of what it sent, and only then moves the offset that may be committed. A gap or a failed batch seeks back at once,
all partitions of the intake together, and makes the batches that were read meanwhile stale.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import faust
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from features.errors import CheckFailed, PremonitorError, ServiceError
from streams import collector
from streams.align import Align
from streams.batches import Batch, Places
from streams.settings import Settings
from streams.store import Damaged, Gap

BACKLOG = 1_000
"""Behind a poll of so many records the client fetches ahead. Behind a smaller one it would get the next record alone, and all that comes
after that one would wait a round more."""


class Intake(faust.Service):
    """One consumer of one group.

    Args:
        name: For logs and metrics, and in the group's id.
        topics: What to read.
        channel: The agent's channel; an item is a poll, a list of batches of different partitions.
        settings: Of the worker.
        places: Keeps progress beside Kafka's offsets.
        align: Orders several feeds by source time; None: each partition for itself.
    """

    def __init__(
        self,
        name: str,
        topics: Sequence[str],
        channel: Any,
        settings: Settings,
        *,
        places: Places | None = None,
        align: Align[TopicPartition] | None = None,
        on_idle: Callable[[Intake], Awaitable[None]] | None = None,
        **service: Any,
    ) -> None:
        super().__init__(**service)
        self.name, self.topics, self.channel, self.settings = name, list(topics), channel, settings
        self.places, self.align, self.on_idle = places, align, on_idle
        self.epochs: dict[TopicPartition, int] = {}
        self.place: dict[TopicPartition, int] = {}
        """Next offset to hand on."""
        self.finished: dict[TopicPartition, int] = {}
        """Everything before it is done and acknowledged."""
        self.sent: dict[TopicPartition, int] = {}
        """What was committed."""
        self.tries: Counter[TopicPartition] = Counter()
        self.counts: Counter[str] = Counter()
        self.unanswered = 0
        """Idle checks in a row that failed."""
        self.heartbeat_s = self.delivered_s = time.monotonic()
        self.assigned = asyncio.Event()
        self.held: set[TopicPartition] = set()
        self._gathering = False
        """Nothing is fetched before the next poll is due."""

    async def on_start(self) -> None:
        self._polls: asyncio.Queue[list[Batch]] = asyncio.Queue()
        self._room = asyncio.Semaphore(self.settings.polls_ahead)  # what is not polled yet comes in larger batches
        self._quiet = asyncio.Event()
        self._quiet.set()
        self.consumer = AIOKafkaConsumer(
            **self.settings.kafka(),
            group_id=f"{self.settings.prefix}premonitor-{self.name}",
            group_instance_id=f"{self.settings.worker_name}-{self.name}",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            partition_assignment_strategy=[RangePartitionAssignor],
            session_timeout_ms=round(self.settings.session_timeout_s * 1000),
            heartbeat_interval_ms=max(500, round(self.settings.session_timeout_s * 200)),
            fetch_min_bytes=1,
            fetch_max_wait_ms=100,
        )
        await self.consumer.start()
        self.consumer.subscribe(self.topics, listener=_Moves(self))

    async def on_stop(self) -> None:
        if not self.crashed:  # after a crash nobody will report on what is in hand
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._quiet.wait(), 10)
            await self.commit()
        with suppress(asyncio.TimeoutError, KafkaError):
            await asyncio.wait_for(self.consumer.stop(), 5)

    # --- partitions come and go ---------------------------------------------------------------------------------------------------

    async def hand_back(self, tps: Iterable[TopicPartition]) -> None:
        """Revoked: what the agent holds becomes stale; wait for it a little, commit, forget."""
        tps = list(tps)
        for tp in tps:
            self.epochs[tp] = self.epochs.get(tp, 0) + 1
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._quiet.wait(), 5)
        await self.commit()
        for tp in tps:
            for known in (self.place, self.finished, self.sent, self.tries):
                known.pop(tp, None)
            self._forget(tp)

    async def take_over(self, tps: Iterable[TopicPartition]) -> None:
        """Assigned: begin where both Kafka and the store are complete; all at once, or one feed would run ahead of the others."""
        tps = list(tps)
        beginning, end = await self.consumer.beginning_offsets(tps), await self.consumer.end_offsets(tps)
        starts = {tp: await self._start_of(tp, beginning[tp], end[tp]) for tp in tps}
        for tp, start in starts.items():
            self.seek(tp, start)
        self.assigned.set()

    async def _start_of(self, tp: TopicPartition, beginning: int, end: int) -> int:
        committed = await self.consumer.committed(tp) or 0
        place = await self.places.place(tp.partition) if self.places else committed
        if place > end:
            raise CheckFailed(
                f"{tp.topic}[{tp.partition}] ends at {end:,}, the state is at {place:,}: another cluster, or the topic was made anew. "
                "Use another --prefix, or premonitor rebuild"
            )
        start = min(committed, place)
        if start < beginning and self.places:
            raise CheckFailed(
                f"Redis and Kafka disagree in partition {tp.partition} (state at {start:,}, log starts at {beginning:,}). "
                "premonitor replay LOG --kafka HOST:PORT --prefix NEW."
            )
        if place < committed:
            self.counts["tail_lost"] += 1
            self.log.warning("%s[%d]: state at %d, committed %d: reading again", tp.topic, tp.partition, place, committed)
        return max(start, beginning)

    def _forget(self, tp: TopicPartition) -> None:
        if self.align:
            self.align.drop([tp])
        if self.places:
            self.places.let_go(tp.partition)

    def seek(self, tp: TopicPartition, place: int) -> None:
        """Read a partition from `place`; batches of it that are in hand become stale."""
        self.epochs[tp] = self.epochs.get(tp, 0) + 1
        self._forget(tp)
        self.place[tp] = place
        self.finished[tp] = min(place, self.finished.get(tp, place))
        self.consumer.seek(tp, place)

    def rewind(self, tp: TopicPartition) -> None:
        """Back to what is done: with feeds in order of time all of them, or one would run ahead of the others."""
        for one in list(self.place) if self.align else [tp]:
            if one in self.finished:
                self.seek(one, self.finished[one])

    # --- reading ------------------------------------------------------------------------------------------------------------------

    @faust.Service.task
    async def read(self) -> None:
        while not self.should_stop:
            await self._room.acquire()
            await self._gather()
            try:
                got = await self.consumer.getmany(timeout_ms=200, max_records=self.settings.batch_records_max)
            except KafkaError as error:
                if not error.retriable:  # a refused group or a wrong setting: asking again changes nothing
                    await self.crash(ServiceError(f"Kafka refuses stage {self.name}: {type(error).__name__}: {error}"))
                    return
                self.counts["poll_failed"] += 1
                self.log.warning("%s: poll failed: %s", self.name, type(error).__name__)
                self._room.release()
                await asyncio.sleep(0.5)
                continue
            self.heartbeat_s = time.monotonic()
            records = sum(map(len, got.values()))
            if got:
                self.delivered_s = self.heartbeat_s
            if 0 < records < BACKLOG:
                self.consumer.pause(*self.place)
                self._gathering = True
            collector.pace(self.name, records)
            if self.align:
                batches = await self._aligned(self.align, got)
            else:  # no await since getmany: the epochs are those of the records
                mine = ((tp, records) for tp, records in got.items() if tp in self.place and records)
                batches = [Batch(self, tp, (self.place[tp], records[-1].offset + 1), records) for tp, records in mine]
            for batch in batches:
                self.place[batch.tp] = batch.next
            asyncio.gather(*(b.report for b in batches), return_exceptions=True).add_done_callback(self._reported)
            if batches:
                self._quiet.clear()
                await self._polls.put(batches)
                await self.channel.put(batches)

    async def _gather(self) -> None:
        """Let the next poll become worth its cost. Feeds come record by record, and a round for each would cost more than it brings;
        facts come together as they were admitted."""
        if not self._gathering:
            return
        if self.align and (left_s := self.delivered_s + self.settings.gather_ms / 1000 - time.monotonic()) > 0:
            await asyncio.sleep(left_s)
        self.consumer.resume(*(self.place.keys() - self.held))
        self._gathering = False

    def _reported(self, reports: asyncio.Future[list[Any]]) -> None:
        if not any(isinstance(report, BaseException) for report in reports.result()):
            self._room.release()

    async def _aligned(self, align: Align[TopicPartition], got: dict[TopicPartition, list[Any]]) -> list[Batch]:
        """What may go on now; the rest waits, read but neither handed on nor committed."""
        for tp, records in got.items():
            if tp in self.place:
                align.add(tp, records)
        full = align.full() & self.place.keys()
        self.consumer.pause(*(full - self.held))
        self.consumer.resume(*((self.held - full) & self.place.keys()))
        self.held = full
        ended = set()
        for tp in list(self.place):
            high = self.consumer.highwater(tp)
            if high is not None and await self.consumer.position(tp) >= high:
                ended.add(tp)
        if sum(map(len, got.values())) >= self.settings.batch_records_max:
            align.busy(self.place)  # there is more to read: a partition that delivered nothing has not had its turn
        ready = align.take(list(self.place), ended)
        self.counts["overdue"] = align.overdue
        return [Batch(self, tp, (self.place[tp], told[-1][0] + 1), told, times) for tp, (times, told) in ready.items()]

    # --- settling -----------------------------------------------------------------------------------------------------------------

    @faust.Service.task
    async def settle(self) -> None:
        committed_s = idle_s = time.monotonic()
        while True:
            try:
                poll = self._polls.get_nowait() if not self._polls.empty() else await asyncio.wait_for(self._polls.get(), 0.2)
            except TimeoutError:
                poll = []
            for batch in poll:
                await self._settle_one(batch)
            if any(b.trouble for b in poll):
                self._room.release()  # no sooner: what fails is tried again at the pace of the retries
            now_s = time.monotonic()
            if self._polls.empty():
                if not poll or all(b.report.done() for b in poll):
                    self._quiet.set()
                if not poll and self.should_stop:
                    return
            if now_s - idle_s >= self.settings.idle_check_s and not self.should_stop:
                idle_s = now_s
                await self._check_services()
            if now_s - committed_s >= self.settings.commit_every_s:
                committed_s = now_s
                await self.commit()

    async def _settle_one(self, batch: Batch) -> None:
        try:
            async with asyncio.timeout(self.settings.patience_s):
                for ack in await asyncio.shield(batch.report):
                    await ack
        except Gap as gap:
            if batch.blamed:
                self.counts["gap"] += 1
                self.log.warning("%s[%d]: the store is at %d, expected %d: reading again", *batch.tp, gap.place, batch.start)
                self.seek(batch.tp, min(gap.place, batch.start))
            return
        except PremonitorError as error:  # not a matter of trying again
            await self.crash(error)
            return
        except Exception as error:
            await self._retry(batch, error)
            return
        if batch.stale:
            self.counts["stale"] += 1
            return
        self.tries.pop(batch.tp, None)
        self.finished[batch.tp] = batch.next
        self.counts["records"] += len(batch.records)
        self.counts["batches"] += 1

    async def _retry(self, batch: Batch, error: Exception) -> None:
        """Go back, wait, try again; at last give up: data is never skipped because a service is away."""
        if batch.blamed is None:  # no acknowledgement, or no report in time
            batch.report.cancel()  # whoever reports it yet comes too late, and no one waits for it
            if batch.stale:
                return
            self.rewind(batch.tp)
        elif not batch.blamed:
            return
        self.tries[batch.tp] += 1
        self.counts["retried"] += 1
        n = self.tries[batch.tp]
        self.log.warning("%s[%d]@%d failed (%d of %d): %s", *batch.tp, batch.start, n, self.settings.attempts_max, type(error).__name__)
        if n >= self.settings.attempts_max and not isinstance(error, Damaged):
            words = f"{batch.tp.topic}[{batch.tp.partition}]@{batch.start}: {type(error).__name__} {n} times in a row"
            await self._give_up(words)
            return
        await asyncio.sleep(min(0.05 * 2**n, 5))

    async def _check_services(self) -> None:
        """Without traffic nothing else would tell that Kafka or the store is gone, or that the store lost its tail."""
        try:
            if self.place and time.monotonic() - self.delivered_s >= self.settings.idle_check_s:  # a client without a broker only waits
                async with asyncio.timeout(self.settings.patience_s):
                    await self.consumer.end_offsets(list(self.place))
            await self._look_for_loss()
        except PremonitorError as error:
            await self.crash(error)
        except Exception as error:
            self.unanswered += 1
            self.counts["idle_check_failed"] += 1
            n, most = self.unanswered, self.settings.attempts_max
            self.log.warning("%s: idle check failed (%d of %d): %s", self.name, n, most, type(error).__name__)
            if n >= most:
                words = f"{self.name}: {type(error).__name__} in {n} idle checks in a row"
                await self._give_up(words)
        else:
            self.unanswered = 0

    async def _give_up(self, words: str) -> None:
        """End the worker: a service stayed away."""
        await self.crash(ServiceError(f"{words}; nothing was skipped, the next start goes on there. Next: premonitor doctor"))

    async def _look_for_loss(self) -> None:
        if self.places is None:
            return
        for tp, expected in list(self.finished.items()):
            stored = await self.places.place(tp.partition)
            if stored < expected == self.finished.get(tp) == self.place.get(tp):
                self.counts["idle_gap"] += 1
                self.log.warning("%s[%d] without traffic: the store is at %d, expected %d: reading again", *tp, stored, expected)
                self.seek(tp, stored)
        if self.on_idle:
            await self.on_idle(self)

    def owns(self, topic: str) -> bool:
        """Whether a partition of the topic is ours."""
        return any(tp.topic == topic for tp in self.place)

    def lag(self) -> int:
        """Records of our partitions that are not done yet, as far as the broker told."""
        return sum(max((self.consumer.highwater(tp) or 0) - done, 0) for tp, done in self.finished.items())

    async def commit(self) -> None:
        """Commit what is done, of partitions that are ours."""
        mine = self.consumer.assignment()
        new = {tp: place for tp, place in self.finished.items() if tp in mine and self.sent.get(tp) != place}
        if not new:
            return
        try:
            async with asyncio.timeout(self.settings.patience_s):
                await self.consumer.commit(new)
        except (CommitFailedError, IllegalStateError):
            self.counts["commit_refused"] += 1  # rebalanced: the new owner repeats under the same ids
        except (KafkaError, TimeoutError) as error:
            self.counts["commit_failed"] += 1
            self.log.warning("commit failed: %s", type(error).__name__)
        else:
            self.sent.update(new)
            if self.places:
                for tp, place in new.items():
                    self.places.committed(tp.partition, place)


class _Moves(ConsumerRebalanceListener):
    """aiokafka logs and swallows what a listener raises: crash the service instead."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        await self._guard(self._intake.hand_back(revoked))

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        await self._guard(self._intake.take_over(assigned))

    async def _guard(self, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception as error:
            await self._intake.crash(error)
