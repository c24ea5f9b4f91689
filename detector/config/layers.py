"""Where settings come from: file, environment, command line -> one tree of values that know their origin.

Unlike pydantic-settings, which passes over unknown environment names and forgets where a value came from: here a
misspelt name is an error in every source, and every error names file and line, variable or option.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails

PREFIX = "LONGWATCH_"
REFERENCE = "docs/settings.md lists them all"
# What Kubernetes and Docker put into every container beside a service named longwatch or longwatch-something
SERVICE_LINK = re.compile(rf"{PREFIX}(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
SERVICE_LINK_URL = re.compile(r"(tcp|udp|sctp)://")

Name = tuple[str, ...]  # ("kafka", "topics")
# What files written for an earlier version may still hold: the new name, or what to do
REMOVED: dict[Name, Name | str] = {
    ("model", "scope"): "it was removed, all streams share one model: leave it out",
    ("alerting", "least_deviation_absolute"): ("alerting", "min_deviation_absolute"),
    ("alerting", "least_deviation_relative"): ("alerting", "min_deviation_relative"),
    ("alerting", "least_duration_seconds"): ("alerting", "min_duration_seconds"),
    ("alerting", "mute"): ("alerting", "muted_streams"),
    ("alerting", "repeats"): ("alerting", "repeated_anomalies"),
}


class Found(NamedTuple):
    """A value as it was found, and where: for a person."""

    value: Any
    origin: str


Layer = dict[Name, Found]


class SettingsError(Exception):
    """Settings that cannot be used: one line for each error, each naming the setting, its origin and what to do."""

    def __init__(self, errors: Sequence[str]) -> None:
        """Keep the lines."""
        super().__init__("\n".join(errors))
        self.errors = list(errors)


def leaves(model: type[BaseModel], prefix: Name = ()) -> Iterator[tuple[Name, Any]]:
    """Yield the path and the annotation of every setting, section by section."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, (*prefix, name))
        else:
            yield (*prefix, name), field.annotation


def is_secret(annotation: Any) -> bool:
    """Whether a setting holds a secret."""
    return annotation is SecretStr or any(is_secret(part) for part in get_args(annotation))


def _is_list(annotation: Any) -> bool:
    return any(a in (list, tuple) or get_origin(a) in (list, tuple) for a in (annotation, *get_args(annotation)))


def _is_optional(annotation: Any) -> bool:
    return type(None) in get_args(annotation)


class _Names:
    """The known names, and those that end in _file and tell where a secret is."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.types = dict(leaves(model))
        self.sections = {path[:n] for path in self.types for n in range(1, len(path))}
        secrets = [path for path, annotation in self.types.items() if is_secret(annotation)]
        self.secret_files = {(*path[:-1], f"{path[-1]}_file"): path for path in secrets}

    def add(self, layer: Layer, path: Name, found: Found, errors: list[str]) -> bool:
        """Take a value into the layer, by itself or from the file it names; False: the name is unknown."""
        target = path
        if path not in self.types:
            if path not in self.secret_files:
                return False
            target = self.secret_files[path]
            try:
                secret = Path(str(found.value)).read_text(encoding="utf-8").rstrip("\r\n")
            except (OSError, ValueError) as error:
                reason = (error.strerror or str(error)) if isinstance(error, OSError) else "not UTF-8 text"
                # what is no whole path may be the secret itself, put into the wrong setting
                named = repr(found.value) if str(found.value).startswith("/") else "the file that it names"
                errors.append(f"{found.origin}: {_dotted(path)}: cannot read {named}: {reason}")
                return True
            found = Found(secret, f"{found.origin} ({found.value})")
        if target in layer:
            errors.append(f"{found.origin}: {_dotted(target)} is set twice, also by {layer[target].origin}: keep one")
        layer[target] = found
        return True

    def from_text(self, path: Name, text: str) -> Any:
        """Return a variable's or option's text as the value that the setting's type asks for."""
        annotation = self.types.get(path, str)
        if is_secret(annotation):
            return text
        if _is_optional(annotation) and text.strip().lower() in ("", "none", "null"):
            return None
        if _is_list(annotation):
            if text.lstrip().startswith("["):
                return _parsed(text)
            return [part.strip() for part in text.split(",") if part.strip()]
        if len(text) > 1 and text[0] == text[-1] == '"':  # pasted from a TOML file
            return _parsed(text)
        return text

    def suggestion(self, name: str, write: Callable[[Name], str], sections: bool = False) -> str:
        """Return what to do about an unknown name, in the source's own way of writing names."""
        for path, now in REMOVED.items():
            if name == write(path):
                return now if isinstance(now, str) else f"it is called {write(now)} now"
        known = self.sections if sections else (*self.types, *self.secret_files)
        written = {write(path).removeprefix(PREFIX): write(path) for path in known}  # what all share says nothing
        near = difflib.get_close_matches(name.removeprefix(PREFIX), written, n=1)
        return f"did you mean {written[near[0]]}?" if near else REFERENCE


def _dotted(path: Name) -> str:
    return ".".join(path)


def _variable(path: Name) -> str:
    return PREFIX + "__".join(path).upper()


