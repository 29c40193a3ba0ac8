"""The shape of the project, held by tests: who imports whom, what dvc.yaml declares, who may read the truth."""

import ast
import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

from decant.registry import ATTACKS, PURIFICATION_METHODS
from decant.settings import BLOCKS, block_class

ROOT = Path(__file__).parents[1]
PACKAGES = ("decant", "tasks", "flows", "benchmarks")
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = DVC["stages"]
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TRUTH_READERS = {
    "decant/data/tables.py",  # defines it
    "tasks/evaluate.py",
    "tasks/verify.py",  # builds the simulated expert
    "decant/report/run.py",
    "decant/cli/explain.py",
}


@cache
def imported_names(path: Path) -> frozenset[str]:
    """Dotted names that a file imports, anywhere in it, `if TYPE_CHECKING` blocks excepted."""
    names: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def own_file(name: str) -> Path | None:
    """The file behind a dotted name of this project, or None."""
    base = ROOT.joinpath(*name.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def family(path: Path) -> list[Path]:
    """Files that a family loads by name: decant/attacks/base.py may load any attack."""
    return sorted(path.parent.glob("*.py")) if path.name == "base.py" and "decant.registry" in path.read_text() else []


def closure(start: Path) -> set[Path]:
    """Every file of this project that `start` can load."""
    seen: set[Path] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        waiting += [found for name in imported_names(path) if (found := own_file(name))]
        waiting += family(path)
    return seen


def code_files(stage: str) -> set[str]:
    """What dvc.yaml must list for a stage: the stage runner's and the stage's own files, and all that they load."""
    files = closure(ROOT / f"tasks/{stage}.py") | closure(ROOT / "tasks/__main__.py")
    return {str(path.relative_to(ROOT)) for path in files if path.stat().st_size}


def is_covered(file: str, deps: list[str]) -> bool:
    """A dep covers the file itself, or is a folder above it."""
    return any(file == dep or file.startswith(f"{dep}/") for dep in deps)


FLOORS = (  # lowest first: a file imports from its own room and from lower floors
    {"ground"},  # the files of decant/ itself
    {"data"},
    {"models"},
    {"attacks", "influence", "labeltrust", "purify"},
    {"confidence", "detectors", "label_checks", "unlearning"},
    {"report"},
    {"params"},
    {"tasks"},
    {"web"},
    {"review", "serve"},
    {"flows"},
    {"cli"},
    {"benchmarks"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path: Path) -> str:
    """A folder of decant/, its ground floor, `params`, or a top-level package."""
    package, *inside = path.relative_to(ROOT).with_suffix("").parts
    if package != "decant":
        return package
    return inside[0] if len(inside) > 1 or inside[0] in FLOOR else "ground"


def own_imports(path: Path) -> set[Path]:
    """Files of this project that a file imports, packages without code excepted."""
    files = {found for name in imported_names(path) if (found := own_file(name))}
    return {file for file in files if file.name != "__init__.py"} - {path}


def test_every_file_has_a_room() -> None:
    assert {room_of(path) for path in MODULES} <= set(FLOOR)


def test_imports_point_down() -> None:
    for path in MODULES:
        for other in own_imports(path):
            here, there = room_of(path), room_of(other)
            assert here == there or FLOOR[there] < FLOOR[here], f"{path} imports {other}"


def test_imports_make_no_circle() -> None:
    graph = {path: own_imports(path) for path in MODULES}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError


def test_only_the_flow_starts_stages() -> None:
    """Whoever else wants a stage to run asks the flow, or DVC."""
    for path in MODULES:
        if room_of(path) not in ("tasks", "benchmarks"):
            assert "tasks" not in {name.split(".")[0] for name in imported_names(path)}, path


def test_library_and_stages_know_neither_prefect_nor_dvc() -> None:
    for path in MODULES:
        if room_of(path) not in ("flows", "cli", "benchmarks"):
            assert not {"prefect", "dvc"} & {name.split(".")[0] for name in imported_names(path)}, path


def test_no_module_shadows_a_library() -> None:
    assert not {path.stem for path in MODULES} & {"dvc", "prefect", "dask"}


@pytest.mark.parametrize("stage", STAGES)
def test_deps_cover_every_file_that_the_stage_loads(stage: str) -> None:
    missing = {file for file in code_files(stage) if not is_covered(file, STAGES[stage]["deps"])}
    assert not missing, f"add to {stage}'s deps in dvc.yaml: {sorted(missing)}"


@pytest.mark.parametrize("stage", STAGES)
def test_deps_name_no_file_that_the_stage_does_not_load(stage: str) -> None:
    code = [dep for dep in STAGES[stage]["deps"] if dep.startswith(("decant/", "tasks/")) and "j2" not in dep]
    unused = [dep for dep in code if not any(is_covered(file, [dep]) for file in code_files(stage))]
    assert not unused, f"take out of {stage}'s deps in dvc.yaml: {unused}"


@pytest.mark.parametrize("stage", STAGES)
def test_stage_name_is_its_file_its_folder_and_its_command(stage: str) -> None:
    assert (ROOT / f"tasks/{stage}.py").is_file()
    assert STAGES[stage]["outs"] == [f"data/{stage}"]
    assert STAGES[stage]["cmd"].split()[:4] == ["python", "-m", "tasks", stage]


CELLS = yaml.safe_load((ROOT / "benchmarks/dvc.yaml").read_text())["stages"]
DECIDE = {"decant/settings.py", "decant/streams.py"}
PLUMBING = {"benchmarks/_cells.py", "benchmarks/_stages.py", "tasks/ingest.py", "tasks/__init__.py"}
PLUMBING |= {str(path.relative_to(ROOT)) for path in MODULES if room_of(path) == "ground"} - DECIDE
"""Carries rows and figures to and fro without deciding them: of the ground floor all but DECIDE."""
EARLIER = {  # rooms that a step of `benchmarks._unlearnable` leaves to another one, whose output it reads or makes
    "rows": ["decant/attacks", "decant/models", "decant/purify", *DECIDE],
    "poison": ["decant/purify"],
    "cell": ["decant/attacks"],
}


@pytest.mark.parametrize("cell", CELLS)
def test_cells_of_the_benchmarks_depend_on_what_decides_their_figures(cell: str) -> None:
    """Else a figure of yesterday's code would be taken for one of today's."""
    deps = [str(Path(ROOT, "benchmarks", dep).resolve().relative_to(ROOT)) for dep in CELLS[cell]["deps"]]
    deps += EARLIER.get(cell.split("-")[0], [])
    start = ROOT / CELLS[cell]["cmd"].split()[2].replace(".", "/")
    files = {str(path.relative_to(ROOT)) for path in closure(start.with_suffix(".py")) if path.stat().st_size}
    missing = {file for file in files if not is_covered(file, deps)} - PLUMBING
    assert not missing, f"add to {cell}'s deps in benchmarks/dvc.yaml: {sorted(missing)}"


@pytest.mark.parametrize("stage", STAGES)
def test_params_of_a_stage_are_those_in_its_signature(stage: str) -> None:
    signature = inspect.signature(importlib.import_module(f"tasks.{stage}").run)
    wanted = [name for name, argument in signature.parameters.items() if argument.annotation is not Path]
    assert sorted(STAGES[stage].get("params", [])) == sorted(wanted)


@pytest.mark.parametrize("stage", STAGES)
def test_data_that_the_command_names_is_declared(stage: str) -> None:
    """Every path in the command is an output, a metric, or covered by a dep."""
    declared = [*STAGES[stage]["deps"], *STAGES[stage]["outs"]]
    declared += [name for entry in STAGES[stage].get("metrics", []) for name in entry]
    options = STAGES[stage]["cmd"].split()[4:]
    for path in options[1::2]:
        assert is_covered(path, declared) or any(dep.startswith(f"{path}/") for dep in declared), path


def test_every_stage_file_is_in_the_pipeline() -> None:
    files = {path.stem for path in (ROOT / "tasks").glob("*.py") if not path.stem.startswith("_")}
    assert files == set(STAGES)


def test_only_measuring_modules_read_the_truth() -> None:
    readers = {str(p.relative_to(ROOT)) for p in MODULES if "read_truth" in p.read_text(encoding="utf-8")}
    assert readers <= TRUTH_READERS, readers - TRUTH_READERS


def test_settings_and_front_doors_load_nothing_heavy() -> None:
    """Every block of params.yaml and every room's front door, in an interpreter of their own."""
    program = """
import importlib, pkgutil, sys
import decant
from decant.settings import BLOCKS, block_class
for name in BLOCKS:
    block_class(name)
for room in pkgutil.iter_modules(decant.__path__):
    if room.ispkg:
        importlib.import_module(f"decant.{room.name}")
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"torch", "torchvision", "scipy", "sklearn", "pandas", "pyarrow", "PIL", "prefect", "dvc", "fastapi"}
    assert {"decant", "pydantic"} <= set(done.stdout.split()) and not heavy & set(done.stdout.split())


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def derives_a_seed(node: ast.BinOp | ast.Call) -> bool:
    """Whether it is `seed + 1`, or a generator of a list that a seed is part of."""
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Add) and ast.unparse(node.left).endswith("seed")
    seeds = ast.unparse(node.func).endswith(("default_rng", "manual_seed", "SeedSequence"))
    return seeds and any(isinstance(argument, ast.List | ast.Tuple) for argument in node.args)


def test_random_streams_are_named() -> None:
    """`seed + 1` is the next run's seed, and a list of numbers says nothing: decant.streams gives both a name."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in MODULES
        for node in nodes(path)
        if isinstance(node, ast.BinOp | ast.Call) and derives_a_seed(node)
    ]
    assert not found, f"take a stream of decant.streams: {found}"


def test_one_optimisation_step() -> None:
    found = {str(path.relative_to(ROOT)) for path in MODULES if "zero_grad" in path.read_text(encoding="utf-8")}
    assert found == {"decant/models/training.py"}


def texts(path: Path) -> Iterator[str]:
    """String constants of a file, docstrings excepted."""
    every = list(nodes(path))
    docstrings = {id(node.value) for node in every if isinstance(node, ast.Expr)}
    for node in every:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def test_paths_of_data_stand_in_one_module() -> None:
    """Beside dvc.yaml, which names them in the stages' commands."""
    folders = "|".join((*STAGES, "inputs", "runs"))
    names_one = re.compile(rf"data/({folders})\b|/?({folders})/\w")
    found = {str(path.relative_to(ROOT)) for path in MODULES if any(map(names_one.match, texts(path)))}
    assert found <= {"decant/paths.py"}


def test_summaries_are_read_through_their_classes() -> None:
    found = {str(path.relative_to(ROOT)) for path in MODULES if any("summary.json" in text for text in texts(path))}
    assert found <= {"decant/summaries.py"}


OWN_TO_EACH_METHOD = {
    "Settings",  # a method's parameters, in its own file: decant.registry asks for that name
    "Prepared",  # an attack's settings with what it has learnt of clean data
}


def test_a_class_name_has_one_meaning() -> None:
    places: dict[str, list[str]] = {}
    for path in MODULES:
        for node in nodes(path):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(f"{path.relative_to(ROOT)}:{node.lineno}")
    twice = {name: where for name, where in places.items() if len(where) > 1 and name not in OWN_TO_EACH_METHOD}
    assert not twice, twice


def test_annotations_are_no_strings() -> None:
    """jaxtyping's shapes are annotations that run."""
    assert not [path for path in MODULES if "__future__.annotations" in imported_names(path)]


def test_no_pickle_and_no_foreign_torch_load() -> None:
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        assert "pickle" not in imported_names(path) and "torch.load(" not in text, path


def test_params_file_names_every_parameter() -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for block, kind in ((name, block_class(name)) for name in BLOCKS):
        assert set(params[block]) == {field.name for field in dataclasses.fields(kind)}, block


def test_docs_name_every_stage_parameter_and_attack() -> None:
    pages = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for stage in STAGES:
        assert stage in readme, stage
    for block, kind in ((name, block_class(name)) for name in BLOCKS):
        for field in dataclasses.fields(kind):
            assert f"`{block}.{field.name}`" in pages["parameters.md"], f"{block}.{field.name}"
    for attack in ATTACKS.names():
        assert f"`{attack}`" in pages["attacks.md"], attack


def test_docs_name_every_purification_method_and_its_parameters() -> None:
    page = (ROOT / "docs/purification-methods.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert set(rows) == set(PURIFICATION_METHODS.names())
    for name, row in rows.items():
        for field in dataclasses.fields(importlib.import_module(f"decant.purify.methods.{name}").Settings):
            assert f"`{field.name}` (" in row, f"{name}.{field.name}"


def test_pages_name_every_room() -> None:
    rooms = {room_of(path) for path in MODULES} - {"ground", "params"}
    for page in ("README.md", "docs/adding-a-method.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        unnamed = {room for room in rooms - ({"web"} if page == "README.md" else set()) if f"{room}/" not in text}
        assert not unnamed, f"{page}: {unnamed}"


def test_files_stay_in_their_rooms() -> None:
    for path in MODULES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, f"{path}: divide it"
