"""How long the page's search takes, from the last key until what is found is painted, in headless Chromium.

    python -m tests.bench.bench_search [STREAMS]

The pause that the page waits for another key is in it. Measured while the daemon reads a file as fast as it can.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median

from playwright.sync_api import Page, sync_playwright

from tests.bench.bench_page import write_events
from tests.daemon.support import PATIENCE, Longwatch
from tests.tools import NO_CHROMIUM, chromium

ROWS = 60  # events of each stream
SEARCHES = 30

SEARCH = """async (text) => {
    const field = document.getElementById("search");
    const view = document.querySelector("[data-answered]");
    const found = new Promise((resolve) => new MutationObserver((_, observer) => {
        if (view.dataset.answered !== text) return;
        observer.disconnect();
        requestAnimationFrame(() => setTimeout(() => resolve(performance.now())));
    }).observe(view, {attributes: true}));
    const began = performance.now();
    field.value = text;
    field.dispatchEvent(new Event("input"));
    return await found - began;
}"""


def searches(page: Page) -> list[float]:
    """Search; return how long each took, ms."""
    took = []
    for number in range(SEARCHES):
        took.append(float(page.evaluate(SEARCH, f"HOST-{number:05d}")))
        assert page.locator("main tbody tr").count(), "it finds some"
        page.wait_for_timeout(200)
    return took


def main() -> None:
    if (path := chromium()) is None:
        sys.exit(NO_CHROMIUM)
    streams = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        events = Path(folder) / "events.csv"
        write_events(events, streams, ROWS)
        settings = {
            "source.type": "file",
            "source.paths": [str(events)],
            "training.enabled": False,
            "state.directory": f"{folder}/state",
            "state.max_streams": 2 * streams,
            "state.checkpoint_interval_seconds": 60,  # one of 100,000 streams takes several seconds
        }
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        with Longwatch(Path(folder), settings) as daemon:
            port = int(daemon.line(r"served on http://127\.0\.0\.1:(\d+)/")[1])
            daemon.work_until(lambda m: m("events_scored_total") >= streams, "all streams are known")
            page = browser.new_page()
            page.set_default_timeout(PATIENCE * 1e3)
            page.goto(f"http://127.0.0.1:{port}/#/streams")
            page.wait_for_selector("[data-answered]")
            took = searches(page)
            assert daemon.metrics()("events_scored_total") < streams * ROWS, "the file was too short"
            page.close()
        browser.close()
    print(f"{streams} streams, {SEARCHES} searches: {median(took):.0f} ms, at most {max(took):.0f}")


if __name__ == "__main__":
    main()
