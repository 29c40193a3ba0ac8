"""The gate: tests whether the data carries an unlearnable perturbation, and scores which rows carry one.

An unlearnable example works because its perturbation is easier to learn than its image, so easy that a linear model
learns it (Yu et al., "Availability attacks create shortcuts", KDD 2022). Where there is a perturbation, it is in the
residual of purification, x - x3. Two tests ask whether the data carries one:

* **Probe gap**, where clean rows are at hand (`ingest.probe`): is the data easier to predict than clean data? Accuracy
  of a probe model on held-out rows as received, minus its accuracy on the clean rows. A shortcut is in the former and
  not in the latter; wrong labels change the difference the other way. This test needs no fit of D-VAE.
* **Reliance**, without clean rows: does a probe model rely on the residual? It is trained on half of the rows as
  received. Of the other half it predicts purified images to which the residual of another row was added,
  x3_j + (x_i - x3_i). For a class c that is not the image's class y_j:

      ratio(c) = P(predict c | residual of class c) / P(predict c | residual of another class)
      reliance = median over c of ratio(c)

  A model that relies on the image predicts y_j whatever is added: the ratio is near 1. On clean data the residual is
  fine detail, which tells a little about its class: 1.5 to 3. A model that relies on the perturbation predicts y_i.
  Wrong labels are not in the residual. A backdoor's trigger may be, but it raises the ratio of its target class alone,
  which the median ignores. Two probe models are asked, ridge regression on pixels and a small network, and the larger
  reliance counts.

**Row scores** say which rows carry it. Ridge regression, trained on the other half of the rows, predicts the label from
x - x3: its pixels and its autocorrelation, where autoregressive perturbations show. A row's score is the output for its
given label minus the mean of the others, at most about 1. Rows that carry a perturbation form a group of their own.

Cost: one small network on half of at most 10,000 rows for either test; seconds for the row scores.
Expected: `python -m benchmarks purify-gate` and `purify-detection`; their figures are in docs/methods/dvae.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8
from sklearn.mixture import GaussianMixture

from decant.data.images import Images
from decant.data.tables import iter_images, sample_images
from decant.models.settings import TrainSettings
from decant.models.training import accuracy, predict, train_classifier
from decant.streams import child, stream

RELIANCE_LIMIT = 4.0  # clean digits and CIFAR-10 stay below 3; fixed on those two and LSP on them, before the rest
PROBE_LIMIT = 0.1
PROBE_ERRORS = 3.0  # standard errors by which the gap must exceed 0
PAIRINGS = 8  # of each row's residual with the purified image of another row
PROBE_ROWS, PROBE_VALUES = 10_000, 60_000_000  # at most so many rows, and pixel values in all
PROBE_TRAINING = TrainSettings(network="small_cnn", epochs=8, batch_size=64)
PROBE_PENALTY, SCORER_PENALTY = 0.02, 0.001  # of ridge regression, per row, pixels in [0, 1]
LAGS = 2  # autocorrelation up to so many pixels
SEPARATION = 2.0  # standard deviations between two groups of scores, from which on they count as two

ProbeModel = Callable[[UInt8[np.ndarray, "n h w c"]], Int[np.ndarray, " n"]]
"""Pixels to predicted classes."""


@dataclass(frozen=True)
class ShortcutTest:
    """The result of a test for a shortcut: a statistic, and the limit from which on it is a sign of planted noise."""

    value: float
    limit: float
    words: str
    """How messages write the value: a format string."""

    @property
    def found(self) -> bool:
        """Whether there is a sign of a shortcut."""
        return self.value >= self.limit

    def __str__(self) -> str:
        value = self.words.format(self.value)
        if self.found:
            return f"Signs of planted noise ({value}; from {self.limit:.3g} on there are)"
        return f"No sign of planted noise ({value}; from {self.limit:.3g} on there would be)"


# ---------------------------------------------------------------------------------------------------------------------
# Does the data carry a shortcut?
# ---------------------------------------------------------------------------------------------------------------------


def probe_gap(received: Images, probe: Images, *, seed: int) -> ShortcutTest:
    """Accuracy on held-out received rows minus accuracy on clean rows (`probe`), in percentage points.

    Cost: one small network on half of the received rows.
    """
    seed = child(seed, "probe gap")
    trained_on, held_out = halves(received, seed)
    network = train_classifier(received.select(trained_on), PROBE_TRAINING, seed=seed)
    on_received, on_clean = accuracy(network, received.select(held_out)) or 0.0, accuracy(network, probe) or 0.0
    variance = on_received * (1 - on_received) / len(held_out) + on_clean * (1 - on_clean) / len(probe)
    limit = max(PROBE_LIMIT, PROBE_ERRORS * variance**0.5)
    return ShortcutTest(100 * (on_received - on_clean), 100 * limit, "accuracy {:+.1f} points against your clean rows")


def reliance(received: Images, purified: Images, *, seed: int) -> ShortcutTest:
    """How far probe models rely on the residual, x - x3, of the same rows (`reliance_of`); the larger of two models.

    Cost: one small network on half of the rows.
    """
    seed = child(seed, "reliance")
    trained_on, held_out = halves(received, seed)
    x, x3 = received.select(held_out), purified.select(held_out)
    network = train_classifier(received.select(trained_on), PROBE_TRAINING, seed=seed)
    models: list[ProbeModel] = [
        lambda pixels: predict(network, pixels).argmax(1),
        ridge_classifier(received.select(trained_on)),
    ]
    rng = stream(seed, "pairings")
    return ShortcutTest(max(reliance_of(model, x, x3, rng) for model in models), RELIANCE_LIMIT, "reliance {:.1f}")


def reliance_of(model: ProbeModel, received: Images, purified: Images, rng: np.random.Generator) -> float:
    """P(predict c | residual of class c) / P(predict c | residual of another class), the median over the classes c.

    The model sees purified images to which the residual of another row, drawn at random, was added. Both probabilities
    of c are over images that are not of class c. About 1: it relies on the images alone.
    """
    residual = received.pixels.astype(np.float32) - purified.pixels
    predicted, image_class = np.empty((2, PAIRINGS, len(received)), int)
    for pairing in range(PAIRINGS):
        images = rng.permutation(len(received))  # row i's residual is added to the purified image of row images[i]
        mixed = np.rint(purified.pixels[images] + residual).clip(0, 255).astype(np.uint8)
        predicted[pairing], image_class[pairing] = model(mixed), received.labels[images]
    ratios = []
    for c in range(received.classes):
        other_image = image_class != c
        residual_of_c = predicted[other_image & (received.labels == c)] == c
        residual_of_another = predicted[other_image & (received.labels != c)] == c
        ratios.append(rate(residual_of_c) / rate(residual_of_another))
    return float(np.median(ratios))


def rate(hits: Bool[np.ndarray, " n"]) -> float:
    """Share of hits, with half a hit and half a miss added, so that no ratio divides by zero."""
    return (hits.sum() + 0.5) / (len(hits) + 1)


def probe_sample(path: Path, *, seed: int) -> Images:
    """Rows of a table for the probe models: at most PROBE_ROWS, and PROBE_VALUES pixel values in all."""
    shape = next(iter_images(path)).shape
    rows = min(PROBE_ROWS, PROBE_VALUES // int(np.prod(shape)))
    return sample_images(path, rows, seed=child(seed, "gate", "sample"))


def halves(images: Images, seed: int) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
    """Two disjoint sets of row numbers, drawn at random."""
    order = stream(seed, "halves").permutation(len(images))
    return order[: len(order) // 2], order[len(order) // 2 :]


def ridge_classifier(images: Images) -> ProbeModel:
    """Ridge regression on pixels, fitted to the rows' labels."""
    x = images.pixels.reshape(len(images), -1) / np.float32(255)
    weights, mean = ridge(x, images.labels, images.classes, PROBE_PENALTY), x.mean(0)
    return lambda pixels: ((pixels.reshape(len(pixels), -1) / np.float32(255) - mean) @ weights).argmax(1)


