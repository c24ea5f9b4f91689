"""The example settings are settings: the daemon reads each of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from detector.config.settings import load_settings
from tests.deploy.paths import DEPLOY, load_toml

EXAMPLES = sorted(DEPLOY.rglob("longwatch.toml"))


def test_each_way_to_deploy_has_an_example() -> None:
    assert {path.relative_to(DEPLOY).parts[0] for path in EXAMPLES} == {"compose", "kubernetes", "systemd"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.relative_to(DEPLOY).as_posix())
def test_the_example_settings_are_accepted_with_their_variables(path: Path) -> None:
    environment = {
        "LONGWATCH_KAFKA__GROUP_INSTANCE_ID": "longwatch-0",
        "LONGWATCH_KAFKA__SASL_USERNAME": "longwatch",
        "LONGWATCH_KAFKA__SASL_PASSWORD": "from the environment",
    }
    settings = load_settings(path, environment)
    assert settings.http.port == load_toml(path)["http"]["port"]
    assert settings.kafka.group_instance_id == "longwatch-0"
    assert settings.kafka.sasl_password.get_secret_value() == "from the environment"


def test_the_systemd_units_credential_is_read_from_its_file(tmp_path: Path) -> None:
    unit = (DEPLOY / "systemd" / "longwatch.service").read_text()
    assert "LONGWATCH_KAFKA__SASL_PASSWORD_FILE=%d/kafka-password" in unit
    credential = tmp_path / "kafka-password"
    credential.write_text("from a file\n")
    environment = {"LONGWATCH_KAFKA__SASL_PASSWORD_FILE": str(credential)}
    settings = load_settings(DEPLOY / "kubernetes" / "overlays" / "example" / "longwatch.toml", environment)
    assert settings.kafka.sasl_password.get_secret_value() == "from a file"


@pytest.mark.parametrize(
    "where", ["compose", "kubernetes/base", "kubernetes/overlays/example", "kubernetes/overlays/replicas"]
)
def test_deployments_with_several_workers_use_a_changelog(where: str) -> None:
    environment = {"LONGWATCH_KAFKA__SASL_USERNAME": "longwatch", "LONGWATCH_KAFKA__SASL_PASSWORD": "secret"}
    settings = load_settings(DEPLOY / where / "longwatch.toml", environment)
    assert settings.changelog
    if where.endswith("replicas"):
        assert settings.processing.guarantee == "exactly_once"
        assert settings.state.standby
