"""A site's own log as what the demo plays: its events told again, the last stretch where it is long."""

from __future__ import annotations

import numpy as np

from features.clock import from_us, rfc3339
from features.errors import InputError
from features.log import Log
from features.retell import is_told, retell
from streams.demo_patients import Source, as_source

NAME = "REPLAY"
"""Of the source, wherever it is shown: nobody may take these alerts for news."""
EVENTS_MAX = 20_000
"""That are played at most: the embedded broker forgets what lies behind its 5 MiB a partition."""

FAST = "– so fast, feeds overtake each other: scores are proved against what arrived here. Those of the log itself: premonitor backfill"
"""An hour of history passes in milliseconds: which of two topics is read first decides what was known."""


def heading(log: Log) -> str:
    """What stands above everything that is shown."""
    return f"{NAME} of {log.path.name} ({log.about.get('source') or 'no source given'}). Nothing leaves this machine"


def source(log: Log, *, events_max: int = EVENTS_MAX) -> tuple[Source, str]:
    """The events of a log in the order in which they were known, and a sentence where not all are played, else an empty one.

    Known time is the log's own stamp: in an archive of a live log that is when it was admitted, whatever the source said.

    Raises:
        InputError: nothing was ever told.
    """
    stamps, seqs = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for file in log.bucket_files():
        bucket = log.facts(file)
        own = bucket.heads.merge == 0  # what a merge carried is told where it came from, and goes over again by itself
        stamps.append(bucket.heads.stamp_us[own])
        seqs.append(bucket.heads.place[own])
    stamp, seq = np.concatenate(stamps), np.concatenate(seqs)
    if not len(stamp):
        raise InputError(f"{log.path} holds no events: there is nothing to play. What an import rejected, and why: {log.path}/log.json")
    from_stamp_us = int(np.partition(stamp, -events_max)[-events_max]) if len(stamp) > events_max else int(stamp.min())
    told = []
    for record in log.records(since=int(seq[stamp >= from_stamp_us].min())):
        if record.patient_id is not None and is_told(record.value) and record.stamp_us >= from_stamp_us:
            feed, event = retell(record.patient_id, record.value)
            told.append((record.stamp_us, feed, {**event, "known_time": rfc3339(record.stamp_us)}))
    told.sort(key=lambda entry: entry[0])
    played = as_source(0, NAME, "own history", ((feed, event) for _, feed, event in told[-events_max:]))
    if len(stamp) <= events_max:
        return played, ""
    since = f"{from_us(from_stamp_us):%-d %b %Y}"
    return played, (
        f"– of {len(stamp):,} events the last {events_max:,} are played, known since {since}: the embedded broker holds no more. "
        "What was known before is missing here, so these risks are not those of the whole log"
    )
