"""Files to read, and what comes of them."""

from __future__ import annotations

import gzip
import os
import random
import time
from pathlib import Path

import connectors
from connectors.decode.decoder import Decoder
from connectors.files.settings import FileSettings
from connectors.files.source import FileSource

DEADLINE_SECONDS = 240
HERE = str(Path(connectors.__file__).parents[1])
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")])}


def read(*paths, start=None, decoder=None, max_poll_records=None, **more):
    """Read files to their end; return [(stream, seconds, {feature: value}, path, offset)] and the refusals."""
    source = FileSource(
        FileSettings(paths=tuple(map(str, paths)), **more), decoder, start, max_poll_records=max_poll_records
    )
    return drain(source, decoder or Decoder())


def drain(source, decoder):
    events, rejected = [], []
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not source.finished():
        assert time.monotonic() < deadline, "the source does not come to its end"
        batch, refusals = decoder.decode(source.poll(0.1))
        rejected += refusals
        for row in range(len(batch)):
            cells = range(batch.start[row], batch.start[row + 1])
            values = {batch.features[batch.feature[cell]]: float(batch.value[cell]) for cell in cells}
            place = (batch.partitions[batch.partition[row]].topic, int(batch.offset[row]))
            events.append((batch.streams[batch.stream[row]], batch.time[row] / 1e9, values, *place))
    source.close()
    return events, rejected


def write(path, *lines, end="\n"):
    data = "".join(f"{line}{end}" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def many_rows(count):
    noise = random.Random(7)
    return ["timestamp,value", *(f"{number},{noise.random()}" for number in range(count))]
