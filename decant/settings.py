"""Blocks of params.yaml: who owns each, and how one is checked.

A block is a frozen dataclass that inherits `Block`, beside the code that it steers; pydantic reads its annotations
(`Annotated[float, Field(ge=0, le=1)]`) and the docstring below each field. `load` is strict: an unknown key, a value of
the wrong kind or out of range raises SettingsError, which names the key and what is allowed. The modules of the
pipeline's blocks load nothing heavy, so that a command line can say "unknown parameter" at once.

What must not make a stage stale (device, workers) is no parameter; see `decant.runtime`.
"""

import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_json

from decant.errors import SettingsError, did_you_mean

BLOCKS = {
    "ingest": "decant.data.settings.IngestSettings",
    "simulate": "decant.attacks.settings.SimulateSettings",
    "train": "decant.models.settings.TrainSettings",
    "purify": "decant.purify.settings.PurifySettings",
    "purify_1": "decant.purify.settings.PurifyStageSettings",
    "purify_2": "decant.purify.settings.SecondPurifyStageSettings",
    "verify": "decant.labeltrust.settings.VerifySettings",
    "detect": "decant.detectors.settings.DetectSettings",
    "unlearn": "decant.unlearning.settings.UnlearnSettings",
    "evaluate": "decant.report.settings.EvaluateSettings",
    "export": "decant.data.settings.ExportSettings",
    "report": "decant.report.settings.ReportSettings",
}
"""Block of params.yaml to its class. Names, so that a stage loads only the blocks that it reads."""

Settings = TypeVar("Settings")
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[str, Field(pattern=r"^(frr|far)=0?\.[0-9]+$", examples=["frr=0.02", "far=0.001"])]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class Block:
    """Base of a frozen dataclass of parameters."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def load(kind: type[Settings], values: Mapping[str, Any], block: str) -> Settings:
    """The settings `kind` from a mapping; `block` is how error messages call it.

    Raises: SettingsError for an unknown key, a wrong kind or a value out of range.
    """
    if not isinstance(values, Mapping):
        raise SettingsError(f"{block}: a block of parameters expected, {values!r} found")
    try:
        # As JSON: what YAML holds. Of Python objects, pydantic's strict mode would take no mapping for a dataclass.
        return TypeAdapter(kind).validate_json(to_json(dict(values), inf_nan_mode="constants"))
    except ValidationError as error:
        raise SettingsError(_sentence(kind, values, block, error)) from error
    except PydanticSerializationError as error:
        raise SettingsError(
            f"{block}: numbers, texts, true, false, null or lists expected, {values!r} found"
        ) from error


def load_params(params: Mapping[str, Any], blocks: Iterable[str] = BLOCKS) -> dict[str, Any]:
    """`{"seed": int, block name: its settings}` from the contents of params.yaml; every block asked for is checked.

    Raises: SettingsError, also where params.yaml has a block that nobody knows.
    """
    for key in params:
        if key != "seed" and key not in BLOCKS:
            known = ["seed", *BLOCKS]
            raise SettingsError(f"params.yaml: unknown block {key!r}; known: {', '.join(known)}{_block_hint(str(key))}")
    seed = params.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise SettingsError(f"seed: whole number (at least 0) expected, {seed!r} found")
    return {"seed": seed} | {name: load(block_class(name), params.get(name) or {}, name) for name in blocks}


def _block_hint(key: str) -> str:
    """What was meant by a block that nobody knows: the block of a parameter of that name, or a misspelt one."""
    parameters = [f"{name}.{key}" for name in BLOCKS if key in inspect.signature(block_class(name)).parameters]
    return f". Did you mean {' or '.join(parameters)}?" if parameters else did_you_mean(key, ["seed", *BLOCKS])


def block_class(name: str) -> type:
    """The class of a block of params.yaml."""
    module, _, kind = BLOCKS[name].rpartition(".")
    return getattr(importlib.import_module(module), kind)


def schema(kind: type) -> dict[str, Any]:
    """JSON schema of a block: per parameter its kind, range, default and meaning."""
    return TypeAdapter(kind).json_schema()


def allowed(parameter: Mapping[str, Any]) -> str:
    """What a parameter takes, for people, from its entry in the schema's `properties`."""
    if "anyOf" in parameter:
        return " or ".join(allowed(option) for option in parameter["anyOf"])
    if "enum" in parameter or "const" in parameter:
        return "one of " + ", ".join(map(str, parameter.get("enum", [parameter.get("const")])))
    word = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "true or false",
        "array": "a list",
        "null": "null",
    }.get(parameter.get("type", ""), "a block of parameters")
    low, high = parameter.get("minimum"), parameter.get("maximum")
    if low is not None and high is not None:
        return f"{word} ({low:g} to {high:g})"
    if low is not None or high is not None:
        return f"{word} (at least {low:g})" if low is not None else f"{word} (at most {high:g})"
    return f"{word} (such as {' or '.join(parameter['examples'])})" if "examples" in parameter else word


def _sentence(kind: type, values: Mapping[str, Any], block: str, error: ValidationError) -> str:
    """The first fault in one line."""
    properties = schema(kind).get("properties", {})
    unknown = [key for key in values if key not in properties]
    if unknown:
        hint = did_you_mean(str(unknown[0]), properties)
        return f"{block}.{unknown[0]}: unknown parameter; known: {', '.join(properties)}{hint}"
    key = str(error.errors()[0]["loc"][0])
    return f"{block}.{key}: {allowed(properties[key])} expected, {values[key]!r} found"
