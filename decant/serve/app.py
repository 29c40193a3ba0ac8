"""`decant serve`: score labels over HTTP, for programs on this machine or others.

    POST /score    {"images": [base64 of a PNG or JPEG | nested lists of 0-255], "labels": ["cat" | 3]}
                   -> {"trust": [0.98], "suggested": ["cat"], "suggested_trust": [0.98]}
    GET  /classes  names, and how many references each has; classes without references get a trust of null
    GET  /health

Limits: bytes of a request (413), pictures of a request and pixels of a picture (422), requests at a time (503 with
Retry-After). Pictures are decoded as `ingest` decodes them, and never past their header when that declares too many
pixels. Without a token only this machine is listened to, under its own names (403); with one (DECANT_TOKEN or --token),
requests must carry it as `Authorization: Bearer TOKEN` (401). `decant.serve.guard` checks both before the body is read.
"""

import argparse
import asyncio
import base64
import io
import os
import socket
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from jaxtyping import UInt8
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, StrictInt
from rich.console import Console
from starlette.responses import Response

from decant.data.decode import FORMATS, Rules, Undecodable, decode
from decant.data.images import NO_LABEL, class_number
from decant.errors import DecantError
from decant.labeltrust.prior import Prior, parse_prior
from decant.serve.batcher import Batcher, QueueFull
from decant.serve.guard import CallerCheck, RequestLimit
from decant.web.body_limit import BodyLimit, error_response
from decant.web.sockets import listening

if TYPE_CHECKING:
    from decant.labeltrust.scorer import Judged, TrustScorer

TOKEN_VARIABLE = "DECANT_TOKEN"
PATIENCE = 60.0  # seconds that a request waits for its answer


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one server takes, so that no client can exhaust its memory."""

    body: int = 32 * 2**20
    """Bytes of a request."""
    images: int = 256
    """Pictures of a request."""
    pixels: int = 4_000_000
    """Pixels of a picture, declared in its header or sent in nested lists."""
    waiting: int = 64
    """Requests that wait to be scored."""
    batch: int = 1024
    """Pictures of a batch from which on it is scored without waiting for more."""
    seconds: float = 0.005
    """How long a smaller batch waits for more pictures."""


class ScoreRequest(BaseModel):
    """The body of `POST /score`: pictures, and the label that a model predicted for each."""

    model_config = ConfigDict(extra="forbid")
    images: Annotated[list[str | list[Any]], Field(min_length=1)]
    """Base64 of an image file, or rows of gray values or of [red, green, blue], whole numbers from 0 to 255."""
    labels: Annotated[list[StrictInt | str], Field(min_length=1)]
    """The class that the model predicted, by name or number; one for each image."""


class ScoreAnswer(BaseModel):
    """The answer to it: one value for each picture."""

    trust: list[float | None]
    """Probability that the label is right; null where the class has no references."""
    suggested: list[str]
    """The likeliest class by the picture."""
    suggested_trust: list[float]


def main(arguments: argparse.Namespace) -> int:
    token = arguments.token or os.environ.get(TOKEN_VARIABLE, "")
    if not token and arguments.host not in ("127.0.0.1", "localhost", "::1"):
        raise DecantError(
            f"--host {arguments.host}: other machines could reach it; set a token first ({TOKEN_VARIABLE}=...)"
        )
    warnings.filterwarnings("ignore", module="PIL")  # in the whole process: threads decode, and share the filters
    prior = parse_prior(arguments.prior)
    if prior == "batch":
        raise DecantError("--prior batch: requests are judged one by one; uniform or a share of right labels expected")
    from decant.labeltrust.scorer import TrustScorer

    app = create_app(TrustScorer.load(arguments.scorer), prior=prior, token=token)
    with listening(arguments.host, arguments.port, otherwise="name another with --port") as listener:
        address = address_of(listener)
        Console(highlight=False).print(f"scoring labels on {address}; Ctrl-C ends it", soft_wrap=True)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=5
        )
        server = uvicorn.Server(config)
        with suppress(KeyboardInterrupt):  # Ctrl-C is how a person ends it
            server.run(sockets=[listener])
    return 0


def address_of(listener: socket.socket) -> str:
    """The URL at which the socket can be reached; an IPv6 address stands in brackets."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


# ---------------------------------------------------------------------------------------------------------------------
# The application
# ---------------------------------------------------------------------------------------------------------------------


