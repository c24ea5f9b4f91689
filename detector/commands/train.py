"""What `longwatch train` does: refine a model on history, and put it into a registry if it proves itself.

Where the daemon learns from windows of 128 events, here the whole series are there: long windows at random places, the
state carried on from chunk to chunk, and the last fifth of each series held back.

Of several processes (torchrun), the first reads, judges, writes and prints; the others only learn, on shares of what it
has read.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from connectors.decode.decoder import Decoder
from connectors.files.settings import FileSettings
from connectors.files.source import FileSource
from connectors.kafka.history import KafkaHistory
from connectors.protocols import Source
from detector.commands.outputs import check_folder, require_matplotlib
from detector.commands.training_data import (
    HELD_BACK,
    MIN_EVENTS,
    EventColumns,
    TrainError,
    TrainingData,
    build_training_data,
    read_events,
)
from detector.config.settings import Settings
from detector.errors import UsageError
from detector.service.engine_setup import device_of
from detector.service.model_choice import first_model
from training.learn.settings import Learning
from training.learn.tbptt import TrainStep
from training.network.enlarge import enlarge
from training.network.registry import Registry
from training.network.weights import Weights
from training.retrain.challenger import WindowPlan, fine_tune
from training.retrain.distributed import SINGLE_PROCESS, SingleProcess, process_group
from training.retrain.result import RetrainResult

SERIES_PLAN = WindowPlan(window=512, chunk=128, warm_up=64, settle=160, passes=4, judge=32, least_groups=16, steps=1000)
MAX_NAMES = 10  # files named in a line
PROGRESS_EVERY = 10  # steps; what that costs is lost among them


def run(settings: Settings, options: argparse.Namespace) -> None:
    """Train and print the report; of several processes (torchrun) the first one does."""
    diagnosis: Path | None = options.diagnose
    if diagnosis == Path():
        diagnosis = options.output.with_name(options.output.name + ".html")
    if bool(options.files) == options.from_kafka:
        raise UsageError("train: name the files to train on, or give --from-kafka; one of the two")
    if diagnosis is not None and diagnosis.suffix != ".html":
        raise UsageError(
            f"train: --diagnose {diagnosis}: a name that ends in .html is expected; name FILEs before --diagnose"
        )
    learning = settings.training.learning(options.learning)
    named = ("layers", "attention_window", "dropout")
    shape = {name: value for name in named if (value := getattr(options, name)) is not None}
    check_folder("--output", options.output)  # not after minutes of training
    if diagnosis is not None:
        check_folder("--diagnose", diagnosis.parent)
    history = TrainingSource.of_kafka(settings) if options.from_kafka else TrainingSource.of_files(options.files)
    with process_group(device_of(settings)) as processes:
        if processes.first:
            report = train(
                history,
                options.output,
                settings,
                processes=processes,
                learning=learning,
                shape=shape,
                seed=options.seed,
                diagnosis=diagnosis,
            )
            print(report)
        else:
            logging.disable(logging.WARNING)  # the first process logs
            torch.set_num_threads(1)
            champion = _first_in_shape(settings, shape)
            fine_tune(champion, None, SERIES_PLAN, options.seed, learning=learning, processes=processes)


class TrainingSource(NamedTuple):
    """What to train on."""

    name: str  # for people
    open: Callable[[Decoder], Source]

    @classmethod
    def of_files(cls, paths: Sequence[str]) -> TrainingSource:
        """Return what files hold."""
        named = [*paths[:MAX_NAMES], *([f"{len(paths) - MAX_NAMES} more"] if len(paths) > MAX_NAMES else [])]
        return cls(", ".join(named), lambda decoder: FileSource(FileSettings(paths=tuple(paths)), decoder))

    @classmethod
    def of_kafka(cls, settings: Settings) -> TrainingSource:
        """Return what the topics of kafka.topics (or topic_pattern) hold at the moment they are opened."""
        kafka = settings.kafka
        name = kafka.topic_pattern or ", ".join(kafka.topics)
        return cls(f"{name} at {kafka.bootstrap_servers}", lambda _: KafkaHistory(kafka))


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What `train` did."""

    outcome: RetrainResult
    parent: str  # version of the model that was refined
    events: EventColumns
    recording: TrainingData  # what of the events was learnt from or held back
    directory: Path
    version: str | None  # of the new model; None: it did not prove itself, and nothing was saved
    diagnosis: Path | None  # the page, where one was asked for

    def __str__(self) -> str:
        """Return the report in a few lines."""
        events, recording = self.events, self.recording
        symbols = f", {events.symbols} symbols left out" if events.symbols else ""
        rejected = "".join(f", {count} rejected ({reason})" for reason, count in events.rejected.items())
        lines = [
            f"{recording.kept:,} events{rejected}{symbols}, {len(events) - recording.kept} late or duplicate; "
            f"{len(recording.recorded.held)} of {recording.lanes} features can be learnt from "
            f"(at least {MIN_EVENTS} events, not constant)"
        ]
        if self.outcome.steps:
            lines.append(
                f"loss on the held-back last {HELD_BACK:.0%}: {self.outcome.champion_loss:.4f} before, "
                f"{self.outcome.validation_loss:.4f} after"
            )
        lines.append(f"{self.outcome.outcome}: {self.outcome.reason}")
        if self.version:
            lines.append(f"saved as {self.version} in {self.directory}; use it with model.directory")
        else:
            lines.append(f"nothing was saved; {self.parent} stays the better model")
        if self.diagnosis:
            lines.append(f"how it went: {self.diagnosis}")
        return "\n".join(lines)


