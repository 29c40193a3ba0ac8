"""`decant serve`: what it answers, and limits on what comes from outside."""

import asyncio
import base64
import io
import threading
import zlib
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from PIL import Image
from samples import digits
from scorers import UNKNOWN_CLASS, scorer_of_nine

from decant.labeltrust.scorer import Judged
from decant.serve.app import Limits, address_of, create_app
from decant.serve.app import pixels_of as nested
from decant.serve.batcher import Batcher, QueueFull
from decant.web.body_limit import BodyLimit
from decant.web.sockets import listening


@pytest.mark.parametrize("host, shown", [("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:")])
def test_printed_address_can_be_opened(host: str, shown: str) -> None:
    with listening(host, 0, otherwise="") as listener:
        assert address_of(listener) == f"{shown}{listener.getsockname()[1]}"


def encoded(row: int) -> str:
    out = io.BytesIO()
    Image.fromarray(digits()[1].pixels[row, ..., 0]).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def local(app: FastAPI, host: str = "127.0.0.1:8421") -> TestClient:
    return TestClient(app, base_url=f"http://{host}", raise_server_exceptions=False)


def test_the_endpoint_says_what_the_library_says() -> None:
    _, test = digits()
    expected = scorer_of_nine().score(test.pixels[:3], test.labels[:3], prior="uniform")
    nested = test.pixels[1, ..., 0].tolist()
    images = [encoded(0), nested, f"data:image/png;base64,{encoded(2)}"]
    labels = [str(test.labels[0]), int(test.labels[1]), str(test.labels[2])]
    with local(create_app(scorer_of_nine())) as client:
        answer = client.post("/score", json={"images": images, "labels": labels})
        assert answer.status_code == 200
        np.testing.assert_allclose(answer.json()["trust"], expected, atol=1e-5)
        unknown = client.post("/score", json={"images": images[:1], "labels": [UNKNOWN_CLASS]}).json()
        assert unknown["trust"] == [None] and unknown["suggested"] == [str(test.labels[0])]
        assert client.get("/health").json()["status"] == "ok"
        counts = {row["name"]: row["references"] for row in client.get("/classes").json()}
        assert counts == {**{str(label): 10 for label in range(9)}, "9": 0}


def test_concurrent_requests_share_a_batch_and_get_their_own_answers() -> None:
    _, test = digits()
    app = create_app(scorer_of_nine(), limits=Limits(seconds=0.3))
    expected = scorer_of_nine().score(test.pixels[:16], test.labels[:16], prior="uniform")

    def ask(client: TestClient, row: int) -> float:
        body = {"images": [encoded(row)], "labels": [str(test.labels[row])]}
        return float(client.post("/score", json=body).json()["trust"][0] or np.nan)

    with local(app) as client, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda row: ask(client, row), range(16)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert app.state.batcher.batches < 8


def png_that_declares(width: int, height: int) -> str:
    """A PNG of one pixel whose header says something else."""
    out = io.BytesIO()
    Image.new("L", (1, 1)).save(out, "PNG")
    data = bytearray(out.getvalue())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return base64.b64encode(bytes(data)).decode()


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (["x"], ["cat"], "labels[0]: one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, or its number, expected, 'cat' found"),
        (["x"], [10], "labels[0]: one of 0, 1"),
        (["x"], [-1], "labels[0]: one of 0, 1"),
        (["x", "x"], [1], "one label for each image expected, 2 images and 1 labels found"),
        (["x"] * 5, [1] * 5, "at most 4 images in a request, 5 found"),
        (["x"], ["1" * 5000], "labels[0]: one of 0, 1"),
        (["$%&"], [1], "images[0]: base64 of an image file expected"),
        (["é"], [1], "images[0]: base64 of an image file expected"),
        (["aGVsbG8="], [1], "images[0]: not an image"),
        ([png_that_declares(500, 500)], [1], "images[0]: 250000 pixels declared, at most 4000 are decoded"),
        ([png_that_declares(60_000, 60_000)], [1], "images[0]: over 89478485 pixels declared"),
        ([[[0, 1], [2]]], [1], "images[0]: rows of equal length expected"),
        ([[0, 1]], [1], "images[0]: rows of equal length expected"),
        ([[[], []]], [1], "images[0]: rows of equal length expected"),
        ([[[0.5, 1.0]]], [1], "images[0]: whole numbers from 0 to 255 expected"),
        ([[[0, 256]]], [1], "images[0]: whole numbers from 0 to 255 expected"),
        ([[[-1, 0]]], [1], "images[0]: whole numbers from 0 to 255 expected"),
        ([[[0, [0, 0, 0]]]], [1], "images[0]: whole numbers from 0 to 255 expected"),
        ([[[[0, 0]]]], [1], "images[0]: every pixel a gray value, or [red, green, blue], expected"),
        ([[["x" * 2**24, *[""] * 3000]]], [1], "images[0]: whole numbers from 0 to 255 expected"),  # NumPy: 192 GiB
        ([[[0] * 201] * 20], [1], "images[0]: 4020 pixels found, at most 4000 are taken"),
        ([[[[0, 0, 0]] * 201] * 20], [1], "images[0]: 4020 pixels found, at most 4000 are taken"),
        ([], [], "at least 1 item"),
    ],
)
def test_what_cannot_be_scored_is_named(images: list[object], labels: list[object], message: str) -> None:
    with local(create_app(scorer_of_nine(), limits=Limits(images=4, pixels=4000))) as client:
        answer = client.post("/score", json={"images": images, "labels": labels})
        assert answer.status_code == 422 and message in answer.text
        assert client.post("/score", content="{", headers={"Content-Type": "application/json"}).status_code == 422


