"""Which alerts are one incident."""

from __future__ import annotations

import pytest

from detector.incidents.grouping import Grouping, Member, common_start, parent_of, words_of
from tests.detector.incidents.support import member

WINDOW = 300.0


def grouped(members: list[Member]) -> list[list[str]]:
    """The streams of each incident, as alerts come in this order."""
    grouping, found = Grouping(WINDOW), dict[str, list[str]]()
    for one in members:
        grouping.pass_time(one.started_at)
        incident = grouping.joined(one)
        if incident is None:
            incident = grouping.begin(one)
        else:
            incident.take(one)
        if one.status == "resolved":
            incident.firing = 0
        found.setdefault(incident.id, []).append(one.stream)
    return list(found.values())


@pytest.mark.parametrize(
    ("first", "second", "seconds", "together"),
    [
        ("web-1/cpu", "web-1/memory", 80_000, True),  # one host, while it is open
        ("web-1/cpu", "web-1/memory", 90_000, False),  # but not for days
        ("rack-3/web-1/cpu", "rack-3/db-2/disk", 250, True),  # one rack
        ("rack-3/web-1/cpu", "rack-3/db-2/disk", 350, False),
        ("web-1/cpu", "db-2/cpu", 250, True),  # one metric, as when a load balancer fails
        ("web-1/cpu", "db-2/disk", 250, False),  # nothing in common
        ("web-1/cpu", "db-2/disk", 50, True),  # but at the same time
        ("1/2", "1/3", 3000, True),
        ("a", "b", 30, True),
        ("a", "b", 100, False),
        ("rack-3/web-1/cpu", "rack-3/db-2/disk", -250, True),  # a partition that is read later
        ("rack-3/web-1/cpu", "rack-3/db-2/disk", -350, False),
    ],
)
def test_alerts_join_by_time_and_by_what_their_names_share(
    first: str, second: str, seconds: float, together: bool
) -> None:
    found = grouped([member(1, first), member(2, second, seconds)])
    assert (found == [[first, second]]) is together


def test_a_failing_rack_is_one_incident_and_another_hosts_failure_is_another() -> None:
    rack = [member(n, f"rack-3/host-{n % 20}/metric{n % 7}", 2.0 * n) for n in range(140)]
    other = member(500, "lobby/door", 150.0)
    found = grouped(sorted([*rack, other], key=lambda one: one.started_at))
    assert sorted(map(len, found)) == [1, 140]


def test_what_flaps_is_one_incident_and_what_comes_again_later_is_two() -> None:
    def spells(gap: float) -> int:
        return len(grouped([member(n, "web-1/cpu", n * gap, n * gap + 10) for n in range(10)]))

    assert spells(200.0) == 1
    assert spells(400.0) == 10


def test_of_two_incidents_an_alert_joins_the_one_that_is_more_closely_related() -> None:
    found = grouped([member(1, "web-1/cpu"), member(2, "db-2/disk", 100), member(3, "web-1/memory", 110)])
    assert found == [["web-1/cpu", "web-1/memory"], ["db-2/disk"]]


def test_an_incident_over_by_the_events_time_takes_no_more() -> None:
    grouping = Grouping(WINDOW)
    grouping.begin(member(1, "s", 0, 10))
    grouping.pass_time(member(2, "s", 305).started_at)
    assert grouping.over() == []
    grouping.pass_time(member(2, "s", 311).started_at)
    (over,) = grouping.over()
    assert over.id == "a1"
    assert grouping.joined(member(2, "s", 311)) is None


def test_the_summary_names_what_is_worst_and_what_streams_share() -> None:
    grouping = Grouping(WINDOW)
    incident = grouping.begin(member(1, "metrics/web-1/cpu"))
    assert incident.summary() == "metrics/web-1/cpu: observed 9, expected 1"
    incident.take(member(2, "metrics/web-2/cpu", score=7.0, severity="critical"))
    assert incident.summary() == "2 streams of metrics; worst: metrics/web-2/cpu: observed 9, expected 1"
    assert (incident.severity, incident.first_severity, incident.score) == ("critical", "warning", 7.0)


def test_many_silences_are_told_as_one() -> None:
    incident = Grouping(WINDOW).begin(member(0, "metrics/s0", channel="silence"))
    for number in range(1, 42):
        incident.take(member(number, f"metrics/s{number}", channel="silence", score=6.0))
    assert incident.summary() == "42 streams of metrics send nothing any more, such as metrics/s41"


def test_names_are_read_in_parts_and_words() -> None:
    assert [parent_of(name) for name in ("a/b/c", "a", "web-1.cpu", "")] == ["a/b", "", "web-1", ""]
    assert words_of("Rack-3/web-1/cpu_user:x") == {"rack", "web", "cpu", "user"}
    assert common_start(["a/b/c", "a/b/d"]) == "a/b"
    assert common_start(["a/bc", "a/bd"]) == "a"
    assert common_start(["x"]) == ""
