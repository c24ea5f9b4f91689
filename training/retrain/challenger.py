"""Retraining: a challenger learns the fleet's recent past, and is promoted if it is better on what followed.

Good at: what many lanes share and the prior has not seen. It can learn neither a single lane nor rhythms longer than
its windows; and a challenger that forgets what the champion knew of other series is rejected.

How: short windows at random places of random lanes, mixed with synthetic series (chunks of all lanes in step would all
show the same hour, and unlearn the rest); truncated back-propagation with the state carried on. A window begins with
the warmed-up state of a lane that has run for a long time. With a zero state instead, gains on held-back time turned
into losses within 600 events (SMD: from 0.13 nats better to 0.2 worse), as lanes left what the windows had shown.
Held-back time is the last part of each lane: half of its windows say when to stop, the other half judge.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.learn.optimisers import build_optimiser, build_schedule
from training.learn.scheduled_sampling import ScheduledSampling
from training.learn.settings import Learning
from training.learn.tbptt import Sequences, TrainStep, train
from training.network.history import WINDOW
from training.network.inputs import VALUE
from training.network.model import Forecaster
from training.network.weights import Weights, prior_of
from training.prior.synthetic import replay_set
from training.retrain.distributed import SINGLE_PROCESS, ProcessesError, SingleProcess
from training.retrain.result import MIN_MOVEMENT, MIN_STREAMS, RetrainResult, eligible_lanes
from training.retrain.windows import NOTHING, Recorded, from_rings, warmed_state, window_losses

HELD_BACK = WINDOW // 4  # last rows of a ring, from which nothing is learnt

BATCH = 64  # windows of a step
REPLAY = 0.3  # share of them that is synthetic
REPLAY_POOL, REPLAY_JUDGES = 256, 256  # synthetic series: half a second to make
LEARNING = Learning()  # what all figures here were measured with: Adam at 5e-4, falling to 0 along a cosine
VALIDATE_EVERY, PATIENCE = 50, 3  # steps; validations without a gain
MAX_STOPPING, MAX_JUDGING = 512, 1024  # held-back windows

MIN_GAIN = 0.05  # nats: gains up to 0.1 changed no detection figure, and after a swap all scales must adapt
STANDARD_ERRORS = 2.0  # by which the mean gain must exceed zero
REPLAY_MARGIN = 0.05  # nats that a challenger may be worse than the shipped prior on synthetic series that move
SHARES = (1.0, 0.75, 0.5, 0.25)  # of the way from the champion's weights to those learnt


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """Lengths that go with a kind of history, in rows."""

    window: int
    chunk: int  # between two steps, unless `Learning.update_every` says otherwise
    warm_up: int  # rows of a window from which nothing is learnt: its state ended somewhere else
    settle: int  # rows that warm the state up
    passes: int  # over them
    judge: int  # rows of a held-back window that count
    least_groups: int  # of held-back windows; half of them judge
    steps: int = 600

    @property
    def batches(self) -> int:
        """Batches of windows that make `steps` steps, rounded up."""
        return math.ceil(self.steps / math.ceil(self.window / self.chunk))

    def with_step_every(self, every: int) -> WindowPlan:
        """Return this plan with a step every so many rows (0: as it is), on as many batches, all steps counted."""
        chunk = min(every or self.chunk, self.window)
        return replace(self, chunk=chunk, steps=self.batches * math.ceil(self.window / chunk))


RING_PLAN = WindowPlan(
    window=80,
    chunk=40,
    warm_up=16,
    settle=WINDOW - HELD_BACK,
    passes=5,  # 480 rows
    judge=HELD_BACK,
    least_groups=MIN_STREAMS,
)


def retrain(
    champion: Weights,
    histories: NDArray[np.void],
    stream: NDArray[np.int64],
    seed: int,
    *,
    learning: Learning = LEARNING,
    stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[TrainStep], None] = lambda step: None,
) -> RetrainResult:
    """Train a challenger on the recent windows of lanes and judge it; `champion` stays as it is.

    histories: INPUT_HISTORY [lanes]; stream: a number for the stream each belongs to [lanes]. Lanes of one stream share
    its data, so gains are counted by stream. The same arguments give the same result. `stop`, called before each step,
    ends training early (a budget); the challenger is judged nevertheless. What it raises propagates.
    """
    moving = eligible_lanes(histories, stream, seed)
    if isinstance(moving, RetrainResult):
        return moving
    recorded = from_rings(histories[moving], stream[moving], HELD_BACK, champion.shape.horizons)
    return fine_tune(champion, recorded, RING_PLAN, seed, learning=learning, stop=stop, on_step=on_step)


def fine_tune(
    champion: Weights,
    recorded: Recorded | None,
    plan: WindowPlan,
    seed: int,
    *,
    learning: Learning = LEARNING,
    processes: SingleProcess = SINGLE_PROCESS,
    stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[TrainStep], None] = lambda step: None,
    on_validation: Callable[[int, float], None] = lambda step, loss: None,
) -> RetrainResult:
    """Train a challenger on what was recorded and judge it, by a plan of windows; otherwise as `retrain`.

    processes: those that train together; all need the same arguments, except that only the first must have
    `recorded`, and only the first one's challenger is judged.
    on_validation: called with the number of steps so far and the loss on held-back time.
    Raises ProcessesError for more processes than there are windows in a batch.
    """
    if processes.size > BATCH:
        raise ProcessesError(f"{processes.size} processes, but a batch has only {BATCH} windows: start at most {BATCH}")
    recorded = processes.broadcast_data(recorded, NOTHING)
    rng = np.random.default_rng(seed)
    stopping, judging = _held_back(recorded, plan, rng)
    groups, least = len(np.unique(judging.group)), plan.least_groups // 2
    if groups < least:
        reason = f"only {groups} stretches of held-back time lie outside incidents, {least} are needed to judge"
        return RetrainResult("skipped", reason)

    model = Forecaster.of(champion)
    challenger = _WarmForecaster.of(champion).to(processes.device)
    plan = plan.with_step_every(learning.update_every)
    optimiser = build_optimiser(learning, challenger)
    loss = ScheduledSampling(
        learning.sampling, plan.steps, learning.sampling_rise, seed, loss=processes.loss(challenger)
    )
    steps: list[TrainStep] = []

    def record(step: TrainStep) -> None:
        steps.append(step)
        loss.on_step(step)
        on_step(step)

    def validate(model: Forecaster) -> float:
        loss = processes.broadcast(lambda: float(stopping.losses(model).mean()))
        on_validation(len(steps), loss)
        return loss

    run = train(
        challenger,
        _batches(recorded, plan, challenger, rng, processes),
        optimiser,
        chunk=plan.chunk,
        backpropagate=learning.backpropagate or plan.chunk,
        loss=loss,
        schedule=build_schedule(learning, optimiser, plan.steps),
        clip_norm=learning.clip_norm,
        clip_value=learning.clip_value,
        validate=validate,
        validate_every=VALIDATE_EVERY,
        patience=PATIENCE,
        stop=stop,
        on_step=record,
    )
    learnt = RetrainResult(
        "failed",
        f"the training diverged after {run.steps} steps",
        training_loss=float(np.mean([step.loss for step in steps[-VALIDATE_EVERY:]])) if steps else math.nan,
        gradient_norm=steps[-1].gradient_norm if steps else 0.0,
        steps=run.steps,
        rows=recorded.rows_to_learn,
        parent=champion.fingerprint(),
        seed=seed,
    )
    if run.outcome == "diverged" or not processes.first:
        return learnt
    return _judge(learnt, model, challenger.cpu(), judging, plan, rng)


class _WarmForecaster(Forecaster):
    """A copy of a forecaster whose batches begin with a given state instead of zeros."""

    initial: Tensor  # [batch, state_size]

    def initial_state(self, batch: int) -> Tensor:
        """Return the state set for this batch. Dropout draws new masks."""
        super().initial_state(0)
        return self.initial


class _HeldBack(NamedTuple):
    windows: Sequences
    group: NDArray[np.int64]  # [windows]
    plan: WindowPlan

    def losses(self, model: Forecaster) -> NDArray[np.float64]:
        """Return the mean loss of each group [groups]."""
        _, group = np.unique(self.group, return_inverse=True)
        losses = window_losses(model, self.windows, self.plan.settle, self.plan.passes)
        found: NDArray[np.float64] = np.bincount(group, losses) / np.bincount(group)
        return found


def _held_back(recorded: Recorded, plan: WindowPlan, rng: np.random.Generator) -> tuple[_HeldBack, _HeldBack]:
    """Split held-back time by groups: windows that say when to stop, windows that judge."""
    length = plan.settle + plan.judge
    first, group = recorded.held_back_windows(length, plan.settle)
    names, number = np.unique(group, return_inverse=True)
    side = (rng.permutation(len(names)) % 2)[number]
    halves = []
    for half, most in enumerate((MAX_STOPPING, MAX_JUDGING)):
        places = rng.permutation(np.flatnonzero(side == half))[:most]
        windows = recorded.part(first[places], length, held_back=True, warm_up=plan.settle)
        countable = windows.mask[..., 0].any(dim=0)
        halves.append(_HeldBack(_windows(windows, countable), group[places[countable.numpy()]], plan))
    return halves[0], halves[1]


def _judge(
    learnt: RetrainResult,
    champion: Forecaster,
    tuned: Forecaster,
    judging: _HeldBack,
    plan: WindowPlan,
    rng: np.random.Generator,
) -> RetrainResult:
    """Promote the challenger if it is better on held-back time beyond noise, and has not forgotten the rest.

    Weights between the champion's and the tuned ones keep most of what both know (Wortsman et al. 2022, "Robust
    fine-tuning of zero-shot models"): the challenger goes as far as the loss on synthetic series allows.
    """
    replay = replay_set(rng, REPLAY_JUDGES, plan.settle + WINDOW // 2, champion.horizons)
    replay.mask[: plan.settle] = False
    replay = _windows(replay, replay.inputs[..., VALUE].std(dim=0) > MIN_MOVEMENT)

    def forgotten(model: Forecaster) -> float:
        return float(np.nanmean(window_losses(model, replay, plan.settle, plan.passes)))

    # Compared with the prior too: otherwise every retraining could lose another margin.
    limit = forgotten(champion)
    if (prior := prior_of(champion.shape)) is not None:
        limit = max(forgotten(Forecaster.of(prior)) + REPLAY_MARGIN, limit)
    for share in SHARES:
        challenger = _between(champion, tuned, share)
        on_replay = forgotten(challenger)
        if on_replay <= limit:
            break
    before, after = judging.losses(champion), judging.losses(challenger)  # [groups]
    gain = float((before - after).mean())
    asked = max(MIN_GAIN, STANDARD_ERRORS * float((before - after).std(ddof=1)) / math.sqrt(len(before)))
    promoted = on_replay <= limit and gain >= asked
    reason = (
        f"held-back loss {before.mean():.3f} -> {after.mean():.3f} by {len(before)} judges after {learnt.steps} steps "
        f"({gain:.3f} better, {asked:.3f} asked for); {share:.0%} of the way, loss on synthetic series "
        f"{on_replay:.3f} of at most {limit:.3f}"
    )
    return replace(
        learnt,
        outcome="promoted" if promoted else "rejected",
        reason=reason,
        model=challenger.weights if promoted else None,
        validation_loss=float(after.mean()),
        champion_loss=float(before.mean()),
        replay_loss=on_replay,
    )


def _between(champion: Forecaster, tuned: Forecaster, share: float) -> Forecaster:
    found = copy.deepcopy(champion)
    far = tuned.state_dict()
    found.load_state_dict({name: torch.lerp(near, far[name], share) for name, near in champion.state_dict().items()})
    return found


def _batches(
    recorded: Recorded,
    plan: WindowPlan,
    challenger: _WarmForecaster,
    rng: np.random.Generator,
    processes: SingleProcess,
) -> Iterator[Sequences]:
    """Draw windows, recorded and synthetic, [window, BATCH], for as many steps as the plan has.

    All processes draw the same ones, and each takes its share of them. With each batch the challenger's initial state
    is set to that of its present weights after the rows before the windows.
    """
    synthetic = round(BATCH * REPLAY)
    pool = replay_set(rng, REPLAY_POOL, plan.settle + plan.window, challenger.horizons)
    rows = np.arange(plan.window)[:, None]
    for _ in range(plan.batches):
        first = recorded.draw(rng, BATCH - synthetic, plan.window)
        real = recorded.part(first, plan.window, held_back=False, warm_up=plan.warm_up)
        row = torch.from_numpy(rows + rng.integers(0, plan.settle + 1, synthetic))
        series = torch.from_numpy(rng.integers(0, REPLAY_POOL, synthetic))
        replayed = Sequences(*(tensor[row, series] for tensor in pool))
        replayed.mask[: plan.warm_up] = False
        stretch = recorded.part(recorded.stretch(first, plan.settle), plan.settle, held_back=False, warm_up=0)
        before = torch.cat([stretch.inputs, pool.inputs[: plan.settle, series]], dim=1)
        challenger.eval()  # as lanes run in the daemon: without dropout
        challenger.initial = warmed_state(challenger, before[:, processes.lane_slice].to(processes.device), plan.passes)
        challenger.train()
        both = (torch.cat(pair, dim=1) for pair in zip(real, replayed, strict=True))
        yield Sequences(*(tensor[:, processes.lane_slice].to(processes.device) for tensor in both))


def _windows(windows: Sequences, which: Tensor) -> Sequences:
    return Sequences(*(tensor[:, which] for tensor in windows))