@pytest.mark.parametrize(
    "body", ['{"images": "\\ud800", "labels": [1]}', '{"images": ["x"], "labels": [NaN]}', '{"\\ud800": 1}']
)
def test_a_body_that_json_cannot_repeat_is_named_all_the_same(body: str) -> None:
    with local(create_app(scorer_of_nine())) as client:
        answer = client.post("/score", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422 and answer.json()["detail"].startswith("body")


def test_a_large_body_is_refused_declared_or_not() -> None:
    body = b'{"images": ["' + b"A" * 5000 + b'"], "labels": [1]}'
    with local(create_app(scorer_of_nine(), limits=Limits(body=2000))) as client:
        kind = {"Content-Type": "application/json"}
        declared = client.post("/score", content=body, headers=kind)
        streamed = client.post("/score", content=(body[i : i + 500] for i in range(0, len(body), 500)), headers=kind)
        assert (declared.status_code, streamed.status_code) == (413, 413)
        assert "at most 2000 bytes" in declared.json()["detail"] and "at most 2000 bytes" in streamed.json()["detail"]
        assert client.get("/health").status_code == 200


def test_a_token_is_asked_for() -> None:
    with local(create_app(scorer_of_nine(), token="secret"), "decant.example") as client:
        assert client.get("/health").status_code == 200
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            assert client.get("/classes", headers=header).status_code == 401
            assert client.post("/score", json={}, headers=header).status_code == 401
        assert client.get("/classes", headers={"Authorization": "Bearer secret"}).status_code == 200


@pytest.mark.parametrize(
    "host", ["decant.example:8421", "127.0.0.1.evil.example", "localhost@evil.example", "[::2]", ""]
)
def test_a_web_page_under_a_name_of_its_own_is_refused(host: str) -> None:
    with local(create_app(scorer_of_nine())) as client:
        for path in ("/classes", "/score", "/health"):
            refused = client.request("POST" if path == "/score" else "GET", path, headers={"Host": host})
            assert refused.status_code == 403 and "127.0.0.1, localhost or [::1]" in refused.json()["detail"]


@pytest.mark.parametrize("host", ["127.0.0.1", "LOCALHOST:8421", "[::1]:9", "[::1]"])
def test_this_machine_has_three_names(host: str) -> None:
    with local(create_app(scorer_of_nine())) as client:
        assert client.get("/classes", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(("token", "host"), [("secret", "localhost"), ("", "evil.example")])
def test_who_may_not_ask_is_refused_before_the_body_is_read(token: str, host: str) -> None:
    taken: list[int] = []

    def body() -> Iterator[bytes]:
        for part in range(3):
            taken.append(part)
            yield b"{" * 100

    with local(create_app(scorer_of_nine(), token=token), host) as client:
        answer = client.post("/score", content=body(), headers={"Content-Type": "application/json"})
        assert answer.status_code in (401, 403) and not taken


def test_nested_lists_are_pictures_gray_or_coloured() -> None:
    gray = np.arange(12).reshape(3, 4)
    colour = np.arange(36).reshape(3, 4, 3)
    for pixels, shape in ((gray, (3, 4, 1)), (gray[..., None], (3, 4, 1)), (colour, (3, 4, 3))):
        found = nested(pixels.tolist(), 100)
        assert found.dtype == np.uint8 and (found == pixels.reshape(shape)).all()


def test_our_own_mistakes_are_told_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(scorer_of_nine())
    monkeypatch.setattr("decant.serve.app.decode_all", lambda *_: 1 / 0)
    with local(app) as client:
        answer = client.post("/score", json={"images": [encoded(0)], "labels": [1]})
    assert answer.status_code == 500 and "something went wrong" in answer.json()["detail"]


def test_a_crowd_is_turned_away_before_its_bodies_are_read() -> None:
    taken: list[int] = []

    def body() -> Iterator[bytes]:
        taken.append(1)
        yield b"{}"

    with local(create_app(scorer_of_nine(), limits=Limits(waiting=0))) as client:
        answer = client.post("/score", content=body())
        assert answer.status_code == 503 and answer.headers["Retry-After"] == "1" and not taken
        assert client.get("/health").status_code == 200


def test_a_request_that_stops_coming_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("decant.web.body_limit.PART_SECONDS", 0.05)

    async def silence() -> None:
        await asyncio.sleep(10)

    async def application(_scope: object, receive: Callable[[], Awaitable[object]], _send: object) -> None:
        await receive()

    scope = {"type": "http", "headers": []}
    with pytest.raises(HTTPException, match="408"):
        asyncio.run(BodyLimit(application, limit=100)(scope, silence, silence))  # type: ignore[arg-type]


def test_a_full_queue_says_when_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Future[Judged]:
        raise QueueFull

    app = create_app(scorer_of_nine())
    monkeypatch.setattr(app.state.batcher, "submit", full)
    with local(app) as client:
        answer = client.post("/score", json={"images": [encoded(0)], "labels": [1]})
        assert answer.status_code == 503 and answer.headers["Retry-After"] == "1"


# ---------------------------------------------------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------------------------------------------------


def echo(pixels: np.ndarray, labels: np.ndarray) -> Judged:
    return Judged(pixels.reshape(len(pixels), -1)[:, 0].astype(np.float32), labels, labels.astype(np.float32))


def pixels_of(*values: int) -> np.ndarray:
    return np.array(values, np.uint8).reshape(-1, 1, 1, 1)


def test_the_queue_is_bounded_and_answers_keep_their_order() -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow(pixels: np.ndarray, labels: np.ndarray) -> Judged:
        started.set()
        assert go_on.wait(10)
        return echo(pixels, labels)

    with Batcher(slow, waiting=2, rows=1, seconds=0) as batcher:
        first = batcher.submit(pixels_of(1), np.array([1]))
        assert started.wait(10)
        others = [batcher.submit(pixels_of(2, 3), np.array([2, 3])), batcher.submit(pixels_of(4), np.array([4]))]
        with pytest.raises(QueueFull):
            batcher.submit(pixels_of(5), np.array([5]))
        go_on.set()
        answers = [future.result(10).trust.tolist() for future in (first, *others)]
    assert answers == [[1], [2, 3], [4]]


def test_an_error_reaches_those_who_wait_and_the_thread_lives_on() -> None:
    def picky(pixels: np.ndarray, labels: np.ndarray) -> Judged:
        if (labels < 0).any():
            raise ValueError("negative")
        return echo(pixels, labels)

    with Batcher(picky, waiting=8, rows=8, seconds=0) as batcher:
        bad = batcher.submit(pixels_of(1), np.array([-1]))
        with pytest.raises(ValueError, match="negative"):
            bad.result(10)
        assert batcher.submit(pixels_of(7), np.array([1])).result(10).trust.tolist() == [7]


def test_a_full_batch_waits_for_no_more_and_a_gone_client_costs_nothing() -> None:
    with Batcher(echo, waiting=8, rows=2, seconds=30) as batcher:
        gone = batcher.submit(pixels_of(1), np.array([1]))
        gone.cancel()
        assert batcher.submit(pixels_of(2), np.array([2])).result(10).trust.tolist() == [2]
        closing = batcher.submit(pixels_of(3), np.array([3]))
    assert closing.result(0).trust.tolist() == [3]  # what is queued is answered before the thread ends
