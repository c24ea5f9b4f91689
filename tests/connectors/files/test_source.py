"""Files as a source: order, offsets, resuming after a stop, and an error for whatever is wrong with a file."""

from __future__ import annotations

import gzip
import random
import re
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from connectors.batches import Partition
from connectors.decode.decoder import Decoder, DecodeSettings
from connectors.files.settings import FileSettings
from connectors.files.source import FileError, FileSource
from tests.connectors.files.support import DEADLINE_SECONDS, ENVIRONMENT, many_rows, read, write


def test_a_csv_file_without_stream_column_is_one_stream_named_by_its_stem(tmp_path):
    path = write(tmp_path / "ambient.csv", "timestamp,value", "1970-01-01 00:01:40,69.88", "1970-01-01 00:01:50,71.2")
    events, rejected = read(path)
    assert events == [("ambient", 100, {"value": 69.88}, path, 0), ("ambient", 110, {"value": 71.2}, path, 1)]
    assert rejected == []


def test_a_csv_file_may_hold_several_streams_and_features_with_gaps(tmp_path):
    path = write(tmp_path / "x.csv", "cpu, stream ,timestamp,mem", "1,a,5,2", '3,"b,c",6,', ",a,7,4", "", "5,a,8,6")
    events, rejected = read(path)
    assert [event[:3] for event in events] == [
        ("a", 5, {"cpu": 1, "mem": 2}),
        ("b,c", 6, {"cpu": 3}),
        ("a", 7, {"mem": 4}),
        ("a", 8, {"cpu": 5, "mem": 6}),
    ]
    assert [event[4] for event in events] == [0, 1, 2, 3]
    assert rejected == []


def test_json_lines_without_a_stream_take_the_files_stem(tmp_path):
    path = write(
        tmp_path / "y.jsonl.gz", '{"stream": "a", "timestamp": 5, "value": 1}', '{"timestamp": 6, "values": {"z": 2}}'
    )
    events, _ = read(path)
    assert [event[:3] for event in events] == [("a", 5, {"value": 1}), ("y", 6, {"z": 2})]


@pytest.mark.parametrize("name", ["plain.csv", "packed.csv.gz"])
def test_line_ends_byte_order_marks_and_a_missing_last_line_feed_do_not_matter(tmp_path, name):
    data = b"\xef\xbb\xbftimestamp,value\r\n5,1\r\n\r\n6,2"
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    events, rejected = read(tmp_path / name)
    assert [event[:3] for event in events] == [
        (name.split(".")[0], 5, {"value": 1}),
        (name.split(".")[0], 6, {"value": 2}),
    ]
    assert rejected == []


def test_concatenated_gzip_members_with_padding_are_read(tmp_path):
    path = tmp_path / "z.csv.gz"
    path.write_bytes(gzip.compress(b"timestamp,value\n5,") + gzip.compress(b"1\n6,2\n") + b"\0" * 512)
    assert [event[2]["value"] for event in read(path)[0]] == [1, 2]


def test_bad_rows_are_rejected_with_file_and_line(tmp_path):
    path = write(tmp_path / "bad.csv", "timestamp,value", "5,1", "6,1,1", "noon,1", "", "7,many", "8,2")
    events, rejected = read(path)
    assert [event[4] for event in events] == [0, 4]
    assert [(refusal.offset, refusal.reason, refusal.raw) for refusal in rejected] == [
        (1, "bad_row", b"6,1,1"),
        (2, "bad_timestamp", b"noon,1"),
        (3, "not_a_number", b"7,many"),
    ]
    places = [refusal.detail.split(": ")[0] for refusal in rejected]
    assert places == [f"{path}, line 3", f"{path}, line 4", f"{path}, line 6"]


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("time.csv", b"time,value\n5,1\n", "column `timestamp`; found 'time, value'"),
        ("none.csv", b"2014-07-01 00:00:00,5\n", "column `timestamp`"),
        ("only.csv", b"timestamp,stream\n", "column of values"),
        ("index.csv", b",timestamp,value\n0,5,1\n", "unique, printable name; found ''"),
        ("twice.csv", b"timestamp,a,a\n", "found 'a'"),
        ("wide.csv", "timestamp,value\n5,1\n".encode("utf-16"), "UTF-8"),
        ("array.json", b'[{"timestamp": 5, "value": 1}]\n', "expected JSON, or a CSV header"),
        ("plain.csv.gz", b"timestamp,value\n5,1\n", None),
    ],
)
def test_an_unusable_file_is_a_one_line_error_at_the_start(tmp_path, name, data, found):
    path = tmp_path / name
    path.write_bytes(data)
    if found is None:
        assert len(read(path)[0]) == 1  # what a file is, its bytes say, not its name
        return
    with pytest.raises(FileError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}, line 1: ")
    assert found in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_a_directory_and_a_file_named_twice_are_errors(tmp_path):
    with pytest.raises(FileError, match=r"gone\.csv: cannot be read: No such file"):
        read(tmp_path / "gone.csv")
    with pytest.raises(FileError, match="is a directory; name the files in it"):
        read(tmp_path)
    with pytest.raises(ValidationError, match="named twice"):
        FileSettings(paths=("a.csv", "a.csv"))


