"""What the site needs beyond MkDocs: files outside docs/, diagrams as SVG, formulas as MathML. Used by mkdocs.yml.

The documents link to each other and to code as on disk (`../training/learn/tbptt.py`). On the site README.md is
the first page, other Markdown files keep their path, and each file of code that a page links to becomes a page.
Diagrams and formulas are drawn while the site is built, so that a reader needs neither a network nor a script.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path

import mermaidx
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)")
BLOCK = re.compile(r"^(```+).*?^\1", re.MULTILINE | re.DOTALL)
MERMAID = re.compile(r'<pre class="mermaid"><code>(.*?)</code></pre>', re.DOTALL)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of files outside docs/: README.md, and whatever pages link to."""
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    for path in OUTSIDE:
        files.append(_page(path, config))
        waiting.append(path)
    for path in waiting:  # grows on the way
        for target in LINK.findall(BLOCK.sub("", (ROOT / path).read_text(encoding="utf-8"))):
            linked = _resolve(path, target)
            if linked and not linked.startswith("docs/") and _uri(linked) not in files.src_uris:
                files.append(_page(linked, config))
                if linked.endswith(".md"):
                    waiting.append(linked)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links from where the files are on disk to where they are on the site."""
    uri = page.file.src_uri
    path = next((p for p in (f"docs/{uri}", uri) if (ROOT / p).exists()), "README.md")

    def moved(match: re.Match[str]) -> str:
        linked = _resolve(path, match[1])
        return posixpath.relpath(_uri(linked), posixpath.dirname(uri)) if linked else match[1]

    return LINK.sub(moved, markdown)


def on_page_content(html_: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Draw diagrams and formulas."""
    drawn = 0

    def diagram(match: re.Match[str]) -> str:
        nonlocal drawn
        drawn += 1
        picture: str = mermaidx.render(html.unescape(match[1])).svg()
        return f'<div class="diagram">{picture.replace("my-svg", f"diagram-{drawn}")}</div>'

    def formula(match: re.Match[str]) -> str:
        return convert(html.unescape(match[2]), display="block" if match[1] == "div" else "inline")

    return FORMULA.sub(formula, MERMAID.sub(diagram, html_))


def _resolve(path: str, target: str) -> str | None:
    """Return the file that a link from `path` means, from the root; None: there is none, MkDocs will say so."""
    linked = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    if (ROOT / linked).is_dir():
        linked = f"{linked}/README.md"
    return linked if (ROOT / linked).is_file() else None


def _uri(path: str) -> str:
    """Return a file's place on the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path == "README.md":
        return "index.md"
    return path if path.endswith(".md") else f"source/{path}.md"


def _page(path: str, config: MkDocsConfig) -> File:
    """Return the page made of a file outside docs/."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if not path.endswith(".md"):
        if "~~~~~~" in text:
            raise PluginError(f"{path}: its text would end the block that it is shown in")
        language = Path(path).suffix.removeprefix(".") or "text"
        text = f'---\nsearch:\n  exclude: true\n---\n# {path}\n\n~~~~~~ {{.{language} linenums="1"}}\n{text}\n~~~~~~\n'
    return File.generated(config, _uri(path), content=text)
