"""Read, read back and write with whichever kafka-python is imported; print what was read and logged, as JSON.

`python other_client.py BOOTSTRAP TOPIC COUNT [changelog]`: COUNT records of the topic, all on its one partition.
"""

from __future__ import annotations

import json
import logging
import sys
import time

import kafka

from connectors.batches import Partition
from connectors.kafka.changelog import Changelogs
from connectors.kafka.history import KafkaHistory
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.source import KafkaSource
from connectors.kafka.writer import KafkaWriter

SECONDS = 60.0  # for all of it; it takes a few


def main(bootstrap: str, topic: str, count: int, *, changelog: bool) -> None:
    reported: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: reported.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("connectors").addHandler(handler)
    settings = KafkaSettings(
        bootstrap_servers=bootstrap, topics=[topic], group_id=f"{topic}-group",
        session_timeout_seconds=6, delivery_timeout_seconds=5,
    )  # fmt: skip
    end = time.monotonic() + SECONDS
    source, read = KafkaSource(settings, max_poll_records=100), []
    while len(read) < count and time.monotonic() < end:
        read += source.poll(0.5).offset
    source.close()
    history, kept = KafkaHistory(settings, max_poll_records=100), []
    while not history.finished() and time.monotonic() < end:
        kept += history.poll(0.5).offset
    history.close()
    writer = KafkaWriter(settings)
    writer.send(f"{topic}-out", None, b"written")
    writer.flush()
    writer.close()
    found = {"client": kafka.__file__, "read": read, "history": kept, "reported": reported}
    if changelog:
        followed: list[int] = []
        changelogs = Changelogs(settings)
        changelogs.prepare(topic)
        changelogs.follow({Partition(topic, 0): 0})
        writer = KafkaWriter(settings)
        for n in range(10):
            writer.send(settings.changelog_of(topic), b"k%d" % n, b"state")
        writer.flush()
        writer.close()
        while len(followed) < 10 and time.monotonic() < end:
            for records in changelogs.poll(500).values():
                followed += [offset for offset, *_ in records]
        found |= {"followed": followed, "position": changelogs.position(Partition(topic, 0))}
        changelogs.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), changelog=sys.argv[4:] == ["changelog"])
