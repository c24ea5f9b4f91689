"""Which hosts and addresses a receiver may have, decided when the connection is made (SSRF protection).

Someone who can change the URL, or its name in DNS, must not reach what only this machine reaches: its loopback, the
private network, the cloud's metadata service. So the name is resolved here, each address is checked, and the
connection goes to a checked address: a different DNS answer a moment later changes nothing.
"""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import quote, unquote, urlsplit

Address = IPv4Address | IPv6Address

# Networks whose addresses end in the IPv4 address that is meant: mapped (RFC 4291), translated (RFC 2765), compatible
# (RFC 4291, long deprecated; but for :: and ::1), and NAT64's well-known prefix (RFC 6052)
EMBEDDING = tuple(map(IPv6Network, ("::ffff:0:0/96", "::ffff:0:0:0/96", "::/96", "64:ff9b::/96")))
PUBLIC_IF_EMBEDDED = tuple(map(IPv6Network, ("::ffff:0:0/96", "64:ff9b::/96")))  # of them, those still in use

# What is no public address, by IANA's special-purpose registries (2025-10) and not by `ipaddress`, whose lists differ
# between Python's versions. The first match counts. The clouds' services for each machine are listed too, since their
# addresses look private or public.
_SPECIAL = {
    "a cloud's metadata service": (
        "100.100.100.200/32",  # Alibaba
        "168.63.129.16/32",  # Azure, WireServer
        "192.0.0.192/32",  # Oracle
        "fd00:ec2::/32",  # AWS
        "fd20:ce::254/128",  # Google
    ),
    "unspecified": ("0.0.0.0/32", "::/128"),
    "loopback": ("127.0.0.0/8", "::1/128"),
    "link-local": ("169.254.0.0/16", "fe80::/10"),
    "private": (
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
        "100.64.0.0/10",  # behind a carrier's NAT (RFC 6598), and in many a cloud's private network
        "198.18.0.0/15",  # benchmarks
        "fc00::/7",
        "fec0::/10",  # site-local, deprecated
    ),
    "multicast": ("224.0.0.0/4", "ff00::/8"),
    "reserved": (
        "0.0.0.0/8",
        "192.0.0.0/24",  # IETF protocols
        *("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"),  # documentation
        "192.88.99.0/24",  # 6to4 relays, deprecated
        "240.0.0.0/4",
        "2001::/23",  # IETF protocols: Teredo, benchmarks, ORCHID
        *("2001:db8::/32", "3fff::/20"),  # documentation
        "2002::/16",  # 6to4
        "3ffe::/16",  # 6bone, returned
    ),
}
SPECIAL = tuple((ip_network(text), kind) for kind, texts in _SPECIAL.items() for text in texts)
GLOBAL_UNICAST = IPv6Network("2000::/3")  # all that IANA allocates of IPv6; the rest is special or reserved

MIN_HIDDEN = 4  # characters: what is shorter is no secret, and would be found in every other word
BY_NAME = frozenset({"public", "private", "loopback"})  # what a listed name opens

_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\.?")


