"""ConfidNet (Corbière et al., "Addressing Failure Prediction by Learning Model Confidence", NeurIPS 2019).

The largest probability is high even where a classifier is wrong; the probability of the *true* class is not. A small
network learns to predict that probability from the classifier's features.

    c*(x) = softmax(logits(x))_y,     confidence(x) = sigmoid(MLP(f(x))),     loss = mean (confidence - c*)^2

As in the paper: five layers, the inner ones of 400 units, on the frozen classifier, fitted to the training rows.
Changed: the paper's second phase, which also fine-tunes a copy of the feature extractor, is left out. There is little
to learn where the classifier fits its training rows (c* is 1 for nearly all), and a wrong label counts as a wrong
prediction.

Cost: one forward pass, and `epochs` of a small network on features.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import softmax
from torch import Tensor, nn

from decant.confidence.base import ConfidenceCase
from decant.models.training import epochs_of_batches, step
from decant.runtime import device
from decant.settings import Block, Positive
from decant.streams import child, torch_stream

WIDTH = 400
RATE = 1e-4  # of Adam, as in the paper: at 1e-3 the output saturates at 1, where the loss has no gradient


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    epochs: Positive = 40
    batch_size: Positive = 128


def fit_and_score(case: ConfidenceCase, settings: Settings) -> Float[np.ndarray, " m"]:
    """Train the small network on the training rows; predict the true-class probability of each test picture."""
    logits, features = case.inside_train
    target = true_class_probability(logits, case.known.labels)
    spread = features.std() + 1e-6  # one for all features: one that is 0 on all training rows may not be on others
    x, wanted = (torch.from_numpy(a.astype(np.float32)).to(device()) for a in (features / spread, target))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(child(case.seed, "confidnet", "weights"))
        network = _network(x.shape[1]).to(device())
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    generator = torch_stream(case.seed, "confidnet", "batches")
    for batch in epochs_of_batches(len(x), settings.batch_size, settings.epochs, generator):
        rows = batch.to(x.device)
        loss = (network(x[rows]).squeeze(1).sigmoid() - wanted[rows]).square().mean()
        step(optimizer, loss)
    asked = torch.from_numpy((case.inside[1] / spread).astype(np.float32)).to(device())
    with torch.no_grad():
        found: Tensor = network(asked).squeeze(1).sigmoid()
    return found.cpu().numpy()


def true_class_probability(
    logits: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """c* = softmax(logits) at the labels."""
    return softmax(logits, axis=1)[np.arange(len(labels)), labels]


def _network(features: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs in (features, WIDTH, WIDTH, WIDTH):
        layers += [nn.Linear(inputs, WIDTH), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 1))
