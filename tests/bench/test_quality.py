"""The quality benchmark's own honesty: values reach the product unchanged, its scores reach the right rows."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from tests.bench.data import NabSeries
from tests.bench.nab import Counts, event_counts
from tests.bench.quality import ScoredRows, judge_labelled, judge_nab, main, read_scores, write_events

MINUTE = 60_000_000_000
START = 1_577_836_800_000_000_000  # 2020-01-01
HEADER = "timestamp,stream,score,threshold,alert,expected,lower,upper\n"


@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_values_written_for_the_product_read_back_exactly(
    tmp_path: Path, precision: type[np.float32 | np.float64]
) -> None:
    values = np.random.default_rng(0).normal(size=(50, 3)).astype(precision) * np.array([1e-8, 1, 1e9], precision)
    write_events(tmp_path / "events.csv", "a/b", START + MINUTE * np.arange(50), values)
    with (tmp_path / "events.csv").open(newline="") as file:
        header, *rows = list(csv.reader(file))
    assert header == ["timestamp", "stream", "f0", "f1", "f2"]
    assert rows[1][:2] == ["1577836860", "a/b"]
    np.testing.assert_array_equal(np.array([row[2:] for row in rows], dtype=precision), values)


def test_scores_are_read_by_stream_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(
        HEADER
        + '2020-01-01T00:00:00Z,"a, b",0.5,3.0,0,1,0,2\n'
        + "2020-01-01T00:00:00.5Z,c,3.5,3.0,1,,,\n"
        + '2020-01-01T00:01:00Z,"a, b",4.0,3.0,true,1,0,2\n'
    )
    scored = read_scores(path)
    assert sorted(scored) == ["a, b", "c"]
    assert scored["a, b"].times.tolist() == [START, START + MINUTE]
    assert scored["a, b"].alert.tolist() == [False, True]
    assert scored["c"].times.tolist() == [START + 500_000_000]
    assert scored["c"].score.tolist() == [3.5]


def test_a_file_without_scores_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("timestamp,value\n1,2\n")
    with pytest.raises(ValueError, match="no column stream, score, threshold, alert"):
        read_scores(path)


def test_dropped_rows_score_zero_and_shift_no_others() -> None:
    read = np.array([1, 2, 2, 3, 4, 2, 3, 4, 5])  # a duplicate, and a clock set back
    scored = ScoredRows(np.array([1, 2, 3, 4, 5]), np.arange(1.0, 6.0), np.full(5, 9.0), np.ones(5, np.bool_)).on(read)
    assert scored.score.tolist() == [1, 2, 0, 3, 4, 0, 0, 0, 5]
    assert scored.alert.tolist() == [True, True, False, True, True, False, False, False, True]
    with pytest.raises(ValueError, match="a row at 7 ns was scored that was not read"):
        ScoredRows(np.array([1, 7]), np.zeros(2), np.zeros(2), np.zeros(2, np.bool_)).on(read)


def test_only_the_test_part_is_evaluated() -> None:
    alert = np.array([1, 1, 0, 0, 1, 0, 1, 0], dtype=np.bool_)
    label = np.array([0, 1, 0, 0], dtype=np.bool_)
    judged = judge_labelled(
        "s", ScoredRows(np.arange(8), alert.astype(float), alert.astype(float), alert), 4, label, event_counts
    )
    assert judged.counts == Counts(0, 2, 1)
    assert judged.roc_auc == pytest.approx(1 / 6 * 1)  # the labelled row ties with one of three others


def test_nab_is_evaluated_by_score_and_by_alert() -> None:
    times = START + MINUTE * np.arange(100)
    score = np.zeros(100)
    score[[20, 40]] = 1.0, 2.0
    series = [NabSeries("a/b", times, score[:, None], [(int(times[40]), int(times[60]))])]
    scored = {"a/b": ScoredRows(times, score, np.full(100, 1.0), score > 1.5)}
    figures = {
        name: [round(figure.score, 6) for figure in by_profile] for name, by_profile in judge_nab(series, scored)
    }
    best, own, alerts = figures.values()
    assert best == alerts == [100.0] * 3  # at threshold 2 only the window's first row is left
    assert own[0] == pytest.approx(100 * (2 - 0.11) / 2)
    with pytest.raises(ValueError, match="1 of 1 streams were not scored: a/b"):
        judge_nab(series, {})


def test_a_missing_data_set_is_reported_and_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LONGWATCH_BENCH_DATA", str(tmp_path))
    assert main(["nab", "aiops"]) == 0
    reported = capsys.readouterr().out
    assert f"NAB: left out: the benchmark set nab is not here: no folder {tmp_path / 'nab'}" in reported
    assert "AIOPS: left out" in reported
    assert "https://github.com/numenta/NAB" in reported
