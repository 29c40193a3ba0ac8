"""The flow `clean`: every stage of dvc.yaml brought up to date, one task each, watched on Prefect's page.

It does the work of `dvc repro`, in DVC's order and one stage at a time: each stage uses all cores or the GPU by
itself, and dvc.lock, which lists stages in the order in which they ended, comes out the same byte for byte. A failed
stage holds up only the stages that need it.

Start it with `decant run`; a worker starts it every night once `decant deploy` has registered it.
"""

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.states import Completed, Failed, State
from prefect.tasks import Task

from flows import gpu, table
from flows.stages import Outcome, Stage, StageError, pipeline
from flows.watch import watched


@flow(name="clean")
def clean(stages: list[str] | None = None) -> State:
    """Brings all stages, or the named ones and what they need, up to date."""
    gpu.create_limit()
    states: dict[str, State] = {}
    for stage in pipeline(stages):
        upstream = [states[name] for name in stage.upstream]
        states[stage.name] = scheduled(stage)(stage, wait_for=upstream, return_state=True)
    for name, state in states.items():
        if not state.is_completed():
            return Failed(message=f"{name}: {state.message}")
    if "evaluate" in states:
        publish_result()
    return Completed(message=summary(states))


@task(task_run_name="{stage.name}", cache_policy=NO_CACHE, persist_result=False)
def run_stage(stage: Stage) -> State:
    """One stage. Prefect caches nothing: DVC alone knows what a stage depends on."""
    turn = partial(gpu.turn, stage.tags)
    try:
        outcome = watched(stage, get_run_logger().info, progress_bar(stage.name), turn)
    except StageError as error:
        return Failed(name=error.state, message=str(error), data=error)
    return Completed(name=outcome, message=MEANING[outcome])


MEANING: dict[Outcome, str] = {
    "Unchanged": "code, inputs, parameters and outputs are those of dvc.lock",
    "Restored": "DVC had the outputs of an earlier run with the same code, inputs and parameters",
    "Done": "the stage has run",
}


def summary(states: dict[str, State]) -> str:
    """`9 Unchanged, 3 Done`."""
    return ", ".join(f"{count} {name}" for name, count in Counter(str(state.name) for state in states.values()).items())


def scheduled(stage: Stage) -> Task[[Stage], State]:
    """The task, with the tags and retries that dvc.yaml gives this stage."""
    return run_stage.with_options(
        tags=set(stage.tags), retries=stage.retries, retry_delay_seconds=2, retry_condition_fn=worth_a_retry
    )


def worth_a_retry(_task: Task[..., object], _run: TaskRun, state: State) -> bool:
    """Bad input (exit code 2) stays bad; anything else may have been bad luck."""
    return not (isinstance(state.data, StageError) and state.data.code == 2)


def progress_bar(stage: str) -> Callable[[float], None]:
    """Shows percentages as one artifact of the task run, made at the first."""
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
    """The result table and the way to the report, among the flow run's artifacts."""
    result, report = table.read_result(), Path("data/report/index.html").resolve()
    if result is None:
        return
    link = f"\n\nThe report: [{report}]({report.as_uri()})" if report.is_file() else ""
    create_markdown_artifact(table.as_markdown(result) + link, key="result", description="What this run came to")
    if report.is_file():
        create_link_artifact(report.as_uri(), key="report", link_text=str(report), description="The report")
