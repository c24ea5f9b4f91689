"""Where a webhook goes, and where it may: which hosts, at which addresses, decided when the connection is made.

Whoever can set or change a URL, or answer for its name in DNS, must not reach what only this machine reaches: its
loopback, the private network, the cloud's metadata service. So the name is resolved here, each address is looked at,
and the connection goes to an address that was looked at: a name that answers differently a moment later changes
nothing.
"""

from __future__ import annotations

import base64
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import quote, unquote, urlsplit

Address = IPv4Address | IPv6Address

NAT64 = IPv6Network("64:ff9b::/96")  # its last 32 bits are the IPv4 address that is meant (RFC 6052)
COMPATIBLE = IPv6Network("::/96")  # likewise, long deprecated (RFC 4291); but for :: and ::1
SHARED = IPv4Network("100.64.0.0/10")  # behind a carrier's NAT (RFC 6598), and in many a cloud's private network

LEAST_HIDDEN = 4  # characters: what is shorter is no secret, and would be found in every other word
BY_NAME = frozenset({"public", "private", "loopback"})  # what a listed name opens

_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\.?")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A webhook's URL, taken apart."""

    tls: bool
    host: str
    port: int
    target: str  # path and query
    authorization: str | None  # from user:password@
    hidden: tuple[str, ...] = field(
        default=(), repr=False
    )  # what of it may be secret, in every spelling; longest first

    def redact(self, text: str) -> str:
        """Return what a receiver said without what it repeats of the URL: error pages like to show the path."""
        for secret in self.hidden:
            text = text.replace(secret, "***")
        return text

    def __str__(self) -> str:
        """Return what may be logged: many webhooks' paths are secrets, and user:password always is."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


def parse_url(url: str) -> Endpoint:
    """Take a URL apart. Raises ValueError, without the URL in its text, since it may hold secrets."""
    if any(character.isspace() or not character.isprintable() for character in url):
        raise ValueError("webhook.url holds a space or a control character")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("webhook.url is no URL, or its port is not a number from 1 to 65535") from None
    if parts.scheme not in {"http", "https"}:
        raise ValueError("webhook.url must begin with http:// or https://")
    try:
        host = (parts.hostname or "").encode("idna").decode()
    except UnicodeError:
        raise ValueError("webhook.url has a host name that is none") from None
    if not host or port == 0:
        raise ValueError("webhook.url has no host, or port 0: expected http(s)://host[:port]/path")
    tls = parts.scheme == "https"
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=-._~")
    if parts.query:
        target += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=-._~?")
    authorization = None
    hidden = [part for text in (parts.path, parts.query) for part in (text, *re.split(r"[/&=]", text))]
    if parts.username is not None:
        hidden += [parts.username, parts.password or ""]
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        encoded = base64.b64encode(credentials.encode()).decode()
        authorization = f"Basic {encoded}"
        hidden.append(encoded)
    spellings = {spelt for part in (*hidden, target) for spelt in (part, quote(part), unquote(part))}
    known = sorted((spelt for spelt in spellings if len(spelt) >= LEAST_HIDDEN), key=lambda spelt: (-len(spelt), spelt))
    return Endpoint(tls, host, port or (443 if tls else 80), target, authorization, tuple(known))


class TargetRefusedError(OSError):
    """An address that may not be connected to; the text says which, why, and what to do."""


class Targets:
    """The allow-list. Empty: every host, at public addresses. Else only what is listed, and nothing beside it.

    What is listed is a host's name, good for public, private and loopback addresses, or an address or network.
    Link-local addresses (the metadata services of clouds), multicast and the like must be listed as addresses.
    """

    def __init__(self, allowed: Sequence[str]) -> None:
        """Take entries apart. Raises ValueError for one that is neither a name nor an address nor a network."""
        self._names: set[str] = set()
        self._networks: list[IPv4Network | IPv6Network] = []
        for entry in allowed:
            try:
                self._networks.append(ip_network(entry.strip("[]")))
            except ValueError as error:
                name = _ascii(_name(entry))
                if "/" in entry or not _HOST.fullmatch(name) or name.rpartition(".")[2].isdigit():
                    raise ValueError(
                        f"webhook.allowed_hosts: {entry!r} is no host name, address or network "
                        f'("hooks.example.com", "10.1.2.3", "10.1.2.0/24"; no scheme, port or path){_hint(error)}'
                    ) from None
                self._names.add(name)

    def refuses_host(self, host: str) -> str | None:
        """Return why no address of this host would do, or None: what can be told without asking DNS."""
        address = _address(host)
        if address is not None:
            return self.refuses(host, address)
        if _name(host) in self._names:
            return None
        if self._names and not self._networks:
            return f"the host {host} is not listed in webhook.allowed_hosts"
        if _name(host) == "localhost" or _name(host).endswith(".localhost"):
            return self.refuses(host, IPv4Address("127.0.0.1"))
        return None

    def refuses(self, host: str, address: Address) -> str | None:
        """Return why `host` may not be reached at `address`, with what to do; None if it may."""
        meant = _meant(address)
        listed = (address, meant)
        if any(one in network for one in listed for network in self._networks if one.version == network.version):
            return None
        kind = _kind(meant)
        where = host if str(address) == host else f"{host} at {address}"
        if kind == "public" and not (self._names or self._networks):
            return None
        if kind not in BY_NAME:
            return f"{where} is {kind}: refused unless that address is listed in webhook.allowed_hosts"
        if _name(host) in self._names:
            return None
        if self._names or self._networks:
            return f"{where} ({kind}): neither is listed in webhook.allowed_hosts"
        return f"{where} is {kind}: refused unless it is listed in webhook.allowed_hosts"

    def connect(self, host: str, port: int, timeout_seconds: float) -> socket.socket:
        """Return a connection to an address of `host` that may be reached, tried in DNS' order, in so many s in all.

        Raises TargetRefusedError where there is none, OSError where none answers.
        """
        deadline = time.monotonic() + timeout_seconds
        failure: OSError | None = None
        refusals = []
        for family, kind, protocol, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            refusal = self.refuses(host, ip_address(str(place[0]).partition("%")[0]))
            if refusal is not None:
                refusals.append(refusal)
                continue
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
                connection.connect(place)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                connection.close()
                failure = error
            else:
                return connection
        if failure is not None:
            raise failure
        raise TargetRefusedError("; ".join(dict.fromkeys(refusals)) or f"{host} has no address")


def _name(host: str) -> str:
    return host.strip().rstrip(".").lower()


def _ascii(name: str) -> str:
    try:
        return name.encode("idna").decode()
    except UnicodeError:
        return ""


def _hint(error: ValueError) -> str:
    return f": {error}" if "host bits" in str(error) else ""


def _address(host: str) -> Address | None:
    try:
        return ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None


def _meant(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address stands for, or the address itself."""
    if isinstance(address, IPv6Address):
        if address in NAT64 or (address in COMPATIBLE and int(address) > 1):
            return IPv4Address(int(address) & 0xFFFF_FFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address


def _kind(address: Address) -> str:
    if address.is_loopback:
        return "loopback"
    if address.is_link_local:
        return "link-local"
    if address.is_multicast:
        return "multicast"
    if address.is_unspecified:
        return "unspecified"
    if address.is_global:
        return "public"
    private = address.is_private or (address.version == 4 and address in SHARED)
    return "reserved" if address.is_reserved or not private else "private"
