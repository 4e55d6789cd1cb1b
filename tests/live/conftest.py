"""Fixtures of the live tests: one Kafka and one Redis for the whole run, skipped where they cannot be had, never on CI."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TypeVar

import pytest

from tests.live.services import Kafka, MissingTool, Redis, Service

S = TypeVar("S", bound=Service)


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """A running broker. Tests share it: each makes topics and groups of its own names."""
    yield from _running(Kafka(tmp_path_factory.mktemp("kafka")))


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A running Redis. Tests share it: each uses a key prefix of its own."""
    yield from _running(Redis(tmp_path_factory.mktemp("redis")))


def _running(service: S) -> Iterator[S]:
    try:
        service.start()
    except MissingTool as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(str(missing))
        pytest.skip(str(missing))
    try:
        yield service
    finally:
        service.stop()
