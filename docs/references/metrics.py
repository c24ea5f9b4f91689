"""docs/metrics.md: every metric that the daemon exports."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.metrics_core import Metric

from connectors.batches import Partition
from detector.observability.metrics import Metrics

_HEAD = """# Metrics

What `/metrics` exports for Prometheus, made from the code (`make references`; a test compares). Each process also has
the usual `process_*` and `python_info`. Dashboard and alert rules: [deploy](../deploy/README.md).

| name | type | labels | meaning |
|---|---|---|---|
"""
_OPEN = {
    "topic",
    "partition",
    "version",
    "cell",
    "receiver",
    "incident",
    "stream",
}  # labels whose values are not known beforehand


def every_metric() -> Metrics:
    """Return metrics of which each has a value, so that a scrape shows all names and labels."""
    metrics = Metrics(version="", receivers=["NAME"])
    metrics.incident_firing.set_function(lambda: [(("", "", s), 1.0) for s in ("warning", "critical")])
    metrics.stream_score.set_function(lambda: [(("",), 0.0)])
    metrics.set_model("", "lstm", 0.0)
    metrics.set_lag({Partition("", 0): 0})
    metrics.set_losses({"training": 0.0, "validation": 0.0})
    metrics.gradient_norm.set(0.0)
    metrics.last_event_timestamp.set(0.0)
    return metrics


def reference() -> str:
    """Return docs/metrics.md."""
    rows = [_HEAD]
    for metric in every_metric().registry.collect():
        if metric.name.startswith("longwatch_"):
            name = metric.name + {"counter": "_total", "info": "_info"}.get(metric.type, "")
            rows.append(f"| `{name}` | {metric.type} | {'; '.join(_labels(metric))} | {metric.documentation} |\n")
    return "".join(rows)


def _labels(metric: Metric) -> Iterable[str]:
    found: dict[str, dict[str, None]] = {}
    for sample in metric.samples:
        for label, value in sample.labels.items():
            found.setdefault(label, {})[value] = None
    for label, values in found.items():
        if label != "le":  # a histogram's own
            shown = f": {', '.join(values)}" if label not in _OPEN else ""
            yield f"`{label}`{shown}"
