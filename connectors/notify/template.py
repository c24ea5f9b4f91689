"""The body of a webhook by a template: JSON whose texts may name what is known of an incident.

The template is read as JSON first, and names are put into its texts afterwards: whatever a stream is called, the body
is JSON of the template's own shape. A text that is a name and nothing else, "$alerts", becomes that value, be it a
number or a list.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from typing import Any

MAX_CHARACTERS = 10_000
NAMES = (
    "id", "event", "state", "severity", "summary", "stream", "streams", "firing", "started_at", "ended_at", "score",
    "revision", "link", "alerts",
)  # fmt: skip


class Template:
    """A template, checked."""

    def __init__(self, text: str) -> None:
        """Read it. Raises ValueError where it is no JSON, or names what is not known."""
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"it has {len(text)} characters, at most {MAX_CHARACTERS} are expected")
        try:
            self._tree = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f'it is no JSON: {error}; texts may hold names, as in {{"text": "$summary"}}') from None
        self._fill(self._tree, dict.fromkeys(NAMES, ""))

    def body(self, values: Mapping[str, Any]) -> Any:
        """Return what is to be sent as JSON."""
        return self._fill(self._tree, values)

    def _fill(self, tree: Any, values: Mapping[str, Any]) -> Any:
        if isinstance(tree, dict):
            return {key: self._fill(value, values) for key, value in tree.items()}
        if isinstance(tree, list):
            return [self._fill(value, values) for value in tree]
        if not isinstance(tree, str):
            return tree
        name = tree.removeprefix("$").removeprefix("{").removesuffix("}")
        if tree in {f"${name}", f"${{{name}}}"} and name in values:
            return values[name]
        try:
            return string.Template(tree).substitute(values)
        except KeyError as error:
            raise ValueError(f"${error.args[0]} is not known, expected one of ${', $'.join(NAMES)}") from None
        except ValueError:
            raise ValueError("a $ that begins no name: write it twice, $$") from None
