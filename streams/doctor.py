"""Doctor: what a worker stands on, looked at without changing anything. Each check is a line, and each fault comes with its remedy."""

from __future__ import annotations

import asyncio
import importlib.metadata
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.codes import Codebook
from features.errors import PremonitorError, ServiceError
from models import artifact
from streams import store_redis
from streams.reader import Reach, reach
from streams.settings import Settings
from streams.topics import TOPICS, Names, described

PATIENCE_S = 20.0
"""A service that does not answer within it counts as out of reach."""
PYTHON_MIN = (3, 11)
ON_REQUEST = "premonitor doctor"


@dataclass(frozen=True, slots=True)
class Line:
    """One check. `good` None: worth knowing, no fault."""

    good: bool | None
    what: str
    remedy: str = ""
    unreachable: bool = False

    def text(self) -> str:
        mark = "–" if self.good is None else "✓" if self.good else "✗"
        return f"{mark} {self.what}" + (f"\n    {self.remedy}" if self.remedy else "")

    def document(self) -> dict[str, Any]:
        return {"good": self.good, "what": self.what, "remedy": self.remedy}


def either(good: bool, right: str, wrong: str, remedy: str) -> Line:
    """A line for a check that has two outcomes."""
    return Line(True, right) if good else Line(False, wrong, remedy)


# --- this machine -------------------------------------------------------------------------------------------------------------------


def machine() -> list[Line]:
    """Python, and the packages whose versions are pinned because their inner workings are relied on."""
    came = ".".join(map(str, sys.version_info[:3]))
    least = ".".join(map(str, PYTHON_MIN))
    lines = [either(sys.version_info >= PYTHON_MIN, f"Python {came}", f"Python {came} is too old", f"Install Python {least} or later")]
    requires = [text.partition(";")[0].strip() for text in importlib.metadata.requires("premonitor") or [] if "extra" not in text]
    return [*lines, packages(importlib.metadata.version("premonitor"), requires)]


def packages(version: str, requires: Sequence[str]) -> Line:
    """Whether the packages that premonitor pins are there in that version."""
    pinned = dict(text.split("==") for text in requires if "==" in text)
    came = {name: _installed(name) for name in pinned}
    wrong = [f"{name} is {came[name]}, expected {pinned[name]}" for name in pinned if came[name] != pinned[name]]
    right = f"premonitor {version}, {', '.join(f'{name} {number}' for name, number in came.items())}"
    return either(not wrong, right, "; ".join(wrong), "pip install --constraint requirements.lock premonitor")


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def models(paths: Sequence[Path], book: Codebook) -> list[Line]:
    """Whether each model loads."""
    lines = []
    for path in paths:
        try:
            model = artifact.load(path, book)
            lines.append(
                Line(True, f"model {model.version} loads: use case {model.use_case.name}, flagged from {model.artifact.threshold:.3f}")
            )
        except (PremonitorError, ValueError) as error:
            words = str(error) if isinstance(error, PremonitorError) else "it is not readable"
            lines.append(Line(False, f"model {path.name} does not load: {words}", "Give a file as premonitor train wrote it"))
    return lines


# --- Kafka --------------------------------------------------------------------------------------------------------------------------


async def kafka(settings: Settings) -> tuple[list[Line], dict[int, Reach]]:
    """Topics, partition counts and settings; and the reach of `facts`, as far as there is one."""
    names, facts = Names(settings.prefix), Names(settings.prefix).facts
    try:
        async with asyncio.timeout(PATIENCE_S):
            every = [names.prefix + topic.name for topic in TOPICS]
            found = await described(settings.kafka(), every)
            lines = [Line(True, f"Kafka at {settings.kafka_bootstrap} answers")]
            lines += topics(settings, {name: n for name, (n, _) in found.items()})
            lines += kept(settings, {name: config for name, (_, config) in found.items()})
            return lines, (await reach(settings, [facts]))[facts] if facts in found else {}
    except (ServiceError, TimeoutError) as error:
        return [_unreachable(f"Kafka: {error}" if str(error) else f"Kafka at {settings.kafka_bootstrap} does not answer", _KAFKA)], {}


