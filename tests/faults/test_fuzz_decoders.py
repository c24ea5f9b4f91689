"""Mutated bytes at every decoder: each answers or refuses with its own error, at once and within bounded memory.

What is fed is made of valid input: cut, repeated, spliced, with bits turned over and with numbers and marks put in that
have broken decoders before; and now and then of nothing but chance. The short form feeds each 100 KB, the long one 10
million bytes; both are seeded.
"""

from __future__ import annotations

import resource
import time

import pytest

from tests.faults.decoders import targets
from tests.faults.mutation import Target, feed

SHORT, LONG = 100_000, 10_000_000  # bytes for each decoder
SLOWEST_SECONDS = 10.0  # of CPU time, of one input: the largest have a megabyte
MAX_MEMORY_BYTES = 1 << 30  # bytes that the process may come to need on top

NAMES = (
    "JSON", "JSON, Telegraf's", "JSON, features left out", "CSV rows", "CSV headers", "files, plain and gzipped",
    "times", "Kafka's record batches", "Kafka's codecs", "changelog records", "states' rows",
    "states' rows of former versions", "alerts to be sent", "state files", "outbox files", "settings", "tokens",
    "models' weights", "models' descriptions",
)  # fmt: skip


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return targets(tmp_path_factory.mktemp("decoders"))


def test_every_decoder_has_a_fuzz_target(decoders: dict[str, Target]) -> None:
    assert tuple(decoders) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_mutated_input_is_read_or_refused(decoders: dict[str, Target], name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, inputs, slowest = feed(name, decoders[name], SHORT, 20)
    assert inputs >= 20
    assert slowest < SLOWEST_SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MAX_MEMORY_BYTES


@pytest.mark.faults
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("name", NAMES)
def test_ten_million_bytes_are_read_or_refused(decoders: dict[str, Target], name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    fed, inputs, slowest = feed(name, decoders[name], LONG, 1_000, seed=1)
    seconds = time.monotonic() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(
        f"\n{name}: {fed:,} bytes in {inputs:,} inputs, {seconds:.0f} s, the slowest {1_000 * slowest:.0f} ms;"
        f" {grown / 1e6:.0f} MB more memory"
    )
    assert slowest < SLOWEST_SECONDS
    assert grown < MAX_MEMORY_BYTES
