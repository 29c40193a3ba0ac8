"""ASGI middleware that limits how large a request may be and how slowly it may come, before the body is parsed."""

import asyncio
import json

from fastapi import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PART_SECONDS = 30.0  # that may pass between two parts of a request's body


class BodyLimit:
    """Answers 413 to a request with more than `limit` bytes, declared or sent, and 408 to one that stops coming."""

    def __init__(self, app: ASGIApp, limit: int):
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        message = f"at most {self.limit} bytes in a request"
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.limit:
            return await error_response(413, message)(scope, receive, send)
        seen, more = 0, True

        async def counted() -> Message:
            nonlocal seen, more
            try:
                part = await asyncio.wait_for(receive(), PART_SECONDS if more else None)
            except TimeoutError as error:
                raise HTTPException(408, f"nothing more of the request came in {PART_SECONDS:.0f} s") from error
            more = part.get("more_body", False)
            seen += len(part.get("body", b""))
            if seen > self.limit:
                raise HTTPException(413, message)
            return part

        await self.app(scope, counted, send)


def error_response(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    """A refusal in the form of FastAPI's HTTPException: JSON with a `detail`, in ASCII whatever the text holds."""
    return Response(json.dumps({"detail": detail}), status, headers, "application/json")
