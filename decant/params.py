"""params.yaml: reads and checks it, and edits it for `--set block.key=value`.

Comments and layout stay, as `dvc exp run -S` leaves them. Nothing is written unless everything is valid.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML

from decant.errors import SettingsError
from decant.files import write_text
from decant.settings import load_params

PARAMS = Path("params.yaml")


def settings() -> dict[str, Any]:
    """The seed, and the settings of every block by its name. Raises SettingsError."""
    return _settings(_read())


def check(text: str) -> None:
    """Checks the text of a params.yaml as the stages would read it. Raises SettingsError."""
    attacks = _settings(text)["simulate"].attacks
    if attacks:
        from decant.attacks.base import load_attacks  # costs pyarrow and pandas

        load_attacks(attacks)


def check_file() -> None:
    """Checks params.yaml. Raises SettingsError."""
    check(_read())


def planted_in_own_data() -> list[str]:
    """The attacks that `simulate` would plant into data that isn't the demo's."""
    return _planted_in_own_data(settings())


def _planted_in_own_data(found: Mapping[str, Any]) -> list[str]:
    return [] if found["ingest"].source == "digits" else [attack["name"] for attack in found["simulate"].attacks]


def edit_file(assignments: list[str]) -> None:
    """Applies `block.key=value` assignments to params.yaml; a number in the path counts list entries from 0.

    Raises: SettingsError for a malformed assignment, an unknown key, a bad value, or a new source where params.yaml
    still plants attacks; SourceError for a source that isn't there. params.yaml is then as it was.
    """
    changes = dict(map(parse_assignment, assignments))
    text = edited(_read(), changes)
    check(text)
    if "ingest.source" in changes:
        from decant.data.sources import check_name

        check_name(str(changes["ingest.source"]))
        if not any(key.startswith("simulate.attacks") for key in changes):
            _refuse_unasked_poison(_settings(text))
    write_text(PARAMS, text)


def _refuse_unasked_poison(found: Mapping[str, Any]) -> None:
    if names := _planted_in_own_data(found):
        raise SettingsError(
            f"ingest.source={found['ingest'].source}: params.yaml says to plant poison into the data "
            f"({', '.join(names)}); to clean the data as it is, add --set 'simulate.attacks=[]'; for an experiment, "
            f"name what to plant: --set 'simulate.attacks=[{{name: {names[0]}}}]'"
        )


def edited(text: str, changes: Mapping[str, Any]) -> str:
    """params.yaml with other values at dotted keys; comments and layout stay. Unknown keys are `check`'s to find.

    Raises: SettingsError for a key that leads into a value or past a list's end.
    """
    editor, output = yaml_editor(), io.StringIO()
    document = editor.load(text) or {}
    for key, value in changes.items():
        _assign(document, key, value)
    editor.dump(document, output)
    return output.getvalue()


def yaml_editor() -> YAML:
    """Reads YAML and writes it as it was laid out, comments included."""
    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 4096  # no line is wrapped that wasn't
    editor.indent(mapping=2, sequence=4, offset=2)
    editor.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    return editor


def parse_assignment(assignment: str) -> tuple[str, Any]:
    """Key and value of `block.key=value`. Raises SettingsError."""
    key, equals, value = assignment.partition("=")
    if not (equals and key):
        raise SettingsError(f"--set {assignment}: block.key=value expected, such as verify.threshold=0.9")
    return key, parse_value(value, assignment)


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


def _assign(node: Any, key: str, value: Any) -> None:
    """Sets the value at a dotted key. One that isn't there yet is added; `check` says whether it may be."""
    *path, last = key.split(".")
    for part in path:
        node = _child(node, part, key)
    if isinstance(node, list):
        _child(node, last, key)
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise SettingsError(f"--set {key}: {'.'.join(path)} holds a value, not a block")


def _child(node: Any, part: str, key: str) -> Any:
    if isinstance(node, list):
        if not (part.isdigit() and int(part) < len(node)):
            raise SettingsError(f"--set {key}: {part}: an entry from 0 to {len(node) - 1} expected")
        return node[int(part)]
    if not isinstance(node, dict):
        raise SettingsError(f"--set {key}: {part}: what stands before it is not a block")
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
