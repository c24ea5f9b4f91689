"""A real Alertmanager, and what it notifies: started and stopped by tests."""

from __future__ import annotations

import json
import subprocess
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.ports import own_port
from tests.tools import ALERTMANAGER_FOLDER


class Pager:
    """What Alertmanager notifies: the groups that it sends."""

    def __init__(self) -> None:
        self.groups: list[dict[str, Any]] = []
        pager = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                pager.groups.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


class Alertmanager:
    """One replica, on its own; it notifies a pager soon."""

    def __init__(self, program: Path, folder: Path, pager: Pager) -> None:
        self.port = own_port()
        configuration = {
            "route": {
                "receiver": "pager", "group_by": ["alertname", "incident"], "group_wait": "0s",
                "group_interval": "1s", "repeat_interval": "1h",
            },
            "receivers": [{
                "name": "pager",
                "webhook_configs": [{"url": f"http://127.0.0.1:{pager.server.server_port}/", "send_resolved": True}],
            }],
        }  # fmt: skip
        folder.mkdir()
        (folder / "alertmanager.yml").write_text(yaml.safe_dump(configuration))
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program, f"--config.file={folder / 'alertmanager.yml'}", f"--storage.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}", "--cluster.listen-address=",
                ],
                stdout=log, stderr=subprocess.STDOUT,
                cwd=ALERTMANAGER_FOLDER if ALERTMANAGER_FOLDER.is_dir() else None,
            )  # fmt: skip

    def alerts(self) -> list[dict[str, Any]]:
        """Return what it believes is active."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v2/alerts", timeout=60) as answer:
            found: list[dict[str, Any]] = json.load(answer)
        return found

    def is_ready(self) -> bool:
        if self._process.poll() is not None:
            pytest.fail(f"Alertmanager ended: {self.log.read_text()}")
        try:
            return self.alerts() == []
        except OSError:
            return False

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
