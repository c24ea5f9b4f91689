"""The token in the state directory."""

from __future__ import annotations

import logging
import stat
from pathlib import Path

import pytest

from detector.service.api_token import TOKEN_FILE, write_token


def test_it_is_new_each_time_and_for_the_owner_alone_whatever_was_there(tmp_path: Path) -> None:
    path = tmp_path / TOKEN_FILE
    path.write_text("former")
    path.chmod(0o644)
    (tmp_path / f"{TOKEN_FILE}.new").write_text("left behind")
    tokens = [write_token(tmp_path) for _ in range(3)]
    assert len(set(tokens)) == 3
    assert path.read_text() == tokens[-1] + "\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [found.name for found in tmp_path.iterdir()] == [TOKEN_FILE]


def test_a_link_in_its_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("untouched")
    (tmp_path / TOKEN_FILE).symlink_to(other)
    write_token(tmp_path)
    assert other.read_text() == "untouched"
    assert not (tmp_path / TOKEN_FILE).is_symlink()


def test_where_it_cannot_be_written_there_is_none_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / f"{TOKEN_FILE}.new").mkdir()
    assert write_token(tmp_path) == ""
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(tmp_path / TOKEN_FILE) in caplog.text
