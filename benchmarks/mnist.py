"""The whole pipeline on MNIST limited to 6,000 training rows (60,000 at full scale), poisoned and clean.

`mnist.*`: three poisons at once, as in params.yaml. `clean.*`: without any poison; what the pipeline does to data that
has nothing wrong with it. The figures are those of `pipeline`.
"""

from benchmarks._stages import dataset, pipeline_figures

ROWS = {"small": 6_000, "full": 60_000}


def run(scale: str, seed: int) -> dict[str, float]:
    source = {"ingest.source": dataset("mnist"), "ingest.limit": ROWS[scale]}
    return pipeline_figures("mnist", seed, source) | pipeline_figures("clean", seed, {**source, "simulate.attacks": []})
