"""What may change as settings are read again, what needs a restart, and what is refused."""

from __future__ import annotations

import pytest

from detector.config.changes import merge
from detector.config.settings import Settings, load_settings

HOOK = ("receivers.hook.url=https://example.com/hook",)
ONCE = ("processing.guarantee=exactly_once", "kafka.alerts_topic=alerts")


def settings_of(*overrides: str) -> Settings:
    return load_settings(None, {}, overrides)


def test_what_may_change_holds_at_once_and_the_rest_is_named() -> None:
    old = settings_of("logging.level=info", "kafka.group_id=a")
    read = settings_of(
        *HOOK,
        "logging.level=debug",
        "training.enabled=false",
        "calendars.off.holidays=DE",
        'rules=[{name = "all", streams = ["*"], receivers = ["hook"], quiet = ["off"]}]',
        "kafka.group_id=b",
        "state.max_streams=5",
        "http.port=1",
    )
    new, changes = merge(old, read)
    assert set(changes.applied) == {"rules", "calendars", "receivers", "training", "logging"}
    assert changes.needs_restart == ["http.port", "kafka.group_id", "state.max_streams"]
    assert (new.kafka, new.state, new.http) == (old.kafka, old.state, old.http)
    assert (new.rules, new.receivers, new.logging) == (read.rules, read.receivers, read.logging)
    assert merge(new, read)[1].applied == []


def test_a_changed_secret_is_a_change_and_is_not_shown() -> None:
    secrets = ("receivers.hook.secret=" + 24 * "a", "receivers.hook.secret=" + 24 * "b")
    _, changes = merge(*(settings_of(*HOOK, secret) for secret in secrets))
    assert changes == (["receivers"], [])


def test_with_exactly_once_the_first_receiver_and_the_end_of_the_last_need_a_restart() -> None:
    without, one = settings_of(*ONCE), settings_of(*ONCE, *HOOK)
    another = settings_of(*ONCE, *HOOK, "receivers.chat.url=https://example.com/chat")
    for old, read in ((without, one), (one, without)):
        new, changes = merge(old, read)
        assert changes == ([], ["receivers.hook"])
        assert new.receivers == old.receivers
    assert merge(one, another)[1] == (["receivers"], [])
    with pytest.raises(ValueError, match=r"no section \[receivers.hook\]"):  # a rule cannot name it yet
        merge(without, settings_of(*ONCE, *HOOK, 'rules=[{name = "all", streams = ["*"], receivers = ["hook"]}]'))
