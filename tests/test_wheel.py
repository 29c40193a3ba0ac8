"""The package as a user installs it: what it declares, what it installs, and that it cleans data on its own."""

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from toy_pipeline import ROOT

from decant.cli import workspace
from decant.fingerprints import fingerprints

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
STAGES = list(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
OF_THE_PIPELINE = ("prefect", "dvc", "networkx", "httpx", "sqlalchemy", "flows", "tasks")
QUICK = {
    "ingest.limit": 300, "train.epochs": 2, "purify.when": "never", "verify.steps": 10, "verify.rounds": 1,
    "verify.references": 3, "verify.reviews": 2, "verify.expert": "oracle",
}  # fmt: skip


def distribution_name(requirement: str) -> str:
    """`ruamel-yaml` of `ruamel.yaml>=0.18`."""
    return re.sub("[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()  # type: ignore[index]


def imported_libraries(*folders: str) -> set[str]:
    """Top-level names of other projects that the files import, anywhere in them."""
    trees = [ast.parse(path.read_text()) for folder in folders for path in (ROOT / folder).rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"decant", "tasks", "flows"}


def undeclared(libraries: set[str], *requirements: list[str]) -> set[str]:
    declared = {distribution_name(entry) for entries in requirements for entry in entries}
    known = packages_distributions()
    return {
        name for name in libraries if not declared & {distribution_name(found) for found in known.get(name, [name])}
    }


def test_everything_imported_is_declared() -> None:
    base, extras = PROJECT["dependencies"], PROJECT["optional-dependencies"]
    rooms = [f"decant/{path.name}" for path in (ROOT / "decant").iterdir() if path.is_dir() and path.name != "cli"]
    assert undeclared(imported_libraries(*rooms), base, extras["peers"]) == set()
    assert (
        undeclared(imported_libraries("decant", "tasks", "flows"), base, extras["peers"], extras["pipeline"]) == set()
    )


def test_the_library_needs_nothing_of_the_pipeline() -> None:
    """Every module outside of the command line is imported where Prefect and DVC can't be."""
    program = (
        "import importlib, pkgutil, sys, decant\n"
        f"sys.modules |= dict.fromkeys({OF_THE_PIPELINE})\n"
        "names = [module.name for module in pkgutil.walk_packages(decant.__path__, 'decant.')]\n"
        "names = [name for name in names if not name.startswith('decant.cli')]\n"
        "[importlib.import_module(name) for name in names]\n"
        "print(len(names))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=ROOT, check=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin` of a new environment with the wheel, which finds our environment's other packages through a path file.

    Path files of a folder that a path file names are not read, so our editable install is not seen there.
    """
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=True)
    paths = {"base": str(home), "platbase": str(home)}
    installed = Path(sysconfig.get_path("purelib", "venv", paths))
    others = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (installed / "others.pth").write_text("\n".join(others))
    pip = [
        home / "bin/python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--ignore-installed",
        wheel,
    ]
    subprocess.run(pip, check=True, env=environment(home / "bin"))
    return home / "bin"


def environment(programs: Path) -> dict[str, str]:
    """Ours, as if that environment were activated and nothing of this checkout could be found."""
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return {**inherited, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}


@pytest.mark.slow
def test_the_wheel_holds_one_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"decant", f"decant-{PROJECT['version']}.dist-info"}
    assert not [name for name in names if name.endswith(".pyc")]


@pytest.mark.slow
def test_the_wheel_alone_cleans_data_in_a_workspace(programs: Path, tmp_path: Path) -> None:
    folder = tmp_path

    def run(*words: str) -> str:
        """The output of a command of the environment; fails where its exit code isn't 0."""
        done = subprocess.run(
            [str(programs / words[0]), *words[1:]], cwd=folder, env=environment(programs),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    places = run(
        "python", "-c", "import decant; print(decant.__file__)\ntry: import flows\nexcept ImportError: print('alone')"
    )
    assert places.splitlines() == [str(next(programs.parent.glob("lib/*/site-packages/decant/__init__.py"))), "alone"]

    run("decant", "init", "space", "--source", "digits")
    folder = tmp_path / "space"
    for name, text in workspace.pipeline_files().items():  # the same as a checkout's
        assert (folder / name).read_text(encoding="utf-8") == text, name
    assert yaml.safe_load((folder / "workspace.yaml").read_text())["library"] == fingerprints()

    first = run("decant", "run", "--no-server", *(f"--set={key}={value}" for key, value in QUICK.items()))
    assert f"{len(STAGES)} of {len(STAGES)} stages ran" in first
    assert (folder / "data/report/index.html").is_file() and (folder / "data/export/audit.csv").is_file()

    lock = (folder / "dvc.lock").read_bytes()
    again = run("decant", "run", "--no-server").splitlines()
    assert {tuple(line.split()) for line in again} >= {(stage, "Unchanged") for stage in STAGES}
    assert json.loads(run("python", "-m", "dvc", "status", "--json")) == {}
    run("python", "-m", "dvc", "repro")
    assert (folder / "dvc.lock").read_bytes() == lock
