"""[[rules]]: which holds for a stream, and what is said of one that cannot be used."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from detector.commands.config import effective, of_stream
from detector.config.settings import Settings, SettingsError, load_settings
from detector.scoring.rules import StreamRules
from detector.service.engine_setup import alert_rules, stream_rules


def settings_of(tmp_path: Path, text: str) -> Settings:
    config = tmp_path / "longwatch.toml"
    config.write_text(text)
    return load_settings(config, {})


def test_the_first_rule_that_matches_holds(tmp_path: Path) -> None:
    settings = settings_of(
        tmp_path,
        '[[rules]]\nname = "web"\nstreams = ["web-*"]\n\n[[rules]]\nname = "cpu"\nstreams = ["*/cpu", "load"]\n',
    )
    rules = StreamRules(alert_rules(settings.alerting), stream_rules(settings))
    names = ["web-1/cpu", "db-1/cpu", "load", "db-1/mem", "Load", "load\n"]
    assert rules.numbers_of(names).tolist() == [1, 2, 2, 0, 0, 0]


def test_what_a_rule_does_not_set_is_as_alerting_has_it(tmp_path: Path) -> None:
    settings = settings_of(
        tmp_path,
        "[alerting]\nthreshold = 6.0\nmin_deviation_absolute = 2.0\n"
        '[[rules]]\nname = "a"\nstreams = ["a"]\nalerts_per_stream_per_week = 1.0\n'
        '[[rules]]\nname = "b"\nstreams = ["b"]\nmin_deviation_absolute = 0\ndirection = "above"\n',
    )
    a, b = (rule.alerts for rule in stream_rules(settings))
    assert (a.alerts_per_stream_per_week, a.min_deviation_absolute) == (1.0, 2.0)
    assert math.isnan(a.fixed_threshold), "a rule's budget is not overruled by a threshold for all"
    assert (b.fixed_threshold, b.min_deviation_absolute, b.direction) == (6.0, 0.0, 1)


def test_config_shows_which_rule_a_stream_gets_and_what_holds(tmp_path: Path) -> None:
    settings = settings_of(
        tmp_path, '[[rules]]\nname = "web"\nstreams = ["web-*"]\nthreshold = 5\nseverity = "critical"\n'
    )
    shown = of_stream(settings, "web-1/cpu")
    config = tmp_path / "longwatch.toml"
    assert f'# stream "web-1/cpu" gets the rule web  # {config}:1\n' in shown
    assert "threshold = 5.0  # by the rule\n" in shown
    assert 'direction = "both"\n' in shown
    assert 'severity = "critical"\n' in shown
    assert "gets no rule: [alerting] holds" in of_stream(settings, "db")
    config.write_text(effective(settings))
    assert load_settings(config, {}).model_dump() == settings.model_dump()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("threshold = -4", "longwatch.toml:6: rules.1.threshold is -4: "),
        ("treshold = 4", "longwatch.toml:6: unknown setting rules.1.treshold; did you mean threshold?"),
        ('name = "b"', "longwatch.toml:4: rules.1.streams is not set"),
    ],
)
def test_an_error_names_the_line_inside_its_rule(tmp_path: Path, line: str, said: str) -> None:
    first = '[[rules]]\nname = "a"\nstreams = ["a*"]\n[[rules]]\n'
    rest = "" if line.startswith("name") else 'name = "b"\n'
    streams = "" if line.startswith("name") else 'streams = ["b*"]\n'
    with pytest.raises(SettingsError) as raised:
        settings_of(tmp_path, f"{first}{rest}{line}\n{streams}")
    assert any(said in error for error in raised.value.errors), raised.value.errors


def test_the_environment_holds_the_whole_list() -> None:
    rules = load_settings(None, {"LONGWATCH_RULES": '[{name = "a", streams = ["x*"], threshold = 3.0}]'}).rules
    assert [(rule.name, rule.streams, rule.threshold) for rule in rules] == [("a", ("x*",), 3.0)]


def test_a_name_is_taken_once_and_a_receiver_is_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is taken already"):
        settings_of(tmp_path, '[[rules]]\nname = "a"\nstreams = ["*"]\n' * 2)
    with pytest.raises(SettingsError, match=r"no section \[receivers.nobody\]"):
        settings_of(tmp_path, '[[rules]]\nname = "a"\nstreams = ["*"]\nreceivers = ["nobody"]\n')


CALENDARS = """
[calendars.backups]
cron = "0 2 * * sun"
duration_seconds = 10800
timezone = "Europe/Berlin"

