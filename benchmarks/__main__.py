"""Measure Decant, and hold the figures against the bars of benchmarks/bars.yaml.

python -m benchmarks                                    list the benchmarks
python -m benchmarks pipeline --scale small --seeds 3   measure, print a table, write JSON
python -m benchmarks pipeline --check                   hold the committed result against its bars
python -m benchmarks --check                            the same for all
python -m benchmarks --render                           write benchmarks/README.md from benchmarks/results/
"""

import argparse
import importlib
import pkgutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from types import ModuleType
from typing import Any

import yaml

import benchmarks
from decant.errors import DecantError
from decant.files import read_json, write_json, write_text
from decant.runtime import machine

HERE = Path(__file__).parent
RESULTS = HERE / "results"
STREAMS = "named"
"""Where draws come from (decant.streams): part of a result, as the same seed draws other numbers from other streams."""
PACKAGES = ("torch", "numpy", "pyarrow", "scikit-learn", "prefect", "dvc", "datasets")


def names() -> list[str]:
    """The benchmarks, by the names of their files."""
    found = sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if not m.name.startswith("_"))
    return [name.replace("_", "-") for name in found]


def load(name: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.{name.replace('-', '_')}")


def measure(name: str, scale: str, seeds: int) -> dict[str, Any]:
    """Run the benchmark once per seed: values per key, mean and standard deviation, and on what it ran."""
    module = load(name)
    runs = []
    for seed in range(seeds):
        runs.append(module.run(scale, seed))
        print(f"seed {seed}: " + ", ".join(f"{key} {value:.4g}" for key, value in runs[-1].items()), flush=True)
    keys = [key for key in runs[0] if all(key in run for run in runs)]
    return {
        "benchmark": name,
        "scale": scale,
        "n": seeds,
        "values": {key: [round(run[key], 6) for run in runs] for key in keys},
        "mean": {key: round(mean(run[key] for run in runs), 6) for key in keys},
        "std": {key: round(stdev(run[key] for run in runs), 6) if seeds > 1 else 0.0 for key in keys},
        "machine": machine(),
        "versions": {package: found for package in PACKAGES if (found := installed(package))},
        "commit": commit(),
        "streams": STREAMS,
    }


def installed(package: str) -> str | None:
    try:
        return version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """The commit that was measured; `+` when the tree had changes."""
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--abbrev=10"], capture_output=True, text=True, cwd=HERE
    )
    return run.stdout.strip() or "unknown"


def bars_of(name: str | None) -> list[dict[str, Any]]:
    """The bars of a benchmark, or all of them."""
    bars = yaml.safe_load((HERE / "bars.yaml").read_text(encoding="utf-8"))
    return [bar for bar in bars if name in (None, bar["benchmark"])]


def check(bars: list[dict[str, Any]], results: Path) -> bool:
    """Print each bar with its figure; True when none falls short. A figure that was never measured falls short."""
    reached = True
    for bar in bars:
        path = results / f"{bar['benchmark']}-{bar['scale']}.json"
        values = read_json(path)["mean"] if path.is_file() else {}
        figure, limit = values.get(bar["key"]), bar["limit"]
        holds = figure is not None and (figure >= limit if bar["direction"] == "at least" else figure <= limit)
        reached &= holds
        shown = "not measured" if figure is None else f"{figure:.4g}"
        print(f"{'ok   ' if holds else 'SHORT'} {bar['name']}: {shown} ({bar['direction']} {limit}; {bar['source']})")
    return reached


def shown(result: dict[str, Any]) -> str:
    """The result as Markdown: the benchmark's own tables first, where it has some, then every value."""
    own = getattr(load(result["benchmark"]), "table", None)
    return f"{own(result)}\n\n{table(result)}" if own else table(result)


def table(result: dict[str, Any]) -> str:
    """Markdown of every figure: mean, standard deviation, values."""
    lines = ["| figure | mean | std | values |", "|---|--:|--:|---|"]
    for key, values in result["values"].items():
        each = ", ".join(f"{value:.4g}" for value in values)
        lines.append(f"| {key} | {result['mean'][key]:.4g} | {result['std'][key]:.2g} | {each} |")
    return "\n".join(lines)


def origin(result: dict[str, Any]) -> str:
    """How to measure a result again, where and at which commit it was measured, and whether its draws are today's."""
    machine, versions = result["machine"], ", ".join(f"{name} {found}" for name, found in result["versions"].items())
    text = (
        f"`python -m benchmarks {result['benchmark']} --scale {result['scale']} --seeds {result['n']}`, "
        f"n = {result['n']}; {machine['device']}, {machine['cores']} cores; Python {machine['python']}, {versions}; "
        f"measured at commit {result['commit']}."
    )
    if result.get("streams") == STREAMS:
        return text
    return (
        f"{text} **Measured with earlier code**: random draws have come from named streams since then, so that the "
        "same seeds draw other numbers today; the table has not been measured again."
    )


def render() -> str:
    """benchmarks/README.md: every committed result with its machine, versions and commit."""
    parts = [
        "# Measured",
        "Written by `python -m benchmarks --render` from `benchmarks/results/`; do not edit. Each table says at which "
        "commit it was measured: the text above it is of today's code, the figures are of that commit's.",
    ]
    for path in sorted(RESULTS.glob("*.json")):
        result = read_json(path)
        module = load(result["benchmark"])
        title = f"## {result['benchmark']}, {result['scale']}"
        parts += [title, (module.__doc__ or "").strip(), origin(result), shown(result)]
    return "\n\n".join(parts) + "\n"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", choices=names(), metavar="NAME")
    parser.add_argument("--scale", choices=("small", "full"), default="small")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/NAME-SCALE.json")
    parser.add_argument("--check", action="store_true", help="compare with bars.yaml; exit 1 if one falls short")
    parser.add_argument("--render", action="store_true", help="write benchmarks/README.md")
    options = parser.parse_args(argv)
    if options.render:
        write_text(HERE / "README.md", render())
        return 0
    if options.check:
        return 0 if check(bars_of(options.name), RESULTS) else 1
    if options.name is None:
        for name in names():
            summary = (load(name).__doc__ or "").splitlines()[0]
            print(f"{name:16} {summary}")
        return 0
    try:
        result = measure(options.name, options.scale, options.seeds)
    except DecantError as error:
        print(f"{options.name}: {error}", file=sys.stderr)
        return 2
    write_json(options.out or RESULTS / f"{options.name}-{options.scale}.json", result)
    print(shown(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
