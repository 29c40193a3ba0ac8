"""The whole pipeline on poisoned digits: what `make demo` does, over several seeds.

Three poisons at once, as in params.yaml. `gain` is clean accuracy after cleaning less as received; `gap` is that of the
oracle (never poisoned) less the cleaned; poison success before is as received, after is cleaned. Seconds are all stages
one after the other, interpreter starts and imports included, without DVC and Prefect (`overhead` adds those).
"""

from benchmarks._stages import pipeline_figures


def run(scale: str, seed: int) -> dict[str, float]:
    """The same at both scales: the digits are all there is."""
    return pipeline_figures("demo", seed, {})
