"""The pure heart: `Engine.step(EventBatch) -> Step`. No clock, no network, no file.

Its first law is parity: cut the same events into batches in any way, in any interleaving of streams, restore from
`drain` anywhere, and the scores are the same. So every stage is a scan over the batch with its own carried state, and
nothing upstream depends on anything downstream: inputs know nothing of scores, the cell nothing of thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from connectors.batches import CALM, SILENCE, Alert, EventBatch, Scores
from detector.engine.batch_layout import admit_events, events_within_lanes, layout_observations
from detector.engine.results import ScoredBatch, SortedBatch, alert_of, concat, resolved, scores_of
from detector.scoring.admission import MovedBack, Taken, silence_of
from detector.scoring.incidents import FIRES, NONE, PEAKS, RESOLVES, AlertRules, end_incident
from detector.scoring.judge import MEASURED, VERDICT, measure
from detector.scoring.scan import judge
from detector.scoring.symbols import SYMBOL_ROW, measure_symbols, network
from detector.state.lane_network import lanes_on
from detector.state.spill import SpillBuffer
from detector.state.stream_cache import PACK_BATCH, PORTION, StreamCache
from detector.state.stream_states import StreamStates
from training.network.input_history import WINDOW, record, unroll
from training.network.inputs import FRAME, INPUT_SIZE, Observations, featurise
from training.network.weights import Weights, load_prior
from training.symbols.kernels import PREDICTION, predict

Int64 = NDArray[np.int64]

THREAD_EVENTS = 512  # a thread is worth its start for so many events
WARM_UP_PASSES = 3  # over the window: one leaves the first 30 events after a swap 0.04 to 0.08 nats worse
WARM_UP_LANES = 4096  # lanes whose windows are unrolled together: 23 MB
MAX_OBSERVATIONS = 200_000  # go through at once: inputs, forecasts and verdicts of each take some 300 bytes


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What of the settings the engine must know."""

    max_streams: int = 100_000
    memory_bytes: int = 0  # that states may take, but for one stream more; 0: no limit
    threads: int = 1
    keep_late: bool = False
    keep_duplicates: bool = False
    muted_streams: tuple[str, ...] = ()  # name patterns
    rules: AlertRules = field(default_factory=AlertRules)


