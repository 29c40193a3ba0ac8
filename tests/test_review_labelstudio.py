"""Label Studio: its tasks, its labelling config, and its export read back."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from reviewing import CLASSES, QUEUE, review_files

from decant.cli import main
from decant.labeltrust.decisions import UNCLEAR, Asked, read_decisions
from decant.review.labelstudio import labelling_config


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    review_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def exported(root: Path) -> list[dict[str, Any]]:
    assert main.main(["review", "--export-label-studio", "tasks.json"]) == 0
    tasks: list[dict[str, Any]] = json.loads((root / "tasks.json").read_text())
    return tasks


def annotated(task: dict[str, Any], label: str, who: Any, at: str = "2030-01-01T00:00:00Z") -> dict[str, Any]:
    """The task as Label Studio exports it, with one annotation more."""
    choice = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [label]}}
    one = {"completed_by": who, "result": [choice], "was_cancelled": False, "created_at": at, "updated_at": at}
    return {**task, "id": 7, "annotations": [*task.get("annotations", []), one]}


def imported(root: Path, tasks: list[dict[str, Any]]) -> int:
    (root / "export.json").write_text(json.dumps(tasks))
    return main.main(["review", "--import-label-studio", "export.json"])


def votes(root: Path) -> dict[int, dict[str, int]]:
    return read_decisions(root / "data/inputs/decisions.csv").votes(CLASSES)


def test_a_task_carries_its_picture_enlarged_and_both_labels_as_predictions(root: Path) -> None:
    first, second, _ = exported(root)
    kind, _, picture = first["data"]["image"].partition(",")
    assert kind == "data:image/png;base64"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))
    assert min(pixels.shape) >= 256 and np.unique(pixels).tolist() == [20]  # row 11, six pixels wide
    assert (first["data"]["row"], first["data"]["given"]) == (11, "cat")
    said = [(p["model_version"], p["result"][0]["value"]["choices"], p.get("score")) for p in first["predictions"]]
    assert said == [("given label", ["cat"], 0.2), ("Decant's suggestion", ["dog"], None)]
    assert len(second["predictions"]) == 1, "no suggestion yet"


def test_how_a_row_was_asked_travels_there_and_back(root: Path) -> None:
    first, second, _ = exported(root)
    del second["data"]["round"], second["data"]["rows"], second["data"]["trust"]  # a task of an older Decant
    (root / "data/verify/queue.csv").write_text(QUEUE.replace("label disputed", "asked since for another reason"))
    assert imported(root, [annotated(first, "dog", 1), annotated(second, "dog", 1)]) == 0
    found = read_decisions(root / "data/inputs/decisions.csv").asked()
    assert found == {11: Asked(1, 3, "label disputed", 0.2), 12: Asked(why="likely false refusal")}


def test_nothing_is_taken_in_while_the_stage_reads_the_answers(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _, _ = exported(root)
    monkeypatch.setattr("decant.review.labelstudio.is_being_written", lambda folder: folder == Path("data/verify"))
    assert imported(root, [annotated(first, "dog", 1)]) == 2
    assert "is running and reads the answers; try again" in capsys.readouterr().err
    assert (root / "data/inputs/decisions.csv").read_text() == "id,label\n"


def test_files_are_looked_for_where_the_caller_stands(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = root / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    assert main.main(["review", "--export-label-studio", "tasks.json"]) == 0
    assert sorted(path.name for path in below.iterdir()) == ["tasks.json", "tasks.xml"]
    first, _, _ = json.loads((below / "tasks.json").read_text())
    (below / "export.json").write_text(json.dumps([annotated(first, "dog", 1)]))
    monkeypatch.chdir(below)  # the command went to the checkout
    assert main.main(["review", "--import-label-studio", "export.json"]) == 0
    assert votes(root) == {11: {"annotator 1": 1}}


def test_rows_that_are_answered_are_not_sent_but_disputed_ones_are(root: Path) -> None:
    (root / "data/inputs/decisions.csv").write_text("id,label,expert\n12,dog,\n13,dog,anna\n13,cat,ben\n")
    assert [task["data"]["row"] for task in exported(root)] == [11, 13]


def test_answers_without_a_time_are_taken_once(root: Path) -> None:
    first, _, _ = exported(root)
    assert imported(root, [annotated(first, "cat", 1, "")]) == imported(root, [annotated(first, "dog", 1, "")]) == 0
    assert votes(root) == {11: {"annotator 1": 0}}


def test_a_class_that_is_a_number_may_come_back_as_one(root: Path) -> None:
    task, *_ = exported(root)
    answered = annotated(task, "2", 1)
    answered["annotations"][0]["result"][0]["value"]["choices"] = [2]
    assert imported(root, [answered]) == 0
    assert votes(root) == {11: {"annotator 1": 2}}


def test_an_older_export_does_not_speak_over_newer_answers(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, _ = exported(root)
    old = [annotated(first, "cat", 1, "2030-01-01T00:00:00Z"), annotated(second, "dog", 1, "2030-01-01T00:00:00Z")]
    assert imported(root, old) == 0
    assert imported(root, [annotated(first, "dog", 1, "2030-01-02T01:00:00+02:00")]) == 0
    with (root / "data/inputs/decisions.csv").open("a") as file:
        file.write("12,,annotator 1,2030-01-03T00:00:00+00:00,,,,\n")  # taken back on the page
    assert imported(root, old) == 0
    assert votes(root) == {11: {"annotator 1": 1}}
    assert "(2 were there already, or newer ones)" in capsys.readouterr().out


def test_an_export_does_not_speak_over_what_was_corrected_by_hand(root: Path) -> None:
    first, *_ = exported(root)
    export = [annotated(first, "cat", 1, "2030-01-01T00:00:00Z")]
    assert imported(root, export) == 0
    with (root / "data/inputs/decisions.csv").open("a") as file:
        file.write("11,dog,annotator 1\n")
    assert imported(root, export) == 0
    assert votes(root) == {11: {"annotator 1": 1}}


def test_nothing_is_taken_in_where_the_stage_goes_to_work_meanwhile(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *_ = exported(root)
    looks = iter([False, True])
    monkeypatch.setattr("decant.review.labelstudio.is_being_written", lambda _: next(looks))
    assert imported(root, [annotated(first, "cat", 1)]) == 2
    assert votes(root) == {}


def test_tasks_under_the_name_of_their_config_are_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["review", "--export-label-studio", "tasks.xml"]) == 2
    assert "tasks.xml: a .json file expected" in capsys.readouterr().err
    assert not (root / "tasks.xml").exists()


def test_the_config_offers_every_class_and_unclear_whatever_they_are_called() -> None:
    names = ('<b> & "c"', "unclear", "dog")
    view = ElementTree.fromstring(labelling_config(names))
    assert [choice.get("value") for choice in view.iter("Choice")] == [*names, "Unclear"]
    assert [choice.get("hotkey") for choice in view.iter("Choice")] == ["1", "2", "3", "u"]
    (image,) = view.iter("Image")
    (choices,) = view.iter("Choices")
    assert choices.get("toName") == image.get("name") == "image" and image.get("value") == "$image"
    digits = ElementTree.fromstring(labelling_config(("0", "1")))
    assert [choice.get("hotkey") for choice in digits.iter("Choice")] == ["0", "1", "u"]


def test_there_and_back_keeps_annotators_apart_and_takes_their_newest_word(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = exported(root)
    anna = {"id": 1, "email": "anna@example.org", "first_name": "Anna", "last_name": "Ng"}
    first = annotated(annotated(first, "cat", anna, "2030-01-02"), "dog", anna, "2030-01-01")
    first = annotated(first, "dog", 2)
    second = annotated(second, "unclear", {"id": 3, "email": "cleo@example.org", "first_name": ""})
    third = {**third, "annotations": [{"completed_by": 2, "result": [], "was_cancelled": True}]}
    assert imported(root, [first, second, third]) == 0
    expected = {11: {"Anna Ng": 0, "annotator 2": 1}, 12: {"cleo@example.org": UNCLEAR}}
    assert votes(root) == expected
    assert "3 answers of 3 annotators" in capsys.readouterr().out
    assert imported(root, [first, second, third]) == 0
    assert (
        "0 answers of 3 annotators taken into data/inputs/decisions.csv (3 were there already, or newer ones)"
        in capsys.readouterr().out
    )
    assert votes(root) == expected


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda task: annotated(task, "cow", 1), "task 7: one of cat, dog, 2 or 'unclear' expected, 'cow' found"),
        (lambda task: {**annotated(task, "cat", 1), "data": {}}, "task 7: no data.row; only tasks of decant review"),
        (
            lambda task: {**annotated(task, "cat", 1), "data": {"row": 99}},
            "row 99 is not in data/simulate/train.parquet",
        ),
        (
            lambda task: {**annotated(task, "cat", 1), "data": {**task["data"], "picture": "c0ffee"}},
            "row 11 is not in data/simulate/train.parquet, or has other pixels there",
        ),
        (lambda task: {"row": 11, "label": "cat"}, "Export > JSON, not JSON-MIN"),
        (lambda task: "cat", "a list of tasks expected"),
        (lambda task: {**task, "annotations": [7]}, "task 1: annotations.0: Input should be a valid dictionary"),
        (lambda task: {**task, "annotations": {}}, "annotations: Input should be a valid list, {} found"),
        (lambda task: {**annotated(task, "cat", 1), "data": [1]}, "task 7: data: Input should be a valid dictionary"),
        (
            lambda task: annotated(task, "cat", 1, "yesterday"),
            "task 7: a time in ISO 8601 expected, 'yesterday' found",
        ),
        (
            lambda task: {**annotated(task, "cat", 1), "data": {**task["data"], "round": -1}},
            "task 7: data.round: Input should be greater than or equal to 0, -1 found",
        ),
        (
            lambda task: {**task, "annotations": [{"result": [{"from_name": "label", "value": {"choices": 5}}]}]},
            "annotations.0.result.0.value.choices: Input should be a valid list, 5 found",
        ),
        (
            lambda task: {**annotated(task, "cat", 1), "data": {**task["data"], "trust": 97}},
            "task 7: data.trust: Input should be less than or equal to 1, 97 found",
        ),
    ],
)
def test_an_export_that_can_not_be_read_says_why_and_changes_nothing(
    root: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Any], Any], complaint: str
) -> None:
    first, second, _ = exported(root)
    assert imported(root, [spoil(first), annotated(second, "dog", 1)]) == 2
    assert complaint in capsys.readouterr().err
    assert (root / "data/inputs/decisions.csv").read_text() == "id,label\n"


@pytest.mark.parametrize(("text", "complaint"), [(None, "can't be read"), ("{", "not JSON")])
def test_a_file_that_is_no_export(
    root: Path, capsys: pytest.CaptureFixture[str], text: str | None, complaint: str
) -> None:
    if text is not None:
        (root / "export.json").write_text(text)
    assert main.main(["review", "--import-label-studio", "export.json"]) == 2
    assert complaint in capsys.readouterr().err


def test_a_folder_is_no_file_to_export_to(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["review", "--export-label-studio", "data"]) == 2
    assert "data: can't be written (Is a directory)" in capsys.readouterr().err


def test_a_queue_that_names_rows_of_other_data_is_not_exported(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "data/verify/queue.csv").write_text(QUEUE.replace("11,cat", "99,cat"))
    assert main.main(["review", "--export-label-studio", "tasks.json"]) == 2
    assert "row 99 of the queue is not in data/purify_2/train.parquet" in capsys.readouterr().err
