"""Valid input, cut, repeated, spliced, with bits turned over and odd marks put in; now and then nothing but chance."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Feed = Callable[[bytes], None]

ODD = [
    b"\0", b"\xff", b"\x80", b"\x7f", b"\n", b"\r", b'"', b"'", b"{", b"}", b"[", b"]", b",", b":", b"=", b"\t",
    b"\\u0000", b"\\ud800", b"null", b"true", b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-0", b"1e-400", b"0x10",
    b"9" * 400, b" " * 300, b"[" * 2_000, b'{"a":' * 2_000, b"\xe2\x80\xae", b"\xef\xbb\xbf", b"\xed\xa0\x80",
    b"\xff" * 4, b"\xff" * 8, b"\x7f" + b"\xff" * 3, b"\x7f" + b"\xff" * 7, b"\x80\0\0\0", b"\0\0\0\x80",
    b"9999-12-31T23:59:60Z", b"[kafka]\n",
]  # fmt: skip


def mutated(choose: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Return one of the seeds, changed in a few ways; in one of twenty cases just bytes."""
    if choose.random() < 0.05:
        return choose.randbytes(choose.choice([0, 1, 7, 60, 400, 3_000]))
    data = bytearray(choose.choice(seeds))
    for _ in range(choose.choice([0, 1, 1, 2, 3, 8])):
        at = choose.randrange(len(data) + 1)
        way = choose.randrange(7)
        if way == 0 and data:
            data[at % len(data)] ^= 1 << choose.randrange(8)
        elif way == 1 and data:
            data[at % len(data)] = choose.randrange(256)
        elif way == 2:
            del data[at : at + choose.choice([1, 2, 4, 50, len(data)])]
        elif way == 3:
            data[at:at] = choose.choice(ODD)
        elif way == 4:
            odd = choose.choice(ODD)
            data[at : at + len(odd)] = odd
        elif way == 5:
            other = choose.choice(seeds)
            data[at:] = other[choose.randrange(len(other) + 1) :]
        else:
            begin = choose.randrange(len(data) + 1)
            data[at:at] = data[begin : begin + choose.choice([1, 8, 100])]
    return bytes(data)


@dataclass
class Target:
    """A decoder: what it is fed with, and how; `feed` raises nothing but what the decoder says that it raises."""

    seeds: Sequence[bytes]
    feed: Feed
    largest: int = 1 << 21  # of its inputs


def feed(
    name: str, target: Target, least_bytes: int, least_inputs: int, seed: int = 20_261_121
) -> tuple[int, int, float]:
    """Feed a decoder so much; return how many bytes, in how many inputs, and the CPU time of the slowest one."""
    choose = random.Random(f"{seed} {name}")
    fed = inputs = 0
    slowest = 0.0
    while fed < least_bytes or inputs < least_inputs:
        data = mutated(choose, target.seeds)
        began = time.process_time()
        try:
            target.feed(data)
        except BaseException:
            print(f"\n{name}: input {inputs}: {data[:2_000]!r}")
            raise
        slowest = max(slowest, time.process_time() - began)
        fed, inputs = fed + len(data), inputs + 1
    return fed, inputs, slowest
