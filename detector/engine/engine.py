"""The pure heart: `Engine.step(EventBatch) -> Step`. No clock, no network, no file.

Its first law is parity: cut the same events into batches in any way, in any interleaving of streams, restore from
`drain` anywhere, and the scores are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from connectors.batches import SILENCE, Alert, EventBatch, Scores
from detector.engine.batch_layout import events_within_lanes, shown, sorted_pass
from detector.engine.latest import Latest
from detector.engine.results import alerts_of, resolved, scores_of
from detector.engine.silence import Silence
from detector.engine.stages import Stages
from detector.scoring.admission import MovedBack, admit_events, silence_of
from detector.scoring.incidents import AlertRules, end_incident
from detector.scoring.rules import StreamRule, StreamRules
from detector.scoring.symbols import SYMBOL_ROW
from detector.state.lane_network import lanes_on
from detector.state.spill_buffer import SpillBuffer
from detector.state.stream_cache import PACK_BATCH, PORTION, StreamCache
from detector.state.stream_states import StreamStates
from training.network.weights import Weights, load_prior

Int64 = NDArray[np.int64]

MAX_OBSERVATIONS = 200_000  # go through at once: inputs, forecasts and verdicts of each take some 300 bytes


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What of the settings the engine must know."""

    max_streams: int = 100_000
    memory_bytes: int = 0  # that states may take, but for one stream more; 0: no limit
    threads: int = 1
    keep_late: bool = False
    keep_duplicates: bool = False
    timezone: str = "UTC"  # whose clock the streams' days and weeks follow
    rules: AlertRules = field(default_factory=AlertRules)  # of the streams that none of `by_pattern` matches
    by_pattern: tuple[StreamRule, ...] = ()  # the first that matches holds


@dataclass(slots=True)
class Step:
    """The results of one micro-batch."""

    scores: Scores
    slot: Int64  # [scored] of each scored event's stream, as it was scored: an eviction may have given it away since
    alerts: list[Alert]
    duplicates: int
    late: int
    features_dropped: int
    evicted: int
    evicted_for_memory: int  # of them, for want of bytes
    repartitioned: list[str]  # streams seen on another partition than before
    moved_back: list[MovedBack]  # streams that have taken the earlier time of their late events
    blocked: list[str]  # streams that have had so many events in a row dropped that it is worth a warning


