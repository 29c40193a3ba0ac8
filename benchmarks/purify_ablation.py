"""Two-stage purification with parts left out: D-VAE's Table 7, on the attacks of `unlearnable`.

`ATTACK.VARIANT`: clean test accuracy of a network trained on what that variant leaves; `VARIANT.mean` over the attacks.

    received  nothing is done
    no_s1     stage 2 alone, on the rows as received
    no_i2     both stages, without the second subtraction: x^ of x1
    no_s2     stage 1 alone: x1
    no_i3     both stages, without the last inference: x2
    s1_i3     stage 1 and its own reconstruction of x1
    ours      x3
    eq14      x3 with the paper's Eq. 14 in the place of the official code's loss
"""

from collections.abc import Iterator
from statistics import mean
from typing import Any

import torch

from benchmarks._rows import ATTACKS, TRAIN, ingested, planted
from decant.data.images import Images
from decant.models.training import accuracy, as_float, labels_to_device, to_device, train_classifier
from decant.purify.dvae import recipe
from decant.purify.settings import PurifySettings
from decant.purify.two_stage import LIMITS, Inference, PurifyStage, fit, to_uint8
from decant.runtime import be_deterministic
from decant.streams import child

PAPER = {  # Table 7, CIFAR-10, percent: mean over eight attacks
    "no_s1": 80.52, "no_i2": 89.02, "no_s2": 36.21, "no_i3": 40.12, "s1_i3": 83.44, "ours": 90.01,
}  # fmt: skip
ORDER = ("received", "no_s1", "no_i2", "no_s2", "no_i3", "s1_i3", "ours", "eq14")


def run(scale: str, seed: int) -> dict[str, float]:
    be_deterministic()
    train, test = ingested(scale)
    figures: dict[str, float] = {}
    for attack, settings in ATTACKS[scale].items():
        received = planted(train, [{"name": attack, **settings}], seed)
        for variant, rows in variants(received, seed):
            figures[f"{attack}.{variant}"] = accuracy(train_classifier(rows, TRAIN[scale], seed=seed), test) or 0.0
        print(f"  {attack}", flush=True)
    means = {f"{name}.mean": mean(figures[f"{attack}.{name}"] for attack in ATTACKS[scale]) for name in ORDER}
    return figures | means


def variants(received: Images, seed: int) -> Iterator[tuple[str, Images]]:
    """The rows after each variant of purification; the fits of a stage share their seed, as in the pipeline."""
    chosen, one, two = recipe(PurifySettings(), received), child(seed, "purify_1"), child(seed, "purify_2")
    small, large = (PurifyStage(chosen, limit) for limit in LIMITS)
    yield "received", received
    yield "no_s1", Inference(fit(received, large, seed=two), two).second_stage(received)[0]
    first = fit(received, small, seed=one)
    x1, _ = Inference(first, one).first_stage(received)
    yield "no_s2", x1
    yield "s1_i3", Reconstruction(first, one)(x1)
    second = fit(x1, large, seed=two)
    yield "no_i2", Reconstruction(second, two)(x1)
    yield "no_i3", Inference(second, two).first_stage(x1)[0]
    yield "ours", Inference(second, two).second_stage(x1)[0]
    literal = [PurifyStage(chosen, limit, "eq14") for limit in LIMITS]
    x1, _ = Inference(fit(received, literal[0], seed=one), one).first_stage(received)
    yield "eq14", Inference(fit(x1, literal[1], seed=two), two).second_stage(x1)[0]


class Reconstruction(Inference):
    """Gives x^ of the rows as they are, instead of a stage's result."""

    @torch.no_grad()
    def __call__(self, images: Images) -> Images:  # type: ignore[override]
        x, y = to_device(images.pixels), labels_to_device(images.labels)
        batches = zip(x.split(512), y.split(512), strict=True)
        parts = [super(Reconstruction, self).__call__(as_float(a), b)[0] for a, b in batches]
        return images.with_pixels(to_uint8(torch.cat(parts)))


def table(result: dict[str, Any]) -> str:
    """Variants by attacks, mean over the seeds in percent, with the paper's mean at full size on CIFAR-10."""
    attacks = list(ATTACKS[result["scale"]])
    lines = ["| variant | " + " | ".join(attacks) + " | mean | paper's mean |", "|---|" + "--:|" * (len(attacks) + 2)]
    for name in ORDER:
        row = [f"{100 * result['mean'][f'{attack}.{name}']:.1f}" for attack in attacks]
        row.append(f"{100 * result['mean'][f'{name}.mean']:.1f} ± {100 * result['std'][f'{name}.mean']:.1f}")
        lines.append(f"| {name} | " + " | ".join(row) + f" | {PAPER.get(name, '–')} |")
    return "\n".join(lines)
