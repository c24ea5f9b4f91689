"""What the daemon logs: rejected records, a sign of life, alerts as fields, and times with their zone."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from tests.daemon.fleet import make_fleet
from tests.daemon.records import read_lines
from tests.daemon.support import Longwatch, until


def test_the_log_shows_rejected_records_alerts_and_times(tmp_path: Path) -> None:
    settings = {
        "source.type": "file",
        "source.paths": ["-"],
        "state.directory": str(tmp_path / "state"),
        "training.enabled": False,
        "logging.format": "json",
        "alerting.threshold": 1.5,  # many alerts
        "output.alerts_file": str(tmp_path / "alerts.jsonl"),
        "output.dead_letter_file": str(tmp_path / "rejected.jsonl"),
    }
    fleet = make_fleet(streams=4, rows=500, seed=3)
    wrong = json.dumps({"name": "web", "when": 1, "fields": {}}).encode() + b"\n"
    with Longwatch(tmp_path, settings, environ={"TZ": "Asia/Kolkata"}, stdin=subprocess.PIPE) as daemon:
        assert daemon.process.stdin is not None
        daemon.process.stdin.write(wrong * 600)
        daemon.process.stdin.flush()
        daemon.work_until(lambda found: found.sum("events_rejected_total") == 600, "all are rejected")
        told_so = 200, "none of the last 600 records could be read (the last: no_value)\n"
        until(lambda: daemon.get("/readyz") == told_so, "what is ready says so")
        assert daemon.get("/livez")[0] == 200
        daemon.process.stdin.writelines(record + b"\n" for _, record in fleet.records())
        daemon.process.stdin.close()
        assert daemon.wait() == 0
        lines = [json.loads(line) for line in daemon.log.splitlines()]

    def reported(pattern: str) -> list[dict[str, object]]:
        return [line for line in lines if re.search(pattern, str(line["message"]))]

    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in lines)
    (warning, *_) = reported(r"^\d+ records were rejected \(no_value\), the last: ")
    assert warning["level"] == "warning"
    assert "-, line " in str(warning["message"])
    assert str(warning["message"]).endswith(f"; they are kept in {tmp_path / 'rejected.jsonl'}")
    (loud,) = reported("^none of the last ")
    assert loud["level"] == "error"
    assert reported("records can be read again, after 600 rejected ones")
    alerts = read_lines(tmp_path / "alerts.jsonl")
    of_alerts = reported("^(warning|critical) alert: |^resolved ")
    assert [{name: line[name] for name in alert} for line, alert in zip(of_alerts, alerts, strict=True)] == alerts
    assert len(alerts) > 5
    events = len(fleet.names) * fleet.rows
    firing = sum(alert["status"] == "firing" for alert in alerts)
    assert reported(rf"^in \d+ s: {events} scored, 600 rejected, 0 late, 0 duplicate, {firing} alerts$")
