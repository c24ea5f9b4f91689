"""Every decoder of the product, with valid input to mutate and the errors that it may raise."""

from __future__ import annotations

import contextlib
import gzip
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path

import crc32c
import zstandard
from kafka import TopicPartition
from kafka.errors import KafkaError
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder

from connectors.batches import Alert, CsvLayout, Partition, RawBatch
from connectors.decode.decoder import REASONS, Decoder, DecodeSettings
from connectors.decode.timestamps import parse_time
from connectors.encode import alert_record
from connectors.files.settings import FileSettings
from connectors.files.source import FileError, FileSource
from connectors.kafka.alert_feed import alert_of
from connectors.kafka.changelog_format import (
    Assembler,
    ChangelogError,
    Mark,
    compressed,
    mark_record,
    restored,
    state_records,
)
from connectors.kafka.decompress import TooLargeError, decompressed
from connectors.kafka.oauth import TokenError, from_file
from connectors.kafka.record_parser import CompiledPartitionRecords
from connectors.notify.outbox import NewMessage, Outbox, OutboxError
from connectors.notify.standard_webhooks import webhook_body
from detector.checkpointing.state_directory import DATABASE
from detector.checkpointing.store import SqliteStore
from detector.config.settings import SettingsError, load_settings
from detector.engine.engine import Engine, EngineSettings
from detector.errors import StateError
from tests.faults.mutation import Feed, Target
from tests.streams import START, Event, batch_of
from training.network.registry import ModelCard, Registry, RegistryError
from training.network.shape import ModelError
from training.network.weights import load_prior

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
NOW_MS = 1_790_000_000_000

JSON = [
    b'{"stream": "web-1/cpu", "timestamp": "2026-09-21T14:13:20Z", "values": {"user": 0.41, "system": 0.07}}',
    b'{"stream": "web-1/cpu", "timestamp": 1790000000, "value": 1.5}',
    b'{"stream": 7, "timestamp": 1790000000123.5, "value": "1.5", "values": {"a": null, "b": "2"}}',
    b'{"stream": "log", "code": "E42", "timestamp": "2026-09-21 14:13:20.123456789+02:00", "values": {"ms": 3}}',
    b'{"value": 3}',
]  # fmt: skip

TELEGRAF = [
    b'{"metrics": [{"fields": {"usage_idle": 93.1, "up": 1}, "name": "cpu", "tags": {"host": "a", "cpu": "0"},'
    b' "timestamp": 1790000000}, {"fields": {"used": 5}, "name": "mem", "tags": {"host": "a"}, "timestamp": 1790000000}'
    b"]}",
    b'{"fields": {"usage_idle": 93.1}, "name": "cpu", "tags": {"host": "a"}, "timestamp": 1790000000}',
]  # fmt: skip

CSV = [b"2026-09-21T14:13:20Z,web-1,1.5,,E42", b'1790000000,"a ""b"", c",2,3,', b"1790000000,x,1,2,3"]
TIMES = [b"2026-09-21T14:13:20.123456789+02:00", b"1790000000", b"1790000000123.25", b"2026-09-21", b"1e9", b"-1.5"]


def decoding(settings: DecodeSettings, layout: CsvLayout | None = None) -> Feed:
    decoder = Decoder(settings)

    def feed(data: bytes) -> None:
        raw = RawBatch([Partition("t", 0)], [0, 0], [0, 1], [NOW_MS, -1], [b"key", data[:40]], [data, data])
        if layout is not None:
            raw.csv[0] = layout
        batch, rejected = decoder.decode(raw)
        assert {*batch.offset.tolist(), *(refusal.offset for refusal in rejected)} == {0, 1}
        assert all(refusal.reason in REASONS and refusal.detail.isprintable() for refusal in rejected)
        assert len(batch.start) == len(batch) + 1
        assert batch.start[-1] == len(batch.value) == len(batch.feature)
        assert all(name.isprintable() and 0 < len(name.encode()) <= 255 for name in (*batch.streams, *batch.features))
        decoder.time_of(data, layout)

    return feed


def refusing(work: Callable[[bytes], object], *errors: type[Exception]) -> Feed:
    """Return a feed that lets `errors` pass, and nothing else."""

    def feed(data: bytes) -> None:
        try:
            work(data)
        except errors as error:
            if not str(error):
                raise

    return feed


def record_batches() -> list[bytes]:
    found = []
    for magic, compression in ((2, 0), (2, 1), (2, 2), (2, 3), (2, 4), (1, 0), (0, 0)):
        builder = MemoryRecordsBuilder(magic, compression, 1 << 20)
        for k in range(5):
            builder.append(NOW_MS + k, b"key", b'{"value": 1.5}' * 3, [("h", b"x")] if magic == 2 else [])
        builder.close()
        found.append(bytes(builder.buffer()))
    return found


