"""A run with `verify.expert: person`: it asks, pauses, goes on when all is answered, and asks again if need be."""

import http.client
import io
import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from http.cookiejar import CookieJar
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock
from uuid import uuid4

import httpx
import pytest
from reviewing import review_files, store_in
from rich.console import Console
from test_flow import api, newest_run
from toy_pipeline import ROOT, Toy, wait_until

from decant.cli import run
from decant.cli.terminal import Board
from decant.review import waiting
from decant.review.store import Closed
from flows.stages import pipeline
from flows.watch import Event

ASKING = """
import csv, pathlib, time
answered = {line["id"] for line in csv.DictReader(open("data/inputs/decisions.csv")) if line["label"]}
asked = [["11", "12"], ["13"]]
number = next((n for n, rows in enumerate(asked) if not answered.issuperset(rows)), None)
rows = [] if number is None else [row for row in asked[number] if row not in answered]
pathlib.Path("data/verify").mkdir(exist_ok=True)
lines = [f"{row},cat,,,,{number},why," for row in rows]
pathlib.Path("data/verify/queue.csv").write_text("\\n".join(["id,given,suggested,trust,label,round,why", *lines, ""]))
time.sleep(3 if pathlib.Path("slowly").exists() else 0)
print(f"verify: {len(rows)} rows wait")
"""
PIPELINE = """
stages:
  verify:
    cmd: python asking.py
    deps: [asking.py, data/inputs/decisions.csv]
    params: [verify.expert]
    outs: [data/verify]
  train:
    cmd: python -c "open('data/train', 'w').write(str(len(open('data/inputs/decisions.csv').readlines())))"
    deps: [data/verify, data/inputs/decisions.csv]
    outs: [data/train]
"""


@pytest.fixture
def asking(tmp_path: Path) -> Toy:
    """Two stages: one that asks about rows 11 and 12, then about 13; and one that needs it."""
    root = (tmp_path / "asking").resolve()
    root.mkdir()
    review_files(root)
    (root / "data/verify/queue.csv").unlink()
    (root / "data/verify/reviews.csv").unlink()
    (root / "asking.py").write_text(ASKING)
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / "params.yaml").write_text((ROOT / "params.yaml").read_text().replace("expert: oracle", "expert: person"))
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    toy = Toy(root)
    toy.dvc("init", "-q").check_returncode()
    return toy


class Person:
    """Somebody with a browser at the address that the run told."""

    def __init__(self, address: str):
        self._home, _, token = address.partition("/#")
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(CookieJar())
        )
        self._send("session", {"token": token})

    def sees(self) -> list[int]:
        """The rows that wait, none while the stage is at work."""
        with self._opener.open(f"{self._home}/api/review", timeout=30) as reply:
            return [row["id"] for row in json.load(reply).get("rows", []) if row["mine"] is None]

    def answer(self, row: int, label: str) -> None:
        self._send("answers", {"row": row, "label": label, "before": None, "answer_id": f"answer-{row:06}"})

    def _send(self, path: str, body: dict[str, Any]) -> None:
        headers = {"Content-Type": "application/json", "Origin": self._home}
        request = urllib.request.Request(f"{self._home}/api/{path}", json.dumps(body).encode(), headers)
        self._opener.open(request, timeout=30).close()


def address_in(read: Callable[[], str]) -> str:
    """The first address of the review page in lines of output."""
    while line := read():
        if line.startswith("review page: "):
            return line.removeprefix("review page: ").strip()
    raise AssertionError("no address was told")


def test_flow_pauses_for_a_person_and_goes_on_round_by_round(prefect_server: str, asking: Toy) -> None:
    flow = asking.start("run")
    assert flow.stdout is not None
    person = Person(address_in(flow.stdout.readline))
    assert person.sees() == [11, 12]
    wait_until(lambda: newest_run(prefect_server)["state_type"] == "PAUSED", "the flow run to be paused")
    links = [found for found in api(prefect_server, "artifacts/latest/filter", {}) if found["key"] == "review"]
    assert "http://127.0.0.1:" in links[0]["data"]
    person.answer(11, "dog")
    person.answer(12, "cat")
    wait_until(lambda: person.sees() == [13], "the next round, on the same page")
    person.answer(13, "unclear")
    assert flow.wait(timeout=90) == 0, flow.stdout.read()
    state = newest_run(prefect_server)["state"]
    assert (state["type"], state["message"]) == ("COMPLETED", "2 Done")
    assert (asking.root / "data/train").read_text() == "4"  # trained once, after the last answer
    assert asking.processes() == []


