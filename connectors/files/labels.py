"""Where the anomalies were: labelled windows from a file, matched with streams by name.

Times are ns since 1970-01-01 UTC; a window is (start, end), both inclusive.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from connectors.decode.timestamps import parse_time
from connectors.errors import UserError

Window = tuple[int, int]


class LabelsError(UserError):
    """Labels that cannot be used; the text names the place and what was expected there."""


def load_labels(path: Path) -> dict[str, list[Window]]:
    """Read labelled windows by stream, each stream's in order of time and those that overlap made one.

    Either NAB's JSON, {"stream or file": [["2014-04-10 07:15:00", "2014-04-11 16:45:00"], ...]}, or CSV with the
    columns stream, start, end. Times are RFC 3339 (UTC where they name no zone) or Unix times in s, ms, us or ns,
    recognised by size. Raises LabelsError that names the place if the file is neither, OSError if it cannot be read.
    `windows_of` finds a stream's windows in the answer.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise LabelsError(f"{path}: labels must be UTF-8 text: {error}") from None
    parse = _labels_from_json if text.lstrip()[:1] in ("{", "[") else _labels_from_csv
    try:
        return {stream: _merged(windows) for stream, windows in parse(text, path).items()}
    except csv.Error as error:
        raise LabelsError(f"{path}: labels are no valid CSV: {error}") from None


def windows_of(labels: Mapping[str, list[Window]], stream: str) -> list[Window] | None:
    """Return a stream's labelled windows, or None where the labels do not name the stream.

    A key names the stream if it equals it; else if, less a file's suffix, one ends with the other in whole path
    components ("realKnownCause/nyc_taxi.csv" names "nyc_taxi" and "nab/realKnownCause/nyc_taxi"). Raises LabelsError
    where several keys do so equally well.
    """
    if stream in labels:
        return labels[stream]
    wanted = _components(stream)
    shared: dict[str, int] = {}
    for key in labels:
        named = _components(key)
        length = min(len(named), len(wanted))
        if length and named[-length:] == wanted[-length:]:
            shared[key] = length
    best = [key for key, length in shared.items() if length == max(shared.values())]
    if len(best) > 1:
        raise LabelsError(f"labels: stream {stream!r} could be any of {', '.join(map(repr, best))}; name it in full")
    return labels[best[0]] if best else None


_FILE_SUFFIX = re.compile(r"(\.(csv|json|jsonl|ndjson))?(\.gz)?$", re.IGNORECASE)


def _components(name: str) -> tuple[str, ...]:
    return tuple(part for part in PurePosixPath(_FILE_SUFFIX.sub("", name)).parts if part not in ("/", "..", "."))


def _labels_from_json(text: str, path: Path) -> dict[str, list[Window]]:
    shape = 'expected {"stream": [["start", "end"], ...]}'
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise LabelsError(f"{path}, line {error.lineno}: labels are no valid JSON: {error.msg}; {shape}") from None
    if not isinstance(document, dict):
        raise LabelsError(f"{path}: found a {type(document).__name__} of labels; {shape}")
    labels: dict[str, list[Window]] = {}
    for stream, windows in document.items():
        if not isinstance(windows, list):
            raise LabelsError(f"{path}, stream {stream!r}: found {windows!r:.80}; {shape}")
        labels[stream] = []
        for number, window in enumerate(windows, start=1):
            where = f"{path}, stream {stream!r}, window {number}"
            if not isinstance(window, list) or len(window) != 2:
                raise LabelsError(f"{where}: found {window!r:.80}; {shape}")
            labels[stream].append(_window(window[0], window[1], where))
    return labels


def _labels_from_csv(text: str, path: Path) -> dict[str, list[Window]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    missing = {"stream", "start", "end"} - set(reader.fieldnames or ())
    if missing:
        found = ", ".join(reader.fieldnames or ()) or "nothing"
        raise LabelsError(
            f"{path}, line 1: labels need the columns stream, start, end (or be JSON as NAB's combined_windows.json);"
            f" found {found:.200}; missing: {', '.join(sorted(missing))}"
        )
    labels: dict[str, list[Window]] = {}
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        if not row["stream"]:
            raise LabelsError(f"{where}: the stream's name is empty")
        labels.setdefault(row["stream"], []).append(_window(row["start"], row["end"], where))
    return labels


def _window(start: object, end: object, where: str) -> Window:
    window = _time(start, f"{where}, start"), _time(end, f"{where}, end")
    if window[0] > window[1]:
        raise LabelsError(f"{where}: the window ends ({end}) before it starts ({start})")
    return window


def _time(value: object, where: str) -> int:
    """Return ns since 1970 UTC of a time as text or number."""
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        raise LabelsError(f"{where}: found {value!r:.80}, expected a time such as 2014-04-10T07:15:00Z or a Unix time")
    try:
        return parse_time(value)
    except ValueError as error:
        raise LabelsError(f"{where}: {error}") from None


def _merged(windows: list[Window]) -> list[Window]:
    merged: list[Window] = []
    for start, end in sorted(windows):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
