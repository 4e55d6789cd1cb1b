"""Which models are active, and the ticks: commands on the topic `controls`, from where admission copies them into every partition."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from models.artifact import Model
from models.score import activation
from streams.admit import Command
from streams.bus import Bus
from streams.reader import read_topic
from streams.settings import Settings
from streams.topics import Names


async def active(settings: Settings) -> dict[tuple[str, str], str]:
    """(use case, role) → version of the model that was activated last; a shadow's role is `shadow:VERSION`."""
    found: dict[tuple[str, str], str] = {}
    async for records in read_topic(settings, Names(settings.prefix).controls):
        for record in records:
            if b'"activate"' not in record.value:
                continue
            payload = msgspec.json.decode(record.value, type=Command).payload
            role, version = payload["role"], payload["model_version"]
            found[payload["use_case"], role if role == "champion" else f"shadow:{version}"] = version
    return found


async def activate(settings: Settings, bus: Bus, models: Sequence[Model], *, stamp_us: int | None = None) -> list[str]:
    """Make the first model of each use case champion and the others shadows, where they are not so yet; returns what was done."""
    now_active, done, champions = await active(settings), [], set()
    for model in models:
        name = model.use_case.name
        role = "shadow" if name in champions else "champion"
        champions.add(name)
        if now_active.get((name, role if role == "champion" else f"shadow:{model.version}")) == model.version:
            continue
        command = Command("activate", stamp_us, activation(model, number=0, role=role))
        await bus.send_one(Names(settings.prefix).controls, msgspec.json.encode(command), partition=0)
        done.append(f"{model.version} is {role} of {name}")
    return done


async def tick_for_ever(settings: Settings, bus: Bus, *, mine: Callable[[], bool]) -> None:
    """A tick each `tick_every_s`: live time enters the log here and nowhere else. The broker's append time is its stamp."""
    while True:
        await asyncio.sleep(settings.tick_every_s)
        if mine():
            await bus.send_one(Names(settings.prefix).controls, msgspec.json.encode(Command("tick")), partition=0)
