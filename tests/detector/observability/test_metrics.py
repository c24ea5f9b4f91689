"""What is exported, read back with the parsers that read it elsewhere."""

from __future__ import annotations

import math
import re
import subprocess
from itertools import product

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.samples import Sample

from connectors.batches import ALERT_CHANNELS, Partition
from detector.observability.metric_kinds import ArrayHistogram
from detector.observability.metrics import REJECTED_REASONS, Metrics
from docs.references.metrics import reference
from tests.brokers import CHECKOUT
from tests.tools import NO_PROMTOOL, promtool

# DESIGN's list, as people's dashboards will have it
DOCUMENTED = {
    "longwatch_events_total",
    "longwatch_events_rejected_total",
    "longwatch_score_bucket",
    "longwatch_rank_bucket",
    "longwatch_alerts_total",
    "longwatch_alerts_firing",
    "longwatch_streams",
    "longwatch_streams_evicted_total",
    "longwatch_batch_events_bucket",
    "longwatch_step_seconds_bucket",
    "longwatch_end_to_end_latency_seconds_bucket",
    "longwatch_consumer_lag",
    "longwatch_checkpoint_seconds_bucket",
    "longwatch_last_checkpoint_timestamp_seconds",
    "longwatch_retrain_total",
    "longwatch_model_fallbacks_total",
    "longwatch_retrain_seconds_bucket",
    "longwatch_training_loss",
    "longwatch_gradient_norm",
    "longwatch_model_info",
    "longwatch_model_trained_timestamp_seconds",
    "longwatch_deliveries_total",
    "longwatch_outbox_pending",
    "longwatch_device_memory_bytes",
    "longwatch_events_duplicate_total",
    "longwatch_events_late_total",
    "longwatch_events_unsaved",
    "longwatch_streams_blocked",
    "longwatch_streams_moved_back_total",
    "longwatch_streams_on_two_partitions_total",
    "longwatch_streams_begun_anew_total",
    "longwatch_build_info",
    "longwatch_last_loop_timestamp_seconds",
    "longwatch_last_event_timestamp_seconds",
}


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics("0.1.0", ["hook"])
    metrics.set_model("prior-1", "lstm", 1_790_000_000.0)
    metrics.set_lag({Partition("metrics", 0): 5, Partition("metrics", 1): 0})
    metrics.last_event_timestamp.set(1_790_000_000.0)
    metrics.set_losses({"training": -1.5, "validation": -1.25})
    metrics.gradient_norm.set(0.25)
    return metrics


def samples(metrics: Metrics) -> list[Sample]:
    text = generate_latest(metrics.registry).decode()
    return [sample for family in parse_text(text) for sample in family.samples]


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_every_documented_metric_is_exported(metrics: Metrics) -> None:
    assert {sample.name for sample in samples(metrics)} >= DOCUMENTED


def test_metrics_without_a_value_are_absent_rather_than_zero() -> None:
    metrics = Metrics("0.1.0", ["hook"])
    metrics.set_model("8b82654a9d45", "lstm", math.nan)  # the shipped one
    late = {
        *("longwatch_training_loss", "longwatch_gradient_norm", "longwatch_model_trained_timestamp_seconds"),
        *("longwatch_last_event_timestamp_seconds", "longwatch_consumer_lag_bucket", "longwatch_consumer_lag"),
    }
    assert DOCUMENTED - {sample.name for sample in samples(metrics)} == late & DOCUMENTED
    metrics.set_model("2", "lstm", 1_790_000_000.0)
    assert value(metrics, "longwatch_model_trained_timestamp_seconds") == 1_790_000_000.0
    metrics.set_model("8b82654a9d45", "lstm", math.nan)  # back to it
    assert value(metrics, "longwatch_model_trained_timestamp_seconds") is None


def test_any_metric_can_be_selected_by_name() -> None:
    metrics = Metrics("0.1.0", ["hook"])
    metrics.set_lag({Partition("metrics", 0): 5})
    for sample in samples(metrics):
        asked = generate_latest(metrics.registry.restricted_registry([sample.name])).decode()
        assert f"\n{sample.name}" in asked, sample.name


def test_known_labels_start_at_zero(metrics: Metrics) -> None:
    for name, label, values in (
        ("events_rejected_total", "reason", REJECTED_REASONS),
        ("events_dropped_total", "reason", ("duplicate", "late")),
        ("streams_begun_anew_total", "reason", ("damaged", "engine_error")),
        ("step_seconds_count", "stage", ("decode", "features", "forecast", "score", "emit")),
        ("retrain_total", "outcome", ("promoted", "rejected", "failed", "skipped")),
    ):
        for known in values:
            assert value(metrics, f"longwatch_{name}", **{label: known}) == 0
    for severity, channel in product(("warning", "critical"), ALERT_CHANNELS):
        assert value(metrics, "longwatch_alerts_total", severity=severity, channel=channel) == 0
    for outcome in ("delivered", "retried", "failed", "dropped"):
        assert value(metrics, "longwatch_deliveries_total", receiver="hook", outcome=outcome) == 0