def test_an_empty_file_has_no_records(tmp_path, caplog):
    path = write(tmp_path / "empty.csv")
    assert read(path) == ([], [])
    assert f"{path}: is empty" in caplog.text


def test_a_truncated_gzip_gives_all_its_whole_lines_and_then_a_clear_error(tmp_path, caplog):
    whole = "".join(f"{line}\n" for line in many_rows(20_000)).encode()
    path = tmp_path / "cut.csv.gz"
    packed = gzip.compress(whole)
    path.write_bytes(packed[: len(packed) // 2])
    other = write(tmp_path / "other.csv", "timestamp,value", "1e6,1")
    source = FileSource(FileSettings(paths=(str(path), other)))
    decoder = Decoder()
    events = []
    while sum(map(len, events)) == 0 or len(events[-1]):
        try:
            events.append(decoder.decode(source.poll(0.1))[0])
        except FileError as error:
            failure = str(error)
            break
    assert re.search(r"cut\.csv\.gz: the gzip stream breaks off after line \d+; copy", failure)
    times = np.concatenate([batch.time for batch in events]) / 1e9
    values = np.concatenate([batch.value for batch in events])
    assert times[-1] == 1e6  # the other file was read to its end
    assert times[:-1].tolist() == list(range(len(times) - 1))
    assert 5_000 < len(times) < 15_000
    expected = [float(line.split(b",")[1]) for line in whole.splitlines()[1 : len(values)]]
    assert values[:-1].tolist() == expected
    assert source.finished()
    assert "breaks off" in caplog.text


def test_a_damaged_gzip_is_an_error_with_its_line(tmp_path):
    packed = bytearray(gzip.compress("".join(f"{line}\n" for line in many_rows(20_000)).encode()))
    packed[len(packed) // 2 : len(packed) // 2 + 64] = bytes(64)
    path = tmp_path / "damaged.csv.gz"
    path.write_bytes(packed)
    with pytest.raises(FileError, match=r"damaged\.csv\.gz: the gzip stream is damaged after line \d+"):
        read(path)


def test_reading_starts_at_the_given_offset(tmp_path):
    path = write(tmp_path / "a.csv", *many_rows(5_000))
    whole, _ = read(path)
    for first in (0, 1, 2_500, 4_999, 5_000):
        assert read(path, start={Partition(path, 0): first})[0] == whole[first:]


def test_a_file_shorter_than_the_processed_offset_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", "timestamp,value", "5,1")
    with pytest.raises(FileError, match="ends after 1 records, but 7 were processed before"):
        read(path, start={Partition(path, 0): 7})


def test_files_are_merged_by_time_and_each_keeps_its_own_order(tmp_path):
    a = write(tmp_path / "a.csv", "timestamp,value", "10,0", "30,0", "20,0", "50,0")
    b = write(tmp_path / "b.jsonl", '{"value": 1}', *(f'{{"timestamp": {t}, "value": 1}}' for t in (10, 25, 30, 60)))
    events, rejected = read(a, b)
    assert [event[:2] for event in events] == [
        ("a", 10), ("b", 10), ("b", 25), ("a", 30), ("a", 20), ("b", 30), ("a", 50), ("b", 60),
    ]  # fmt: skip
    assert [refusal.reason for refusal in rejected] == ["bad_timestamp"]


def test_the_merge_order_does_not_depend_on_poll_sizes(tmp_path):
    noise = random.Random(3)
    paths = []
    for number in range(4):
        times = sorted(noise.randrange(20_000) for _ in range(6_000))
        paths.append(
            write(tmp_path / f"{number}.csv", "timestamp,value", *(f"{t},{number}.12345678901" for t in times))
        )
    whole, _ = read(*paths)
    assert [event[1] for event in whole] == sorted(event[1] for event in whole)
    assert len(whole) == 24_000
    assert read(*paths, max_poll_records=997)[0] == whole
    by_file = {path: [event for event in whole if event[3] == path] for path in paths}
    assert all([event[4] for event in events] == list(range(6_000)) for events in by_file.values())
    start = {Partition(path, 0): 5_990 for path in paths}
    assert read(*paths, start=start)[0] == [event for event in whole if event[4] >= 5_990]


def test_a_poll_returns_at_most_max_poll_records(tmp_path):
    source = FileSource(FileSettings(paths=(write(tmp_path / "a.csv", *many_rows(250)),)), max_poll_records=100)
    assert [len(source.poll(0)) for _ in range(4)] == [100, 100, 50, 0]
    assert source.finished()
    assert source.lag() == {}


def test_speed_scales_replay_by_event_time(tmp_path):
    path = write(tmp_path / "a.csv", "timestamp,value", *(f"{second},1" for second in range(11)))
    source = FileSource(FileSettings(paths=(path,), speed=10))
    begin = time.monotonic()
    came = 0
    while not source.finished():
        came += len(source.poll(0.25))
        assert came <= (time.monotonic() - begin) * 10 + 1, "none comes before its time"
    assert came == 11
    assert time.monotonic() - begin >= 1.0


def test_poll_respects_its_timeout_while_nothing_is_due(tmp_path):
    path = write(tmp_path / "a.csv", "timestamp,value", "0,1", "100000,1")
    source = FileSource(FileSettings(paths=(path,), speed=1))
    assert len(source.poll(1)) == 1
    begin = time.monotonic()
    assert len(source.poll(0.2)) == 0
    assert time.monotonic() - begin >= 0.19
    assert not source.finished()


def test_a_line_above_the_record_limit_is_rejected_and_reading_continues(tmp_path):
    decoder = Decoder(DecodeSettings(max_record_bytes=1_000))
    long = '{"timestamp": 5, "value": 1, "padding": "' + "x" * 500_000 + '"}'
    path = write(tmp_path / "a.jsonl", '{"timestamp": 4, "value": 1}', long, '{"timestamp": 6, "value": 1}', long)
    events, rejected = read(path, decoder=decoder)
    assert [event[4] for event in events] == [0, 2]
    assert [(refusal.offset, refusal.reason) for refusal in rejected] == [(1, "too_large"), (3, "too_large")]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    lines=st.lists(st.binary(max_size=20), max_size=20), header=st.sampled_from([b"timestamp,value", b'{"value": 1}'])
)
def test_every_line_of_any_file_is_an_event_or_a_rejection(tmp_path_factory, lines, header):
    path = tmp_path_factory.getbasetemp() / "made.csv"
    path.write_bytes(b"\n".join([header, *lines]))
    events, rejected = read(path)
    records = [line for line in b"\n".join(lines).split(b"\n") if line and not line.isspace()]
    assert len(events) + len(rejected) == len(records) + header.startswith(b"{")
    assert {refusal.raw for refusal in rejected} <= {line.removesuffix(b"\r") for line in [header, *records]}


READER = """
    from connectors.decode.decoder import Decoder
    from connectors.files.settings import FileSettings
    from connectors.files.source import FileSource
    source, idle = FileSource(FileSettings(paths=("-",))), True
    while not source.finished():
        batch, rejected = Decoder().decode(source.poll(0.1))
        if not len(batch) and not idle:
            print("nothing more", flush=True)
        idle = not len(batch)
        for row in range(len(batch)):
            name, value = batch.streams[batch.stream[row]], batch.value[batch.start[row]]
            print(name, batch.time[row] // 10**9, value, batch.offset[row], len(rejected), flush=True)
"""


@pytest.fixture
def reader():
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(READER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    yield process
    process.kill()
    process.communicate(timeout=DEADLINE_SECONDS)


def test_standard_input_is_read_as_it_arrives(reader):
    reader.stdin.write(b"timestamp,value\n5,1\n6,")
    reader.stdin.flush()
    assert reader.stdout.readline() == b"stdin 5 1.0 0 0\n"
    assert reader.stdout.readline() == b"nothing more\n", "poll keeps its time-out with half a line in the pipe"
    reader.stdin.write(b"2\n7,3")
    reader.stdin.flush()
    assert reader.stdout.readline() == b"stdin 6 2.0 1 0\n"
    out, _ = reader.communicate(timeout=DEADLINE_SECONDS)
    assert out.replace(b"nothing more\n", b"") == b"stdin 7 3.0 2 0\n"
    assert reader.returncode == 0


def test_standard_input_may_be_json_lines_gzipped(reader):
    data = gzip.compress(b'{"stream": "a", "timestamp": 5, "value": 1}\n{"timestamp": 6, "value": 2}')
    out, _ = reader.communicate(data, timeout=DEADLINE_SECONDS)
    assert out.replace(b"nothing more\n", b"") == b"a 5 1.0 0 0\nstdin 6 2.0 1 0\n"