def ridge(
    x: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], classes: int, penalty: float
) -> Float[np.ndarray, "d k"]:
    """Weights of ridge regression from centred features to one-hot labels, (X'X + penalty n I)^-1 X'Y."""
    x = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    y = np.eye(classes)[labels] - np.eye(classes)[labels].mean(0)
    n, d = x.shape
    if d <= n:
        return np.linalg.solve(x.T @ x + penalty * n * np.eye(d), x.T @ y)
    return x.T @ np.linalg.solve(x @ x.T + penalty * n * np.eye(n), y)


# ---------------------------------------------------------------------------------------------------------------------
# Which rows carry a perturbation?
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowScorer:
    """Scores rows by how well ridge regression predicts their label from the residual; two models, one per half."""

    ids: tuple[np.ndarray, np.ndarray]
    """Sorted ids of the rows that each of the two models was trained on."""
    means: tuple[np.ndarray, np.ndarray]
    weights: tuple[np.ndarray, np.ndarray]

    @classmethod
    def fit(cls, received: Images, purified: Images, *, seed: int) -> "RowScorer":
        """Fits both models; the two tables hold the same rows."""
        parts = halves(received, child(seed, "row scores"))
        x = features(received, purified)
        weights = [ridge(x[part], received.labels[part], received.classes, SCORER_PENALTY) for part in parts]
        means = [x[part].mean(0) for part in parts]
        ids = [np.sort(received.ids[part]) for part in parts]
        return cls((ids[0], ids[1]), (means[0], means[1]), (weights[0], weights[1]))

    def __call__(self, received: Images, purified: Images) -> Float32[np.ndarray, " n"]:
        """Margins of the given labels, higher is more suspicious; from a model that was not trained on the row."""
        x = features(received, purified)
        models = zip(self.means, self.weights, strict=True)
        margins = np.stack([margin((x - mean) @ w, received.labels) for mean, w in models])
        held_out = np.stack([~np.isin(received.ids, ids) for ids in self.ids])
        return ((margins * held_out).sum(0) / held_out.sum(0)).astype(np.float32)


