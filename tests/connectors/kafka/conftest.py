"""Sources that are closed after the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from connectors.kafka.settings import KafkaSettings
from connectors.kafka.source import KafkaSource
from tests.connectors.kafka.support import Member, subscribed


@pytest.fixture
def open_source() -> Iterator[Callable[..., KafkaSource]]:
    """Make sources that are closed after the test."""
    sources: list[KafkaSource] = []

    def make(config: KafkaSettings, **callbacks: Any) -> KafkaSource:
        sources.append(subscribed(config, **callbacks))
        return sources[-1]

    yield make
    for source in sources:
        source.close()


@pytest.fixture
def open_member() -> Iterator[Callable[..., Member]]:
    members: list[Member] = []

    def make(config: KafkaSettings, **callbacks: Any) -> Member:
        members.append(Member(config, **callbacks))
        return members[-1]

    yield make
    for member in members:
        member.close()
