"""The names of settings: what is known, what was renamed or removed, what a misspelt one may mean; and their texts."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel, SecretStr

from training.learn.settings import Learning

PREFIX = "LONGWATCH_"
REFERENCE = "docs/settings.md lists them all"

Name = tuple[str, ...]  # ("kafka", "topics")
NAME = "NAME"  # in the place of the name that somebody gives a section: ("receivers", NAME, "url")
_RECEIVER = 'it is set for each receiver now: write [receivers.NAME], type = "webhook" (docs/how-to/receivers.md)'
_OF_TRAIN = "it is an option of longwatch train now, "
_REPEATED = "it was removed, a repeated anomaly alerts as long as it is rare: leave it out"
# What files written for an earlier version may still hold: the new name, or what to do
REMOVED: dict[Name, Name | str] = {
    ("model", "scope"): "it was removed, all streams share one model: leave it out",
    ("alerting", "least_deviation_absolute"): ("alerting", "min_deviation_absolute"),
    ("alerting", "least_deviation_relative"): ("alerting", "min_deviation_relative"),
    ("alerting", "least_duration_seconds"): ("alerting", "min_duration_seconds"),
    **dict.fromkeys(
        (("alerting", "mute"), ("alerting", "muted_streams")),
        "it is a rule now: write [[rules]], a name, streams = [...] and mute = true (docs/how-to/rules.md)",
    ),
    ("alerting", "repeats"): _REPEATED,
    ("alerting", "repeated_anomalies"): _REPEATED,
    ("kafka", "max_poll_records"): ("source", "max_poll_records"),
    ("decode", "max_name_bytes"): "it was removed, names have 255 bytes at most: leave it out",
    ("decode", "max_code_bytes"): "it was removed, symbols have 1,024 bytes at most: leave it out",
    ("decode", "max_batch_events"): "it was removed, a record has 10,000 events at most: leave it out",
    ("webhook", "retry_cap_seconds"): "it was removed, retries are half an hour apart at most: leave it out",
    ("webhook", "max_pending"): "it was removed, 100,000 alerts may wait, then the oldest are dropped: leave it out",
    ("webhook",): _RECEIVER,
    **{
        ("webhook", name): _RECEIVER
        for field in ("url", "secret", "allowed_hosts", "timeout_seconds", "retry_base_seconds", "max_age_seconds")
        for name in ((field, f"{field}_file") if field in {"url", "secret"} else (field,))
    },
    ("model", "hidden_size"): "it was removed, a model's own size holds: leave it out",
    **{
        ("model", name): f"{_OF_TRAIN}--{name.replace('_', '-')}; the daemon takes the shape of its model"
        for name in ("layers", "dropout", "attention_window")
    },
    ("compute", "seed"): f"{_OF_TRAIN}--seed",
    **{
        ("training", name): f"{_OF_TRAIN}--learning {name}=...; retraining does without"
        for name in Learning.model_fields.keys() - {"learning_rate"}
    },
}


def leaves(model: type[BaseModel], prefix: Name = ()) -> Iterator[tuple[Name, Any]]:
    """Yield the path and the annotation of every setting, section by section; NAME is a section's given name."""
    for name, field in model.model_fields.items():
        if (named := named_section(field.annotation)) is not None:
            yield from leaves(named, (*prefix, name, NAME))
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, (*prefix, name))
        else:
            yield (*prefix, name), field.annotation


def named_section(annotation: Any) -> type[BaseModel] | None:
    """Return the model of sections that have names of their own, a dict of them; None where it is no such."""
    if get_origin(annotation) is dict:
        model = get_args(annotation)[1]
        if isinstance(model, type) and issubclass(model, BaseModel):
            return model
    return None


def table_list(annotation: Any) -> type[BaseModel] | None:
    """Return the model of a list of tables, such as [[rules]]; None where it is none."""
    if get_origin(annotation) in (list, tuple):
        model = get_args(annotation)[0]
        if isinstance(model, type) and issubclass(model, BaseModel):
            return model
    return None


def is_secret(annotation: Any) -> bool:
    """Whether a setting holds a secret."""
    return annotation is SecretStr or any(is_secret(part) for part in get_args(annotation))


def _is_list(annotation: Any) -> bool:
    return any(a in (list, tuple) or get_origin(a) in (list, tuple) for a in (annotation, *get_args(annotation)))


def dotted(path: Name) -> str:
    """Return a name as files and `--set` write it."""
    return ".".join(path)


def variable(path: Name) -> str:
    """Return a name as the environment writes it."""
    return PREFIX + "__".join(path).upper()


def parsed(annotation: Any, text: str) -> Any:
    """Return a variable's or option's text as the value that the setting's type asks for."""
    if is_secret(annotation):
        return text
    if type(None) in get_args(annotation) and text.strip().lower() in ("", "none", "null"):
        return None
    if _is_list(annotation):
        if text.lstrip().startswith("["):
            return _toml(text)
        return [part.strip() for part in text.split(",") if part.strip()]
    if len(text) > 1 and text[0] == text[-1] == '"':  # pasted from a TOML file
        return _toml(text)
    return text


def _toml(text: str) -> Any:
    """Return the TOML value that the text is, or the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


class Names:
    """The known names, and those that end in _file and name the file that a secret is in."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.types = dict(leaves(model))
        self.sections = {path[:n] for path in self.types for n in range(1, len(path))}
        secrets = [path for path, annotation in self.types.items() if is_secret(annotation)]
        self.secret_files = {(*path[:-1], f"{path[-1]}_file"): path for path in secrets}
        self.lists = {path[0] for path, annotation in self.types.items() if table_list(annotation) is not None}
        self._named = {path[0] for path in self.types if NAME in path}

    def known(self, path: Name) -> Name:
        """Return a path as `types`, `sections` and `secret_files` have it: with NAME for a section's given name."""
        return (path[0], NAME, *path[2:]) if len(path) > 1 and path[0] in self._named else path

    def folded(self, path: Name) -> Name:
        """Return a path with a section's given name in small letters: variables have no others."""
        return (path[0], path[1].lower(), *path[2:]) if len(path) > 1 and path[0] in self._named else path

    def inside(self, path: Name, name: str) -> str:
        """Return what to do about an unknown name inside a list of tables."""
        model = table_list(self.types[path])
        near = difflib.get_close_matches(name, model.model_fields if model else (), n=1)
        return f"did you mean {near[0]}?" if near else REFERENCE

    def suggestion(self, name: str, write: Callable[[Name], str], sections: bool = False) -> str:
        """Return what to do about an unknown name, in the source's own way of writing names."""
        for path, now in REMOVED.items():
            if name == write(path):
                return now if isinstance(now, str) else f"it is called {write(now)} now"
        known = self.sections if sections else (*self.types, *self.secret_files)
        given = re.split(r"\.|__", name)[1:2] or [NAME]
        paths = [tuple(given[0] if part == NAME else part for part in path) for path in known]
        written = {write(path).removeprefix(PREFIX): write(path) for path in paths}  # what all share says nothing
        near = difflib.get_close_matches(name.removeprefix(PREFIX), written, n=1)
        return f"did you mean {written[near[0]]}?" if near else REFERENCE
