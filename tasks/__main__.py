"""``python -m tasks STAGE --option PATH ...`` runs one stage; without arguments it lists them.

Exit codes: 0 done, 2 something that the caller can mend (one line on stderr says what), 1 a bug (traceback).
"""

import argparse
import importlib
import inspect
import pkgutil
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

import tasks
from decant.errors import DecantError, StageError
from decant.fingerprints import check as check_library
from decant.paths import RUNS
from decant.runtime import recorded_run
from decant.settings import load_params
from decant.summaries import Summary


def stage_names() -> list[str]:
    """The names of all stages."""
    return sorted(m.name for m in pkgutil.iter_modules(tasks.__path__) if not m.name.startswith("_"))


def parse(argv: list[str]) -> tuple[str, Callable[..., Summary], argparse.Namespace]:
    """(stage, its `run`, options) from the command line; `run`'s signature says which options there are."""
    parser = argparse.ArgumentParser(prog="python -m tasks", description=__doc__.splitlines()[0])
    stages = parser.add_subparsers(dest="stage", metavar="STAGE", required=True)
    for name in stage_names():
        stages.add_parser(name, add_help=False)
    if not argv:
        parser.print_help()
        print("\nstages:", ", ".join(stage_names()))
        raise SystemExit(0)
    name = parser.parse_args(argv[:1]).stage
    module = importlib.import_module(f"tasks.{name}")
    options = argparse.ArgumentParser(prog=f"python -m tasks {name}", description=module.__doc__)
    options.add_argument("--params", type=Path, default=Path("params.yaml"), help="default: params.yaml")
    for parameter in inspect.signature(module.run).parameters.values():
        if parameter.annotation is Path:
            required = parameter.default is inspect.Parameter.empty
            option = "--" + parameter.name.replace("_", "-")
            options.add_argument(option, type=Path, required=required, default=None if required else parameter.default)
    return name, module.run, options.parse_args(argv[1:])


def run_stage(run: Callable[..., Summary], options: argparse.Namespace) -> Summary:
    """Runs the stage into a temporary folder, writes its summary last, and then gives the folder its name."""
    paths = {key: value for key, value in vars(options).items() if key != "params"}
    asked = [key for key in inspect.signature(run).parameters if key not in paths]
    params = load_params(
        yaml.safe_load(options.params.read_text(encoding="utf-8")) or {}, [key for key in asked if key != "seed"]
    )
    wanted = {key: params[key] for key in asked}
    out: Path = paths["out"]
    partial = out.with_name(f".{out.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise StageError(f"{out}: can't write there ({error.strerror}); free it or choose another") from error
    try:
        summary = run(**{**paths, **wanted, "out": partial})
        summary.write(partial)
        shutil.rmtree(out, ignore_errors=True)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return summary


def main(argv: list[str]) -> int:
    name, run, options = parse(argv)
    try:
        check_library(name)
        with recorded_run(name, RUNS):
            summary = run_stage(run, options)
    except DecantError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    print(f"{name}: {summary.note}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
