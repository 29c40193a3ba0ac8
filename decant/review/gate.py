"""Who may use the review page: the browser that was handed the address, and no web page but our own.

The page listens on this machine only, but so it is reachable by every web site that its user has open. Therefore:

* the address carries a one-time token in its fragment, which no server log or Referer shows. The page exchanges it for
  a cookie (HttpOnly, SameSite=Strict) and forgets it; without the cookie the API answers 401;
* a request whose Host is not ours is refused (a site that lets its name point to 127.0.0.1), and one whose Origin is
  not ours (a form or script of another site).

Once a token is used, the next one is announced, for another browser.
"""

import hmac
import secrets
from collections.abc import Callable
from typing import Any

from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

NAMES = ("127.0.0.1", "localhost")
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class Gate:
    """The keys of one running page."""

    def __init__(self, port: int, announce: Callable[[str], None] = lambda address: None):
        self.port = port
        self._announce = announce
        self._token = secrets.token_urlsafe(24)
        self._key = secrets.token_urlsafe(32)

    @property
    def cookie(self) -> str:
        """Its name. Cookies don't keep ports apart, so that two pages in one browser need two names."""
        return f"decant-review-{self.port}"

    @property
    def address(self) -> str:
        """Good for one browser."""
        return f"http://127.0.0.1:{self.port}/#{self._token}"

    def exchange(self, token: str) -> str | None:
        """The cookie's value for the token, which is then void; None for any other."""
        if not hmac.compare_digest(token.encode(), self._token.encode()):
            return None
        self._token = secrets.token_urlsafe(24)
        self._announce(self.address)
        return self._key

    def admits(self, cookie: str | None) -> bool:
        return cookie is not None and hmac.compare_digest(cookie.encode(), self._key.encode())

    def is_ours(self, host: str, origin: str | None) -> bool:
        hosts = [f"{name}:{self.port}" for name in NAMES]
        return host.lower() in hosts and (origin is None or origin.lower() in [f"http://{name}" for name in hosts])


class SameOriginOnly:
    """ASGI middleware: refuses foreign hosts and origins, and adds HEADERS to every answer."""

    def __init__(self, app: ASGIApp, gate: Gate):
        self._app, self._gate = app, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        found = headers_of(scope)
        if self._gate.is_ours(found.get("host", ""), found.get("origin")):
            await self._app(scope, receive, send_with_headers)
        else:
            refusal: Response = PlainTextResponse("Only this machine's own page may ask.", 403)
            await refusal(scope, receive, send_with_headers)


def headers_of(scope: Scope) -> dict[str, str]:
    pairs: Any = scope["headers"]
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in pairs}
