"""The command line: parses it, imports the one command that was asked for, turns errors into one line.

What a command needs is imported only then: settings take a quarter of a second, numba half a second, torch seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from connectors.errors import UserError
from detector import __version__
from detector.commands import LOOKAHEAD_NOTE
from detector.commands.arguments import add_asking
from detector.config import CONFIG_VARIABLE
from detector.errors import UsageError
from detector.observability.log_format import printable, set_up_logging
from detector.service.signals import Signals, end_as_any_process, leave
from training.errors import UserError as TrainingUserError

if TYPE_CHECKING:
    from detector.config.settings import Settings

FAILED, USAGE = 1, 2

_EXAMPLES = {
    "run": """examples:
  longwatch run --config longwatch.toml
  longwatch run --set kafka.bootstrap_servers=broker:9092 --set 'kafka.topics=["metrics"]'
  tail -F metrics.jsonl | longwatch run --set source.type=file --set 'source.paths=["-"]'""",
    "demo": """examples:
  longwatch demo
  longwatch demo --output /tmp/demo
  longwatch demo --live     # this host, with the load that you cause""",
    "train": """examples:
  longwatch train history/*.csv --output models
  longwatch train --from-kafka --output models --set 'kafka.topics=["metrics"]'
  longwatch train history/*.csv --output models --diagnose
  longwatch train history/*.csv --output models --learning optimiser=adamw --learning weight_decay=0.01
  torchrun --nproc-per-node 2 -m detector train history/*.csv --output models""",
    "backtest": """examples:
  longwatch backtest cpu.csv --output scores.csv
  longwatch backtest *.csv.gz --budgets
  longwatch backtest *.csv.gz --output scores.csv --labels incidents.csv
  longwatch backtest cpu.csv --output history.csv --smooth
  longwatch backtest cpu.csv --output - | head""",
    "bench": """examples:
  longwatch bench
  longwatch bench --set compute.threads=1 --quick""",
    "alerts": """examples:
  longwatch alerts test --config longwatch.toml
  longwatch alerts test --config longwatch.toml --receiver pager
  longwatch alerts list --state open
  longwatch alerts show ac133362c28049ca9ded75c7 --plot alert.png
  longwatch alerts acknowledge ac133362c28049ca9ded75c7 --reason 'looking into it'
  longwatch alerts false ac133362c28049ca9ded75c7 --reason 'the nightly backup'""",
    "streams": """examples:
  longwatch streams list --search web-
  longwatch streams show web-1/cpu
  longwatch streams reset web-1/cpu --reason 'new hardware'""",
    "mutes": """examples:
  longwatch mutes list
  longwatch mutes add 'web-*/cpu' --for 2h --reason 'load test'
  longwatch mutes remove 'web-*/cpu'""",
    "config": """examples:
  longwatch config --config longwatch.toml
  longwatch config --schema > longwatch.schema.json
  longwatch config --config longwatch.toml --check
  longwatch config --config longwatch.toml --stream web-1/cpu""",
    "reload": """examples:
  longwatch reload --config longwatch.toml""",
    "schema": """examples:
  longwatch schema alerts > alert.schema.json""",
    "completion": """examples:
  longwatch completion bash > ~/.local/share/bash-completion/completions/longwatch
  longwatch completion zsh > ~/.zfunc/_longwatch     # a folder of $fpath
  longwatch completion fish > ~/.config/fish/completions/longwatch.fish""",
}

