"""Where settings come from: what each source holds is read here, such that no name and no origin is lost.

The sources of pydantic-settings pass over names that they do not know, read lists as JSON, and forget where a value
came from. Here a misspelt name is an error in every source, and every error names file and line, variable or option.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from connectors.errors import UserError
from detector.config import CONFIG_VARIABLE
from detector.config.names import NAME, PREFIX, Name, Names, dotted, is_secret, parsed, variable

SECRETS = Path("/run/secrets")  # where Docker puts them, and Kubernetes by custom
# What Kubernetes and Docker put into every container beside a service named longwatch or longwatch-something
SERVICE_LINK = re.compile(rf"{PREFIX}(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
SERVICE_LINK_URL = re.compile(r"(tcp|udp|sctp)://")


class SettingsError(UserError):
    """Settings that cannot be used: one line for each error, each naming the setting, its origin and what to do."""

    def __init__(self, errors: Sequence[str]) -> None:
        """Keep the lines."""
        super().__init__("\n".join(errors))
        self.errors = list(errors)


class Found(NamedTuple):
    """A value as it was found, and where: for a person."""

    value: Any
    origin: str


class Layer:
    """What one source holds: settings by name, and a line for each thing that is wrong with it."""

    def __init__(self, settings: type[BaseModel]) -> None:
        self.settings, self.names = settings, Names(settings)
        self.found: dict[Name, Found] = {}
        self.places: dict[Name, str] = {}  # of what is inside a list of tables: ("rules", "0", "threshold")
        self.errors: list[str] = []

    def add(self, path: Name, value: Any, origin: str) -> bool:
        """Take a value, by itself or from the file it names; False: the name is unknown."""
        known, target = self.names.known(path), self.names.folded(path)
        if known not in self.names.types:
            if known not in self.names.secret_files:
                return False
            target = (*target[:-1], self.names.secret_files[known][-1])
            try:
                secret = read_secret(Path(str(value)))
            except OSError as error:
                # what is no whole path may be the secret itself, put into the wrong setting
                named = repr(value) if str(value).startswith("/") else "the file that it names"
                self.errors.append(f"{origin}: {dotted(path)}: cannot read {named}: {error.strerror or error}")
                return True
            value, origin = secret, f"{origin} ({value})"
        if target in self.found:
            also = self.found[target].origin
            self.errors.append(f"{origin}: {dotted(target)} is set twice, also by {also}: keep one")
        self.found[target] = Found(value, origin)
        return True

    def add_text(self, path: Name, text: str, origin: str) -> bool:
        """Take a text, read as the setting's type asks; False: the name is unknown."""
        return self.add(path, parsed(self.names.types.get(self.names.known(path), str), text), origin)

    def tree(self) -> dict[str, Any]:
        """Return the values by section and name."""
        tree: dict[str, Any] = {}
        for path, found in self.found.items():
            table = tree
            for part in path[:-1]:
                table = table.setdefault(part, {})
            table[path[-1]] = found.value
        return tree

    def add_options(self, flag: str, options: Sequence[str], example: str) -> None:
        """Take a command line's options, "name=value"; of two for one name the last holds."""
        for option in options:
            name, equals, text = option.partition("=")
            name, text = name.strip(), text.strip()
            if not re.fullmatch(r"[\w.-]*", name):
                name, equals = "(hidden: it may hold a secret)", ""
            single, origin = Layer(self.settings), f"{flag} {name}"
            if not equals:
                single.errors.append(f"{origin}: expected {example}")
            elif not single.add_text(tuple(name.split(".")), text, origin):
                single.add_unknown(origin, name, dotted)
            self.found |= single.found
            self.errors += single.errors

    def add_unknown(self, origin: str, name: str, write: Callable[[Name], str]) -> None:
        """Note a name that is unknown; `write`: how this source writes names."""
        self.errors.append(f"{origin}: unknown setting; {self.names.suggestion(name, write)}")


def read_secret(path: Path) -> str:
    """Return what a file holds, without the end of its line. Raises OSError."""
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except ValueError as error:  # a path with a NUL, too
        raise OSError("not UTF-8 text") from error


def toml_file(settings: type[BaseModel], config: Path) -> Layer:
    """Return what a TOML file holds, each value with its line."""
    layer = Layer(settings)
    try:
        text = config.read_text(encoding="utf-8")
        lines = _lines(text)
        _walk(layer, tomllib.loads(text), (), str(config), lines)
        layer.places = {path: f"{config}:{line}" for path, line in lines.items() if path[0] in layer.names.lists}
    except OSError as error:
        layer.errors.append(f"{config}: cannot be read: {error.strerror}")
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:  # the last: a thousand brackets
        layer.errors.append(f"{config}: is not valid TOML: {error}")
    return layer


