"""The review page's API: who may use it, what it tells, what it takes."""

import io
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from reviewing import QUEUE, pictures_in, pictures_of, review_files, store_in
from toy_pipeline import environment

from decant.cli import main
from decant.data import parquet, tables
from decant.review import serving
from decant.review.app import BODY_BYTES, create_app
from decant.review.gate import Gate
from decant.review.store import Closed, Store
from decant.summaries import Purify2Summary

PORT = 8123
HOME = f"http://127.0.0.1:{PORT}"
ROWS = (11, 12, 13, 14, 15, 16, 17)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    review_files(tmp_path)
    return tmp_path


def stranger(root: Path, expert: str = "", gate: Gate | None = None, **options: Any) -> TestClient:
    """A browser without the cookie."""
    app = create_app(store_in(root, expert), gate or Gate(PORT), pictures=pictures_in(root, *ROWS), **options)
    return TestClient(app, base_url=HOME)


def browser(root: Path, expert: str = "", **options: Any) -> TestClient:
    """One that came by the address."""
    gate = Gate(PORT)
    client = stranger(root, expert, gate, **options)
    assert client.post("/api/session", json={"token": token_of(gate)}).status_code == 204
    return client


def token_of(gate: Gate) -> str:
    return gate.address.partition("#")[2]


def say(
    client: TestClient, row: int, label: str | None, answer_id: str = "answer-0001", before: str | None = None
) -> Any:
    return client.post("/api/answers", json={"row": row, "label": label, "before": before, "answer_id": answer_id})


def on_file(root: Path) -> list[str]:
    return [",".join(line.split(",")[:3]) for line in (root / "data/inputs/decisions.csv").read_text().splitlines()[1:]]


# --- the gate --------------------------------------------------------------------------------------------------------


def test_without_the_cookie_the_api_tells_and_takes_nothing(root: Path) -> None:
    client = stranger(root)
    assert client.get("/").status_code == 200  # the page itself says nothing about the data
    for path in ("/api/review", "/api/state", "/api/rows/11/verified.png"):
        assert client.get(path).status_code == 401, path
    assert say(client, 11, "dog").status_code == 401
    assert on_file(root) == []


def test_a_body_beyond_any_answer_is_refused_unread(root: Path) -> None:
    for path in ("/api/answers", "/api/session"):
        assert stranger(root).post(path, content=b"x" * (BODY_BYTES + 1)).status_code == 413, path


