"""What the command line asks of the running daemon: its API, found and proven by the settings that the daemon has."""

from __future__ import annotations

import argparse
import getpass
import http.client
import json
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from connectors.errors import UserError
from detector.config.settings import Settings
from detector.errors import UsageError
from detector.service.api_token import TOKEN_FILE

SECONDS = 30.0  # for an answer
MAX_ANSWER = 64 << 20  # bytes
ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where a server on all addresses is found


class ClientError(UserError):
    """The daemon does not do what it is asked; the text says why."""


class NoDaemonError(ClientError):
    """Nobody listens there."""


class NotFoundError(ClientError):
    """The daemon knows nothing of that name."""


class Client:
    """Asks the daemon whose settings these are."""

    def __init__(self, settings: Settings, token_file: Path | None = None) -> None:
        """Take the token of `token_file`, of http.token, or the one that the daemon wrote. Raises UsageError."""
        at = settings.http
        if not at.port:
            raise UsageError("http.port = 0 is any free port: say which, such as --set http.port=9464")
        self._host, self._port = ANY.get(at.host, at.host), at.port
        self._tls = _trusting(Path(at.ssl_certfile)) if at.ssl_certfile else None
        self._token, source = at.token.get_secret_value(), "http.token"
        try:
            if token_file or not self._token:
                source = str(token_file or settings.state.directory / TOKEN_FILE)
                self._token = Path(source).read_text(encoding="ascii").strip()
            self._unproven = f"the token of {source} is not that of the daemon at {self.url}"
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            if token_file:
                raise UsageError(f"--token-file {token_file} cannot be read: {why}") from None
            self._unproven = f"{source} cannot be read: {why}"

    @property
    def url(self) -> str:
        """Where the daemon should be."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http{'s' if self._tls else ''}://{host}:{self._port}/"

    def get(self, path: str, **query: object) -> Any:
        """Return what there is at a path under /api/v1. Raises ClientError."""
        return self._ask("GET", path, query)

    def post(self, path: str, body: object, **query: object) -> Any:
        """Have something done. Raises ClientError."""
        return self._ask("POST", path, query, body)

    def delete(self, path: str, **query: object) -> Any:
        """Have something removed. Raises ClientError."""
        return self._ask("DELETE", path, query)

    def _ask(self, method: str, path: str, query: dict[str, object], body: object = None) -> Any:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection: http.client.HTTPConnection
        if self._tls:
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=SECONDS, context=self._tls)
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=SECONDS)
        try:
            target = f"/api/v1{path}" + (f"?{urlencode(query)}" if query else "")
            connection.request(method, target, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            status, content = answer.status, answer.read(MAX_ANSWER)
        except ConnectionRefusedError:
            raise NoDaemonError(f"no daemon listens at {self.url} (http.host, http.port): is it running?") from None
        except (OSError, http.client.HTTPException) as error:
            raise ClientError(f"{self.url} does not answer: {error or type(error).__name__}") from None
        finally:
            connection.close()
        try:
            said = json.loads(content)
        except ValueError:
            raise ClientError(f"{self.url} is no longwatch of this version: it answers {status} without JSON") from None
        if status >= 300:
            problem = str(said.get("error", status)) if isinstance(said, dict) else str(status)
            if status == 401:
                problem = f"{self._unproven}: --token-file names another file"
            raise (NotFoundError if status == 404 else ClientError)(problem)
        return said


def signature(options: argparse.Namespace) -> dict[str, str]:
    """Return who says something, and why, as the API takes it."""
    author = options.author
    if author is None:
        try:
            author = getpass.getuser()
        except (OSError, KeyError):  # a container's user may have no name
            author = ""
    return {"reason": options.reason, "author": author}


def _trusting(certificate: Path) -> ssl.SSLContext:
    """Trust the very certificate that the daemon shows, whatever name it is for: we ask the machine we are on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(certificate)
    except OSError as error:  # an SSLError is one
        raise UsageError(f"http.ssl_certfile {certificate} cannot be used: {error}") from None
    return context
