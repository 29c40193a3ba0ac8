"""The files of a workspace: what `decant init` writes, and what an upgrade replaces or keeps.

A workspace is the repository's pipeline without its library: the same ``tasks/`` and ``flows/``, ``dvc.yaml`` and
``params.yaml``, in a folder of the user's. An upgrade replaces files that the user has not changed and keeps the
others. To tell them apart, workspace.yaml records the SHA-256 of each file as it was written, beside the fingerprints
of the library's parts (`decant.fingerprints`).
"""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import yaml

import decant
from decant import params, paths
from decant.files import write_text
from decant.fingerprints import RECORD, fingerprints, source_files

COPIED = (
    "tasks", "flows", "prefect.toml", "prefect.yaml", "docs/parameters.md", "docs/attacks.md",
    ".gitignore", ".gitattributes", ".dvcignore", ".dvc/config",
)  # fmt: skip
"""Files and folders of the repository that a workspace has unchanged."""
INPUTS = {str(paths.DECISIONS): "id,label\n", str(paths.AFFECTED): "image,predicted\n"}
"""Files that people fill in and stages read, with no row yet."""
README = Path(__file__).with_name("workspace_readme.md")
DVC_YAML_HEAD = """\
# The one definition of the pipeline: `decant run` and `dvc repro` run it. Nothing else lists the stages.
#
# stage name = params block = tasks/<stage>.py = data/<stage>/
# A stage of your own reads the blocks of params.yaml that exist; a block that decant doesn't know is refused.
# workspace.yaml: fingerprints of the parts of decant that a stage uses, so that it is stale after an upgrade of decant.
# meta: tags `gpu` take one slot per GPU; timeout in seconds, enforced by the flow.
"""
NEWER = ".new"
"""Suffix of a newer version, written beside a file that the user changed."""

FileOutcome = Literal["added", "same", "updated", "yours", "kept", "removed"]
"""`yours`: changed by the user, and there is no newer version. `kept`: there is one, now beside it, ending in NEWER."""


def repository() -> Path:
    """Where the pipeline's files are: in the package of an installed wheel, or the checkout of an editable install."""
    package = Path(decant.__file__).parent
    return package / "workspace" if (package / "workspace").is_dir() else package.parent


def pipeline_files() -> dict[str, str]:
    """Path in a workspace to text, of the files that an upgrade replaces."""
    origin = repository()
    files = [file for name in COPIED for file in source_files(origin / name)]
    return {
        **{file.relative_to(origin).as_posix(): file.read_text(encoding="utf-8") for file in files},
        "dvc.yaml": workspace_pipeline((origin / "dvc.yaml").read_text(encoding="utf-8")),
        "README.md": README.read_text(encoding="utf-8"),
    }


def own_files(source: str) -> dict[str, str]:
    """Path in a workspace to text, of the files that are written once and belong to the user from then on."""
    text = (repository() / "params.yaml").read_text(encoding="utf-8")
    changes = {"ingest.source": source, "simulate.attacks": [], "verify.expert": "person"}
    return {"params.yaml": params.edited(text, changes), **INPUTS}


def workspace_pipeline(text: str) -> str:
    """The repository's dvc.yaml, with fingerprints in workspace.yaml in place of dependencies on ``decant/``."""
    editor, output = params.yaml_editor(), io.StringIO()
    document = editor.load(text)
    for stage in document["stages"].values():
        code = [dep for dep in stage["deps"] if dep.startswith("decant/")]
        parts = dict.fromkeys(Path(dep).parts[1].removesuffix(".py") for dep in code)
        stage["deps"] = [dep for dep in stage["deps"] if dep not in code]
        stage["params"] = [*stage["params"], {RECORD.name: [f"library.{part}" for part in parts]}]
    editor.dump(document, output)
    _, _, body = output.getvalue().partition("\nstages:\n")
    return f"{DVC_YAML_HEAD}\nstages:\n{body}"


def write_files(folder: Path, files: Mapping[str, str]) -> dict[str, FileOutcome]:
    """Writes the files into a new or an older workspace, and workspace.yaml. Returns what happened to each file."""
    recorded = read_record(folder)
    outcomes = {path: _write_file(folder / path, text, recorded.get(path)) for path, text in files.items()}
    outcomes |= {path: _remove_file(folder / path, recorded[path]) for path in recorded if path not in files}
    write_record(folder, files)
    return dict(sorted(outcomes.items()))


def _write_file(path: Path, text: str, recorded: str | None) -> FileOutcome:
    wanted, found = _sha256(text.encode()), _sha256(path.read_bytes()) if path.is_file() else None
    if found == wanted:
        return "same"
    if found in (None, recorded):
        write_text(path, text)
        return "updated" if found else "added"
    if wanted == recorded:
        return "yours"
    write_text(path.with_name(path.name + NEWER), text)
    return "kept"


def _remove_file(path: Path, recorded: str) -> FileOutcome:
    """Removes a file that this version of decant no longer has, unless the user changed it."""
    if path.is_file() and _sha256(path.read_bytes()) != recorded:
        return "yours"
    path.unlink(missing_ok=True)
    return "removed"


def read_record(folder: Path) -> dict[str, str]:
    """Path to SHA-256 of each file as it was last written; empty where the folder is no workspace yet."""
    path = folder / RECORD
    return yaml.safe_load(path.read_text(encoding="utf-8"))["files"] if path.is_file() else {}


def write_record(folder: Path, files: Mapping[str, str]) -> None:
    """Writes workspace.yaml."""
    record = {
        "version": decant.__version__,
        "library": fingerprints(),
        "files": {path: _sha256(text.encode()) for path, text in sorted(files.items())},
    }
    head = "# Written by `decant init` and `decant init --upgrade`; keep it in git, don't edit it.\n"
    write_text(folder / RECORD, head + yaml.safe_dump(record, sort_keys=False))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
