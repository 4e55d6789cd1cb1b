"""The peer: Bytewax doing the same task in memory, late results, revisions and reasons included, through its own Kafka connectors.

It is still given less to do than our worker: no alerts, no row digest, no log of facts, and no recovery store. After a crash it would
have to read the whole topic again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import bytewax.operators as op
import click
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.testing import cluster_main

from tests.bench import plain, task
from tests.bench.child import Teller, keep_memory_as_the_worker


def flow(kafka: str, read: str, write: str, *, revise: bool, reasons: bool, teller: Teller) -> Dataflow:
    """events → keyed by patient → answers."""
    model = task.model()
    limits, logistic = plain.intervals(model), plain.Logistic(model, reasons=reasons)

    def key_of(message: Any) -> str:
        teller.begin()
        return message.key.decode()

    def step(patient: plain.Patient | None, message: Any) -> tuple[plain.Patient, Iterable[plain.Answer]]:
        patient = patient or plain.Patient()
        return patient, patient.tell(plain.decode(message.value), limits, logistic, revise=revise)

    def written(keyed: tuple[str, plain.Answer]) -> KafkaSinkMessage[bytes, bytes]:
        return KafkaSinkMessage(keyed[0].encode(), plain.encode(keyed[1]))

    made = Dataflow("bench")
    messages = op.input("events", made, KafkaSource([kafka], [read], tail=False, batch_size=2_000))
    answers = op.stateful_flat_map("patients", op.key_on("by_patient", messages, key_of), step)
    op.output("answers", op.map("written", answers, written), KafkaSink([kafka], write))
    return made


@click.command()
@click.option("--kafka", required=True)
@click.option("--read", required=True)
@click.option("--write", required=True)
@click.option("--events", type=int, required=True)
@click.option("--revise/--no-revise", default=True)
@click.option("--reasons/--no-reasons", default=True)
@click.option("--default-memory", is_flag=True)
def main(kafka: str, read: str, write: str, events: int, revise: bool, reasons: bool, default_memory: bool) -> None:
    teller = Teller()
    dataflow = flow(kafka, read, write, revise=revise, reasons=reasons, teller=teller)
    if not default_memory:
        keep_memory_as_the_worker()
    cluster_main(dataflow, [], 0, worker_count_per_proc=1)
    teller.end(events)


if __name__ == "__main__":
    main()
