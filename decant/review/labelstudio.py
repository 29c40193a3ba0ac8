"""Export questions to Label Studio and import its answers, for teams that review there.

The export is tasks as JSON, each with its picture as a data URI and the given and the suggested label as two
predictions, and a labelling config. The import reads Label Studio's JSON export: the newest annotation of each
annotator is the answer of an expert with the annotator's name.
"""

import argparse
import base64
import io
import json
import reprlib
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar
from xml.etree import ElementTree

from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, ValidationError

from decant.data.tables import read_digests, read_info
from decant.errors import DecantError
from decant.files import write_text
from decant.labeltrust.decisions import UNCLEAR, Asked, Decision, label_text, parse_label, read_decisions
from decant.paths import DECISIONS, QUEUE
from decant.review.answers import append, now
from decant.review.pictures import TABLES, ReviewPictures
from decant.review.queue import Question
from decant.review.store import Closed, open_store
from decant.stage_locks import is_being_written

SIDE = 256  # pixels at least: smaller pictures are enlarged in whole multiples, which Label Studio can't
NAME, PICTURE = "label", "image"  # of the control and the object in the labelling config
HOTKEYS = "1234567890"


def exchange(arguments: argparse.Namespace) -> int:
    """Exports to or imports from Label Studio, as the command line asks."""
    if arguments.export_label_studio:
        print(export(Path(arguments.export_label_studio)))
    else:
        print(import_answers(Path(arguments.import_label_studio)))
    return 0


# Export ---------------------------------------------------------------------------------------------------------------


def export(path: Path) -> str:
    """Writes the open rows of the queue as tasks, and the config beside it; says what to do with them."""
    refuse_while_stage_runs()
    config = path.with_suffix(".xml")
    if config == path:
        raise DecantError(f"{path}: a .json file expected; the labelling config is written beside it, as .xml")
    store = open_store()
    try:
        state = store.read()
    except Closed as closed:
        raise DecantError("no rows to review yet; `verify` asks for them: decant run verify") from closed
    pictures = ReviewPictures(lambda: state.questions)
    tasks = [task(question, pictures) for row, question in state.questions.items() if row not in state.settled]
    write_text(path, json.dumps(tasks, ensure_ascii=False, indent=1) + "\n")
    write_text(config, labelling_config(store.class_names))
    return (
        f"{len(tasks)} tasks in {path}; in Label Studio: a new project, Labeling Setup > Custom template: the text of "
        f"{config}, then import {path}. Back: export as JSON, decant review --import-label-studio EXPORT.json"
    )


def task(question: Question, pictures: ReviewPictures) -> dict[str, Any]:
    shown = pictures.png(question.id, "verified")
    if shown is None:
        raise DecantError(
            f"row {question.id} of the queue is not in {TABLES['verified']}; run verify again: decant run"
        )
    data = {
        PICTURE: "data:image/png;base64," + base64.b64encode(enlarged(shown)).decode(),
        "row": question.id,
        "given": question.given,
        "suggested": question.suggested,
        **asdict(question.asked),  # comes back with the answer
    }
    found = [prediction("given label", question.given, question.trust)]
    if question.suggested:
        found.append(prediction("Decant's suggestion", question.suggested, None))
    return {"data": data, "predictions": found}


def prediction(who: str, label: str, score: float | None) -> dict[str, Any]:
    choice = {"from_name": NAME, "to_name": PICTURE, "type": "choices", "value": {"choices": [label]}}
    return {"model_version": who, "result": [choice]} | ({} if score is None else {"score": score})


