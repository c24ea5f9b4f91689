"""How functions are called: nobody can read a row of more than seven values by position."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST = 7
BY_POSITION = {"zip", "ScoreRecord"}  # as many columns as there are; a record an event, where names cost time


def test_no_call_has_more_than_seven_positional_arguments() -> None:
    calls = [
        (path.relative_to(ROOT), node)
        for room in ("connectors", "detector", "training")
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    ]
    assert len(calls) > 5_000

    walls = [
        f"{path}:{call.lineno} {ast.unparse(call.func)}"
        for path, call in calls
        if len(call.args) > MOST and ast.unparse(call.func) not in BY_POSITION
    ]
    assert walls == []
