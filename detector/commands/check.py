"""What `longwatch config --check` finds: whether the daemon could work on this machine as the settings ask.

Nothing is changed, and nothing is kept open.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

from connectors.common.certificates import expiry_problem
from connectors.common.findings import Finding
from connectors.http_client.url_policy import Endpoint, Targets, parse_url
from connectors.http_server.settings import HttpError
from connectors.kafka.checks import Uses, findings
from connectors.notify.settings import ReceiverSettings
from detector.commands.outputs import nearest_existing
from detector.config.settings import Settings, SettingsError

MIN_FREE_BYTES = 1 << 30  # room for a checkpoint of 10,000 streams of 27 KB, its log, and as much again


def check(settings: Settings) -> Iterator[Finding]:
    """Look at one thing after the other; takes as long as brokers and name servers need to answer."""
    yield _directory(settings.state.directory)
    yield from _files(settings)
    yield from _certificates(settings)
    yield _device(settings)
    yield _port(settings)
    for name, receiver in settings.receivers.items():
        yield from _receiver(name, receiver)
    if settings.source.type == "kafka":
        feed = settings.exactly_once and bool(settings.receivers)
        yield from findings(settings.kafka, Uses(settings.changelog, feed))


def _directory(directory: Path) -> Finding:
    what, place = f"state.directory {directory}", nearest_existing(directory)
    if not place.is_dir():
        return Finding(what, f"{place} is no directory: move it away, or set another")
    if not os.access(place, os.W_OK | os.X_OK):
        whose = "" if place == directory else f"does not exist, and in {place} "
        return Finding(what, f"{whose}user id {os.geteuid()} may not write: give it the directory, or set another")
    if (free := shutil.disk_usage(place).free) < MIN_FREE_BYTES:
        return Finding(what, f"{free >> 20} MiB free, at least {MIN_FREE_BYTES >> 20} expected: make room")
    return Finding(what, note=f"{free >> 30} GiB free{'' if place == directory else ', will be made'}")


def _files(settings: Settings) -> Iterator[Finding]:
    paths = settings.source.paths if settings.source.type == "file" else ()
    named = [("source.paths", path) for path in paths if path != "-"]
    if settings.kafka.sasl_oauth_token_file:
        named.append(("kafka.sasl_oauth_token_file", settings.kafka.sasl_oauth_token_file))
    for name, path in named:
        problem = ""
        try:
            Path(path).open("rb").close()
        except OSError as error:
            problem = f"cannot be read: {error.strerror}; put that right, or set another"
        yield Finding(f"{name} {path}", problem, "readable")
    if settings.model.directory:
        yield _model(settings)
    for name in ("scores_file", "alerts_file", "dead_letter_file"):
        if path := getattr(settings.output, name):
            place = Path(path) if Path(path).exists() else Path(path).absolute().parent
            writable = os.access(place, os.W_OK | (os.X_OK if place.is_dir() else 0))
            who = f"user id {os.geteuid()} may not write to {place}: grant that, or set another"
            problem = who if place.exists() else f"{place} does not exist: make it, or set another"
            yield Finding(f"output.{name} {path}", "" if writable else problem, "writable")


def _model(settings: Settings) -> Finding:
    from detector.service.model_choice import first_model  # noqa: PLC0415 - numba takes its time
    from training.network.registry import RegistryError  # noqa: PLC0415

    what = f"model.directory {settings.model.directory}"
    try:
        return Finding(what, note=f"model {first_model(settings).fingerprint()}")
    except (SettingsError, RegistryError) as error:
        return Finding(what, str(error).removeprefix(f"{what}: "))


def _certificates(settings: Settings) -> Iterator[Finding]:
    kafka, http = settings.kafka, settings.http
    names = ["ssl_cafile", "ssl_certfile"] if kafka.security_protocol.endswith("SSL") else []
    for name in (*names, "sasl_oauth_ssl_cafile"):
        if path := getattr(kafka, name):
            yield Finding(f"kafka.{name} {path}", _certificate_problem(path), "in date")
    if http.ssl_certfile:
        problem = _certificate_problem(http.ssl_certfile)
        try:
            http.tls()
        except HttpError as error:
            problem = problem or str(error)
        yield Finding(f"http.ssl_certfile {http.ssl_certfile}", problem, "in date")


def _certificate_problem(path: str) -> str:
    """Look at a certificate's dates; whether it is good otherwise shows where it is used."""
    try:
        return expiry_problem(path, datetime.now(UTC))
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except ValueError as error:
        return f"no certificate in PEM: {error}"


def _device(settings: Settings) -> Finding:
    wanted = settings.compute.device
    what = f"compute.device {wanted}"
    if not wanted.startswith("cuda"):
        return Finding(what)
    import torch  # noqa: PLC0415 - takes seconds, which no other answer needs

    present = torch.cuda.device_count()
    if int(wanted.partition(":")[2] or 0) < present:
        return Finding(what, note=f"one of {present}")
    return Finding(what, f"this machine has {present} CUDA devices: use auto or cpu, or install a driver")


def _port(settings: Settings) -> Finding:
    host, port = settings.http.host, settings.http.port
    what = f"http.host {host}, http.port {port}"
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return Finding(what, note="free")
    except OSError as error:
        used = " (by a longwatch that runs already?)" if error.errno == errno.EADDRINUSE else ""
        return Finding(what, f"cannot be listened on: {error.strerror}{used}: set an address and a port that are free")


def _receiver(name: str, receiver: ReceiverSettings) -> Iterator[Finding]:
    """Look at where a receiver's URLs lead; nothing is sent."""
    targets = Targets(receiver.allowed_hosts, f"receivers.{name}.allowed_hosts")
    for endpoint in map(parse_url, receiver.urls()):
        yield _leads(f"receivers.{name}.url {endpoint}", endpoint, targets)


def _leads(what: str, endpoint: Endpoint, targets: Targets) -> Finding:
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except OSError as error:
        return Finding(what, f"the name {endpoint.host} leads nowhere: {error.strerror}")
    places = dict.fromkeys(str(place[0]).partition("%")[0] for *_, place in found)
    refusals = [targets.refuses(endpoint.host, ip_address(place)) for place in places]
    if all(refusals):
        return Finding(what, "; ".join(filter(None, dict.fromkeys(refusals))))
    return Finding(what, note=f"leads to {', '.join(p for p, no in zip(places, refusals, strict=True) if not no)}")
