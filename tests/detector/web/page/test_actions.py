"""What a person does on the page reaches the daemon, and what fired can be looked at after a restart."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import Page, expect

from tests.daemon.support import until
from tests.detector.web.page.conftest import Visit
from tests.detector.web.support import ROWS, SPIKE, STREAMS, Watched, scored, watched

AUTHOR, REASON = "Ada <img src=x onerror=alert(1)>", "known & <i>planned</i>"


def fired(daemon: Watched) -> str:
    """Feed what fires, and return the incident's id."""
    daemon.feed(ROWS, spike=SPIKE)
    scored(daemon, ROWS * len(STREAMS))
    until(lambda: daemon.get("/incidents")["incidents"], "there is an incident")
    return str(daemon.get("/incidents")["incidents"][0]["id"])


def allow(page: Page, token: str) -> None:
    """Give the page a token, which it has asked for."""
    page.get_by_role("textbox", name="Token").fill(token)
    page.get_by_role("button", name="Use it").click()
    expect(page.get_by_role("button", name="May write")).to_be_visible()


def sign(page: Page, word: str) -> None:
    """Fill in the open dialog, and send it."""
    page.get_by_role("textbox", name="Your name").fill(AUTHOR)
    page.locator("dialog [name=reason]").fill(REASON)
    page.get_by_role("dialog").get_by_role("button", name=word).click()
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_an_incident_is_acknowledged_and_its_alert_judged_twice(tmp_path: Path, visit: Visit) -> None:
    with watched(tmp_path) as daemon:
        incident = fired(daemon)
        other = visit(daemon.url)
        expect(other.locator("#pulse")).to_have_text("live")
        page = visit(f"{daemon.url}/#/incidents/{incident}")
        page.get_by_role("button", name="Acknowledge").click()
        allow(page, daemon.token)  # asked for first; then what was to be done goes on
        sign(page, "Acknowledge")
        expect(page.locator(".lead")).to_contain_text(f"taken by {AUTHOR}: {REASON}")
        assert daemon.get(f"/incidents/{incident}")["acknowledged"]["by"] == AUTHOR
        expect(page.get_by_role("button", name="Acknowledge")).to_have_count(0)
        expect(other.locator(".incident")).to_contain_text(f"taken by {AUTHOR}")  # who only looks sees it too
        for button, word in [("False alarm", "false"), ("Right after all", "right"), ("False after all", "false")]:
            page.get_by_role("button", name=button).click()
            sign(page, "Mark it")
            expect(page.locator(".detail")).to_contain_text(f"marked {word} by {AUTHOR}: {REASON}")
        worst = daemon.get(f"/incidents/{incident}")["alerts"][0]["id"]
        assert daemon.get(f"/alerts/{worst}")["verdict"] == "false"
        for one in (page, other):
            one.close()


def test_a_stream_is_muted_from_its_alert_and_unmuted_from_the_list(tmp_path: Path, visit: Visit) -> None:
    with watched(tmp_path) as daemon:
        incident = fired(daemon)
        worst = daemon.get(f"/incidents/{incident}")["alerts"][0]
        page = visit(f"{daemon.url}/#/incidents/{incident}")
        page.get_by_role("button", name="Mute the stream").click()
        allow(page, daemon.token)
        page.get_by_label("1 day").check()
        expect(page.get_by_role("dialog")).to_contain_text("by the time of the streams' own events")
        sign(page, "Mute")
        expect(page.get_by_role("list", name="Mutes of this stream")).to_contain_text(f"by {AUTHOR}: {REASON}")
        assert [one["pattern"] for one in daemon.get("/mutes")["mutes"]] == [worst["stream"]]
        page.get_by_role("link", name="Mutes").click()
        row = page.get_by_role("list", name="Mutes in force").get_by_role("listitem")
        expect(row).to_contain_text("muted until")
        row.get_by_role("button", name="Unmute").click()
        expect(page.get_by_text("Nothing is muted")).to_be_visible()
        assert daemon.get("/mutes")["mutes"] == []
        page.close()


def test_a_name_with_wildcards_is_muted_alone_and_a_pattern_shows_on_its_streams(tmp_path: Path, visit: Visit) -> None:
    names = ["rack[1]/a*", "rack1/ab"]
    with watched(tmp_path) as daemon:
        daemon.feed(ROWS, names)
        scored(daemon, ROWS * len(names))
        page = visit(f"{daemon.url}/#/stream?name={quote(names[0])}")
        page.get_by_role("button", name="Mute", exact=True).click()
        allow(page, daemon.token)
        sign(page, "Mute")
        expect(page.locator(".lead .tag", has_text="muted")).to_be_visible()
        assert [daemon.get(f"/stream?name={quote(name)}")["muted"] for name in names] == [True, False]
        page.goto(f"{daemon.url}/#/mutes")
        page.get_by_role("button", name="Mute streams").click()
        page.get_by_role("textbox", name="Stream or pattern").fill("rack?/*")
        page.get_by_label("for good").check()
        sign(page, "Mute")
        page.goto(f"{daemon.url}/#/stream?name={quote(names[1])}")
        own = page.get_by_role("list", name="Mutes of this stream")
        expect(own).to_contain_text("muted for good")
        page.get_by_role("button", name="Reset").click()
        sign(page, "Reset")
        expect(page.locator(".toast").last).to_have_text("Reset.")
        own.get_by_role("button", name="Unmute rack?/*").click()
        expect(own).to_have_count(0)
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


def test_a_stream_that_stopped_is_told_with_the_gap_that_follows_its_last_event(tmp_path: Path, visit: Visit) -> None:
    names = ["host-00/load", "host-01/load"]
    with watched(tmp_path, alerting__silence=True, alerting__max_silence_seconds=600) as daemon:
        daemon.feed(ROWS, names)
        daemon.feed(90, names[:1])
        until(lambda: daemon.get("/incidents")["incidents"], "there is an incident")
        incident = daemon.get("/incidents")["incidents"][0]
        page = visit(f"{daemon.url}/#/incidents/{incident['id']}")
        expect(page.locator("main h1")).to_contain_text(f"{names[1]}: no event for")
        expect(page.locator(".detail h3").first).to_have_text("Why: silent")
        expect(page.locator(".evidence dt").first).to_have_text("no event for")
        around = page.get_by_role("region", name="Around the alert")
        expect(around.locator(".panel")).to_have_count(3)
        expect(around).to_contain_text(f"{ROWS} events from")
        expect(around).to_contain_text("and none since")
        page.close()