def test_a_run_that_is_stopped_while_it_waits_takes_its_page_along(prefect_server: str, asking: Toy) -> None:
    flow = asking.start("run")
    assert flow.stdout is not None
    person = Person(address_in(flow.stdout.readline))
    person.answer(11, "dog")
    flow.send_signal(signal.SIGTERM)
    assert flow.wait(timeout=60) == 128 + signal.SIGTERM
    assert asking.processes() == []
    with pytest.raises((OSError, http.client.HTTPException)):
        person.sees()
    assert "11,dog" in (asking.root / "data/inputs/decisions.csv").read_text()


@pytest.mark.parametrize(
    ("order", "body", "code", "trained"),
    [("resume", {}, 0, True), ("set_state", {"state": {"type": "CANCELLED"}, "force": True}, 1, False)],
)
def test_a_waiting_run_is_resumed_or_cancelled_on_prefects_page(
    prefect_server: str, asking: Toy, order: str, body: dict[str, Any], code: int, trained: bool
) -> None:
    flow = asking.start("run")
    assert flow.stdout is not None
    person = Person(address_in(flow.stdout.readline))
    wait_until(lambda: newest_run(prefect_server)["state_type"] == "PAUSED", "the flow run to be paused")
    person.answer(11, "dog")
    api(prefect_server, f"flow_runs/{newest_run(prefect_server)['id']}/{order}", body)
    assert flow.wait(timeout=60) == code, flow.stdout.read()
    assert newest_run(prefect_server)["state_type"] == ("COMPLETED" if trained else "CANCELLED")
    assert (asking.root / "data/train").exists() == trained
    asked = (asking.root / "data/verify/queue.csv").read_text()
    assert ("11,cat" in asked) != trained, "who resumes lets it go on with the answers of the pause"
    assert asking.processes() == []


def test_a_server_that_is_gone_or_busy_for_a_while_ends_no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.states import Paused

    from flows import clean  # here: it loads Prefect

    busy = httpx.Response(503, request=httpx.Request("POST", "http://127.0.0.1"))
    paused = SimpleNamespace(state=Paused(timeout_seconds=60))
    client, seen = MagicMock(), list[bool]()
    locked = httpx.HTTPStatusError("locked", request=busy.request, response=busy)
    client.read_flow_run.side_effect = [httpx.ConnectError("refused"), locked, paused, paused]

    def wait(go_on: Callable[[], bool]) -> bool:
        seen.extend(go_on() for _ in range(3))
        return True

    monkeypatch.setattr(clean, "get_client", lambda **_: nullcontext(client))
    monkeypatch.setattr(clean, "flow_run", SimpleNamespace(get_id=uuid4))
    assert clean.paused_for_answers(cast(waiting.ReviewPage, SimpleNamespace(wait=wait)))
    assert seen == [False, False, False]
    client.resume_flow_run.assert_called_once()


def test_no_answer_is_taken_before_dvc_has_recorded_what_the_stage_read(
    asking: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(asking.root)
    (asking.root / "slowly").touch()
    store = store_in(asking.root)
    with ThreadPoolExecutor() as pool:
        stage = pool.submit(asking.dvc, "repro", "verify")
        wait_until((asking.root / "data/verify/queue.csv").is_file, "the queue")
        with pytest.raises(Closed):
            store.answer(11, "dog", "answer-0001")
        stage.result().check_returncode()
    assert store.answer(11, "dog", "answer-0002")
    assert asking.dvc("status", "-q").returncode == 1, "the answer makes the stage stale"


def test_without_a_server_and_a_terminal_the_run_works_with_what_is_on_file(asking: Toy) -> None:
    done = asking.decant("run", "--no-server")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 rows wait for an answer (decant review); the run goes on without them" in done.stdout
    assert (asking.root / "data/train").is_file()


def test_without_a_server_a_terminal_waits_for_the_answers(asking: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(asking.root)
    monkeypatch.setattr(waiting, "GRACE", 0.2)
    people: list[Person] = []

    def answer(address: str) -> None:
        """As soon as the page is up, for the first round; the second is left to `go_on`."""
        if not people:
            people.append(Person(address))
            people[0].answer(11, "dog")
            people[0].answer(12, "dog")

    with waiting.ReviewPage(answer) as page:
        monkeypatch.setattr(page, "wait", partial(page.wait, lambda: bool(people) and people[0].sees() == [13]))
        assert run.done(pipeline(["verify"])[0], page, Console(file=io.StringIO(), force_terminal=True))
    assert waiting.open_questions() == 1
    assert asking.processes() == [os.getpid()]


def test_the_terminal_says_once_how_to_go_on_without_answers() -> None:
    shown = io.StringIO()
    board = Board(["verify"], Console(file=shown, width=80))
    for token in ("first", "second"):
        board.on_event(Event("verify", "Asking", address=f"http://127.0.0.1:1/#{token}"))
    assert shown.getvalue().count("decant run --set verify.expert=file") == 1
    assert "for another browser: http://127.0.0.1:1/#second" in shown.getvalue()