class Engine:
    """Scores events of any streams, one network for all, a state for every feature of every stream.

    `model`: by default the LSTM that ships. `fetch` and `spill`: see StreamCache, which holds the states (`streams`).
    `on_stage` is called with the name of each stage as it ends.
    """

    def __init__(
        self,
        model: Weights | None = None,
        settings: EngineSettings | None = None,
        device: str = "cpu",
        fetch: Callable[[Sequence[str]], Iterable[bytes | None]] | None = None,
        on_stage: Callable[[str], None] | None = None,
        spill: SpillBuffer | None = None,
    ) -> None:
        model = model or load_prior()
        self.settings = settings or EngineSettings()
        self.rules = StreamRules(self.settings.rules, self.settings.by_pattern)
        self.streams = StreamCache(
            StreamStates(lanes_on(model, device), model.shape.state_size, model.shape.horizons),
            model.fingerprint(),
            fetch,
            spill,
            max_streams=self.settings.max_streams,
            memory_bytes=self.settings.memory_bytes,
            rules_of=self.rules.numbers_of,
        )
        self.silence = Silence(self.streams, self.rules)
        self.latest = Latest()
        self.weights = model  # that score
        self._states = self.streams.states
        self._stages = Stages(self._states, model.shape, self.rules.table(), self.settings.threads, on_stage)

    # -- the way through ---------------------------------------------------------------------------------------------

    def step(self, batch: EventBatch) -> Step:
        """Score a batch: every event against what its stream's past let expect, then learn it.

        One that asks for much memory goes through in parts, with evictions in between: by parity the scores are the
        same.
        """
        steps: list[Step] = []
        edges = [0]
        while not steps or edges[-1] < len(batch):
            part, slots = self._load_part(batch, edges[-1])
            edges.append(edges[-1] + len(part))
            steps.append(self._step(part, slots))
        if len(steps) == 1:
            return steps[0]
        return Step(
            scores=Scores.concat(batch, edges, [step.scores for step in steps]),
            slot=np.concatenate([step.slot for step in steps]),
            alerts=[alert for step in steps for alert in step.alerts],
            duplicates=sum(step.duplicates for step in steps),
            late=sum(step.late for step in steps),
            features_dropped=sum(step.features_dropped for step in steps),
            evicted=sum(step.evicted for step in steps),
            evicted_for_memory=sum(step.evicted_for_memory for step in steps),
            repartitioned=sorted({name for step in steps for name in step.repartitioned}),
            moved_back=[back for step in steps for back in step.moved_back],
            blocked=sorted({name for step in steps for name in step.blocked}),
        )

    def _load_part(self, batch: EventBatch, at: int) -> tuple[EventBatch, Int64]:
        """Return as much of a batch, from an event on, as may go through at once, and its streams' slots, loaded.

        What that brings into memory is bounded: states that are loaded, and lanes that are new.
        """
        streams, start, room = self.streams, batch.start, PORTION * self.settings.memory_bytes
        end = min(max(int(np.searchsorted(start, start[at] + MAX_OBSERVATIONS, "right")) - 1, at + 1), len(batch))
        first = np.full(len(batch.streams), -1)  # event that shows each stream first
        codes = shown(batch.stream, at, end, first)
        slots = np.where(first >= 0, streams.find(batch.streams), -1)
        if slots[codes].min(initial=0) < 0:
            loaded = streams.load([batch.streams[code] for code in codes.tolist()], room)
            if len(loaded) < len(codes):
                end = int(first[codes[len(loaded)]])
            slots[:] = -1
            slots[codes[: len(loaded)]] = loaded
        streams.use_now(slots[slots >= 0])
        lanes = room / (streams.states.lane_bytes + SYMBOL_ROW.itemsize * (len(batch.symbols) > 0))  # that may be new
        if room and start[end] - start[at] > lanes:
            end = at + events_within_lanes(streams.states, batch, slots, slice(at, end), max(int(lanes), 1))
        if (at, end) != (0, len(batch)):
            slots = slots[np.unique(batch.stream[at:end])]
            batch = batch.slice(at, end)
        streams.mark_changed(slots[slots >= 0])  # from here on, also where something below raises
        return batch, slots

    def _step(self, batch: EventBatch, slots: Int64) -> Step:
        streams, settings = self.streams, self.settings
        ids = self._states.identify(batch, slots)
        rows = self._states.streams.rows["admission"]
        admitted = admit_events(rows, batch, ids, duplicates=settings.keep_duplicates, late=settings.keep_late)
        taken = admitted.taken.event
        model = streams.model_number
        one = sorted_pass(self._states, batch, ids, admitted.taken, streams.muted_until, model, settings.timezone)
        self.rules.quieten(one.batch.muted, self._states.streams.rows["rule"][one.batch.slot], one.batch.time)
        silent = self.silence.hear(batch, ids, admitted.taken)
        self._stages.on_stage("admit")
        scored = self._stages.run(one, model)
        work = scored.batch
        self.latest.note(len(self._states.streams.rows), work.slot, work.time, scored.verdicts)
        scores = scores_of(batch, scored, streams.version, self._states.symbol_names)
        alerts = alerts_of(batch, scored, self._states, streams.version, self.rules)
        for_memory, for_number = streams.evict()
        self._stages.on_stage("results")
        return Step(
            scores=scores,
            slot=ids.slot[scores.event],
            alerts=[*silent, *alerts],
            duplicates=admitted.duplicates,
            late=admitted.late,
            features_dropped=int((batch.start[taken + 1] - batch.start[taken]).sum()) - len(scored.batch.observation),
            evicted=for_memory + for_number,
            evicted_for_memory=for_memory,
            repartitioned=admitted.repartitioned,
            moved_back=admitted.moved_back,
            blocked=admitted.blocked,
        )

    def resolve_silent(self, silent: Mapping[str, float]) -> tuple[list[Alert], dict[str, float]]:
        """End the incidents of streams that have said nothing for so long, in seconds, by the others' time or a clock.

        Return their alerts, and of those that are not silent yet how long they may be. An alert says the same whenever
        this is called, and what the stream's own next event would have said: that its incident ended when it had fallen
        silent, by its own time. Scores do not depend on it.
        """
        alerts: list[Alert] = []
        not_yet: dict[str, float] = {}
        names = list(silent)
        for at in range(0, len(names), PACK_BATCH):
            some = names[at : at + PACK_BATCH]
            for name, slot in zip(some, self.streams.load(some).tolist(), strict=True):
                stream = self._states.streams.rows[slot]
                if slot not in self._states.open_alerts:
                    continue
                allowed = float(silence_of(stream["admission"]))
                if silent[name] <= allowed:
                    not_yet[name] = allowed
                    continue
                ended = int(stream["admission"]["time"]) + int(allowed * 1e9)
                alerts.append(resolved(self._states.open_alerts.pop(slot), ended, SILENCE))
                end_incident(stream)
                self.streams.mark_changed(np.array([slot]))
            self.streams.evict()
        return alerts, not_yet

    def pack(self, stream: str) -> bytes | None:
        """Return a stream's whole state, for a framework that keeps state itself; None for one that is not in memory.

        Some 4 KB of a stream of one feature. It holds all that scores and alerts of the stream's next events depend on
        but the weights, and is read by any engine with the same `horizons`.
        """
        return self.streams.snapshot([stream])[stream]

    def unpack(self, stream: str, state: bytes) -> None:
        """Give a stream the state that `pack` returned, here or in another process, in the place of what it has.

        Raises StateError for a state of another layout or damaged; the stream then starts without one.
        """
        self.streams.replace(stream, state)

    @property
    def fleet_events_per_day(self) -> float:
        """Rate of all streams' events, these and those of other workers, that the fleet's budget goes by; 0: unknown.

        Between two settings of it scores are the same however batches are cut; the same settings at the same points in
        the stream give the same scores again.
        """
        return self._stages.rules.fleet_events_per_day

    @fleet_events_per_day.setter
    def fleet_events_per_day(self, rate: float) -> None:
        self._stages.rules = self._stages.rules._replace(fleet_events_per_day=float(rate))

    def use_rules(self, default: AlertRules, by_pattern: Sequence[StreamRule] = ()) -> None:
        """Alert by other rules from the next event on; what streams have learnt, and open incidents, stay."""
        self.rules = StreamRules(default, by_pattern)
        self.streams.give_rules(self.rules.numbers_of)
        self._stages.rules = self.rules.table(self.fleet_events_per_day)
        self.silence.use_rules(self.rules)

    @property
    def version(self) -> str:
        """Name of the weights in use."""
        return self.streams.version

    def use(self, model: Weights) -> None:
        """Score with other weights from the next event on; each lane is warmed up as its next event comes."""
        self.weights = model
        self._states.recurrent.use(model)
        self.streams.use(model.fingerprint())

    def close(self) -> None:
        """End the threads."""
        self._stages.close()
