"""Who may read the HTTP port, and who may change anything through it.

Reading asks for the user name and password where they are set. Writing asks for them, or for a token. A browser sends a
password by itself, also where another site makes it ask (CSRF); so a password alone is no word of its owner, and what
is to be changed by it must say that it comes from our own page.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
from enum import Enum
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from connectors.common.throttle import LogThrottle
from connectors.http_server.settings import HttpSettings

logger = logging.getLogger(__name__)

OWN_HEADER = "x-longwatch"  # no other site's page can send it without being allowed to


class Caller(Enum):
    """Who asks, as far as it is proven."""

    ANYONE = "anyone"
    PASSWORD = "password"  # noqa: S105 - the word
    TOKEN = "token"  # noqa: S105 - likewise


class Access:
    """Recognises callers by what settings say, and by a token that the daemon has made for the command line."""

    def __init__(self, settings: HttpSettings, own_token: str = "") -> None:
        credentials = f"{settings.username}:{settings.password.get_secret_value()}"
        self._credentials = _digest(base64.b64encode(credentials.encode()).decode())
        self._asks = bool(settings.username)
        tokens = own_token, settings.token.get_secret_value()
        self._tokens = [_digest(token) for token in tokens if token]
        self._own_place = urlsplit(settings.external_url).netloc.lower()
        self._refusals = LogThrottle()

    def caller(self, headers: Headers, client: str) -> Caller:
        """Return who asks; a wrong password or token is logged, at intervals."""
        scheme, _, given = ",".join(headers.getlist("authorization")).partition(" ")
        kind, found = scheme.lower(), _digest(given.strip())
        if kind == "basic" and self._asks and hmac.compare_digest(found, self._credentials):
            return Caller.PASSWORD
        if kind == "bearer" and any(hmac.compare_digest(found, token) for token in self._tokens):
            return Caller.TOKEN
        # a browser's first request has no user name: that is no attempt
        if scheme and (self._asks or kind == "bearer") and (count := self._refusals.due()):
            what = "a wrong user name or password" if kind != "bearer" else "a wrong token"
            logger.warning("%d requests with %s, the last from %s", count, what, client)
        return Caller.ANYONE

    def may_read(self, caller: Caller) -> bool:
        """Whether a caller may see what there is."""
        return not self._asks or caller is not Caller.ANYONE

    def refusal(self, caller: Caller, headers: Headers) -> tuple[int, str] | None:
        """Return why a caller may change nothing, with the HTTP status; None: it may."""
        if caller is Caller.TOKEN:  # nothing sends it by itself
            return None
        if caller is Caller.ANYONE:
            how = "Authorization: Bearer with the token of http.token or of api.token in the state directory"
            return 401, f"changing anything needs {how}" + (", or the password" if self._asks else "")
        if headers.get(OWN_HEADER) != "1":
            return 403, "what is changed by password needs the header X-Longwatch: 1, which no other site can send"
        if not self._is_own(headers):
            return 403, "this request comes from another site's page: nothing is changed"
        return None

    def _is_own(self, headers: Headers) -> bool:
        """Whether a browser says that its page is ours; what is no browser says nothing."""
        if headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return False
        if (origin := headers.get("origin")) is None:
            return True
        place = urlsplit(origin).netloc.lower()  # not the scheme: TLS may end at a proxy
        return bool(place) and place in {headers.get("host", "").lower(), self._own_place}


def _digest(text: str) -> bytes:
    """Return what may be compared: of one length, whatever the text's."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
