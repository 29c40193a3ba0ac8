"""Cost of influence beside kronfluence: factors and 51 queries, same rows, model, labels and precision, in one run.

Each contender runs in a process of its own, one after the other. `seconds`: fit the factors on all rows (true Fisher)
and score 51 queries, data and model in memory; without a GPU the processor's time on one thread, so that what else the
machine does moves no ratio. `ratio_documented`, `ratio_best`: how many times as long kronfluence 1.0.1 takes (`small`:
the smaller ratio of the two networks).

* documented: its defaults, all queries in one batch, as its README has it, and the batch size that it finds for itself.
* best: the fastest of several whole runs: with the batch sizes 32, 64, 128 and 256 (on a GPU 256, 1,024 and 4,096, rows
  brought by four workers), and the documented one.

Both sides draw the same labels for the Fisher matrix. `agreement.error`: largest difference of two scores, as a share
of the query's largest; `agreement.spearman`: mean over the queries. `peak_gib`: of the process, or of the GPU.
small: `small_cnn` on 1,000 MNIST rows and a ResNet-9 of a quarter of the usual width on 512 CIFAR-10 rows, float32.
full: ResNet-18 on all of CIFAR-10, bfloat16 passes; kronfluence with its own low-precision settings.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._rows import ingested
from decant.files import read_json, write_json
from decant.influence import ekfac
from decant.influence.functions import influence, neg_margin
from decant.models import networks
from decant.models.networks import resnet18, small_cnn
from decant.models.training import as_float, epochs_of_batches, step, to_device
from decant.registry import peer
from decant.runtime import device
from decant.streams import child, torch_stream

QUERIES, DAMPING = 51, 0.1
CASES: dict[str, dict[str, tuple[str, int | None, int]]] = {  # network: (dataset, rows, epochs)
    "small": {"small_cnn": ("mnist", 1_000, 5), "resnet9": ("cifar10", 512, 5)},
    "full": {"resnet18": ("cifar10", None, 5)},
}
BATCHES: dict[str, tuple[int | None, ...]] = {"small": (None, 32, 64, 128, 256), "full": (None, 256, 1024, 4096)}
"""Of the rows; None: the one that kronfluence finds."""
GPU_WORKERS = 4  # that bring its rows, as in its own CIFAR-10 example
GIB = 2**30


def resnet9(channels: int, classes: int) -> nn.Module:
    """Eight convolutions and a linear layer, as kronfluence's own example has them, with a quarter of the channels."""

    def block(inputs: int, outputs: int, size: int = 3, stride: int = 1, padding: int = 1) -> nn.Module:
        conv = nn.Conv2d(inputs, outputs, size, stride, padding, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())

    return nn.Sequential(
        block(channels, 16),
        block(16, 32, 5, 2, 2),
        Residual(nn.Sequential(block(32, 32), block(32, 32))),
        block(32, 64),
        nn.MaxPool2d(2),
        Residual(nn.Sequential(block(64, 64), block(64, 64))),
        block(64, 32, padding=0),
        networks.MaxPoolTo2x2(),
        nn.Flatten(),
        nn.Linear(128, classes, bias=False),
    )


class Residual(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "small_cnn": small_cnn,
    "resnet9": resnet9,
    "resnet18": resnet18,
}


CONTENDERS = ("ours", "documented", "best")


def run(scale: str, seed: int) -> dict[str, float]:
    peer("kronfluence", needed_by="influence-speed")
    figures: dict[str, float] = {}
    for network in CASES[scale]:
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder), scale, network, seed)
            found = {who: contend(Path(folder), scale, network, who) for who in CONTENDERS}
            scores = {who: load_file(Path(folder, f"{who}.safetensors"))["scores"] for who in CONTENDERS}
        figures |= {f"{network}.{who}.{key}": value for who, each in found.items() for key, value in each.items()}
        figures |= {
            f"{network}.agreement.{key}": value for key, value in agreement(scores["ours"], scores["best"]).items()
        }
        for who in ("documented", "best"):
            figures[f"{network}.ratio_{who}"] = found[who]["seconds"] / found["ours"]["seconds"]
    least = {key: min(figures[f"{n}.{key}"] for n in CASES[scale]) for key in ("ratio_documented", "ratio_best")}
    longest = max(figures[f"{network}.ours.seconds"] for network in CASES[scale])
    return {**least, "seconds": longest, **figures}


def agreement(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """Of two tables of scores (Q, N)."""
    error = (ours - theirs).abs().amax(1) / theirs.abs().amax(1)
    ranks = [scores.argsort(1).argsort(1).double() for scores in (ours, theirs)]
    both = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(*ranks, strict=True)]
    return {"error": float(error.max()), "spearman": float(torch.stack(both).mean())}


