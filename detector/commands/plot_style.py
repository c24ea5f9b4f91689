"""How all plots and pages look: one style, PNG files with few colours, HTML pages that need no other file.

Colours are Okabe and Ito's, which people who see red and green alike can tell apart; what matters differs in shape too.
Nothing here opens a window. matplotlib is the `plots` extra: import this and the plots only after `require_matplotlib`.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from PIL import Image

INK, SOFT, GRID = "#1f2a36", "#66717d", "#e3e7eb"
VALUE, BAND, WINDOW, ALERT, SCORE = "#1f2a36", "#a6d4f2", "#fae6b4", "#d55e00", "#0072b2"
STYLE: Any = {  # matplotlib's own type lists every key it knows
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same plot everywhere
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": "#b5bdc5",
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "white",
    "figure.dpi": 110,
    "figure.subplot.left": 0.065,
    "figure.subplot.right": 0.98,
}
in_our_style = style.context(STYLE, after_reset=True)  # decorates what draws: whatever the user's matplotlibrc says
DASHES = (0, (4, 3))
PLAIN: dict[str, Any] = {"parse_math": False}  # of texts with names, whose dollars matplotlib takes for a formula
COLOURS = 128  # of a PNG's palette: a third of the bytes, and no difference to the eye


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG with few colours. Raises OSError."""
    whole = io.BytesIO()
    figure.savefig(whole, format="png")
    image = Image.open(whole).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def time_axis(axes: Axes, least: int, most: int) -> None:
    """Give the x axis so many ticks of time."""
    locator = AutoDateLocator(minticks=least, maxticks=most)  # type: ignore[no-untyped-call]  # matplotlib.dates: none
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]  # likewise
    axes.margins(x=0.005)


def image_tag(words: str, kind: str, data: bytes) -> str:
    """Return an image within the page; `words` describe it, `kind` is of its MIME type."""
    return f'<img alt="{html.escape(words)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'


def html_page(title: str, paragraphs: Sequence[str], table: str, images: Sequence[tuple[str, Path]]) -> str:
    """Return an HTML page that holds everything in itself; `images` are descriptions and PNG files."""
    tags = "\n".join(image_tag(words, "png", path.read_bytes()) for words, path in images)
    text = "\n".join(f"<p>{html.escape(paragraph)}</p>" for paragraph in paragraphs)
    return html_document(title, f"{text}\n<pre>{html.escape(table)}</pre>\n{tags}")


def html_document(title: str, body: str) -> str:
    """Return an HTML page in our style; `body` is HTML, the title text."""
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>
  body {{ font: 16px/1.5 system-ui, sans-serif; color: {INK}; background: #f5f7f9; max-width: 1440px;
         margin: 2rem auto; padding: 0 1rem }}
  p {{ max-width: 75ch }}
  pre, table {{ background: #fff; padding: 1rem; overflow-x: auto; border: 1px solid {GRID}; border-radius: 6px }}
  th {{ text-align: left; font-weight: 600; padding-right: 2rem }}
  td {{ padding-right: 2rem }}
  .number {{ text-align: right; padding-right: 0 }}
  .text {{ white-space: pre-wrap }}
  img {{ width: 100%; background: #fff; margin: 0 0 1rem; border: 1px solid {GRID}; border-radius: 6px }}
</style>
<h1>{html.escape(title)}</h1>
{body}
</html>
"""
