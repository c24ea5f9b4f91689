"""Feedback over the API of a running daemon, which is killed in between."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.daemon.support import until
from tests.detector.web.support import ROWS, SPIKE, Answer, Watched, scored, watched

NAMES = ["host-00/load", "host-01/load"]
SIGNED = {"reason": "a backup", "author": "ann"}


def post(daemon: Watched, path: str, body: object = None, method: str = "POST") -> Answer:
    return daemon.ask(f"/api/v1{path}", method, body, Authorization=f"Bearer {daemon.token}")


def test_people_acknowledge_judge_mute_and_reset_and_a_kill_forgets_nothing(tmp_path: Path) -> None:
    with watched(tmp_path) as daemon:
        daemon.feed(ROWS, NAMES, spike=SPIKE)
        scored(daemon, ROWS * len(NAMES))
        until(lambda: daemon.get("/incidents")["incidents"], "there is an incident")
        incident = daemon.get("/incidents")["incidents"][0]
        alert = incident["alerts"][0]["id"]

        assert daemon.ask(f"/api/v1/alerts/{alert}/verdict", "POST", {"verdict": "false"}).status in (401, 403)
        assert post(daemon, "/alerts/none/verdict", {"verdict": "false"}).status == 404
        assert post(daemon, f"/alerts/{alert}/verdict", {"verdict": "perhaps"}).status == 422
        assert post(daemon, "/stream/reset?name=none", SIGNED).status == 404

        assert post(daemon, f"/incidents/{incident['id']}/acknowledge", SIGNED).json()["kind"] == "acknowledge"
        assert post(daemon, f"/alerts/{alert}/verdict", {"verdict": "false", **SIGNED}).status == 200
        assert post(daemon, "/mutes", {"pattern": "host-*", "until": "2199-01-01T00:00:00Z", **SIGNED}).status == 200
        assert post(daemon, "/mutes", {"pattern": "<b>*", **SIGNED}).status == 200
        assert post(daemon, "/stream/reset?name=host-01/load", SIGNED).status == 200
        daemon.daemon.process.send_signal(signal.SIGKILL)
        daemon.daemon.process.wait()
    with watched(tmp_path) as daemon:
        found = daemon.get(f"/incidents/{incident['id']}")
        assert found["acknowledged"]["by"] == "ann"
        assert {one["id"]: one["verdict"] for one in found["alerts"]}[alert] == "false"
        assert daemon.get(f"/alerts/{alert}")["verdict"] == "false"
        wide, hostile = daemon.get("/mutes")["mutes"]
        assert (wide["pattern"], wide["until"], wide["author"]) == ("host-*", "2199-01-01T00:00:00.000Z", "ann")
        assert (hostile["pattern"], hostile["until"]) == ("<b>*", None)
        assert post(daemon, f"/mutes/{hostile['id']}", method="DELETE").json()["kind"] == "unmute"
        assert post(daemon, f"/mutes/{hostile['id']}", method="DELETE").status == 404
        daemon.row = 2 * ROWS  # later than all that came before the kill
        daemon.feed(1, ["host-00/load"])
        scored(daemon, 1)
        assert daemon.get("/stream?name=host-00/load")["muted"]
