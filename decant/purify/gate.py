"""Shortcuts: does the data carry one that purification takes off, and which rows carry it?

An unlearnable example works because its perturbation is easier to learn than the picture, so easy that a linear model
does (Yu et al., "Availability attacks create shortcuts", KDD 2022). Of what purification takes off, x - x3, one may
therefore ask two things, and neither needs a clean row:

* **Reliance: does a model listen to it?** Readers are trained on half of the rows as received. Of the other half they
  are shown the purified picture of row j with what was taken off row i of another class:

      x3_j + (x_i - x3_i),    reliance = P(says y_i) / P(says y_i | what was taken off is neither's)

  A reader of pictures says y_j, and y_i seldom; one of perturbations says y_i. On clean data what is taken off is fine
  detail, which says a little about y_i. Wrong labels are not what is taken off, and a backdoor is one class's alone:
  the median over the classes counts. Two readers, ridge regression on pixels and a small network; the larger counts.
* **Which rows?** Ridge regression reads the label from x - x3 (its pixels and its autocorrelation, where autoregressive
  noise shows), trained on the other half of the rows. A row's score is the margin of its given label over the mean of
  the others, at most 1 or so; rows that carry a perturbation stand apart.

With clean rows at hand (`ingest.probe`) a third question comes first, before anything is fitted:

* **Probe gap: is the data easier than clean data?** Accuracy of a reader on held-out rows as received, less that on the
  probe. A shortcut is read off the former and is missing from the latter; wrong labels push the gap the other way.

Expected: `python -m benchmarks purify-gate` and `purify-detection`, whose figures stand in docs/methods/dvae.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.mixture import GaussianMixture

from decant.data.images import Images
from decant.data.tables import iter_images, sample_images
from decant.models.settings import TrainSettings
from decant.models.training import accuracy, predict, train_classifier

RELIANCE_LIMIT = 4.0  # clean digits and CIFAR-10 stay below 3; fixed on those two and LSP on them, before the rest
PROBE_LIMIT = 0.1
PROBE_ERRORS = 3.0  # standard errors by which the gap must exceed its own noise
PAIRINGS = 8
READER_ROWS, READER_VALUES = 10_000, 60_000_000  # at most so many rows, and pixels in all
READER = TrainSettings(network="small_cnn", epochs=8, batch_size=64)
RIDGE_READER, RIDGE_SCORER = 0.02, 0.001  # penalty per row, pixels in [0, 1]
LAGS = 2  # autocorrelation up to so many pixels
SEPARATION = 2.0  # standard deviations between two groups of scores, from which on they count as two

Reader = Callable[[np.ndarray], np.ndarray]  # uint8 pixels (n, h, w, c) to labels (n,)


@dataclass(frozen=True)
class Evidence:
    """What speaks for a shortcut, as one number beside the limit from which on it counts."""

    name: str
    value: float
    limit: float

    @property
    def found(self) -> bool:
        return self.value >= self.limit

    def __str__(self) -> str:
        return f"{self.name} {self.value:.2f} ({'limit' if self.found else 'below the limit of'} {self.limit:g})"


# ---------------------------------------------------------------------------------------------------------------------
# Is there one?
# ---------------------------------------------------------------------------------------------------------------------


def probe_gap(received: Images, probe: Images, *, seed: int) -> Evidence:
    """Evidence from clean rows: how much easier than they the received rows are. Cost: one small network."""
    learn, ask = halves(received, seed)
    network = train_classifier(received.select(learn), READER, seed=seed)
    easy, honest = accuracy(network, received.select(ask)) or 0.0, accuracy(network, probe) or 0.0
    noise = PROBE_ERRORS * (easy * (1 - easy) / len(ask) + honest * (1 - honest) / len(probe)) ** 0.5
    return Evidence("accuracy on received less on clean probe rows", easy - honest, max(PROBE_LIMIT, noise))


def reliance(received: Images, purified: Images, *, seed: int) -> Evidence:
    """Evidence from the rows alone; both hold the same rows. Cost: one small network on half of them."""
    learn, ask = halves(received, seed)
    network = train_classifier(received.select(learn), READER, seed=seed)
    ridge = ridge_reader(received.select(learn))
    readers: list[Reader] = [lambda pixels: predict(network, pixels).argmax(1), ridge]
    rng = np.random.default_rng([seed, 2])
    value = max(listens(says, received.select(ask), purified.select(ask), rng) for says in readers)
    return Evidence("reliance on what purification takes off", value, RELIANCE_LIMIT)


def listens(says: Reader, received: Images, purified: Images, rng: np.random.Generator) -> float:
    """How much oftener a reader says a class when what was taken off is that class's; the picture never is.

    The median over the classes: a backdoor, whose trigger purification may take off, speaks for one class alone.
    """
    taken_off = received.pixels.astype(np.float32) - purified.pixels
    with_it, without = np.zeros((2, received.classes)), np.zeros((2, received.classes))  # (said, asked) per class
    for _ in range(PAIRINGS):
        others = rng.permutation(len(received))
        answer = says(np.clip(np.rint(purified.pixels[others] + taken_off), 0, 255).astype(np.uint8))
        for label in range(received.classes):
            asked = received.labels[others] != label
            carries = asked & (received.labels == label)
            with_it[:, label] += ((answer == label) & carries).sum(), carries.sum()
            without[:, label] += ((answer == label) & asked & ~carries).sum(), (asked & ~carries).sum()
    oftener = (with_it[0] + 0.5) / (with_it[1] + 1) / ((without[0] + 0.5) / (without[1] + 1))
    return float(np.median(oftener))


def reader_sample(path: Path, *, seed: int) -> Images:
    """As many rows of a table as the readers want: at most READER_ROWS, and READER_VALUES pixel values in all."""
    shape = next(iter_images(path)).shape
    return sample_images(path, min(READER_ROWS, READER_VALUES // int(np.prod(shape))), seed=seed)


def halves(images: Images, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint sets of row numbers."""
    order = np.random.default_rng([seed, 3]).permutation(len(images))
    return order[: len(order) // 2], order[len(order) // 2 :]


def ridge_reader(images: Images) -> Reader:
    x = images.pixels.reshape(len(images), -1) / np.float32(255)
    weights, mean = ridge(x, images.labels, images.classes, RIDGE_READER), x.mean(0)
    return lambda pixels: ((pixels.reshape(len(pixels), -1) / np.float32(255) - mean) @ weights).argmax(1)


def ridge(x: np.ndarray, labels: np.ndarray, classes: int, penalty: float) -> np.ndarray:
    """Weights (d, classes) of ridge regression from centred features (n, d) to one-hot labels."""
    x = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    y = np.eye(classes)[labels] - np.eye(classes)[labels].mean(0)
    n, d = x.shape
    if d <= n:
        return np.linalg.solve(x.T @ x + penalty * n * np.eye(d), x.T @ y)
    return x.T @ np.linalg.solve(x @ x.T + penalty * n * np.eye(n), y)


# ---------------------------------------------------------------------------------------------------------------------
# Which rows?
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowScorer:
    """Scores rows by how well a linear model reads their label from what was taken off."""

    ids: tuple[np.ndarray, np.ndarray]
    """Sorted ids of the rows that each of the two models was trained on."""
    means: tuple[np.ndarray, np.ndarray]
    weights: tuple[np.ndarray, np.ndarray]

    @classmethod
    def fit(cls, received: Images, purified: Images, *, seed: int) -> "RowScorer":
        parts = halves(received, seed)
        x = features(received, purified)
        weights = [ridge(x[part], received.labels[part], received.classes, RIDGE_SCORER) for part in parts]
        means = [x[part].mean(0) for part in parts]
        ids = [np.sort(received.ids[part]) for part in parts]
        return cls((ids[0], ids[1]), (means[0], means[1]), (weights[0], weights[1]))

    def __call__(self, received: Images, purified: Images) -> np.ndarray:
        """(n,) float32, higher is more suspicious. A row is never judged by a model that was trained on it."""
        x = features(received, purified)
        models = zip(self.means, self.weights, strict=True)
        margins = np.stack([margin((x - mean) @ w, received.labels) for mean, w in models])
        fair = np.stack([~np.isin(received.ids, ids) for ids in self.ids])
        return ((margins * fair).sum(0) / fair.sum(0)).astype(np.float32)


def features(received: Images, purified: Images) -> np.ndarray:
    """(n, d) float32: x - x3 pixel by pixel, and its autocorrelation at small lags, channel by channel."""
    taken_off = (received.pixels.astype(np.float32) - purified.pixels) / 255
    energy = np.sqrt((taken_off**2).mean((1, 2))) + 1e-6  # (n, c)
    scaled = taken_off / energy[:, None, None]
    lags = [(down, right) for down in range(LAGS + 1) for right in range(-LAGS, LAGS + 1) if (down, right) > (0, 0)]
    correlations = [(scaled * np.roll(scaled, lag, (1, 2))).mean((1, 2)) for lag in lags]  # each (n, c)
    return np.concatenate([taken_off.reshape(len(taken_off), -1), *correlations], axis=1)


def margin(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Score (n, classes) of the given label less the mean of the others'."""
    given = scores[np.arange(len(labels)), labels]
    return given - (scores.sum(1) - given) / (scores.shape[1] - 1)


def row_threshold(scores: np.ndarray) -> float:
    """Where the rows that carry a shortcut begin, once there is evidence of one: no truth needed.

    Two groups of scores that stand apart: half-way in likelihood between them. One group: all rows carry it.
    """
    mixture = GaussianMixture(2, covariance_type="tied", n_init=3, random_state=0).fit(scores[:, None].astype(float))
    low, high = np.sort(mixture.means_.ravel())
    spread = float(np.sqrt(mixture.covariances_.item()))
    if high - low < SEPARATION * spread:
        return float(scores.min())
    share = mixture.weights_[mixture.means_.ravel().argmax()]
    return float((low + high) / 2 + spread**2 / (high - low) * np.log((1 - share) / share))


# ---------------------------------------------------------------------------------------------------------------------
# The paper's way: from the disentangled perturbation alone
# ---------------------------------------------------------------------------------------------------------------------


def amplified(images: Images, perturbations: np.ndarray) -> Images:
    """x + p^, every row with the perturbation (n, h, w, c) that D-VAE found for it and its label."""
    noisy = images.pixels / np.float32(255) + perturbations.astype(np.float32)
    return images.with_pixels(np.rint(255 * noisy.clip(0, 1)).astype(np.uint8))


def pattern_scores(
    received: Images, perturbations: np.ndarray, *, networks: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(mean probability of the given label, whether the first network predicts it), both (n,): after Table 8.

    The networks are trained on x + p^, where every row carries the pattern of its label, and asked about the rows as
    received. The paper flags where one network predicts the given label; averaging several ranks better.
    """
    spoilt = amplified(received, perturbations)
    rows = np.arange(len(received))
    probabilities = []
    for member in range(networks):
        logits = predict(train_classifier(spoilt, READER, seed=seed + member), received.pixels)
        likelihood = np.exp(logits - logits.max(1, keepdims=True))
        probabilities.append(likelihood / likelihood.sum(1, keepdims=True))
    given = np.mean(probabilities, 0)[rows, received.labels]
    return given, probabilities[0].argmax(1) == received.labels
