"""Every number that can be set: what cannot be used is refused at once, and what is taken can be used."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from connectors.files.settings import FileSettings
from connectors.files.source import FileSource
from detector.config.names import named_section
from detector.config.sections import TrainingSettings
from detector.config.settings import Settings, SettingsError, load_settings
from training.learn.settings import Learning

INT32_MAX = 2**31 - 1


def sections() -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield every section's name and model; those that are given names have one of these."""
    for section, of in Settings.model_fields.items():
        if (named := named_section(of.annotation)) is not None:
            yield f"{section}.hook", named
        elif isinstance(of.annotation, type):
            yield section, of.annotation


def numbers() -> Iterator[tuple[str, type[BaseModel], FieldInfo]]:
    """Yield every setting that takes a number: its name, its section and its field."""
    for section, model in sections():
        for name, field in model.model_fields.items():
            if {int, float} & {field.annotation, *get_args(field.annotation)}:
                yield f"{section}.{name}", model, field


NUMBERS = list(numbers())
FLOATS = [name for name, _, field in NUMBERS if float in (field.annotation, *get_args(field.annotation))]


def bound(field: FieldInfo, *names: str) -> float | None:
    found = [getattr(item, name) for item in field.metadata for name in names if getattr(item, name, None) is not None]
    return found[0] if found else None


def test_all_sections_share_one_base_class() -> None:
    from connectors.common.section import Section

    for _, section in sections():
        assert issubclass(section, Section)
        assert section.model_config == Section.model_config
    assert Learning.model_config == Section.model_config  # it may not know the other


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_every_source_refuses_non_finite_numbers_in_one_line(name: str, value: str, tmp_path: Path) -> None:
    config = tmp_path / "longwatch.toml"
    section, _, key = name.rpartition(".")
    config.write_text(f"[{section}]\n{key} = {value}\n")
    variable = {"LONGWATCH_" + name.replace(".", "__").upper(): value}
    for arguments in ((config, {}, ()), (None, variable, ()), (None, {}, (f"{name}={value}",))):
        with pytest.raises(SettingsError) as reported:
            load_settings(*arguments)
        (line,) = reported.value.errors
        assert name in line


@pytest.mark.parametrize("name", [n for n, field in Learning.model_fields.items() if field.annotation is float])
@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_train_refuses_non_finite_learning_options(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as reported:
        TrainingSettings().learning([f"{name}={value}"])
    (line,) = reported.value.errors
    assert name in line


def test_every_count_and_duration_has_a_usable_upper_bound() -> None:
    for name, _, field in NUMBERS:
        longest = bound(field, "le", "lt")
        if name.endswith(("_seconds", "_days")):
            assert longest is not None, name
            nanoseconds = longest * 1e9 * (86_400 if name.endswith("_days") else 1)
            assert nanoseconds < 2**63, name
        if name not in FLOATS and name != "model.horizons":  # seven that are known
            assert longest is not None, name
        if name.startswith("kafka."):  # milliseconds and counts, in 32 bits
            assert longest is not None, name
            assert longest * (1000 if name.endswith("_seconds") else 1) <= INT32_MAX, name


def at_their_ends(*names: str, otherwise: float) -> list[str]:
    """Return --set options that set every number but what sizes the network to its bound of these names."""
    left_out = ("model.", "compute.", "http.port", "alerting.threshold", "state.checkpoint_interval_seconds")
    return [
        f"{name}={end}"
        for name, _, field in NUMBERS
        if not name.startswith(left_out)
        for end in [bound(field, *names)]
        for end in [otherwise if end is None else end]
        if name in FLOATS or abs(end) < 1e300
    ]


@pytest.mark.parametrize("end", ["largest", "smallest"])
def test_the_daemon_works_with_every_number_at_its_bounds(end: str, tmp_path: Path) -> None:
    from detector.service.factory import build_daemon

    events = [{"stream": s, "timestamp": 1_700_000_000 + i, "value": i % 5} for i in range(300) for s in ("a", "b")]
    for number in range(2):
        lines = "".join(json.dumps(event) + "\n" for event in events[number::2])
        (tmp_path / f"{number}.jsonl").write_text(lines)
    ends = at_their_ends("le", "lt", otherwise=1e308) if end == "largest" else at_their_ends("ge", otherwise=5e-324)
    exact = {"kafka.changelog_replication_factor": 1}
    own = {
        "source.type": "file",
        "source.paths": json.dumps([str(tmp_path / "0.jsonl"), str(tmp_path / "1.jsonl")]),
        "state.directory": tmp_path / "state",
        "output.scores_file": tmp_path / "scores.jsonl",
        "receivers.hook.url": "http://127.0.0.1:9/",
        "receivers.hook.tell": "alerts",
        "receivers.hook.allowed_hosts": "127.0.0.1",
        "calendars.hook.cron": "0 2 * * *",
        "rules": '[{name = "quiet", streams = ["a"], quiet = ["hook"]}]',
        "alerting.threshold": 0.5,
        "http.port": 0,
        **exact,
    }
    if end == "smallest":
        own |= {"source.speed": 0, "decode.max_age_days": 20_000, "decode.max_record_bytes": 1000}
        own |= {"decode.max_ahead_seconds": 86_400}
    settings = load_settings(None, {}, [*ends, *(f"{name}={value}" for name, value in own.items())])
    build_daemon(settings).run()
    assert (tmp_path / "scores.jsonl").read_bytes().count(b"\n") == len(events)


@pytest.mark.parametrize("speed", [5e-324, 1e-300, 1e-9])
def test_a_replay_at_minimal_speed_logs_nothing(speed: float, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"timestamp": 1, "value": 1}\n{"timestamp": 2000000000, "value": 1}\n')
    source = FileSource(FileSettings(paths=(str(path),), speed=speed))
    assert len(source.poll(0.1)) == 1
    assert len(source.poll(0.1)) == 0
    source.close()


@pytest.mark.parametrize("clip", ["norm", "value"])
def test_the_largest_clip_limit_works(clip: str) -> None:
    import torch

    from training.learn.tbptt import clip_gradient
    from training.network.model import Forecaster
    from training.network.shape import Shape

    field = Learning.model_fields["clip_limit"]
    limit = bound(field, "le")
    assert limit is not None
    learning = Learning.model_validate({"clip": clip, "clip_limit": limit})
    model = Forecaster(Shape())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before, after = clip_gradient(model, learning.clip_norm, learning.clip_value)
    assert math.isfinite(float(before))
    assert float(after) == float(before)
