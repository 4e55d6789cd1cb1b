"""The store: memory, a real Redis and the Redis in Python give the same answers to everything that a worker can ask."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

import pytest
import redis.asyncio as aioredis
from fakeredis import TcpFakeServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features import fact
from features.bookings import PartitionState
from features.clock import ALWAYS_US, NEVER_US
from features.pack import Told
from streams.settings import Settings
from streams.store import Damaged, Gap, MemoryStore, Store, Write, encode_state
from streams.store_redis import RedisStore, connect
from tests.live.services import MissingTool, Redis, free_port

CHECKED = settings(max_examples=100, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))
FEWER = settings(CHECKED, max_examples=15)
T = TypeVar("T")
T_US = 1_777_798_800_000_000
NAMES = [b"p", b"with space", b"a:b", b"{7}", b"}{", b"*?[x]\\", "Müller-Ωmega 😀".encode(), b"h:p", b"\0", b"x" * 256, b"place", b"5:p"]
PATIENTS = len(NAMES)
_prefixes = (f"t{n}." for n in itertools.count())
Url = str


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Url]:
    """A redis-server of this file's own."""
    service = Redis(tmp_path_factory.mktemp("redis"))
    try:
        service.start()
    except MissingTool as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(str(missing))
        pytest.skip(str(missing))
    yield service.url
    service.stop()


@pytest.fixture(scope="module")
def fake() -> Iterator[Url]:
    """The Redis in Python that the demo uses."""
    server = TcpFakeServer(("127.0.0.1", free_port()), server_type="redis")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"redis://127.0.0.1:{server.server_address[1]}/0"
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture(params=["real", "fake"])
def url(request: pytest.FixtureRequest) -> Url:
    return str(request.getfixturevalue(request.param))


def run(url: Url, work: Callable[[aioredis.Redis, RedisStore], Awaitable[T]]) -> T:
    """Work with a new store under a prefix of its own."""

    async def main() -> T:
        client = connect(Settings(redis_url=url))
        try:
            return await work(client, RedisStore(client, prefix=next(_prefixes)))
        finally:
            await client.aclose()

    return asyncio.run(main())


def record(patient: bytes, place: int) -> bytes:
    """What a partition's place holds: a fact, every third one with a name behind it."""
    head = fact.pack(identity=fact.fact_id("lab", f"{place}"), event_us=place, concept=20, place=place)
    return head + (fact.name_records(patient, place=place) if place % 3 == 0 else b"")


def write(since: int, until: int, *, oldest: Sequence[int] = (ALWAYS_US,), newest: Sequence[int] = (ALWAYS_US,), **more: Any) -> Write:
    """The batch of places [since, until); place k belongs to patient k². `oldest` and `newest` are dealt out in turn."""
    told: dict[bytes, Told] = {}
    for place in range(since, until):
        name = NAMES[place * place % PATIENTS]
        told.setdefault(name, Told(oldest_us=oldest[len(told) % len(oldest)], newest_index_us=newest[len(told) % len(newest)]))
        told[name].records += record(name, place)
    state = encode_state(PartitionState(control_us=until, activations=[{"id": 1, "use_case": "Ω", "place": since}]))
    return Write(**{"partition": 0, "since": since, "until": until, "patients": told, "state": state, **more})


def plain(answer: Any) -> Any:
    """An answer in a form that can be compared."""
    match answer:
        case Gap():
            return "gap", answer.place
        case Damaged():
            return "damaged", answer.patients
    return answer


