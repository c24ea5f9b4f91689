"""The coverage that `make coverage` has measured: a line for each room, and build/coverage.html for each file."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import coverage

BUILD = Path(__file__).parents[1] / "build"


def main() -> None:
    measured = coverage.Coverage()
    measured.load()
    measured.html_report(directory=str(BUILD / "coverage.html"))
    measured.json_report(outfile=str(BUILD / "coverage.json"))
    rooms: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for name, file in json.loads((BUILD / "coverage.json").read_text())["files"].items():
        found = file["summary"]
        counts = [found[kind] for kind in ("num_statements", "covered_lines", "num_branches", "covered_branches")]
        for room in ("/".join(Path(name).parts[:-1][:2]), "in all"):
            rooms[room] = [before + more for before, more in zip(rooms[room], counts, strict=True)]
    print(f"{'room':<28} {'statements':>10} {'run':>6} {'branches':>9} {'run':>6}")
    for room, (lines, run, branches, taken) in sorted(rooms.items(), key=lambda item: (item[0] == "in all", item[0])):
        print(f"{room:<28} {lines:>10,} {run / max(lines, 1):>6.1%} {branches:>9,} {taken / max(branches, 1):>6.1%}")


if __name__ == "__main__":
    main()
