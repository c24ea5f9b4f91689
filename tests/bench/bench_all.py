"""`longwatch bench` with a broker of its own for the end-to-end part: python -m tests.bench.bench_all [--quick].

Which broker: tests/brokers.py. Without one, the rest is measured all the same.
"""

from __future__ import annotations

import sys

from detector.cli import main as longwatch
from tests.brokers import BrokerError, find_broker


def main() -> None:
    """Start the broker, measure, and stop it."""
    try:
        broker = find_broker()
        broker.start()
    except BrokerError as error:
        print(error, file=sys.stderr)
        longwatch(["bench", *sys.argv[1:]])
        return
    try:
        print(f"broker: {broker.kind}", flush=True)
        longwatch(["bench", "--kafka", broker.bootstrap, *sys.argv[1:]])
    finally:
        broker.close()


if __name__ == "__main__":
    main()