def prepare(folder: Path, scale: str, network: str, seed: int) -> None:
    """The rows, the queries and a trained model, for every contender to load."""
    dataset, rows, epochs = CASES[scale][network]
    train, test = ingested(scale, dataset, rows)
    data = {
        "x": as_float(to_device(train.pixels)),
        "y": torch.from_numpy(train.labels.astype(np.int64)),
        "xq": as_float(to_device(test.pixels[:QUERIES])),
        "yq": torch.from_numpy(test.labels[:QUERIES].astype(np.int64)),
        "uniform": torch.rand(len(train), generator=torch_stream(seed, "benchmarks", "labels"), dtype=torch.float64),
    }
    torch.manual_seed(child(seed, "benchmarks", "weights"))
    model = NETWORKS[network](train.shape[2], train.classes).to(device())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    for batch in epochs_of_batches(len(train), 128, epochs, torch_stream(seed, "benchmarks", "order")):
        step(optimizer, F.cross_entropy(model(data["x"][batch]), data["y"][batch].to(device())))
    save_file({key: value.contiguous().cpu() for key, value in data.items()}, folder / "data.safetensors")
    save_file(
        {key: value.contiguous().cpu() for key, value in model.state_dict().items()}, folder / "model.safetensors"
    )


def contend(folder: Path, scale: str, network: str, who: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.influence_speed", str(folder), scale, network, who]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{who}: {done.stderr}")
    return read_json(folder / f"{who}.json")


# ---------------------------------------------------------------------------------------------------------------------
# In a contender's process
# ---------------------------------------------------------------------------------------------------------------------

Data = dict[str, Tensor]


def drawn(logits: Tensor, uniform: Tensor) -> Tensor:
    """Labels from the model's softmax, by the numbers that were drawn ahead."""
    below = logits.detach().double().softmax(1).cpu().cumsum(1) < uniform.cpu()[:, None]
    return below.sum(1).clamp(max=logits.shape[1] - 1).to(logits.device)


def ours(model: nn.Module, data: Data, scale: str) -> Tensor:
    low = scale == "full"

    def losses(logits: Tensor, rows: Any) -> Tensor:
        return F.cross_entropy(logits, drawn(logits, data["uniform"][rows]), reduction="none")

    factors = ekfac.fit(model, data["x"], losses, low_precision=low)
    train, queries = (data["x"], data["y"]), (data["xq"], data["yq"])
    options: dict[str, Any] = {"factors": factors, "damping": DAMPING, "self_influence": False, "low_precision": low}
    return influence(model, train, queries, **options).pairwise


def kronfluence(model: nn.Module, data: Data, scale: str, batch: int | None, workers: int = 0) -> Tensor:
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task
    from kronfluence.utils.common.factor_arguments import all_low_precision_factor_arguments
    from kronfluence.utils.common.score_arguments import all_low_precision_score_arguments
    from kronfluence.utils.dataset import DataLoaderKwargs
    from torch.utils.data import TensorDataset

    class Margin(Task):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            logits = model(batch[0])
            return F.cross_entropy(logits, drawn(logits, batch[2]) if sample else batch[1], reduction="sum")

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return neg_margin(batch[1])(model(batch[0]), slice(None)).sum()

    task, low = Margin(), scale == "full"
    fitting = all_low_precision_factor_arguments(dtype=torch.bfloat16) if low else FactorArguments()
    scoring = all_low_precision_score_arguments(dtype=torch.bfloat16) if low else ScoreArguments()
    scoring.damping_factor = None  # a tenth of each layer's mean eigenvalue
    train, queries = TensorDataset(data["x"], data["y"], data["uniform"]), TensorDataset(data["xq"], data["yq"])
    options = {"overwrite_output_dir": True}
    with tempfile.TemporaryDirectory() as folder:
        cpu = device().type == "cpu"
        peer = Analyzer("speed", prepare_model(model, task), task, cpu=cpu, output_dir=folder, disable_tqdm=True)
        peer.set_dataloader_kwargs(DataLoaderKwargs(num_workers=workers))
        peer.fit_all_factors("f", train, per_device_batch_size=batch, factor_args=fitting, **options)
        peer.compute_pairwise_scores(
            "s",
            "f",
            queries,
            train,
            per_device_query_batch_size=QUERIES,
            per_device_train_batch_size=batch,
            score_args=scoring,
            **options,
        )
        return peer.load_pairwise_scores("s")["all_modules"]


def timed(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """(seconds, what the work returns)."""
    started = clock()
    result = work()
    return clock() - started, result


def clock() -> float:
    """Without a GPU the processor's time: what else the machine does then moves no ratio."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def peak_gib() -> float:
    """Of the GPU's memory where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024 / GIB


def main(folder: Path, scale: str, network: str, who: str) -> None:
    torch.set_num_threads(1)
    data = load_file(folder / "data.safetensors")
    state = load_file(folder / "model.safetensors")

    def load() -> nn.Module:
        model = NETWORKS[network](data["x"].shape[1], 10)
        model.load_state_dict(state)
        return model.eval().to(device())

    warm = {key: value[:64] for key, value in data.items()}
    if who == "ours":
        ours(load(), warm, scale)
        runs = [timed(lambda: ours(load(), data, scale))]
    else:
        workers = GPU_WORKERS if who == "best" and device().type == "cuda" else 0
        kronfluence(load(), warm, scale, 64, workers)
        batches = BATCHES[scale] if who == "best" else (None,)
        runs = [timed(partial(kronfluence, load(), data, scale, batch, workers)) for batch in batches]
    seconds, scores = min(runs, key=lambda run: run[0])
    save_file({"scores": scores.float().cpu().contiguous()}, folder / f"{who}.safetensors")
    write_json(folder / f"{who}.json", {"seconds": seconds, "peak_gib": peak_gib()})


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