def test_the_token_works_once_and_the_cookie_is_for_this_page_alone(root: Path) -> None:
    announced: list[str] = []
    gate = Gate(PORT, announced.append)
    token = token_of(gate)
    first, second = stranger(root, gate=gate), stranger(root, gate=gate)
    given = first.post("/api/session", json={"token": token})
    assert {"HttpOnly", "Path=/", "SameSite=strict"} <= set(given.headers["set-cookie"].split("; "))
    assert first.get("/api/state").status_code == 200
    assert second.post("/api/session", json={"token": token}).status_code == 401
    assert second.get("/api/state").status_code == 401
    assert announced == [gate.address] and token_of(gate) != token, "the next browser's address"
    assert second.post("/api/session", json={"token": token_of(gate)}).status_code == 204


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://127.0.0.1:9999", "null", f"https://127.0.0.1:{PORT}"]
)
def test_a_foreign_origin_is_refused_although_it_has_the_cookie(root: Path, origin: str) -> None:
    client = browser(root)
    answer = {"row": 11, "label": "dog", "before": None, "answer_id": "answer-0001"}
    assert client.post("/api/answers", json=answer, headers={"Origin": origin}).status_code == 403
    assert on_file(root) == []
    assert client.post("/api/answers", json=answer, headers={"Origin": HOME}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:80"])
def test_a_foreign_host_is_refused_even_the_page(root: Path, host: str) -> None:
    assert browser(root).get("/", headers={"Host": host}).status_code == 403


def test_the_page_loads_nothing_from_elsewhere(root: Path) -> None:
    client = stranger(root)
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for path in ("/", "/review.js", "/view.js", "/api.js", "/review.css"):
        text = client.get(path).text
        assert text and "http://" not in text and "https://" not in text, path


# --- what it tells ---------------------------------------------------------------------------------------------------


def test_the_queue_with_trust_references_and_progress(root: Path) -> None:
    found = browser(root, "anna").get("/api/review").json()
    assert found["classes"] == ["cat", "dog", "2"] and found["expert"] == "anna" and found["state"] == "open"
    row = found["rows"][0]
    assert (row["id"], row["given"], row["suggested"], row["trust"]) == (11, "cat", "dog", 0.2)
    assert (row["why"], row["like_given"], row["like_suggested"]) == ("label disputed", [14, 16], [15])
    assert found["rows"][1]["trust"] is None
    assert found["budget"] is None and browser(root, budget=350).get("/api/review").json()["budget"] == 350
    assert (found["progress"]["round_asked"], found["progress"]["asked"], found["progress"]["answered"]) == (3, 5, 2)


def test_unclear_has_a_word_that_no_class_is_called(root: Path) -> None:
    assert browser(root).get("/api/review").json()["unclear"] == "unclear"
    store = store_in(root)
    store.class_names = ("cat", "dog", "unclear")
    gate = Gate(PORT)
    client = TestClient(create_app(store, gate, pictures=pictures_in(root, *ROWS)), base_url=HOME)
    assert client.post("/api/session", json={"token": token_of(gate)}).status_code == 204
    word = client.get("/api/review").json()["unclear"]
    assert say(client, 11, word).json()["row"]["mine"] == word != "unclear"
    assert on_file(root) == [f"11,{word},"]


def test_pictures_as_verify_sees_them_and_as_received(root: Path) -> None:
    client = browser(root)
    for seen_as, brightness in (("verified", 20 * 4), ("received", 255 - 20 * 4)):
        shown = client.get(f"/api/rows/14/{seen_as}.png")
        assert shown.headers["content-type"] == "image/png"
        assert np.asarray(Image.open(io.BytesIO(shown.content))).tolist() == [[brightness] * 6] * 6
    assert client.get("/api/rows/10/verified.png").status_code == 404, "a row that the page has no business with"
    assert client.get("/api/rows/11/truth.png").status_code == 422


def test_page_knows_whether_any_pixel_was_purified(root: Path) -> None:
    client = browser(root)
    for rows in (0, 3):
        summary = Purify2Summary(rows_in=5, rows_out=5, flagged=0, purified=rows, changed_rms=0.0, note="")
        summary.write(root / "data/purify_2")
        assert client.get("/api/review").json()["purified"] is (rows > 0)


def test_a_row_group_is_read_once_for_all_its_rows(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 100)  # about two rows each
    tables.write_images(root / "data/purify_2/train.parquet", pictures_of())
    groups: list[int] = []
    whole = tables.read_image_group

    def counted(path: Path, row: int) -> Any:
        found = whole(path, row)
        groups.append(len(found.ids))
        return found

    monkeypatch.setattr("decant.review.pictures.read_image_group", counted)
    pictures = pictures_in(root, *ROWS)
    for _ in range(2):
        assert all(pictures.png(row, "verified") for row in ROWS)
    assert sum(groups) == 8 and len(groups) > 2, "each group once, and none for a row that was seen"


def test_others_answers_are_not_told_before_ones_own(root: Path) -> None:
    say(browser(root, "anna"), 12, "dog")
    ben = browser(root, "ben")
    assert ben.get("/api/review").json()["rows"][1]["others"] == {}
    assert say(ben, 12, "dog").json()["row"]["others"] == {"anna": "dog"}
    disputed = say(ben, 12, "2", "answer-0002", before="dog").json()
    assert disputed["row"]["disputed"] and disputed["progress"]["disputed"] == 1
    cleo = browser(root, "cleo")
    row = cleo.get("/api/review").json()["rows"][1]
    assert row["disputed"] and row["others"] == {}, "whose voice decides is not led either"
    assert say(cleo, 12, "dog").json()["row"]["others"] == {"anna": "dog", "ben": "2"}


# --- what it takes ---------------------------------------------------------------------------------------------------


def test_an_answer_its_double_and_its_undo(root: Path) -> None:
    client = browser(root)
    first = say(client, 11, "dog").json()
    assert first["taken"] and first["row"]["mine"] == "dog" and first["progress"]["round_answered"] == 1
    again = say(client, 11, "dog")
    assert again.status_code == 200 and not again.json()["taken"]
    assert on_file(root) == ["11,dog,"]
    undone = say(client, 11, None, "answer-0002", before="dog").json()
    assert undone["row"]["mine"] is None and undone["progress"]["round_answered"] == 0
    assert on_file(root) == ["11,dog,", "11,,"]


def test_a_page_that_knows_of_no_later_answer_replaces_none(root: Path) -> None:
    first, second = browser(root, "anna"), browser(root, "anna")
    say(first, 11, "dog")
    refused = say(second, 11, "cat", "answer-0002")
    assert (
        refused.status_code == 409
        and "row 11 was answered on another page in the meantime: dog" in refused.json()["detail"]
    )
    assert not say(second, 11, "dog", "answer-0003").json()["taken"], "the same answer is no conflict"
    before = second.get("/api/state").json()["answers"]
    say(second, 11, "cat", "answer-0004", before="dog")
    assert second.get("/api/state").json()["answers"] != before, "so that the first page looks again"
    assert on_file(root) == ["11,dog,anna", "11,cat,anna"]


def test_undo_goes_back_over_what_stood_before_also_on_a_page_that_is_new(root: Path) -> None:
    client = browser(root, "anna")
    said: list[tuple[int, str | None, str | None]] = [
        (11, "cat", None), (12, "dog", None), (11, "dog", "cat"), (13, "2", None), (13, None, "2"),
    ]  # fmt: skip
    for number, (row, label, before) in enumerate(said):
        assert say(client, row, label, f"answer-{number:04}", before).json()["taken"]
    assert browser(root, "anna").get("/api/review").json()["steps"] == [
        [11, None, "cat"],
        [12, None, "dog"],
        [11, "cat", "dog"],
    ]
    assert browser(root, "ben").get("/api/review").json()["steps"] == []


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ({"label": "cow"}, 422),
        ({"label": ""}, 422),
        ({"row": 99}, 404),
        ({"before": "cow"}, 422),
        ({"answer_id": "../../etc"}, 422),
        ({"expert": "ben"}, 422),
    ],
)
def test_a_bad_answer_is_refused_and_not_written(root: Path, answer: dict[str, Any], status: int) -> None:
    good = {"row": 11, "label": "dog", "before": None, "answer_id": "answer-0001"}
    assert browser(root).post("/api/answers", json={**good, **answer}).status_code == status
    assert on_file(root) == []


