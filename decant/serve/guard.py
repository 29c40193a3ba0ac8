"""ASGI middleware of `decant serve`: who may ask, how many at a time, and how much may come (this also of the review
page). All of that is settled before a body is read."""

import asyncio
import hmac
import json
import re

from fastapi import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATIENCE = 30.0  # seconds between two parts of a request
OWN_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]+)?", re.IGNORECASE)


class Callers:
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
            return None if OWN_HOST.fullmatch(host) else answer(403, "Host: 127.0.0.1, localhost or [::1] expected")
        given, expected = headers.get(b"authorization", b""), f"Bearer {self.token}".encode()
        if scope["path"] == "/health" or hmac.compare_digest(given, expected):
            return None
        return answer(401, "Authorization: Bearer TOKEN expected", {"WWW-Authenticate": "Bearer"})


class Crowd:
    """Answers 503 to a request that comes while `limit` others with a body are read, decoded or scored."""

    def __init__(self, app: ASGIApp, limit: int):
        self.app, self.limit, self.inside = app, limit, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        if self.inside >= self.limit:
            return await answer(503, "too many requests wait; try again", {"Retry-After": "1"})(scope, receive, send)
        self.inside += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.inside -= 1


class BodyLimit:
    """Answers 413 to a request whose body is larger: by what it declares, else once that much has come; and 408 to one
    that stops coming."""

    def __init__(self, app: ASGIApp, limit: int):
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        message = f"at most {self.limit} bytes in a request"
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.limit:
            return await answer(413, message)(scope, receive, send)
        seen, more = 0, True

        async def counted() -> Message:
            nonlocal seen, more
            try:
                part = await asyncio.wait_for(receive(), PATIENCE if more else None)
            except TimeoutError as error:
                raise HTTPException(408, f"nothing more of the request came in {PATIENCE:.0f} s") from error
            more = part.get("more_body", False)
            seen += len(part.get("body", b""))
            if seen > self.limit:
                raise HTTPException(413, message)
            return part

        await self.app(scope, counted, send)


def answer(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    """As FastAPI puts an HTTPException; in ASCII, so that whatever came can be told of."""
    return Response(json.dumps({"detail": detail}), status, headers, "application/json")