_KAFKA = (
    "Start it, or give --kafka as clients reach it (its advertised listener). TLS and users: PREMONITOR_KAFKA_TLS, _USER, _PASSWORD_FILE"
)
_REDIS = "Start it, or give --redis redis://HOST:PORT/0 (rediss:// with TLS). Users: PREMONITOR_REDIS_USER, PREMONITOR_REDIS_PASSWORD_FILE"


def _unreachable(words: str, remedy: str) -> Line:
    return Line(False, words.partition(f" {ON_REQUEST}")[0].removesuffix("."), remedy, unreachable=True)


def topics(settings: Settings, counts: dict[str, int]) -> list[Line]:
    """Existence and partition counts."""
    names = Names(settings.prefix)
    ours = [names.controls, names.facts, names.scores, names.alerts, names.dead_letters]
    prefix = f" --prefix {settings.prefix}" if settings.prefix else ""
    create = f"premonitor topics --create --kafka {settings.kafka_bootstrap}{prefix}"
    lines = []
    missing = [name for name in ours if name not in counts]
    if missing:
        lines.append(Line(False, f"topics missing: {', '.join(missing)}", create))
    feeds = {name: counts[name] for name in names.feeds if name in counts}
    if not feeds:
        lines.append(Line(False, "no feed has a topic: nothing can be admitted", create))
    elif len(feeds) < len(names.feeds):
        lines.append(Line(None, f"feeds without a topic are not read: {', '.join(name for name in names.feeds if name not in feeds)}"))
    if len(set(feeds.values())) > 1:
        told = ", ".join(f"{name} {n}" for name, n in feeds.items())
        lines.append(
            Line(None, f"feeds have different partition counts ({told}): let one worker run --stage admit, so that time stays in order")
        )
    if names.facts in counts:
        n = counts[names.facts]
        wrong = [f"{name} has {counts[name]}" for name in (names.scores, names.alerts) if counts.get(name, n) != n]
        remedy = f"Counts are chosen once. In a new generation: premonitor topics --create --prefix NEW. --partitions {n}"
        if not missing or not wrong:
            lines.append(
                either(
                    not wrong, f"facts, scores and alerts have {n} partitions each", f"facts has {n} partitions, {', '.join(wrong)}", remedy
                )
            )
    if counts.get(names.controls, 1) != 1:
        words = f"{names.controls} has {counts[names.controls]} partitions: activations and ticks would have no one order"
        lines.append(Line(False, words, "In a new generation: premonitor topics --create --prefix NEW."))
    return lines


def kept(settings: Settings, came: dict[str, dict[str, str]]) -> list[Line]:
    """Whether the broker stamps and keeps our topics as it must. Feeds are the site's own matter."""
    names, lines, good = Names(settings.prefix), [], []
    for topic in TOPICS:
        name = names.prefix + topic.name
        if name in names.feeds or name not in came:
            continue
        if not came[name]:
            lines.append(Line(None, f"{name}: this user may not see its settings; they must be {topic.config}"))
            continue
        wanted = {**topic.config, "cleanup.policy": "delete"}
        wrong = {key: value for key, value in wanted.items() if came[name].get(key) != value}
        if not wrong:
            good.append(name)
            continue
        told = ", ".join(f"{key} is {came[name].get(key)}, must be {value}" for key, value in wrong.items())
        change = ",".join(f"{key}={value}" for key, value in wrong.items())
        tool = f"kafka-configs.sh --bootstrap-server {settings.kafka_bootstrap} --alter --entity-type topics --entity-name {name}"
        lines.append(Line(False, f"{name}: {told}", f"{tool} --add-config {change}"))
    if names.facts in good:
        lines.insert(0, Line(True, f"{names.facts} is stamped by the broker (LogAppendTime) and kept for ever"))
    others = [name for name in good if name != names.facts]
    return [*lines, Line(True, f"kept for ever: {', '.join(others)}")] if others else lines


# --- Redis --------------------------------------------------------------------------------------------------------------------------


