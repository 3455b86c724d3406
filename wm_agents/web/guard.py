"""What protects a server of this package: the token, Host and Origin, headers, and limits of what a client may send."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
HOST = re.compile(r"(\[(?P<ipv6>[0-9a-fA-F:.]+)\]|(?P<name>[^:\[\]/@]*))(:\d+)?")
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def make_token(host: str) -> str:
    """The token that visitors need: none on loopback, else a random one."""
    if host in LOOPBACK:
        return ""
    return secrets.token_urlsafe(18)


class Guard:
    """ASGI middleware: rejects foreign hosts, foreign origins and missing tokens, and adds headers to responses.

    On loopback the Host must be a loopback name, so that no name of another site can lead here (DNS rebinding).
    Elsewhere the token does that. An Origin, which browsers always send with a websocket, must be the Host itself.
    Static files need no token: they are the same for everybody.

    Args:
        host: the address that the server listens on.
        token: what `?token=` must be; empty for none.
    """

    def __init__(self, app: ASGIApp, host: str, token: str) -> None:
        self.app, self.local, self.token = app, host in LOOPBACK, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if why := self._rejects(scope):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008, "reason": why})
            else:
                await PlainTextResponse(f"{why}\n", 403, HEADERS)(scope, receive, send)
            return
        await self.app(scope, receive, self._with_headers(send))

    def _rejects(self, scope: Scope) -> str:
        """Why a request is not answered; empty if it is."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.local and _name_of(host) not in LOOPBACK:
            return f"Host must be one of {', '.join(LOOPBACK)}, got {host[:80]!r}"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return f"Origin must be the page of this server, got {origin[:80]!r}"
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        open_to_all = not self.token or scope["path"].startswith("/static/")
        if not open_to_all and not secrets.compare_digest(given.encode(), self.token.encode()):
            return "the token in the URL is missing or wrong; open the URL that the command printed"
        return ""

    def _with_headers(self, send: Send) -> Send:
        async def wrapped(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        return wrapped


def _name_of(host: str) -> str:
    """The name in a Host header, without port and brackets; empty if it is malformed."""
    found = HOST.fullmatch(host)
    if found:
        return (found["ipv6"] or found["name"]).lower()
    return ""


class RateLimit:
    """A bucket of `burst` messages that refills at `per_s`. `delay` says how long the next message has to wait.

    The reader of a connection waits that long before it reads again, so that a flood is slowed by TCP itself and costs
    no more than `per_s` messages.
    """

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_s, self.burst, self.clock = per_s, burst, clock
        self._left, self._at = burst, clock()

    def delay(self) -> float:
        """Take one message; seconds to wait before the next one is read."""
        now = self.clock()
        self._left = min(self.burst, self._left + (now - self._at) * self.per_s) - 1
        self._at = now
        return max(0.0, -self._left / self.per_s)
