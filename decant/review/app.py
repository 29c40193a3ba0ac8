"""The review page's API, and the page itself: static files that load nothing from anywhere else.

`GET /api/review` is all that the page shows, `GET /api/state` whether that has changed, `POST /api/answers` takes one
answer. One that is sent twice (a double click, a retry after a lost reply) is taken once: each carries an id that the
page made up, and an answer that stands already is not written again.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import Cookie, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field

from decant.errors import DecantError, StageError
from decant.labeltrust.decisions import UNCLEAR, agreed, label_text
from decant.review.gate import Gate, SameOriginOnly
from decant.review.pictures import As, Pictures
from decant.review.queue import Question
from decant.review.store import Changed, Closed, NotAsked, Store
from decant.web.body_limit import BodyLimit

PAGE = Path(__file__).with_name("page")
BODY_BYTES = 2**16


class Token(BaseModel):
    model_config = ConfigDict(extra="forbid")
    token: Annotated[str, Field(max_length=100)]


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    row: int
    label: Annotated[str, Field(min_length=1, max_length=200)] | None
    """A class name or `unclear`; null takes the answer back."""
    before: Annotated[str, Field(min_length=1, max_length=200)] | None
    """What the page shows as this expert's answer until now."""
    answer_id: Annotated[str, Field(pattern="^[A-Za-z0-9-]{8,64}$")]


def create_app(
    store: Store, gate: Gate, *, for_run: bool = False, budget: int | None = None, pictures: Pictures | None = None
) -> FastAPI:
    """`for_run`: `decant run` has brought the page up and goes on by itself when all is answered; `budget`: rows that
    the expert is shown in all at most."""
    shown = pictures or Pictures(lambda: rows_of(store))
    app = FastAPI(title="Decant: review", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(BodyLimit, limit=BODY_BYTES)
    app.add_middleware(SameOriginOnly, gate=gate)
    tell_refusals(app)

    def admitted(key: Annotated[str | None, Cookie(alias=gate.cookie)] = None) -> None:
        if not gate.admits(key):
            raise HTTPException(401, "open the address that `decant review` printed")

    locked = [Depends(admitted)]

    @app.post("/api/session", status_code=204)
    def session(given: Token, response: Response) -> None:
        if (key := gate.exchange(given.token)) is None:
            raise HTTPException(401, "this address was used already, or is none of ours")
        response.set_cookie(gate.cookie, key, httponly=True, samesite="strict", path="/")

    @app.get("/api/state", dependencies=locked)
    def state() -> dict[str, Any]:
        return state_of(store, for_run=for_run)

    @app.get("/api/review", dependencies=locked)
    def review() -> dict[str, Any]:
        try:
            found = open_state(store, for_run=for_run)
            rows = [row_of(store, question) for question in store.questions().values()]
            asked = {"expert": store.expert, "steps": store.my_steps(), "budget": budget}
        except Closed:
            return working(for_run=for_run)
        about = {"classes": store.class_names, "purified": shown.purified}
        return {**found, **asked, **about, "unclear": label_text(UNCLEAR, store.class_names), "rows": rows}

    @app.post("/api/answers", dependencies=locked)
    def answers(given: Answer) -> dict[str, Any]:
        try:
            taken = store.answer(given.row, given.label, given.answer_id, before=given.before)
        except NotAsked as error:
            raise HTTPException(404, f"row {given.row} is not asked for") from error
        except Changed as now:
            raise HTTPException(409, f"on another page row {given.row} was answered meanwhile: {now}") from now
        try:
            row = row_of(store, store.questions()[given.row])
        except Closed:  # the answer is on file, and the stage went to work on it at this moment
            row = None
        return {**state_of(store, for_run=for_run), "taken": taken, "row": row}

    @app.get("/api/rows/{row}/{seen_as}.png", dependencies=locked)
    def picture(row: int, seen_as: As) -> Response:
        found = shown.png(row, seen_as)
        if found is None:
            raise HTTPException(404, f"no row {row} here")
        return Response(found, media_type="image/png", headers={"cache-control": "private, max-age=3600"})

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def tell_refusals(app: FastAPI) -> None:
    """Errors of the library as answers that the page can show."""

    @app.exception_handler(Closed)
    def closed(_request: Request, _error: Closed) -> JSONResponse:
        return JSONResponse({"detail": "no questions at the moment"}, 409)

    @app.exception_handler(DecantError)
    def mistaken(_request: Request, error: DecantError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422 if isinstance(error, StageError) else 404)


def rows_of(store: Store) -> set[int]:
    """Every row that the page shows: the questions and their references."""
    questions = store.questions().values()
    return {row for q in questions for row in (q.id, *q.like_given, *q.like_suggested)}


def state_of(store: Store, *, for_run: bool) -> dict[str, Any]:
    try:
        return open_state(store, for_run=for_run)
    except Closed:
        return working(for_run=for_run)


def open_state(store: Store, *, for_run: bool) -> dict[str, Any]:
    """Raises: Closed, also where the stage goes to work at this moment."""
    progress, version = store.progress(), store.version
    word = "open" if progress.open else "done"
    here = {"version": version, "answers": store.answers}
    return {"state": word, "for_run": for_run, **here, "progress": asdict(progress)}


def working(*, for_run: bool) -> dict[str, Any]:
    """The stage is at work, or has not asked anything yet."""
    return {"state": "working", "for_run": for_run}


def row_of(store: Store, question: Question) -> dict[str, Any]:
    """A question with what was answered. What others say is told only to who has answered."""
    votes = store.votes().get(question.id, {})
    disputed = bool(votes) and agreed(votes) is None
    mine = votes.get(store.expert)
    others = {expert: answer for expert, answer in votes.items() if expert != store.expert}
    told = others if mine is not None else {}
    return {
        **asdict(question),
        "mine": None if mine is None else label_text(mine, store.class_names),
        "others": {expert or "unnamed": label_text(answer, store.class_names) for expert, answer in told.items()},
        "disputed": disputed,
    }
