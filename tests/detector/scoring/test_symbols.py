"""Categorical streams through the engine: what scores high, what does not, and parity."""

import csv
import json
import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from connectors.encode import alert_record, score_records
from connectors.notify.standard_webhooks import webhook_body
from detector.checkpointing.store import SqliteStore
from detector.cli import main
from detector.engine import stages
from detector.engine.engine import Engine, EngineSettings
from detector.errors import StateError
from detector.observability.alert_text import describe
from detector.scoring.incidents import AlertRules
from detector.scoring.symbols import SYMBOL_ROW
from detector.state.names import SymbolNames
from tests.detector.engine.restarts import Store, assert_same, restarted, run_parts
from tests.streams import (
    FLEET_ROWS,
    MINUTE,
    WEEK,
    Event,
    Outcome,
    batch_of,
    clock,
    in_batches,
    interleaved,
    numbered,
    run,
    seasonal,
)
from training.network.weights import Weights

SETTLED, ROWS = 8000, 8200


def events_of(name: str, codes: list[str], start: int = 0, step: int = 5 * MINUTE) -> list[Event]:
    times = clock(len(codes), step)
    return [
        Event(name, int(t), {"code": code}, start + k) for k, (t, code) in enumerate(zip(times, codes, strict=True))
    ]


def codes_of(kind: str, seed: int, rows: int) -> list[str]:
    rng = np.random.default_rng(seed)
    if kind == "uniform":
        numbers = rng.integers(0, 20, rows)
    elif kind == "skewed":
        p = 1.0 / np.arange(1, 21) ** 1.2
        numbers = rng.choice(20, rows, p=p / p.sum())
    else:  # a loop of 25 steps, one in a hundred repeated or left out
        loop = np.random.default_rng(1).integers(0, 15, 25)
        steps = np.ones(rows, np.int64)
        odd = rng.random(rows) < 0.01
        steps[odd] = rng.choice([0, 2], odd.sum())
        numbers = loop[np.cumsum(steps) % 25]
    return [f"E{k}" for k in numbers]


def fired(outcome: Outcome, first: int, last: int) -> bool:
    return any(first <= alert.offset < last and alert.status == "firing" for alert in outcome.alerts)


@pytest.mark.parametrize("kind", ["uniform", "skewed", "loop"])
def test_a_new_symbol_in_a_settled_stream_alerts(model: Weights, kind: str) -> None:
    codes = codes_of(kind, 2, ROWS)
    codes[SETTLED] = "never seen"
    outcome = run(Engine(model), in_batches(events_of("log", codes), 1000))
    assert outcome.score[SETTLED] > outcome.threshold[SETTLED]
    assert outcome.surprise[SETTLED] > 6.0
    assert fired(outcome, SETTLED, SETTLED + 1)


def test_a_transition_never_seen_alerts(model: Weights) -> None:
    codes = codes_of("loop", 3, ROWS)
    pairs = set(pairwise(codes))
    codes[SETTLED] = next(code for code in sorted(set(codes)) if (codes[SETTLED - 1], code) not in pairs)
    outcome = run(Engine(model), in_batches(events_of("log", codes), 1000))
    assert outcome.score[SETTLED : SETTLED + 3].max() > outcome.threshold[SETTLED]
    assert fired(outcome, SETTLED, SETTLED + 3)


def test_a_burst_of_rare_symbols_alerts_where_a_single_one_does_not(model: Weights) -> None:
    codes = codes_of("skewed", 4, ROWS)
    rare = ["E16", "E17", "E18", "E19"]
    alone = run(Engine(model), in_batches(events_of("log", [*codes[:SETTLED], "E19"]), 1000))
    assert alone.score[SETTLED] < alone.threshold[SETTLED]
    codes[SETTLED : SETTLED + 12] = rare * 3
    outcome = run(Engine(model), in_batches(events_of("log", codes), 1000))
    assert fired(outcome, SETTLED, SETTLED + 12)


