"""Reads events that are in the form of our feeds already, as JSON lines: what `premonitor schema` describes, one event a line.

    folder      labs.jsonl, encounters.jsonl.gz, …: a file for each feed, named as the feed
    one file    lines of any feed, in the source's order: {"feed": "labs", "event": {…}}, or the event itself with "feed" or "kind" in it

Only fields of the contract are read; a line of spaces is none. Each other line that cannot be an event is rejected with its reason.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from features.decode import RECORD_BYTES_MAX, decode
from features.errors import InputError, Rejected
from features.event import FEED_OF_KIND, FEEDS

Told = tuple[str, dict[str, Any]]
ENDINGS = (".jsonl", ".jsonl.gz")
UNKNOWN = "unknown"
"""The feed under which a line is counted that names none of ours."""

_FIELDS = {feed: frozenset(cls.model_fields) for feed, cls in FEEDS.items()}
_LINE_BYTES_MAX = 2 * RECORD_BYTES_MAX
_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Line(msgspec.Struct):
    """A line that names its feed."""

    feed: str = ""
    kind: str = ""
    event: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_line = msgspec.json.Decoder(_Line).decode
NO_FEED = "no-feed"
_EXPECTED = f'say the feed of the whole file, or in each line as {{"feed": "labs", "event": {{…}}}}; feeds: {", ".join(FEEDS)}'


def events(src: Path) -> Iterator[Told]:
    """Tell JSON lines: (feed, event), or ("rejected", {feed, reason}) for a line that cannot be an event.

    Args:
        src: A folder with a file for each feed, one such file, or a file whose lines name their feed. Ending in .gz, it is packed.
    Raises:
        InputError: a folder without such files or with one that no feed is named like; a damaged file.
    """
    if not src.is_dir():
        return _file(src, _feed_of(src))
    paths = sorted(path for path in src.iterdir() if path.name.endswith(ENDINGS))
    if not paths:
        raise InputError(f"{src} has no *.jsonl or *.jsonl.gz: name a file for each feed, such as labs.jsonl")
    for path in paths:
        if _feed_of(path) is None:
            raise InputError(
                f"{path} is named like no feed: rename it, or give it alone if its lines name theirs. Feeds: {', '.join(FEEDS)}"
            )
    return (told for path in paths for told in _file(path, _feed_of(path)))


def _feed_of(path: Path) -> str | None:
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    return name if name in FEEDS else None


def _file(path: Path, feed: str | None) -> Iterator[Told]:
    try:
        with cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb") as lines:
            for line in _lines(lines):
                yield _told(line, feed)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: is it whole? Copy it anew ({type(error).__name__})") from None


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines; of one without an end only as much as shows that it is too long."""
    while line := file.readline(_LINE_BYTES_MAX):
        rest = line
        while not rest.endswith(b"\n") and (rest := file.readline(_LINE_BYTES_MAX)):
            pass
        if line.strip():
            yield line


def _told(line: bytes, feed: str | None) -> Told:
    named = feed or UNKNOWN
    try:
        if feed is None:
            named, line = unwrap(line)
        decode(named, line.strip())  # the verdict of admission, with its reasons
    except Rejected as rejected:
        return "rejected", {"feed": named, "reason": rejected.reason}
    return named, {key: msgspec.json.decode(raw) for key, raw in _object(line).items() if key in _FIELDS[named]}


def unwrap(line: bytes) -> tuple[str, bytes]:
    """(feed, event) of a line that names its feed: the event under `event`, or the line itself.

    Raises:
        Rejected: it names none of ours, or is no JSON object.
    """
    if len(line) >= _LINE_BYTES_MAX:
        raise Rejected("too-large", f"at most {RECORD_BYTES_MAX} bytes are read")
    try:
        found = _line(line)
    except msgspec.ValidationError:
        raise Rejected(NO_FEED, _EXPECTED) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Rejected("not-json", "the line is not one JSON object in UTF-8") from None
    feed = found.feed or FEED_OF_KIND.get(found.kind, "")
    if feed not in FEEDS:
        raise Rejected(NO_FEED, _EXPECTED)
    return feed, line if isinstance(found.event, msgspec.UnsetType) else bytes(found.event)
