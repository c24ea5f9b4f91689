"""The documents: the site that `make docs` makes of them, and that they are true to the code."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

from detector.config.names import leaves
from detector.config.settings import Settings
from tests.deploy.paths import ROOT

pytest.importorskip("material", reason="mkdocs-material is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it: a broken link, anchor or entry of its contents is an error."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_the_site_has_the_files_that_documents_link_to(site: Path) -> None:
    assert (site / "index.html").read_text().count("What it promises")  # README.md
    assert 'href="source/training/learn/tbptt.py.html"' in (site / "theory.html").read_text()
    assert "truncated back-propagation" in (site / "source/training/learn/tbptt.py.html").read_text().lower()


def test_no_page_needs_a_network(site: Path) -> None:
    fetched = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=["']?((?:https?:)?//[^\s"'>]+)""")
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    assert {page.name: found for page in pages if (found := fetched.findall(page.read_text()))} == {}


def test_diagrams_and_formulas_are_drawn(site: Path) -> None:
    text = (site / "theory.html").read_text()
    assert text.count("<math") > 100
    assert "arithmatex" not in text
    text = (site / "architecture.html").read_text()
    assert text.count('<div class="diagram"><svg') == 2
    assert 'class="mermaid"' not in text


DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "deploy").rglob("*.md"),
]
PACKAGES = ("detector", "connectors", "training")
ARCHITECTURE = ROOT / "docs" / "architecture.md"


def test_the_architecture_names_every_room() -> None:
    text = ARCHITECTURE.read_text()
    rooms = [path.parent.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).glob("*/__init__.py")]
    assert len(rooms) > 15
    assert [str(room) for room in rooms if f"`{room}/`" not in text] == []


def test_the_arrows_between_rooms_are_the_imports() -> None:
    diagram = ARCHITECTURE.read_text().split("```")[1]
    arrows = set(re.findall(r"^ +(\w+) --> (\w+)$", diagram, re.MULTILINE))
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    imports = {
        next(((a, b) for a, b in zip(module.split("."), other.split("."), strict=False) if a != b), ("", ""))
        for module in graph.modules
        for other in graph.find_modules_directly_imported_by(module)
    }
    assert len(arrows) > 15
    assert arrows - imports == set()
    below = set(arrows)
    while further := {(a, d) for a, b in below for c, d in arrows if b == c} - below:
        below |= further
    drawn = {room for arrow in arrows for room in arrow}
    assert {pair for pair in imports if drawn.issuperset(pair)} - below == set()
    assert {(room, room) for room in drawn} & below == set()


def test_files_that_documents_name_exist() -> None:
    named = re.compile(r"`((?:detector|connectors|training|tests|deploy|docs)/[\w/.-]+)`")
    missing = {
        (path.name, name)
        for path in DOCUMENTS
        for name in named.findall(path.read_text())
        if not (ROOT / name).exists()
    }
    assert missing == {("README.md", "deploy/compose/longwatch.env")}  # the operator's


def test_settings_that_documents_name_exist() -> None:
    sections = {path[0] for path, _ in leaves(Settings)}
    settings = {".".join(path) for path, _ in leaves(Settings)}
    assert len(settings) > 60
    named = re.compile(rf"`((?:{'|'.join(sections)})\.(?:NAME\.)?[a-z_]+)(?: = [^`]*)?`")
    unknown = {
        (path.name, name)
        for path in DOCUMENTS
        for name in named.findall(path.read_text())
        if name not in settings and name.removesuffix("_file") not in settings
    }
    assert {name for _, name in unknown} == {"state.db", "incidents.db", "history.db", "history.jsonl"}  # files


def test_the_tutorials_commands_do_what_it_says(tmp_path: Path) -> None:
    """Its readings give its alert, and the daemon, started again with one more, scores that one only."""
    text = (ROOT / "docs" / "tutorial.md").read_text()
    script, toml, more, alert = (
        re.search(pattern, text, re.MULTILINE | re.DOTALL)[1]
        for pattern in (
            r"```python\n(.*?)```",
            r"```toml\n(.*?)```",
            r"^echo '([^']*)' >> room.jsonl",
            r"^(critical alert: room at [^,]*),",
        )
    )
    (tmp_path / "longwatch.toml").write_text(toml.replace("/tmp/longwatch", str(tmp_path / "state")))
    made = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    for lines, reported in ((made.stdout, alert), (more + "\n", " 1 scored")):
        with (tmp_path / "room.jsonl").open("a") as file:
            file.write(lines)
        ran = subprocess.run(
            [sys.executable, "-m", "detector", "run", "--config", "longwatch.toml", "--set", "http.port=0"],
            capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        assert reported in ran.stderr


def test_every_decision_is_listed_under_its_title() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = (folder / "README.md").read_text()
    for path in folder.glob("0*.md"):
        number, _, title = path.read_text().partition("\n")[0].removeprefix("# ").partition(": ")
        assert f"| [{number}]({path.name}) | {title} |" in listed


def test_log_lines_that_documents_quote_are_in_the_code() -> None:
    """Of docs/outages.md's last column and of its text: each part of a quoted line, around `...`, is in one string."""
    text = (ROOT / "docs" / "outages.md").read_text()
    table = text[text.index("| what fails |") : text.index("\n\n", text.index("| what fails |"))]
    quoted = [line for row in table.splitlines()[2:] for line in re.findall(r"`([^`]+)`", row.split(" | ")[-1])]
    quoted += re.findall(r"\(`([a-z][a-z ]+)`\)", text)
    strings = [
        node.value
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert len(quoted) > 15
    parts = [part for line in quoted for part in line.split(" ... ")]
    strings += [string.replace("%s", "lost", 1) for string in strings if string.startswith("Partitions")]
    assert [part for part in parts if not any(part in string for string in strings)] == []


def test_lines_of_documents_have_up_to_120_characters() -> None:
    """But for tables, code, what is made from code, and a line that is one link or formula."""
    made = {"settings.md", "metrics.md", "formats.md"}
    link = r"\[[^\]]*\]\([^)]*\)"
    long = [
        f"{path.relative_to(ROOT)}: {line}"
        for path in (*DOCUMENTS, ROOT / "CHANGELOG.md", *ROOT.glob("detector/**/*.md"))
        if path.name not in made
        for line in re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL).splitlines()
        if len(line) > 120 and not line.startswith(("|", "$$")) and " " in re.sub(link, "", line).strip()
    ]
    assert long == []


def test_metrics_that_documents_name_exist() -> None:
    known = set(re.findall(r"^\| `(longwatch_\w+)` \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE))
    assert len(known) > 30
    named = re.compile(r"`(longwatch_\w+?)(?:_bucket|_sum|_count)?(?:\{[^`]*\})?`")
    written = {name for path in DOCUMENTS for name in named.findall(path.read_text())}
    assert {name for name in written if "__" not in name} - known == set()  # with __: files of secrets