@pytest.mark.parametrize("kind", ["uniform", "skewed", "loop"])
def test_random_symbols_stay_within_the_alert_budget(model: Weights, kind: str) -> None:
    streams = [events_of(f"log {k}", codes_of(kind, 10 + k, WEEK // MINUTE), k * 100_000, MINUTE) for k in range(4)]
    outcome = run(Engine(model), in_batches([event for events in streams for event in events], 10_000))
    assert sum(alert.status == "firing" for alert in outcome.alerts) <= 2 * 4 * 3


def test_a_young_stream_is_warming_and_silent(model: Weights) -> None:
    outcome = run(Engine(model), in_batches(events_of("log", codes_of("uniform", 5, 400)), 100))
    assert outcome.warming[:60].all()
    assert not outcome.warming[60:].any()
    assert not outcome.score[:60].any()
    assert not outcome.alerts


def mixed(rng: np.random.Generator, name: str, features: int) -> list[Event]:
    """Numbers and a symbol together; the symbol is missing now and then, and comes first after 100 events."""
    time = clock(FLEET_ROWS)
    value = seasonal(rng, time)[:, None] + 0.3 * rng.standard_normal((FLEET_ROWS, features))
    codes = codes_of("skewed", int(rng.integers(100)), FLEET_ROWS)
    codes[700] = "once"
    events = []
    for k in range(FLEET_ROWS):
        values: dict[str, float | str] = {f"f{i}": float(x) for i, x in enumerate(value[k])}
        if k >= 100 and rng.random() < 0.9:
            values["code"] = codes[k]
        events.append(Event(name, int(time[k]), values))
    return events


@pytest.fixture(scope="module")
def streams() -> list[list[Event]]:
    rng = np.random.default_rng(6)
    time = clock(FLEET_ROWS)
    ever_new = [f"message {k}" if k % 3 else "start" for k in range(FLEET_ROWS)]
    odd = codes_of("loop", 7, 2 * FLEET_ROWS)
    odd[1500:1506] = ["x", "y", "z", "x", "x", "y"]
    long = clock(2 * FLEET_ROWS)
    later = [Event("numbers later", int(t), {"code": code}) for t, code in zip(long, odd, strict=True)]
    later = [e if k < 300 else e._replace(values={**e.values, "x": float(k % 7)}) for k, e in enumerate(later)]
    both: list[Event] = []  # the same name for a number and for a symbol
    for k, t in enumerate(time.tolist()):
        both.append(Event("both", t, {"code": float(k % 5)} if k % 2 else {"code": odd[k]}))
    made = [
        events_of("loop", [*codes_of("loop", 9, 2 * FLEET_ROWS), "x", "y", "z"]),
        events_of("ever new", ever_new),
        events_of("uniform", codes_of("uniform", 8, FLEET_ROWS)),
        mixed(rng, "two", 1),
        mixed(rng, "six", 5),
        later,
        both,
        [Event("numbers", int(t), {"value": float(x)}) for t, x in zip(time, seasonal(rng, time), strict=True)],
    ]
    return [numbered_from(k * 10_000, events) for k, events in enumerate(made)]


def numbered_from(first: int, events: list[Event]) -> list[Event]:
    return [event._replace(offset=first + event.offset) for event in numbered(events)]


@pytest.fixture(scope="module")
def reference(model: Weights, streams: list[list[Event]]) -> Outcome:
    return run(Engine(model), [batch_of(events) for events in streams])


def test_the_symbol_streams_of_these_tests_alert(reference: Outcome) -> None:
    assert {"loop", "numbers later"} <= {alert.stream for alert in reference.alerts}
    assert any(isinstance(value, str) for alert in reference.alerts for value in alert.observed.values())


@pytest.mark.parametrize("size", [1, 7, 256, 100_000])
def test_symbol_scores_do_not_depend_on_batches_or_interleaving(
    model: Weights, streams: list[list[Event]], reference: Outcome, size: int
) -> None:
    assert_same(run(Engine(model), in_batches(interleaved(streams, size), size)), reference)


def test_scores_do_not_depend_on_the_number_of_threads(
    model: Weights, streams: list[list[Event]], reference: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "THREAD_EVENTS", 1)
    engine = Engine(model, EngineSettings(threads=3))
    assert_same(run(engine, in_batches(interleaved(streams, 2), 500)), reference)
    engine.close()


def test_restoring_at_random_points_does_not_change_scores(
    model: Weights, streams: list[list[Event]], reference: Outcome
) -> None:
    events = interleaved(streams, 3)
    assert_same(run_parts(restarted(model, in_batches(events, 301), 3)), reference)


@pytest.mark.parametrize("most", [1, 3])
def test_eviction_and_return_do_not_change_symbol_scores(
    model: Weights, streams: list[list[Event]], reference: Outcome, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detector.state.names.SYMBOL_BYTES_KEPT", 40)  # so that names are swept all the time
    store = Store()
    engine = Engine(model, EngineSettings(max_streams=most), fetch=store.fetch)

    def drained() -> Iterator[object]:
        for number, batch in enumerate(in_batches(interleaved(streams, 4), 23)):
            if number % 4 == 3:
                store.save(engine)
            yield batch

    assert_same(run(engine, drained()), reference)  # type: ignore[arg-type]
    assert len(engine.streams.states.symbol_names) < 300


def test_restoring_into_an_engine_with_other_symbols_does_not_change_scores(
    model: Weights, streams: list[list[Event]], reference: Outcome
) -> None:
    events, store = interleaved(streams, 5), Store()
    half = len(events) // 2
    first, stranger = Engine(model), Engine(model, fetch=store.fetch)
    stranger.step(batch_of(events_of("stranger", [f"S{k}" for k in range(80)])))

    def parts() -> Iterator[tuple[Engine, object]]:
        for batch in in_batches(events[:half], 700):
            yield first, batch
        store.save(first)
        for batch in in_batches(events[half:], 700):
            yield stranger, batch

    assert_same(run_parts(parts()), reference)  # type: ignore[arg-type]


def test_a_replay_from_the_last_checkpoint_gives_the_same_symbol_scores(
    model: Weights, streams: list[list[Event]], reference: Outcome, tmp_path
) -> None:
    events = interleaved(streams, 6)
    cut, checkpoint = 4000, 2500
    store = SqliteStore(tmp_path)
    engine = Engine(model, fetch=store.load)
    before = [*in_batches(events[:checkpoint], 500)]
    kept = run(engine, before)
    store.save(engine.streams.drain(), {})
    run(engine, in_batches(events[checkpoint:cut], 500))  # scored, and lost with the process
    store.close()

    again = SqliteStore(tmp_path)
    rest = run(Engine(model, fetch=again.load), in_batches(events[checkpoint:], 500))
    again.close()
    score = dict(zip(reference.offset.tolist(), reference.score.tolist(), strict=True))
    for part in (kept, rest):
        assert part.score.tolist() == [score[offset] for offset in part.offset.tolist()]


def test_a_damaged_row_of_symbols_is_refused(model: Weights) -> None:
    engine = Engine(model)
    engine.step(batch_of(events_of("log", ["a", "b"])))
    ((_, row),) = engine.streams.drain()
    with pytest.raises(StateError, match="damaged"):
        Engine(model, fetch=lambda names: [row[:-8]]).step(batch_of(events_of("log", ["a"])))


def test_numeric_streams_take_no_memory_for_symbols(model: Weights) -> None:
    engine = Engine(model)
    engine.step(batch_of([Event("a", 1, {"value": 1.0}), Event("b", 1, {"x": 1.0, "y": 2.0})]))
    assert engine.streams.states.symbols.nbytes == 0
    engine.step(batch_of([Event("c", 1, {"code": "E1"})]))
    assert engine.streams.states.symbols.nbytes == SYMBOL_ROW.itemsize
    engine.streams.states.remove(engine.streams.states.slots["c"])
    assert engine.streams.states.symbols.allocate(1) == 0


def test_an_odd_symbol_among_many_features_leads_the_alert(model: Weights) -> None:
    rng = np.random.default_rng(9)
    time = clock(ROWS, MINUTE)
    value = seasonal(rng, time)[:, None] + 0.3 * rng.standard_normal((ROWS, 5))
    codes = codes_of("loop", 9, ROWS)
    codes[SETTLED : SETTLED + 3] = ["never", "before", "never"]
    events = [
        Event("mixed", int(t), {**{f"f{i}": float(x) for i, x in enumerate(row)}, "code": code}, k)
        for k, (t, row, code) in enumerate(zip(time, value, codes, strict=True))
    ]
    outcome = run(Engine(model), in_batches(events, 1000))
    alert = next(a for a in outcome.alerts if SETTLED <= a.offset < SETTLED + 3)
    assert max(alert.contributions, key=lambda name: alert.contributions[name]) == "code"
    assert math.isclose(sum(alert.contributions.values()), 1.0)
    assert isinstance(alert.observed["code"], str)
    assert isinstance(alert.observed["f0"], float)
    assert set(alert.lower) == {f"f{i}" for i in range(5)}


@pytest.mark.parametrize("rules", [AlertRules(direction=-1), AlertRules(min_deviation_absolute=1e9)])
def test_min_deviation_does_not_apply_to_symbols(model: Weights, rules: AlertRules) -> None:
    codes = codes_of("uniform", 2, ROWS)
    codes[SETTLED] = "never seen"
    outcome = run(Engine(model, EngineSettings(rules=rules)), in_batches(events_of("log", codes), 1000))
    assert fired(outcome, SETTLED, SETTLED + 1)


def test_scores_alerts_and_logs_name_symbols(model: Weights) -> None:
    codes = [f"step {k % 5}" for k in range(3000)]
    codes[2900] = "Connection <*> refused"
    engine, records, alerts = Engine(model), [], []
    for batch in in_batches(events_of("log", codes), 500):
        step = engine.step(batch)
        records += [json.loads(value) for _, value in score_records(step.scores)]
        alerts += step.alerts
    assert (records[0]["observed"], records[0]["expected"]) == ({"code": "step 0"}, {"code": None})
    odd, usual = records[2900], records[2899]
    assert (usual["observed"], usual["expected"]) == ({"code": "step 4"}, {"code": "step 4"})
    assert usual["observed_probability"] == usual["expected_probability"]
    assert (odd["observed"], odd["expected"]) == ({"code": "Connection <*> refused"}, {"code": "step 0"})
    assert odd["lower"] == odd["upper"] == {}
    assert odd["observed_probability"]["code"] < 1e-3 < 0.9 < odd["expected_probability"]["code"] <= 1
    assert odd["surprise"] == pytest.approx(-math.log(odd["observed_probability"]["code"]), rel=1e-4)

    alert = alerts[0]
    record = json.loads(alert_record(alert)[1])
    assert (record["observed"], record["expected"]) == (odd["observed"], odd["expected"])
    assert record["observed_probability"] == odd["observed_probability"]
    assert json.loads(webhook_body(alert))["data"] == record
    line = describe(alert)
    assert ": 'Connection <*> refused' (probability " in line
    assert "expected 'step 0' (" in line


def test_numeric_records_have_no_symbol_fields(model: Weights) -> None:
    scores = Engine(model).step(batch_of([Event("a", 1, {"value": 1.0}), Event("b", 1, {"code": "x"})])).scores
    numbers, symbols = (json.loads(value) for _, value in score_records(scores))
    assert "observed_probability" not in numbers
    assert "observed_probability" in symbols


def test_unused_symbol_names_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detector.state.names.SYMBOL_BYTES_KEPT", 10)
    names = SymbolNames()
    hashes = [names.hash_of(f"s{k}") for k in range(30)]
    rows = np.zeros(2, SYMBOL_ROW)
    rows["lane"]["symbol"][1, 1:4] = hashes[:3]
    names.sweep(rows)
    assert len(names) == 3
    assert [names.name_of(number) for number in hashes[:3]] == ["s0", "s1", "s2"]
    assert names.hash_of("s29") == hashes[29]


def test_a_backtest_of_a_log_finds_the_odd_line(tmp_path) -> None:
    codes = [f"step {k % 5}, done" for k in range(4000)]
    codes[3900] = 'said "no"'
    times = clock(len(codes), MINUTE) // 1_000_000_000
    log, table = tmp_path / "app.jsonl", tmp_path / "scores.csv"
    lines = [{"timestamp": int(t), "code": code} for t, code in zip(times, codes, strict=True)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))

    main(["backtest", str(log), "--output", str(table)])

    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    judged = ["score", "threshold", "alert", "rank", "channel", "return_period"]
    assert list(rows[0]) == ["timestamp", "stream", *judged, "expected", "lower", "upper"]
    alerting = [k for k, row in enumerate(rows) if row["alert"] == "1"]
    assert alerting == list(range(3900, 3900 + len(alerting)))
    assert 1 <= len(alerting) <= 20  # the running mean remembers it for some events
    assert rows[3900]["expected"] == "step 0, done"
    assert (rows[3900]["lower"], rows[3900]["upper"], rows[0]["expected"]) == ("", "", "")


def test_a_csv_column_of_symbols_is_scored_as_symbols(tmp_path) -> None:
    log, table = tmp_path / "app.csv", tmp_path / "scores.csv"
    rows = [f"{t},{'INFO' if k % 7 else 'WARN'},{k % 5}\n" for k, t in enumerate(clock(300, MINUTE) // 1_000_000_000)]
    log.write_text("timestamp,level,ms\n" + "".join(rows))

    main(["backtest", str(log), "--output", str(table), "--set", "decode.code=level"])

    with table.open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert last["expected_code"] in {"INFO", "WARN"}
    assert float(last["lower_ms"]) <= float(last["expected_ms"]) <= float(last["upper_ms"])
