"""What a categorical lane has counted, compiled for a CPU: its vocabulary, and what its counts say of the next event.

A lane keeps a vocabulary of its own: the last SLOTS symbols it showed, each at a slot, 1 to SLOTS, in the order of
their appearance; when all are taken, a new symbol gets the slot of the one not seen for longest. Slot 0 stands for
"a symbol that has no slot". So a distribution over 0..SLOTS is one over every symbol there can be.

A lane counts symbols (slowly and quickly forgotten), pairs, and what follows pairs. Each count is an expert whose
log-probabilities the network mixes (`network.py` has the equations).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.network.compiled import compiled

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
LaneRow = Any  # a row of LANE_SYMBOLS: compiled code reads its fields as attributes

SLOTS = 64
SIZE = SLOTS + 1  # with slot 0
HIDDEN = 32  # units of the network
EXPERTS = 5  # slow, quick, pairs, triples, and how long ago a symbol was last seen
SCORED_EXPERTS = 4  # those that are probabilities, whose recent record is kept
STATISTICS = 10
NEW = 128  # a bit above every slot
RECENT = 64  # events kept, to give the lane a hidden state again when the network changes

SLOW_GROWTH = 2.0 ** (1.0 / 4000.0)  # half-lives in events of the counts of single symbols
QUICK_GROWTH = 2.0 ** (1.0 / 100.0)
MAX_WEIGHT = 1e6  # weight of an event at which the counts are scaled down
PAIR_STEP, PAIR_LIMIT = 8, 16_384  # a pair counts 8; a row's sum halves at 2,048 events, so that 3 halvings forget one
TRIPLES, FOLLOWERS = 512, 6  # contexts of two symbols that are remembered, and followers of each
TRIPLE_STEP, TRIPLE_LIMIT = 4, 250
SMOOTHING = 0.5  # events' worth of belief in the less particular expert
RECORD_DECAY = 0.03  # of the experts' recent record: a memory of some 30 events
RECORD_WARM_UP = 256  # events after which what the record began with is forgotten

LANE_SYMBOLS = np.dtype(
    [
        ("events", np.int64),
        ("network", np.int64),  # which weights the hidden state belongs to
        ("used", np.int32),  # slots taken
        ("previous", np.int32),  # slot of the last symbol and of the one before; 0: none yet
        ("before", np.int32),
        ("symbol", np.int64, SIZE),  # hash, by slot
        ("seen", np.int64, SIZE),  # event at which each was last seen; at 0: a new one
        ("slow", np.float32, SIZE),
        ("quick", np.float32, SIZE),
        ("slow_weight", np.float64),
        ("slow_mass", np.float64),
        ("quick_weight", np.float64),
        ("quick_mass", np.float64),
        ("record", np.float32, SCORED_EXPERTS),  # each expert's running mean of log p
        ("pairs", np.uint16, (SIZE, SIZE)),
        ("pair_mass", np.int32, SIZE),
        ("context", np.uint16, TRIPLES),  # which two symbols; 0: free
        ("context_mass", np.uint16, TRIPLES),
        ("follower", np.uint8, (TRIPLES, FOLLOWERS)),
        ("follower_count", np.uint8, (TRIPLES, FOLLOWERS)),
        ("hidden", np.float32, HIDDEN),  # the network's state after the last event
        ("cell", np.float32, HIDDEN),
        ("recent", np.uint8, RECENT),  # slots of the last events, plus NEW where the symbol was new
    ],
    align=True,
)


@compiled
def slot_of(r: LaneRow, symbol: int) -> int:
    """Return a symbol's slot, 0 if it has none."""
    for slot in range(1, r.used + 1):
        if r.symbol[slot] == symbol:
            return slot
    return 0


@compiled(inline="always")
def _triple_of(before: int, previous: int) -> int:
    return ((before * SIZE + previous) * 40503 >> 4) % TRIPLES


