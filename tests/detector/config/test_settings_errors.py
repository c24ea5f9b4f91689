"""Settings that are refused: one line each, with the setting, its origin and what is expected."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from detector.commands.config import effective
from detector.config.names import REMOVED, leaves
from detector.config.settings import Settings, SettingsError, load_settings
from tests.detector.config.support import errors_of
from training.learn.settings import Learning


def test_an_unknown_name_is_an_error_with_the_nearest_known_name_in_every_source(config: Path) -> None:
    config.write_text('# mine\n[kafka]\n\ntopic = ["a"]\n[alerts]\nrepeats = "flag"\n')
    environment = {"LONGWATCH_KAFKA__GROUPID": "x", "LONGWATCH_HTTP_PORT": "80", "LONGWATCH_NONSENSE": "1"}
    assert errors_of(config, environment, "state.dir=/tmp", "retries=3", "state.directory") == [
        f"{config}:4: unknown setting kafka.topic; did you mean kafka.topics?",
        f"{config}:5: unknown section alerts; did you mean alerting?",
        "environment LONGWATCH_HTTP_PORT: unknown setting; did you mean LONGWATCH_HTTP__PORT?",
        "environment LONGWATCH_KAFKA__GROUPID: unknown setting; did you mean LONGWATCH_KAFKA__GROUP_ID?",
        "environment LONGWATCH_NONSENSE: unknown setting; docs/settings.md lists them all",
        "--set state.dir: unknown setting; did you mean state.directory?",
        "--set retries: unknown setting; docs/settings.md lists them all",
        "--set state.directory: expected section.name=value, such as kafka.topics=metrics",
    ]


@pytest.mark.parametrize("value", ["shared", "stream"])
def test_a_removed_setting_is_an_error_that_says_so(config: Path, value: str) -> None:
    config.write_text(f'[model]\nscope = "{value}"\n')
    why = "it was removed, all streams share one model: leave it out"
    assert errors_of(config, {"LONGWATCH_MODEL__SCOPE": value}, f"model.scope={value}") == [
        f"{config}:2: unknown setting model.scope; {why}",
        f"environment LONGWATCH_MODEL__SCOPE: unknown setting; {why}",
        f"--set model.scope: unknown setting; {why}",
    ]


@pytest.mark.parametrize("name", [name for name in Learning.model_fields if name != "learning_rate"])
def test_a_setting_that_became_a_train_option_is_an_error_that_says_so(config: Path, name: str) -> None:
    config.write_text(f"[training]\n{name} = 1\n")
    (line,) = errors_of(config)
    assert line.startswith(f"{config}:2: unknown setting training.{name}; it is an option of longwatch train now, ")
    assert f"--learning {name}=" in line


def test_every_removed_or_renamed_setting_refers_to_an_existing_one() -> None:
    known = {path for path, _ in leaves(Settings)}
    assert not known & set(REMOVED)
    assert {now for now in REMOVED.values() if not isinstance(now, str)} <= known


def test_learning_options_are_parsed_and_refused_like_settings() -> None:
    training = load_settings(None, {}, ["training.learning_rate=0.01"]).training
    assert training.learning() == Learning(learning_rate=0.01)
    chosen = training.learning(["optimiser=sgd", "momentum=0.5", "momentum = 0.8", "update_every=64"])
    assert chosen == Learning(learning_rate=0.01, optimiser="sgd", momentum=0.8, update_every=64)
    with pytest.raises(SettingsError) as refused:
        training.learning(["momentm=1", "momentum=1", "clip", "l1=much"])
    assert refused.value.errors == [
        "--learning momentm: unknown setting; did you mean momentum?",
        "--learning clip: expected clip=value",
        '--learning momentum: momentum is "1": expected less than 1',
        '--learning l1: l1 is "much": expected a valid number, unable to parse string as a number',
    ]


def test_a_renamed_setting_is_an_error_that_gives_its_new_name(config: Path) -> None:
    config.write_text('[alerting]\nmute = ["a"]\n')
    assert errors_of(config, {"LONGWATCH_ALERTING__REPEATS": "flag"}, "alerting.least_duration_seconds=3") == [
        f"{config}:2: unknown setting alerting.mute; it is a rule now: write [[rules]], a name, streams = [...]"
        " and mute = true (docs/how-to/rules.md)",
        "environment LONGWATCH_ALERTING__REPEATS: unknown setting; it was removed, a repeated anomaly alerts as long as"
        " it is rare: leave it out",
        "--set alerting.least_duration_seconds: unknown setting; it is called alerting.min_duration_seconds now",
    ]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("processing.guarantee=exactly_once", "source.type=file", 'source.paths=["x"]'), "leave it at"),
        (
            ("processing.guarantee=exactly_once", "output.scores_file=/tmp/x"),
            "output.scores_file is set: a file has no",
        ),
        (("state.changelog=true", "output.alerts_file=/tmp/x"), "output.alerts_file is set: a file has no part"),
        (("processing.guarantee=exactly_once", "state.changelog=false"), "leave state.changelog out"),
        (
            ("processing.guarantee=exactly_once", "receivers.hook.url=https://x.example", "kafka.alerts_topic="),
            "are fed from",
        ),
        (("state.changelog=true", "source.type=file", 'source.paths=["x"]'), "a changelog is a topic of Kafka"),
        (("state.standby=true",), "there is no changelog to follow"),
    ],
)
def test_outputs_that_cannot_be_committed_together_are_refused(overrides: tuple[str, ...], expected: str) -> None:
    assert any(expected in line for line in errors_of(None, {}, *overrides))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("kafka.bootstrap_servers=broker-1",), "'broker-1': expected host:port"),
        (("kafka.bootstrap_servers=a:9092,",), "'': expected host:port"),
        (("kafka.bootstrap_servers=kafka://broker-1:9092",), "no scheme is expected"),
        (("kafka.bootstrap_servers=a:9092,b:90920",), "'b:90920': a port is 1 to 65535"),
        (("kafka.bootstrap_servers=::1:9092",), "such as broker-1:9092 or [::1]:9092"),
        (("kafka.topics=metrics.*",), "'metrics.*' is no name for a topic"),
        (("kafka.topics=a,b,a",), "'a' is named twice"),
        (('kafka.topics=["a", ""]',), "kafka.topics is empty"),
        (("kafka.scores_topic=my scores",), "'my scores' is no name for a topic"),
        (("kafka.dead_letter_topic=..",), "'..' is no name for a topic"),
        (("kafka.alerts_topic=" + 250 * "a",), "1 to 249"),
        (("kafka.scores_topic=longwatch-alerts",), "'longwatch-alerts' is also kafka.scores_topic"),
        (("kafka.scores_topic=x", "kafka.dead_letter_topic=x"), "so each needs its own topic"),
        (("kafka.topics=x", "kafka.alerts_topic=x"), "kafka.alerts_topic 'x' is also read from"),
        (("kafka.topics=metrics,longwatch-metrics-changelog",), "is the changelog of 'metrics' and also kafka.topics"),
        (("kafka.scores_topic=longwatch-metrics-changelog",), "and also kafka.scores_topic"),
        (("kafka.changelog_topic={topic}",), "'metrics' is the changelog of 'metrics'"),
        (
            ("state.changelog=true", "kafka.topics=" + 240 * "a"),
            "kafka.changelog_topic '{group}-{topic}-changelog' makes",
        ),
        (("kafka.group_id=prod-webhook",), "names that end in '-webhook' are reserved"),
        (("source.type=file", "source.paths=/a/x", "output.alerts_file=/a/../a/x"), "is also read from (source.paths)"),
    ],
)
def test_settings_that_can_never_work_are_refused_by_name(overrides: tuple[str, ...], expected: str) -> None:
    (line,) = errors_of(None, {}, *overrides)
    assert expected in line
    assert line.isprintable()


@pytest.mark.parametrize(
    "servers", ["[::1]:9092", "127.1:9092", "broker_1.example.com:1, b:65535", "[fe80::1%eth0]:9092"]
)
def test_addresses_of_every_kind_are_accepted(servers: str) -> None:
    assert load_settings(None, {}, [f"kafka.bootstrap_servers={servers}"]).kafka.bootstrap_servers == servers


def test_variables_kubernetes_sets_for_a_service_named_longwatch_are_ignored() -> None:
    load_settings(
        None,
        {
            "LONGWATCH_SERVICE_HOST": "10.0.0.1",
            "LONGWATCH_SERVICE_PORT": "9464",
            "LONGWATCH_SERVICE_PORT_METRICS": "9464",
            "LONGWATCH_PORT": "tcp://10.0.0.1:9464",
            "LONGWATCH_PORT_9464_TCP": "tcp://10.0.0.1:9464",
            "LONGWATCH_PORT_9464_TCP_ADDR": "10.0.0.1",
            "LONGWATCH_METRICS_PORT": "tcp://10.0.0.2:9464",
            "LONGWATCH_METRICS_SERVICE_HOST": "10.0.0.2",
        },
    )


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("http.port", "abc", 'http.port is "abc": expected a valid integer'),
        ("http.port", "70000", 'http.port is "70000": expected less than or equal to 65535'),
        ("kafka.auto_offset_reset", "first", "\"first\": expected 'earliest' or 'latest'"),
        ("model.cell", "transformer", "expected 'rnn', 'lstm', 'gru' or 'esn'"),
        ("model.horizons", "[1, 65]", "horizons 1, 65: expected rising numbers of events, the first 1, none above 64"),
        ("processing.late", "keep", "'drop' or 'score'"),
        ("state.directory", "state", 'state.directory is "state": a path from the root is expected'),
        ("state.max_streams", "0", "greater than or equal to 1"),
        ("compute.device", "gpu", 'expected "auto", "cpu", "cuda" or "cuda:N"'),
        ("source.type", "file", "source.paths is empty: name the files"),
        ("alerting.threshold", "-1", "greater than 0"),
        ("alerting.alerts_per_stream_per_week", "nan", "expected a finite number"),
        ("kafka.topics", "[1, 2]", "kafka.topics is [1, 2] at 0: expected a valid string"),
    ],
)
def test_an_invalid_value_is_an_error_with_setting_origin_and_expectation(
    setting: str, value: str, expected: str
) -> None:
    variable = "LONGWATCH_" + setting.upper().replace(".", "__")
    by_variable = errors_of(None, {variable: value})[0]
    assert expected in by_variable
    assert f"environment {variable}" in by_variable
    by_option = errors_of(None, {}, f"{setting}={value}")[0]
    assert expected in by_option
    assert f"--set {setting}" in by_option


def test_an_invalid_value_in_the_file_is_an_error_with_its_line(config: Path) -> None:
    config.write_text("[http]\nport = 1\n\n[training]  # all of it\n  'interval_seconds' = 5\n")
    assert errors_of(config) == [
        f"{config}:5: training.interval_seconds is 5: expected greater than or equal to 60",
    ]
    config.write_text('http.port = "x"\nkafka = 5\nstate = { directory = 3 }\n')
    reported = errors_of(config)
    assert f'{config}:1: http.port is "x": expected a valid integer' in "\n".join(reported)
    assert f"{config}:2: kafka is a section: write [kafka]" in reported[0]
    assert f"{config}:3: state.directory is 3" in "\n".join(reported)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[kafka\n", "is not valid TOML: .*line 1"),
        (b"\xff\xfe", "is not valid TOML"),
        (None, "cannot be read: No such file"),
    ],
)
def test_an_unreadable_settings_file_is_a_one_line_error(config: Path, content: bytes | None, expected: str) -> None:
    if content is not None:
        config.write_bytes(content)
    (line,) = errors_of(config)
    assert line.startswith(f"{config}: ")
    assert re.search(expected, line)


def test_an_error_between_settings_names_them_and_their_origins(config: Path) -> None:
    config.write_text('[kafka]\nsecurity_protocol = "SASL_SSL"\n')
    (line,) = errors_of(config)
    assert "needs kafka.sasl_username and kafka.sasl_password" in line
    assert f"kafka.security_protocol: {config}:2" in line
    (line,) = errors_of(None, {}, "output.scores_file=/tmp/x", "output.alerts_file=/tmp/./x")
    assert "must differ" in line


def test_no_secret_is_ever_shown(
    config: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text(
        '[kafka]\nsasl_password = 12345678\n[receivers.hook]\nsecret = "hunter22"\nurl = "ftp://u:hunter22@x/"\n'
    )
    monkeypatch.setenv("PYDANTIC_SETTINGS_DEBUG", "1")
    with caplog.at_level(logging.DEBUG):
        reported = errors_of(config)
    assert len(reported) == 3
    config.write_text(
        '[receivers.hook]\nsecret = "hunter22hunter22hunter22hunter22"\nurl = "https://u:hunter22@x/hook"\n'
    )
    with caplog.at_level(logging.DEBUG):
        settings = load_settings(config, {"LONGWATCH_KAFKA__SASL_PASSWORD": "12345678"})
    shown = [
        *reported,
        caplog.text,
        repr(settings),
        str(settings),
        settings.model_dump_json(),
        effective(settings),
    ]
    assert not [text for text in shown if "hunter22" in text or "12345678" in text]


def test_the_former_webhook_section_says_where_it_went(config: Path) -> None:
    config.write_text('[webhook]\nurl = "https://x.example"\n')
    for line in (errors_of(config)[0], errors_of(None, {"LONGWATCH_WEBHOOK__SECRET": "x"})[0]):
        assert "write [receivers.NAME]" in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[receivers.hook]\nulr = "https://x.example"\n', ":2: unknown setting receivers.hook.ulr; did you mean"),
        ('[receivers.hook]\ntype = "pagerduty"\n', "receivers.hook.routing_key is not set"),
        ('[receivers."a b"]\nurl = "https://x.example"\n', "receivers.a b: expected small letters"),
        ('[receivers.hook]\nurl = "ftp://x"\n', ":2: receivers.hook.url is set (hidden): the URL must begin with"),
        ('[receivers.hook]\nurl = "http://10.0.0.1/"\n', "listed in receivers.hook.allowed_hosts"),
    ],
)
def test_errors_of_receivers_name_them_and_their_line(config: Path, text: str, expected: str) -> None:
    config.write_text(text)
    (line,) = errors_of(config)
    assert expected in line