async def redis(settings: Settings, facts: dict[int, Reach], book: Codebook) -> list[Line]:
    """The server's settings, and the state against the log."""
    client = store_redis.connect(settings)
    try:
        async with asyncio.timeout(PATIENCE_S):
            server, about = await store_redis.about(client, settings)
            lines = [*server_lines(server, settings), *state_lines(settings, about, len(facts), book.content_hash)]
            async with store_redis.service_errors(settings):
                stores = [store_redis.RedisStore(client, prefix=settings.prefix, kind=kind) for kind in ("f", "a")]
                places = {p: [await store.place(p) for store in stores] for p in facts} if about else {}
            return [*lines, *place_lines(facts, places)]
    except (ServiceError, TimeoutError) as error:
        return [_unreachable(str(error) or "Redis does not answer", _REDIS)]
    finally:
        await client.aclose()


def server_lines(server: dict[str, Any], settings: Settings) -> list[Line]:
    """From the server's INFO, which a hosted Redis gives where it refuses CONFIG."""
    name = "Valkey" if "valkey_version" in server else "Redis"
    policy, file = server.get("maxmemory_policy"), server.get("aof_enabled")
    lines = [Line(True, f"{name} {server.get('valkey_version') or server.get('redis_version')} answers")]
    evicts = f"maxmemory-policy is {policy}: it may evict histories"
    if policy is None:
        lines.append(Line(None, "maxmemory-policy is not told by this server: see to it that it is noeviction"))
    elif policy != "noeviction" and settings.allow_eviction:
        lines.append(Line(None, f"{evicts}; allowed by PREMONITOR_ALLOW_EVICTION"))
    else:
        lines.append(
            either(policy == "noeviction", "nothing is evicted (maxmemory-policy noeviction)", evicts, "Set maxmemory-policy noeviction")
        )
    if file is None:
        lines.append(Line(None, "appendonly is not told by this server: without it a restart of Redis reads the whole log again"))
    else:
        words = "appendonly is off: after a restart of Redis the whole log is read again"
        lines.append(
            either(bool(file), "histories survive a restart (appendonly yes)", words, "Set appendonly yes, with appendfsync everysec")
        )
    return lines


def state_lines(settings: Settings, about: dict[str, str], partitions: int, codes: str) -> list[Line]:
    """What the state under the prefix was written with, against what is there now."""
    if not about:
        return [Line(True, f"no state yet under prefix '{settings.prefix}'")]
    lines = []
    if partitions and about.get("partitions") != str(partitions):
        words = f"facts has {partitions} partitions, state was written with {about.get('partitions')}"
        lines.append(
            Line(False, words, "Partition counts are chosen once: go back to the old topic, or start a new generation (another --prefix)")
        )
    if about.get("codes") != codes:
        words = f"state was written with code sets {about.get('codes')}, this version has {codes}"
        lines.append(Line(False, words, "Install the version that wrote it, or start a new generation (another --prefix)"))
    if about.get("format") != "1":
        words = f"state has format {about.get('format')}, this version reads 1"
        lines.append(Line(False, words, "Install the version that wrote it, or start a new generation (another --prefix)"))
    return lines or [Line(True, f"state was written with {about['partitions']} partitions and code sets {codes}, as now")]


def place_lines(facts: dict[int, Reach], places: dict[int, list[int]]) -> list[Line]:
    """Whether the log still holds what the state needs: beyond its end there is another log, before its beginning nothing any more."""
    beyond = [f"{p} (state at {max(places[p]):,}, log ends at {facts[p].end:,})" for p in places if max(places[p]) > facts[p].end]
    before = [f"{p} (state at {min(places[p]):,}, log begins at {facts[p].begin:,})" for p in places if min(places[p]) < facts[p].begin]
    lines = []
    if beyond:
        words = f"state is ahead of facts in partition {', '.join(beyond)}: another cluster, or the topic was made anew"
        lines.append(Line(False, words, "Use another --prefix, or drop the state: premonitor rebuild --all"))
    if before:
        words = f"facts that the state lacks are gone in partition {', '.join(before)}"
        lines.append(Line(False, words, "Restore Redis from its own backup, or start a new generation from an archive"))
    return lines or ([Line(True, f"state and facts agree in {len(places)} partitions")] if places else [])


async def examine(settings: Settings, paths: Sequence[Path], book: Codebook) -> list[Line]:
    """All checks, in the order in which they build on each other."""
    lines, facts = await kafka(settings)
    return [*machine(), *lines, *await redis(settings, facts, book), *models(paths, book)]
