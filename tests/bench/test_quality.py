"""The quality benchmark's own honesty: values reach the product unchanged, its scores the right rows."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.bench.counts import Counts
from tests.bench.data import LabelledSeries, NabSeries, Series, SymbolSeries, labelled_series, msl_series
from tests.bench.measures import MEASURES, MORE_MEASURES, heading, judge, judge_all, line
from tests.bench.nab import NabFigure
from tests.bench.product import read_scores, write_events
from tests.bench.quality import PRODUCT, bars, judge_nab, main, nab_table
from tests.bench.scored import ScoredRows, keep, kept
from training.evaluate import Bool, Float64

MINUTE = 60_000_000_000
START = 1_577_836_800_000_000_000  # 2020-01-01
HEADER = "timestamp,stream,score,threshold,alert,expected,lower,upper\n"


def mask(text: str) -> Bool:
    return np.array([letter == "x" for letter in text], dtype=np.bool_)


def labelled(label: str, judged_from: int = 0, step: int = MINUTE) -> LabelledSeries:
    """One stream "s" whose rows from `judged_from` on have these labels."""
    rows = judged_from + len(label)
    return LabelledSeries("s", START + step * np.arange(rows), np.zeros((rows, 1)), judged_from, mask(label))


def said(one: Series, alert: Bool, score: Float64 | None = None, rank: Float64 | None = None) -> ScoredRows:
    score = alert.astype(float) if score is None else score
    return ScoredRows(one.times, score, np.ones(len(score)), alert, score if rank is None else rank)


# --- Files in and out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_values_written_for_the_product_read_back_exactly(
    tmp_path: Path, precision: type[np.float32 | np.float64]
) -> None:
    values = np.random.default_rng(0).normal(size=(50, 3)).astype(precision) * np.array([1e-8, 1, 1e9], precision)
    write_events(tmp_path / "events.csv", Series("a/b", START + MINUTE * np.arange(50), values))
    with (tmp_path / "events.csv").open(newline="") as file:
        header, *rows = list(csv.reader(file))
    assert header == ["timestamp", "stream", "f0", "f1", "f2"]
    assert rows[1][:2] == ["1577836860", "a/b"]
    np.testing.assert_array_equal(np.array([row[2:] for row in rows], dtype=precision), values)


def test_a_missing_value_is_an_empty_cell_and_a_streams_name_stays(tmp_path: Path) -> None:
    values = np.array([[1.5, np.nan], [np.nan, 2.0]])
    write_events(tmp_path / "events.csv", Series("finance", START + MINUTE * np.arange(2), values))
    assert (tmp_path / "events.csv").read_text().splitlines()[1:] == [
        "1577836800,finance,1.5,",
        "1577836860,finance,,2",
    ]


def test_symbols_are_written_as_codes(tmp_path: Path) -> None:
    times, codes = START + MINUTE * np.arange(2), np.array([5, 1000])
    write_events(tmp_path / "events.csv", SymbolSeries("h", times, np.zeros((2, 0)), 0, mask(".."), codes))
    assert (tmp_path / "events.csv").read_text().splitlines() == [
        "timestamp,stream,code",
        "1577836800,h,E5",
        "1577836860,h,E1000",
    ]


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
    assert scored["a, b"].rank.tolist() == [0.5, 4.0], "without a rank the score ranks"


def test_a_rank_is_read_where_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("timestamp,stream,score,threshold,alert,rank\n2020-01-01T00:00:00Z,a,0.5,3.0,0,7.25\n")
    assert read_scores(path)["a"].rank.tolist() == [7.25]
    assert read_scores(path)["a"].score.tolist() == [0.5]


def test_a_file_without_scores_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("timestamp,value\n1,2\n")
    with pytest.raises(ValueError, match="no column stream, score, threshold, alert"):
        read_scores(path)


def test_dropped_rows_score_zero_and_shift_no_others() -> None:
    read = np.array([1, 2, 2, 3, 4, 2, 3, 4, 5])  # a duplicate, and a clock set back
    column = np.arange(1.0, 6.0)
    scored = ScoredRows(np.array([1, 2, 3, 4, 5]), column, np.full(5, 9.0), np.ones(5, np.bool_), 10 * column).on(read)
    assert scored.score.tolist() == [1, 2, 0, 3, 4, 0, 0, 0, 5]
    assert scored.rank.tolist() == [10, 20, 0, 30, 40, 0, 0, 0, 50]
    assert scored.alert.tolist() == [True, True, False, True, True, False, False, False, True]
    strange = ScoredRows(np.array([1, 7]), np.zeros(2), np.zeros(2), np.zeros(2, np.bool_), np.zeros(2))
    with pytest.raises(ValueError, match="a row at 7 ns was scored that was not read"):
        strange.on(read)


def test_what_was_said_is_kept_and_read_again(tmp_path: Path) -> None:
    one = labelled("..x")
    keep(tmp_path / "kept.npz", {"a/b": said(one, mask("..x")), "c": said(one, mask("x.."))})
    read = kept(tmp_path / "kept.npz")
    assert list(read) == ["a/b", "c"]
    assert read["c"].alert.tolist() == [True, False, False]
    np.testing.assert_array_equal(read["a/b"].times, one.times)


# --- The measures -----------------------------------------------------------------------------------------------------


def test_only_the_test_part_is_evaluated() -> None:
    judged = judge(one := labelled(".x..", judged_from=4), said(one, mask("xx..x.x.")))
    assert judged.events == Counts(0, 2, 1)
    assert judged.roc_auc == pytest.approx(1 / 6 * 1)  # the labelled row ties with one of three others


def test_a_table_line_has_the_figures_counted_by_hand() -> None:
    label, alert = "...xxxxxxxxxx....xx.", "x...........x.xx.x.."
    #                                        ^ false     ^ nine late   ^ false, and found at once
    one = labelled(label, step=6 * 3600 * 1_000_000_000)  # 20 rows in 5 days, 8 of them unlabelled: 2 days
    judged = [judge(one, said(one, mask(alert)))]
    figures = {name: measure(judged) for name, measure in (MEASURES | MORE_MEASURES).items()}
    assert figures["event F1"] == pytest.approx(2 * 2 / (2 * 2 + 2))
    assert figures["F1 k=7"] == pytest.approx(2 * 1 / (2 * 1 + 2 + 1))
    assert figures["point F1 k=7"] == pytest.approx(2 * 2 / (2 * 2 + 3 + 10)), "points outside count one by one"
    assert figures["false/wk"] == pytest.approx(2 / (8 * 6 / 168))
    assert figures["delay"] == 4.5
    cells = line("set", "mine", judged, calibrated=True).split()
    assert cells[:5] == ["set", "mine", "1", "0.667", "0.4"]
    assert len(cells) == 3 + len(MEASURES)
    assert all(name in heading() for name in MEASURES)


def test_streams_are_pooled_in_counts_and_averaged_in_ranking() -> None:
    found, unlabelled = labelled(".x"), labelled("....")
    judged = [judge(found, said(found, mask(".x"))), judge(unlabelled, said(unlabelled, mask("x...")))]
    assert MEASURES["event F1"](judged) == pytest.approx(2 / 3)
    assert MEASURES["rank AP"](judged) == 1.0, "a stream without labels ranks nothing"
    assert math.isnan(MEASURES["delay"](judged[1:]))


def test_the_rank_is_judged_beside_the_score() -> None:
    one = labelled("..xx")
    judged = [judge(one, said(one, mask("...."), score=np.array([9.0, 9, 0, 0]), rank=np.array([1.0, 2, 4, 3])))]
    assert MEASURES["rank AP"](judged) == MEASURES["rank ROC"](judged) == 1.0
    assert MORE_MEASURES["highest rank labelled"](judged) == 1
    wrong = [judge(one, said(one, mask("...."), rank=np.array([5.0, 2, 4, 3])))]
    assert MORE_MEASURES["highest rank labelled"](wrong) == 0


def test_calibration_is_what_exceeds_over_what_may_on_unlabelled_rows() -> None:
    one = labelled("." * 1000 + "x" * 10)
    score = np.zeros(1010)
    score[:20], score[:3], score[1000:] = 2.0, 3.5, 9.0  # twenty reach 2, three of them 3; labelled rows do not count
    judged = [judge(one, said(one, mask("." * 1010), score=score))]
    assert MEASURES["1e-2"](judged) == pytest.approx(20 / 10)
    assert MEASURES["1e-3"](judged) == pytest.approx(3 / 1)
    assert MEASURES["1e-4"](judged) == 0
    assert line("set", "mine", judged, calibrated=False).split()[-3:] == ["-", "-", "-"]


def test_a_stream_without_scores_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 of 1 streams were not scored: s"):
        judge_all([labelled("..")], {})


def test_a_bar_is_met_or_not() -> None:
    one = labelled(".x..")
    assert bars("msl", [judge(one, said(one, mask(".x..")))]) == ["bar, event F1 0.45: 1, met"]
    assert bars("msl", [judge(one, said(one, mask("x.x.")))]) == ["bar, event F1 0.45: 0, NOT MET"]


def test_nab_is_evaluated_by_score_and_by_alert() -> None:
    times = START + MINUTE * np.arange(100)
    score = np.zeros(100)
    score[[20, 40]] = 1.0, 2.0
    series = [NabSeries.of("a/b", times, score[:, None], [(int(times[40]), int(times[60]))])]
    figures = {
        name: [round(figure.score, 6) for figure in by_profile]
        for name, by_profile in judge_nab(series, {"a/b": said(series[0], score > 1.5, score)})
    }
    best, own, alerts = figures.values()
    assert best == alerts == [100.0] * 3  # at threshold 2 only the window's first row is left
    assert own[0] == pytest.approx(100 * (2 - 0.11) / 2)


@pytest.mark.parametrize(("own", "verdict"), [(99.5, "met"), (98.5, "NOT MET")])
def test_nabs_own_alerts_have_to_be_within_a_point_of_the_best_threshold(own: float, verdict: str) -> None:
    best, at_alerts = ([NabFigure(score, 1.0, 116, 0)] * 3 for score in (100.0, own))
    rows = [("best threshold", best), ("score >= threshold", best), ("alert rows", at_alerts)]
    lines = nab_table({PRODUCT: rows}, whole=True).splitlines()
    assert lines[4].split() == ["bar,", "best", "threshold", "73.00", "63.00", "met"]
    assert lines[5].split(maxsplit=5)[-1] == verdict


# --- The sets ---------------------------------------------------------------------------------------------------------


def test_a_row_in_a_window_beyond_probation_is_labelled() -> None:
    times = START + MINUTE * np.arange(100)
    one = NabSeries.of("a", times, np.zeros((100, 1)), [(int(times[10]), int(times[20]))])
    assert one.judged_from == 15
    assert np.flatnonzero(one.label).tolist() == [0, 1, 2, 3, 4, 5]  # rows 15 to 20


def test_the_train_part_comes_first(tmp_path: Path) -> None:
    parts = {"train": np.zeros(3), "test": np.ones(2), "test_label": np.array([0, 1], np.uint8)}
    np.savez(tmp_path / "kpi.npz", t0_step=np.array([START // 10**9, 300]), **parts)
    (one,) = labelled_series(tmp_path)
    assert (one.stream, one.judged_from, one.label.tolist()) == ("kpi", 3, [False, True])
    assert one.values.tolist() == [[0], [0], [0], [1], [1]]
    assert np.diff(one.times).tolist() == [300 * 10**9] * 4


def test_of_the_rovers_channels_the_first_column_is_read_and_ranges_include_their_ends(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(json.dumps({"M-1": {"anomalies": [[1, 2]]}}))
    commands = np.full((4, 54), 9.0, np.float32)
    test = np.column_stack((np.arange(4, dtype=np.float32), commands))
    np.savez(tmp_path / "msl.npz", **{"M-1_train": test[:2], "M-1_test": test})
    (one,) = msl_series(tmp_path)
    assert one.values[:, 0].tolist() == [0, 1, 0, 1, 2, 3]
    assert one.label.tolist() == [False, True, True, False]


def test_a_missing_data_set_is_reported_and_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LONGWATCH_BENCH_DATA", str(tmp_path))
    assert main(["nab", "aiops"]) == 0
    reported = capsys.readouterr().out
    assert f"nab: left out: the benchmark set nab is not here: no folder {tmp_path / 'nab'}" in reported
    assert "aiops: left out" in reported
    assert "https://github.com/numenta/NAB" in reported


def test_a_set_goes_through_the_product_and_a_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "asd").mkdir()
    for number in range(2):
        values = np.random.default_rng(number).normal(size=(800, 2)).astype(np.float32)
        values[700] += 100.0
        parts = {"train": values[:600], "test": values[600:], "test_label": (np.arange(200) == 100).astype(np.uint8)}
        np.savez(tmp_path / "asd" / f"omi-{number}.npz", **parts)
    monkeypatch.setenv("LONGWATCH_BENCH_DATA", str(tmp_path))
    kept_at = tmp_path / "kept"
    assert main(["asd", "--peers", "ewma-z", "--jobs", "1", "--keep", str(kept_at)]) == 0
    once = capsys.readouterr().out
    lines = {text.split()[1]: text.split() for text in once.splitlines() if text.startswith("asd  ")}
    assert [line[2] for line in lines.values()] == ["2", "2"]
    for detector in (PRODUCT, "ewma-z"):
        scored = kept(kept_at / f"asd.{detector}.npz")
        assert sorted(scored) == ["omi-0", "omi-1"]
        assert all(rows.alert[700] for rows in scored.values()), f"{detector} misses a hundred deviations"
    assert "asd: 2 streams, 1,600 rows" in once
    assert "bar, event F1 0.7:" in once
    assert main(["asd", "--peers", "ewma-z", "--judge", str(kept_at)]) == 0
    assert capsys.readouterr().out == once