def test_the_last_answer_makes_it_done_and_the_stage_at_work_makes_it_wait(root: Path) -> None:
    client = browser(root, for_run=True)
    for row in (11, 12, 13):
        reply = say(client, row, "dog", f"answer-{row:04}").json()
    assert reply["state"] == "done" and reply["for_run"]
    (root / "data/verify/queue.csv").unlink()
    assert client.get("/api/state").json() == {"state": "working", "for_run": True}
    assert client.get("/api/review").json()["state"] == "working"
    assert say(client, 11, "cat", "answer-9999", before="dog").status_code == 409


def test_a_stage_that_goes_to_work_between_two_looks_makes_the_page_wait(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = browser(root)

    def closed(store: Store) -> None:
        raise Closed

    monkeypatch.setattr(Store, "read", closed)
    assert client.get("/api/review").json()["state"] == "working"


def test_a_slip_in_the_file_is_told_with_its_line(root: Path) -> None:
    (root / "data/inputs/decisions.csv").write_text("id,label\n11,cow\n")
    refused = browser(root).get("/api/review")
    assert refused.status_code == 422 and "line 2: one of cat, dog, 2 or 'unclear' expected" in refused.json()["detail"]


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_says_why_there_is_nothing_to_review(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    queue = root / "data/verify/queue.csv"
    queue.write_text(QUEUE.splitlines()[0] + "\n")
    (root / "params.yaml").unlink()
    assert main.main(["review"]) == 2
    assert "params.yaml: can't be read" in capsys.readouterr().err
    (root / "params.yaml").write_text("verify: {expert: oracle}\n")
    assert main.main(["review"]) == 0
    assert "no row waits, because the expert is simulated" in capsys.readouterr().out
    (root / "params.yaml").write_text("verify: {expert: person}\n")
    assert main.main(["review", "--until-answered"]) == 0
    assert "no row waits for an answer" in capsys.readouterr().out
    queue.unlink()
    assert main.main(["review"]) == 2
    assert "no rows to review yet; `verify` asks for them: decant run verify" in capsys.readouterr().err


def test_a_page_for_the_stage_at_work_waits_for_its_questions(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    (root / "data/verify/queue.csv").unlink()
    monkeypatch.setattr("decant.review.serving.is_being_written", lambda folder: folder.name == "verify")
    assert serving.why_nothing(store_in(root)) == ""


def test_the_command_refuses_a_port_that_is_taken_and_a_name_that_is_none(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main.main(["review", "--port", str(taken.getsockname()[1])]) == 2
    assert "leave --port out to take a free one" in capsys.readouterr().err
    assert main.main(["review", "--expert", "an\nna"]) == 2


def test_the_page_needs_no_torch() -> None:
    program = "import sys, decant.review.serving, decant.review.labelstudio; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
