"""Writes docs/parameters.md from the blocks' own JSON schema: `make docs`."""

import json

from decant import settings


def page() -> str:
    """The whole page, in Markdown."""
    lines = [
        "# Parameters",
        "",
        "Every key of `params.yaml`. Change one in the file, with `decant run --set block.key=value`, or for one",
        "experiment with `dvc exp run -S block.key=value`. A key that is not listed here is refused; where one is",
        "missing, its default counts. What the demo runs with is in `params.yaml`.",
        "Written by `make docs` from the `settings.py` of each package; the attacks' own parameters are",
        "on [their page](attacks.md).",
        "",
        "`seed` (whole number, default 0): every random draw of the pipeline follows from it.",
    ]
    for block in settings.BLOCKS:
        lines += ["", f"## {block}", "", "| parameter | allowed | default | meaning |", "|---|---|---|---|"]
        for name, parameter in settings.schema(settings.block_class(block))["properties"].items():
            default = parameter["default"]
            shown = default if isinstance(default, str) else json.dumps(default)
            nothing = "`false`: the data passes through." if name == "enabled" else ""
            meaning = " ".join(parameter.get("description", nothing).split())
            cells = [f"`{block}.{name}`", settings.allowed(parameter), f"`{shown}`", meaning.replace("|", "\\|")]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
