"""How all plots and pages look: figures in one style, PNG files with few colours, HTML pages that need no other file.

Colours are Okabe and Ito's, which people who see red and green alike can tell apart; what matters differs in shape too.
Needs matplotlib, the `plots` extra. Nothing here opens a window.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from connectors.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    "figure.facecolor": "white",
}
DASHES = (0, (4, 3))
PLAIN: dict[str, Any] = {"parse_math": False}  # of texts with names, whose dollars matplotlib takes for a formula
DPI = 110
COLOURS = 128  # of a PNG's palette: a third of the bytes, and no difference to the eye


class PlotError(UserError):
    """No plot can be drawn; the text says what is missing."""


def require_matplotlib() -> None:
    """Raise PlotError without matplotlib."""
    try:
        import_module("matplotlib")  # an extra: only who draws must have it
    except ImportError as error:
        raise PlotError(f"plots need matplotlib ({error}): pip install 'longwatch[plots]'") from error


@contextmanager
def new_figure(width: float, height: float, dpi: int = DPI) -> Iterator[Figure]:
    """Give an empty figure, inches wide and high, in our style whatever the user's matplotlibrc says.

    Raises PlotError without matplotlib.
    """
    require_matplotlib()
    import matplotlib  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield Figure(figsize=(width, height), dpi=dpi)


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG with few colours. Raises OSError."""
    from PIL import Image  # noqa: PLC0415 - comes with matplotlib: only who draws must have the extra

    whole = io.BytesIO()
    figure.savefig(whole, format="png")
    image = Image.open(whole).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def html_page(title: str, paragraphs: Sequence[str], table: str, images: Sequence[tuple[str, Path]]) -> str:
    """Return an HTML page that holds everything in itself; `images` are descriptions and PNG files."""
    tags = "\n".join(
        f'<img alt="{html.escape(words)}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        for words, path in images
    )
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
