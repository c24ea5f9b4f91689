"""Records/s of decoding on one thread, by CPU time, so that other work on the machine does not count.

Run as: python -m tests.bench.bench_decode
"""

import json
import time

from connectors.batches import CsvLayout, Partition, RawBatch
from connectors.decode.decoder import Decoder, DecodeSettings

RECORDS = 100_000
BATCH = 10_000
STREAMS = 1_000
START = 1_763_600_000
RECEIVED_MS = START * 1_000


def text_time(number):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(START + number // STREAMS))


def default_one(number):
    name = f"web-{number % STREAMS}/cpu"
    return json.dumps({"stream": name, "timestamp": text_time(number), "value": number / 7})


def default_four(number):
    values = {name: number / 7 + i for i, name in enumerate(("user", "system", "idle", "wait"))}
    return json.dumps({"stream": f"web-{number % STREAMS}", "timestamp": text_time(number), "values": values})


def one_code(number):
    name = f"web-{number % STREAMS}/log"
    return json.dumps({"stream": name, "timestamp": text_time(number), "code": f"E{number % 29}"})


def every_time_another(number):
    return json.dumps({"stream": f"web-{number % STREAMS}", "timestamp": START + number / 1e3, "value": number / 7})


def telegraf(number):
    fields = {"usage_user": number / 7, "usage_system": 0.5}
    tags = {"host": f"web-{number % STREAMS}", "cpu": "cpu0"}
    return json.dumps({"name": "cpu", "tags": tags, "fields": fields, "timestamp": START + number // STREAMS})


def prometheus(number):
    labels = {"__name__": "up", "instance": f"web-{number % STREAMS}", "job": "node"}
    return json.dumps({"timestamp": text_time(number), "value": str(number / 7), "name": "up", "labels": labels})


def csv_row(number):
    return f"{text_time(number)},web-{number % STREAMS},{number / 7}"


def broken(number):
    return f'{{"stream": "web-{number}", "value": NaN'


CASES = {
    "default JSON, one value": (default_one, DecodeSettings()),
    "default JSON, four values": (default_four, DecodeSettings()),
    "default JSON, a code": (one_code, DecodeSettings()),
    "default JSON, no time twice": (every_time_another, DecodeSettings()),
    "Telegraf JSON, two fields": (telegraf, DecodeSettings(stream="{tags.host}/{tags.cpu}", values="fields")),
    "prometheus-kafka-adapter": (prometheus, DecodeSettings(stream="{labels.instance}/{name}")),
    "CSV rows": (csv_row, DecodeSettings()),
    "broken JSON": (broken, DecodeSettings()),
}


def batches(make):
    values = [make(number).encode() for number in range(RECORDS)]
    layout = {0: CsvLayout(3, 0, 1, ((2, "value"),))} if make is csv_row else {}
    for begin in range(0, RECORDS, BATCH):
        part = values[begin : begin + BATCH]
        count = len(part)
        offsets = list(range(begin, begin + count))
        yield RawBatch(
            [Partition("metrics", 0)], [0] * count, offsets, [RECEIVED_MS] * count, [None] * count, part, csv=layout
        )


def main():
    for name, (make, settings) in CASES.items():
        decoder = Decoder(settings)
        prepared = list(batches(make))
        best = float("inf")
        for _ in range(5):
            begin = time.process_time()
            for raw in prepared:
                decoder.decode(raw)
            best = min(best, time.process_time() - begin)
        print(f"{name:30} {RECORDS / best:>12,.0f} records/s {best / RECORDS * 1e6:6.2f} us a record")


if __name__ == "__main__":
    main()