def _parsed(text: str) -> Any:
    """Return the TOML value that the text is, or the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def from_file(model: type[BaseModel], config: Path, errors: list[str]) -> Layer:
    """Return the settings of a TOML file."""
    names, layer = _Names(model), Layer()
    try:
        text = config.read_text(encoding="utf-8")
        tree = tomllib.loads(text)
    except OSError as error:
        errors.append(f"{config}: cannot be read: {error.strerror}")
        return layer
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:  # the last: a thousand brackets
        errors.append(f"{config}: is not valid TOML: {error}")
        return layer
    lines = _lines(text)

    def walk(table: Mapping[str, Any], prefix: Name) -> None:
        for key, value in table.items():
            path = (*prefix, key)
            line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), None)
            where = f"{config}:{line}" if line else f"{config}"
            if path in names.sections:
                if isinstance(value, dict):
                    walk(value, path)
                else:
                    errors.append(f"{where}: {key} is a section: write [{_dotted(path)}], then its settings below")
            elif not names.add(layer, path, Found(value, where), errors):
                name, section = _dotted(path), isinstance(value, dict)
                kind = "section" if section else "setting"
                errors.append(f"{where}: unknown {kind} {name}; {names.suggestion(name, _dotted, section)}")

    walk(tree, ())
    return layer


def _lines(text: str) -> dict[Name, int]:
    """Return the line of every table and key; good enough for messages (a multi-line string may mislead it)."""
    found: dict[Name, int] = {}
    section: Name = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+\s*([^\]]+?)\s*\]", line):
            section = _key(header[1])
            found.setdefault(section, number)
        elif assignment := re.match(r"\s*([\w.\"' -]+?)\s*=", line):
            found.setdefault((*section, *_key(assignment[1])), number)
    return found


def _key(text: str) -> Name:
    return tuple(part.strip().strip("\"'") for part in text.split("."))


def from_environment(model: type[BaseModel], environment: Mapping[str, str], errors: list[str]) -> Layer:
    """Return the settings of variables LONGWATCH_SECTION__NAME; capitals or not."""
    names, layer = _Names(model), Layer()
    for variable, text in sorted(environment.items()):
        name = variable.upper()
        if not name.startswith(PREFIX):
            continue
        path = tuple(name.removeprefix(PREFIX).lower().split("__"))
        found = Found(names.from_text(path, text), f"environment {variable}")
        if names.add(layer, path, found, errors) or _is_service_link(name, text):
            continue
        errors.append(f"environment {variable}: unknown setting; {names.suggestion(name, _variable)}")
    return layer


def _is_service_link(name: str, value: str) -> bool:
    if "__" in name or not SERVICE_LINK.fullmatch(name):
        return False
    return not name.endswith("_PORT") or name.endswith("_SERVICE_PORT") or bool(SERVICE_LINK_URL.match(value))


def from_overrides(model: type[BaseModel], overrides: Sequence[str], errors: list[str]) -> Layer:
    """Return the settings of the command line's --set options; of two for one name the last holds."""
    names, layer = _Names(model), Layer()
    for option in overrides:
        name, equals, text = option.partition("=")
        name, text = name.strip(), text.strip()
        path = tuple(name.split("."))
        if not re.fullmatch(r"[\w.-]*", name):
            name, equals = "(hidden: it may hold a secret)", ""
        if not equals:
            errors.append(f"--set {name}: expected section.name=value, such as kafka.topics=metrics")
            continue
        single = Layer()
        if not names.add(single, path, Found(names.from_text(path, text), f"--set {name}"), errors):
            errors.append(f"--set {name}: unknown setting; {names.suggestion(name, _dotted)}")
        layer |= single
    return layer


def merge(layers: Iterable[Layer]) -> tuple[dict[str, Any], Layer]:
    """Return the values as a tree, and flat with their origins; later layers win."""
    flat: Layer = {}
    for layer in layers:
        flat |= layer
    tree: dict[str, Any] = {}
    for path, found in flat.items():
        table = tree
        for part in path[:-1]:
            table = table.setdefault(part, {})
        table[path[-1]] = found.value
    return tree, flat


def explain(model: type[BaseModel], invalid: ValidationError, flat: Layer) -> list[str]:
    """Return a line for each of pydantic's errors: where, which setting, what was found, what is expected."""
    types = dict(leaves(model))
    return [_explained(error, types, flat) for error in invalid.errors(include_url=False)]


def _explained(error: ErrorDetails, types: Mapping[Name, Any], flat: Layer) -> str:
    location = tuple(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    path = next((location[:n] for n in range(len(location), 0, -1) if location[:n] in types), None)
    if path is None:  # about a section as a whole: the message names settings, say where these came from
        told = [f"{_dotted(p)}: {found.origin}" for p, found in flat.items() if _dotted(p) in message]
        return message + (f" ({', '.join(told)})" if told else "")
    name = _dotted(path)
    if path not in flat:
        return f"{name}: {message}"
    origin, value = flat[path].origin, flat[path].value
    if name in message:
        return f"{origin}: {message}"
    shown = "set (hidden)" if is_secret(types[path]) else _shown(value)
    inner = "" if location == path else f" at {'.'.join(location[len(path) :])}"
    return f"{origin}: {name} is {shown}{inner}: {message}"


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = str(value)  # TOML's dates
    return text if len(text) <= 80 else f"{text[:77]}..."
