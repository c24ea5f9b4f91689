"""Write docs/settings.md, docs/formats.md and docs/metrics.md from the code: python -m docs.references."""

from __future__ import annotations

from pathlib import Path

from docs.references import formats, metrics, settings

DOCS = Path(__file__).resolve().parents[1]

for name, module in (("settings", settings), ("formats", formats), ("metrics", metrics)):
    (DOCS / f"{name}.md").write_text(module.reference(), encoding="utf-8")
