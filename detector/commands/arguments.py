"""Arguments of the commands that ask the running daemon: alerts, streams, mutes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

Add = Callable[..., argparse.ArgumentParser]  # of a command: its name, and what it does
STATES = ("open", "resolved", "all")


def add_asking(add: Add, common: argparse.ArgumentParser) -> None:
    """Add the commands; `common` has the options of the settings, by which the daemon is found."""
    asks = argparse.ArgumentParser(add_help=False, parents=[common])
    asks.add_argument(
        "--token-file", type=Path, metavar="FILE",
        help="token to ask with (default: http.token, or api.token in the state directory)",
    )  # fmt: skip
    asks.add_argument("--json", action="store_true", help="print JSON, as the API has it (docs/api.md)")
    signed = argparse.ArgumentParser(add_help=False, parents=[asks])
    signed.add_argument("--reason", default="", metavar="TEXT", help="why, for those who come after you")
    signed.add_argument("--author", metavar="NAME", help="who says it (default: your login name)")
    _add_alerts(_group(add, "alerts", "Ask the running daemon for alerts, and answer them."), common, asks, signed)
    _add_streams(_group(add, "streams", "Ask the running daemon for streams."), asks, signed)
    _add_mutes(_group(add, "mutes", "Tell the running daemon which streams are not to alert."), asks, signed)


def _group(add: Add, name: str, text: str) -> Add:
    """Return what adds an action to a command."""
    actions = add(name, text, with_settings=False).add_subparsers(
        title="actions", metavar="ACTION", required=True, dest="action"
    )

    def add_action(action: str, text: str, parent: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return actions.add_parser(action, parents=[parent], help=text, description=text)

    return add_action


def _add_alerts(
    alerts: Add, common: argparse.ArgumentParser, asks: argparse.ArgumentParser, signed: argparse.ArgumentParser
) -> None:
    test = alerts(
        "test", "Send a test alert to each receiver, that opens and resolves at once; exit 1 if one fails.", common
    )
    test.add_argument("--receiver", metavar="NAME", help="only to this one of [receivers.NAME]")
    listed = alerts("list", "List alerts, newest incident first; without a daemon those on disk.", asks)
    listed.add_argument("--state", choices=STATES, default="all", help="of their incidents (default: all)")
    _add_limit(listed, "incidents")
    an_id: dict[str, Any] = {"metavar": "ID", "help": "as `alerts list` has it"}
    shown = alerts("show", "Show an alert and what its stream did around it; without a daemon as on disk.", asks)
    shown.add_argument("id", **an_id)
    shown.add_argument("--plot", type=Path, metavar="FILE", help="also draw it, as a PNG")
    for action, text in (
        ("acknowledge", "Let others see that you have taken an incident on."),
        ("false", "Say that an alert was false: it ends, its span is learnt as normal, its kind is told no more."),
        ("right", "Say that an alert was right: its span stays out of what is learnt."),
    ):
        of = "of an incident, or of any of its alerts" if action == "acknowledge" else an_id["help"]
        alerts(action, text, signed).add_argument("id", metavar="ID", help=of)


def _add_streams(streams: Add, asks: argparse.ArgumentParser, signed: argparse.ArgumentParser) -> None:
    listed = streams("list", "List streams: what fires and is least usual first.", asks)
    listed.add_argument("--search", default="", metavar="TEXT", help="only those whose names hold this")
    listed.add_argument("--sort", choices=("anomalous", "name"), default="anomalous", help="(default: anomalous)")
    _add_limit(listed, "streams")
    shown = streams("show", "Show a stream as it is now, with its last events.", asks)
    shown.add_argument("name", metavar="NAME", help="the stream's whole name")
    shown.add_argument("--feature", metavar="NAME", help="which feature to draw (default: the first)")
    reset = streams("reset", "Forget all that is learnt of a stream: it begins anew with its next event.", signed)
    reset.add_argument("name", metavar="NAME", help="the stream's whole name")


def _add_mutes(mutes: Add, asks: argparse.ArgumentParser, signed: argparse.ArgumentParser) -> None:
    mutes("list", "List the mutes that are in force.", asks)
    added = mutes("add", "Let streams not alert; they are scored, and learnt from, as before.", signed)
    added.add_argument("pattern", metavar="PATTERN", help="a stream's name, where * stands for any characters")
    end = added.add_mutually_exclusive_group()
    end.add_argument(
        "--until", metavar="TIME",
        help="end, such as 2026-12-24T18:00 (your time zone) or 2026-12-24T18:00Z, by the events' own time",
    )  # fmt: skip
    end.add_argument("--for", dest="lasting", metavar="TIME", help="end so long from now: 30m, 2h, 7d (default: never)")
    mutes("remove", "End a mute.", signed).add_argument(
        "mute", metavar="MUTE", help="its number or its pattern, as `mutes list` has them"
    )


def _add_limit(parser: argparse.ArgumentParser, of: str) -> None:
    parser.add_argument("--limit", type=_limit, default=20, metavar="N", help=f"{of}, 1 to 200 (default: 20)")


def _limit(text: str) -> int:
    if not (text.isdecimal() and 1 <= (count := int(text)) <= 200):
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number from 1 to 200")
    return count
