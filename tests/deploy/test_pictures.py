"""docs/scoring.md is true: its pictures show what the engine does now (make pictures), its prices are the code's."""

from __future__ import annotations

import re

import numpy as np
import pytest

from connectors.batches import CHANNELS
from detector.scoring.claims import PRICES
from docs.references.pictures import FOLDER, PICTURES, columns_of
from docs.references.svg import drawn

pytestmark = pytest.mark.timeout(1800)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
MOVED = 1.5  # pixels that another processor's rounding may move a point by


@pytest.fixture(scope="module", params=list(PICTURES))
def shown(request):
    picture = PICTURES[request.param]()
    return request.param, picture, columns_of(picture)


def test_a_channels_picture_shows_an_alert_of_that_channel_and_a_series_without_one(shown):
    name, _, (found, missed) = shown
    if name in CHANNELS:
        alert = f"alert: {name}"
        assert found.marks[0].text == alert
        assert alert not in [mark.text for mark in missed.marks]


def test_the_picture_on_disk_is_what_the_engine_makes(shown):
    name, picture, columns = shown
    here, there = drawn(picture.title, columns), (FOLDER / f"{name}.svg").read_text()
    assert NUMBER.sub("", here) == NUMBER.sub("", there), "run make pictures"
    numbers = [np.array(NUMBER.findall(text), float) for text in (here, there)]
    np.testing.assert_allclose(*numbers, atol=MOVED, err_msg="run make pictures")


def test_every_picture_is_small():
    assert all(path.stat().st_size < 30_000 for path in FOLDER.glob("*.svg"))


@pytest.mark.parametrize(("channel", "price"), list(zip(CHANNELS, PRICES, strict=True)))
def test_a_channels_price_is_said_in_its_section(channel, price):
    text = (FOLDER.parents[1] / "scoring.md").read_text()
    section = text.partition(f"\n### {channel}\n")[2].partition("\n##")[0]
    assert float(re.search(r"^\| price \| (\d+(?:\.\d+)?)", section, re.MULTILINE)[1]) == price
