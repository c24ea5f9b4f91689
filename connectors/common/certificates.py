"""Certificates in PEM files: loading a pair of certificate and key, and the dates of validity.

Python's ssl gives the dates only of authorities and of a connection's peer, and these few bytes are not worth a
dependency that reads certificates. OpenSSL checks everything else.
"""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime
from pathlib import Path

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
# The validity in DER (RFC 5280, 4.1.2.5): a sequence of two times in whole seconds and UTC, each a UTCTime with two
# digits of the year (tag 0x17) or a GeneralizedTime with four (0x18)
_VALIDITY = re.compile(rb"\x30[\x1e\x20\x22](?:\x17\r|\x18\x0f)((?:\d\d){6,7})Z(?:\x17\r|\x18\x0f)((?:\d\d){6,7})Z")


def expiry_problem(path: str | Path, now: datetime) -> str:
    """Return why the certificates of a file are not valid at `now`; empty if they are. Raises OSError, ValueError."""
    found = [_dates(ssl.PEM_cert_to_DER_cert(pem)) for pem in _PEM.findall(Path(path).read_text(encoding="latin-1"))]
    if not found:
        raise ValueError("it holds no certificate")
    over = [last for _, last in found if last < now]
    if over and len(over) == len(found):  # a file of authorities may keep old certificates
        return f"expired on {max(over):%Y-%m-%d %H:%M} UTC: put a new one there"
    early = [first for first, _ in found if first > now]
    if early and len(early) == len(found):
        return f"not valid before {min(early):%Y-%m-%d %H:%M} UTC: is this machine's clock right?"
    return ""


def load_key_pair(context: ssl.SSLContext, section: str, certfile: str, keyfile: str, password: str) -> str:
    """Load what ssl_certfile, ssl_keyfile and ssl_key_password of a section of the settings name.

    Returns why that fails and how to mend it; empty where it does not.
    """
    asked = False

    def tell_password() -> str:
        nonlocal asked
        asked = True
        return password

    try:  # without a callback OpenSSL would wait for a password at the terminal
        context.load_cert_chain(certfile, keyfile, tell_password)
    except (OSError, ssl.SSLError) as error:
        if asked:
            reason = f"the key is locked, and {section}.ssl_key_password does not open it"
        elif isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
            reason = "the key does not belong to the certificate"
        elif isinstance(error, ssl.SSLError):
            reason = "expected a certificate and a key in PEM form"
        else:
            reason = str(error.strerror or error)
        return f"{section}.ssl_certfile {certfile} with {section}.ssl_keyfile {keyfile} cannot be used: {reason}"
    return ""


def _dates(der: bytes) -> tuple[datetime, datetime]:
    """Return the first and the last moment at which a certificate is valid; ValueError."""
    if (found := _VALIDITY.search(der)) is None:
        raise ValueError("a certificate in it is cut short")
    first, last = map(_time, found.groups())
    return first, last


def _time(digits: bytes) -> datetime:
    text = digits.decode()
    if len(text) == 12:  # two digits of the year: 1950 to 2049
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
