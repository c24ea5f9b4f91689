"""Pictures of the page for the documents, docs/images/page-*.png: python -m tests.screenshots (make screenshots).

A daemon replays the demo's series, each moved in time so that it ends now, some hours into its last labelled failure.
What came since is fed while the page looks, as it would be live.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from playwright.sync_api import Page, sync_playwright

from detector.commands.demo import DATA
from tests.daemon.support import PATIENCE, until
from tests.detector.web.support import Watched, watched
from tests.tools import NO_CHROMIUM, chromium

FOLDER = Path(__file__).parent.parent / "docs" / "images"
STREAM = "nyc_taxi"
LIVE_EVENTS = 240  # of the stream that is looked at, fed while one looks
AFTER_SECONDS = 6 * 3600  # from the middle of the last labelled window to the end


class Picture(NamedTuple):
    """What a picture shows."""

    name: str
    view: str
    theme: Literal["light", "dark"]
    width: int  # px


class Event(NamedTuple):
    """One row of a series."""

    time: float  # Unix, s, moved
    stream: str
    value: float


def seconds(text: str) -> float:
    """Return a time of the data's as Unix seconds."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def series(now: float) -> list[Event]:
    """Return all events in order of time, the last of each series now."""
    labels = json.loads((DATA / "labels.json").read_text())
    found = list[Event]()
    for path in sorted(DATA.glob("*.csv.gz")):
        name = path.name.removesuffix(".csv.gz")
        first, last = map(seconds, labels[f"{name}.csv"][-1])
        with gzip.open(path, "rt") as file:
            rows = [(seconds(row["timestamp"]), float(row["value"])) for row in csv.DictReader(file)]
        rows = [row for row in rows if row[0] <= (first + last) / 2 + AFTER_SECONDS]
        shift = now - rows[-1][0]
        found += [Event(time=at + shift, stream=name, value=value) for at, value in rows]
    return sorted(found)


def feed(daemon: Watched, events: list[Event]) -> None:
    """Write events and wait until they have been read."""
    assert daemon.daemon.process.stdin is not None
    before = daemon.daemon.metrics()("events_total")
    for event in events:
        record = {"stream": event.stream, "timestamp": round(event.time), "values": {"value": event.value}}
        daemon.daemon.process.stdin.write(json.dumps(record).encode() + b"\n")
    daemon.daemon.process.stdin.flush()
    until(lambda: daemon.daemon.metrics()("events_total") >= before + len(events), "all is read")


def pictures(daemon: Watched) -> Iterator[Picture]:
    """Yield what is taken."""
    incident = daemon.get(f"/alerts/{alerts_of(daemon, STREAM)[0]}")["incident"]
    yield Picture("stream", f"#/stream?name={STREAM}", "dark", 1280)
    yield Picture("incidents", "#/", "light", 1280)
    yield Picture("incident", f"#/incidents/{incident}", "light", 1280)
    yield Picture("incidents-phone", "#/", "dark", 390)


def alerts_of(daemon: Watched, stream: str) -> list[str]:
    """Return a stream's alerts, the newest first."""
    incidents = daemon.get("/incidents?limit=200")["incidents"]
    return [alert["id"] for one in incidents for alert in one["alerts"] if alert["stream"] == stream]


def take(page: Page, name: str) -> None:
    """Write a picture."""
    page.wait_for_selector("main h1")
    page.wait_for_timeout(1_500)  # charts are drawn with the next frames
    page.screenshot(path=FOLDER / f"page-{name}.png", full_page=name in {"stream", "incident"})


def main() -> None:
    """Take all pictures."""
    if (path := chromium()) is None:
        sys.exit(NO_CHROMIUM)
    events = series(time.time())
    own = [event for event in events if event.stream == STREAM]
    held = own[-LIVE_EVENTS].time
    with (
        tempfile.TemporaryDirectory() as folder,
        watched(Path(folder), source__max_poll_records=500) as daemon,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        feed(daemon, [event for event in events if event.time < held])
        looking = browser.new_page()
        looking.set_default_timeout(PATIENCE * 1e3)
        looking.goto(f"{daemon.url}/#/stream?name={STREAM}")
        looking.wait_for_selector("main h1")
        looking.wait_for_selector("#pulse[data-state=live]")
        feed(daemon, [event for event in events if event.time >= held])
        looking.wait_for_selector(".panel")
        until(lambda: daemon.get("/incidents?state=all")["incidents"], "there is an incident")
        for one in pictures(daemon):
            page = browser.new_page(viewport={"width": one.width, "height": 800}, color_scheme=one.theme)
            page.goto(f"{daemon.url}/{one.view}")
            take(page, one.name)
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