_LEARNING = (  # what Learning has; it is not imported to show help
    "optimiser, learning_rate, momentum, schedule, warm_up, weight_decay, l1, clip, clip_limit, update_every,"
    " backpropagate, sampling, sampling_rise"
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exit 0, 1 (it failed) or 2 (usage or settings), with one line for what a user can put right."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "completion":  # needs no settings
        sys.stdout.write(_completion(parser, options.shell))
        return
    if options.command == "run":
        Signals(leave).take()  # before all that takes time
    else:
        end_as_any_process()
    from detector.config.settings import SettingsError, load_settings  # noqa: PLC0415 - with pydantic

    try:
        settings = load_settings(options.config, overrides=options.set, secrets=options.secrets)
        set_up_logging(settings.logging.level, settings.logging.format)
        if options.command == "run":
            _run_daemon(settings, options)
        else:
            import_module(f"detector.commands.{options.command}").run(settings, options)
        sys.stdout.flush()  # an output that cannot be written is an error, too
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `| head` has enough
        _discard_output()
        sys.exit(FAILED)
    except (SettingsError, UsageError) as error:
        _fail(error, USAGE)
    except (UserError, TrainingUserError, OSError) as error:
        _discard_output()
        _fail(error, FAILED)


def _run_daemon(settings: Settings, options: argparse.Namespace) -> None:
    gc.disable()  # nothing of what is loaded is garbage: looking for some is a sixth of the start
    from detector.config.settings import load_settings  # noqa: PLC0415 - it is loaded already
    from detector.service.factory import build_daemon  # noqa: PLC0415 - torch and numba load only where they are used

    gc.freeze()  # nor will it be: a full collection, in the middle of a batch, needs not go through it
    gc.enable()
    daemon = build_daemon(settings)
    daemon.reloading.watch(
        lambda: load_settings(options.config, overrides=options.set, secrets=options.secrets), options.config
    )
    daemon.run()


def _discard_output() -> None:
    """Drop what standard output does not take, so that Python does not complain of it again as it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    a_file: dict[str, Any] = {"type": Path, "metavar": "FILE"}
    a_folder: dict[str, Any] = {"type": Path, "metavar": "DIR"}
    events: dict[str, Any] = {"metavar": "FILE", "help": "CSV or JSON lines, plain or gzipped (.gz)"}

    common = argparse.ArgumentParser(add_help=False)
    settings = common.add_argument_group("settings")
    file = os.environ.get(CONFIG_VARIABLE)
    settings.add_argument(
        "--config", **a_file, default=Path(file) if file else None,
        help=f"file to read, such as longwatch.toml (default: what {CONFIG_VARIABLE} names)",
    )  # fmt: skip
    settings.add_argument(
        "--set", action="append", default=[], metavar="SECTION.NAME=VALUE",
        help="one setting, which wins over all others; may be repeated",
    )  # fmt: skip
    settings.add_argument(
        "--secrets", **a_folder, help="folder of files such as longwatch_http__password (/run/secrets)"
    )
    parser = argparse.ArgumentParser(
        prog="longwatch", description="Watch event streams, and alert when one stops behaving like itself."
    )
    parser.add_argument("--version", action="version", version=f"longwatch {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, text: str, *, with_settings: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, parents=[common] if with_settings else [], help=text, description=text,
            epilog=_EXAMPLES[name], formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        sub.set_defaults(command=name)
        return sub

    add("run", "Run the daemon: events in from Kafka or files, scores and alerts out.")
    demo = add("demo", "Replay bundled real data through the whole pipeline; needs no Kafka.")
    demo.add_argument("--output", **a_folder, default=Path("out/demo"), help="folder for results (out/demo)")
    demo.add_argument("--live", action="store_true", help="watch this very host instead, until CTRL+C")
    train = add(
        "train", "Train a model on history, for model.directory; it is saved if it is better than the present one."
    )
    train.add_argument("files", nargs="*", **events)
    train.add_argument(
        "--from-kafka", action="store_true",
        help="instead of files: all records that the topics of section [kafka] hold now; joins no consumer group",
    )  # fmt: skip
    train.add_argument("--output", **a_folder, required=True, help="folder of the model registry")
    train.add_argument(
        "--diagnose", nargs="?", type=Path, const=Path(), metavar="FILE.html",
        help="write a page with plots of the training (default: DIR.html, next to the folder)",
    )  # fmt: skip
    train.add_argument(
        "--learning", action="append", default=[], metavar="NAME=VALUE",
        help=f"how to learn, instead of as the daemon's retraining does; may be repeated. Names: {_LEARNING}"
        " (docs/settings.md)",
    )  # fmt: skip
    train.add_argument(
        "--layers", type=int, choices=range(1, 9), metavar="N",
        help="recurrent layers, 1 to 8; what is added has no effect before it has learnt (default: as the model has)",
    )  # fmt: skip
    train.add_argument(
        "--attention-window", type=int, choices=range(65), metavar="N",
        help="past hidden states that each feature attends to, up to 64; 0: none (default: as the model has)",
    )  # fmt: skip
    train.add_argument(
        "--dropout", type=_dropout, metavar="SHARE",
        help="hidden units left out in training, 0 to 0.9 (default: as the model has)",
    )  # fmt: skip
    train.add_argument("--seed", type=_seed, default=0, metavar="N", help="seed of everything random (default: 0)")
    backtest = add("backtest", "Score history with the daemon's engine, and write a row for each event.")
    backtest.add_argument("files", nargs="+", **events)
    backtest.add_argument("--output", type=Path, metavar="CSV", help="table to write; - for standard output")
    backtest.add_argument(
        "--labels", **a_file, help="labelled incidents (CSV stream,start,end or JSON), to evaluate the alerts"
    )
    backtest.add_argument(
        "--budgets", action="store_true",
        help="show what each budget of alerts would have cost, by channel and by stream; six engines run, not one",
    )  # fmt: skip
    backtest.add_argument(
        "--smooth", action="store_true",
        help=f"add columns named lookahead_...: each event judged by what came before and after it. {LOOKAHEAD_NOTE}",
    )  # fmt: skip
    bench = add("bench", "Measure how much the engine scores on this machine, and what a stream takes.")
    bench.add_argument("--quick", action="store_true", help="a tenth of the work, with rough figures")
    add_asking(add, common)
    config = add("config", "Show the settings in effect, with secrets masked.")
    config.add_argument("--schema", action="store_true", help="show the JSON Schema of the settings instead")
    config.add_argument(
        "--check", action="store_true",
        help="check directories, files, brokers, topics, permissions and ports instead; exit 2 if one fails",
    )  # fmt: skip
    config.add_argument("--stream", metavar="NAME", help="show which rule a stream of this name gets, and what holds")
    reload = add("reload", "Have the running daemon read its settings again; exit 1 if it refuses them.")
    reload.add_argument("--token-file", **a_file, help="file with its http.token (default: api.token in its directory)")
    schema = add("schema", "Print the JSON Schema of a record that longwatch writes (docs/formats.md).")
    schema.add_argument("record", choices=("scores", "alerts", "webhook", "incident", "rejected"), help="which record")
    completion = add(
        "completion", "Print a script by which your shell completes commands, options and files.", with_settings=False
    )
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh", "fish"), help="your shell")
    return parser


def _seed(text: str) -> int:
    if not 0 <= (seed := int(text)) < 1 << 32:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number from 0 to 4294967295")
    return seed


def _dropout(text: str) -> float:
    if not 0 <= (share := float(text)) <= 0.9:  # not NaN either
        raise argparse.ArgumentTypeError(f"{text}: expected a number from 0 to 0.9")
    return share


def _completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return a script by which a shell completes commands, options and files (docs/decisions/007)."""
    import shtab  # noqa: PLC0415 - nothing else needs it

    def mark(of: argparse.ArgumentParser) -> None:
        for action in of._actions:
            if isinstance(action, argparse._SubParsersAction):
                for sub in action.choices.values():
                    mark(sub)
            elif action.type is Path or action.metavar == "FILE":
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab's own way of saying it

    mark(parser)
    return shtab.complete(parser, shell=shell)


def _fail(error: Exception, code: int) -> None:
    print("longwatch:", "\n".join(map(printable, str(error).split("\n"))), file=sys.stderr)  # settings: a line for each
    sys.exit(code)
