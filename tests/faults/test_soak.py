"""Two workers for half an hour, killed and stopped while they retrain every minute: each event is scored once.

`LONGWATCH_FAULTS=1 pytest tests/faults/test_soak.py -s`; LONGWATCH_SOAK_MINUTES sets another length. Scores cannot be
compared with an undisturbed run's: which network scores an event depends on when a retraining ended.
"""

from __future__ import annotations

import os
import random
import time
import uuid
from collections import Counter
from pathlib import Path

import pytest

from tests.brokers import Broker
from tests.daemon.support import Receiver, make_fleet, until
from tests.faults.support import Stream, Topics, scored_events, webhook_ids
from tests.faults.test_chaos import Workers, done

MINUTES = float(os.environ.get("LONGWATCH_SOAK_MINUTES", "30"))
STREAMS = 80  # of which a worker has half: a retraining wants 32
EVENTS_PER_SECOND = 200
PAUSES = (2.0, 20.0, 60.0, 120.0)  # s between two deeds: some workers live to retrain, some do not live to score


@pytest.mark.kafka
@pytest.mark.faults
@pytest.mark.timeout(MINUTES * 60 + 1800)
def test_two_workers_that_retrain_lose_and_double_nothing(
    tmp_path: Path, apache: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(12)
    deeds: Counter[str] = Counter()
    fleet = make_fleet(STREAMS, round(MINUTES * 60 * EVENTS_PER_SECOND / STREAMS), seed=8)
    with Receiver() as receiver:
        topics = Topics(apache, tmp_path, uuid.uuid4().hex[:8], receiver)
        retraining = {"training__enabled": True, "training__interval_seconds": 60, "training__budget_seconds": 10}
        with Stream(topics, fleet) as stream, Workers(topics, **retraining) as workers:
            for name in "ac":
                workers.start(name)
            began = deed_at = time.monotonic()
            while (elapsed := time.monotonic() - began) < MINUTES * 60:
                stream.until(elapsed * EVENTS_PER_SECOND)
                if time.monotonic() >= deed_at and scored_events(topics):
                    deed = rng.choice(("kill", "kill", "kill both", "leave and come back"))
                    for name in sorted(workers.running) if deed == "kill both" else [rng.choice("ac")]:
                        if deed == "leave and come back":
                            workers.leave(name)
                            workers.start(name)
                        else:
                            workers.kill(name)
                    deeds[deed] += 1
                    deed_at = time.monotonic() + rng.choice(PAUSES)
                time.sleep(0.1)
            stream.finish()
            done(topics, stream.total, 600.0, workers)
            wanted = webhook_ids(topics.alerted())
            until(lambda: wanted <= set(receiver.ids), "every alert is delivered")
            workers.stop()
        delivered = list(receiver.taken)
        assert not receiver.refused
    found, told = topics.scored(), topics.alerted()
    times = Counter((record["partition"], record["offset"]) for record in found)
    models = Counter(record["model_version"] for record in found)
    lost, doubled = stream.total - len(times), sum(count > 1 for count in times.values())
    assert not lost
    assert not doubled
    assert len({(alert["id"], alert["status"]) for alert in told}) == len(told), "each alert is told once"
    assert {d.id for d in delivered} == webhook_ids(told), "webhooks, by id"
    assert told, "there must be alerts to lose"
    assert len(models) > 1, "there must be a retrained network in use"
    again = len(delivered) - len({d.id for d in delivered})
    with capsys.disabled():
        print(
            f"\n  {MINUTES:g} minutes, {', '.join(f'{count} times {deed}' for deed, count in sorted(deeds.items()))}:"
            f" {len(found):,} events, {lost} lost, {doubled} twice; {len(models)} networks in use;"
            f" {len(told)} alerts told once each; {len(delivered)} webhooks, {again} of them again under the same id"
        )
