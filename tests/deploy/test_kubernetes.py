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

from detector.checkpointing.changelog_checkpoint import REVOKE_SECONDS
from detector.service.daemon import STOP_CLOSING_SECONDS, STOP_SAVING_SECONDS
from tests.deploy.paths import DEPLOY, load_toml, load_yaml

KUBERNETES = DEPLOY / "kubernetes"
BASE = KUBERNETES / "base"
# From the oldest release that has all the fields used here (persistentVolumeClaimRetentionPolicy, stable in 1.32).
SCHEMAS = ("1.32", "1.36")
CUSTOM = {
    "PodMonitor",
    "PrometheusRule",
    "ScaledObject",
    "TriggerAuthentication",
}  # of the Prometheus operator and KEDA
REPLICAS = KUBERNETES / "overlays" / "replicas"
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


def test_every_manifest_is_valid_yaml_of_a_known_kind() -> None:
    manifests = [load_yaml(path) for path in KUBERNETES.rglob("*.yaml")]
    kustomize = {"Kustomization", "Component"}
    assert {manifest["kind"] for manifest in manifests} == (KINDS - {"ConfigMap"}) | kustomize | {
        "NetworkPolicy"
    } | CUSTOM


def rendered(path: Path) -> dict[str, dict[str, Any]]:
    """Return one document for each kind."""
    documents = render(path)
    found = {document["kind"]: document for document in documents}
    assert len(found) == len(documents)
    return found


@pytest.mark.parametrize("path", [BASE, KUBERNETES / "overlays" / "example", REPLICAS], ids=lambda path: path.name)
@pytest.mark.parametrize("version", SCHEMAS)
def test_manifests_fit_the_kubernetes_schemas(version: str, path: Path) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    documents = rendered(path)
    assert documents.keys() >= KINDS
    for kind in documents.keys() - CUSTOM:
        validator.validate(documents[kind], version, strict=True)


def test_an_unknown_manifest_field_is_detected() -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    budget = load_yaml(BASE / "poddisruptionbudget.yaml")
    budget["spec"]["maxUnavailabel"] = 1
    with pytest.raises(validator.ValidationError):
        validator.validate(budget, SCHEMAS[0], strict=True)


def test_the_example_overlay_adds_its_settings_and_the_pod_monitor() -> None:
    documents = {document["kind"]: document for document in render(KUBERNETES / "overlays" / "example")}
    assert documents.keys() == KINDS | {"PodMonitor"}
    settings = tomllib.loads(documents["ConfigMap"]["data"]["longwatch.toml"])
    assert settings["kafka"]["security_protocol"] == "SASL_SSL"
    assert all(document["metadata"]["namespace"] == "longwatch" for document in documents.values())
    mounted = documents["StatefulSet"]["spec"]["template"]["spec"]["volumes"][0]["configMap"]["name"]
    assert mounted == documents["ConfigMap"]["metadata"]["name"]  # with the hash: new settings roll the pods


@pytest.mark.parametrize("path", [BASE, KUBERNETES / "overlays" / "example", REPLICAS], ids=lambda path: path.name)
def test_probes_use_the_listening_port(path: Path) -> None:
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


def test_every_selector_matches_the_pods() -> None:
    labels = load_yaml(BASE / "statefulset.yaml")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        load_yaml(BASE / "statefulset.yaml")["spec"]["selector"]["matchLabels"],
        load_yaml(BASE / "service.yaml")["spec"]["selector"],
        load_yaml(BASE / "poddisruptionbudget.yaml")["spec"]["selector"]["matchLabels"],
        load_yaml(KUBERNETES / "components" / "podmonitor" / "podmonitor.yaml")["spec"]["selector"]["matchLabels"],
        load_yaml(KUBERNETES / "components" / "networkpolicy" / "networkpolicy.yaml")["spec"]["podSelector"][
            "matchLabels"
        ],
    ]
    assert all(selector.items() <= labels.items() for selector in selectors)


def test_every_written_path_is_a_volume() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    mounts = {mount["mountPath"]: mount["name"] for mount in container()["volumeMounts"]}
    state = load_toml(BASE / "longwatch.toml")["state"]["directory"]
    (claim,) = load_yaml(BASE / "statefulset.yaml")["spec"]["volumeClaimTemplates"]
    assert mounts[state] == claim["metadata"]["name"]
    assert "NUMBA_CACHE_DIR=/var/cache/longwatch" in dockerfile
    assert {"/var/cache/longwatch", "/tmp"} <= mounts.keys()


def test_the_pods_name_is_its_static_group_member_id() -> None:
    (variable,) = container()["env"]
    assert variable == {
        "name": "LONGWATCH_KAFKA__GROUP_INSTANCE_ID",
        "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}},
    }


