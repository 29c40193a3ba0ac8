"""The review page in a real browser, with the program that `decant review` starts."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from reviewing import QUEUE, pictures_of, review_files
from toy_pipeline import environment, wait_until

from decant.data.images import DatasetInfo, Images
from decant.data.tables import write_images
from decant.labeltrust.decisions import Decision
from decant.review.answers import append

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome found")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")


@contextmanager
def review(root: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`decant review`, and the address that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "decant.cli.main", "review", *options], cwd=root, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("review page: http://127.0.0.1:"), line
        yield process, line.removeprefix("review page: ").strip()
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    review_files(tmp_path)
    return tmp_path


def on_file(root: Path) -> list[str]:
    return [",".join(line.split(",")[:3]) for line in (root / "data/inputs/decisions.csv").read_text().splitlines()[1:]]


def question(page: Any, row: int) -> None:
    page.wait_for_selector(f"figcaption:has-text('row {row}')")


def first_question(chromium: Any, address: str) -> Any:
    """A page of a new browser, once it shows row 11."""
    page = chromium.new_context(viewport={"width": 1200, "height": 800}).new_page()
    page.goto(address)
    question(page, 11)
    return page


def test_keys_answer_rows_and_a_reloaded_page_goes_on(root: Path, chromium: Any) -> None:
    """The queue, by the given label: 11 and 13 (cat), then 12 (dog)."""
    with review(root, "--expert", "anna", "--until-answered") as (process, address):
        page = chromium.new_context(viewport={"width": 1200, "height": 800}).new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(address)
        question(page, 11)
        assert "#" not in page.url, "the token is gone from the address"
        assert page.inner_text(".question") == "Is this really cat?"
        assert page.locator(".likes img").count() == 3
        wait_until(lambda: page.evaluate("document.querySelector('.stage img').naturalWidth") == 6, "the picture")
        page.keyboard.press("s")  # the suggestion: dog
        question(page, 13)
        wait_until(lambda: on_file(root) == ["11,dog,anna"], "the answer to be on file")

        page.reload()
        question(page, 13)
        assert page.inner_text("#count").startswith("1 of 3 in round 1")
        page.keyboard.press("u")
        question(page, 12)
        page.keyboard.press("z")  # undo
        question(page, 13)
        page.keyboard.press("/")  # another class, typed
        page.keyboard.type("2")
        page.keyboard.press("Enter")
        question(page, 12)
        wait_until(lambda: on_file(root)[1:] == ["13,unclear,anna", "13,,anna", "13,2,anna"], "undo and answer")

        page.keyboard.press("g")
        assert page.locator(".card.done").count() == 2
        page.keyboard.press("Enter")  # the label is right
        page.wait_for_selector("text=All 3 rows answered")
        assert process.wait(timeout=60) == 0
        assert on_file(root)[-1] == "12,dog,anna"
        assert "next: decant run" in process.stdout.read()  # type: ignore[union-attr]
        assert errors == []


def test_a_whole_group_is_confirmed_and_taken_back_and_the_help_shows_the_keys(root: Path, chromium: Any) -> None:
    with review(root) as (_, address):
        page = first_question(chromium, address)
        page.keyboard.press("?")
        assert page.locator("#help").is_visible() and "take the suggestion" in page.inner_text("#help")
        page.keyboard.press("s")  # no answer while the help is open
        page.keyboard.press("Escape")
        page.keyboard.press("g")
        page.keyboard.press("Shift+Enter")
        wait_until(lambda: on_file(root) == ["11,cat,", "13,cat,"], "both cats to be confirmed")
        page.keyboard.press("z")
        wait_until(lambda: sorted(on_file(root)[2:]) == ["11,,", "13,,"], "both to be taken back")
        page.wait_for_selector("#count:has-text('0 of 3')")


def test_a_second_tab_sees_what_the_first_has_answered_and_replaces_nothing(root: Path, chromium: Any) -> None:
    with review(root) as (_, address):
        context = chromium.new_context(viewport={"width": 1200, "height": 800})
        first, second = context.new_page(), context.new_page()
        first.goto(address)
        question(first, 11)
        second.goto(address.partition("#")[0])
        question(second, 11)
        second.route("**/api/state", lambda route: route.abort())  # a tab whose timers sleep
        first.keyboard.press("s")
        wait_until(lambda: on_file(root) == ["11,dog,"], "the answer to be on file")
        second.keyboard.press("Enter")
        second.wait_for_selector("#toast:has-text('row 11 was answered on another page in the meantime: dog')")
        second.wait_for_selector("#count:has-text('1 of 3')")
        second.keyboard.press("z")  # would take back an answer that this tab never gave
        second.wait_for_selector("#toast:has-text('Nothing to undo')")
        second.keyboard.press("/")
        second.keyboard.press("Enter")  # nothing typed: no class
        second.keyboard.press("Escape")
        assert on_file(root) == ["11,dog,"]
        first.keyboard.press("z")
        wait_until(lambda: on_file(root) == ["11,dog,", "11,,"], "the first tab's answer to be taken back")


def test_a_button_chosen_by_tab_keeps_the_focus_from_row_to_row(root: Path, chromium: Any) -> None:
    """Else a second Enter would mean "the label is right", of a row that nobody has looked at."""
    with review(root) as (_, address):
        page = first_question(chromium, address)
        assert page.inner_text("#spoken") == "row 11: is this really cat?"
        page.keyboard.press("ArrowRight")  # the last input was a key: the focus shows
        page.keyboard.press("ArrowLeft")
        assert page.locator(".strip [aria-current=true] button").get_attribute("aria-label") == "row 11"
        page.focus("[data-do=unclear]")
        page.keyboard.press("Enter")
        question(page, 13)
        assert page.evaluate("document.activeElement.dataset.do") == "unclear"
        page.keyboard.press("Enter")
        question(page, 12)
        wait_until(lambda: on_file(root) == ["11,unclear,", "13,unclear,"], "both answers")
        page.keyboard.press("ArrowLeft")
        question(page, 13)
        page.focus("[data-do=take]")
        page.keyboard.press("Enter")
        question(page, 12)  # of which Decant suggests nothing
        assert page.evaluate("document.activeElement.className") == "question"


def test_answers_that_did_not_reach_the_program_are_named(root: Path, chromium: Any) -> None:
    with review(root) as (process, address):
        page = first_question(chromium, address)
        page.keyboard.press("Enter")
        wait_until(lambda: on_file(root) == ["11,cat,"], "the answer to be on file")
        process.terminate()
        process.wait(timeout=60)
        page.keyboard.press("u")
        page.wait_for_selector("text=Your last answer is not saved (row 13), all others are.")
        assert on_file(root) == ["11,cat,"]


def test_an_address_that_was_used_shows_no_data_to_another_browser(root: Path, chromium: Any) -> None:
    with review(root) as (process, address):
        first = chromium.new_context().new_page()
        first.goto(address)
        question(first, 11)
        second = chromium.new_context().new_page()
        second.goto(address)
        second.wait_for_selector("text=This page needs its address")
        assert second.locator("img").count() == 0
        line = process.stdout.readline()  # type: ignore[union-attr]
        second.goto(line.removeprefix("for another browser: ").strip())  # pasted into the same tab
        question(second, 11)


def test_what_another_expert_says_during_an_answer_is_shown(root: Path, chromium: Any) -> None:
    with review(root, "--expert", "anna") as (_, address):
        page = first_question(chromium, address)
        page.keyboard.press("s")
        question(page, 13)
        wait_until(lambda: on_file(root) == ["11,dog,anna"], "the answer to be on file")
        page.wait_for_selector("#count:has-text('1 of 3')")
        looks: list[Any] = []
        page.route("**/api/state", lambda look: looks.append(look))  # held until her next answer is taken
        append(root / "data/inputs/decisions.csv", [Decision(11, "cat", "ben", "2030-01-01")])
        page.keyboard.press("Enter")
        wait_until(lambda: len(on_file(root)) == 3, "the second answer to be on file")
        page.wait_for_timeout(300)
        page.unroute("**/api/state")
        for look in looks:
            look.continue_()
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        question(page, 11)
        page.wait_for_selector(".mark.dispute")


def test_a_queue_that_has_become_empty_asks_nothing(root: Path, chromium: Any) -> None:
    with review(root) as (process, address):
        page = first_question(chromium, address)
        queue = root / "data/verify/queue.csv"
        queue.write_text(QUEUE.splitlines()[0] + "\n")
        page.wait_for_selector("text=No row waits for an answer")
        assert page.locator("[data-do=look]").count() == 0
        process.send_signal(signal.SIGINT)
        assert "no row waits" in process.communicate(timeout=60)[0]


def test_the_page_asks_before_it_is_closed_on_answers_that_are_on_their_way(root: Path, chromium: Any) -> None:
    with review(root) as (_, address):
        page = chromium.new_context(viewport={"width": 1200, "height": 800}).new_page()
        held: list[Any] = []
        asked: list[str] = []
        page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.dismiss()))
        page.goto(address)
        question(page, 11)
        page.route("**/api/answers", lambda route: route.continue_() if held else held.append(route))
        page.keyboard.press("g")
        page.keyboard.press("Shift+Enter")
        page.wait_for_selector("#toast:has-text('Saving 2 answers')")
        page.close(run_before_unload=True)
        page.wait_for_timeout(500)
        assert asked == ["beforeunload"] and on_file(root) == []
        held[0].continue_()
        page.wait_for_selector("#toast:has-text('2 labels confirmed')")
        assert on_file(root) == ["11,cat,", "13,cat,"]
        with page.expect_event("close"):
            page.close(run_before_unload=True)
        assert len(asked) == 1


def test_a_class_called_unclear_is_another_answer_than_unclear(root: Path, chromium: Any) -> None:
    images = pictures_of()
    info = DatasetInfo(class_names=("cat", "dog", "unclear"), source="test", checksum="0")
    write_images(root / "data/purify_2/train.parquet", Images(images.ids, images.pixels, images.labels, info))
    with review(root) as (_, address):
        page = first_question(chromium, address)
        page.keyboard.press("3")
        question(page, 13)
        page.keyboard.press("u")
        question(page, 12)
        wait_until(lambda: on_file(root) == ["11,unclear,", "13,Unclear,"], "the class, and that nobody could tell")
        assert page.locator(".strip .dot.unclear").count() == 1
