"""`longwatch alerts test`: a line for each receiver, and an exit status that says whether all would be told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from detector.cli import main
from tests.connectors.notify.support import Receiver


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = 0
    try:
        main(["alerts", "test", *arguments])
    except SystemExit as ended:
        status = int(ended.code or 0)
    found = capsys.readouterr()
    return status, found.out + found.err


def test_each_receiver_has_a_line_and_one_that_fails_is_an_exit_status(
    receiver: Receiver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "longwatch.toml"
    config.write_text(
        f"""
[receivers.ops]
url = "http://127.0.0.1:{receiver.port}/T0KEN"
allowed_hosts = ["127.0.0.1"]
[receivers.gone]
url = "http://127.0.0.1:1/"
allowed_hosts = ["127.0.0.1"]
"""
    )
    status, text = said(capsys, "--config", str(config))
    first, second = text.splitlines()
    assert status == 1
    assert first.startswith(f"ok      ops, http://127.0.0.1:{receiver.port}, unsigned")
    assert first.endswith(": took a test alert and its end")
    assert second.startswith("failed  gone, http://127.0.0.1:1, ")
    assert "refused" in second
    assert "T0KEN" not in text
    assert len(receiver.requests) == 2
    assert said(capsys, "--config", str(config), "--receiver", "ops")[0] == 0
    status, text = said(capsys, "--config", str(config), "--receiver", "opps")
    assert (status, "expected one of ops, gone" in text) == (2, True)


def test_without_receivers_it_says_how_to_set_one(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = said(capsys)
    assert status == 2
    assert "[receivers.NAME] (docs/how-to/receivers.md)" in text
