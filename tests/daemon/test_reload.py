"""Settings read again by a running daemon: nothing is lost, a bad file changes nothing."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from connectors.encode import rfc3339_of
from tests.daemon.fleet import START, STEP
from tests.daemon.receiver import SECRET, Receiver
from tests.daemon.records import read_lines
from tests.daemon.support import PATIENCE, RUN, Longwatch, until

RULE = '[[rules]]\nname = "all"\nstreams = ["*"]\nthreshold = {}\n'


def feed(daemon: Longwatch, first: int, last: int, spikes: Mapping[int, float] = MappingProxyType({})) -> None:
    assert daemon.process.stdin
    for row in range(first, last):
        event = {"stream": "s", "timestamp": START + row * STEP, "values": {"x": row % 7 + spikes.get(row, 0.0)}}
        daemon.process.stdin.write(json.dumps(event).encode() + b"\n")
    daemon.process.stdin.flush()
    daemon.work_until(lambda found: found("events_scored_total") == last, "all are scored")


def test_rules_change_between_two_events_and_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    config, scores = tmp_path / "watched.toml", tmp_path / "scores.jsonl"
    config.write_text(RULE.format(4.5))
    settings = {
        "source.type": "file",
        "source.paths": ["-"],
        "state.directory": str(tmp_path / "state"),
        "state.checkpoint_interval_seconds": 3600,
        "output.scores_file": str(scores),
    }
    program = (*RUN, "--config", str(config))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE)
        with Longwatch(
            tmp_path,
            settings,
            program=program,
            environ={"NOTIFY_SOCKET": str(tmp_path / "notify")},
            stdin=subprocess.PIPE,
        ) as daemon:
            assert manager.recv(1000).startswith(b"READY=1\n")
            feed(daemon, 0, 20)
            config.write_text(RULE.format(7.5) + "[kafka]\ngroup_id = 'another'\n")
            daemon.line("settings were read again: changed: rules")
            daemon.line("needs a restart: kafka.group_id")
            assert manager.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert manager.recv(1000).startswith(b"READY=1\n")
            feed(daemon, 20, 40)
            config.write_text("[[rules]]\nname = 3\n")
            daemon.line("refused, the old ones hold: ")
            until(lambda: daemon.metrics()("config_last_reload_successful") == 0)
            feed(daemon, 40, 60)
            port = daemon.line(r"served on http://127\.0\.0\.1:(\d+)/")[1]
            known = tmp_path / "known.toml"  # what the daemon's own file cannot say now
            known.write_text(f'[http]\nport = {port}\n[state]\ndirectory = "{tmp_path}/state"\n')
            asking = [sys.executable, *RUN[:-1], "reload", "--config", str(known)]
            refused = subprocess.run(asking, capture_output=True, text=True, check=False)
            assert refused.returncode == 1
            assert f"{config}:1: rules.0.streams is not set" in refused.stderr
            config.write_text(RULE.format(6.5) + "[kafka]\ngroup_id = 'another'\n")
            done = subprocess.run(asking, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            assert done.stdout.endswith("needs a restart: kafka.group_id\n")
            until(lambda: daemon.metrics()("config_last_reload_successful") == 1)
            daemon.process.send_signal(signal.SIGHUP)
            daemon.line("settings were read again: nothing changed")
            daemon.kill()  # a checkpoint was made as the rules changed
    found = read_lines(scores)
    assert [line["threshold"] for line in found] == [4.5] * 20 + [7.5] * 40
    with Longwatch(tmp_path, settings, program=program, stdin=subprocess.DEVNULL) as again:
        again.line("1 streams, resumed")
        assert again.wait() == 0
    assert len(read_lines(scores)) == 60


def test_a_reload_leaves_what_people_have_muted_and_what_streams_have_learnt(tmp_path: Path) -> None:
    config, alerts = tmp_path / "watched.toml", tmp_path / "alerts.jsonl"
    config.write_text(RULE.format(4.5))
    settings = {
        "source.type": "file",
        "source.paths": ["-"],
        "state.directory": str(tmp_path / "state"),
        "output.alerts_file": str(alerts),
    }
    with Longwatch(tmp_path, settings, program=(*RUN, "--config", str(config)), stdin=subprocess.PIPE) as daemon:
        feed(daemon, 0, 200)

        def ask(method: str, path: str, body: object = None) -> dict[str, Any]:
            token = (tmp_path / "state" / "api.token").read_text().strip()
            port = int(daemon.line(r"served on http://127\.0\.0\.1:(\d+)/")[1])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            with contextlib.closing(connection):
                connection.request(method, f"/api/v1{path}", json.dumps(body) if body else None, headers)
                answer = connection.getresponse()
                assert answer.status < 300, answer.read()
                return dict(json.loads(answer.read() or b"{}"))

        ask("POST", "/mutes", {"pattern": "s*", "until": None, "reason": "moving it", "author": "ann"})
        config.write_text(RULE.format(6.5))
        assert ask("POST", "/reload")["needs_restart"] == []
        feed(daemon, 200, 300, spikes={250: 40.0})
        stream = ask("GET", "/stream?name=s")
        assert stream["events"] == 300
        assert stream["muted"]
        (mute,) = ask("GET", "/mutes")["mutes"]
        assert mute["pattern"] == "s*"
        config.write_text(RULE.format(5.5))
        ask("POST", "/reload")
        ask("DELETE", f"/mutes/{mute['id']}")
        feed(daemon, 300, 400, spikes={350: 1e3})
        assert daemon.terminate()[0] == 0
    fired = [alert for alert in read_lines(alerts) if alert["status"] == "firing"]
    assert [(alert["started_at"], alert["rule"], alert["threshold"]) for alert in fired] == [
        (rfc3339_of((START + 350 * STEP) * 10**9), "all", 5.5)
    ]


def mount(folder: Path, version: str, text: str) -> Path:
    """Put a version of a ConfigMap where a container sees it, as the kubelet does; return the file's path."""
    data, former = folder / "..data", (folder / "..data").resolve()
    (folder / version).mkdir(parents=True)
    (folder / version / "longwatch.toml").write_text(text)
    (folder / "..data_tmp").symlink_to(version)
    (folder / "..data_tmp").rename(data)
    if former != data:
        shutil.rmtree(former)
    file = folder / "longwatch.toml"
    if not file.is_symlink():
        file.symlink_to("..data/longwatch.toml")
    return file


