"""The soak: `LONGWATCH_FAULTS=1 pytest tests/faults/test_soak.py -s`; LONGWATCH_SOAK_MINUTES sets its length."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.brokers import Broker
from tests.faults.soak import soak

MINUTES = float(os.environ.get("LONGWATCH_SOAK_MINUTES", "30"))


@pytest.mark.kafka
@pytest.mark.faults
@pytest.mark.timeout(MINUTES * 60 + 1800)
def test_two_retraining_workers_lose_and_duplicate_nothing(
    tmp_path: Path, apache: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = soak(MINUTES, tmp_path, apache)
    with capsys.disabled():
        print(f"\n  {figures}")