def features(received: Images, purified: Images) -> Float32[np.ndarray, "n d"]:
    """The residual x - x3 pixel by pixel, and its autocorrelation at small lags, channel by channel."""
    residual = (received.pixels.astype(np.float32) - purified.pixels) / 255
    rms = np.sqrt((residual**2).mean((1, 2))) + 1e-6  # (n, c)
    scaled = residual / rms[:, None, None]
    lags = [(down, right) for down in range(LAGS + 1) for right in range(-LAGS, LAGS + 1) if (down, right) > (0, 0)]
    correlations = [(scaled * np.roll(scaled, lag, (1, 2))).mean((1, 2)) for lag in lags]  # each (n, c)
    return np.concatenate([residual.reshape(len(residual), -1), *correlations], axis=1)


def margin(scores: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Score of the given label minus the mean of the others'."""
    given = scores[np.arange(len(labels)), labels]
    return given - (scores.sum(1) - given) / (scores.shape[1] - 1)


def row_threshold(scores: Float[np.ndarray, " n"]) -> float:
    """The score from which on rows are flagged, once there is a sign of a shortcut; found without the truth.

    Where a mixture of two Gaussians of equal variance has two groups that stand apart: the score of equal likelihood.
    Where it has not: the lowest score, so that all rows are flagged.
    """
    mixture = GaussianMixture(2, covariance_type="tied", n_init=3, random_state=0).fit(scores[:, None].astype(float))
    low, high = np.sort(mixture.means_.ravel())
    deviation = float(np.sqrt(mixture.covariances_.item()))
    if high - low < SEPARATION * deviation:
        return float(scores.min())
    share = mixture.weights_[mixture.means_.ravel().argmax()]
    return float((low + high) / 2 + deviation**2 / (high - low) * np.log((1 - share) / share))


# ---------------------------------------------------------------------------------------------------------------------
# The paper's rule: from the disentangled perturbation alone
# ---------------------------------------------------------------------------------------------------------------------


def amplified(images: Images, perturbations: Float[np.ndarray, "n h w c"]) -> Images:
    """x + p^: every row with the perturbation that D-VAE found for it and its label."""
    pixels = images.pixels / np.float32(255) + perturbations.astype(np.float32)
    return images.with_pixels(np.rint(255 * pixels.clip(0, 1)).astype(np.uint8))


def pattern_scores(
    received: Images, perturbations: Float[np.ndarray, "n h w c"], *, networks: int, seed: int
) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """(mean probability of the given label, whether the first network predicts it), the rule of the paper's Table 8.

    The networks are trained on x + p^, where every row carries the perturbation of its label, and predict the rows as
    received. The paper flags the rows whose given label one network predicts; the mean over several ranks better.
    """
    with_perturbation = amplified(received, perturbations)
    rows = np.arange(len(received))
    probabilities = []
    for member in range(networks):
        network = train_classifier(with_perturbation, PROBE_TRAINING, seed=child(seed, "pattern", member))
        logits = predict(network, received.pixels)
        likelihood = np.exp(logits - logits.max(1, keepdims=True))
        probabilities.append(likelihood / likelihood.sum(1, keepdims=True))
    given = np.mean(probabilities, 0)[rows, received.labels]
    return given, probabilities[0].argmax(1) == received.labels
