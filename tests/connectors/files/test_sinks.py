"""Files as sinks: the documented records, and what a restart takes back."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from connectors.batches import Alert, EventBatch, Partition, Rejected, Scores
from connectors.files.sinks import FileAlertSink, FileDeadLetterSink, FileScoreSink
from connectors.files.source import FileError
from tests.connectors.files.support import DEADLINE_SECONDS, ENVIRONMENT

NAN = float("nan")


def scores():
    batch = EventBatch(
        streams=["a", "b"],
        features=["cpu", "mem"],
        partitions=[Partition("t", 0), Partition("t", 4)],
        stream=np.array([0, 1, 0], np.int32),
        time=np.array([10**9, 2 * 10**9 + 500_000_000, 3 * 10**9], np.int64),
        received=np.zeros(3, np.int64),
        partition=np.array([0, 1, 0], np.int32),
        offset=np.array([7, 8, 9], np.int64),
        start=np.array([0, 1, 2, 4], np.int64),
        feature=np.array([0, 1, 0, 1], np.int32),
        value=np.array([0.5, 1.5, 2.5, 3.5]),
    )
    return Scores(
        batch=batch,
        event=np.array([0, 2]),
        score=np.array([0.0, 4.25]),
        threshold=np.array([3.0, 3.0]),
        rank=np.array([0.25, 7.5]),
        channel=np.array([-1, 3], np.int8),
        interval=np.array([0.0, 60.0]),
        alert=np.array([False, True]),
        warming=np.array([True, False]),
        surprise=np.array([NAN, 1.25]),
        start=np.array([0, 1, 3]),
        observation=np.array([0, 2, 3]),
        expected=np.array([NAN, 1.0, 2.0]),
        lower=np.array([NAN, 0.0, 1.0]),
        upper=np.array([NAN, np.inf, 3.0]),
        contribution=np.array([0.0, 0.5, 0.5]),
        model_version="v1",
    )


def test_a_score_line_is_the_documented_record(tmp_path):
    sink = FileScoreSink(tmp_path / "scores.jsonl")
    sink.write(scores())
    sink.close()
    young, alerting = (json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines())
    assert alerting == {
        "stream": "a",
        "timestamp": "1970-01-01T00:00:03Z",
        "score": 4.25,
        "threshold": 3.0,
        "alert": True,
        "rank": 7.5,
        "channel": "coupling",
        "return_period": "once in 12 days",
        "surprise": 1.25,
        "observed": {"cpu": 2.5, "mem": 3.5},
        "expected": {"cpu": 1.0, "mem": 2.0},
        "lower": {"cpu": 0.0, "mem": 1.0},
        "upper": {"cpu": None, "mem": 3.0},
        "model_version": "v1",
        "topic": "t",
        "partition": 0,
        "offset": 9,
    }
    assert list(alerting) == list(young)[:-1]
    assert (young["rank"], young["channel"], young["return_period"]) == (0.25, "", "all the time")
    assert (young["warming"], young["surprise"], young["expected"]) == (True, None, {"cpu": None})


def alert(status="firing", ended_at=None):
    return Alert(
        "id-1", "a/b", status, "critical", 1_500_000_000, ended_at, 6.5, 4.0, {"cpu": 9.0}, {"cpu": 1.0},
        {"cpu": 0.0}, {"cpu": 2.0}, {"cpu": 1.0}, "v1", "t", 2, 17,
        channel="still", feature="cpu", rank=0.5, return_period="once in 11 days", summary="no change for 3 h",
        evidence={"seconds": 10_800.0},
    )  # fmt: skip


def test_an_alert_line_is_the_documented_record(tmp_path):
    sink = FileAlertSink(tmp_path / "alerts.jsonl")
    sink.write([alert(), alert("resolved", 60 * 10**9)])
    sink.close()
    firing, resolved = (json.loads(line) for line in (tmp_path / "alerts.jsonl").read_text().splitlines())
    assert (firing["id"], firing["status"], firing["started_at"], firing["ended_at"]) == (
        "id-1", "firing", "1970-01-01T00:00:01.5Z", None,
    )  # fmt: skip
    assert resolved["ended_at"] == "1970-01-01T00:01:00Z"
    fields = (
        "id stream status severity summary channel feature return_period started_at ended_at score threshold rank"
        " evidence observed expected lower upper"
    )
    told = ("still", "cpu", 0.5, "once in 11 days", "no change for 3 h", {"seconds": 10_800.0})
    assert (
        tuple(firing[name] for name in ("channel", "feature", "rank", "return_period", "summary", "evidence")) == told
    )
    assert list(firing) == [*fields.split(), "contributions", "model_version", "topic", "partition", "offset"]


def test_a_dead_letter_keeps_the_exact_bytes(tmp_path):
    raws = [b'{"value": NaN}', b"\xff\xfe\x00", "\ufeffé\x00\u2028".encode(), b""]
    sink = FileDeadLetterSink(tmp_path / "dead.jsonl")
    sink.write([Rejected("t", 1, n, "not_json", "a detail", raw) for n, raw in enumerate(raws)])
    sink.close()
    lines = [json.loads(line) for line in (tmp_path / "dead.jsonl").read_bytes().split(b"\n")[:-1]]
    kept = [base64.b64decode(line["raw_base64"]) if "raw_base64" in line else line["raw"].encode() for line in lines]
    assert kept == raws
    assert [(line["topic"], line["partition"], line["offset"], line["reason"]) for line in lines] == [
        ("t", 1, n, "not_json") for n in range(4)
    ]


def test_restore_truncates_what_was_written_after_the_position(tmp_path):
    path = tmp_path / "scores.jsonl"
    sink = FileScoreSink(path)
    sink.write(scores())
    sink.flush()
    position = sink.position()
    assert position[str(path)][0] == path.stat().st_size
    before = path.read_bytes()
    sink.write(scores())
    sink.close()
    with path.open("ab") as torn:
        torn.write(b'{"stream": "half a li')  # as a crash leaves it
    sink = FileScoreSink(path)
    sink.restore(position)
    assert path.read_bytes() == before
    sink.write(scores())
    sink.close()
    assert path.read_bytes() == before * 2


def test_restore_recognises_a_file_rewritten_after_an_earlier_restore(tmp_path):
    path = tmp_path / "scores.jsonl"
    sink = FileScoreSink(path)
    begun = sink.position()
    sink.write(scores())
    sink.flush()
    taken_back, *_ = sink.position()[str(path)]
    sink.restore(begun)
    sink._append([b"x" * (taken_back - 1)])  # as long, and another content
    sink.flush()
    position = sink.position()
    assert position[str(path)][0] == taken_back
    before = path.read_bytes()
    sink.write(scores())
    sink.close()
    sink = FileScoreSink(path)
    sink.restore(position)
    sink.close()
    assert path.read_bytes() == before


def test_restore_leaves_unnamed_and_shorter_files_alone(tmp_path, caplog):
    path = tmp_path / "scores.jsonl"
    sink = FileScoreSink(path)
    sink.write(scores())
    sink.flush()
    before = path.read_bytes()
    sink.restore({})
    sink.restore({str(path): 10**6})
    sink.close()
    assert path.read_bytes() == before
    assert "1000000 were written before" in caplog.text


def test_flushed_lines_survive_kill_9(tmp_path):
    script = """
        import os, sys
        from connectors.files.sinks import FileDeadLetterSink
        from connectors.batches import Rejected
        sink = FileDeadLetterSink(sys.argv[1])
        sink.write([Rejected("t", 0, 1, "not_json", "flushed", b"x")])
        sink.flush()
        sink.write([Rejected("t", 0, 2, "not_json", "not flushed", b"x")])
        os.kill(os.getpid(), 9)
    """
    path = tmp_path / "dead.jsonl"
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    assert subprocess.run(command, env=ENVIRONMENT, timeout=DEADLINE_SECONDS, check=False).returncode == -9
    assert [json.loads(line)["offset"] for line in path.read_text().splitlines()] == [1]


def test_a_sink_that_cannot_be_opened_is_an_error_with_path_and_reason(tmp_path):
    with pytest.raises(FileError, match=r"no/such/scores\.jsonl: cannot be written: No such file"):
        FileScoreSink(tmp_path / "no" / "such" / "scores.jsonl")


def test_flush_reports_a_full_disk():
    sink = FileDeadLetterSink("/dev/full")
    sink.write([Rejected("t", 0, 1, "not_json", "x", b"x")])
    with pytest.raises(FileError, match="/dev/full: cannot be written: No space left on device"):
        sink.flush()
