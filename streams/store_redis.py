"""The store in Redis or Valkey: the only file that imports redis.

Keys of one partition share the hash tag `{partition}`, so that histories and place live and fail over together:
`{prefix}{kind}:{7}:place`, `:state`, `:lengths`, `:newest`, `:booked`, and `:h:PATIENT` for each history.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

import redis.asyncio as aioredis
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from features.errors import InputError, ServiceError
from streams.settings import Settings
from streams.store import Damaged, Gap, Loaded, Write, decode_state

TROUBLE = (exceptions.RedisError, OSError, asyncio.TimeoutError)
"""What a worker retries: it means that the outcome of the call is not known, and the call is safe to repeat."""


def connect(settings: Settings) -> aioredis.Redis:
    """A client that retries nothing by itself: the default repeats a cut write."""
    options: dict[str, Any] = {"ssl_ca_certs": str(settings.redis_ca_file)} if settings.redis_ca_file else {}
    try:
        return aioredis.Redis.from_url(
            settings.redis_url,
            username=settings.redis_user,
            password=settings.redis_secret(),
            retry=Retry(NoBackoff(), 0),
            socket_timeout=5,
            socket_connect_timeout=2,
            max_connections=8,
            **options,
        )
    except ValueError as error:
        raise InputError(f"redis: {error}; expected redis://HOST:PORT/0 or rediss://HOST:PORT/0") from None


@asynccontextmanager
async def service_errors(settings: Settings) -> AsyncIterator[None]:
    """Redis trouble as a sentence and exit code 3."""
    try:
        yield
    except exceptions.AuthenticationError:
        raise ServiceError(
            f"{_where(settings)} refuses the user or password. Set PREMONITOR_REDIS_USER and PREMONITOR_REDIS_PASSWORD"
        ) from None
    except TROUBLE as error:
        raise ServiceError(f"Redis at {_where(settings)} not reachable ({type(error).__name__}). premonitor doctor --redis URL") from None


def _where(settings: Settings) -> str:
    return settings.redis_url.rpartition("@")[2].partition("?")[0].removeprefix("redis://").removeprefix("rediss://")


async def check(client: aioredis.Redis, settings: Settings, *, partitions: int, codes: str, index_times: str) -> None:
    """Refuse a Redis that would lose histories or that holds another generation's.

    Raises:
        InputError: eviction, another partition count, other code sets, other index times.
        ServiceError: out of reach.
    """
    async with service_errors(settings):
        policy = (await client.info("memory")).get("maxmemory_policy", "noeviction")
        about = {"partitions": str(partitions), "codes": codes, "format": "1", "index_times": index_times}
        key = f"{settings.prefix}about"
        for name, value in about.items():
            await client.hsetnx(key, name, value)
        stored = {_text(k): _text(v) for k, v in (await client.hgetall(key)).items()}
    if policy != "noeviction" and not settings.allow_eviction:
        raise InputError(
            f"Redis keeps maxmemory-policy {policy}: it may evict histories. Set noeviction, or start with --allow-eviction (demo only)"
        )
    if stored["partitions"] != about["partitions"]:
        raise InputError(
            f"facts has {partitions} partitions, state was written with {stored['partitions']}. "
            "Partition counts are chosen once: see streams/README.md, Repartition"
        )
    if stored["index_times"] != about["index_times"]:
        raise InputError(
            f"the models ask at index times {about['index_times']}, the state waits for visits at {stored['index_times']}: "
            "visits told earlier would be missed. Start a new generation (another --prefix)"
        )
    if stored != about:
        raise InputError(
            f"the state under prefix '{settings.prefix}' was written with other code sets: start a new generation (another --prefix)"
        )


async def about(client: aioredis.Redis, settings: Settings) -> tuple[dict[str, Any], dict[str, str]]:
    """What the server says of itself, and what the state under the prefix was written with: empty where there is none."""
    async with service_errors(settings):
        server: dict[str, Any] = await client.info()
        stored = await client.hgetall(f"{settings.prefix}about")
    return server, {_text(k): _text(v) for k, v in stored.items()}


_FORGET = """
for _, name in ipairs(redis.call('HKEYS', KEYS[3])) do redis.call('UNLINK', ARGV[1] .. name) end
for i = 2, #ARGV do redis.call('UNLINK', ARGV[i]) end
return redis.call('UNLINK', unpack(KEYS))
"""
"""In one piece: a worker that finds the gap at once must not append to what is about to be dropped. ARGV: histories that a scan found."""


class RedisStore:
    """`streams.store.Store` over one client. `kind` keeps histories of facts (`f`) and of scores (`a`) apart."""

    def __init__(self, client: aioredis.Redis, *, prefix: str, kind: str = "f") -> None:
        self._client, self._base = client, f"{prefix}{kind}:".encode()
        self._script = files("streams").joinpath("apply.lua").read_text(encoding="utf-8")
        self._sha: str | None = None
        self._cursor: dict[int, int] = {}

    def _key(self, partition: int, name: bytes) -> bytes:
        return b"%b{%d}:%b" % (self._base, partition, name)

    async def apply(self, writes: Sequence[Write]) -> list[dict[bytes, bytes] | Exception]:
        if self._sha is None:
            self._sha = await self._client.script_load(self._script)
        pipe = self._client.pipeline(transaction=False)
        for w in writes:
            self._call(pipe, w)
        answers: list[Any] = await pipe.execute(raise_on_error=False)
        if any(isinstance(a, exceptions.NoScriptError) for a in answers):
            self._sha = None  # a restarted server forgot it; the calls are safe to repeat
            return await self.apply(writes)
        outcomes: list[dict[bytes, bytes] | Exception] = []
        for w, answer in zip(writes, answers, strict=True):
            if not isinstance(answer, Exception) and answer[0] == b"AHEAD":
                outcomes += await self.apply([w.rest(int(answer[1]))])
            else:
                outcomes.append(_outcome(w, answer))
        return outcomes

    def _call(self, pipe: Any, w: Write) -> None:
        names = list(w.patients)
        prefix = self._key(w.partition, b"h:")
        keys = [self._key(w.partition, n) for n in (b"place", b"state", b"lengths", b"newest", b"booked")]
        arguments: list[Any] = [w.since, w.until, w.state, w.forget_us, len(w.booked), w.least, len(prefix)]
        for due_us, patient in w.booked:
            arguments += (due_us, patient)
        for told in w.patients.values():  # in one argument: the client's work goes by their number
            arguments.append(b"%d %d %b" % (told.oldest_us, told.newest_index_us, told.records))
        pipe.execute_command("EVALSHA", self._sha, 5 + len(names), *keys, *[prefix + n for n in names], *arguments)

    async def load(self, partition: int) -> Loaded:
        pipe = self._client.pipeline(transaction=True)
        pipe.get(self._key(partition, b"place"))
        pipe.get(self._key(partition, b"state"))
        pipe.zrange(self._key(partition, b"booked"), 0, -1)
        place, state, booked = await pipe.execute()
        times = (member.split(b":", 1) for member in booked)
        whole = state is not None  # a place without its state is worth nothing: read again from the beginning
        return Loaded(int(place or 0) if whole else 0, decode_state(state, [(int(due_us), patient) for due_us, patient in times]))

    async def place(self, partition: int) -> int:
        place, state = await self._client.mget(self._key(partition, b"place"), self._key(partition, b"state"))
        return int(place or 0) if state is not None else 0

    async def audit(self, partition: int) -> list[bytes]:
        answer: Any = await self._client.hscan(self._key(partition, b"lengths"), self._cursor.get(partition, 0), count=200)
        cursor, lengths = answer
        self._cursor[partition] = cursor
        if not lengths:
            return []
        pipe = self._client.pipeline(transaction=False)
        stored: dict[bytes, bytes] = lengths
        for patient in stored:
            pipe.strlen(self._key(partition, b"h:") + patient)
        found = zip(stored.items(), await pipe.execute(), strict=True)
        return [patient for (patient, expected), length in found if length < int(expected)]  # longer: appended to since the scan

    async def replace(self, partition: int, patient: bytes, history: bytes, place: int) -> bool:
        async with self._client.pipeline(transaction=True) as pipe:
            await pipe.watch(self._key(partition, b"place"))
            if int(await pipe.get(self._key(partition, b"place")) or 0) != place:
                return False
            pipe.multi()  # type: ignore[no-untyped-call]
            pipe.set(self._key(partition, b"h:") + patient, history)
            pipe.hset(self._key(partition, b"lengths"), patient.decode(), str(len(history)))
            try:
                await pipe.execute()
            except exceptions.WatchError:
                return False
        return True

    async def forget(self, partition: int) -> None:
        prefix = self._key(partition, b"")
        doomed = [key async for key in self._client.scan_iter(match=_literal(prefix) + b"*", count=1_000)]
        keys = [self._key(partition, n) for n in (b"place", b"state", b"lengths", b"newest", b"booked")]
        client: Any = self._client
        await client.execute_command("EVAL", _FORGET, len(keys), *keys, self._key(partition, b"h:"), *doomed)
        self._cursor.pop(partition, None)

    async def patients(self, partition: int) -> list[bytes]:
        """Everybody who has a history in a partition."""
        names: Any = await self._client.hkeys(self._key(partition, b"lengths").decode())
        return list(names)

    async def stored(self, partition: int, patients: Sequence[bytes]) -> list[tuple[bytes, int, int | None]]:
        """(history, length that was written, latest index time) of some patients, all at one moment."""
        lengths, newest = self._key(partition, b"lengths"), self._key(partition, b"newest")
        pipe: Any = self._client.pipeline(transaction=True)
        for patient in patients:
            pipe.get(self._key(partition, b"h:") + patient)
            pipe.execute_command("HGET", lengths, patient)
            pipe.execute_command("HGET", newest, patient)
        answers: list[Any] = await pipe.execute()
        three = zip(answers[::3], answers[1::3], answers[2::3], strict=True)
        return [(history or b"", int(length or 0), None if index is None else int(index)) for history, length, index in three]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _literal(text: bytes) -> bytes:
    return b"".join(b"\\" + bytes((c,)) if c in b"*?[]\\" else bytes((c,)) for c in text)


def _outcome(w: Write, answer: Any) -> dict[bytes, bytes] | Exception:
    if isinstance(answer, Exception):
        return answer
    if answer[0] == b"GAP":
        return Gap(int(answer[1]))
    names = list(w.patients)
    if answer[4]:
        return Damaged([names[i - 1] for i in answer[4]])
    return {names[i - 1]: history for i, history in zip(answer[2], answer[3], strict=True)}