def _walk(layer: Layer, table: Mapping[str, Any], prefix: Name, config: str, lines: Mapping[Name, int]) -> None:
    for key, value in table.items():
        path = (*prefix, key)
        line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), None)
        where, is_table = f"{config}:{line}" if line else config, isinstance(value, dict)
        if layer.names.known(path) in layer.names.sections:
            if is_table:
                _walk(layer, value, path, config, lines)
            else:
                layer.errors.append(f"{where}: {key} is a section: write [{dotted(path)}], then its settings below")
        elif not layer.add(path, value, where):
            name, kind = dotted(path), "section" if is_table else "setting"
            hint = layer.names.suggestion(name, dotted, sections=is_table)
            layer.errors.append(f"{where}: unknown {kind} {name}; {hint}")


def _lines(text: str) -> dict[Name, int]:
    """Return the line of every table and key; good enough for messages (a multi-line string may mislead it)."""
    found: dict[Name, int] = {}
    counts: dict[Name, int] = {}  # of a list's tables
    section: Name = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*(\[+)\s*([^\]]+?)\s*\]", line):
            section = _key(header[2])
            found.setdefault(section, number)
            if header[1] == "[[":  # the next table of a list
                counts[section] = counts.get(section, -1) + 1
                section = (*section, str(counts[section]))
                found.setdefault(section, number)
        elif assignment := re.match(r"\s*([\w.\"' -]+?)\s*=", line):
            found.setdefault((*section, *_key(assignment[1])), number)
    return found


def _key(text: str) -> Name:
    return tuple(part.strip().strip("\"'") for part in text.split("."))


def environment_variables(settings: type[BaseModel], environment: Mapping[str, str]) -> Layer:
    """Return what variables LONGWATCH_SECTION__NAME hold, capitals or not."""
    layer = Layer(settings)
    for name, text in sorted(environment.items()):
        upper, origin = name.upper(), f"environment {name}"
        if upper == CONFIG_VARIABLE:
            continue
        known = not upper.startswith(PREFIX) or layer.add_text(_path(name), text, origin)
        if not known and not _is_service_link(upper, text):
            layer.add_unknown(origin, upper, variable)
    return layer


def secrets_directory(settings: type[BaseModel], directory: Path | None) -> Layer:
    """Return what files longwatch_section__name hold, each a value; other files there are left alone."""
    layer, files = Layer(settings), list[Path]()
    try:
        files = sorted((directory or SECRETS).iterdir())
    except OSError as error:
        if directory:
            layer.errors.append(f"{directory}: cannot be read: {error.strerror}")
    for file in files:
        if not file.name.upper().startswith(PREFIX):
            continue
        try:
            if not layer.add_text(_path(file.name), read_secret(file), str(file)):
                layer.add_unknown(str(file), file.name.lower(), lambda path: variable(path).lower())
        except OSError as error:
            layer.errors.append(f"{file}: cannot be read: {error.strerror or error}")
    return layer


def _path(name: str) -> Name:
    return tuple(name.lower().removeprefix(PREFIX.lower()).split("__"))


def _is_service_link(name: str, value: str) -> bool:
    if "__" in name or not SERVICE_LINK.fullmatch(name):
        return False
    return not name.endswith("_PORT") or name.endswith("_SERVICE_PORT") or bool(SERVICE_LINK_URL.match(value))


def explain(
    model: type[BaseModel],
    invalid: ValidationError,
    found: Mapping[Name, Found],
    places: Mapping[Name, str] | None = None,
) -> list[str]:
    """Return a line for each of pydantic's errors: where, which setting, what was found, what is expected.

    `places`: where what is inside a list of tables was set.
    """
    names = Names(model)
    return [_explained(error, names, found, places or {}) for error in invalid.errors(include_url=False)]


def _explained(error: ErrorDetails, names: Names, found: Mapping[Name, Found], places: Mapping[Name, str]) -> str:
    location = tuple(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    if names.known(location) != location:
        message = message.replace(f"{location[0]}.{NAME}", f"{location[0]}.{location[1]}")
    path = next((location[:n] for n in range(len(location), 0, -1) if names.known(location[:n]) in names.types), None)
    if path is None:  # about a section as a whole: the message names settings, say where these came from
        origins = [f"{dotted(p)}: {value.origin}" for p, value in found.items() if dotted(p) in message]
        return message + (f" ({', '.join(origins)})" if origins else "")
    name = dotted(path)
    if path not in found:
        return f"{name}: {message}"
    origin, value = found[path].origin, found[path].value
    if name in message:
        return f"{origin}: {message}"
    shown = "set (hidden)" if is_secret(names.types[names.known(path)]) else _shown(value)
    if location == path:
        return f"{origin}: {name} is {shown}: {message}"
    if place := next((places[location[:n]] for n in range(len(location), len(path), -1) if location[:n] in places), ""):
        if error["type"] == "extra_forbidden":
            return f"{place}: unknown setting {dotted(location)}; {names.inside(path, location[-1])}"
        if error["type"] == "missing":
            return f"{place}: {dotted(location)} is not set, and each of {name} needs it"
        return f"{place}: {dotted(location)} is {_shown(error['input'])}: {message}"
    return f"{origin}: {name} is {shown} at {'.'.join(location[len(path) :])}: {message}"


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = str(value)  # TOML's dates
    return text if len(text) <= 80 else f"{text[:77]}..."
