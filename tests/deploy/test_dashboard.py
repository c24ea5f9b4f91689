"""Dashboard and alert rules: every query must parse and name metrics and labels that the daemon exports."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from docs.references.metrics import every_metric
from tests.deploy.paths import DEPLOY, RULES, dashboard, load_yaml, panels
from tests.tools import NO_PROMTOOL, promtool

RULE_TESTS = DEPLOY / "prometheus" / "longwatch.rules.test.yaml"
RUNBOOKS = "https://runbooks.example.com/longwatch"  # a base to be replaced: deploy/README.md says how
TARGET_LABELS = {"job", "instance"}  # Prometheus adds them to whatever it scrapes


@cache
def exported() -> dict[str, set[str]]:
    """Return the labels of every sample that a running daemon exports, by the sample's name."""
    samples: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(generate_latest(every_metric().registry).decode()):
        for sample in family.samples:
            samples.setdefault(sample.name, set()).update(sample.labels)
    return samples


def rules() -> list[dict[str, Any]]:
    return [rule for group in load_yaml(RULES)["groups"] for rule in group["rules"]]


def queries() -> list[tuple[str, str, str]]:
    """Return (where, expression, legend) of every query in dashboard and rules."""
    found = [
        (f"panel {panel['title']}", target["expr"], target["legendFormat"])
        for panel in panels()
        for target in panel["targets"]
    ]
    found += [
        (f"annotation {annotation['name']}", annotation["expr"], annotation["textFormat"])
        for annotation in dashboard()["annotations"]["list"]
    ]
    found += [(f"alert {rule['alert']}", rule["expr"], "") for rule in rules()]
    return found


def names(expression: str) -> set[str]:
    """Return the metrics that an expression selects: what precedes a brace or bracket, or has our prefix."""
    return set(re.findall(r"\b[a-z]\w*(?=\{)", expression)) | set(re.findall(r"\blongwatch_\w+", expression))


def labels(expression: str, legend: str) -> set[str]:
    """Return the labels that an expression or its legend uses."""
    grouped = re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression)
    matched = re.findall(r"\{([^}]*)\}", expression)
    used = {label.strip() for group in grouped for label in group.split(",")}
    used |= {label for matcher in matched for label in re.findall(r"(\w+)\s*[=!]", matcher)}
    return used | set(re.findall(r"\{\{(\w+)\}\}", legend))


@pytest.mark.parametrize(("where", "expression", "legend"), queries(), ids=[query[0] for query in queries()])
def test_every_query_uses_exported_metrics(where: str, expression: str, legend: str) -> None:
    selected = names(expression) - {"up"}  # Prometheus' own
    assert selected <= exported().keys(), f"{where}: not exported"
    known = TARGET_LABELS.union(*(exported()[name] for name in selected))
    assert labels(expression, legend) <= known, f"{where}: no such label"


def test_an_unknown_metric_name_is_detected() -> None:
    assert "longwatch_step_seconds_bucket" in exported()
    assert names("rate(longwatch_no_such_total{job='a'}[5m]) / up{job='a'}") == {"longwatch_no_such_total", "up"}
    assert labels("sum by (stage) (x{job='a'})", "{{split}}") == {"stage", "job", "split"}


def test_every_label_value_in_a_query_exists() -> None:
    registry = every_metric().registry
    values = {
        value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
        for value in sample.labels.values()
    }
    wanted = {
        value
        for _, expression, _ in queries()
        for label, text in re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', expression)
        if label not in TARGET_LABELS
        for value in text.split("|")
    }
    assert wanted
    assert wanted <= values


def run_promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = promtool()
    if program is None:
        pytest.skip(NO_PROMTOOL)
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=600, check=False)


def test_promtool_accepts_the_rules() -> None:
    checked = run_promtool("check", "rules", str(RULES))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(rules())} rules found" in checked.stdout


def test_every_alert_fires_when_it_should_and_only_then() -> None:
    tested = run_promtool("test", "rules", str(RULE_TESTS))
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_has_a_firing_and_a_silent_test() -> None:
    cases = [case for test in load_yaml(RULE_TESTS)["tests"] for case in test["alert_rule_test"]]
    alerts = {rule["alert"] for rule in rules()}
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == alerts
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == alerts


def test_the_example_scrape_configuration_is_accepted(tmp_path: Path) -> None:
    configuration = load_yaml(DEPLOY / "prometheus" / "scrape.yaml")
    configuration["rule_files"] = [str(RULES)]  # where the package would have put it does not exist here
    written = tmp_path / "prometheus.yml"
    written.write_text(yaml.safe_dump(configuration))
    checked = run_promtool("check", "config", str(written))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert configuration["scrape_configs"][0]["job_name"] == "longwatch"


def test_every_query_of_the_dashboard_parses(tmp_path: Path) -> None:
    def plain(expression: str) -> str:
        return expression.replace("$__rate_interval", "5m").replace("$job", "longwatch").replace("$instance", ".*")

    records = [
        {"record": f"dashboard:query:{i}", "expr": plain(expression)} for i, (_, expression, _) in enumerate(queries())
    ]
    written = tmp_path / "queries.yaml"
    written.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": records}]}))
    checked = run_promtool("check", "rules", str(written))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(records)} rules found" in checked.stdout


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_every_alert_has_a_summary_and_a_runbook(rule: dict[str, Any]) -> None:
    assert re.fullmatch(r"Longwatch([A-Z][a-z]+)+", rule["alert"])
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert {"summary", "description", "runbook_url"} == rule["annotations"].keys()
    base, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert base == RUNBOOKS
    headings = re.findall(r"(?m)^### (\w+)$", (DEPLOY / "README.md").read_text())
    assert anchor in {heading.lower() for heading in headings}


def test_the_dashboard_takes_its_datasource_from_a_variable() -> None:
    sources = [panel["datasource"]["uid"] for panel in panels()]
    sources += [target["datasource"]["uid"] for panel in panels() for target in panel["targets"]]
    sources += [annotation["datasource"]["uid"] for annotation in dashboard()["annotations"]["list"]]
    assert set(sources) == {"${datasource}"}
    assert {variable["name"]: variable["type"] for variable in dashboard()["templating"]["list"]}[
        "datasource"
    ] == "datasource"


def test_the_dashboards_variables_use_exported_labels() -> None:
    asked = [variable["definition"] for variable in dashboard()["templating"]["list"] if variable["type"] == "query"]
    assert asked
    assert all(names(query) <= exported().keys() and names(query) for query in asked)


def test_every_panel_has_a_unit_and_a_description() -> None:
    for panel in panels():
        assert panel["description"], panel["title"]
        if panel["type"] == "heatmap":
            assert panel["options"]["yAxis"]["unit"]
        elif panel["type"] != "table":
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


def test_panels_do_not_overlap_or_leave_the_grid() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        area = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & area, panel["title"]
        cells |= area


def test_model_swaps_and_alerts_are_annotated() -> None:
    assert [annotation["name"] for annotation in dashboard()["annotations"]["list"]] == ["Model swap", "Alert"]