def enlarged(picture: bytes) -> bytes:
    """A PNG at least SIDE pixels large, each of its pixels a square."""
    image = Image.open(io.BytesIO(picture))
    times = -(-SIDE // max(image.size))
    if times == 1:
        return picture
    buffer = io.BytesIO()
    image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def labelling_config(class_names: tuple[str, ...]) -> str:
    """The labelling interface of a Label Studio project, in XML."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Header", value="Row $row, labelled $given. Asked because: $why")
    ElementTree.SubElement(view, "Image", name=PICTURE, value=f"${PICTURE}", zoom="true")
    choices = ElementTree.SubElement(view, "Choices", name=NAME, toName=PICTURE, choice="single", showInline="true")
    own_digits = all(len(name) == 1 and name.isdecimal() for name in class_names)
    for position, name in enumerate(class_names):
        key = name if own_digits else HOTKEYS[position] if len(class_names) <= len(HOTKEYS) else ""
        ElementTree.SubElement(choices, "Choice", {"value": name} | ({"hotkey": key} if key else {}))
    ElementTree.SubElement(choices, "Choice", value=label_text(UNCLEAR, class_names), hotkey="u")
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


# An export, as far as it is read -------------------------------------------------------------------------------------

Item = TypeVar("Item")
Many = Annotated[list[Item], BeforeValidator(lambda value: [] if value is None else value)]
"""A list; null is an empty one."""


class Value(BaseModel):
    model_config = ConfigDict(coerce_numbers_to_str=True)  # a class may be called 2
    choices: Many[str] = []


class Result(BaseModel):
    from_name: str | None = None
    value: Value | None = None


class Annotator(BaseModel):
    id: int | str | None = None
    first_name: str | None = None
    last_name: str | None = None
    email: str | None = None
    username: str | None = None


class Annotation(BaseModel):
    result: Many[Result] = []
    was_cancelled: bool | None = None
    updated_at: str | None = None
    created_at: str | None = None
    completed_by: int | str | Annotator | None = None

    @property
    def choices(self) -> list[str]:
        """The labels that were chosen."""
        return [choice for one in self.result if one.from_name == NAME and one.value for choice in one.value.choices]

    @property
    def annotator(self) -> str:
        """A name for whoever answered: the export has their id, or more."""
        who = self.completed_by
        if not isinstance(who, Annotator):
            return "annotator" if who is None else f"annotator {who}"
        full = f"{who.first_name or ''} {who.last_name or ''}".strip()
        return full or who.email or who.username or f"annotator {who.id}"


class Data(BaseModel):
    """What `task` has written; tasks of an older Decant don't say how the row was asked about."""

    row: StrictInt | None = None
    round: Annotated[StrictInt, Field(ge=0)] | None = None
    rows: Annotated[StrictInt, Field(ge=0)] | None = None
    why: str | None = None
    trust: Annotated[float, Field(strict=True, ge=0, le=1)] | None = None
    picture: str | None = None

    @property
    def asked(self) -> Asked:
        return Asked(self.round, self.rows, self.why or "", self.trust, self.picture or "")


class AnsweredTask(BaseModel):
    data: Data
    annotations: Many[Annotation] = []


# Import ---------------------------------------------------------------------------------------------------------------


def import_answers(path: Path) -> str:
    """Appends the export's answers to the file of decisions, or none of them when one can't be read.

    An answer that the same person has given later, in Label Studio or here, stays.
    """
    refuse_while_stage_runs()
    info, pictures = read_info(TABLES["received"]), read_digests(TABLES["received"])
    tasks = read_export(path)
    newest: dict[tuple[int, str], Decision] = {}
    for number, found in enumerate(tasks, 1):
        for decision in decisions_of(found, info.class_names, f"{path}, task {found.get('id', number)}"):
            known = newest.get((decision.id, decision.expert))
            if known is None or moment(decision.at, str(path)) >= moment(known.at, str(path)):
                newest[decision.id, decision.expert] = decision
    for (row, _), decision in newest.items():
        if row not in pictures or decision.asked.picture not in ("", pictures[row]):
            raise DecantError(f"{path}: row {row} is not in {TABLES['received']}, or has other pixels there; is this "
                              "an export of other data?")  # fmt: skip
    earlier = read_decisions(DECISIONS).about(pictures.get)
    earlier.votes(info.class_names)  # nothing is added to a file that has a mistake
    on_file: dict[tuple[int, str], str] = {}
    for line in earlier.lines:  # one written by hand corrects what was said at the time before
        on_file[line.id, line.expert] = line.at or on_file.get((line.id, line.expert), "")
    fresh = [
        replace(decision, at=decision.at or now())
        for key, decision in newest.items()
        if key not in on_file or moment(decision.at, str(path)) > moment(on_file[key], str(DECISIONS))
    ]
    refuse_while_stage_runs()  # the stage may have gone to work while the pictures were read
    append(DECISIONS, sorted(fresh, key=lambda decision: (decision.at, decision.id)))
    experts = len({expert for _, expert in newest})
    return (
        f"{len(fresh)} answers of {experts} annotators taken into {DECISIONS}"
        f" ({len(newest) - len(fresh)} were there already, or newer ones); next: decant run"
    )


def refuse_while_stage_runs() -> None:
    """Checks that `verify` doesn't run, as it reads the answers. Raises DecantError."""
    if is_being_written(QUEUE.parent):
        raise DecantError("the stage `verify` is running and reads the answers; try again when it has ended")


def moment(at: str, where: str) -> datetime:
    """Of an ISO 8601 time, in UTC where it says no zone; the beginning of time where there is none.

    Raises: DecantError.
    """
    try:
        found = datetime.fromisoformat(at) if at else datetime.min
    except ValueError as error:
        raise DecantError(f"{where}: a time in ISO 8601 expected, {at!r} found") from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def read_export(path: Path) -> list[dict[str, Any]]:
    """The tasks of an export of Label Studio. Raises: DecantError where it is none."""
    try:
        tasks = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DecantError(f"{path}: can't be read ({error.strerror})") from error
    except ValueError as error:
        raise DecantError(f"{path}: not JSON ({error}); in Label Studio: Export > JSON") from error
    if not (isinstance(tasks, list) and all(isinstance(found, dict) for found in tasks)):
        raise DecantError(f"{path}: a list of tasks expected; in Label Studio: Export > JSON")
    if tasks and "annotations" not in tasks[0]:
        raise DecantError(f"{path}: tasks without annotations; in Label Studio: Export > JSON, not JSON-MIN")
    return tasks


def decisions_of(found: dict[str, Any], class_names: tuple[str, ...], where: str) -> list[Decision]:
    """One task's answers; annotations that were skipped or left empty say nothing."""
    try:
        task = AnsweredTask.model_validate(found)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise DecantError(f"{where}: {place}: {fault['msg']}, {reprlib.repr(fault['input'])} found") from error
    if task.data.row is None:
        raise DecantError(f"{where}: no data.row; only tasks of decant review --export-label-studio can be read back")
    decisions = []
    for annotation in task.annotations:
        choices = annotation.choices
        if annotation.was_cancelled or not choices:
            continue
        if len(choices) > 1:
            raise DecantError(f"{where}: one class expected, {' and '.join(choices)} found")
        label = label_text(parse_label(choices[0].strip(), class_names, where=where), class_names)
        at = annotation.updated_at or annotation.created_at or ""
        moment(at, where)
        decisions.append(Decision(task.data.row, label, annotation.annotator, at, task.data.asked))
    return decisions