class Pair:
    """The same calls to both stores; each answer must be equal."""

    def __init__(self, client: aioredis.Redis, redis: RedisStore) -> None:
        self.client, self.redis, self.memory = client, redis, MemoryStore()

    async def both(self, call: Callable[[Store], Awaitable[Any]]) -> Any:
        expected, found = plain(await call(self.memory)), plain(await call(self.redis))
        assert found == expected
        return expected

    async def apply(self, *writes: Write) -> list[Any]:
        expected, found = await self.memory.apply(writes), await self.redis.apply(writes)
        assert [plain(a) for a in found] == [plain(a) for a in expected]
        return [plain(a) for a in expected]

    def key(self, partition: int, patient: bytes) -> bytes:
        return self.redis._key(partition, b"h:") + patient

    async def damage(self, partition: int, patient: bytes, length: int | None) -> None:
        """Cut a history to a length; None: it is gone."""
        stored = self.memory.partitions[partition].histories
        if patient not in stored:
            return
        if length is None:
            del stored[patient]
            await self.client.delete(self.key(partition, patient))
        else:
            stored[patient] = stored[patient][:length]
            await self.client.set(self.key(partition, patient), stored[patient])

    async def audited(self, partition: int) -> list[bytes]:
        found = await self.redis.audit(partition)
        while self.redis._cursor[partition]:
            found += await self.redis.audit(partition)
        assert sorted(found) == await self.memory.audit(partition)
        return sorted(found)


times = st.sampled_from([ALWAYS_US, NEVER_US, T_US, T_US + 1, T_US - 1, -1, 0])
deals = st.lists(times, min_size=1, max_size=3)
bookings = st.lists(st.tuples(st.sampled_from([T_US - 1, T_US, T_US + 1, -5, 0]), st.sampled_from(NAMES)), max_size=4)
steps = st.tuples(
    st.sampled_from(["write"] * 8 + ["again"] * 4 + ["gap", "damage", "replace", "audit", "load", "load", "forget", "flush", "stale"]),
    st.integers(0, 2), st.integers(0, 14), st.integers(1, 14), deals, deals, bookings, st.sampled_from([ALWAYS_US, T_US - 1, T_US]),
)  # fmt: skip


async def walk(pair: Pair, told: list[Any]) -> None:
    """Any sequence of what can happen."""
    damaged = False
    for what, partition, back, n, oldest, newest, booked, forget_us in told:
        place = await pair.memory.place(partition)
        if damaged:
            oldest = [ALWAYS_US]  # a repeat that asks for nobody looks at nobody
        more = {"partition": partition, "oldest": oldest, "newest": newest, "booked": booked, "forget_us": forget_us}
        match what:
            case "write":
                await pair.apply(write(place, place + n, **more), write(0, n, **more | {"partition": partition + 3}))
            case "again":  # all of it stored, or a part
                since = max(place - back, 0)
                await pair.apply(write(since, since + n, **more))
            case "gap":
                assert await pair.apply(write(place + n, place + n + 3, **more)) == [("gap", place)]
            case "stale":  # packed with the state of a later place than the store has
                await pair.apply(write(max(place - back, 0), place + n, exact_from=place + n - 7, **more))
            case "damage":
                await pair.damage(partition, NAMES[back % PATIENTS], [None, 0, 64, 1][n % 4])
                damaged = True
            case "replace":
                mended = (partition, NAMES[back % PATIENTS], b"x" * 64 * n, place - n % 2)
                await pair.both(lambda s, mended=mended: s.replace(*mended))
            case "audit":
                await pair.audited(partition)
            case "load":
                await pair.both(lambda s, p=partition: s.load(p))
            case "forget":
                await pair.both(lambda s, p=partition: s.forget(p))
            case "flush":
                await pair.client.script_flush()
        await pair.both(lambda s, p=partition: s.place(p))
    for partition in range(6):
        await pair.both(lambda s, p=partition: s.load(p))
        await pair.audited(partition)


@CHECKED
@given(st.lists(steps, max_size=25))
def test_memory_and_redis_give_the_same_answers(real: Url, told: list[Any]) -> None:
    """Writes, repeats, overlaps, gaps, damage, repair, audits, forgotten scripts and partitions, in any order."""
    run(real, lambda client, redis: walk(Pair(client, redis), told))


