"""News: a peak is told once, again when it has grown by half, and again after a rest."""

import numpy as np
import pytest

from detector.scoring.claims import CHANNELS, FORECAST, LEVEL, NOVEL, STILL, STREAM_SCORE
from detector.scoring.news import AGAIN, OLD, QUIET, newest

THRESHOLD = 3.0


def told(
    *claims: float, channel: int = FORECAST, record: np.ndarray | None = None, opened: bool = False
) -> list[tuple[float, int, bool]]:
    """Return score, channel and whether anything is above, event by event; one channel claims, the others nothing."""
    record = np.zeros(1, STREAM_SCORE) if record is None else record
    found = []
    for claim in claims:
        row = np.full(len(CHANNELS), -0.5)
        row[channel] = claim
        found.append(newest(record[0], row, THRESHOLD, opened, 0.0))
    return found


def news(*claims: float) -> list[int]:
    return [k for k, (score, _, _) in enumerate(told(*claims)) if score > THRESHOLD]


def test_a_peak_is_told_once() -> None:
    assert news(0.0, 4.0, 4.0, 5.9, 3.5, 4.0) == [1]


def test_it_is_told_again_when_it_has_grown_by_half() -> None:
    assert news(4.0, 5.9, 6.1, 9.0, 9.2) == [0, 2, 4]
    assert 4.0 * AGAIN == 6.0


@pytest.mark.parametrize(("rest", "again"), [(QUIET - 1, False), (QUIET, True)])
def test_and_again_after_fifteen_events_below_the_threshold(rest: int, again: bool) -> None:
    assert (len(news(4.0, *[1.0] * rest, 4.0)) == 2) == again


def test_the_rest_must_be_unbroken() -> None:
    assert news(4.0, *[1.0] * (QUIET - 1), 3.5, *[1.0] * (QUIET - 1), 4.0) == [0]


def test_what_was_told_still_stands_above_but_scores_below_the_threshold() -> None:
    found = told(4.0, 4.0, 1.0)

    assert [above for _, _, above in found] == [True, True, False]
    assert [score for score, _, _ in found] == pytest.approx([4.0, OLD * THRESHOLD, 1.0])
    assert OLD < 1.0


def test_the_largest_claim_leads_and_none_leads_where_nothing_is_claimed() -> None:
    record, claims = np.zeros(1, STREAM_SCORE), np.full(len(CHANNELS), -0.1)
    assert newest(record[0], claims, THRESHOLD, False, 0.0) == (0.0, -1, False)

    claims[LEVEL], claims[NOVEL] = 1.0, 2.0
    assert newest(record[0], claims, THRESHOLD, False, 0.0) == (2.0, NOVEL, False)


def test_one_channels_news_does_not_silence_another() -> None:
    record = np.zeros(1, STREAM_SCORE)
    told(5.0, record=record)

    claims = np.full(len(CHANNELS), -0.1)
    claims[FORECAST], claims[LEVEL] = 5.0, 3.5
    assert newest(record[0], claims, THRESHOLD, False, 0.0) == (3.5, LEVEL, True)


def test_a_pause_is_news_once_however_long() -> None:
    """While its incident is open it may still top its peak; the incident over, it is known."""
    record = np.zeros(1, STREAM_SCORE)

    first, topped = told(4.0, 6.5, channel=STILL, record=record, opened=True)
    later = told(7.0, 12.0, 30.0, channel=STILL, record=record)

    assert [first[0], topped[0]] == [4.0, 6.5]
    assert max(score for score, _, _ in later) < THRESHOLD


def test_the_level_that_a_pause_leaves_behind_is_no_news_of_its_own() -> None:
    record, claims = np.zeros(1, STREAM_SCORE), np.full(len(CHANNELS), -0.1)
    told(4.0, channel=STILL, record=record)

    claims[STILL], claims[LEVEL] = 4.5, 5.0
    assert newest(record[0], claims, THRESHOLD, False, 0.0)[0] < THRESHOLD
    claims[STILL], claims[LEVEL] = -0.1, 6.0
    assert newest(record[0], claims, THRESHOLD, False, 0.0)[0] < THRESHOLD


def test_a_new_value_is_held_to_the_threshold_while_the_stream_is_young() -> None:
    claims = np.full(len(CHANNELS), -0.1)
    claims[NOVEL] = 3.9
    assert newest(np.zeros(1, STREAM_SCORE)[0], claims, THRESHOLD, False, 1.0) == (THRESHOLD, NOVEL, False)

    claims[NOVEL] = 4.1
    assert newest(np.zeros(1, STREAM_SCORE)[0], claims, THRESHOLD, False, 1.0) == (4.1, NOVEL, True)
    claims[NOVEL], claims[FORECAST] = 3.9, 3.5
    assert newest(np.zeros(1, STREAM_SCORE)[0], claims, THRESHOLD, False, 1.0) == (3.5, FORECAST, True)
