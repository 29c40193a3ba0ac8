"""The review page's API, and the page itself: static files that load nothing from anywhere else.

`GET /api/review` returns all that the page shows, `GET /api/state` tells whether it has changed, `POST /api/answers`
takes one answer. An answer that is sent twice (a double click, a retry after a lost reply) is taken once: each carries
an id that the page has drawn, and an answer that is on file already is not written again.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import Cookie, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field

from decant.errors import DecantError, StageError
from decant.labeltrust.decisions import UNCLEAR
from decant.review.gate import Gate, SameOriginOnly
from decant.review.pictures import ReviewPictures, SeenAs
from decant.review.queue import Question
from decant.review.state import ReviewState
from decant.review.store import Changed, Closed, NotAsked, Store
from decant.web.body_limit import BodyLimit

PAGE = Path(__file__).with_name("page")
BODY_BYTES = 2**16


class Token(BaseModel):
    """The body of `POST /api/session`: the one-time token of the page's address."""

    model_config = ConfigDict(extra="forbid")
    token: Annotated[str, Field(max_length=100)]


class Answer(BaseModel):
    """The body of `POST /api/answers`."""

    model_config = ConfigDict(extra="forbid")
    row: int
    label: Annotated[str, Field(min_length=1, max_length=200)] | None
    """A class name or `unclear`; null takes the answer back."""
    before: Annotated[str, Field(min_length=1, max_length=200)] | None
    """What the page shows as this expert's answer until now."""
    answer_id: Annotated[str, Field(pattern="^[A-Za-z0-9-]{8,64}$")]


def create_app(
    store: Store,
    gate: Gate,
    *,
    for_run: bool = False,
    budget: int | None = None,
    pictures: ReviewPictures | None = None,
) -> FastAPI:
    """The page and its API.

    for_run: `decant run` has started the page, and goes on by itself when all is answered.
    budget: how many rows the expert is shown in all at most (`verify.budget`).
    """
    shown = pictures or ReviewPictures(lambda: rows_of(store))
    app = FastAPI(title="Decant: review", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(BodyLimit, limit=BODY_BYTES)
    app.add_middleware(SameOriginOnly, gate=gate)
    add_error_handlers(app)

    def admitted(key: Annotated[str | None, Cookie(alias=gate.cookie)] = None) -> None:
        if not gate.admits(key):
            raise HTTPException(401, "open the address that `decant review` printed")

    locked = [Depends(admitted)]

    @app.post("/api/session", status_code=204)
    def session(given: Token, response: Response) -> None:
        if (key := gate.exchange(given.token)) is None:
            raise HTTPException(401, "this address was used before, or belongs to another page")
        response.set_cookie(gate.cookie, key, httponly=True, samesite="strict", path="/")

    @app.get("/api/state", dependencies=locked)
    def state() -> dict[str, Any]:
        try:
            return open_state(store.read(), store.expert, for_run=for_run)
        except Closed:
            return working(for_run=for_run)

    @app.get("/api/review", dependencies=locked)
    def review() -> dict[str, Any]:
        try:
            now = store.read()
        except Closed:
            return working(for_run=for_run)
        return {
            **open_state(now, store.expert, for_run=for_run),
            "expert": store.expert,
            "budget": budget,
            "classes": now.class_names,
            "unclear": now.text(UNCLEAR),
            "purified": shown.purified,
            "steps": now.steps(store.expert),
            "rows": [row_of(now, store.expert, question) for question in now.questions.values()],
        }

    @app.post("/api/answers", dependencies=locked)
    def answers(given: Answer) -> dict[str, Any]:
        try:
            taken = store.answer(given.row, given.label, given.answer_id, before=given.before)
        except NotAsked as error:
            raise HTTPException(404, f"row {given.row} is not asked for") from error
        except Changed as changed:
            raise HTTPException(
                409, f"row {given.row} was answered on another page in the meantime: {changed}"
            ) from changed
        try:
            now = store.read()
        except Closed:  # the answer is on file, and the stage has started to work on it
            return {**working(for_run=for_run), "taken": taken, "row": None}
        row = row_of(now, store.expert, now.questions[given.row])
        return {**open_state(now, store.expert, for_run=for_run), "taken": taken, "row": row}

    @app.get("/api/rows/{row}/{seen_as}.png", dependencies=locked)
    def picture(row: int, seen_as: SeenAs) -> Response:
        found = shown.png(row, seen_as)
        if found is None:
            raise HTTPException(404, f"no row {row} here")
        return Response(found, media_type="image/png", headers={"cache-control": "private, max-age=3600"})

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def add_error_handlers(app: FastAPI) -> None:
    """Turns errors of the library into answers that the page can show."""

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


def open_state(state: ReviewState, expert: str, *, for_run: bool) -> dict[str, Any]:
    """What `GET /api/state` says while there are questions, or all of them are answered."""
    progress = state.progress(expert)
    word = "open" if progress.open else "done"
    here = {"version": state.version, "answers": state.answers_version}
    return {"state": word, "for_run": for_run, **here, "progress": asdict(progress)}


def working(*, for_run: bool) -> dict[str, Any]:
    """What it says while the stage is at work, or has not asked anything yet."""
    return {"state": "working", "for_run": for_run}


def row_of(state: ReviewState, expert: str, question: Question) -> dict[str, Any]:
    """A question and its answers. An expert learns what others say only after answering, so that nobody is led."""
    votes = state.votes.get(question.id, {})
    mine = votes.get(expert)
    told = {} if mine is None else {who: answer for who, answer in votes.items() if who != expert}
    return {
        **asdict(question),
        "mine": None if mine is None else state.text(mine),
        "others": {who or "unnamed": state.text(answer) for who, answer in told.items()},
        "disputed": question.id in state.disputes,
    }