[calendars.patches]
rrule = "FREQ=MONTHLY;BYDAY=2TU"
start = 2026-01-13T22:00:00
duration_seconds = 3600

[calendars.off]
holidays = "DE-BY"

[[rules]]
name = "db"
streams = ["db-*"]
quiet = ["backups", "patches", "off"]
"""


def test_calendars_are_read_and_shown_with_their_next_windows(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, CALENDARS)
    (rule,) = stream_rules(settings)
    assert [calendar.name for calendar in rule.quiet] == ["backups", "patches", "off"]
    shown = of_stream(settings, "db-1")
    assert 'quiet = ["backups", "patches", "off"]\n' in shown
    assert (
        len(re.findall(r"^# quiet from 20\d\d-\S+T02:00:00\+0[12]:00 to \S+  # calendars.backups$", shown, re.M)) == 3
    )
    assert len(re.findall(r"^# quiet from 20\d\d-\S+T22:00:00\+00:00 to \S+  # calendars.patches$", shown, re.M)) == 3
    assert len(re.findall(r"^# quiet from 20\d\d-\S+T00:00:00\+00:00 to \S+  # calendars.off$", shown, re.M)) == 3
    (tmp_path / "longwatch.toml").write_text(effective(settings))
    assert load_settings(tmp_path / "longwatch.toml", {}).model_dump() == settings.model_dump()


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ('cron = "0 2 * * sun"', 'cron = "0 2 * sun"', r"toml:3: calendars.backups.cron is .*: no cron expression"),
        ("FREQ=MONTHLY;BYDAY=2TU", "FREQ=MINUTELY", r"toml:8: calendars.patches.rrule is .*: FREQ must be DAILY"),
        ('"DE-BY"', '"XX"', r"toml:13: calendars.off.holidays is .*: no country whose holidays are known"),
        ('"Europe/Berlin"', '"Berlin"', r"toml:5: calendars.backups.timezone is \"Berlin\": 'Berlin' is no time zone"),
        ("22:00:00", "22:00:00Z", r"toml:9: calendars.patches.start is .*: expected a time without a zone"),
        ("duration_seconds = 10800\n", "", "calendars.backups.duration_seconds is how long"),
        ('"DE-BY"', '"DE-BY"\nduration_seconds = 60', "calendars.off.duration_seconds is how long"),
        ('holidays = "DE-BY"', 'timezone = "UTC"', "calendars.off has none of cron, rrule and holidays"),
        ('holidays = "DE-BY"', 'holidays = "DE-BY"\ncron = "0 2 * * *"', "calendars.off has cron and holidays of"),
        ("start = 2026-01-13T22:00:00", "", "calendars.patches.start is where"),
        ('"off"]', '"of"]', r"rules.0.quiet names 'of', and there is no section \[calendars.of\]"),
        ("[calendars.off]", "[calendars.Off__]", "calendars.off__: expected small letters"),
        ("timezone", "zone", "unknown setting calendars.backups.zone; did you mean calendars.backups.timezone"),
    ],
)
def test_a_calendar_that_cannot_be_used_is_named_with_its_field(tmp_path: Path, old: str, new: str, error: str) -> None:
    assert old in CALENDARS
    with pytest.raises(SettingsError, match=error):
        settings_of(tmp_path, CALENDARS.replace(old, new, 1))
