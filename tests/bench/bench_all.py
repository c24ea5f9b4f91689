"""Engine and network on one core, then ingest: python -m tests.bench.bench_all [--quick] [--set SECTION.NAME=VALUE].

Which broker: tests/brokers.py. Without one, the engine is measured all the same.
"""

from __future__ import annotations

import argparse
import sys

from detector.config.settings import load_settings
from tests.bench.engine import compare
from tests.bench.ingest import measure
from tests.brokers import BrokerError, find_broker


def main() -> None:
    """Measure the engine; start the broker, measure from it, and stop it."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_all")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work: figures are rough")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.NAME=VALUE", help="one setting")
    options = parser.parse_args()
    settings = load_settings(overrides=options.set)
    compare(load_settings(overrides=["compute.threads=1", *options.set]), quick=options.quick)
    try:
        broker = find_broker()
        broker.start()
    except BrokerError as error:
        print(error, file=sys.stderr)
        return
    try:
        print(f"\nbroker: {broker.kind}", flush=True)
        measure(settings, broker.bootstrap, quick=options.quick)
    finally:
        broker.close()


if __name__ == "__main__":
    main()