@FEWER
@given(st.lists(steps, max_size=15))
def test_memory_and_the_redis_in_python_give_the_same_answers(fake: Url, told: list[Any]) -> None:
    """All but the forgotten scripts: it closes the connection behind every error."""
    told = [step for step in told if step[0] != "flush"]
    run(fake, lambda client, redis: walk(Pair(client, redis), told))


def test_a_batch_is_stored_once(url: Url) -> None:
    """Told again in whole, in part, or from within: nothing is appended twice, what is new is, and a gap stores nothing."""

    async def work(client: aioredis.Redis, redis: RedisStore) -> None:
        pair = Pair(client, redis)
        first = await pair.apply(write(0, 10))
        assert await pair.apply(write(0, 10)) == first, "all of it was stored: the histories as they are"
        await pair.apply(write(4, 17))
        assert await pair.apply(write(18, 19)) == [("gap", 17)]
        (whole,) = await pair.apply(write(0, 17))
        names = {NAMES[k * k % PATIENTS] for k in range(17)}
        assert whole == {n: b"".join(record(n, k) for k in range(17) if NAMES[k * k % PATIENTS] == n) for n in names}

    run(url, work)


@pytest.mark.parametrize(("oldest", "returned"), [(T_US - 1, True), (T_US, False), (NEVER_US, False), (ALWAYS_US, True)])
def test_both_edges_of_what_is_needed(url: Url, oldest: int, returned: bool) -> None:
    """A history is given back when a fact is earlier than the latest index time before the batch, or where that is said."""

    async def work(client: aioredis.Redis, redis: RedisStore) -> None:
        pair = Pair(client, redis)
        assert await pair.apply(write(0, 1, oldest=[NEVER_US], newest=[T_US])) == [{}]
        assert await pair.apply(write(1, 2, oldest=[NEVER_US], newest=[T_US + 9])) == [{}]
        (found,) = await pair.apply(write(2, 13, oldest=[oldest], newest=[T_US - 5]))
        assert (NAMES[0] in found) == returned

    run(url, work)


