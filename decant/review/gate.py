"""Access to the review page: only the browser that was given its address, and no other web site.

The page listens on this machine only, yet every web site that its user has open can send requests to it. Therefore:

* the address carries a one-time token in its fragment, which no server log or Referer shows. The page exchanges it for
  a cookie (HttpOnly, SameSite=Strict) and forgets it; without the cookie the API answers 401;
* a request whose Host is not ours is refused (a site that lets its name point to 127.0.0.1), and one whose Origin is
  not ours (a form or script of another site). Starlette's TrustedHostMiddleware compares neither ports nor origins.

Once a token is used, the next one is announced, for another browser.
"""

import hmac
import secrets
from collections.abc import Callable

from starlette.datastructures import Headers
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
    """The keys of one running page. `announce` gets its next address when a browser has used one."""

    def __init__(self, port: int, announce: Callable[[str], None] = lambda address: None):
        self.port = port
        self._announce = announce
        self._token = secrets.token_urlsafe(24)
        self._key = secrets.token_urlsafe(32)

    @property
    def cookie(self) -> str:
        """The cookie's name. A browser sends a cookie to all ports of a host, so that each page needs its own name."""
        return f"decant-review-{self.port}"

    @property
    def address(self) -> str:
        """The page's address with the token; it works in one browser."""
        return f"http://127.0.0.1:{self.port}/#{self._token}"

    def exchange(self, token: str) -> str | None:
        """The cookie's value for the token, which is then void; None for any other."""
        if not hmac.compare_digest(token.encode(), self._token.encode()):
            return None
        self._token = secrets.token_urlsafe(24)
        self._announce(self.address)
        return self._key

    def admits(self, cookie: str | None) -> bool:
        """Whether this is the value of our cookie."""
        return cookie is not None and hmac.compare_digest(cookie.encode(), self._key.encode())

    def is_ours(self, host: str, origin: str | None) -> bool:
        """Whether a request's Host and Origin (None: it has none) are those of this page."""
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

        headers = Headers(scope=scope)
        if self._gate.is_ours(headers.get("host", ""), headers.get("origin")):
            await self._app(scope, receive, send_with_headers)
        else:
            refusal: Response = PlainTextResponse("Only the review page itself may send requests here.", 403)
            await refusal(scope, receive, send_with_headers)