@compiled(error_model="numpy")
def expert_log_probs(r: LaneRow, x: Float32, statistics: Float32) -> None:
    """Write what the lane's counts say of the next event: x [EXPERTS, SIZE], statistics [STATISTICS].

    Of x the columns 0..used are written: log-probabilities, and minus the log of the events since each was seen.
    """
    used = r.used
    slow_mass, quick_mass = 0.0, 0.0
    slow_unit, quick_unit = 0.0, 0.0
    if r.events > 0:
        slow_mass, quick_mass = r.slow_mass / r.slow_weight, r.quick_mass / r.quick_weight
        slow_unit, quick_unit = 1.0 / r.slow_weight, 1.0 / r.quick_weight
    pair_mass = r.pair_mass[r.previous] / PAIR_STEP
    triple = _triple_of(r.before, r.previous)
    triple_mass = 0.0
    known = r.before > 0 and r.context[triple] == r.before * SIZE + r.previous
    if known:
        triple_mass = r.context_mass[triple] / TRIPLE_STEP
    slow_scale, quick_scale = 1.0 / (slow_mass + SMOOTHING), 1.0 / (quick_mass + SMOOTHING)
    pair_scale, triple_scale = 1.0 / (pair_mass + SMOOTHING), 1.0 / (triple_mass + SMOOTHING)
    share = 0.5 / used if used > 0 else 0.0  # half of the smoothing goes to slot 0, all of it in an empty lane
    pairs = r.pairs[r.previous]
    for slot in range(used + 1):
        uniform = share if slot > 0 else (0.5 if used > 0 else 1.0)
        slow = (r.slow[slot] * slow_unit + SMOOTHING * uniform) * slow_scale
        quick = (r.quick[slot] * quick_unit + SMOOTHING * slow) * quick_scale
        pair = (pairs[slot] * (1.0 / PAIR_STEP) + SMOOTHING * slow) * pair_scale
        x[0, slot] = slow
        x[1, slot] = quick
        x[2, slot] = pair
        x[3, slot] = SMOOTHING * pair * triple_scale
        x[4, slot] = r.events - r.seen[slot] + 1
    if known:
        for k in range(FOLLOWERS):
            count = r.follower_count[triple, k]
            if count > 0:
                x[3, r.follower[triple, k]] += np.float32(count * (1.0 / TRIPLE_STEP) * triple_scale)
    for expert in range(SCORED_EXPERTS):
        for slot in range(used + 1):
            x[expert, slot] = math.log(x[expert, slot])
    for slot in range(used + 1):
        x[4, slot] = -0.5 * math.log(x[4, slot])
    for expert in range(SCORED_EXPERTS):
        statistics[expert] = max(r.record[expert], -6.0) / 3.0
    statistics[4] = math.log1p(pair_mass) / 4.0
    statistics[5] = math.log1p(triple_mass) / 3.0
    statistics[6] = math.log1p(slow_mass) / 6.0
    statistics[7] = math.log1p(used) / 3.0
    statistics[8] = x[4, 0] / 3.0
    statistics[9] = x[0, 0] / 6.0


@compiled
def _halve(counts: NDArray[np.unsignedinteger[Any]]) -> int:
    """Halve counts, rounding down; return their sum."""
    mass = 0
    for k in range(len(counts)):
        counts[k] >>= 1
        mass += counts[k]
    return mass


@compiled
def _forget(r: LaneRow, slot: int) -> None:
    """Clear the counts of a slot that another symbol takes over."""
    r.slow_mass -= r.slow[slot]
    r.quick_mass -= r.quick[slot]
    r.slow[slot] = r.quick[slot] = 0.0
    r.pair_mass[slot] = 0
    for other in range(SIZE):
        r.pairs[slot, other] = 0
        r.pair_mass[other] -= r.pairs[other, slot]
        r.pairs[other, slot] = 0
    for triple in range(TRIPLES):
        if r.context[triple] == 0:
            continue
        if r.context[triple] // SIZE == slot or r.context[triple] % SIZE == slot:
            r.context[triple] = r.context_mass[triple] = 0
            for k in range(FOLLOWERS):
                r.follower_count[triple, k] = 0
            continue
        for k in range(FOLLOWERS):
            if r.follower[triple, k] == slot and r.follower_count[triple, k] > 0:
                r.context_mass[triple] -= r.follower_count[triple, k]
                r.follower_count[triple, k] = 0
    if r.before == slot:
        r.before = 0
    for k in range(RECENT):
        if r.recent[k] % NEW == slot:
            r.recent[k] = NEW


@compiled
def _learn_triple(r: LaneRow, slot: int) -> None:
    triple, context = _triple_of(r.before, r.previous), r.before * SIZE + r.previous
    if r.context[triple] != context:  # of other symbols: each time it is met it loses half
        r.context_mass[triple] = _halve(r.follower_count[triple])
        if r.context_mass[triple] >= TRIPLE_STEP:
            return
        for k in range(FOLLOWERS):
            r.follower_count[triple, k] = 0
        r.context[triple], r.context_mass[triple] = context, 0
    chosen = 0
    for k in range(FOLLOWERS):
        if r.follower_count[triple, k] > 0 and r.follower[triple, k] == slot:
            chosen = k
            break
        if r.follower_count[triple, k] < r.follower_count[triple, chosen]:
            chosen = k
    if r.follower[triple, chosen] != slot:
        r.context_mass[triple] -= r.follower_count[triple, chosen]
        r.follower[triple, chosen], r.follower_count[triple, chosen] = slot, 0
    r.follower_count[triple, chosen] += TRIPLE_STEP
    r.context_mass[triple] += TRIPLE_STEP
    if r.follower_count[triple, chosen] > TRIPLE_LIMIT:
        r.context_mass[triple] = _halve(r.follower_count[triple])


