"""The API of a running daemon: what it says is what happened, and who may change anything."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from urllib.parse import quote

import pytest

from connectors.http_server.protocol import SECURITY_HEADERS
from tests.daemon.support import until
from tests.detector.web.support import HOSTILE, ROWS, STREAMS, Watched, scored, watched

PASSWORD = "a-long-password"
BASIC = "Basic dTphLWxvbmctcGFzc3dvcmQ="  # u:a-long-password


def test_status_says_how_the_daemon_is(daemon: Watched) -> None:
    status = daemon.get("/status")
    assert status["ready"]
    assert status["word"] == "scoring"
    assert status["streams"] == len(STREAMS)
    assert status["model"]["cell"] == "lstm"
    assert status["model"]["trained_at"] is None, "the one that ships"
    assert status["open_incidents"] >= 1
    assert 0 < status["state_bytes"] < status["state_limit_bytes"]
    assert status["resident_bytes"] > 10_000_000
    assert (status["rejected_share"], status["late_share"], status["lag"]) == (0.0, 0.0, 0)
    assert not status["writable"]
    assert not status["changelog"]
    assert daemon.ask("/api/v1/status", Authorization=f"Bearer {daemon.token}").json()["writable"]


def test_incidents_have_their_alerts_and_these_their_evidence(daemon: Watched) -> None:
    page = daemon.get("/incidents?state=open")
    incident = page["incidents"][0]
    assert incident["state"] == "open"
    assert incident["acknowledged"] is None
    whole = daemon.get(f"/incidents/{incident['id']}")
    assert whole["streams"] == len({alert["stream"] for alert in whole["alerts"]})
    scores = [alert["score"] for alert in whole["alerts"]]
    assert scores == sorted(scores, reverse=True)
    for alert in whole["alerts"]:
        found = daemon.get(f"/alerts/{alert['id']}")
        assert found["incident"] == incident["id"]
        assert found["alert"]["stream"] == alert["stream"]
        assert found["alert"]["evidence"]


def test_incidents_come_page_by_page(daemon: Watched) -> None:
    everything = daemon.get("/incidents?limit=200")
    found, cursor = [], ""
    while True:
        page = daemon.get(f"/incidents?limit=1{cursor}")
        found += page["incidents"]
        if page["next"] is None:
            break
        cursor = f"&before={page['next']}"
    assert [one["id"] for one in found] == [one["id"] for one in everything["incidents"]]


def test_streams_are_found_by_any_part_of_their_names(daemon: Watched) -> None:
    page = daemon.get("/streams?q=HOST-0&sort=name&limit=3")
    assert [one["name"] for one in page["streams"]] == ["host-00/load", "host-01/load", "host-02/load"]
    assert page["total"] == 10
    again = daemon.get("/streams?q=HOST-0&sort=name&limit=3&offset=8")
    assert [one["name"] for one in again["streams"]] == ["host-08/load", "host-09/load"]
    assert daemon.get("/streams?q=nobody")["total"] == 0


def test_streams_that_fire_and_are_least_usual_come_first(daemon: Watched) -> None:
    def all_told() -> dict | None:  # what is shown may be a second old
        page = daemon.get("/streams?limit=500")
        return page if {one["events"] for one in page["streams"]} == {daemon.row} else None

    page = until(all_told, "all events are counted")
    assert {one["name"] for one in page["streams"]} == set(STREAMS)
    key = [(one["firing"] is None, -one["rank"]) for one in page["streams"]]
    assert key == sorted(key)
    for one in page["streams"]:
        assert one["interval_seconds"] == pytest.approx(10.0)
        assert (one["warming"], one["muted"], one["features"], one["rule"]) == (False, False, 2, None)
        assert one["threshold"] > 0


@pytest.mark.parametrize("name", HOSTILE)
def test_any_name_comes_back_as_it_is_and_as_json(daemon: Watched, name: str) -> None:
    found = daemon.get(f"/stream?name={quote(name, safe='')}")
    assert found["name"] == name
    assert sorted(found["feature_names"]) == ["free", "load"]
    assert name in [one["name"] for one in daemon.get(f"/streams?q={quote(name, safe='')}")["streams"]]
    for path in ("/stream?name=", "/stream/window?name=", "/incidents/", "/alerts/", "/events?stream="):
        answer = daemon.ask(f"/api/v1{path}{quote('no-' + name, safe='')}")
        assert answer.status == 404
        assert answer.json()["error"]
        for header, value in SECURITY_HEADERS:
            assert answer.headers[header.decode()] == value.decode()


def test_a_metric_names_the_streams_that_the_setting_does(daemon: Watched) -> None:
    names = {*(f"host-{number:02d}/load" for number in range(4)), HOSTILE[0]}
    shown = until(
        lambda: len(found := daemon.daemon.metrics().by("stream_score", "stream")) >= len(names) and found,
        "all are shown",
    )
    assert set(shown) == names
    scores = {one["name"]: one["score"] for one in daemon.get("/streams?limit=500")["streams"]}
    assert shown == pytest.approx({name: scores[name] for name in shown})


def test_models_name_the_one_that_scores(daemon: Watched) -> None:
    found = daemon.get("/models")["models"]
    assert [one["version"] for one in found if one["current"]] == [daemon.get("/status")["model"]["version"]]


def test_the_last_hour_has_columns_of_one_length(daemon: Watched) -> None:
    series = until(lambda: (found := daemon.get("/fleet"))["time"] and found, "a point has been taken")
    assert len({len(column) for column in series.values()}) == 1
    assert series["time"] == sorted(series["time"])


@pytest.mark.parametrize(
    ("path", "status", "why"),
    [
        ("/api/v1/nothing", 404, "openapi.json says what there is"),
        ("/api/v2/status", 404, "openapi.json says what there is"),
        ("/api/v1/streams?limit=0", 422, "limit: "),
        ("/api/v1/streams?limit=x", 422, "limit: "),
        ("/api/v1/streams?sort=worst", 422, "sort: "),
        ("/api/v1/streams?offset=-1", 422, "offset: "),
        ("/api/v1/incidents?before=1%20OR%201", 422, "before: "),
        ("/api/v1/stream", 422, "name: "),
        ("/api/v1/stream?name=nobody", 404, "there is no stream 'nobody'"),
    ],
)
def test_errors_are_one_sentence_of_json(daemon: Watched, path: str, status: int, why: str) -> None:
    answer = daemon.ask(path)
    assert answer.status == status
    assert list(answer.json()) == ["error"]
    assert why in answer.json()["error"]


@pytest.mark.parametrize(
    "path", ["/../app.py", "/%2e%2e/app.py", "/..%2fapp.py", "/js/../../app.py", "//etc/passwd", "/js", "/%00"]
)
def test_no_file_but_the_pages_own_is_served(daemon: Watched, path: str) -> None:
    answer = daemon.ask(path)
    assert answer.status in {200, 404}
    assert b"make_app" not in answer.body
    assert b"root:" not in answer.body
    if answer.status == 200:  # a path that names nothing but the page itself
        assert answer.body == daemon.ask("/").body


def test_a_browser_may_keep_the_page_but_asks_whether_it_is_the_same(daemon: Watched) -> None:
    page = daemon.ask("/")
    assert page.status == 200
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["cache-control"] == "no-cache"
    for header, value in SECURITY_HEADERS:
        assert page.headers[header.decode()] == value.decode()
    assert daemon.ask("/", If_None_Match=page.headers["etag"]).status == 304
    assert daemon.ask("/", "POST", {}).status == 405


# -- live --------------------------------------------------------------------------------------------------------------


def test_events_tell_of_status_points_and_incidents(tmp_path: Path) -> None:
    with watched(tmp_path) as daemon:
        daemon.feed(ROWS - 20)
        scored(daemon, (ROWS - 20) * len(STREAMS))
        stream = HOSTILE[0]
        with daemon.events(f"?stream={quote(stream, safe='')}") as events:
            name, status = next(events)
            assert (name, status["streams"]) == ("status", len(STREAMS))
            daemon.feed(5, spike=daemon.row + 4)
            found: dict[str, list[dict]] = {"status": [], "points": [], "incident": []}
            while not found["incident"] or len(found["points"]) == 0:
                name, data = next(events)
                found[name].append(data)
        points = found["points"][0]
        assert points["stream"] == stream
        assert points["features"] == ["load", "free"]
        lengths = {len(points[name]) for name in ("time", "score", "threshold", "channel", "alert")}
        lengths |= {len(column) for columns in points["by_feature"].values() for column in columns.values()}
        assert len(lengths) == 1
        assert found["incident"][0]["state"] == "open"
        window = daemon.get(f"/stream/window?name={quote(stream, safe='')}")
        assert len(window["time"]) == min(daemon.row, 300), "also what came before it was looked at"
        assert window["alert"][-1]
        assert window["by_feature"]["load"]["observed"][-1] > window["by_feature"]["load"]["upper"][-1]
        assert window["models"][0]["version"] == daemon.get("/models")["models"][0]["version"]
        forecast = daemon.get(f"/stream/forecast?name={quote(stream, safe='')}")["features"]
        assert forecast.keys() == {"load", "free"}
        assert forecast["free"]["horizons"] == [1, 10]
        hidden = daemon.get(f"/stream/hidden?name={quote(stream, safe='')}&feature=load")
        assert {len(row) for row in hidden["values"]} == {hidden["units"]}
        assert daemon.ask(f"/api/v1/stream/hidden?name={quote(stream, safe='')}&feature=none").status == 404
        alert = found["incident"][0]["alerts"][0]["id"]
        samples = daemon.get(f"/alerts/{alert}")["samples"]
        assert samples["alert"][-1]
        assert len(samples["time"]) > 200
        assert samples["by_feature"].keys() == {"load", "free"}


def test_the_daemon_stops_in_time_while_pages_are_open(tmp_path: Path) -> None:
    with watched(tmp_path) as daemon, daemon.events() as first, daemon.events() as second:
        assert next(first)[0] == next(second)[0] == "status"
        status, _ = daemon.daemon.terminate()
        assert status == 0
        for _ in first:  # what was sent; then it is hung up on
            pass
        assert "Traceback" not in daemon.daemon.log


def test_streams_on_disk_are_found_by_the_beginning_of_their_names(tmp_path: Path) -> None:
    with watched(tmp_path, state__max_streams=5) as daemon:
        daemon.feed(5, STREAMS[:12])
        scored(daemon, 5 * 12)
        until(lambda: daemon.daemon.metrics()("events_unsaved") == 0, "a checkpoint covers all")
        page = until(lambda: (p := daemon.get("/streams?q=host-"))["total"] == 12 and p, "all are found")
        in_memory = [one for one in page["streams"] if one["events"] is not None]
        assert len(in_memory) == 5
        assert sorted(one["name"] for one in page["streams"]) == STREAMS[:12]
        assert "more are on disk" in page["note"]
        gone = next(one["name"] for one in page["streams"] if one["events"] is None)
        assert daemon.get(f"/stream?name={quote(gone)}")["name"] == gone


# -- who may change anything -------------------------------------------------------------------------------------------

TRY = "/api/v1/receivers/test"


def test_the_daemons_own_token_is_for_its_owner_alone_and_new_with_each_start(tmp_path: Path) -> None:
    tokens = set()
    for _ in range(2):
        with watched(tmp_path) as daemon:
            path = daemon.state / "api.token"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            tokens.add(daemon.token)
            assert daemon.ask(TRY, "POST", {}, Authorization=f"Bearer {daemon.token}").json() == {"receivers": []}
            daemon.daemon.terminate()
            assert daemon.token not in daemon.daemon.log
    assert len(tokens) == 2
    assert all(re.fullmatch(r"[\w-]{40,}", token) for token in tokens)


def test_nobody_changes_anything_without_a_token(daemon: Watched) -> None:
    for headers in ({}, {"X_Longwatch": "1"}, {"Authorization": "Bearer x"}, {"Authorization": BASIC}):
        answer = daemon.ask(TRY, "POST", {}, **headers)
        assert answer.status == 401
        assert "token" in answer.json()["error"]


def test_a_password_changes_something_from_our_own_page_only(tmp_path: Path) -> None:
    with watched(tmp_path, http__username="u", http__password=PASSWORD) as daemon:
        own = {"Authorization": BASIC, "X_Longwatch": "1"}
        same = {"Sec_Fetch_Site": "same-origin", "Origin": daemon.url}
        assert daemon.ask("/api/v1/status").status == 401
        assert daemon.ask("/api/v1/status", Authorization=BASIC).json()["writable"]
        assert daemon.ask(TRY, "POST", {}, **own, **same).status == 200
        assert daemon.ask(TRY, "POST", {}, **own).status == 200, "curl"
        assert daemon.ask(TRY, "POST", {}, Authorization=BASIC, **same).status == 403
        for other in ({"Sec_Fetch_Site": "cross-site"}, {"Origin": "https://evil.example.com"}, {"Origin": "null"}):
            answer = daemon.ask(TRY, "POST", {}, **own, **other)
            assert answer.status == 403
            assert "another site" in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"receiver": None}, 200),
        ({"receiver": "nobody"}, 404),
        ({"receiver": 5}, 422),
        ({"other": 5}, 422),
        ([], 422),
        ({"receiver": "x" * 100_000}, 413),
    ],
)
def test_what_is_asked_is_checked(daemon: Watched, body: object, status: int) -> None:
    answer = daemon.ask(TRY, "POST", body, Authorization=f"Bearer {daemon.token}")
    assert answer.status == status, answer.body
    if status != 200:
        assert list(answer.json()) == ["error"]
