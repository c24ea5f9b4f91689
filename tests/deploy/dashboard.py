"""The dashboard that ships."""

from __future__ import annotations

import json
from typing import Any

from tests.deploy.paths import DEPLOY

DASHBOARD = DEPLOY / "grafana" / "dashboards" / "longwatch.json"
RULES = DEPLOY / "prometheus" / "longwatch.rules.yaml"


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