@compiled
def count(r: LaneRow, symbol: int, found: int) -> int:
    """Count a symbol that was found at a slot (0: at none); return the slot it has from now on."""
    if r.events == 0:
        r.slow_weight = r.quick_weight = 1.0
    else:
        r.slow_weight *= SLOW_GROWTH
        r.quick_weight *= QUICK_GROWTH
    if r.slow_weight > MAX_WEIGHT:
        for k in range(SIZE):
            r.slow[k] *= np.float32(1.0 / MAX_WEIGHT)
        r.slow_mass /= MAX_WEIGHT
        r.slow_weight /= MAX_WEIGHT
    if r.quick_weight > MAX_WEIGHT:
        for k in range(SIZE):
            r.quick[k] *= np.float32(1.0 / MAX_WEIGHT)
        r.quick_mass /= MAX_WEIGHT
        r.quick_weight /= MAX_WEIGHT

    # under the slot that it had before, so that new symbols count for slot 0
    r.slow[found] += np.float32(r.slow_weight)
    r.slow_mass += r.slow_weight
    r.quick[found] += np.float32(r.quick_weight)
    r.quick_mass += r.quick_weight
    if r.previous > 0:
        r.pairs[r.previous, found] += PAIR_STEP
        r.pair_mass[r.previous] += PAIR_STEP
        if r.pair_mass[r.previous] >= PAIR_LIMIT:
            r.pair_mass[r.previous] = _halve(r.pairs[r.previous])
        if r.before > 0:
            _learn_triple(r, found)

    slot = found
    if found == 0:
        r.seen[0] = r.events
        if r.used < SLOTS:
            r.used += 1
            slot = r.used
        else:
            slot = 1
            for k in range(2, SIZE):
                if r.seen[k] < r.seen[slot]:
                    slot = k
            previous = r.previous
            _forget(r, slot)
            r.previous = 0 if previous == slot else previous
        r.symbol[slot] = symbol
    r.seen[slot] = r.events
    r.recent[r.events % RECENT] = slot + (NEW if found == 0 else 0)
    r.events += 1
    r.before, r.previous = r.previous, slot
    return slot


@compiled
def update_expert_record(r: LaneRow, x: Float32, found: int) -> None:
    """Add what each expert gave to the symbol that came to its recent record."""
    for expert in range(SCORED_EXPERTS):
        r.record[expert] += np.float32(RECORD_DECAY) * (max(x[expert, found], np.float32(-12.0)) - r.record[expert])


@compiled
def rarity(r: LaneRow, found: int) -> float:
    """Return -log of the share of past events, slowly forgotten, that were this symbol or a rarer one, in nats.

    The network adapts to a burst within some events; this does not.
    """
    if r.events == 0:
        return 0.0
    smoothing = SMOOTHING * r.slow_weight
    rarer = smoothing
    for slot in range(r.used + 1):
        if r.slow[slot] <= r.slow[found]:
            rarer += r.slow[slot]
    return -math.log(min(rarer / (r.slow_mass + smoothing), 1.0))


@compiled
def replay_counts(
    lanes: LaneRow,  # LANE_SYMBOLS [lanes], carried on
    symbols: Int64,  # [lanes, rows]
    from_row: int,
    out: Any,  # network.SymbolSequences of arrays, of the rows from `from_row` on
) -> None:
    """Take sequences through counting alone, and write what the network would see from a row on: for its training."""
    x, statistics = np.zeros((EXPERTS, SIZE), np.float32), np.zeros(STATISTICS, np.float32)
    for lane in range(len(lanes)):
        r = lanes[lane]
        for row in range(symbols.shape[1]):
            found, t = slot_of(r, symbols[lane, row]), row - from_row
            if t >= -RECORD_WARM_UP:
                expert_log_probs(r, x, statistics)
                update_expert_record(r, x, found)
            if t >= 0:
                out.x[t, lane, :, : r.used + 1] = x[:, : r.used + 1]
                out.statistics[t, lane] = statistics
                out.used[t, lane], out.found[t, lane] = r.used, found
            slot = count(r, symbols[lane, row], found)
            if t >= 0:
                out.slot[t, lane] = slot
