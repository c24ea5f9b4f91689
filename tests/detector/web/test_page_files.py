"""The page's files: what is vendored is what was pinned, and nothing inline is left for the policy to refuse."""

from __future__ import annotations

import hashlib
import re

import pytest

from detector.web.app import STATIC
from tests.vendor_page import FILES, FOLDER


@pytest.mark.parametrize(("name", "sha256"), FILES.values())
def test_what_is_vendored_is_what_was_pinned(name: str, sha256: str) -> None:
    assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == sha256


def test_nothing_in_the_page_is_inline() -> None:
    html = (STATIC / "index.html").read_text()
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|https?://", html) == []


def test_no_module_writes_html_or_names_another_place() -> None:
    for path in (STATIC / "js").rglob("*.js"):
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        found = re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|https?://", text)
        assert found == [], path


def test_no_module_is_longer_than_one_idea() -> None:
    assert [path.name for path in (STATIC / "js").rglob("*.js") if len(path.read_text().splitlines()) > 400] == []
