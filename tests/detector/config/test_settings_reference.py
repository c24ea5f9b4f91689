"""Every setting is documented: schema, reference, defaults."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

from pydantic import BaseModel

from detector.config.names import is_secret, leaves, named_section, table_list
from detector.config.settings import Settings
from docs.references.settings import EVERYBODY, RARE, reference

ROOT = Path(__file__).resolve().parents[3]


def test_the_schema_has_every_setting_and_no_secret() -> None:
    described = Settings.model_json_schema()
    assert json.loads(json.dumps(described)) == described
    assert set(described["properties"]) == set(Settings.model_fields)
    assert described["$defs"]["HttpSettings"]["properties"]["port"]["maximum"] == 65535
    assert described["$defs"]["KafkaSettings"]["additionalProperties"] is False


def test_every_setting_is_documented_and_of_a_type_every_source_supports() -> None:
    for section, field in Settings.model_fields.items():
        model = named_section(field.annotation) or table_list(field.annotation) or field.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        assert model.model_config["extra"] == "forbid", section
        for name, setting in model.model_fields.items():
            assert setting.description, f"{section}.{name}"
    assert {path for path, annotation in leaves(Settings) if is_secret(annotation)} == {
        ("kafka", "sasl_password"),
        ("kafka", "ssl_key_password"),
        ("kafka", "sasl_oauth_client_secret"),
        ("receivers", "NAME", "url"),
        ("receivers", "NAME", "secret"),
        ("receivers", "NAME", "headers"),
        ("receivers", "NAME", "routing_key"),
        ("receivers", "NAME", "token"),
        ("http", "password"),
        ("http", "token"),
        ("http", "ssl_key_password"),
    }


def test_the_reference_in_docs_is_up_to_date() -> None:
    written = (ROOT / "docs" / "settings.md").read_text()
    assert written == reference(), "run: make references"


def test_the_reference_groups_settings_by_who_needs_them() -> None:
    named = [
        (section, name) for group in (EVERYBODY, RARE) for section, names in group.items() for name in names.split()
    ]
    assert len(named) == len(set(named))
    assert set(named) < {(path[0], path[-1]) for path, _ in leaves(Settings)}
    text = reference()
    places = [text.index(part) for part in ("`bootstrap_servers`", "`dead_letter_topic`", "`horizons`", "`momentum`")]
    assert places == sorted(places)


def test_the_reference_states_every_default_as_toml_would_give_it() -> None:
    section, defaults = "", {}
    for line in reference().splitlines():
        if line.startswith("## "):
            section = ""
        elif line.startswith("### ["):
            section = "" if line.startswith("### [[") else line[5:-1]  # a list's tables have no defaults by name
        elif section and (row := re.match(r"\| `(\w+)` \| .*? \| `(.*?)` \| ", line)):
            assert f"{section}.{row[1]}" not in defaults, "it is in two groups"
            defaults[f"{section}.{row[1]}"] = tomllib.loads(f"x = {row[2]}")["x"]
    assert defaults["kafka.topics"] == ["metrics"]
    assert defaults["state.directory"] == "/var/lib/longwatch"
    unset = {
        ("alerting", "threshold"),
        ("alerting", "max_silence_seconds"),
        ("state", "changelog"),
        ("source", "max_poll_records"),
        ("rules",),
        ("calendars", "NAME", "start"),
        ("calendars", "NAME", "duration_seconds"),
    }  # what they are follows from other settings
    assert len(defaults) == len({path for path, _ in leaves(Settings)} - unset)
