"""What an intake hands to an agent: the records of one partition and the future of the report on them. And where it keeps its progress."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from streams.bus import Ack

if TYPE_CHECKING:
    from streams.intake import Intake


class Places(Protocol):
    """Where an intake's progress is kept beside Kafka's offsets; admission has none."""

    async def place(self, partition: int) -> int:
        """First place that is not stored."""

    def let_go(self, partition: int) -> None:
        """The partition is read anew or was revoked."""

    def committed(self, partition: int, place: int) -> None:
        """Everything before `place` is committed."""


class Batch:
    """Records of one partition, handed to an agent once. Covers offsets `[start, next)`."""

    __slots__ = ("blamed", "epoch", "intake", "next", "partition", "records", "report", "start", "times", "tp")

    def __init__(self, intake: Intake, tp: Any, offsets: tuple[int, int], records: Sequence[Any], times: Sequence[int] = ()) -> None:
        self.intake, self.tp, self.partition, self.records, self.times = intake, tp, tp.partition, records, times
        self.start, self.next = offsets
        self.epoch = intake.epochs[tp]
        self.report: asyncio.Future[Sequence[Ack]] = asyncio.get_running_loop().create_future()
        self.blamed: bool | None = None
        """Whether this batch's failure is what made its partition go back."""

    @property
    def stale(self) -> bool:
        """The partition was taken away or read anew since."""
        return self.intake.epochs.get(self.tp) != self.epoch

    @property
    def trouble(self) -> bool:
        """It was reported as failed, or nobody waits for its report any more."""
        return self.report.cancelled() or (self.report.done() and self.report.exception() is not None)

    def done(self, acks: Sequence[Ack] = ()) -> None:
        """All outputs of the batch are on their way."""
        if not self.report.done():
            self.report.set_result(acks)

    def failed(self, error: Exception) -> None:
        """Go back here and now: the agent must not take up a later poll of these partitions first."""
        if self.report.done():
            return
        self.blamed = not self.stale
        if self.blamed:
            self.intake.rewind(self.tp)
        self.report.set_exception(error)


def fresh(poll: Iterable[Batch]) -> list[Batch]:
    """The batches of a poll that are still ours; the stale ones are reported as done without effect."""
    kept = []
    for batch in poll:
        if batch.stale:
            batch.done()
        else:
            kept.append(batch)
    return kept
