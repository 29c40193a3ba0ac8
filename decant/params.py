"""`--set block.key=value`: checks the new parameters as a stage would read them, then edits params.yaml in place.

Comments and layout stay, as `dvc exp run -S` leaves them. Nothing is written unless everything is valid.
"""

import io
from pathlib import Path
from typing import Any

import yaml

from decant.errors import SettingsError
from decant.files import write_text
from decant.settings import load_params

PARAMS = Path("params.yaml")


def settings() -> dict[str, Any]:
    """The seed, and the settings of every block by its name. Raises SettingsError."""
    return _settings(_read())


def check(text: str) -> None:
    """Raises SettingsError when a stage could not work with this params.yaml."""
    attacks = _settings(text)["simulate"].attacks
    if attacks:
        from decant.attacks.base import load_attacks  # costs pyarrow and pandas

        load_attacks(attacks)


def check_file() -> None:
    check(_read())


def planted_in_own_data() -> list[str]:
    """The attacks that `simulate` would plant into data that isn't the demo's."""
    found = settings()
    return [] if found["ingest"].source == "digits" else [attack["name"] for attack in found["simulate"].attacks]


def edit_file(assignments: list[str]) -> None:
    """Applies `block.key=value` assignments; a number in the path counts list entries from 0.

    Raises: SettingsError for a malformed assignment, an unknown key or a bad value, SourceError for a source that isn't
    there; params.yaml is then as it was.
    """
    from ruamel.yaml import YAML

    ruamel = YAML()
    ruamel.preserve_quotes = True
    ruamel.width = 4096  # no line is wrapped that wasn't
    ruamel.indent(mapping=2, sequence=4, offset=2)
    ruamel.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    document = ruamel.load(_read()) or {}
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        if not (equals and path):
            raise SettingsError(f"--set {assignment}: block.key=value expected, such as verify.threshold=0.9")
        _assign(document, path.split("."), parse_value(value, assignment), assignment)
    edited = io.StringIO()
    ruamel.dump(document, edited)
    check(edited.getvalue())
    if any(assignment.startswith("ingest.source=") for assignment in assignments):
        from decant.data.sources import check_name

        check_name(str(document["ingest"]["source"]))
    write_text(PARAMS, edited.getvalue())


def parse_value(text: str, assignment: str) -> Any:
    """The value as params.yaml would hold it; `1e-3` is a number, although YAML 1.1 wants `1.0e-3`."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"--set {assignment}: the value is not YAML") from error
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _assign(node: Any, path: list[str], value: Any, assignment: str) -> None:
    """Sets the value at that path. A key that isn't there yet is added; `check` says whether it may be."""
    for part in path[:-1]:
        node = _child(node, part, assignment)
    if isinstance(node, list):
        _child(node, path[-1], assignment)
        node[int(path[-1])] = value
    elif isinstance(node, dict):
        node[path[-1]] = value
    else:
        raise SettingsError(f"--set {assignment}: {'.'.join(path[:-1])} holds a value, not a block")


def _child(node: Any, part: str, assignment: str) -> Any:
    if isinstance(node, list):
        if not (part.isdigit() and int(part) < len(node)):
            raise SettingsError(f"--set {assignment}: {part}: an entry from 0 to {len(node) - 1} expected")
        return node[int(part)]
    if not isinstance(node, dict):
        raise SettingsError(f"--set {assignment}: {part}: the part before it is no block")
    return node.setdefault(part, {})


def _settings(text: str) -> dict[str, Any]:
    try:
        params = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise SettingsError(f"params.yaml: not YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(params, dict):
        raise SettingsError(f"params.yaml: blocks of parameters expected, {params!r} found")
    return load_params(params)


def _read() -> str:
    try:
        return PARAMS.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"params.yaml: can't be read ({error.strerror})") from error
