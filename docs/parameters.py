"""Writes docs/parameters.md from decant/settings.py: `make docs`."""

import ast
import dataclasses
import inspect

from decant import settings


def explanations(kind: type) -> dict[str, str]:
    """Field name to the docstring below it, in the class itself or one that it inherits from."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    found = {} if kind.__base__ in (None, object) else explanations(kind.__base__)
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return found


def page() -> str:
    lines = [
        "# Parameters",
        "",
        "Every key of `params.yaml`. Change one in the file, with `decant run --set block.key=value`, or for one",
        "experiment with `dvc exp run -S block.key=value`. A key that is not listed here is refused; where one is",
        "missing, its default counts. What the demo runs with is in `params.yaml`.",
        "Written by `make docs` from `decant/settings.py`; the attacks' own parameters are",
        "on [their page](attacks.md).",
        "",
        "`seed` (whole number, default 0): every random draw of the pipeline follows from it.",
    ]
    for block, kind in settings.BLOCKS.items():
        texts, allowed = explanations(kind), settings.describe(kind)
        lines += ["", f"## {block}", "", "| parameter | allowed | default | meaning |", "|---|---|---|---|"]
        for field in dataclasses.fields(kind):
            default = "`[]`" if field.default == () else f"`{field.default}`".replace("None", "null")
            default = default.replace("True", "true").replace("False", "false")
            meaning = texts.get(field.name, "`false`: the data passes through." if field.name == "enabled" else "")
            cells = [f"`{block}.{field.name}`", allowed[field.name], default, meaning.replace("|", "\\|")]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