def test_thousands_of_patients_in_one_call(url: Url) -> None:
    """2,500 patients, more than a script may unpack at once: all are appended and all come back, then all are forgotten."""

    async def work(client: aioredis.Redis, redis: RedisStore) -> None:
        pair, n = Pair(client, redis), 2_500
        told = {b"p%d" % k: Told(record(b"x", k), ALWAYS_US, T_US + k) for k in range(n)}
        booked = [(T_US + k, b"p%d" % k) for k in range(n)]
        (found,) = await pair.apply(Write(0, 0, n, told, "{}", booked))
        assert list(found) == list(told)
        again = {name: Told(record(b"x", n), T_US + n // 2, ALWAYS_US) for name in told}
        (found,) = await pair.apply(Write(0, n, n + 1, again, "{}"))
        assert list(found) == [b"p%d" % k for k in range(n // 2 + 1, n)]
        assert len((await pair.both(lambda s: s.load(0))).state.booked) == n
        for name in (b"p0", b"p999", b"p2499"):
            await pair.damage(0, name, 64)
        assert await pair.audited(0) == [b"p0", b"p2499", b"p999"]
        await pair.both(lambda s: s.forget(0))
        assert [key async for key in client.scan_iter(match=redis._base + b"*")] == []

    run(url, work)


@pytest.mark.parametrize("partitions", [1, 3])
def test_a_server_that_forgot_the_script_is_told_again(real: Url, partitions: int) -> None:
    """SCRIPT FLUSH before each call: each batch is stored once, in as many partitions as the call has."""

    async def work(client: aioredis.Redis, redis: RedisStore) -> None:
        for k in range(5):
            await client.script_flush()
            for found in await redis.apply([write(k, k + 1, partition=partition) for partition in range(partitions)]):
                assert isinstance(found, dict)
                assert found[NAMES[k * k % PATIENTS]].endswith(record(NAMES[k * k % PATIENTS], k))
        assert [await redis.place(partition) for partition in range(4)] == [5] * partitions + [0] * (4 - partitions)

    run(real, work)


@pytest.mark.parametrize("length", [None, 0, 1, 64])
def test_a_damaged_history_is_seen_and_mended(url: Url, length: int | None) -> None:
    """By the next batch and by the audit; a replacement is taken at the place at which it was read, and at no other."""

    async def work(client: aioredis.Redis, redis: RedisStore) -> None:
        pair, name = Pair(client, redis), NAMES[0]
        await pair.apply(write(0, 12))
        good = pair.memory.partitions[0].histories[name]
        await pair.damage(0, name, length)
        assert await pair.audited(0) == [name]
        assert await pair.apply(write(12, 13)) == [("damaged", [name])], "place 12 is of the same patient"
        good += record(name, 12)
        assert [await pair.both(lambda s, at=at: s.replace(0, name, good, at)) for at in (12, 14, 13)] == [False, False, True]
        assert await pair.audited(0) == []
        assert (await pair.apply(write(12, 13)))[0] == {name: good}

    run(url, work)


def test_a_repeat_sees_damage_alike(real: Url) -> None:
    """A batch that was stored already and needs no history: both stores say the same of a damaged one."""

    async def work(client: aioredis.Redis, redis: RedisStore) -> None:
        pair = Pair(client, redis)
        await pair.apply(write(0, 1))
        await pair.damage(0, NAMES[0], None)
        await pair.apply(write(0, 1, oldest=[NEVER_US]))

    run(real, work)


def test_bookings_are_kept_until_they_are_committed_as_served(url: Url) -> None:
    """Forgotten up to the time that is said, inclusive; then the new ones are added; the state comes back as it was written."""

    async def work(client: aioredis.Redis, redis: RedisStore) -> None:
        pair = Pair(client, redis)
        booked = [(T_US + k, name) for k in (-1, 0, 1) for name in NAMES]
        await pair.apply(write(0, 1, booked=booked))
        loaded = await pair.both(lambda s: s.load(0))
        assert loaded.state == PartitionState(1, [{"id": 1, "use_case": "Ω", "place": 0}], sorted(booked))
        await pair.apply(write(1, 2, booked=[(T_US - 9, b"p")], forget_us=T_US))
        loaded = await pair.both(lambda s: s.load(0))
        assert loaded.state.booked == sorted([(T_US - 9, b"p"), *((T_US + 1, name) for name in NAMES)])

    run(url, work)


def test_stores_of_two_kinds_and_of_two_prefixes_do_not_mix(url: Url) -> None:
    """Histories of facts and of scores, and generations side by side; forgetting one leaves the others."""

    async def work(client: aioredis.Redis, redis: RedisStore) -> None:
        stores = [RedisStore(client, prefix=prefix, kind=kind) for prefix in ("mix.", "mix.a.", "mi*.") for kind in "fa"]
        for n, store in enumerate(stores):
            await store.apply([write(0, n + 1), write(0, n + 1, partition=1), write(0, n + 1, partition=11)])
        await stores[4].forget(1)
        await stores[0].forget(1)
        places = [[await store.place(partition) for partition in (0, 1, 11)] for store in stores]
        assert places == [[n + 1, 0 if n in (0, 4) else n + 1, n + 1] for n in range(6)]
        assert all([await store.audit(partition) == [] for store in stores for partition in (0, 1, 11)])

    run(url, work)


def test_of_two_workers_one_appends(real: Url) -> None:
    """A zombie and its successor write the same places at once: each history has each record once."""

    async def work(client: aioredis.Redis, redis: RedisStore) -> None:
        zombie = RedisStore(client, prefix=redis._base.decode().removesuffix("f:"))
        for k in range(20):
            await asyncio.gather(redis.apply([write(k, k + 3)]), zombie.apply([write(k, k + 1)]), zombie.apply([write(k, k + 2)]))
        (whole,) = await redis.apply([write(0, 22)])
        memory = MemoryStore()
        assert [whole] == await memory.apply([write(0, 22)])

    run(real, work)
