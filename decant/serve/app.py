"""`decant serve`: trust in predictions over HTTP, for programs on this machine.

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
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, StrictInt
from rich.console import Console
from starlette.responses import Response

from decant.data.decode import FORMATS, Rules, Undecodable, decode
from decant.data.images import NO_LABEL, class_number
from decant.errors import DecantError
from decant.labeltrust.prior import parse_prior
from decant.serve.batcher import Batcher, Busy
from decant.serve.guard import CallerCheck, RequestLimit
from decant.web.body_limit import BodyLimit, error_response
from decant.web.sockets import listening

if TYPE_CHECKING:
    from decant.labeltrust.scorer import Judged, Prior, TrustScorer

TOKEN_VARIABLE = "DECANT_TOKEN"
PATIENCE = 60.0  # seconds that a request waits for its answer


@dataclass(frozen=True, kw_only=True)
class Limits:
    body: int = 32 * 2**20
    """Bytes of a request."""
    images: int = 256
    """Of a request."""
    pixels: int = 4_000_000
    """Of a picture: as its header declares them, or in nested lists."""
    waiting: int = 64
    """Requests that wait to be scored."""
    batch: int = 1024
    """Pictures from which on a batch waits for no more."""
    seconds: float = 0.005
    """That a batch waits for more."""


class ScoreRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    images: Annotated[list[str | list[Any]], Field(min_length=1)]
    """Base64 of an image file, or rows of gray values or of [red, green, blue], whole numbers from 0 to 255."""
    labels: Annotated[list[StrictInt | str], Field(min_length=1)]
    """The class that the model predicted, by name or number; one for each image."""


class ScoreAnswer(BaseModel):
    trust: list[float | None]
    """Probability that the label is right; null where the class has no references."""
    suggested: list[str]
    """The likeliest class by the picture."""
    suggested_trust: list[float]


def main(arguments: argparse.Namespace) -> int:
    token = arguments.token or os.environ.get(TOKEN_VARIABLE, "")
    if not token and arguments.host not in ("127.0.0.1", "localhost", "::1"):
        raise DecantError(f"--host {arguments.host}: others could reach it; set a token first ({TOKEN_VARIABLE}=...)")
    prior = parse_prior(arguments.prior)
    if prior == "batch":
        raise DecantError("--prior batch: requests are judged one by one; uniform or a share of right labels expected")
    from decant.labeltrust.scorer import TrustScorer

    app = create_app(TrustScorer.load(arguments.scorer), prior=prior, token=token)
    with listening(arguments.host, arguments.port, otherwise="name another with --port") as listener:
        address = address_of(listener)
        Console(highlight=False).print(f"scoring predictions on {address}; Ctrl-C ends it", soft_wrap=True)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=5
        )
        server = uvicorn.Server(config)
        with suppress(KeyboardInterrupt):  # how it is left
            server.run(sockets=[listener])
    return 0


def address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


# ---------------------------------------------------------------------------------------------------------------------
# The application
# ---------------------------------------------------------------------------------------------------------------------


def create_app(
    scorer: "TrustScorer", *, prior: "Prior" = "uniform", token: str = "", limits: Limits | None = None
) -> FastAPI:
    limits = limits or Limits()
    names, (height, width, channels) = scorer.class_names, scorer.shape
    rules = Rules(height, width, 1 if channels == 1 else 3)

    def judge(pixels: np.ndarray, labels: np.ndarray) -> "Judged":
        return scorer.judge(scorer.class_scores(pixels), labels, prior=prior)

    batcher = Batcher(judge, waiting=limits.waiting, rows=limits.batch, seconds=limits.seconds)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        scorer.class_scores(np.zeros((1, *scorer.shape), np.uint8))  # embeds the references before anybody waits
        with batcher:
            yield

    app = FastAPI(title="decant serve", lifespan=lifespan, docs_url=None, redoc_url=None)  # their pages load from afar
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
        except (Busy, TimeoutError) as error:
            raise HTTPException(503, "too many requests wait; try again", {"Retry-After": "1"}) from error
        return answer_of(found, names)

    return app


def answer_of(judged: "Judged", names: tuple[str, ...]) -> ScoreAnswer:
    return ScoreAnswer(
        trust=[None if np.isnan(value) else float(value) for value in judged.trust],
        suggested=[names[label] for label in judged.suggested],
        suggested_trust=judged.suggested_trust.tolist(),
    )


# ---------------------------------------------------------------------------------------------------------------------
# What comes from outside
# ---------------------------------------------------------------------------------------------------------------------


async def malformed(_request: Request, error: Exception) -> Response:
    """What is wrong and where, without FastAPI's repetition of what came, which JSON may not be able to say."""
    assert isinstance(error, RequestValidationError)
    places = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
    return error_response(422, "; ".join(places[:12]))


async def failed(_request: Request, _error: Exception) -> Response:
    """Our own mistake: the traceback is in the server's output."""
    return error_response(500, "something went wrong in the server; its output has the traceback")


def check_counts(request: ScoreRequest, limits: Limits) -> None:
    images, labels = len(request.images), len(request.labels)
    if images != labels:
        raise HTTPException(422, f"one label for each image expected, {images} images and {labels} labels found")
    if images > limits.images:
        raise HTTPException(422, f"at most {limits.images} images in a request, {images} found; divide them")


def label_of(given: int | str, row: int, names: tuple[str, ...]) -> int:
    number = class_number(str(given), names) if isinstance(given, str) else given
    if number == NO_LABEL or not 0 <= number < len(names):
        some = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        raise HTTPException(422, f"labels[{row}]: one of {some}, or its number, expected, {given!r} found")
    return number


def decode_all(images: list[str | list[Any]], rules: Rules, max_pixels: int) -> np.ndarray:
    """(n, h, w, c) uint8"""
    pixels = np.empty((len(images), *rules.shape), np.uint8)
    for row, image in enumerate(images):
        try:
            pixels[row] = decode(item_of(image, max_pixels), rules)
        except Undecodable as error:
            raise HTTPException(422, f"images[{row}]: {error}") from error
    return pixels


def item_of(image: str | list[Any], max_pixels: int) -> bytes | np.ndarray:
    """Raises: Undecodable with the reason."""
    if isinstance(image, str):
        try:
            data = base64.b64decode(image.rpartition(",")[2], validate=True)  # a data URL is taken, too
        except ValueError as error:  # binascii.Error is one; letters beyond ASCII raise a plain one
            raise Undecodable("base64 of an image file expected") from error
        if (found := declared_pixels(data)) > max_pixels:
            raise Undecodable(f"{found} pixels declared, at most {max_pixels} are decoded")
        return data
    return pixels_of(image, max_pixels)


def pixels_of(rows: list[Any], max_pixels: int) -> np.ndarray:
    """(h, w, 1 or 3) uint8 of nested lists. Lengths are looked at first: NumPy would pad a text among them to any size.

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
    """By the header; 0 where there is none that can be read, which the decoder then says better."""
    with warnings.catch_warnings(), suppress(Exception):
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.width * image.height
    return 0
