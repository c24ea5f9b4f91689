"""The command line: longwatch run | demo | train | backtest | bench | config | completion.

What a command needs is imported once it is asked for: settings take a quarter of a second, numba half, torch some
seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detector import __version__
from detector.commands.completion import add_completion
from detector.service.signals import Signals, end_as_any_process, leave

if TYPE_CHECKING:
    from connectors.batches import Scores
    from detector.commands.smooth import ScoredHistory
    from detector.config.settings import Settings

FAILED, USAGE = 1, 2

_EXAMPLES = {
    "run": """examples:
  longwatch run --config longwatch.toml
  longwatch run --set kafka.bootstrap_servers=broker:9092 --set 'kafka.topics=["metrics"]'
  tail -F metrics.jsonl | longwatch run --set source.type=file --set 'source.paths=["-"]'""",
    "demo": """examples:
  longwatch demo
  longwatch demo --output /tmp/demo""",
    "train": """examples:
  longwatch train history/*.csv --output models
  longwatch train --from-kafka --output models --set 'kafka.topics=["metrics"]'
  longwatch train history/*.csv --output models --diagnose
  torchrun --nproc-per-node 2 -m detector.cli train history/*.csv --output models""",
    "backtest": """examples:
  longwatch backtest cpu.csv --output scores.csv
  longwatch backtest *.csv.gz --output scores.csv --labels incidents.csv
  longwatch backtest cpu.csv --output history.csv --smooth
  longwatch backtest cpu.csv --output - | head""",
    "bench": """examples:
  longwatch bench
  longwatch bench --set compute.threads=1 --quick""",
    "config": """examples:
  longwatch config --config longwatch.toml
  longwatch config --schema > longwatch.schema.json
  longwatch config --config longwatch.toml --check""",
}


_LOOKS_AHEAD = "They look ahead: for labelling and post-mortems, never for judging a detector."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exit 0, 1 (it failed) or 2 (usage or settings), with one line for what a user can mend."""
    options = _parser().parse_args(arguments)
    if options.command is _run:
        Signals(leave).take()  # before all that takes time
    else:
        end_as_any_process()
    from connectors.errors import UserError  # noqa: PLC0415
    from detector.config.settings import SettingsError, load_settings  # noqa: PLC0415
    from detector.observability.log_format import set_up_logging  # noqa: PLC0415
    from training.errors import UserError as TrainingUserError  # noqa: PLC0415

    try:
        settings = load_settings(options.config, overrides=options.set, secrets=options.secrets)
    except SettingsError as error:
        _fail(error, USAGE)
    set_up_logging(settings.logging.level, settings.logging.format)
    command: Callable[[Settings, argparse.Namespace], None] = options.command
    try:
        command(settings, options)
        sys.stdout.flush()  # what cannot be written is told, too
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `| head` has enough
        _give_up_output()
        sys.exit(FAILED)
    except SettingsError as error:
        _fail(error, USAGE)
    except (UserError, TrainingUserError, OSError) as error:
        _give_up_output()
        _fail(error, FAILED)


def _give_up_output() -> None:
    """Let go of what standard output does not take: nobody is told of it again as Python ends."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", type=Path, metavar="FILE", help="settings to read: longwatch.toml")
    common.add_argument(
        "--set", action="append", default=[], metavar="SECTION.NAME=VALUE", help="one setting; may be repeated"
    )
    common.add_argument(
        "--secrets", type=Path, metavar="DIR", help="folder of files such as longwatch_webhook__secret (/run/secrets)"
    )
    parser = argparse.ArgumentParser(
        prog="longwatch", description="Watches event streams and says when one stops behaving like itself."
    )
    parser.add_argument("--version", action="version", version=f"longwatch {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, command: Callable[[Settings, argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, parents=[common], help=text, description=text, epilog=_EXAMPLES[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        sub.set_defaults(command=command)
        return sub

    add("run", _run, "Run the daemon.")
    demo = add("demo", _demo, "Replay bundled real data through the whole pipeline; no Kafka needed.")
    demo.add_argument("--output", type=Path, default=Path("out/demo"), help="folder for pictures and scores")
    train = add("train", _train, "Train a model on history, for model.directory.")
    train.add_argument("files", nargs="*", metavar="FILE", help="CSV or JSON lines, .gz or not")
    train.add_argument(
        "--from-kafka", action="store_true",
        help="instead of files: all that the topics of section [kafka] hold now; no group is joined",
    )  # fmt: skip
    train.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the model registry")
    train.add_argument(
        "--diagnose", nargs="?", type=Path, const=Path(), metavar="FILE.html",
        help="write a page with plots of how it went (default: DIR.html, beside the folder)",
    )  # fmt: skip
    back = add("backtest", _backtest, "Score history with the daemon's engine; write a row for each event.")
    back.add_argument("files", nargs="+", metavar="FILE", help="CSV or JSON lines, .gz or not")
    back.add_argument("--output", type=Path, metavar="CSV", help="table to write; -: to standard output")
    back.add_argument("--labels", type=Path, metavar="FILE", help="labelled incidents: CSV stream,start,end or JSON")
    back.add_argument(
        "--smooth", action="store_true",
        help=f"add columns named lookahead_...: each event judged by what came before and after it. {_LOOKS_AHEAD}",
    )  # fmt: skip
    bench = add("bench", _bench, "Measure engine and network, side by side.")
    bench.add_argument("--quick", action="store_true", help="a tenth of the work: figures are rough")
    config = add("config", _config, "Show the effective settings, secrets masked.")
    config.add_argument("--schema", action="store_true", help="show the settings' JSON schema instead")
    config.add_argument(
        "--check",
        action="store_true",
        help="look at directories, files, brokers, topics, rights and ports instead: a line each, exit 2 if one fails",
    )
    add_completion(commands, parser)
    return parser


def _run(settings: Settings, _: argparse.Namespace) -> None:
    gc.disable()  # nothing of what is loaded is garbage: looking for some is a sixth of the start
    from detector.service.daemon import Daemon  # noqa: PLC0415 - torch and numba load only where they are used

    gc.freeze()  # nor will it be: a full collection, in the middle of a batch, needs not go through it
    gc.enable()
    Daemon(settings).run()


def _demo(settings: Settings, options: argparse.Namespace) -> None:
    from detector.commands.demo import run_demo  # noqa: PLC0415

    run_demo(settings, options.output)


def _train(settings: Settings, options: argparse.Namespace) -> None:
    diagnosis: Path | None = options.diagnose
    if diagnosis == Path():
        diagnosis = options.output.with_name(options.output.name + ".html")
    if bool(options.files) == options.from_kafka:
        _fail(ValueError("train: name the files to train on, or give --from-kafka; one of the two"), USAGE)
    if diagnosis is not None and diagnosis.suffix != ".html":
        _fail(
            ValueError(f"train: --diagnose {diagnosis}: a name that ends in .html is expected; FILEs stand before it"),
            USAGE,
        )
    from detector.commands.outputs import check_folder  # noqa: PLC0415
    from detector.commands.train import TrainingSource, train, train_as_worker  # noqa: PLC0415
    from detector.service.factory import device_of  # noqa: PLC0415
    from training.retrain.distributed import process_group  # noqa: PLC0415

    check_folder("--output", options.output)  # not after minutes of training
    if diagnosis is not None:
        check_folder("--diagnose", diagnosis.parent)
    history = TrainingSource.of_kafka(settings) if options.from_kafka else TrainingSource.of_files(options.files)
    with process_group(device_of(settings)) as processes:
        if not processes.first:
            logging.disable(logging.WARNING)  # the first tells the story
            train_as_worker(settings, processes)
            return
        progress = sys.stderr.isatty()
        print(train(history, options.output, settings, processes=processes, progress=progress, diagnosis=diagnosis))


def _backtest(settings: Settings, options: argparse.Namespace) -> None:
    from connectors.files.labels import load_labels  # noqa: PLC0415
    from connectors.files.lines import FileError  # noqa: PLC0415
    from detector.commands.backtest import evaluation, lookahead_columns, replay  # noqa: PLC0415
    from detector.commands.outputs import OutputFile  # noqa: PLC0415
    from detector.commands.score_table import ScoreTable  # noqa: PLC0415
    from detector.observability.alert_text import describe  # noqa: PLC0415

    labels = load_labels(options.labels) if options.labels else None
    if options.smooth and options.output is None:
        _fail(ValueError("backtest: --smooth adds columns to a table: name it with --output"), USAGE)
    output = OutputFile(options.output) if options.output else None
    table = ScoreTable(output) if output else None
    told_on = sys.stderr if output and output.is_standard_output else sys.stdout
    log = logging.getLogger(__name__)
    history: ScoredHistory | None = None
    if options.smooth:
        from detector.commands.smooth import ScoredHistory  # noqa: PLC0415 - with torch

        history = ScoredHistory()
    told = 0

    def write(scores: Scores) -> None:
        if table is not None:
            table.write(scores)
        if history is not None:
            history.add(scores)

    def reject(rejected: Sequence[object]) -> None:
        nonlocal told
        for refusal in rejected:
            told += 1
            if told <= 10:
                log.warning("left out: %s", getattr(refusal, "detail", refusal))

    result = replay(options.files, settings, write, reject, progress=sys.stderr.isatty())
    if not result.scored:
        raise FileError(
            f"no event was scored: {result.rejected} records were refused, {result.dropped} events late or duplicate;"
            " see section [decode]" + (f", and {output.path} stays as it was" if output else "")
        )
    if table is not None and history is None:
        table.close()
    elif table is not None and history is not None:
        table.close(lookahead_columns(history, settings, progress=sys.stderr.isatty()))
        print(f"longwatch: {options.output} has columns named lookahead_... . {_LOOKS_AHEAD}", file=sys.stderr)
    for alert in result.alerts:
        if alert.status == "firing":
            print(describe(alert), file=told_on)
    firing = sum(alert.status == "firing" for alert in result.alerts)
    print(
        f"{result.scored:,} events scored in {result.seconds:.1f} s "
        f"({result.scored / max(result.seconds, 1e-9):,.0f}/s), {firing} alerts, "
        f"{result.dropped} late or duplicate, {result.rejected} refused" + (f"; {output.path}" if output else ""),
        file=told_on,
    )
    if labels is not None:
        print(f"\n{evaluation(result.streams, labels)}", file=told_on)


def _bench(settings: Settings, options: argparse.Namespace) -> None:
    from detector.commands.bench import run_bench  # noqa: PLC0415

    run_bench(settings, quick=options.quick)


def _config(settings: Settings, options: argparse.Namespace) -> None:
    from detector.commands.config import effective, schema  # noqa: PLC0415

    if options.schema:
        print(json.dumps(schema(), indent=2))
    elif options.check:
        _check(settings)
    else:
        print(effective(settings), end="")


def _check(settings: Settings) -> None:
    from detector.commands.check import check  # noqa: PLC0415
    from detector.observability.log_format import printable  # noqa: PLC0415

    failed = 0
    for finding in check(settings):
        print(printable(str(finding)), flush=True)  # each as it is found: an unreachable broker takes seconds
        failed += bool(finding.problem)
    if failed:
        sys.exit(USAGE)


def _fail(error: Exception, code: int) -> None:
    from detector.observability.log_format import printable  # noqa: PLC0415

    lines = str(error).split("\n")  # settings have a line for each error
    print(f"longwatch: {chr(10).join(map(printable, lines))}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
