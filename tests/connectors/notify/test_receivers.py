"""Each receiver against a real HTTP server that checks what comes by the service's own documents."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from connectors.notify import alertmanager
from connectors.notify.dispatcher import Dispatcher
from connectors.notify.settings import ReceiverSettings
from connectors.notify.trial import try_receivers
from detector.commands.schema import schema
from tests.connectors.notify.incidents import (
    ALERTMANAGER,
    LIFE,
    PAGERDUTY,
    SLACK_POST,
    SLACK_UPDATE,
    SLACK_WEBHOOK,
    WEBHOOK_V4,
    incident,
    told,
)
from tests.connectors.notify.support import SECRET, alert, verify
from tests.daemon.support import until

Body = dict[str, Any]


class Service:
    """A service that takes only what its schemas allow, by path; `answer` says what it answers then."""

    def __init__(self, **schemas: Any) -> None:
        self.schemas = {f"/{path}": known for path, known in schemas.items()}
        self.taken: list[tuple[str, Any, dict[str, str]]] = []
        self.refused: list[str] = []
        self.answer: Callable[[str, Any], tuple[int, Any]] = lambda path, body: (200, {})
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                headers = {name.lower(): value for name, value in self.headers.items()}
                try:
                    jsonschema.validate(body, service.schemas[self.path])
                    assert headers["content-type"].startswith("application/json")
                except (KeyError, AssertionError, jsonschema.ValidationError) as error:
                    service.refused.append(f"{self.path}: {error}")
                    status, answer = 400, {"error": "refused"}
                else:
                    status, answer = service.answer(self.path, body)
                    if status < 300:
                        service.taken.append((self.path, body, headers))
                text = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        assert self.refused == []

    @property
    def bodies(self) -> list[Any]:
        return [body for _, body, _ in self.taken]


@pytest.fixture
def tell(tmp_path: Path) -> Iterator[Callable[..., Dispatcher]]:
    made: list[Dispatcher] = []

    def build(external_url: str = "https://longwatch.example.com", **receivers: dict[str, Any]) -> Dispatcher:
        own = {"allowed_hosts": ["127.0.0.1"], "retry_base_seconds": 0.05}
        settings = {name: ReceiverSettings.model_validate(own | values) for name, values in receivers.items()}
        made.append(Dispatcher(settings, tmp_path, external_url))
        return made[-1]

    yield build
    for one in made:
        if any(courier.alive for courier in one._couriers.values()):
            one.close()


def life(dispatcher: Dispatcher) -> None:
    """An incident that opens, grows and is over; all of it twice, as after a crash."""
    for record in (*LIFE, *LIFE):
        dispatcher.tell([told(record)])


KEY = "0123456789abcdef0123456789abcdef"


def test_pagerduty_triggers_and_resolves_under_one_key(tell: Callable[..., Dispatcher]) -> None:
    with Service(enqueue=PAGERDUTY) as service:
        life(tell(pager={"type": "pagerduty", "url": f"{service.url}/enqueue", "routing_key": KEY}))
        until(lambda: len(service.taken) == 3)
    assert [body["event_action"] for body in service.bodies] == ["trigger", "trigger", "resolve"]
    assert {body["dedup_key"] for body in service.bodies} == {"a0"}
    assert service.bodies[0]["links"][0]["href"] == "https://longwatch.example.com/#/incidents/a0"


def test_pagerduty_gets_no_more_than_its_limits(tell: Callable[..., Dispatcher]) -> None:
    with Service(enqueue=PAGERDUTY) as service:
        dispatcher = tell(pager={"type": "pagerduty", "url": f"{service.url}/enqueue", "routing_key": KEY})
        dispatcher.tell([told(incident(streams=50, summary="x" * 5_000))])
        until(lambda: len(service.taken) == 1)
    details = service.bodies[0]["payload"]["custom_details"]
    assert (len(details["alerts"]), details["alerts_left_out"]) == (20, 30)


def test_slacks_message_is_updated_as_the_incident_goes_on_and_after_a_restart(
    tell: Callable[..., Dispatcher],
) -> None:
    with Service(**{"chat.postMessage": SLACK_POST, "chat.update": SLACK_UPDATE}) as service:
        service.answer = lambda path, body: (200, {"ok": True, "ts": "1503435956.000247", "channel": "C1"})
        chat = {"type": "slack", "url": service.url, "token": "xoxb-1", "channel": "#ops"}
        first = tell(chat=chat)
        first.tell([told(LIFE[0])])
        until(lambda: len(service.taken) == 1)
        first.close()
        second = tell(chat=chat)
        for record in LIFE[1:]:
            second.tell([told(record)])
        until(lambda: len(service.taken) == 3)
    assert [path for path, _, _ in service.taken] == ["/chat.postMessage", "/chat.update", "/chat.update"]
    assert {(body["ts"], body["channel"]) for body in service.bodies[1:]} == {("1503435956.000247", "C1")}
    assert {headers["authorization"] for _, _, headers in service.taken} == {"Bearer xoxb-1"}
    assert "&lt;cpu&gt; &amp;" in json.dumps(service.bodies[0])
    assert "resolved" in service.bodies[2]["text"]


def test_what_slack_answers_with_200_is_read(tell: Callable[..., Dispatcher]) -> None:
    said = iter([{"ok": False, "error": "ratelimited"}, {"ok": True, "ts": "1.2", "channel": "C1"}])
    last = {"ok": False, "error": "message_not_found"}
    with Service(**{"chat.postMessage": SLACK_POST, "chat.update": SLACK_UPDATE}) as service:
        service.answer = lambda path, body: (200, last if path == "/chat.update" else next(said))
        dispatcher = tell(chat={"type": "slack", "url": service.url, "token": "xoxb-1", "channel": "C1"})
        dispatcher.tell([told(LIFE[0])])
        until(lambda: len(service.taken) == 2)  # the first is tried again
        said = iter([{"ok": True, "ts": "1.3", "channel": "C1"}])
        dispatcher.tell([told(LIFE[1])])
        until(lambda: len(service.taken) == 4)
    posts = ["/chat.postMessage", "/chat.postMessage", "/chat.update", "/chat.postMessage"]
    assert [path for path, _, _ in service.taken] == posts, "a message that was deleted is posted anew"


def test_slacks_incoming_webhook_gets_a_message_for_each_state(tell: Callable[..., Dispatcher]) -> None:
    with Service(services=SLACK_WEBHOOK) as service:
        life(tell(chat={"type": "slack", "url": f"{service.url}/services"}))
        until(lambda: len(service.taken) == 3)


def test_webhooks_get_signed_messages_of_the_documented_shape(tell: Callable[..., Dispatcher]) -> None:
    with Service(hook=schema("incident")) as service:
        headers = "Authorization: Bearer t0ken\nX-Team: ops"
        life(tell(hook={"url": f"{service.url}/hook", "secret": SECRET, "headers": headers}))
        until(lambda: len(service.taken) == 3)
    assert [body["type"] for body in service.bodies] == ["incident.opened", "incident.updated", "incident.resolved"]
    assert [headers["webhook-id"] for _, _, headers in service.taken] == ["a0-1", "a0-2", "a0-3"]
    sent = service.taken[0][2]
    assert (sent["authorization"], sent["x-team"]) == ("Bearer t0ken", "ops")


def test_a_webhooks_body_is_signed(tell: Callable[..., Dispatcher]) -> None:
    from tests.connectors.notify.support import Receiver

    receiver = Receiver()
    life(tell(hook={"url": f"http://127.0.0.1:{receiver.port}/", "secret": SECRET}))
    until(lambda: len(receiver.requests) == 3)
    assert all(verify(headers, body) for _, headers, body in receiver.requests)
    receiver.close()


def test_a_template_keeps_its_shape_whatever_a_stream_is_called(tell: Callable[..., Dispatcher]) -> None:
    template = '{"text": "$severity: $stream costs $$5", "n": "$streams", "all": "${alerts}", "of": ["$event"]}'
    with Service(hook={"type": "object"}) as service:
        dispatcher = tell(hook={"url": f"{service.url}/hook", "template": template})
        dispatcher.tell([told(incident(stream='"}, $summary {"'))])
        until(lambda: len(service.taken) == 1)
    (body,) = service.bodies
    assert body["text"] == 'warning: "}, $summary {" costs $5'
    assert (body["n"], len(body["all"]), body["of"]) == (3, 3, ["opened"])


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("hello $summary", "it is no JSON"),
        ('{"text": "$sumary"}', r"\$sumary is not known"),
        ('{"text": "5 $ more"}', "begins no name"),
        ('"' + "x" * 20_000 + '"', "has 20002 characters"),
    ],
)
def test_a_template_that_cannot_work_is_refused_at_the_start(template: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ReceiverSettings.model_validate({"url": "https://x.example", "template": template})


def test_what_speaks_alertmanagers_webhooks_gets_their_shape(tell: Callable[..., Dispatcher]) -> None:
    with Service(hook=WEBHOOK_V4) as service:
        life(tell(hook={"type": "alertmanager-webhook", "url": f"{service.url}/hook"}))
        until(lambda: len(service.taken) == 3)
    assert [body["status"] for body in service.bodies] == ["firing", "firing", "resolved"]
    assert len({json.dumps(body["commonLabels"]) for body in service.bodies}) == 1


def test_every_replica_of_alertmanager_is_told_again_and_again(
    tell: Callable[..., Dispatcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alertmanager.Alertmanager, "remind_seconds", 0.2)
    one, two = (Service(**{"api/v2/alerts": ALERTMANAGER, "b/api/v2/alerts": ALERTMANAGER}) for _ in range(2))
    with one, two:
        settings = {"type": "alertmanager", "url": f"{one.url} {two.url}/b"}
        first = tell(am=settings)
        two.answer = lambda path, body: (503, {})
        first.tell([told(LIFE[0])])
        until(lambda: len(one.taken) >= 3)
        two.answer = lambda path, body: (200, {})
        until(lambda: len(two.taken) >= 2)  # that was away hears of it
        first.close()
        before = len(one.taken)
        second = tell(am=settings)
        until(lambda: len(one.taken) >= before + 2)  # after a restart, too
        second.tell([told(incident(2, severity="critical"))])
        until(lambda: len(two.bodies[-1]) == 2)
        second.tell([told(incident(3, "resolved", severity="critical"))])
        until(lambda: two.bodies[-1][0]["endsAt"] < two.bodies[0][0]["endsAt"] or len(two.taken) > 60)
    worse, former = two.bodies[-1]
    assert (worse["labels"]["severity"], former["labels"]["severity"]) == ("critical", "warning")
    labels = {json.dumps(found["labels"]) for bodies in (one.bodies, two.bodies) for body in bodies for found in body}
    assert len(labels) == 2, "they never change, but for the severity as it rises"
    assert not any("score" in text for text in labels)


def test_receivers_get_only_what_their_filters_let_through(tell: Callable[..., Dispatcher]) -> None:
    kinds = {name: schema("incident") for name in ("all", "critical", "rack", "none")}
    with Service(**kinds, each=schema("webhook")) as service:
        hooks = {name: {"url": f"{service.url}/{name}"} for name in kinds}
        hooks["critical"]["least_severity"] = "critical"
        hooks["rack"]["streams"] = ["db-*", "rack-3/web-1/*"]
        hooks["none"]["streams"] = ["db-*"]
        dispatcher = tell(**hooks, each={"url": f"{service.url}/each", "tell": "alerts"})
        dispatcher.tell([told(incident())])
        dispatcher.write([alert(1), alert(1, "resolved")])
        until(lambda: len(service.taken) == 4)
        dispatcher.tell([told(incident(2, severity="critical"))])
        until(lambda: len(service.taken) == 7)
    assert sorted(path for path, _, _ in service.taken) == sorted(
        ["/all", "/rack", "/each", "/each", "/all", "/rack", "/critical"]
    )


def test_a_receiver_that_is_away_holds_no_other_back(tell: Callable[..., Dispatcher]) -> None:
    with Service(hook=schema("incident")) as service:
        life(tell(away={"url": "http://127.0.0.1:1/"}, hook={"url": f"{service.url}/hook"}))
        until(lambda: len(service.taken) == 3)


def test_messages_survive_a_changed_set_of_receivers(tell: Callable[..., Dispatcher]) -> None:
    first = tell(old={"url": "http://127.0.0.1:1/"}, kept={"url": "http://127.0.0.1:1/"})
    first.tell([told(LIFE[0])])
    first.close()
    with Service(hook=schema("incident")) as service:
        second = tell(kept={"url": f"{service.url}/hook"}, new={"url": f"{service.url}/hook"})
        until(lambda: len(service.taken) == 1)
        second.close()
        tell(old={"url": f"{service.url}/hook"})
        until(lambda: len(service.taken) == 2)


def test_a_test_alert_goes_through_every_receiver_and_says_what_failed() -> None:
    own = {"allowed_hosts": ["127.0.0.1"]}
    with Service(enqueue=PAGERDUTY, hook=schema("incident")) as service:
        settings = {
            "pager": {"type": "pagerduty", "url": f"{service.url}/enqueue", "routing_key": KEY},
            "hook": {"url": f"{service.url}/hook"},
            "away": {"url": "http://127.0.0.1:1/"},
        }
        receivers = {name: ReceiverSettings.model_validate(own | values) for name, values in settings.items()}
        found = {one.receiver: one.problem for one in try_receivers(receivers)}
        assert [name for name, problem in found.items() if problem] == ["away"]
        assert [one.receiver for one in try_receivers(receivers, "hook")] == ["hook"]
        with pytest.raises(ValueError, match="there is no receiver hok: expected one of pager, hook, away"):
            list(try_receivers(receivers, "hok"))
    actions = [body["event_action"] for path, body, _ in service.taken if path == "/enqueue"]
    assert actions == ["trigger", "resolve"]


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"type": "pagerduty"}, "routing_key is not set"),
        ({"type": "slack", "token": "xoxb-1"}, "channel is not set"),
        ({"type": "slack"}, "url is not set"),
        ({}, "url is not set"),
        ({"url": "https://x.example", "routing_key": KEY}, 'routing_key is not for type "webhook"'),
        ({"url": "https://x.example", "headers": "nonsense"}, "line 1 is no header"),
        ({"url": "https://x.example", "headers": "webhook-id: 1"}, "which longwatch sets itself"),
        ({"url": "https://x.example", "tell": "alerts", "template": "{}"}, "template is for incidents"),
        ({"type": "alertmanager", "url": " ".join(["http://x.example"] * 11)}, "names 11 replicas"),
    ],
)
def test_settings_that_cannot_work_are_refused(values: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ReceiverSettings.model_validate(values)
