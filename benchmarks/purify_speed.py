"""Cost of purification: seconds, rows per second beside the official recipe's loop, peak memory.

`official.rows_per_second`: training steps as the official code takes them: preset `paper`, batches of 128, float32, and
each step also what that code computes for its logs alone (the rest of the ResNet-18 whose stem the encoder is, and four
forward passes of a classifier, each read back). `paper.rows_per_second`: without that. `ours.rows_per_second`: preset
`standard`. `ratio` is ours by official; both run in this process, in turns.
`seconds` (full scale): both stages on CIFAR-10 with `standard`, fits and inferences.
`peak_memory_gib` (small): a process that samples 100,000 of a made-up million 32 x 32 RGB rows from Parquet, fits a
`small` D-VAE on them for a few steps, and streams 100,000 rows through the inference.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks._rows import ingested
from decant.data.images import DatasetInfo, Images
from decant.data.tables import ImagesWriter, iter_images, sample_images
from decant.models.networks import resnet18
from decant.models.training import step as take_step
from decant.purify.dvae import DVAE, PRESETS, loss
from decant.purify.two_stage import LIMITS, Inference, PurifyStage, fit
from decant.runtime import device
from decant.streams import child, torch_stream

STEPS = {"small": 3, "full": 200}  # timed, of each kind, in turns of a third
MILLION, SLICE = 1_000_000, 100_000
GIB = 2**20  # of the kilobytes that the kernel counts in


def run(scale: str, seed: int) -> dict[str, float]:
    figures = step_rates(scale, seed)
    if scale == "full":
        return figures | {"seconds": both_stages(seed)}
    with tempfile.TemporaryDirectory() as folder:
        make_million(Path(folder, "million.parquet"))
        command = [sys.executable, "-m", "benchmarks.purify_speed", str(Path(folder, "million.parquet"))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return figures | {"peak_memory_gib": int(done.stdout.split()[-1]) / GIB}


# ---------------------------------------------------------------------------------------------------------------------
# Training steps, of one kind after the other
# ---------------------------------------------------------------------------------------------------------------------


def step_rates(scale: str, seed: int) -> dict[str, float]:
    torch.manual_seed(child(seed, "benchmarks", "weights"))
    kinds = {
        "official": (PRESETS["paper"], True),
        "paper": (PRESETS["paper"], False),
        "ours": (PRESETS["standard"], False),
    }
    steps = {name: stepper(preset, as_logged) for name, (preset, as_logged) in kinds.items()}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for repeat in range(1 + 3):
        for name, (step, _) in steps.items():
            started = clock()
            for _ in range(max(1, STEPS[scale] // 3)):
                step()
            if repeat:  # the first only warms up
                seconds[name].append((clock() - started) / max(1, STEPS[scale] // 3))
    figures = {f"{name}.rows_per_second": rows / median(seconds[name]) for name, (_, rows) in steps.items()}
    return figures | {"ratio": figures["ours.rows_per_second"] / figures["official.rows_per_second"]}


def stepper(preset: "object", as_logged: bool) -> tuple[Callable[[], None], int]:
    """(one training step on random rows of 32 x 32 x 3, its number of rows)."""
    from decant.purify.dvae import Recipe

    assert isinstance(preset, Recipe)
    dev, rows = device(), preset.batch_size
    x, y = torch.rand(rows, 3, 32, 32, device=dev), torch.randint(0, 10, (rows,), device=dev)
    model = DVAE((32, 32, 3), 10, preset).to(dev).to(memory_format=torch.channels_last).train()
    optimizer, noise = (
        torch.optim.Adam(model.parameters(), lr=5e-3),
        torch_stream(0, "benchmarks", "latent", device=dev),
    )
    classifier = resnet18(3, 10).to(dev).eval()
    low_precision = dev.type == "cuda" and not preset.as_published

    def step() -> None:
        with torch.autocast(dev.type, torch.bfloat16, enabled=low_precision):
            x_hat, p_hat, kld = model(x, y, noise)
        value = loss(x, x_hat, p_hat, kld, kld_limit=LIMITS[0], with_floor=True)
        take_step(optimizer, value, clip=5.0)
        if as_logged:
            with torch.no_grad():
                classifier(x)  # stands for the rest of the encoder's ResNet-18, of about that cost less its stem
                for image in (x, x_hat, x - p_hat, x_hat + p_hat):
                    F.cross_entropy(classifier(image), y).item()

    return step, rows


def clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def both_stages(seed: int) -> float:
    train, _ = ingested("full")
    started = clock()
    first = fit(train, PurifyStage(PRESETS["standard"], LIMITS[0]), seed=child(seed, "purify_1"))
    x1, _ = Inference(first, child(seed, "purify_1")).first_stage(train)
    second = fit(x1, PurifyStage(PRESETS["standard"], LIMITS[1]), seed=child(seed, "purify_2"))
    Inference(second, child(seed, "purify_2")).second_stage(x1)
    return clock() - started


# ---------------------------------------------------------------------------------------------------------------------
# A million rows
# ---------------------------------------------------------------------------------------------------------------------


def make_million(path: Path) -> None:
    """Made-up rows, a few colours each so that the file stays small."""
    rng = np.random.default_rng(0)
    info = DatasetInfo(class_names=tuple("0123456789"), source="made up", checksum="")
    part = 10_000
    with ImagesWriter(path, (32, 32, 3), info) as writer:
        for start in range(0, MILLION, part):
            blocks = rng.integers(0, 256, (part, 2, 2, 3), dtype=np.uint8).repeat(16, 1).repeat(16, 2)
            labels = rng.integers(0, 10, part).astype(np.int32)
            writer.write_images(Images(np.arange(start, start + part), blocks, labels, info))


def purify_slice(path: Path) -> None:
    """What purify_1 does, on a bounded sample and a slice of the rows."""
    sample = sample_images(path, SLICE, seed=0)
    brief = PurifyStage(PRESETS["small"], LIMITS[0])
    model = fit(sample.select(np.arange(64 * 20)), brief, seed=0)
    shape, info = sample.shape, sample.info
    del sample  # as the stage does
    inference, rows = Inference(model, 0), 0
    with ImagesWriter(path.with_name("purified.parquet"), shape, info) as writer:
        for part in iter_images(path):
            writer.write_images(inference.first_stage(part)[0])
            rows += len(part)
            if rows >= SLICE:
                break


def peak_kilobytes() -> int:
    """This process's own peak: getrusage would count what its parent had in memory when it started it."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0])


if __name__ == "__main__":
    purify_slice(Path(sys.argv[1]))
    print(peak_kilobytes())
