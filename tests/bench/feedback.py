"""What verdicts are worth: each false alarm of a stream's first half is called false; its second half is counted.

    python -m tests.bench.feedback [SET ...] [--every N]

An alert is false if it fires outside every labelled segment; a segment is found if an alerted row lies in it. The
engine's own kernels run, stream by stream, without retraining: so what is learnt of a false alarm's span is not in it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.scoring.batch import MEASURED, VERDICT, Forecasts, Numbers, SortedBatch, Tables, Verdicts
from detector.scoring.called_false import call_false, has_kinds
from detector.scoring.claims import SEVERAL
from detector.scoring.incidents import FIRES, RENEWS, AlertRules, end_incident
from detector.scoring.judge import judge
from detector.scoring.rules import StreamRules
from detector.scoring.verdicts import taught
from detector.state.records import STREAM, lane_row
from tests.bench.data import DataMissing, LabelledSeries, data_folder
from tests.bench.quality import SETS
from training.evaluate import segments
from training.network.compiled import compiled
from training.network.inputs import FRAME, INPUT_SIZE, MAX_VALUE, Observations, carried_interval, featurise
from training.network.kernels import Network
from training.network.weights import load_prior

STRETCH = 4_000  # rows judged at once, and again up to an alert that is called false
WEIGHTS = load_prior()
NETWORK = Network(WEIGHTS)
RULES = StreamRules(AlertRules()).table()
HORIZONS = np.array(WEIGHTS.shape.horizons, np.int64)


class Counted(NamedTuple):
    """False alarms and labelled segments of a stream's judged halves."""

    false_first: int = 0
    false_second: int = 0
    found: int = 0  # of the second half, as `labelled`
    labelled: int = 0


@compiled
def _intervals(times: NDArray[np.int64]) -> NDArray[np.float64]:
    found, interval = np.zeros(len(times)), 0.0
    for i in range(1, len(times)):
        interval = carried_interval(interval, i, (times[i] - times[i - 1]) * 1e-9)
        found[i] = interval
    return found


class Stream:
    """A series and its forecasts, which verdicts do not change."""

    def __init__(self, one: LabelledSeries) -> None:
        values = np.asarray(one.values, np.float64).reshape(len(one.times), -1)
        times, present = np.asarray(one.times, np.int64), ~np.isnan(values)
        counts, self._lanes = present.sum(axis=1), values.shape[1]
        start = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        lane, at = np.nonzero(present)[1].astype(np.int64), np.arange(start[-1])
        time, value = np.repeat(times, counts), np.clip(values[present], -MAX_VALUE, MAX_VALUE)
        rows, row_type = len(times), lane_row(WEIGHTS.shape.horizons)
        inputs, frames = np.empty((len(at), INPUT_SIZE), np.float32), np.empty(len(at), FRAME)
        featurise(
            np.zeros(self._lanes, row_type)["input"], Observations(lane, time, value, time), 0, len(at), inputs, frames
        )
        outputs = np.empty((len(at), WEIGHTS.shape.output_size), np.float32)
        hidden = np.zeros((self._lanes, WEIGHTS.shape.state_size), np.float32)
        NETWORK.step(lane, inputs, hidden, 0, len(at), outputs)
        none = np.zeros(rows, np.int64)
        self._batch = SortedBatch(
            event=np.arange(rows), slot=none, time=times, interval=_intervals(times), lapse=none, start=start,
            observation=at, lane=lane, value=value, symbol=np.zeros(len(at), np.int64), local=times, muted=none > 0,
        )  # fmt: skip
        self._numbers = Numbers(start, at, lane, time, value, time)
        self._forecasts = Forecasts(HORIZONS, frames, outputs)
        self._label = np.zeros(rows, np.bool_)
        self._label[one.judged_from :] = one.label
        self._first, self._half = one.judged_from, (one.judged_from + rows) // 2

    def count(self, *, feedback: bool) -> Counted:
        """Judge the series, with its first half's false alarms called false or not."""
        rows, observations = len(self._label), len(self._batch.lane)
        streams, lanes = np.zeros(1, STREAM), np.zeros(self._lanes, lane_row(WEIGHTS.shape.horizons))
        streams["lanes"] = self._lanes
        out = Verdicts(np.zeros(observations, MEASURED), np.zeros(rows, VERDICT), np.zeros(observations, np.bool_))

        def run(first: int, last: int) -> None:
            judge(Tables(streams, lanes), self._batch, self._numbers, self._forecasts, RULES, (first, last), out)

        at = 0
        while feedback and at < self._half:
            end, before = min(at + STRETCH, self._half), (streams.copy(), lanes.copy())
            run(at, end)
            wrong = self._false(out.verdicts[at:end], at)
            wrong = wrong[wrong >= self._first]
            if len(wrong):
                streams[:], lanes[:] = before
                end = int(wrong[0]) + 1
                run(at, end)
                self._teach(streams, out, end - 1)
                end_incident(streams[0])
            at = end
        run(at, rows)
        wrong = self._false(out.verdicts, 0)
        later = [out.verdicts["alert"][a:b].any() for a, b in segments(self._label).tolist() if a >= self._half]
        return Counted(
            int(((wrong >= self._first) & (wrong < self._half)).sum()),
            int((wrong >= self._half).sum()),
            sum(later),
            len(later),
        )

    def _teach(self, streams: NDArray[np.void], out: Verdicts, at: int) -> None:
        stream, verdict = streams[0], out.verdicts[at]
        channel = int(verdict["channel"])
        lead = max(int(verdict["lead"]), 0)
        place, error = int(self._batch.lane[lead]), float(out.measured["error"][lead])
        of_a_kind = bool(stream["score"]["width"] < SEVERAL and has_kinds(channel, error))
        if of_a_kind:
            call_false(stream["score"]["recurrence"], place, error, channel, int(self._batch.time[at]))
        streams["lift"] = taught(int(streams["lift"][0]), "false", "", of_a_kind=of_a_kind)

    def _false(self, verdicts: NDArray[np.void], at: int) -> NDArray[np.int64]:
        fired = at + np.flatnonzero(np.isin(verdicts["change"], (FIRES, RENEWS)))
        return fired[~self._label[fired]]


def _sum(counted: Sequence[Counted]) -> Counted:
    return Counted(*(sum(column) for column in zip(*counted, strict=True)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line a set."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.feedback", description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", default=["nab", "aiops", "asd", "wsd", "smd"])
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only each N-th stream of a set")
    asked = parser.parse_args(arguments)
    print("| set | streams | false alarms of the first half | of the second, without and with | | recall there | |")
    print("|---|---|---|---|---|---|---|")
    for name in asked.sets:
        plain, taught_ = [], []
        try:
            for number, one in enumerate(SETS[name](data_folder(name))):
                if number % asked.every == 0:
                    stream = Stream(one)
                    plain.append(stream.count(feedback=False))
                    taught_.append(stream.count(feedback=True))
        except DataMissing as missing:
            print(f"{name}: left out: {missing}")
            continue
        a, b = _sum(plain), _sum(taught_)
        fewer = f"{100 * (b.false_second / a.false_second - 1):+.0f} %" if a.false_second else "-"
        points = f"{100 * (b.found - a.found) / a.labelled:+.1f} points" if a.labelled else "-"
        recall = f"{a.found}, {b.found} of {a.labelled}"
        print(
            f"| {name} | {len(plain)} | {a.false_first} | {a.false_second}, {b.false_second} | {fewer} | {recall}"
            f" | {points} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
