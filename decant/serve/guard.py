"""ASGI middleware of `decant serve`: who may ask, and how many at a time. Both are settled before a body is read.

Why not Starlette's TrustedHostMiddleware and uvicorn's `limit_concurrency`: the first answers 400 without saying which
host it expects; the second counts idle connections too, refuses /health and sends no Retry-After.
"""

import hmac
import re

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from decant.web.body_limit import error_response

OWN_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]+)?", re.IGNORECASE)


class CallerCheck:
    """With a token, answers 401 to a request that doesn't carry it; /health is open to all.

    Without one, answers 403 to a request whose Host isn't this machine: a browser sends it for a web page that lets its
    own name point to 127.0.0.1, and the page could read the answer.
    """

    def __init__(self, app: ASGIApp, token: str):
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self.refusal(scope) if scope["type"] == "http" else None
        await (refused or self.app)(scope, receive, send)

    def refusal(self, scope: Scope) -> Response | None:
        headers = dict(scope["headers"])
        if not self.token:
            host = headers.get(b"host", b"").decode("latin-1")
            refusal = error_response(403, "Host: 127.0.0.1, localhost or [::1] expected")
            return None if OWN_HOST.fullmatch(host) else refusal
        given, expected = headers.get(b"authorization", b""), f"Bearer {self.token}".encode()
        if scope["path"] == "/health" or hmac.compare_digest(given, expected):
            return None
        return error_response(401, "Authorization: Bearer TOKEN expected", {"WWW-Authenticate": "Bearer"})


class RequestLimit:
    """Answers 503 to a request that comes while `limit` others with a body are read, decoded or scored."""

    def __init__(self, app: ASGIApp, limit: int):
        self.app, self.limit, self.inside = app, limit, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        if self.inside >= self.limit:
            busy = error_response(503, "too many requests wait; try again", {"Retry-After": "1"})
            return await busy(scope, receive, send)
        self.inside += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.inside -= 1
