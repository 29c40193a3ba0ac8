"""Effect of each poison alone, and of switching off one cleaning stage (digits).

`alone.NAME`: accuracy and poison success of a model trained on data with that one poison, as received.
`without.STAGE`: the finished pipeline with all three poisons and that stage off.
"""

import tempfile
from pathlib import Path

from benchmarks._stages import metrics, params, run_stages

OFF: dict[str, dict[str, object]] = {
    "purify": {"purify.when": "never"},
    **{stage: {f"{stage}.enabled": False} for stage in ("verify", "detect", "unlearn")},
}
NO_CLEANING = {key: value for change in OFF.values() for key, value in change.items()}
WITHOUT = {  # what is switched off, and the stage from which on the pipeline must run again
    "detect": (OFF["detect"], "detect"),
    "verify": (OFF["verify"], "verify"),
    "purify": (OFF["purify"], "purify_1"),
}


def run(scale: str, seed: int) -> dict[str, float]:
    """The same at both scales: the digits are all there is."""
    figures: dict[str, float] = {}
    for attack in params(seed, {})["simulate"]["attacks"]:
        with tempfile.TemporaryDirectory() as folder:
            run_stages(Path(folder), params(seed, {**NO_CLEANING, "simulate.attacks": [attack]}))
            figures |= named(f"alone.{attack['name']}", metrics(Path(folder))["as_received"])
    with tempfile.TemporaryDirectory() as folder:
        run_stages(Path(folder), params(seed, {}))
        figures |= named("all.received", metrics(Path(folder))["as_received"])
        figures |= named("all.cleaned", metrics(Path(folder))["cleaned"])
        for stage, (changes, start) in WITHOUT.items():
            run_stages(Path(folder), params(seed, changes), start=start)
            figures |= named(f"without.{stage}", metrics(Path(folder))["cleaned"])
    return figures


def named(prefix: str, step: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}.{key}": step[key] for key in ("accuracy", "poison_success") if key in step}
