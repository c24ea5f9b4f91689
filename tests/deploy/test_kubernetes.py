"""The Kubernetes manifests: against Kubernetes' own schemas, and against the settings they carry."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.paths import DEPLOY, load_toml, load_yaml

KUBERNETES = DEPLOY / "kubernetes"
BASE = KUBERNETES / "base"
# From the oldest release that has all the fields used here (persistentVolumeClaimRetentionPolicy, stable in 1.32).
SCHEMAS = ("1.32", "1.36")
KINDS = {"ConfigMap", "Service", "StatefulSet", "PodDisruptionBudget"}


@cache
def render(path: Path) -> list[dict[str, Any]]:
    """Return what `kubectl apply --kustomize` would send."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    command = [kubectl, "kustomize", str(path)]
    rendered = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    return [document for document in yaml.safe_load_all(rendered.stdout) if document]


def pod() -> dict[str, Any]:
    template: dict[str, Any] = load_yaml(BASE / "statefulset.yaml")["spec"]["template"]["spec"]
    return template


def container() -> dict[str, Any]:
    found: dict[str, Any] = pod()["containers"][0]
    return found


def test_every_manifest_is_yaml_of_a_known_kind() -> None:
    manifests = [load_yaml(path) for path in KUBERNETES.rglob("*.yaml")]
    assert {manifest["kind"] for manifest in manifests} == (KINDS - {"ConfigMap"}) | {
        "Kustomization",
        "Component",
        "PodMonitor",
    }


@pytest.mark.parametrize("version", SCHEMAS)
def test_what_is_applied_fits_the_schemas_of_kubernetes(version: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    documents = render(BASE)
    assert {document["kind"] for document in documents} == KINDS
    for document in documents:
        validator.validate(document, version, strict=True)


def test_an_unknown_field_would_be_found() -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    budget = load_yaml(BASE / "poddisruptionbudget.yaml")
    budget["spec"]["maxUnavailabel"] = 1
    with pytest.raises(validator.ValidationError):
        validator.validate(budget, SCHEMAS[0], strict=True)


def test_the_example_overlay_brings_its_settings_and_the_pod_monitor() -> None:
    documents = {document["kind"]: document for document in render(KUBERNETES / "overlays" / "example")}
    assert documents.keys() == KINDS | {"PodMonitor"}
    settings = tomllib.loads(documents["ConfigMap"]["data"]["longwatch.toml"])
    assert settings["kafka"]["security_protocol"] == "SASL_SSL"
    assert all(document["metadata"]["namespace"] == "longwatch" for document in documents.values())
    mounted = documents["StatefulSet"]["spec"]["template"]["spec"]["volumes"][0]["configMap"]["name"]
    assert mounted == documents["ConfigMap"]["metadata"]["name"]  # with the hash: new settings roll the pods


@pytest.mark.parametrize("path", [BASE, KUBERNETES / "overlays" / "example"], ids=lambda path: path.name)
def test_the_probes_ask_the_port_that_is_listened_on(path: Path) -> None:
    settings = load_toml(path / "longwatch.toml")
    assert settings["http"]["host"] == "0.0.0.0"  # the kubelet comes from outside the pod
    (port,) = container()["ports"]
    assert port == {"name": "http", "containerPort": settings["http"]["port"]}
    probes = {name: container()[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert probes == {
        "startupProbe": {"path": "/livez", "port": "http"},
        "livenessProbe": {"path": "/livez", "port": "http"},
        "readinessProbe": {"path": "/readyz", "port": "http"},
    }
    (service_port,) = load_yaml(BASE / "service.yaml")["spec"]["ports"]
    assert service_port["targetPort"] == "http"


def test_every_selector_finds_the_pods() -> None:
    labels = load_yaml(BASE / "statefulset.yaml")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        load_yaml(BASE / "statefulset.yaml")["spec"]["selector"]["matchLabels"],
        load_yaml(BASE / "service.yaml")["spec"]["selector"],
        load_yaml(BASE / "poddisruptionbudget.yaml")["spec"]["selector"]["matchLabels"],
        load_yaml(KUBERNETES / "components" / "podmonitor" / "podmonitor.yaml")["spec"]["selector"]["matchLabels"],
    ]
    assert all(selector.items() <= labels.items() for selector in selectors)


def test_every_path_that_is_written_is_a_volume() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    mounts = {mount["mountPath"]: mount["name"] for mount in container()["volumeMounts"]}
    state = load_toml(BASE / "longwatch.toml")["state"]["directory"]
    (claim,) = load_yaml(BASE / "statefulset.yaml")["spec"]["volumeClaimTemplates"]
    assert mounts[state] == claim["metadata"]["name"]
    assert "NUMBA_CACHE_DIR=/var/cache/longwatch" in dockerfile
    assert {"/var/cache/longwatch", "/tmp"} <= mounts.keys()


def test_the_pod_keeps_its_place_in_the_group_by_its_name() -> None:
    (variable,) = container()["env"]
    assert variable == {
        "name": "LONGWATCH_KAFKA__GROUP_INSTANCE_ID",
        "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}},
    }


def test_the_pod_fits_the_restricted_security_standard() -> None:
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert f"USER {pod()['securityContext']['runAsUser']}:" in (DEPLOY / "Dockerfile").read_text()
    assert pod()["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod()["automountServiceAccountToken"] is False


def test_a_stop_is_given_longer_than_the_ten_seconds_a_drain_takes() -> None:
    assert pod()["terminationGracePeriodSeconds"] > 10