def read_batches(data: bytes) -> None:
    """Read with corrected checksums, too: anybody can compute them."""
    mended = bytearray(data)
    at = 0
    while at + 61 <= len(mended):
        (length,) = struct.unpack_from(">i", mended, at + 8)
        if length < 49 or at + 12 + length > len(mended) or mended[at + 16] != 2:
            break
        struct.pack_into(">I", mended, at + 17, crc32c.crc32c(bytes(mended[at + 21 : at + 12 + length])))
        at += 12 + length
    for whole in (data, bytes(mended)):
        try:
            part = CompiledPartitionRecords(0, TopicPartition("t", 0), MemoryRecords(whole))
            while part:
                part.take(100)
        except KafkaError:
            pass


def unpack_all(data: bytes) -> None:
    for codec in range(1, 5):
        with contextlib.suppress(ValueError, TooLargeError):
            assert len(decompressed(codec, data, 1 << 20)) <= 1 << 20


def alert() -> Alert:
    values = {"user": 0.41}
    return Alert(
        "a-1", "web-1", "firing", "warning", START, None, 5.0, 4.0, {"user": 0.9, "code": "E1"},
        {"user": 0.4, "code": None}, values, values, values, "v1", "metrics", 0, 17, {"code": 0.1}, {"code": 0.2},
    )  # fmt: skip


def changelog(row: bytes) -> Feed:
    source = Partition("metrics", 3)
    mark = Mark(group="g", member="m", layout="00", longwatch="0", streams=3)
    records = [*state_records("web-1", source, 17, compressed(row)), mark_record(source, 18, mark)]
    seeds = [key + b"|" + value for key, value in records]
    assert seeds

    def feed(data: bytes) -> None:
        key, _, value = data.partition(b"|")
        sound = bytearray(value)
        if len(sound) > 12:
            sound[8:12] = struct.pack("<I", crc32c.crc32c(bytes(sound[12:]), crc32c.crc32c(key)))
        for body in (value, bytes(sound), None):
            try:
                entry = Assembler("changelog", source).take(7, key, body)
                if entry is not None and entry.row:
                    restored(entry.row)
            except (ChangelogError, ValueError) as error:
                if not str(error):
                    raise

    feed.seeds = seeds  # type: ignore[attr-defined]
    return feed


