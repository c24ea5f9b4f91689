"""Make a golden store: the state directory that a longwatch left behind, and what it scored when it resumed from it.

    python -m tests.golden.make_golden CHECKOUT FOLDER

runs the longwatch of a checkout, this one or a former one (`git archive COMMIT | tar x -C CHECKOUT`), on half of the
events below, keeps its `state.db`, and lets it go on with the rest. tests/detector/checkpointing/test_golden.py goes on
from the same state. Where the present layout of rows or records is changed on purpose, a new folder is made and the
former one stays.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import zstandard

from connectors.batches import Partition
from connectors.kafka.changelog_format import Mark, compressed, mark_record, state_records
from detector.checkpointing.store import SqliteStore

ROWS, CUT, STEP = 300, 200, 60  # events of each stream, those before the state was kept, seconds between two of them
START = 1_700_000_000
SOURCE = Partition("events", 3)  # of the changelog's records
NAMES = "one/value", "three/values", "code"
GONE = "gone"  # the one stream of incident.db


def events(rows: int = ROWS) -> bytes:
    """Return the streams' first events as JSON lines: one number, three numbers, a symbol; incidents at the cut."""
    rng = random.Random(5)
    lines = []
    for row in range(ROWS):
        off = 9.0 if CUT - 3 <= row < CUT + 4 else 0.0  # an incident is open when the state is kept
        values = {f"f{k}": round(20 + rng.gauss(0, 0.5 + k) + off, 4) for k in range(3)}
        bodies = ({"value": round(5 + rng.gauss(0, 1) + off, 4)}, {"values": values}, {"code": rng.choice("aaaabbc")})
        for name, body in zip(NAMES, bodies, strict=True):
            lines.append(msgspec.json.encode({"stream": name, "timestamp": START + row * STEP, **body}) + b"\n")
    return b"".join(lines[: rows * len(NAMES)])


def alarmed() -> bytes:
    """Return the events of one stream as JSON lines; the last three are an incident where the threshold is 4."""
    rng = random.Random(6)
    values = [round(5 + rng.gauss(0, 1), 4) for _ in range(CUT)] + [99.0] * 3
    return b"".join(
        msgspec.json.encode({"stream": GONE, "timestamp": START + row * STEP, "value": value}) + b"\n"
        for row, value in enumerate(values)
    )


def settings(work: Path, **more: str) -> list[str]:
    """Return the settings of each run in a folder, where it is also to be started: the file's name is in the state."""
    wanted = {
        "source.type": "file",
        "source.paths": '["events.jsonl"]',
        "state.directory": str(work / "state"),
        "training.enabled": "false",
        "compute.device": "cpu",
        "http.port": "0",
        **{name.replace("__", "."): value for name, value in more.items()},
    }
    return [f"{name}={value}" for name, value in wanted.items()]


def run(checkout: Path, work: Path, lines: bytes, **more: str) -> None:
    """Let the longwatch of a checkout read events to their end."""
    (work / "events.jsonl").write_bytes(lines)
    words = [word for setting in settings(work, **more) for word in ("--set", setting)]
    program = [sys.executable, "-m", "detector", "run", *words]
    subprocess.run(program, cwd=work, env={**os.environ, "PYTHONPATH": str(checkout.resolve())}, check=True)


def main(checkout: Path, folder: Path) -> None:
    """Write state.db.zst, scores.jsonl, changelog.msgpack and incident.db.zst to a folder."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        run(checkout, work, events(CUT))
        (folder / "state.db.zst").write_bytes(zstandard.compress((work / "state/state.db").read_bytes(), 19))
        if checkout.resolve() == Path.cwd():
            write_changelog(SqliteStore(work / "state"), folder / "changelog.msgpack")
        run(checkout, work, events(), output__scores_file="scores.jsonl")
        wanted = [msgspec.json.decode(line) for line in (work / "scores.jsonl").read_bytes().splitlines()]
        kept = [{name: record[name] for name in ("stream", "timestamp", "score", "alert")} for record in wanted]
        (folder / "scores.jsonl").write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in kept))
    write_incident(checkout, folder)


def write_incident(checkout: Path, folder: Path) -> None:
    """Write incident.db.zst: a store of one stream, with an open incident."""
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        run(checkout, work, alarmed(), alerting__threshold="4")
        (folder / "incident.db.zst").write_bytes(zstandard.compress((work / "state/state.db").read_bytes(), 19))


def write_changelog(store: SqliteStore, path: Path) -> None:
    """Write the rows as this version's changelog records: key and value of each, and of a mark."""
    records = [
        record
        for name in store.unassigned()
        for row in store.load([name])
        for record in state_records(name, SOURCE, CUT, compressed(row or b""))
    ]
    mark = Mark(group="group", member="longwatch-group-golden", layout="", longwatch="0.1.0", streams=store.count())
    records.append(mark_record(SOURCE, CUT, mark))
    path.write_bytes(msgspec.msgpack.encode(records))
    store.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
