"""What a person does on the page reaches the daemon, and what fired can be looked at after a restart."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Page, expect

from tests.daemon.support import until
from tests.detector.web.page.conftest import Visit
from tests.detector.web.support import ROWS, SPIKE, STREAMS, Watched, scored, watched


def fired(daemon: Watched) -> str:
    """Feed what fires, and return the incident's id."""
    daemon.feed(ROWS, spike=SPIKE)
    scored(daemon, ROWS * len(STREAMS))
    until(lambda: daemon.get("/incidents")["incidents"], "there is an incident")
    return str(daemon.get("/incidents")["incidents"][0]["id"])


def allow(page: Page, token: str) -> None:
    """Give the page a token."""
    page.get_by_role("button", name="Read only").click()
    page.get_by_role("textbox", name="Token").fill(token)
    page.get_by_role("button", name="Use it").click()
    expect(page.get_by_role("button", name="May write")).to_be_visible()


def sign(page: Page, word: str) -> None:
    """Fill in the open dialog, and send it."""
    page.get_by_role("textbox", name="Your name").fill("Ada <b>")
    page.locator("dialog [name=reason]").fill("known & <i>planned</i>")
    page.get_by_role("dialog").get_by_role("button", name=word).click()
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_an_incident_is_acknowledged_and_its_alert_marked_false(tmp_path: Path, visit: Visit) -> None:
    with watched(tmp_path) as daemon:
        incident = fired(daemon)
        page = visit(f"{daemon.url}/#/incidents/{incident}")
        expect(page.get_by_role("button", name="Acknowledge")).to_have_attribute("aria-disabled", "true")
        allow(page, daemon.token)
        page.get_by_role("button", name="Acknowledge").click()
        sign(page, "Acknowledge")
        expect(page.locator(".lead")).to_contain_text("taken by Ada <b>: known & <i>planned</i>")
        assert daemon.get(f"/incidents/{incident}")["acknowledged"]["by"] == "Ada <b>"
        page.get_by_role("button", name="False alarm").click()
        sign(page, "Mark it")
        expect(page.locator(".detail")).to_contain_text("marked false")
        worst = daemon.get(f"/incidents/{incident}")["alerts"][0]["id"]
        assert daemon.get(f"/alerts/{worst}")["verdict"] == "false"
        page.close()


def test_a_stream_is_muted(tmp_path: Path, visit: Visit) -> None:
    with watched(tmp_path) as daemon:
        daemon.feed(ROWS)
        scored(daemon, ROWS * len(STREAMS))
        page = visit(f"{daemon.url}/#/stream?name=host-00%2Fload")
        allow(page, daemon.token)
        page.get_by_role("button", name="Mute", exact=True).click()
        page.get_by_label("1 day").check()
        sign(page, "Mute")
        expect(page.locator(".lead .tag", has_text="muted")).to_be_visible()
        assert [one["pattern"] for one in daemon.get("/mutes")["mutes"]] == ["host-00/load"]
        assert daemon.get("/stream?name=host-00/load")["muted"]
        page.close()


def test_what_an_alert_looked_like_is_there_after_a_restart(tmp_path: Path, visit: Visit) -> None:
    with watched(tmp_path) as daemon:
        incident = fired(daemon)
        daemon.daemon.terminate()
    with watched(tmp_path) as daemon:
        page = visit(f"{daemon.url}/#/incidents/{incident}")
        expect(page.get_by_role("region", name="Around the alert").locator(".panel")).to_have_count(3)
        expect(page.get_by_role("region", name="Around the alert")).to_contain_text("1 alert")
        page.close()