@dataclass(slots=True)
class Step:
    """What one micro-batch brought."""

    scores: Scores
    alerts: list[Alert]
    duplicates: int
    late: int
    features_dropped: int
    evicted: int
    evicted_for_memory: int  # of them, for want of bytes
    repartitioned: list[str]  # streams seen on another partition than before
    moved_back: list[MovedBack]  # streams that have taken the earlier time of their late events
    blocked: list[str]  # streams of which so many events in a row have been dropped by now that they are worth a word


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
        self._lanes = lanes_on(model, device)
        self._horizons = np.array(model.shape.horizons, np.int64)
        self._output_size = model.shape.output_size
        self.streams = StreamCache(
            StreamStates(self._lanes, model.shape.state_size, model.shape.horizons),
            model.fingerprint(),
            fetch,
            spill,
            max_streams=self.settings.max_streams,
            memory_bytes=self.settings.memory_bytes,
            muted_streams=self.settings.muted_streams,
        )
        self._states = self.streams.states
        self._on_stage = on_stage or (lambda _: None)
        self._pool = ThreadPoolExecutor(self.settings.threads) if self.settings.threads > 1 else None
        r = self.settings.rules
        self._rules = (
            r.alerts_per_stream_per_week,
            r.fixed_threshold,
            r.direction,
            r.min_deviation_absolute,
            r.min_deviation_relative,
            r.min_duration_seconds,
            r.flag_repeats,
        )

    # -- the way through ---------------------------------------------------------------------------------------------

    def step(self, batch: EventBatch) -> Step:
        """Score a batch: every event against what its stream's past let expect, then learn it.

        One that asks for much memory goes through in parts, with evictions in between: by parity the scores are the
        same.
        """
        steps: list[Step] = []
        edges = [0]
        while not steps or edges[-1] < len(batch):
            edges.append(self._chunk_end(batch, edges[-1]))
            whole = edges[-2:] == [0, len(batch)]
            steps.append(self._step(batch if whole else batch.slice(*edges[-2:])))
        if len(steps) == 1:
            return steps[0]
        return Step(
            scores=Scores.concat(batch, edges, [step.scores for step in steps]),
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

    def _step(self, batch: EventBatch) -> Step:
        slots = self.streams.load(batch.streams)
        self.streams.mark_changed(slots)  # from here on, also where something below raises
        let = admit_events(
            self._states, batch, slots, duplicates=self.settings.keep_duplicates, late=self.settings.keep_late
        )
        judged = self._run_stages(batch, slots, let.taken)
        scores = scores_of(batch, judged, self.streams.version, self._states.symbol_names)
        alerts = self._alerts(batch, judged)
        for_memory, for_number = self.streams.evict()
        self._states.sweep_names()
        self._on_stage("score")
        return Step(
            scores=scores,
            alerts=alerts,
            duplicates=let.duplicates,
            late=let.late,
            features_dropped=judged.features_dropped,
            evicted=for_memory + for_number,
            evicted_for_memory=for_memory,
            repartitioned=let.changed,
            moved_back=let.moved_back,
            blocked=let.blocked,
        )

    def _run_stages(self, batch: EventBatch, slots: Int64, taken: Taken) -> ScoredBatch:
        """Take events, sorted by stream, through all stages; in several passes where streams gain features midway."""
        work, dropped, turn = layout_observations(self._states, batch, slots, taken, self.streams.model_number)
        if turn is not None:
            parts = [turn == k for k in range(int(turn.max()) + 1)]
            return concat([self._run_stages(batch, slots, taken.at(part)) for part in parts])
        numbers = work.numbers()
        inputs, frames = self._inputs(numbers)
        self._on_stage("features")
        outputs = self._forecast(numbers, inputs)
        foreseen = self._predict_symbols(work)
        self._on_stage("forecast")
        return ScoredBatch(work, *self._judge(work, numbers, inputs, frames, outputs, foreseen), foreseen, dropped)

    def _chunk_end(self, batch: EventBatch, at: int) -> int:
        """Return where the part of a batch that begins at an event must end, and bring the states of its streams."""
        start, limit = batch.start, self.settings.memory_bytes
        end = int(np.searchsorted(start, start[at] + MAX_OBSERVATIONS, "right")) - 1 if len(batch) else 0
        end = min(max(end, at + 1), len(batch))
        if not limit:
            return end
        codes, first = np.unique(batch.stream[at:end], return_index=True)
        order = np.argsort(first)
        names = [batch.streams[code] for code in codes[order].tolist()]
        slots = self.streams.load(names, self._states.nbytes + round(PORTION * limit))
        if len(slots) < len(names):
            end = at + int(first[order[len(slots)]])
        room = PORTION * limit
        each = self._states.lane_bytes + SYMBOL_ROW.itemsize * (len(batch.symbols) > 0)
        if (start[end] - start[at]) * each <= room:
            return end
        slot = np.full(len(batch.streams), -1)
        slot[codes[order[: len(slots)]]] = slots
        return at + events_within_lanes(self._states, batch, slot, at, end, max(int(room / each), 1))

    def _inputs(self, work: SortedBatch) -> tuple[NDArray[np.float32], NDArray[np.void]]:
        count = len(work.lane)
        inputs, frames = np.empty((count, INPUT_SIZE), np.float32), np.empty(count, FRAME)
        observations = Observations(work.lane, np.repeat(work.time, np.diff(work.start)), work.value)
        normalisers = self._states.lanes.rows["input"]
        self._parallel(work, lambda _a, _b, a, b: featurise(normalisers, observations, a, b, inputs, frames))
        return inputs, frames

    def _forecast(self, work: SortedBatch, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        self._warm_up(work.lane)
        outputs = np.empty((len(work.lane), self._output_size), np.float32)
        if self._lanes.concurrent:
            self._parallel(work, lambda _a, _b, a, b: self._lanes.step(work.lane, inputs, a, b, outputs))
        else:
            self._lanes.step(work.lane, inputs, 0, len(work.lane), outputs)
        return outputs

    def _predict_symbols(self, work: SortedBatch) -> NDArray[np.void]:
        """Step the categorical lanes; PREDICTION [observations], or nothing where all are numbers."""
        foreseen = np.zeros(len(work.symbol), PREDICTION)
        if len(work.symbol):
            weights, lanes, row = network(), self._states.symbols.rows["lane"], self._symbol_rows(work)
            self._parallel(work, lambda _a, _b, a, b: predict(lanes, weights, row, work.symbol, a, b, foreseen))
        return foreseen

    def _symbol_rows(self, work: SortedBatch) -> Int64:
        """Return the observations' rows in the table of categorical lanes, -1 for a number."""
        rows: Int64 = self._states.lanes.rows["symbols"][work.lane] - 1
        return rows

    def _warm_up(self, lane: Int64) -> None:
        """Give lanes whose hidden state belongs to former weights one of the present: replay their recent window."""
        stale = np.unique(lane[self._states.lanes.rows["model"][lane] != self.streams.model_number])
        for at in range(0, len(stale), WARM_UP_LANES):
            lanes = stale[at : at + WARM_UP_LANES]
            window, _, counts = unroll(self._states.lanes.rows["history"][lanes])
            self._lanes.write(lanes, np.zeros((len(lanes), self._states.state_size), np.float32))
            rows = np.arange(WINDOW)[None] >= WINDOW - counts[:, None]  # [lanes, WINDOW]
            replayed, recent = np.repeat(lanes, counts), np.ascontiguousarray(window[rows])
            forgotten = np.empty((len(replayed), self._output_size), np.float32)
            for _ in range(WARM_UP_PASSES):
                self._lanes.step(replayed, recent, 0, len(replayed), forgotten)
            self._states.lanes.rows["model"][lanes] = self.streams.model_number

    def _judge(
        self,
        work: SortedBatch,
        numbers: SortedBatch,  # of work
        inputs: NDArray[np.float32],  # of numbers, as are frames and outputs
        frames: NDArray[np.void],
        outputs: NDArray[np.float32],
        foreseen: NDArray[np.void],
    ) -> tuple[NDArray[np.void], NDArray[np.void]]:
        states, count = self._states, len(work.lane)
        measured, verdicts = np.empty(count, MEASURED), np.empty(len(work.event), VERDICT)
        masked = np.empty(count, np.bool_)
        masked_numbers = np.empty(len(numbers.lane), np.bool_) if numbers is not work else masked
        lanes, many = states.lanes.rows, states.many.rows
        mixed = len(work.symbol) > 0
        of_numbers = np.empty(len(numbers.lane), MEASURED) if mixed else measured
        place = np.flatnonzero(work.symbol == 0)  # of each number among the observations
        symbol_row = self._symbol_rows(work) if mixed else place

        def scan(a: int, b: int, c: int, d: int) -> None:
            e, f = int(numbers.start[a]), int(numbers.start[b])
            measure(
                self._horizons, lanes["score"], many, numbers.lane, numbers.many_row, numbers.value, frames,
                outputs, e, f, of_numbers,
            )  # fmt: skip
            if mixed:
                measured[place[e:f]] = of_numbers[e:f]
                measure_symbols(states.symbols.rows, symbol_row, foreseen, c, d, measured, work.value)
            judge(
                states.streams.rows, states.single.rows, many, states.matrices.rows, work.slot, work.time,
                work.interval, work.start, work.lane, work.many_row, work.value, measured, self._rules,
                a, b, verdicts, masked, work.lapse,
            )  # fmt: skip
            if mixed:
                masked_numbers[e:f] = masked[place[e:f]]
            record(lanes["history"], numbers.lane, inputs, masked_numbers, e, f)

        self._parallel(work, scan)
        return measured, verdicts

    def _parallel(self, work: SortedBatch, scan: Callable[[int, int, int, int], None]) -> None:
        """Call scan(first event, last event, first observation, last observation) on stretches of whole streams."""
        events = len(work.slot)
        if self._pool is None or events < 2 * THREAD_EVENTS:
            scan(0, events, 0, len(work.lane))
            return
        edges = [0]
        for k in range(1, self.settings.threads):
            at = int(np.searchsorted(work.slot, work.slot[events * k // self.settings.threads]))
            edges.append(max(at, edges[-1]))
        edges.append(events)
        scans = [self._pool.submit(scan, a, b, int(work.start[a]), int(work.start[b])) for a, b in pairwise(edges)]
        wait(scans)  # all of them: where one raises, none may go on to change what is put back
        for done in scans:
            done.result()

    # -- what comes out ----------------------------------------------------------------------------------------------

    def _alerts(self, batch: EventBatch, judged: ScoredBatch) -> list[Alert]:
        """Carry open incidents' alerts on; return those that fire or resolve."""
        work, verdicts = judged.work, judged.verdicts
        changed = np.flatnonzero((verdicts["change"] != NONE) | verdicts["lapses"])
        alerts: list[Alert] = []
        for i in changed[np.argsort(work.event[changed])].tolist():
            slot, change = int(work.slot[i]), verdicts["change"][i]
            if verdicts["lapses"][i]:
                alerts.append(resolved(self._states.open_alerts.pop(slot), int(work.lapse[i]), SILENCE))
            if change == RESOLVES:
                alerts.append(resolved(self._states.open_alerts.pop(slot), int(work.time[i]), CALM))
            elif change in {FIRES, PEAKS}:
                above = self.settings.rules.critical_above_threshold
                alert = alert_of(batch, judged, i, self.streams.version, above, self._states.symbol_names)
                if change == PEAKS:
                    first = self._states.open_alerts[slot]
                    alert = replace(
                        alert, id=first.id, started_at=first.started_at,
                        topic=first.topic, partition=first.partition, offset=first.offset,
                    )  # fmt: skip
                else:
                    alerts.append(alert)
                self._states.open_alerts[slot] = alert
        return alerts

    def resolve_silent(self, silent: Mapping[str, float]) -> tuple[list[Alert], dict[str, float]]:
        """End the incidents of streams that have said nothing for so long, in seconds, by the others' time or a clock.

        Return their alerts, and of those that are not silent yet how long they may be. An alert says the same whenever
        this is called, and what the stream's own next event would have said: that its incident ended when it had fallen
        silent, by its own time. Scores do not depend on it.
        """
        alerts: list[Alert] = []
        patient: dict[str, float] = {}
        names = list(silent)
        for at in range(0, len(names), PACK_BATCH):
            some = names[at : at + PACK_BATCH]
            for name, slot in zip(some, self.streams.load(some).tolist(), strict=True):
                stream = self._states.streams.rows[slot]
                if slot not in self._states.open_alerts:
                    continue
                allowed = float(silence_of(stream["admission"]))
                if silent[name] <= allowed:
                    patient[name] = allowed
                    continue
                ended = int(stream["admission"]["time"]) + int(allowed * 1e9)
                alerts.append(resolved(self._states.open_alerts.pop(slot), ended, SILENCE))
                end_incident(stream)
                self.streams.mark_changed(np.array([slot]))
            self.streams.evict()
        return alerts, patient

    def pack(self, stream: str) -> bytes | None:
        """Return a stream's whole state: what a framework with state of its own keeps of it. None: it is not in memory.

        Some 31 KB of a stream of one feature. It holds all that scores and alerts of the stream's next events depend on
        but the weights, and is read by any engine with the same `horizons`.
        """
        return self.streams.pack(stream)

    def unpack(self, stream: str, state: bytes) -> None:
        """Give a stream the state that `pack` returned, here or in another process, in the place of what it has.

        Raises StateError for a state of another layout or damaged; the stream then starts without one.
        """
        self.streams.unpack(stream, state)

    @property
    def version(self) -> str:
        """Name of the weights in use."""
        return self.streams.version

    def use(self, model: Weights) -> None:
        """Score with other weights from the next event on; each lane is primed as its next event comes."""
        self._lanes.use(model)
        self.streams.use(model.fingerprint())

    def close(self) -> None:
        """End the threads."""
        if self._pool:
            self._pool.shutdown()
