"""Where settings come from, and which source wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from detector.commands.config import effective
from detector.config.settings import Settings, SettingsError, load_settings
from tests.detector.config.support import errors_of


def test_without_any_source_the_defaults_apply() -> None:
    settings = load_settings(None, {})
    assert settings == Settings()
    assert (settings.source.type, settings.kafka.topics, settings.http.port) == ("kafka", ["metrics"], 9464)
    assert (settings.model.cell, settings.model.horizons) == ("lstm", (1, 10))
    assert settings.state.directory == Path("/var/lib/longwatch")
    assert settings.origin("kafka.topics") is None


def test_later_sources_win_over_earlier_ones(config: Path) -> None:
    config.write_text('[kafka]\ngroup_id = "file"\nscores_topic = "file"\nalerts_topic = "file"\n')
    environment = {"LONGWATCH_KAFKA__SCORES_TOPIC": "env", "LONGWATCH_KAFKA__ALERTS_TOPIC": "env-alerts", "HOME": "/"}
    settings = load_settings(config, environment, ["kafka.alerts_topic=first", "kafka.alerts_topic=set"])
    assert settings.kafka.dead_letter_topic == "longwatch-rejected"
    assert (settings.kafka.group_id, settings.kafka.scores_topic, settings.kafka.alerts_topic) == ("file", "env", "set")
    assert settings.origin("kafka.group_id") == f"{config}:2"
    assert settings.origin("kafka.scores_topic") == "environment LONGWATCH_KAFKA__SCORES_TOPIC"
    assert settings.origin("kafka.alerts_topic") == "--set kafka.alerts_topic"


@pytest.mark.parametrize("text", ["a,b", " a , b ", '["a", "b"]', "['a', 'b']"])
def test_lists_may_be_written_with_commas_or_as_toml_in_variables_and_options(text: str) -> None:
    by_variable = load_settings(None, {"LONGWATCH_KAFKA__TOPICS": text, "LONGWATCH_SOURCE__PATHS": text})
    by_option = load_settings(None, {}, [f"kafka.topics={text}", f"source.paths = {text}"])
    for settings in (by_variable, by_option):
        assert settings.kafka.topics == ["a", "b"]
        assert tuple(settings.source.paths) == ("a", "b")
    assert load_settings(None, {"LONGWATCH_SOURCE__PATHS": ""}).source.paths == ()


def test_texts_are_converted_to_the_settings_type() -> None:
    settings = load_settings(
        None,
        {"LONGWATCH_TRAINING__ENABLED": "false", "LONGWATCH_KAFKA__GROUP_ID": "007", "longwatch_http__port": "0"},
        [
            "alerting.threshold=4.5",
            'http.host="::1"',
            'kafka.sasl_password=a=b,c="d" and more',
            "training.interval_seconds=1e3",
        ],
    )
    assert settings.training.enabled is False
    assert settings.kafka.group_id == "007"
    assert settings.http.port == 0
    assert settings.alerting.threshold == 4.5
    assert settings.http.host == "::1"
    assert settings.kafka.sasl_password.get_secret_value() == 'a=b,c="d" and more'
    assert settings.training.interval_seconds == 1000.0
    assert load_settings(None, {"LONGWATCH_ALERTING__THRESHOLD": ""}).alerting.threshold is None


def test_any_secret_can_be_read_from_a_file_by_any_source(tmp_path: Path, config: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a-text-that-is-long-enough\n")
    url = {"LONGWATCH_RECEIVERS__HOOK__URL": "https://x.example"}
    config.write_text(f'[receivers.hook]\nurl = "https://x.example"\nsecret_file = "{secret}"\n')
    for settings in (
        load_settings(config, {}),
        load_settings(None, {"LONGWATCH_RECEIVERS__HOOK__SECRET_FILE": str(secret), **url}),
        load_settings(None, url, [f"receivers.hook.secret_file={secret}"]),
    ):
        assert settings.receivers["hook"].secret.get_secret_value() == "a-text-that-is-long-enough"
        assert str(secret) in str(settings.origin("receivers.hook.secret"))
    overridden = load_settings(config, {"LONGWATCH_RECEIVERS__HOOK__SECRET": "x" * 24})
    assert overridden.receivers["hook"].secret.get_secret_value() == "x" * 24
    gone = errors_of(None, {"LONGWATCH_KAFKA__SASL_PASSWORD_FILE": "/nowhere/secret"})
    assert "LONGWATCH_KAFKA__SASL_PASSWORD_FILE" in gone[0]
    assert "cannot read '/nowhere/secret': No such file" in gone[0]
    both = {"LONGWATCH_RECEIVERS__HOOK__SECRET": "x" * 24, "LONGWATCH_RECEIVERS__HOOK__SECRET_FILE": str(secret)}
    assert "receivers.hook.secret is set twice" in errors_of(None, both)[0]


def test_secrets_directory_files_rank_between_the_file_and_the_environment(tmp_path: Path, config: Path) -> None:
    config.write_text('[kafka]\nsasl_username = "file"\ngroup_id = "file"\nalerts_topic = "file"\n')
    mounted = tmp_path / "..data"  # as Kubernetes does: links to a folder that is replaced as a whole
    mounted.mkdir()
    for name, text in {
        "longwatch_receivers__hook__url": "https://x.example",
        "longwatch_receivers__hook__secret": "a-text-that-is-long-enough\n",
        "longwatch_kafka__sasl_username": "mounted\n",
        "LONGWATCH_KAFKA__GROUP_ID": "mounted",
        "longwatch_kafka__topics": "a,b\n",
        "another_programs": "secret",
    }.items():
        (mounted / name).write_text(text)
        (tmp_path / name).symlink_to(f"..data/{name}")
    (tmp_path / "another_programs_too").write_bytes(b"\xff")
    settings = load_settings(config, {"LONGWATCH_KAFKA__GROUP_ID": "variable"}, secrets=tmp_path)
    assert settings.receivers["hook"].secret.get_secret_value() == "a-text-that-is-long-enough"
    assert (settings.kafka.sasl_username, settings.kafka.topics) == ("mounted", ["a", "b"])
    assert (settings.kafka.group_id, settings.kafka.alerts_topic) == ("variable", "file")
    assert settings.origin("receivers.hook.secret") == f"{tmp_path}/longwatch_receivers__hook__secret"


def test_an_error_in_a_secrets_directory_names_the_file_and_no_secret(tmp_path: Path) -> None:
    (tmp_path / "longwatch_receivers__hook__secert").write_text("hunter22")
    (tmp_path / "longwatch_kafka__sasl_password").write_bytes(b"hunter22\xff")
    (tmp_path / "longwatch_receivers__hook__secret").write_text("hunter22")
    (tmp_path / "longwatch_http__port").write_text("many\n")
    with pytest.raises(SettingsError) as refused:
        load_settings(None, {}, secrets=tmp_path)
    assert "hunter22" not in str(refused.value)
    assert [line.removeprefix(f"{tmp_path}/longwatch_")[:80] for line in refused.value.errors] == [
        "kafka__sasl_password: cannot be read: not UTF-8 text",
        "receivers__hook__secert: unknown setting; did you mean longwatch_receivers__hook",
        "receivers__hook__secret: receivers.hook.secret is set (hidden): it has 8 bytes, ",
        'http__port: http.port is "many": expected a valid integer, unable to parse strin',
    ]
    with pytest.raises(SettingsError, match="nowhere: cannot be read: No such file or directory"):
        load_settings(None, {}, secrets=tmp_path / "nowhere")


def test_the_effective_settings_round_trip_and_state_their_origins(config: Path) -> None:
    overrides = [
        'rules=[{name = "a", streams = ["a \\"b\\"", "ü\\u007f"], threshold = 4.0, mute = true}]',
        "alerting.threshold=3",
        "training.enabled=no",
        "state.directory=/tmp/a b",
        "kafka.sasl_password=hidden away",
    ]
    settings = load_settings(None, {"LONGWATCH_HTTP__PORT": "1"}, overrides)
    text = effective(settings)
    assert "port = 1  # environment LONGWATCH_HTTP__PORT\n" in text
    assert 'host = "127.0.0.1"\n' in text
    assert "# sasl_password = hidden  # --set kafka.sasl_password" in text
    config.write_text(text)
    again = load_settings(config, {}, ["kafka.sasl_password=hidden away"])
    assert again.model_dump() == settings.model_dump()
    config.write_text(effective(load_settings(None, {})))
    assert load_settings(config, {}).model_dump() == Settings().model_dump()
