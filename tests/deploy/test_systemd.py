"""The systemd unit, checked by systemd itself where it is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.paths import DEPLOY, load_toml

UNIT = DEPLOY / "systemd" / "longwatch.service"
# 0 to 10; systemd calls up to 2 "OK". What is left: network, and what the unit's comments say must stay off.
MAX_EXPOSURE = 1.5


def directives() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if match := re.match(r"([A-Z]\w+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


@pytest.fixture
def installable(tmp_path: Path) -> Path:
    """A copy whose ExecStart exists: longwatch is not installed in /opt where tests run."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / UNIT.name
    copy.write_text(re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text()))
    return copy


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def test_systemd_accepts_the_unit(installable: Path) -> None:
    verified = analyze("verify", str(installable))
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")


def test_a_misspelt_directive_is_detected(installable: Path) -> None:
    installable.write_text(installable.read_text().replace("NoNewPrivileges=", "NoNewPrivilege="))
    assert "NoNewPrivilege" in analyze("verify", str(installable)).stderr


def test_the_units_exposure_is_as_low_as_documented(installable: Path) -> None:
    report = analyze("security", "--offline=true", "--no-pager", str(installable))
    if "Overall exposure level" not in report.stdout:
        pytest.skip(f"this systemd cannot judge a unit offline: {report.stderr.strip()}")
    (level,) = re.findall(r"Overall exposure level for longwatch\.service: ([\d.]+)", report.stdout)
    assert float(level) <= MAX_EXPOSURE


def test_a_hung_daemon_is_restarted_and_an_invalid_setting_is_not_retried() -> None:
    unit = directives()
    assert unit["Type"] == ["notify"]
    assert unit["NotifyAccess"] == ["main"]
    assert unit["WatchdogSec"] == ["90s"]
    assert unit["Restart"] == ["always"]
    assert unit["RestartPreventExitStatus"] == ["2"]  # the command line's own status for settings
    assert {"StartLimitIntervalSec", "StartLimitBurst"} <= unit.keys()


def test_the_stop_timeout_is_longer_than_a_drain() -> None:
    assert int(directives()["TimeoutStopSec"][0].removesuffix("s")) > 10


def test_the_unit_its_directories_and_its_settings_agree() -> None:
    unit = directives()
    settings = load_toml(DEPLOY / "systemd" / "longwatch.toml")
    assert settings["state"]["directory"] == f"/var/lib/{unit['StateDirectory'][0]}"
    assert f"NUMBA_CACHE_DIR=/var/cache/{unit['CacheDirectory'][0]}" in unit["Environment"]
    assert unit["ExecStart"] == ["/opt/longwatch/bin/longwatch run --config /etc/longwatch/longwatch.toml"]


def test_kernels_may_be_compiled_while_the_daemon_runs() -> None:
    assert directives()["MemoryDenyWriteExecute"] == ["no"]
