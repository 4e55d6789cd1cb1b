"""The floor: bare aiokafka over `facts`, the JSON of each record decoded, nothing else."""

from __future__ import annotations

import asyncio

import click
import msgspec
from aiokafka import AIOKafkaConsumer

from tests.bench.child import Teller, keep_memory_as_the_worker


async def read(kafka: str, topic: str, records: int, events: int) -> None:
    """Read so many records, as the worker's intake reads them."""
    teller, seen, decode = Teller(), 0, msgspec.json.Decoder().decode
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka, group_id=f"{topic}-floor", enable_auto_commit=False, auto_offset_reset="earliest", fetch_max_wait_ms=10
    )
    consumer.subscribe([topic])
    await consumer.start()
    keep_memory_as_the_worker()
    try:
        while seen < records:
            for some in (await consumer.getmany(timeout_ms=200, max_records=2_000)).values():
                teller.begin()
                for record in some:
                    value = record.value or b""
                    decode(value[67 + int.from_bytes(value[65:67], "little") :])  # what stands behind the fixed head
                seen += len(some)
        await consumer.commit()
        teller.end(events)
    finally:
        await consumer.stop()


@click.command()
@click.option("--kafka", required=True)
@click.option("--topic", required=True)
@click.option("--records", type=int, required=True, help="Facts and controls.")
@click.option("--events", type=int, required=True, help="What they count for.")
def main(kafka: str, topic: str, records: int, events: int) -> None:
    asyncio.run(read(kafka, topic, records, events))


if __name__ == "__main__":
    main()
