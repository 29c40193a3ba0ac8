"""`decant score` and `decant serve`: labels from every place, faults named, limits on what comes from outside."""

import argparse
import base64
import csv
import io
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from samples import ROOT, digits
from scorers import UNKNOWN_CLASS, scorer_of_nine

from decant.scorer import Judged
from decant.tables import write_images
from flows import cli
from flows.batcher import Batcher, Busy
from flows.serve import Limits, address_of, create_app, listening

ROWS = 24


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scorer.safetensors; pictures/NN.png (the first test digits, and a broken file); table.parquet: the same rows."""
    folder = tmp_path_factory.mktemp("score")
    scorer_of_nine().save(folder / "scorer.safetensors")
    _, test = digits()
    (folder / "pictures").mkdir()
    for row in range(ROWS):
        Image.fromarray(test.pixels[row, ..., 0]).save(folder / f"pictures/{row:02}.png")
    (folder / "pictures/broken.png").write_bytes(b"no picture")
    write_images(folder / "table.parquet", test.select(np.arange(ROWS)))
    return folder


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def score(*words: str) -> list[dict[str, str]]:
    assert cli.main(["score", *words, "--scorer", "scorer.safetensors", "--out", "out.csv"]) == 0
    with open("out.csv", newline="") as file:
        return list(csv.DictReader(file))


def predictions(name: str, lines: list[str]) -> str:
    Path(name).write_text("\n".join(lines) + "\n")
    return name


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


def test_right_predictions_are_trusted_and_wrong_ones_doubtful(capsys: pytest.CaptureFixture[str]) -> None:
    _, test = digits()
    right = test.labels[:ROWS]
    wrong = np.arange(ROWS) % 4 == 0
    given = np.where(wrong, (right + 1) % 9, right)
    lines = ["file,label", *(f"{row:02}.png,{label}" for row, label in enumerate(given)), "broken.png,3"]
    found = score("pictures", "--labels", predictions("p.csv", lines))
    assert [row["file"] for row in found] == [f"{row:02}.png" for row in range(ROWS)] + ["broken.png"]
    judged = [row for row, label in zip(found, right, strict=False) if label != UNKNOWN_CLASS]
    is_wrong = wrong[right != UNKNOWN_CLASS]
    doubtful = np.array([row["status"] == "doubtful" for row in judged])
    assert doubtful[is_wrong].all() and doubtful[~is_wrong].mean() < 0.25
    suggested = np.array([row["suggested"] for row in judged])
    assert (suggested == right[right != UNKNOWN_CLASS].astype(str)).mean() > 0.85
    unknown = [row for row, label in zip(found, given, strict=False) if label == UNKNOWN_CLASS]
    assert unknown and all(row["trust"] == "" for row in unknown)
    assert {row["status"] for row in unknown} == {"not judged: no references of 9"}
    assert found[-1]["status"].startswith("not read: not an image") and found[-1]["suggested"] == ""
    out = capsys.readouterr().out
    assert f"doubtful {doubtful.sum()} " in " ".join(out.split())
    assert "not read" in out and "out.csv" in out


def test_the_scores_are_those_of_the_library() -> None:
    _, test = digits()
    found = score("table.parquet", "--prior", "uniform")
    trust = scorer_of_nine().score(test.pixels[:ROWS], test.labels[:ROWS], prior="uniform")
    written = [float(row["trust"] or "nan") for row in found]
    np.testing.assert_allclose(written, trust, atol=1e-5)
    assert [int(row["id"]) for row in found] == test.ids[:ROWS].tolist()
    assert [row["label"] for row in found] == test.labels[:ROWS].astype(str).tolist()


def test_class_folders_are_labels_and_pictures_are_resized_and_turned_gray(tmp_path: Path) -> None:
    _, test = digits()
    for row in range(ROWS):
        folder = tmp_path / f"set/{test.labels[row]}"
        folder.mkdir(parents=True, exist_ok=True)
        large = Image.fromarray(test.pixels[row, ..., 0]).resize((40, 40), Image.Resampling.BILINEAR)
        large.convert("RGB").save(folder / f"{row:02}.png")
    found = score(str(tmp_path / "set"))
    by_name = {row["file"].split("/")[1]: row for row in found}
    plain = {row["file"]: row for row in score("pictures", "--labels", predictions("p.csv", plain_lines()))}
    near = [
        abs(float(by_name[name]["trust"]) - float(plain[name]["trust"])) for name in by_name if plain[name]["trust"]
    ]
    assert len(found) == ROWS and np.median(near) < 0.1


def plain_lines() -> list[str]:
    _, test = digits()
    return ["file,label", *(f"{row:02}.png,{test.labels[row]}" for row in range(ROWS))]


def test_predictions_by_id_name_the_rows_they_are_for() -> None:
    found = score("table.parquet", "--labels", predictions("p.csv", ["id,label", "3,5", "7,0"]))
    assert [row["id"] for row in found if row["trust"]] == ["3", "7"]
    assert {row["status"] for row in found if not row["trust"]} == {"no label in p.csv"}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file,label", "00.png,ten"], "p.csv, line 2: one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 expected, 'ten' found"),
        (["file,label", "00.png,1", "99.png,1"], "p.csv, line 3: file of a picture expected, '99.png' found"),
        (["file,label", "00.png,1", "00.png,2"], "p.csv, line 3: file 00.png has another label further up"),
        (["name,label", "00.png,1"], "p.csv: columns id,label or file,label expected, name, label found"),
        (["file,label"], "pictures: no picture has a label"),
    ],
)
def test_wrong_predictions_get_one_line_and_exit_code_2(
    lines: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["score", "pictures", "--labels", predictions("p.csv", lines), "--scorer", "scorer.safetensors"]
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["score", "pictures"], "pictures: no picture has a label; give predictions with --labels"),
        (["score", "nowhere/"], "nowhere/: no such file or folder"),
        (["score", "pictures", "--prior", "2"], "--prior: batch, uniform or the share of right labels"),
        (["score", "pictures", "--threshold", "7"], "--threshold: a trust from 0 to 1 expected, 7 found"),
        (["score", "pictures", "--scorer", "table.parquet"], "table.parquet: not a safetensors file"),
        (["serve", "--host", "0.0.0.0"], "others could reach it; set a token first"),
        (["serve", "--prior", "batch"], "requests are judged one by one"),
    ],
)
def test_wrong_words_get_one_line_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DECANT_TOKEN", raising=False)
    scorer = [] if "--scorer" in words else ["--scorer", "scorer.safetensors"]
    assert cli.main([*words, *scorer]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("host, shown", [("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:")])
def test_printed_address_can_be_opened(host: str, shown: str) -> None:
    with listening(host, 0) as listener:
        assert address_of(listener) == f"{shown}{listener.getsockname()[1]}"


def test_the_docs_name_every_option() -> None:
    page = (ROOT / "docs/command-line.md").read_text()
    for name in ("score", "serve"):
        section = page.split(f"## decant {name}\n")[1].split("\n## ")[0]
        parser = argparse.ArgumentParser(add_help=False)
        cli.COMMANDS[name].add_arguments(parser)
        for option in parser.format_usage().split():
            if option.startswith("[--"):
                assert f"`{option[1:]}" in section, (name, option)


def test_the_first_example_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, test = digits()
    scorer_of_nine().save(tmp_path / "data/verify/scorer.safetensors")
    monkeypatch.chdir(tmp_path)
    found = {"pixels": test.pixels[:5], "labels": test.labels[:5]}
    exec((ROOT / "docs/score.md").read_text().split("```python\n")[1].split("```")[0], found)
    np.testing.assert_allclose(found["trust"], scorer_of_nine().score(test.pixels[:5], test.labels[:5]))
    assert found["suggested"].shape == found["certainty"].shape == (5,)


# ---------------------------------------------------------------------------------------------------------------------
# The endpoint
# ---------------------------------------------------------------------------------------------------------------------


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
        ([png_that_declares(5000, 5000)], [1], "images[0]: 25000000 pixels declared, at most 4000000"),
        ([png_that_declares(60_000, 60_000)], [1], "images[0]: over 89478485 pixels declared"),
        ([[[0, 1], [2]]], [1], "images[0]: rows of equal length expected"),
        ([[[0.5, 1.0]]], [1], "images[0]: (height, width) or (height, width, 3) whole numbers expected"),
        ([[[0, 256]]], [1], "images[0]: whole numbers from 0 to 255 expected"),
        ([[[0] * 2001] * 2000], [1], "images[0]: 4002000 pixels found, at most 4000000 are taken"),
        ([[[[0, 0, 0]] * 2001] * 2000], [1], "images[0]: 4002000 pixels found"),
        ([], [], "at least 1 item"),
    ],
)
def test_what_cannot_be_scored_is_named(images: list[object], labels: list[object], message: str) -> None:
    with local(create_app(scorer_of_nine(), limits=Limits(images=4))) as client:
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


def test_a_full_queue_says_when_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Future[Judged]:
        raise Busy

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
        with pytest.raises(Busy):
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