def test_counted_values_are_exported(metrics: Metrics) -> None:
    metrics.events.inc(7)
    metrics.events_rejected["not_json"].inc()
    metrics.alerts["critical", "still"].inc(2)
    metrics.step_seconds["score"].observe(0.02)
    metrics.deliveries["hook", "retried"].inc()
    assert value(metrics, "longwatch_events_total") == 7
    assert value(metrics, "longwatch_events_rejected_total", reason="not_json") == 1
    assert value(metrics, "longwatch_alerts_total", severity="critical", channel="still") == 2
    assert value(metrics, "longwatch_step_seconds_bucket", stage="score", le="0.03") == 1
    assert value(metrics, "longwatch_deliveries_total", receiver="hook", outcome="retried") == 1


def test_a_column_of_scores_is_counted_in_its_buckets(metrics: Metrics) -> None:
    scores = np.array([0.0, 0.5, 0.6, 3.0, 3.2, 99.0])
    metrics.score.observe(scores[:4])
    metrics.score.observe(scores[4:])
    metrics.score.observe(np.array([]))
    assert value(metrics, "longwatch_score_bucket", le="0.5") == 2, "a bound belongs to its bucket"
    assert value(metrics, "longwatch_score_bucket", le="3.0") == 4
    assert value(metrics, "longwatch_score_bucket", le="8.0") == 5
    assert value(metrics, "longwatch_score_bucket", le="+Inf") == 6
    assert value(metrics, "longwatch_score_count") == 6
    total = value(metrics, "longwatch_score_sum")
    assert total is not None
    assert math.isclose(total, scores.sum())


def test_a_histogram_takes_a_single_number_too() -> None:
    registry = CollectorRegistry()
    histogram = ArrayHistogram("x_seconds", "x", registry, (0.1, 1))
    histogram.observe(0.5)
    assert registry.get_sample_value("x_seconds_bucket", {"le": "1.0"}) == 1


def test_lag_of_revoked_partitions_is_removed(metrics: Metrics) -> None:
    metrics.set_lag({Partition("metrics", 1): 3, Partition("logs", 0): 9})
    assert value(metrics, "longwatch_consumer_lag", topic="metrics", partition="0") is None
    assert value(metrics, "longwatch_consumer_lag", topic="metrics", partition="1") == 3
    assert value(metrics, "longwatch_consumer_lag", topic="logs", partition="0") == 9
    metrics.set_lag({})
    assert "longwatch_consumer_lag" not in {sample.name for sample in samples(metrics)}


def test_only_the_current_model_is_exported(metrics: Metrics) -> None:
    metrics.set_model("2026-11-20-1", "gru", 1_790_001_000.0)
    reported = [sample.labels for sample in samples(metrics) if sample.name == "longwatch_model_info"]
    assert reported == [{"version": "2026-11-20-1", "cell": "gru"}]
    assert value(metrics, "longwatch_model_trained_timestamp_seconds") == 1_790_001_000


def test_names_and_help_follow_the_conventions(metrics: Metrics) -> None:
    own = [family for family in metrics.registry.collect() if not re.match("process_|python_", family.name)]
    assert len(own) > 30
    for family in own:
        assert re.fullmatch("longwatch_[a-z_]+", family.name)
        assert family.documentation.endswith("."), family.name
        assert not re.search(r"milli|micro|_ms$|_kb$|percent", family.name)
        for sample in family.samples:
            assert not {"stream", "feature", "id"} & sample.labels.keys(), "no label grows with the data"
            assert not sample.name.endswith("_created")


def test_two_sets_of_metrics_are_independent(metrics: Metrics) -> None:
    other = Metrics("0.1.0", ["hook"])
    other.events.inc()
    assert value(metrics, "longwatch_events_total") == 0


def test_the_process_itself_is_measured(metrics: Metrics) -> None:
    names = {sample.name for sample in samples(metrics)}
    assert {"process_resident_memory_bytes", "process_cpu_seconds_total", "python_info"} <= names


def test_openmetrics_output_can_be_parsed(metrics: Metrics) -> None:
    metrics.score.observe([1.0, 4.2])
    text = generate_openmetrics(metrics.registry).decode()
    families = {family.name: family for family in parse_openmetrics(text)}
    assert families["longwatch_score"].type == "histogram"
    assert families["longwatch_events"].type == "counter"


def test_promtool_accepts_the_metrics(metrics: Metrics) -> None:
    tool = promtool()
    if tool is None:
        pytest.skip(NO_PROMTOOL)
    checked = subprocess.run(
        [tool, "check", "metrics"],
        input=generate_latest(metrics.registry),
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_the_reference_names_every_metric_as_the_code_declares_it() -> None:
    assert (CHECKOUT / "docs" / "metrics.md").read_text(encoding="utf-8") == reference()
    names = {name.removesuffix("_bucket") for name in DOCUMENTED}
    assert names <= set(re.findall(r"^\| `(\w+)` \|", reference(), re.MULTILINE))
