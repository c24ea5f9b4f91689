"""Fixtures that every test may use: a real broker for the session, a topic for each test."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import pytest

from tests.brokers import ApacheKafka, Broker, find_broker, need_kafka_home

if TYPE_CHECKING:
    from training.network.weights import Weights

T = TypeVar("T", bound="Broker | ApacheKafka")

# Read as torch is imported: at these sizes more threads wait for each other longer than they work, and sum in another
# order
os.environ["OMP_NUM_THREADS"] = "1"

# A shell's background job ignores both, and so would all daemons that are started by it
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

# Begun last, they would keep one process at work while the others have nothing left to do
LONG = (
    "tests/daemon",
    "tests/training/test_theory",
    "tests/detector/commands/test_train",
    "tests/connectors/kafka",
    "tests/faults",
    "tests/detector/config/test_secrets",
    "tests/connectors/decode/test_fuzz",
    "tests/detector/service/test_retrainer",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files that take long first, those that take longest at the front."""
    places = {start: place for place, start in enumerate(LONG)}
    items.sort(key=lambda item: next((p for start, p in places.items() if item.nodeid.startswith(start)), len(LONG)))


def pytest_configure(config: pytest.Config) -> None:
    """Start one Apache Kafka for all of xdist's processes: its start and its idle work are a tenth of a core each."""
    if not getattr(config.option, "numprocesses", None):
        return
    shared = find_broker()
    config.add_cleanup(shared.close)
    if isinstance(shared, ApacheKafka):
        shared.start()
        os.environ["KAFKA_BOOTSTRAP_SERVERS"] = shared.bootstrap


@pytest.fixture(scope="session")
def model() -> Weights:
    """Return the weights that ship."""
    from training.network.weights import load_prior

    return load_prior()


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """The session's broker, started once. Tests that stop a broker start one of their own (`own_broker`)."""
    yield from running(find_broker())


def running(found: T) -> Iterator[T]:
    """Start a broker, yield it, and close it."""
    try:
        found.start()
        yield found
    finally:
        found.close()


@pytest.fixture
def topic(broker: Broker) -> Callable[..., str]:
    """Make topics that no other test knows: `topic(partitions=4)`."""

    def make(partitions: int = 1, prefix: str = "events") -> str:
        return broker.create_topic(f"{prefix}-{uuid.uuid4().hex[:12]}", partitions)

    return make


@pytest.fixture
def apache(broker: Broker) -> Broker:
    """The session's broker where it is Apache Kafka; skips with the reason where it is not.

    What Tansu lacks: static members, deleting records, and groups that change (it now and then leaves a SyncGroup of a
    group's second generation without an answer).
    """
    if broker.kind == "tansu":
        pytest.skip(
            "needs Apache Kafka (set KAFKA_HOME): Tansu has no static members, record deletion, sound rebalances"
        )
    return broker


@pytest.fixture
def own_broker() -> Iterator[Broker]:
    """A broker, not yet started, that the test may stop and start again with its data kept."""
    found = ApacheKafka(need_kafka_home("no log on disk, so a restart would be empty"))
    try:
        yield found
    finally:
        found.close()


@pytest.fixture(scope="session")
def secured_broker() -> Iterator[ApacheKafka]:
    """A started broker with a SASL_SSL listener (SCRAM-SHA-512)."""
    yield from started("no TLS with SCRAM here", secured=True)


def started(lack: str, **form: bool) -> Iterator[ApacheKafka]:
    """Yield a started broker of a form that Tansu cannot have; skip with what it lacks where there is no other."""
    yield from running(ApacheKafka(need_kafka_home(lack), **form))


@pytest.fixture
def nothing_is_ignored() -> Iterator[None]:
    """Give signals their default actions: nohup and background jobs ignore some, and processes inherit that."""
    former = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)}
    for number in former:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def guarded_broker() -> Iterator[ApacheKafka]:
    """A started broker that lets its user do what it was granted, and sends those of another listener astray."""
    yield from started("no authorizer", guarded=True)
