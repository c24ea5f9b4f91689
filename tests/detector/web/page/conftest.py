"""A headless Chromium, and pages whose every word to the console and every request is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.daemon.support import PATIENCE
from tests.tools import NO_CHROMIUM, chromium

Visit = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for a module: as long as it is there, no other event loop may run."""
    if (path := chromium()) is None:
        pytest.skip(NO_CHROMIUM)
    with sync_playwright() as playwright:
        # without its sandbox, which a container's root cannot have; it sees our own pages only
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """`visit(address, width=1440, theme="light", misses=())` opens a page.

    At the end nothing may have left the page's own place, run what came from elsewhere, or been complained of, but for
    what was asked for in vain where `misses` says so: parts of the browser's own words, "net::ERR".
    """
    complaints: list[str] = []
    contexts = []

    def opened(address: str, *, width: int = 1440, theme: str = "light", misses: Sequence[str] = ()) -> Page:
        place = urlsplit(address).netloc

        def complain(kind: str, text: str) -> None:
            if kind in {"error", "warning"} and not any(miss in text for miss in misses):
                complaints.append(text)

        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, reduced_motion="reduce"
        )
        contexts.append(context)
        context.set_default_timeout(PATIENCE * 1e3)
        page = context.new_page()
        page.on("console", lambda said: complain(said.type, said.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(f"a dialog: {dialog.message}"))
        page.on(
            "request",
            lambda asked: None if urlsplit(asked.url).netloc == place else complaints.append(f"asked {asked.url}"),
        )
        page.goto(address)
        page.wait_for_selector("main h1")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []
