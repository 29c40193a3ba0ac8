"""The flow `clean`: every stage of dvc.yaml brought up to date, one task each, watched on Prefect's page.

It does the work of `dvc repro`, in DVC's order and one stage at a time: each stage uses all cores or the GPU by
itself, and dvc.lock, which lists stages in the order in which they ended, comes out the same byte for byte. A failed
stage holds up only the stages that need it.

With `verify.expert: person` the run pauses while `verify` has questions that nobody has answered, and links to the page
on which to answer them. It stays in this process, a scheduled run too: somebody has to serve the page.

Start it with `decant run`; a worker starts it every night once `decant deploy` has registered it.
"""

import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Timer
from typing import cast
from uuid import UUID, uuid4

from httpx import HTTPError
from prefect import flow, get_run_logger, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import TaskRun
from prefect.exceptions import CancelledRun
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed, Paused, State
from prefect.tasks import Task

from decant import fingerprints, params, paths
from decant.errors import SettingsError
from decant.report import table
from decant.review.waiting import PATIENCE, ReviewPage, open_questions
from decant.review.waiting import STAGE as ASKING_STAGE
from flows import gpu
from flows.stages import Stage, StageFailed, StageOutcome, pipeline
from flows.watch import Event, tell, watched

REPORT_SECONDS = 10.0  # for a run that was stopped to report it to Prefect's server


def what_is_cleaned() -> str:
    """The run's name on Prefect's page, such as `photos, seed 0`."""
    try:
        settings = params.settings()
    except SettingsError:
        return "clean"  # the run must start all the same: a stage says what is wrong
    return f"{Path(settings['ingest'].source).name}, seed {settings['seed']}"


@flow(name="clean", flow_run_name=what_is_cleaned)
def clean(stages: list[str] | None = None) -> State:
    """Brings all stages up to date, or the named ones and those that they need."""
    try:
        fingerprints.check()
    except SettingsError as outdated:
        return Failed(message=str(outdated))
    gpu.create_limit()
    try:
        with ended_in_time():
            states = brought_up_to_date(pipeline(stages))
    except CancelledRun as cancelled:
        return Cancelled(message=str(cancelled))
    for name, state in states.items():
        if not state.is_completed():
            why = (state.message or state.type.value.lower()).removeprefix(f"{name}: ")  # a StageFailed names its stage
            return Failed(message=f"{name}: {why}")
    if "evaluate" in states:
        publish_result()
    return Completed(message=summary(states))


@contextmanager
def ended_in_time() -> Iterator[None]:
    """Ends the process REPORT_SECONDS after the block was stopped (Ctrl-C, SIGTERM), whatever Prefect still waits for.

    Prefect reports the end to its server, and tries a silent one six times for a minute each.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException as stop:
        end = Timer(REPORT_SECONDS, os._exit, [128 + getattr(stop, "signal", signal.SIGINT)])
        end.daemon = True
        end.start()
        raise


def brought_up_to_date(stages: list[Stage]) -> dict[str, State]:
    """Runs the stages in order and tells how each ended. `verify` runs again after each round of answers."""
    states: dict[str, State] = {}
    with ReviewPage(link_to_page) as page:
        for stage in stages:
            upstream = [states[name] for name in stage.upstream]
            states[stage.name] = scheduled(stage)(stage, wait_for=upstream, return_state=True)
            while stage.name == ASKING_STAGE and states[stage.name].is_completed() and open_questions():
                answered = paused_for_answers(page)
                states[stage.name] = scheduled(stage)(stage, wait_for=upstream, return_state=True)
                if not answered:
                    break
    return states


@task(task_run_name="{stage.name}", cache_policy=NO_CACHE, persist_result=False)
def run_stage(stage: Stage) -> State:
    """Brings one stage up to date. Prefect caches nothing: DVC alone knows what a stage depends on."""
    slot = partial(gpu.slot, stage.tags)
    try:
        outcome = watched(stage, get_run_logger().info, progress_bar(stage.name), slot)
    except StageFailed as error:
        return Failed(name=error.state, message=str(error), data=error)
    return Completed(name=outcome, message=MEANING[outcome])


MEANING: dict[StageOutcome, str] = {
    "Unchanged": "code, inputs, parameters and outputs are those of dvc.lock",
    "Restored": "DVC had the outputs of an earlier run with the same code, inputs and parameters",
    "Done": "the stage has run",
}


def summary(states: dict[str, State]) -> str:
    """Counts the stages by how they ended: `9 Unchanged, 3 Done`."""
    return ", ".join(f"{count} {name}" for name, count in Counter(str(state.name) for state in states.values()).items())


def scheduled(stage: Stage) -> Task[[Stage], State]:
    """The task, with the tags and retries that dvc.yaml gives this stage."""
    return run_stage.with_options(
        tags=set(stage.tags), retries=stage.retries, retry_delay_seconds=2, retry_condition_fn=may_be_retried
    )


def may_be_retried(_task: Task[..., object], _run: TaskRun, state: State) -> bool:
    """False for bad input (exit code 2), which a second try does not mend."""
    return not (isinstance(state.data, StageFailed) and state.data.code == 2)


def paused_for_answers(page: ReviewPage) -> bool:
    """Pauses the flow run until all is answered (True), or a person resumes it or a day has passed (False).

    Raises: CancelledRun when it is cancelled meanwhile.
    """
    tell(Event(ASKING_STAGE, "Asking"))
    run = UUID(str(flow_run.get_id()))
    pause: State = Paused(timeout_seconds=int(PATIENCE) + 3600, pause_key=uuid4().hex)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run, pause)

        def is_over() -> bool:
            with suppress(HTTPError):  # a server that restarts or is overloaded meanwhile ends nobody's pause
                state = client.read_flow_run(run).state
                if state is not None and (state.is_cancelled() or state.is_cancelling()):
                    raise CancelledRun("cancelled while it waited for answers; those that were given are on file")
                return state is not None and not state.is_paused()
            return False

        answered = page.wait(go_on=is_over)
        if not is_over():
            client.resume_flow_run(run)
    return answered


def link_to_page(address: str) -> None:
    """Shows the review page's address on Prefect's page and on the terminal."""
    create_link_artifact(address, key="review", link_text="Answer the open questions", description="The review page")
    get_run_logger().info("review page: %s", address)
    tell(Event(ASKING_STAGE, "Asking", address=address))


def progress_bar(stage: str) -> Callable[[float], None]:
    """A function that shows percentages in one artifact of the task run, created with the first."""
    artifact: UUID | None = None

    def show(percent: float) -> None:
        nonlocal artifact
        if artifact is None:
            key = re.sub("[^a-z0-9]+", "-", stage.lower())  # all that Prefect allows in a key
            made = create_progress_artifact(percent, key=f"progress-{key}", description=stage)
            artifact = cast(UUID, made)  # a coroutine only where the caller is one
        update_progress_artifact(artifact, percent)

    return show


def publish_result() -> None:
    """Puts the result table and a link to the report among the flow run's artifacts."""
    result, report = table.read_result(), paths.REPORT.resolve()
    if result is None:
        return
    link = f"\n\nThe report: [{report}]({report.as_uri()})" if report.is_file() else ""
    create_markdown_artifact(table.as_markdown(result) + link, key="result", description="The result of this run")
    if report.is_file():
        create_link_artifact(report.as_uri(), key="report", link_text=str(report), description="The report")