def test_the_pod_meets_the_restricted_security_standard() -> None:
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert f"USER {pod()['securityContext']['runAsUser']}:" in (DEPLOY / "Dockerfile").read_text()
    assert pod()["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod()["automountServiceAccountToken"] is False


def test_the_grace_period_is_longer_than_a_checkpoint_and_leaving_the_group() -> None:
    assert pod()["terminationGracePeriodSeconds"] > 10
    assert pod()["terminationGracePeriodSeconds"] > REVOKE_SECONDS + STOP_SAVING_SECONDS + STOP_CLOSING_SECONDS


def test_the_startup_probe_allows_minutes_to_compile_and_does_not_wait_for_kafka() -> None:
    probe = container()["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 300
    assert probe["httpGet"]["path"] == "/livez"


def test_autoscaled_pods_keep_their_state_in_the_changelog() -> None:
    documents = rendered(REPLICAS)
    assert documents.keys() == KINDS | CUSTOM | {"NetworkPolicy"}
    settings = tomllib.loads(documents["ConfigMap"]["data"]["longwatch.toml"])
    assert settings["state"]["changelog"] is True
    assert settings["processing"]["guarantee"] == "exactly_once"
    scaled, stateful = documents["ScaledObject"]["spec"], documents["StatefulSet"]
    assert scaled["scaleTargetRef"] == {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "name": stateful["metadata"]["name"],
    }
    assert "replicas" not in stateful["spec"]  # an apply would set back what KEDA has chosen
    assert 1 <= scaled["minReplicaCount"] < scaled["maxReplicaCount"]
    (trigger,) = scaled["triggers"]
    assert trigger["type"] == "kafka"
    kafka, asked = settings["kafka"], trigger["metadata"]
    assert (asked["bootstrapServers"], asked["topic"], asked["consumerGroup"]) == (
        kafka["bootstrap_servers"],
        kafka["topics"][0],
        kafka["group_id"],
    )
    assert all(isinstance(value, str) for value in asked.values())  # KEDA takes nothing else
    assert asked["sasl"] == kafka["sasl_mechanism"].lower().replace("-sha-", "_sha")
    assert asked["tls"] == "enable"
    login = documents["TriggerAuthentication"]
    assert trigger["authenticationRef"]["name"] == login["metadata"]["name"]
    (secret,) = stateful["spec"]["template"]["spec"]["containers"][0]["envFrom"]
    assert {(one["parameter"], one["name"]) for one in login["spec"]["secretTargetRef"]} == {
        ("username", secret["secretRef"]["name"]),
        ("password", secret["secretRef"]["name"]),
    }
    assert kafka["session_timeout_seconds"] < stateful["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]


def test_the_autoscaling_component_uses_the_bases_topic_and_group() -> None:
    kafka = load_toml(BASE / "longwatch.toml")["kafka"]
    (trigger,) = load_yaml(KUBERNETES / "components" / "keda" / "scaledobject.yaml")["spec"]["triggers"]
    assert trigger["metadata"]["bootstrapServers"] == kafka["bootstrap_servers"]
    assert [trigger["metadata"]["topic"]] == kafka["topics"]
    assert trigger["metadata"]["consumerGroup"] == kafka["group_id"]


def test_the_network_policy_allows_only_what_the_settings_need() -> None:
    policy = load_yaml(KUBERNETES / "components" / "networkpolicy" / "networkpolicy.yaml")["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    (ingress,) = policy["ingress"]
    assert ingress["ports"] == [{"port": container()["ports"][0]["name"]}]
    assert ingress["from"]
    open_ports = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    servers = [load_toml(path)["kafka"]["bootstrap_servers"] for path in KUBERNETES.rglob("longwatch.toml")]
    wanted = {int(server.rpartition(":")[2]) for listed in servers for server in listed.split(",")}
    assert open_ports == wanted | {53, 443}


def test_the_prometheus_operators_rules_equal_the_rule_file() -> None:
    rule = load_yaml(KUBERNETES / "components" / "prometheusrule" / "prometheusrule.yaml")
    assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert rule["spec"] == load_yaml(DEPLOY / "prometheus" / "longwatch.rules.yaml"), "run `make rules`"


def test_an_overlay_prefixes_every_runbook_url(tmp_path: Path) -> None:
    copy = shutil.copytree(KUBERNETES, tmp_path / "kubernetes") / "overlays" / "replicas"
    file = copy / "kustomization.yaml"
    file.write_text(
        file.read_text().replace("base=https://runbooks.example.com/longwatch", "base=https://wiki.internal/lw")
    )
    groups = rendered(copy)["PrometheusRule"]["spec"]["groups"]
    alerts = {rule["alert"]: rule["annotations"]["runbook_url"] for group in groups for rule in group["rules"]}
    assert alerts == {name: f"https://wiki.internal/lw#{name.lower()}" for name in alerts}
    assert alerts