def create_app(
    scorer: "TrustScorer", *, prior: Prior = "uniform", token: str = "", limits: Limits | None = None
) -> FastAPI:
    """The application and its endpoints."""
    limits = limits or Limits()
    names, (height, width, channels) = scorer.class_names, scorer.shape
    rules = Rules(height, width, 1 if channels == 1 else 3)

    def judge(pixels: np.ndarray, labels: np.ndarray) -> "Judged":
        return scorer.judge(scorer.class_scores(pixels), labels, prior=prior)

    batcher = Batcher(judge, waiting=limits.waiting, rows=limits.batch, seconds=limits.seconds)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        scorer.class_scores(np.zeros((1, *scorer.shape), np.uint8))  # embeds the references before the first request
        with batcher:
            yield

    # No pages of FastAPI's own: they would load scripts from a CDN.
    app = FastAPI(title="decant serve", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.batcher = batcher
    app.add_middleware(BodyLimit, limit=limits.body)
    app.add_middleware(RequestLimit, limit=limits.waiting)
    app.add_middleware(CallerCheck, token=token)  # the last one added is asked first
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(Exception, failed)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "mode": scorer.mode, "shape": scorer.shape, "judged": len(scorer.judged)}

    @app.get("/classes")
    async def classes() -> list[dict[str, Any]]:
        counts = np.bincount(scorer.references.labels, minlength=len(names)).tolist()
        return [{"number": i, "name": name, "references": counts[i]} for i, name in enumerate(names)]

    @app.post("/score")
    async def score(request: ScoreRequest) -> ScoreAnswer:
        check_counts(request, limits)
        labels = np.array([label_of(given, row, names) for row, given in enumerate(request.labels)])
        pixels = await run_in_threadpool(decode_all, request.images, rules, limits.pixels)
        try:
            found = await asyncio.wait_for(asyncio.wrap_future(batcher.submit(pixels, labels)), PATIENCE)
        except (QueueFull, TimeoutError) as error:
            raise HTTPException(503, "too many requests wait; try again", {"Retry-After": "1"}) from error
        return answer_of(found, names)

    return app


def answer_of(judged: "Judged", names: tuple[str, ...]) -> ScoreAnswer:
    """The scorer's judgement as JSON can hold it: null instead of NaN, names instead of numbers."""
    return ScoreAnswer(
        trust=[None if np.isnan(value) else float(value) for value in judged.trust],
        suggested=[names[label] for label in judged.suggested],
        suggested_trust=judged.suggested_trust.tolist(),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Checking and decoding requests
# ---------------------------------------------------------------------------------------------------------------------


async def malformed(_request: Request, error: Exception) -> Response:
    """Tells what is wrong and where. FastAPI would repeat the body, which may not be valid JSON."""
    assert isinstance(error, RequestValidationError)
    places = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
    return error_response(422, "; ".join(places[:12]))


async def failed(_request: Request, _error: Exception) -> Response:
    """Tells of a bug of ours; its traceback is in the server's output."""
    return error_response(500, "something went wrong in the server; its output has the traceback")


def check_counts(request: ScoreRequest, limits: Limits) -> None:
    """Checks the number of images and labels. Raises HTTPException (422)."""
    images, labels = len(request.images), len(request.labels)
    if images != labels:
        raise HTTPException(422, f"one label for each image expected, {images} images and {labels} labels found")
    if images > limits.images:
        raise HTTPException(422, f"at most {limits.images} images in a request, {images} found; divide them")


def label_of(given: int | str, row: int, names: tuple[str, ...]) -> int:
    """The number of a class given by name or number. Raises HTTPException (422) for one that isn't there."""
    number = class_number(str(given), names) if isinstance(given, str) else given
    if number == NO_LABEL or not 0 <= number < len(names):
        some = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        raise HTTPException(422, f"labels[{row}]: one of {some}, or its number, expected, {given!r} found")
    return number


def decode_all(images: list[str | list[Any]], rules: Rules, max_pixels: int) -> UInt8[np.ndarray, "n h w c"]:
    """The pictures of a request in the scorer's shape. Raises HTTPException (422) for one that can't be decoded."""
    pixels = np.empty((len(images), *rules.shape), np.uint8)
    for row, image in enumerate(images):
        try:
            pixels[row] = decode(item_of(image, max_pixels), rules)
        except Undecodable as error:
            raise HTTPException(422, f"images[{row}]: {error}") from error
    return pixels


def item_of(image: str | list[Any], max_pixels: int) -> bytes | np.ndarray:
    """The image file behind the base64, or the picture of nested lists. Raises Undecodable with the reason."""
    if isinstance(image, str):
        try:
            data = base64.b64decode(image.rpartition(",")[2], validate=True)  # a data URL is taken, too
        except ValueError as error:  # binascii.Error is one; letters beyond ASCII raise a plain one
            raise Undecodable("base64 of an image file expected") from error
        if (found := declared_pixels(data)) > max_pixels:
            raise Undecodable(f"{found} pixels declared, at most {max_pixels} are decoded")
        return data
    return pixels_of(image, max_pixels)


def pixels_of(rows: list[Any], max_pixels: int) -> UInt8[np.ndarray, "h w c"]:
    """The picture that nested lists hold, with one or three channels.

    Lengths are checked first: NumPy would pad a text among the values to any size.

    Raises: Undecodable with the reason.
    """
    widths = {len(row) if isinstance(row, list) else 0 for row in rows}
    if len(widths) != 1 or 0 in widths:
        raise Undecodable("rows of equal length expected")
    height, width = len(rows), widths.pop()
    if height * width > max_pixels:
        raise Undecodable(f"{height * width} pixels found, at most {max_pixels} are taken")
    values, channels = list(chain.from_iterable(rows)), 1
    if all(isinstance(value, list) for value in values):
        depths = {len(value) for value in values}
        if not (len(depths) == 1 and depths <= {1, 3}):
            raise Undecodable("every pixel a gray value, or [red, green, blue], expected")
        values, channels = list(chain.from_iterable(values)), depths.pop()
    try:
        return np.frombuffer(bytes(values), np.uint8).reshape(height, width, channels)
    except (TypeError, ValueError) as error:
        raise Undecodable("whole numbers from 0 to 255 expected") from error


def declared_pixels(data: bytes) -> int:
    """Pixels by the image's header; 0 where no header can be read, which the decoder then reports better."""
    with suppress(Exception), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return image.width * image.height
    return 0
