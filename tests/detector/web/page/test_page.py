"""The page in a real browser, against a running daemon."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from tests.daemon.support import PATIENCE, until
from tests.detector.web.page.conftest import Visit
from tests.detector.web.support import HOSTILE, ROWS, SPIKE, STREAMS, Watched, scored, watched
from tests.ports import own_port
from tests.tools import NO_AXE, axe

VIEWS = ["#/", "#/incidents/{id}", "#/streams", "#/stream?name=host-00%2Fload", "#/mutes", "#/fleet"]

expect.set_options(timeout=PATIENCE * 1e3)


def address(daemon: Watched, view: str = "#/") -> str:
    return f"{daemon.url}/{view.format(id=daemon.get('/incidents')['incidents'][0]['id'])}"


def look(page: Page, where: str) -> None:
    """See that axe-core finds nothing, and that nothing is wider than the screen."""
    if (path := axe()) is None:
        pytest.skip(NO_AXE)
    page.evaluate(path.read_text())
    found = page.evaluate("axe.run()")["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found] == [], where
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), where


def focused(page: Page) -> str:
    """Return which row has the focus."""
    return str(page.evaluate("document.activeElement.dataset.row ?? ''"))


def test_an_incident_is_told_with_its_sentence_and_why_it_fired(daemon: Watched, visit: Visit) -> None:
    incident = daemon.get("/incidents")["incidents"][0]
    page = visit(address(daemon))
    row = page.locator(f"[data-row='{incident['id']}']")
    expect(row).to_have_text(incident["summary"])
    row.click()
    expect(page.locator("main h1")).to_have_text(incident["summary"])
    worst = incident["alerts"][0]
    shown = page.locator(".detail")
    expect(shown.locator(".finding")).to_have_text(worst["summary"])
    evidence = daemon.get(f"/alerts/{worst['id']}")["alert"]["evidence"]
    assert shown.locator(".evidence dt").count() == len(evidence)
    expect(shown.locator(".shares tbody tr")).to_have_count(2)


def test_what_happens_is_shown_without_a_reload(tmp_path: Path, visit: Visit) -> None:
    with watched(tmp_path) as daemon:
        daemon.feed(ROWS)
        scored(daemon, ROWS * len(STREAMS))
        page = visit(daemon.url)
        expect(page.locator("#pulse")).to_have_text("live")
        expect(page.locator("main h1")).to_have_text("Nothing is wrong")
        page.evaluate("window.same = true")
        daemon.feed(3, spike=daemon.row + 1)
        expect(page.locator(".incident").first).to_be_visible()
        expect(page.locator("main h1")).to_contain_text("open incident")
        expect(page.locator("#open-count")).to_be_visible()
        expect(page.locator("#news")).to_contain_text("New incident")
        assert page.evaluate("window.same")
        page.close()  # before the daemon, whose end it would complain of


def test_a_streams_events_arrive_while_one_looks(tmp_path: Path, visit: Visit) -> None:
    with watched(tmp_path) as daemon:
        daemon.feed(ROWS)
        scored(daemon, ROWS * len(STREAMS))
        page = visit(f"{daemon.url}/#/stream?name=host-00%2Fload")
        expect(page.locator("#pulse")).to_have_text("live")
        expect(page.locator("main .panel")).to_have_count(3)  # two features, and the score
        told = page.locator(".card > div > .note")
        expect(told).to_contain_text("300 events")
        before = told.inner_text()
        daemon.feed(5)
        expect(told).not_to_have_text(before)
        expect(told).to_contain_text("300 events")
        page.get_by_label("Event", exact=True).press("ArrowLeft")
        expect(page.get_by_label("Event", exact=True)).to_have_attribute(
            "aria-valuetext", re.compile("load .*expected")
        )
        page.get_by_text("The same as a table").click()
        expect(page.locator(".as-table tbody tr")).to_have_count(100)  # the last of them
        page.get_by_role("checkbox", name="free").uncheck()
        expect(page.locator("main .panel")).to_have_count(2)
        page.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_shown_as_text(daemon: Watched, visit: Visit, name: str) -> None:
    page = visit(f"{daemon.url}/#/streams", width=360)
    page.locator("#search").fill(name)
    row = page.locator("main tbody [data-row]").filter(has_text=name)
    expect(row).to_have_text(name)
    row.click()
    expect(page.locator("main h1")).to_have_text(name)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("main img, main script").count() == 0


def test_who_goes_on_while_a_search_waits_is_not_called_back(daemon: Watched, visit: Visit) -> None:
    """The address of the search, and that of the link, in one turn of the browser: before it shows what was chosen."""
    page = visit(f"{daemon.url}/#/streams")
    expect(page.locator("main tbody [data-row]").first).to_be_visible()
    script = page.locator("script[type=module]").get_attribute("src")
    assert script is not None
    router = script.rpartition("/")[0] + "/router.js"
    page.evaluate(
        """async (router) => {
            const { readdress, link } = await import(new URL(router, document.baseURI));
            location.hash = "#/fleet";
            readdress(link("/streams", { q: "a" }));
        }""",
        router,
    )
    expect(page.locator("main h1")).to_have_text("Fleet")


def test_all_can_be_reached_by_keys(daemon: Watched, visit: Visit) -> None:
    page = visit(address(daemon))
    page.keyboard.press("Tab")
    expect(page.locator("#skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    page.keyboard.press("j")
    first = focused(page)
    assert first in {one["id"] for one in daemon.get("/incidents")["incidents"]}
    page.keyboard.press("Enter")
    page.wait_for_url("**/#/incidents/**")
    expect(page.locator(".detail .finding")).to_be_visible()
    page.keyboard.press("Escape")
    page.wait_for_url("**/#/")
    page.keyboard.press("g")
    page.keyboard.press("s")
    expect(page.locator("#search")).to_be_focused()
    page.keyboard.type("host-07")
    expect(page.locator("main tbody tr")).to_have_count(1)
    page.keyboard.press("ArrowDown")
    assert focused(page) == "host-07/load"
    page.keyboard.press("Enter")
    expect(page.locator("main h1")).to_have_text("host-07/load")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.get_by_label("single keys do this").uncheck()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_the_list_is_walked_by_j_k_and_arrows(daemon: Watched, visit: Visit) -> None:
    page = visit(f"{daemon.url}/#/streams")
    page.get_by_label("Order").select_option("name")
    names = sorted(STREAMS)
    expect(page.locator("main tbody [data-row]").first).to_have_text(names[0])
    page.locator("main tbody [data-row]").first.focus()
    for key, at in [("j", 1), ("ArrowDown", 2), ("k", 1), ("ArrowUp", 0), ("k", 0)]:
        page.keyboard.press(key)
        assert focused(page) == names[at]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_no_view_keeps_anybody_out(daemon: Watched, visit: Visit, width: int, theme: str) -> None:
    """axe-core finds nothing, and nothing is wider than the screen."""
    for view in VIEWS:
        page = visit(address(daemon, view), width=width, theme=theme)
        expect(page.locator("html")).to_have_attribute("data-theme", theme)
        look(page, view)
        page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_what_opens_over_a_view_keeps_nobody_out(daemon: Watched, visit: Visit, theme: str) -> None:
    pattern = f"nobody-{theme}/*"
    page = visit(address(daemon, "#/mutes"), width=360, theme=theme)
    page.get_by_role("button", name="Help and keys").click()
    look(page, "help")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Mute streams").click()
    look(page, "token")
    page.get_by_role("textbox", name="Token").fill(daemon.token)
    page.get_by_role("button", name="Use it").click()
    page.get_by_role("textbox", name="Stream or pattern").fill(pattern)
    page.get_by_role("dialog").get_by_role("button", name="Mute").click()
    expect(page.get_by_role("alert")).to_contain_text("Your name is missing")
    look(page, "mute")
    page.get_by_role("textbox", name="Your name").fill("ann")
    page.get_by_role("dialog").get_by_role("button", name="Mute").click()
    expect(page.get_by_role("button", name=f"Unmute {pattern}")).to_be_visible()
    look(page, "mutes")
    page.get_by_role("button", name=f"Unmute {pattern}").click()
    expect(page.get_by_role("button", name=f"Unmute {pattern}")).to_have_count(0)


def test_the_first_tab_leads_past_the_head(daemon: Watched, visit: Visit) -> None:
    page = visit(f"{daemon.url}/#/fleet")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    expect(page.get_by_role("link", name="Skip to the content")).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    assert page.url.endswith("#/fleet")


def test_the_theme_can_be_chosen_and_is_kept(daemon: Watched, visit: Visit) -> None:
    page = visit(daemon.url, theme="light")
    page.get_by_role("button", name="Theme: auto").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.get_by_role("button", name="Theme: dark").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "light")


def test_writing_needs_a_token_which_is_kept_for_the_tab_only(daemon: Watched, visit: Visit) -> None:
    page = visit(daemon.url)
    page.get_by_role("button", name="Read only").click()
    page.get_by_role("textbox", name="Token").fill("wrong")
    page.get_by_role("button", name="Use it").click()
    expect(page.get_by_role("alert")).to_contain_text("does not know this token")
    page.get_by_role("textbox", name="Token").fill(daemon.token)
    page.get_by_role("button", name="Use it").click()
    expect(page.get_by_role("button", name="May write")).to_be_visible()
    assert page.evaluate("Object.values(sessionStorage)") == [daemon.token]
    assert daemon.token not in page.evaluate("JSON.stringify(localStorage)")
    page.reload()
    page.get_by_role("button", name="May write").click()
    page.get_by_role("button", name="Forget the token").click()
    expect(page.get_by_role("button", name="Read only")).to_be_visible()
    assert page.evaluate("Object.values(sessionStorage)") == []


@pytest.mark.parametrize(
    ("view", "head"),
    [
        ("#/incidents", "open incident"),
        ("#/alerts/", "open incident"),
        ("#incidents/{id}/", "far"),
        ("#/stream", "Streams"),
        ("#/streams/host-00/load", "host-00/load"),
        ("#/stream/host-00%2Fload", "host-00/load"),
    ],
)
def test_an_address_nearly_right_leads_there(daemon: Watched, visit: Visit, view: str, head: str) -> None:
    page = visit(address(daemon, view))
    known = daemon.get("/incidents")["incidents"][0]["summary"]
    expect(page.locator("main h1")).to_contain_text(known if head == "far" else head)
    page.close()


# what is written on each canvas at the right edge of its axis: [text, px]
SPY = """() => {
    window.ticks = new Map();
    const {fillText: write, clearRect: clear} = CanvasRenderingContext2D.prototype;
    CanvasRenderingContext2D.prototype.clearRect = function (...at) {
        window.ticks.set(this.canvas, []);
        return clear.call(this, ...at);
    };
    CanvasRenderingContext2D.prototype.fillText = function (text, ...at) {
        if (this.textAlign === "right" && text !== "") {
            window.ticks.get(this.canvas).push([text, this.measureText(text).width / devicePixelRatio]);
        }
        return write.call(this, text, ...at);
    };
}"""


@pytest.mark.parametrize(
    ("lag", "latency"),
    [
        (0, 0.0),
        (1, 0.0031),
        (2, 0.4),
        (3, 3.1),
        (10, 52.0),
        (80, 700.0),
        (9_000, 5_400.0),
        (1_234_567, 31_980.0),
        (12, 320_000.0),
        (10**9, 9e6),
    ],
)
def test_the_ticks_of_a_figure_differ_and_are_not_cut_off(
    daemon: Watched, visit: Visit, lag: int, latency: float
) -> None:
    page = visit(f"{daemon.url}/#/streams")
    columns = {
        "events_per_second": [lag] * 2,
        "lag": [0, lag],
        "latency_p99": [latency] * 2,
        "resident_bytes": [3e8] * 2,
    }
    page.route("**/api/v1/fleet", lambda asked: asked.fulfill(json={"time": [1e9, 1e9 + 10]} | columns))
    page.evaluate(SPY)
    page.get_by_role("link", name="Fleet").click()
    drawn = "[...window.ticks.values()].filter((one) => one.length)"
    until(lambda: len(page.evaluate(drawn)) == 4, "all four are drawn")
    for written in page.evaluate(drawn):
        words = [text for text, _ in written]
        assert len(set(words)) == len(words) > 1, words
        assert all(width <= 53 for _, width in written), written  # px of LEFT beside the gap


def test_a_stream_that_is_not_there_is_searched_for(daemon: Watched, visit: Visit) -> None:
    name = "<b>host-0"
    page = visit(f"{daemon.url}/#/stream?name={quote(name)}", misses=["404"])
    expect(page.locator("main h1")).to_have_text("No such stream is known")
    expect(page.locator("main bdi")).to_have_text(name)
    page.get_by_role("link", name="Search for it").click()
    expect(page.locator("#search")).to_have_value(name)
    expect(page.locator("main")).to_contain_text("No stream has this in its name.")


def test_a_restart_of_the_daemon_is_told_and_survived(tmp_path: Path, visit: Visit) -> None:
    port = own_port()
    with watched(tmp_path, http__port=port) as daemon:
        daemon.feed(ROWS)
        scored(daemon, ROWS * len(STREAMS))
        page = visit(daemon.url, misses=["net::ERR"])
        expect(page.locator("#pulse")).to_have_text("live")
        daemon.daemon.terminate()
        expect(page.locator("#banner")).to_contain_text("No connection to the daemon since")
        expect(page.locator("#pulse")).to_have_text("no connection")
        row = daemon.row
    with watched(tmp_path, http__port=port) as daemon:
        expect(page.locator("#pulse")).to_have_text("live")
        expect(page.locator("#banner")).to_be_hidden()
        daemon.row = 2 * row  # later than all that came before
        daemon.feed(3, spike=daemon.row + 1)
        expect(page.locator(".incident").first).to_be_visible()
        page.close()


def test_hostile_features_are_shown_as_text(tmp_path: Path, visit: Visit) -> None:
    with watched(tmp_path) as daemon:
        daemon.feed(ROWS, HOSTILE[:2], spike=SPIKE, features=HOSTILE[:2])
        scored(daemon, ROWS * 2)
        until(lambda: daemon.get("/incidents")["incidents"], "there is an incident")
        incident = daemon.get("/incidents")["incidents"][0]
        page = visit(daemon.url, width=360)
        expect(page.locator(".incident h2")).to_have_text(incident["summary"])
        page.locator(".incident h2 a").click()
        expect(page.locator(".shares tbody th").first).to_have_text(HOSTILE[0])
        expect(page.locator(".panel figcaption").first).to_have_text(HOSTILE[0])
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.close()


def test_what_is_not_there_is_said_in_words(daemon: Watched, visit: Visit) -> None:
    page = visit(f"{daemon.url}/#/nowhere/{quote('<b>', safe='')}")
    expect(page.locator("main")).to_contain_text("There is no such page")
    expect(page.get_by_role("link", name="All incidents")).to_be_visible()
