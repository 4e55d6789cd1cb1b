"""What was issued: the score records on their topic."""

from __future__ import annotations

from features.progress import Progress, unheard
from models import score
from streams.reader import read_topic
from streams.settings import Settings
from streams.topics import Names


async def issued(settings: Settings, progress: Progress = unheard) -> list[tuple[str, bytes]]:
    """(score id, bytes) of every different record, in the order of its first appearance in its partition."""
    unique: dict[bytes, None] = {}
    async for records in read_topic(settings, Names(settings.prefix).scores):
        unique.update(dict.fromkeys(r.value for r in records))
        progress(len(unique))
    return [(score.decode(value).score_id, value) for value in unique]