def train(
    history: TrainingSource,
    output: str | Path,
    settings: Settings,
    *,
    processes: SingleProcess = SINGLE_PROCESS,
    learning: Learning | None = None,
    shape: Mapping[str, Any] = MappingProxyType({}),
    seed: int = 0,
    diagnosis: Path | None = None,
) -> TrainReport:
    """Refine model.directory's latest model, or the prior, on history, and save the result into Registry(output).

    processes: who learns; by default this one, on the CPU. learning: None: as the daemon's retraining does. shape: what
    to enlarge of the model's Shape first. diagnosis: HTML page to write.
    Raises TrainError, ModelError, RegistryError, PlotError and what opening the history raises.
    """
    if diagnosis:
        require_matplotlib()  # not after minutes of training
    torch.set_num_threads(1)  # more are slower at this size
    champion = _first_in_shape(settings, shape)
    decoder = Decoder(settings.decode)
    events = read_events(history.open(decoder), decoder, history.name)
    recording = build_training_data(events, settings, champion.shape.horizons)
    if not len(recording.recorded.held):
        raise TrainError(
            f"{history.name}: none of {recording.lanes} features has {MIN_EVENTS} events in order and moves; "
            "train on longer series"
        )
    learning = learning or settings.training.learning()
    plan = SERIES_PLAN.with_step_every(learning.update_every)
    steps: list[TrainStep] = []
    validations: list[tuple[int, float]] = []
    began = time.perf_counter()
    with tqdm(total=plan.steps, desc="training", unit="step", disable=None) as bar:

        def on_step(step: TrainStep) -> None:
            steps.append(step)
            bar.update()
            if step.number % PROGRESS_EVERY == 0:
                rate = step.rows * processes.size / (time.perf_counter() - began)
                bar.set_postfix_str(f"loss {step.loss:.3f}, {rate:,.0f} events/s", refresh=False)

        outcome = fine_tune(
            *(champion, recording.recorded, plan, seed),
            learning=learning,
            processes=processes,
            on_step=on_step,
            on_validation=lambda step, loss: validations.append((step, loss)),
        )
    version = None
    if outcome.model is not None:
        version = Registry(output).save(outcome.model, outcome.model_card(time.time()))
    report = TrainReport(outcome, champion.fingerprint(), events, recording, Path(output), version, diagnosis)
    if diagnosis:
        from detector.commands.diagnosis import Diagnosis  # noqa: PLC0415 - with matplotlib

        page = Diagnosis(
            name=history.name,
            champion=champion,
            plan=plan,
            learning=learning,
            seed=seed,
            recording=recording,
            steps=steps,
            validations=validations,
            outcome=outcome,
        )
        page.write(diagnosis, str(report))
    return report


def _first_in_shape(settings: Settings, shape: Mapping[str, Any]) -> Weights:
    model = first_model(settings)
    return enlarge(model, model.shape._replace(**shape))