def targets(folder: Path) -> dict[str, Target]:
    model = load_prior()
    engine = Engine(model, EngineSettings())
    engine.step(
        batch_of(
            [
                Event("one", START, {"x": 1.0}),
                Event("many", START, {"x": 1.0, "y": 2.0, "z": 3.0}),
                Event("mixed", START, {"x": 1.0, "code": "E1"}),
                Event("log", START, {"code": "E2"}),
            ]
        )
    )
    rows = [row for _, row in engine.streams.drain()]
    states = changelog(rows[0])

    def unpack(data: bytes) -> None:
        slot = engine.streams.states.unpack("fuzzed", data, 1, engine.version)
        engine.streams.states.remove(slot)

    header = Decoder(DecodeSettings()).csv_layout(b"timestamp,stream,a,b,code")
    file, token, toml = folder / "events", folder / "token", folder / "longwatch.toml"

    def read_file(data: bytes) -> None:
        file.write_bytes(data)
        source = FileSource(FileSettings(paths=(str(file),)), decoder)
        try:
            while not source.finished():
                decoder.decode(source.poll(0.01))
        finally:
            source.close()

    decoder = Decoder(DecodeSettings())

    def read_token(data: bytes) -> None:
        token.write_bytes(data)
        from_file(str(token))()

    def read_settings(data: bytes) -> None:
        toml.write_bytes(data)
        load_settings(toml, {}, [])

    outbox_seed = seed_of_outbox(folder)

    def open_outbox(data: bytes) -> None:
        for path in folder.glob("outbox.sqlite3*"):
            path.unlink()
        (folder / "outbox.sqlite3").write_bytes(data)
        outbox = Outbox(folder / "outbox.sqlite3")
        outbox.add([NewMessage("r", "new", "s", b"{}")], 0.0)
        while messages := outbox.next("r", 1.0, 7):
            outbox.finish([(message.sequence, "delivered") for message in messages])
        outbox.close()

    def open_store(data: bytes) -> None:
        for path in (folder / "state").glob("*"):
            path.unlink()
        (folder / "state" / DATABASE).write_bytes(data)
        store = SqliteStore(folder / "state")
        try:
            for name in store.unassigned()[:3]:
                store.load([name])
            store.meta()
            store.save([("new", rows[0])], {})
        finally:
            store.close()

    registry = Registry(folder / "models")
    version = registry.save(model, ModelCard(parent="", trained_at=0.0, seed=0, rows=1, figures={"nll": 0.5}))
    weights = next((folder / "models").rglob("*.safetensors"))
    about = next((folder / "models").rglob("*.json"))
    whole, reported = weights.read_bytes(), about.read_bytes()

    def load_weights(data: bytes) -> None:
        weights.write_bytes(data)
        try:
            registry.load(version)
        finally:
            weights.write_bytes(whole)

    def load_about(data: bytes) -> None:
        about.write_bytes(data)
        try:
            registry.card(version)
        finally:
            about.write_bytes(reported)

    return {
        "JSON": Target(JSON, decoding(DecodeSettings())),
        "JSON, Telegraf's": Target(
            TELEGRAF, decoding(DecodeSettings(stream="{tags.host}/{name}", values="fields", batch="metrics"))
        ),
        "JSON, features left out": Target(JSON, decoding(DecodeSettings(exclude_features=("s*", "?")))),
        "CSV rows": Target(CSV, decoding(DecodeSettings(), header)),
        "CSV headers": Target(
            [b"timestamp,stream,a,b,code", b'timestamp,"a b",c'],
            refusing(lambda data: Decoder(DecodeSettings()).csv_layout(data), ValueError),
        ),
        "files, plain and gzipped": Target(
            [
                b"timestamp,a\n" + b"\n".join(b"%d,1" % (1_790_000_000 + k) for k in range(20)),
                b"\n".join(JSON),
                gzip.compress(b"\n".join(JSON)),
            ],
            refusing(read_file, FileError),
        ),
        "times": Target(TIMES, refusing(lambda data: parse_time(data.decode("utf-8", "replace")), ValueError)),
        "Kafka's record batches": Target(record_batches(), read_batches),
        "Kafka's codecs": Target(
            [batch[61:] for batch in record_batches()[:5]],
            unpack_all,
        ),
        "changelog records": Target(states.seeds, states),  # type: ignore[attr-defined]
        "states' rows": Target(rows, refusing(unpack, StateError)),
        "states' rows of former versions": Target(former_rows(folder), refusing(unpack, StateError)),
        "alerts to be sent": Target(
            [alert_record(alert())[1]], refusing(lambda data: webhook_body(alert_of(data)), ValueError)
        ),
        "state files": Target([seed_of_store(folder, rows)], refusing(open_store, StateError)),
        "outbox files": Target([outbox_seed], refusing(open_outbox, OutboxError)),
        "settings": Target(SETTINGS, refusing(read_settings, SettingsError)),
        "tokens": Target([b"eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0."], refusing(read_token, TokenError)),
        "models' weights": Target([whole], refusing(load_weights, RegistryError, ModelError)),
        "models' descriptions": Target([reported], refusing(load_about, RegistryError, ModelError)),
    }


SETTINGS = [
    b'[kafka]\nbootstrap_servers = "a:9092"\ntopics = ["metrics"]\n[state]\ndirectory = "/tmp/x"\nmax_streams = 10\n',
    b'[decode]\nstream = "{tags.host}/{name}"\n'
    b'exclude_features = ["a*"]\n[receivers.hook]\nurl = "https://hooks.example.com/x"\n',
    b'[alerting]\nthreshold = 3.5\nmute = ["test-*"]\n'
    b'[model]\nhorizons = [1, 3]\n[http]\nport = 0\n[compute]\ndevice = "cpu"\n',
]


def former_rows(folder: Path) -> list[bytes]:
    """Return the rows of the former layouts that are still taken over."""
    rows = []
    for name in ("format-2", "format-3"):
        path = folder / f"{name}.db"
        path.write_bytes(zstandard.decompress((GOLDEN / name / "state.db.zst").read_bytes()))
        with contextlib.closing(sqlite3.connect(path)) as db:
            rows += [row for (row,) in db.execute("SELECT row FROM streams ORDER BY name")]
    return rows


def seed_of_store(folder: Path, rows: list[bytes]) -> bytes:
    store = SqliteStore(folder / "state")
    store.save([(f"s{k}", row[:2_000]) for k, row in enumerate(rows)], {"offsets": []})
    store.close()
    return (folder / "state" / DATABASE).read_bytes()


def seed_of_outbox(folder: Path) -> bytes:
    outbox = Outbox(folder / "seed.sqlite3")
    outbox.add([NewMessage("r", f"m{k}", f"s{k % 2}", b'{"a": 1}') for k in range(5)], 1.0)
    outbox.close()
    return (folder / "seed.sqlite3").read_bytes()
