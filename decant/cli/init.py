"""`decant init` creates a workspace, the pipeline in a folder of one's own; `--upgrade` brings it up to date.

Needs no clone of the repository. The folder becomes a git repository and a DVC project unless it lies in one already.
"""

import argparse
import importlib
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from decant.cli import workspace
from decant.cli.workspace import FileOutcome
from decant.data.sources import check_name
from decant.errors import DecantError
from decant.files import write_text
from decant.fingerprints import RECORD, parts_lacking

WORDS: dict[FileOutcome, str] = {
    "added": "added",
    "updated": "updated",
    "yours": "kept: you changed it, and there is no newer version",
    "kept": f"kept: you changed it; the newer version is in the same folder, with the suffix {workspace.NEWER}",
    "removed": "removed: this version of decant no longer has it",
}
"""What is printed about a file; about one that stays the `same`, nothing."""


def main(arguments: argparse.Namespace) -> int:
    if arguments.folder is None and not arguments.upgrade:
        raise DecantError("name the workspace's folder: decant init FOLDER; or, in a workspace: decant init --upgrade")
    folder: Path = arguments.folder or Path.cwd()
    if arguments.source and (folder / RECORD).is_file():
        words = f"decant run --set ingest.source={shlex.quote(arguments.source)}"
        raise DecantError(f"{folder}: already a workspace; to clean that data: {words}")
    if arguments.upgrade:
        upgrade(folder)
    else:
        create(folder, arguments.source)
    return 0


def create(folder: Path, source: str | None) -> None:
    """Creates a workspace in a new or an empty folder.

    Raises: DecantError where the folder is not empty, or where git or DVC fails; SourceError where `source` does not
    exist.
    """
    if (folder / RECORD).is_file():
        raise DecantError(
            f"{folder}: already a workspace; to bring it up to date, in that folder: decant init --upgrade"
        )
    importlib.import_module("dvc")  # where it is missing, `decant.cli.main` says how to get it
    check_name(source or "digits")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = sorted(path.name for path in folder.iterdir() if path.name != ".git")
    except OSError as error:
        raise DecantError(f"{folder}: can't be a folder for a workspace ({error.strerror}); name another") from error
    if held:
        raise DecantError(f"{folder}: not empty (it holds {held[0]}); a workspace needs a new or an empty folder")
    start_dvc(folder, *start_git(folder))
    for path, text in workspace.own_files(source or "digits").items():
        write_text(folder / path, text)
    workspace.write_files(folder, workspace.pipeline_files())
    print(f"{folder} is a workspace. Next:")
    print(f"  cd {shlex.quote(str(folder))}")
    print("  decant run" if source else "  decant run --set ingest.source=/path/to/images")
    print("  decant report --open")


def upgrade(folder: Path) -> None:
    """Replaces a workspace's files by the installed decant's, keeps changed ones, and prints what happened to each.

    Of a dvc.yaml that is kept, also the stages that would stay fresh although a part which they newly use changes.

    Raises: DecantError where the folder is no workspace; SettingsError where a dvc.yaml that is kept can't be read.
    """
    if not (folder / RECORD).is_file():
        raise DecantError(f"{folder}: not a workspace, so there is nothing to upgrade; decant init FOLDER makes one")
    files = workspace.pipeline_files()
    outcomes = workspace.write_files(folder, files)
    for path, outcome in outcomes.items():
        if outcome != "same":
            print(f"{path}: {WORDS[outcome]}")
    for stage, parts in parts_lacking(files["dvc.yaml"], folder / "dvc.yaml").items():
        lacks = ", ".join(f"library.{part}" for part in parts)
        way = "add it" if len(parts) == 1 else "add them"
        way += ", or take dvc.yaml.new" if (folder / "dvc.yaml.new").is_file() else ""
        print(f"dvc.yaml: stage {stage} lacks {lacks}: {way}")
    print(f"{folder} is up to date with decant {workspace.decant.__version__}; decant status lists what is stale")


def start_git(folder: Path) -> list[str]:
    """Makes the folder a git repository unless it lies in one. Returns the options for `dvc init`."""
    if shutil.which("git") is None:
        print("git is not installed: in this workspace `dvc exp` and `dvc diff` don't work")
        return ["--no-scm"]
    above = subprocess.run(
        ["git", "rev-parse", "--show-toplevel"], cwd=folder, capture_output=True, text=True, check=False
    )
    if above.returncode == 0:
        return [] if Path(above.stdout.strip()).samefile(folder) else ["--subdir"]
    _must("git", "init", "--quiet", folder=folder)
    return []


def start_dvc(folder: Path, *options: str) -> None:
    """Runs `dvc init` and makes room for our files; what it sets for this machine (`no_scm`) stays out of git."""
    _must(sys.executable, "-m", "dvc", "init", "--quiet", *options, folder=folder)
    (folder / ".dvc/config").rename(folder / ".dvc/config.local")
    (folder / ".dvcignore").unlink()


def _must(*command: str, folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stdout + done.stderr).strip().splitlines()[-1:]
        raise DecantError(f"{folder}: {' '.join(command[-3:])} failed: {''.join(last)}")
