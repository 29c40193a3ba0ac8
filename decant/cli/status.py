"""`decant status`: which stages are stale, in words; and what each one's last run took.

Imports DVC (1 s) and nothing else that is heavy.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from decant import fingerprints
from decant.paths import DATA, RUNS
from decant.runtime import read_runs
from flows.source import source_changed
from flows.stages import Stage, StageBusy, changes, pipeline

STYLES = {"fresh": "green", "stale": "yellow", "behind": "dim", "busy": "cyan"}


@dataclass(frozen=True)
class StageStatus:
    """What `decant status` says of one stage."""

    stage: str
    state: Literal["fresh", "stale", "behind", "busy"]
    """`behind`: fresh for now, but a stage that it needs is not. `busy`: a run works on it right now."""
    why: list[str]
    seconds: float | None
    """Of its last run here, like the next two."""
    memory_mib: int | None
    date: str | None


def main(arguments: argparse.Namespace) -> int:
    found = statuses()
    if arguments.json:
        print(json.dumps([dataclasses.asdict(status) for status in found], indent=2))
        return 0
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for head in ("stage", "state", "why"):
        table.add_column(head)
    for head in ("seconds", "MiB"):
        table.add_column(head, justify="right")
    for status in found:
        state = f"[{STYLES[status.state]}]{status.state}[/]"
        seconds = "" if status.seconds is None else f"{status.seconds:.1f}"
        table.add_row(status.stage, state, "\n".join(grouped(status.why)), seconds, str(status.memory_mib or ""))
    console = Console(highlight=False)
    if fingerprints.outdated():
        differs = "the installed decant is not the one that this workspace was made for: decant init --upgrade"
        console.print(differs, soft_wrap=True)
    console.print(table)
    stale = sum(status.state != "fresh" for status in found)
    console.print(f"{stale} of {len(found)} stages to run: decant run" if stale else "everything is up to date")
    return 0


def grouped(why: list[str]) -> list[str]:
    """One line per kind of reason: `code changed: decant/data, decant/models`."""
    kinds: dict[str, list[str]] = {}
    for reason in why:
        kind, _, what = reason.partition(": ")
        kinds.setdefault(kind, []).append(what)
    return [f"{kind}: {', '.join(what)}" if any(what) else kind for kind, what in kinds.items()]


def statuses() -> list[StageStatus]:
    """The status of every stage, in the order in which they run."""
    runs, locked = read_runs(RUNS), _yaml(Path("dvc.lock")).get("stages", {})
    outdated = fingerprints.outdated()
    found: dict[str, StageStatus] = {}
    for stage in pipeline():
        state, why = _state(stage, locked.get(stage.name), found, outdated.get(stage.name, []))
        run = runs.get(stage.name, {})
        found[stage.name] = StageStatus(
            stage.name, state, why, run.get("seconds"), run.get("peak_memory_mib"), run.get("date")
        )
    return list(found.values())


def _state(
    stage: Stage, locked: Mapping[str, Any] | None, found: Mapping[str, StageStatus], outdated: list[str]
) -> tuple[Literal["fresh", "stale", "behind", "busy"], list[str]]:
    waits_for = [name for name in stage.upstream if found[name].state != "fresh"]
    behind = [f"waits for {', '.join(waits_for)}"] if waits_for else []
    try:
        changed = changes(stage.name)
    except StageBusy as busy:
        return ("behind", behind) if behind else ("busy", [str(busy).removeprefix(f"{stage.name}: ")])
    why = list(reasons(changed, locked))
    if locked:
        why += [_code_changed(part) for part in outdated if _code_changed(part) not in why]
    if stage.name == "ingest" and locked and source_changed():
        why.append("files of the source changed")
    if why:
        return "stale", why
    return ("behind", behind) if behind else ("fresh", [])


def reasons(changed: list[Any], locked: Mapping[str, Any] | None) -> Iterator[str]:
    """DVC's account of what changed, in words. `locked` is the stage's entry in dvc.lock, None if it has none."""
    if changed and locked is None:
        yield "never ran"
        return
    for entry in changed:
        if isinstance(entry, str):
            yield {"changed command": "its cmd in dvc.yaml changed"}.get(entry, entry)
            continue
        for path, how in entry.get("changed deps", {}).items():
            yield from _parameters(path, how, locked) if isinstance(how, dict) else [_dependency(path, how)]
        for path, how in entry.get("changed outs", {}).items():
            yield f"output missing: {path}" if how == "deleted" else f"output {how}: {path}"


def _code_changed(part: str) -> str:
    """The reason of a stage that uses a part of the library, in a workspace."""
    return f"code changed: decant/{part}"


def _dependency(path: str, how: str) -> str:
    kind = "code" if path.endswith(".py") or not path.startswith(f"{DATA}/") else "input"
    return f"{kind} {'changed' if how == 'modified' else 'missing' if how == 'deleted' else how}: {path}"


def _parameters(path: str, keys: Mapping[str, str], locked: Mapping[str, Any] | None) -> Iterator[str]:
    """`train.epochs: 10 -> 12` for each value that differs between dvc.lock and the file."""
    if path == str(fingerprints.RECORD):
        yield from (_code_changed(key.removeprefix("library.")) for key in keys)
        return
    before, now = (locked or {}).get("params", {}).get(path, {}), _yaml(Path(path))
    for key in keys:
        yield from differences(key, _at(before, key), _at(now, key))


def differences(key: str, before: Any, now: Any) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*before, *now]):
            yield from differences(f"{key}.{name}", before.get(name), now.get(name))
    elif before != now:
        yield f"{key}: {_shown(before)} -> {_shown(now)}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _at(block: Mapping[str, Any], key: str) -> Any:
    """dvc.lock has a dotted key as it is in dvc.yaml; the file itself has blocks."""
    if key in block:
        return block[key]
    value: Any = block
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _yaml(path: Path) -> dict[str, Any]:
    return (yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None) or {}
