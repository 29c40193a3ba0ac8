"""Fingerprints of the library's parts: how a stage of a workspace knows that its code has changed.

In the repository's checkout dvc.yaml lists the parts of ``decant/``, its packages and modules, as dependencies, and DVC
sees every edit. In a workspace the library lies in a Python environment, where DVC does not look. There `decant init`
writes the fingerprint of each part to workspace.yaml, and dvc.yaml lists those of the parts that a stage uses as
parameters of the stage. An upgrade of decant that changes one part thus makes exactly the stages stale that use it,
once `decant init --upgrade` has written the fingerprints anew; until then these stages refuse to run.
"""

import hashlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from decant.errors import SettingsError

LIBRARY = Path(__file__).parent
RECORD = Path("workspace.yaml")
"""In the root of a workspace; the repository's checkout has none."""


@cache
def fingerprints() -> dict[str, str]:
    """Each part of the installed library (a folder or a file of ``decant/``), and the fingerprint of its files."""
    packages = {path.name: path for path in LIBRARY.iterdir() if (path / "__init__.py").is_file()}
    modules = {path.stem: path for path in LIBRARY.glob("*.py")}
    return {part: fingerprint(path) for part, path in sorted({**packages, **modules}.items())}


def fingerprint(part: Path) -> str:
    """The start of the SHA-256 over the names and bytes of a part's files."""
    sha256 = hashlib.sha256()
    for file in source_files(part):
        content = file.read_bytes()
        sha256.update(f"{file.relative_to(part.parent).as_posix()}\0{len(content)}\0".encode() + content)
    return sha256.hexdigest()[:16]


def source_files(path: Path) -> list[Path]:
    """The file itself, or the files of a folder in the order of their names, compiled ones excepted."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return [file for file in files if file.is_file() and "__pycache__" not in file.parts]


def outdated() -> dict[str, list[str]]:
    """Stages of this workspace that use parts which workspace.yaml knows by another fingerprint, and these parts.

    Empty in the repository's checkout. Raises: SettingsError where workspace.yaml or dvc.yaml can't be read.
    """
    if not RECORD.is_file():
        return {}
    recorded, installed = _read(RECORD).get("library", {}), fingerprints()
    stages = _read(Path("dvc.yaml")).get("stages", {})
    changed = {
        name: [part for part in parts_used(stage) if recorded.get(part) != installed.get(part)]
        for name, stage in stages.items()
    }
    return {name: parts for name, parts in changed.items() if parts}


def check(stage: str | None = None) -> None:
    """Checks that the stage (None: every one) runs the code that workspace.yaml records. Raises SettingsError."""
    found = outdated()
    parts = sorted({part for name in found if stage in (None, name) for part in found[name]})
    if parts:
        raise SettingsError(
            f"the installed decant is not the one that this workspace was made for ({', '.join(parts)} changed): "
            "decant init --upgrade"
        )


def parts_used(stage: Mapping[str, Any]) -> Iterator[str]:
    """The parts whose fingerprints are parameters of a stage, from the stage's entry in dvc.yaml."""
    for parameter in stage.get("params", []):
        keys = parameter.get(RECORD.name, []) if isinstance(parameter, dict) else []
        yield from (key.removeprefix("library.") for key in keys)


def parts_lacking(newer: str, kept: Path) -> dict[str, list[str]]:
    """Stages of the kept dvc.yaml that don't list parts which the newer one's text lists for them, and these parts.

    Raises: SettingsError where the kept one can't be read.
    """
    wanted, found = yaml.safe_load(newer)["stages"], _read(kept).get("stages", {})
    lacking = {
        name: sorted(set(parts_used(wanted[name])) - set(parts_used(stage)))
        for name, stage in found.items()
        if name in wanted
    }
    return {name: parts for name, parts in lacking.items() if parts}


def _read(path: Path) -> dict[str, Any]:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: can't be read ({str(error).splitlines()[0]})") from error
