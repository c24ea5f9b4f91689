"""Labels: both formats mean the same, names are matched as a person would, and wrong files say what is wrong where."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.files.labels import LabelsError, load_labels, windows_of

WriteLabels = Callable[[str | bytes], Path]
SECOND = 1_000_000_000
START = int(datetime(2014, 4, 10, 7, 15, tzinfo=UTC).timestamp()) * SECOND
END = int(datetime(2014, 4, 11, 16, 45, tzinfo=UTC).timestamp()) * SECOND


@pytest.fixture
def labels_file(tmp_path: Path) -> WriteLabels:
    def write(content: str | bytes) -> Path:
        path = tmp_path / "labels"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_nab_json_and_csv_labels_are_equivalent(labels_file: WriteLabels) -> None:
    nab = {"a/x.csv": [["2014-04-10 07:15:00.000000", "2014-04-11 16:45:00.000000"]]}
    csv = "stream,start,end\r\na/x.csv,2014-04-10T09:15:00+02:00,2014-04-11T16:45:00Z\r\n"
    expected = {"a/x.csv": [(START, END)]}
    assert load_labels(labels_file(json.dumps(nab))) == expected
    assert load_labels(labels_file("\ufeff" + csv)) == expected


@pytest.mark.parametrize("size", [1, 10**3, 10**6, 10**9])
def test_the_unit_of_unix_times_is_inferred_from_their_size(labels_file: WriteLabels, size: int) -> None:
    start, end = START // SECOND * size, END // SECOND * size
    assert load_labels(labels_file(f"stream,start,end\ns,{start},{end}\n")) == {"s": [(START, END)]}
    assert load_labels(labels_file(json.dumps({"s": [[start, end]]}))) == {"s": [(START, END)]}


def test_windows_are_sorted_and_overlapping_ones_merged(labels_file: WriteLabels) -> None:
    text = "end,stream,note,start\n30,s,b,20\n5,s,a,1\n40,s,c,30\n9,t,,9\n"
    assert load_labels(labels_file(text)) == {
        "s": [(1 * SECOND, 5 * SECOND), (20 * SECOND, 40 * SECOND)],
        "t": [(9 * SECOND, 9 * SECOND)],
    }


def test_a_stream_without_incidents_has_an_empty_list(labels_file: WriteLabels) -> None:
    labels = load_labels(labels_file('{"calm.csv": []}'))
    assert windows_of(labels, "calm") == []
    assert windows_of(labels, "unknown") is None


@pytest.mark.parametrize(
    "stream",
    ["realKnownCause/nyc_taxi.csv", "realKnownCause/nyc_taxi", "nyc_taxi", "/data/nab/realKnownCause/nyc_taxi.csv.gz"],
)
def test_labels_match_a_stream_by_name_path_or_stem(stream: str) -> None:
    labels = {"realKnownCause/nyc_taxi.csv": [(1, 2)], "realTweets/Twitter_volume_UPS.csv": []}
    assert windows_of(labels, stream) == [(1, 2)]


def test_the_longest_shared_path_wins_and_a_tie_is_refused() -> None:
    labels = {"a/cpu.csv": [(1, 1)], "b/cpu.csv": [(2, 2)]}
    assert windows_of(labels, "root/b/cpu") == [(2, 2)]
    with pytest.raises(LabelsError, match=r"'cpu' could be any of 'a/cpu.csv', 'b/cpu.csv'"):
        windows_of(labels, "cpu")


def test_part_of_a_component_and_a_dot_in_a_host_name_match_nothing() -> None:
    assert windows_of({"taxi": [(1, 1)]}, "nyc_taxi") is None
    assert windows_of({"web.example.com": [(1, 1)]}, "web.example.org") is None
    assert windows_of({"web.example": [(1, 1)]}, "web") is None


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "line 1: labels need the columns stream, start, end .*found nothing"),
        ("stream,from,to\n", "found stream,.*from.*missing: end, start"),
        ("stream,start,end\ns,1,2\ns,yesterday,2\n", "line 3, start: 'yesterday' is neither an RFC 3339 time"),
        ("stream,start,end\ns,2\n", "line 2, end: found None"),
        ("stream,start,end\ns,3,2\n", r"line 2: the window ends \(2\) before it starts \(3\)"),
        ("stream,start,end\n,1,2\n", "line 2: the stream's name is empty"),
        ("stream,start,end\ns,1,nan\n", "line 2, end: 'nan' is neither"),
        ("stream,start,end\ns,1,9999-01-01\n", "line 2, end: '9999-01-01' lies outside the years"),
        ('{"s": [[1, 2],\n', "line 2: labels are no valid JSON"),
        ('["s"]', "found a list of labels; expected"),
        ('{"s": 3}', "stream 's': found 3"),
        ('{"s": [[1, 2], [3]]}', r"stream 's', window 2: found \[3\]"),
        ('{"s": [[1, true]]}', "stream 's', window 1, end: found True"),
        (b"\xff\xfe\x00", "must be UTF-8"),
    ],
)
def test_invalid_labels_are_an_error_with_reason_and_place(
    labels_file: WriteLabels, content: str | bytes, complaint: str
) -> None:
    with pytest.raises(LabelsError, match=complaint):
        load_labels(labels_file(content))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=60)
    | st.text(max_size=60).map(lambda text: "stream,start,end\n" + text)
    | json_values.map(json.dumps)
    | st.dictionaries(st.text(max_size=4), st.lists(st.lists(json_values, max_size=3), max_size=3)).map(json.dumps)
)
def test_any_bytes_give_labels_or_a_labels_error(labels_file: WriteLabels, content: str | bytes) -> None:
    try:
        labels = load_labels(labels_file(content if isinstance(content, bytes) else content.encode(errors="replace")))
    except LabelsError:
        return
    for windows in labels.values():
        assert all(start <= end for start, end in windows)
        assert all(one[1] < other[0] for one, other in pairwise(windows))