@dataclass(frozen=True, slots=True, repr=False)
class Endpoint:
    """The parts of a webhook's URL."""

    tls: bool
    host: str
    port: int
    target: str  # path and query
    authorization: str | None  # from user:password@
    hidden: tuple[str, ...]  # what of it may be secret, in every spelling; longest first

    def redact(self, text: str) -> str:
        """Return what a receiver said without what it repeats of the URL: error pages like to show the path."""
        for secret in self.hidden:
            text = text.replace(secret, "***")
        return text

    def __str__(self) -> str:
        """Return what may be logged: many webhooks' paths are secrets, and user:password always is."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


def parse_url(url: str, setting: str = "url") -> Endpoint:
    """Parse a URL. Raises ValueError without the URL in its text, since it may hold secrets; `setting` is in it."""
    if any(character.isspace() or not character.isprintable() for character in url):
        raise ValueError(f"{setting} holds a space or a control character")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port
    except UnicodeError:
        raise ValueError(f"{setting} has an invalid host name") from None
    except ValueError:
        raise ValueError(f"{setting} is no URL, or its port is not a number from 1 to 65535") from None
    if parts.scheme not in {"http", "https"}:
        raise ValueError(f"{setting} must begin with http:// or https://")
    if not host or port == 0:
        raise ValueError(f"{setting} has no host, or port 0: expected http(s)://host[:port]/path")
    tls = parts.scheme == "https"
    path_and_query = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    target = quote(path_and_query, safe="/%:@!$&'()*+,;=-._~?")
    authorization = None
    hidden = [part for text in (parts.path, parts.query) for part in (text, *re.split(r"[/&=]", text))]
    if parts.username is not None:
        hidden += [parts.username, parts.password or ""]
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        encoded = base64.b64encode(credentials.encode()).decode()
        authorization = f"Basic {encoded}"
        hidden.append(encoded)
    spellings = {spelt for part in (*hidden, target) for spelt in (part, quote(part), unquote(part))}
    longest_first = sorted((spelt for spelt in spellings if len(spelt) >= MIN_HIDDEN), key=len, reverse=True)
    return Endpoint(tls, host, port or (443 if tls else 80), target, authorization, tuple(longest_first))


class TargetRefusedError(OSError):
    """An address that may not be connected to; the text says which, why, and what to do."""


class Targets:
    """The allow-list. Empty: every host, at public addresses. Otherwise only what is listed.

    What is listed is a host's name, good for public, private and loopback addresses, or an address or network.
    Link-local addresses (the metadata services of clouds), multicast and the like must be listed as addresses.
    """

    def __init__(self, allowed: Sequence[str], setting: str = "allowed_hosts") -> None:
        """Parse the entries. Raises ValueError for one that is neither a name nor an address nor a network.

        `setting` is what texts call the list.
        """
        self._setting = setting
        self._names: set[str] = set()
        self._networks: list[IPv4Network | IPv6Network] = []
        for entry in allowed:
            try:
                self._networks.append(ip_network(entry.strip("[]")))
            except ValueError as error:
                name = _ascii(_name(entry))
                if "/" in entry or not _HOST.fullmatch(name) or name.rpartition(".")[2].isdigit():
                    hint = f": {error}" if "host bits" in str(error) else ""
                    raise ValueError(
                        f"{setting}: {entry!r} is no host name, address or network "
                        f'("hooks.example.com", "10.1.2.3", "10.1.2.0/24"; no scheme, port or path){hint}'
                    ) from None
                self._names.add(name)

    def refuses_host(self, host: str) -> str | None:
        """Return why this host is refused at any address, or None, as far as is known without DNS."""
        with contextlib.suppress(ValueError):  # it is a name
            return self.refuses(host, ip_address(host.partition("%")[0]))
        if _name(host) in self._names:
            return None
        if self._names and not self._networks:
            return f"the host {host} is not listed in {self._setting}"
        if f".{_name(host)}".endswith(".localhost"):
            return self.refuses(host, IPv4Address("127.0.0.1"))
        return None

    def refuses(self, host: str, address: Address) -> str | None:
        """Return why `host` may not be reached at `address`, with what to do; None if it may."""
        listed = (address, _embedded(address) or address)
        if any(one in network for one in listed for network in self._networks):
            return None
        kind = _kind(address)
        where = host if str(address) == host else f"{host} at {address}"
        if kind == "public" and not (self._names or self._networks):
            return None
        if kind not in BY_NAME:
            return f"{where} is {kind}: refused unless that address is listed in {self._setting}"
        if _name(host) in self._names:
            return None
        if self._names or self._networks:
            return f"{where} ({kind}): neither is listed in {self._setting}"
        return f"{where} is {kind}: refused unless it is listed in {self._setting}"


def _name(host: str) -> str:
    return host.strip().rstrip(".").lower()


def _ascii(name: str) -> str:
    try:
        return name.encode("idna").decode()
    except UnicodeError:
        return ""


def _embedded(address: Address) -> IPv4Address | None:
    """Return the IPv4 address embedded in an IPv6 address, None if there is none."""
    if isinstance(address, IPv4Address) or int(address) <= 1:
        return None
    if any(address in network for network in EMBEDDING):
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.sixtofour


def _kind(address: Address) -> str:
    embedded = _embedded(address)
    if embedded is not None:
        kind = _kind(embedded)
        if kind != "public" or any(address in network for network in PUBLIC_IF_EMBEDDED):
            return kind
    for network, kind in SPECIAL:
        if address in network:
            return kind
    return "public" if address.version == 4 or address in GLOBAL_UNICAST else "reserved"
