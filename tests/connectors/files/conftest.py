"""Log lines of every level are kept."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def _logs(caplog):
    caplog.set_level(logging.INFO)