def test_a_configmap_that_is_swapped_brings_a_receiver_which_is_told_of_the_next_incident(tmp_path: Path) -> None:
    settings = {
        "source.type": "file",
        "source.paths": ["-"],
        "state.directory": str(tmp_path / "state"),
        "incidents.wait_seconds": 0,
        "training.enabled": False,
    }
    config = mount(tmp_path / "etc", "..first", RULE.format(5.5))
    with (
        Receiver() as hook,
        Longwatch(tmp_path, settings, program=(*RUN, "--config", str(config)), stdin=subprocess.PIPE) as daemon,
    ):
        feed(daemon, 0, 200)
        section = f'[receivers.hook]\nurl = "{hook.url}"\nsecret = "{SECRET}"\nallowed_hosts = ["127.0.0.1"]\n'
        named = RULE.format(5.5) + 'receivers = ["hook"]\n'
        mount(tmp_path / "etc", "..second", named)
        daemon.line(r"refused, the old ones hold: .*there is no section \[receivers.hook\]")
        mount(tmp_path / "etc", "..third", named + section)
        daemon.line("settings were read again: changed: rules, receivers$")
        feed(daemon, 200, 300, spikes={250: 1e3})
        daemon.work_until(lambda found: found("deliveries_total", receiver="hook", outcome="delivered"), "it is told")
        assert daemon.metrics()("outbox_pending", receiver="hook") == 0
        mount(tmp_path / "etc", "..fourth", RULE.format(5.5))
        daemon.line("settings were read again: changed: rules, receivers$(?s:.*)changed: rules, receivers$")
        with pytest.raises(KeyError):
            daemon.metrics()("outbox_pending", receiver="hook")
        assert daemon.terminate()[0] == 0
    assert json.loads(hook.taken[0].body)["type"] == "incident.opened"
