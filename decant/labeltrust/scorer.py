"""TrustScorer: a fitted LabelTrust that judges new pictures and the labels that any model gave them.

LabelTrust's second use, besides cleaning a dataset: a model predicts a label, and the picture is compared with the
references of that label. What is stored is all that this takes: the Siamese networks (one, or an ensemble whose class
scores are averaged), the reference pictures under their right labels, and the calibration.

``plus``:  trust(x, l) = k(x) r_l(x),   r_l ~ softmax(m(x) / T)_l J[l, g],   g: the label as given
           k: does the picture show a known class at all (`decant.labeltrust.out_of_distribution`); J: how often given and right labels
           go together (`decant.labeltrust.label_noise`), uniform unless it is estimated from the batch or stated
``paper``: trust(x, l) = mean over references r of class l of sigmoid(L(x, r)), as in the paper: no probability

Trust is in [0, 1], and higher means that the label is rather right: 1 - suspicion. It is NaN where the label is a class
without references. Nothing here sees the model that made the prediction.

Cost: three networks of 200 steps fitted to 100 references of 28 x 28 take about 20 s on one CPU core.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import numpy as np

from decant.data.images import Images
from decant.errors import StageError
from decant.labeltrust import label_noise, out_of_distribution, scorer_file
from decant.labeltrust.ensemble import Ensemble, pool_of
from decant.labeltrust.out_of_distribution import OOD_SHARE, Calibration
from decant.labeltrust.settings import VerifySettings
from decant.labeltrust.siamese import Siamese, train

MEMBERS = 3  # networks of the ensemble that `fit` trains: each leaves another third of the references out
FEW = 20  # references of a class; from here on two networks do, which leave out a half
EPISODE_ROWS = 8  # of a class in an episode
MIN_REFERENCES = 2  # of a class, as in the paper: one row makes no same-class pair
BATCH_ROWS = 200  # labels from which on the prior is estimated from the batch

Prior = Literal["batch", "uniform"] | float
"""What is known of the labels before the pictures are looked at; a number is the share of them that are right.

`batch`: how often each class is given rightly and wrongly is estimated from the rows that are scored together, by
expectation-maximisation, if these are at least BATCH_ROWS. `uniform`: nothing is known; every class is as likely.
Nobody knows how good the model is that made a prediction; a good one's predictions deserve more trust than the picture
alone gives them, and its rare mistakes then get more trust, too.
"""


@dataclass(frozen=True)
class Judged:
    """What a scorer makes of n pictures and their labels."""

    trust: np.ndarray  # (n,) float32: in the given label; NaN: a class without references, or no label (-1)
    suggested: np.ndarray  # (n,) int64: the likeliest class, which may be the given one
    suggested_trust: np.ndarray  # (n,) float32


@dataclass(frozen=True, eq=False, kw_only=True)
class TrustScorer:
    mode: Literal["plus", "paper"]
    networks: tuple[Siamese, ...]
    references: Images
    """At least two of every class that can be judged, under their right labels, sorted by label."""
    calibration: Calibration | None
    """None in mode `paper`."""

    def __post_init__(self) -> None:
        assert self.networks and len(self.judged) >= 2, (len(self.networks), self.judged)
        assert (np.diff(self.references.labels) >= 0).all(), "references sorted by label expected"
        assert (self.calibration is None) == (self.mode == "paper"), self.mode

    @classmethod
    def fit(
        cls,
        references: Images,
        *,
        settings: VerifySettings,
        seed: int,
        on_step: Callable[[], None] = lambda: None,
    ) -> Self:
        """From rows whose labels are right. Classes with fewer than two of them are not judged.

        `plus`: MEMBERS networks of settings.steps steps; each leaves out a third of every class's references (half,
        where a class has two, or all have FEW). The temperature is the likeliest for references under the network that
        left them out. Where there are other rows, too, under labels that may be wrong, `decant.labeltrust.verify.verify` makes
        a scorer that has learnt from these.

        Raises: StageError when fewer than two classes have two references.
        """
        references = _sorted_references(references)

        def trained(rows: Images, seed: int) -> Siamese:
            pools, mode, steps = [(pool_of(rows), EPISODE_ROWS)], settings.mode, settings.steps
            return train(pools, rows.shape, mode=mode, steps=steps, seed=seed, on_step=on_step)

        if settings.mode == "paper":
            return cls.of([trained(references, seed)], references, mode="paper")
        fold = _folds(references.labels, seed)
        networks, labels, ordinary, strange = [], [], [], []
        for member in range(fold.max() + 1):
            inside, outside = references.select(fold != member), references.select(fold == member)
            networks.append(trained(inside, seed + 1000 * member))
            ensemble = Ensemble.of(networks[-1:], pool_of(inside))
            labels.append(outside.labels)
            ordinary.append(ensemble.scores(outside.pixels))
            strange.append(ensemble.scores(out_of_distribution.patch_shuffled(outside.pixels)))
        scores, columns = np.concatenate(ordinary), np.unique(np.concatenate(labels), return_inverse=True)[1]
        temperature = out_of_distribution.likeliest_temperature(scores, columns)
        fitted = out_of_distribution.fit(scores, np.concatenate(strange), temperature)
        return cls(mode="plus", networks=tuple(networks), references=references, calibration=fitted)

    @classmethod
    def of(
        cls,
        networks: Sequence[Siamese],
        references: Images,
        *,
        mode: Literal["plus", "paper"],
        temperature: float = 1.0,
        ordinary: np.ndarray | None = None,
    ) -> Self:
        """From networks that are trained already, such as the two halves of `decant.labeltrust.verify`.

        references: under their right labels. For `plus` also temperature: of the noise model; and ordinary: class
        scores (n, classes with references) of untrusted rows, each by a network that did not train on the row.
        """
        references, fitted = _sorted_references(references), None
        if mode == "plus":
            assert ordinary is not None, "class scores of ordinary rows expected"
            ensemble = Ensemble.of(networks, pool_of(references))
            strange = ensemble.scores(out_of_distribution.patch_shuffled(references.pixels))
            fitted = out_of_distribution.fit(ordinary, strange, temperature)
        return cls(mode=mode, networks=tuple(networks), references=references, calibration=fitted)

    # What it knows ---------------------------------------------------------------------------------------------------

    @cached_property
    def judged(self) -> np.ndarray:
        """The classes that have references, ascending: the columns of `class_scores`."""
        return np.unique(self.references.labels)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.references.info.class_names

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channel) of the pictures that it takes."""
        return self.references.shape

    @cached_property
    def _ensemble(self) -> Ensemble:
        return Ensemble.of(self.networks, pool_of(self.references))

    # What it says ----------------------------------------------------------------------------------------------------

    def score(
        self, pixels: np.ndarray, labels: np.ndarray, *, prior: Prior = "batch", ood_share: float = OOD_SHARE
    ) -> np.ndarray:
        """(n,) float32 trust in the labels: the probability that each is right (`paper`: the paper's score).

        pixels: (n, h, w, c) uint8 of `shape`. labels: (n,) class numbers. unknown: share of pictures that are
        reckoned to show none of the classes.
        """
        return self.judge(self.class_scores(pixels), labels, prior=prior, ood_share=ood_share).trust

    def score_matrix(self, pixels: np.ndarray, *, ood_share: float = OOD_SHARE) -> np.ndarray:
        """(n, classes) float32 trust in each class as a label, with nothing known of the labels; NaN: no references.

        `plus`: rows sum to the probability that the picture shows one of the classes.
        """
        scores = self.class_scores(pixels)
        matrix = np.full((len(scores), len(self.class_names)), np.nan, np.float32)
        matrix[:, self.judged] = self._belief(scores, np.full(len(scores), -1), "uniform", ood_share)
        return matrix

    def suggestion(self, pixels: np.ndarray, *, ood_share: float = OOD_SHARE) -> tuple[np.ndarray, np.ndarray]:
        """((n,) int64 likeliest class by the picture alone, (n,) float32 trust in it)."""
        matrix = self.score_matrix(pixels, ood_share=ood_share)
        best = np.nan_to_num(matrix, nan=-1).argmax(1)
        return best, matrix[np.arange(len(matrix)), best]

    def class_scores(self, pixels: np.ndarray) -> np.ndarray:
        """(n, judged classes) float32 m_c, averaged over the networks: all that `judge` needs of a picture."""
        if pixels.shape[1:] != self.shape or pixels.dtype != np.uint8:
            found = f"{pixels.dtype} {pixels.shape}"
            raise StageError(f"pictures: uint8 (n, {', '.join(map(str, self.shape))}) expected, {found} found")
        return self._ensemble.scores(pixels)

    def judge(
        self, scores: np.ndarray, labels: np.ndarray, *, prior: Prior = "batch", ood_share: float = OOD_SHARE
    ) -> Judged:
        """scores: of `class_scores`; labels: (n,) class numbers, -1 for none."""
        rows, can = np.arange(len(labels)), np.isin(labels, self.judged)
        given = np.where(can, np.searchsorted(self.judged, labels), -1)
        belief = self._belief(scores, given, prior, ood_share)
        best = belief.argmax(1)
        trust = np.where(can, belief[rows, given], np.nan)
        return Judged(
            trust.astype(np.float32), self.judged[best].astype(np.int64), belief[rows, best].astype(np.float32)
        )

    def _belief(self, scores: np.ndarray, given: np.ndarray, prior: Prior, ood_share: float) -> np.ndarray:
        """(n, judged classes) float64. given: (n,) column of the given label, -1 where it is none of them."""
        if self.calibration is None:
            return scores.astype(np.float64)
        q, labelled = self.calibration.class_probabilities(scores), given >= 0
        model = self._noise_model(scores[labelled], given[labelled], prior)
        if model is not None:
            q[labelled] = model.posterior(scores[labelled], given[labelled])
        return q * self.calibration.in_distribution(scores, ood_share)[:, None]

    def _noise_model(self, scores: np.ndarray, given: np.ndarray, prior: Prior) -> label_noise.LabelNoiseModel | None:
        """How given and right labels go together; None: nothing is known of it."""
        assert self.calibration is not None
        classes, temperature = len(self.judged), self.calibration.temperature
        if prior == "uniform" or (prior == "batch" and len(given) < BATCH_ROWS):
            return None
        if prior != "batch":
            return label_noise.LabelNoiseModel(_joint(float(prior), classes), temperature)
        fitted = label_noise.fit(
            scores / temperature, given, np.zeros((classes, classes))
        )  # T by the batch, beginning there
        return label_noise.LabelNoiseModel(fitted.joint, fitted.temperature * temperature)

    def nearest(self, pixels: np.ndarray, label: int, k: int) -> np.ndarray:
        """(n, at most k) rows of `references` that carry that label, the one that looks most alike first.

        A class without references yields (n, 0).
        """
        rows = np.flatnonzero(self.references.labels == label)
        if not len(rows):
            return np.empty((len(pixels), 0), np.int64)
        likeness = self._ensemble.likeness(pixels, rows)  # (n, references of the class)
        return rows[np.argsort(-likeness, 1, kind="stable")[:, :k]]

    # File ------------------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Safetensors with a JSON header; the same scorer gives the same bytes."""
        scorer_file.write(path, self.mode, self.networks, self.references, self.calibration)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises: TableError, which names the file and the field, when it is no scorer's."""
        mode, networks, references, fitted = scorer_file.read(path)
        return cls(mode=mode, networks=networks, references=references, calibration=fitted)


def _sorted_references(references: Images) -> Images:
    """Those of classes with enough of them, sorted by label."""
    counts = np.bincount(references.labels, minlength=references.classes)
    if (counts >= MIN_REFERENCES).sum() < 2:
        raise StageError(f"references: two of each of two classes expected at least, {counts.tolist()} found")
    kept = np.flatnonzero(counts[references.labels] >= MIN_REFERENCES)
    return references.select(kept[np.argsort(references.labels[kept], kind="stable")])


def _folds(labels: np.ndarray, seed: int) -> np.ndarray:
    """(n,) fold of each reference, even within every class. labels: sorted."""
    counts = np.unique(labels, return_counts=True)[1]
    rng = np.random.default_rng([seed, 6])
    members = min(MEMBERS if counts.min() < FEW else 2, counts.min())
    return np.concatenate([rng.permutation(count) for count in counts]) % members


def _joint(right: float, classes: int) -> np.ndarray:
    """J where a share of the labels is right, and the others are any other class equally often."""
    assert 0 <= right <= 1, f"prior: a share of right labels in 0-1 expected, {right} found"
    wrong = (1 - right) / (classes * (classes - 1))
    return np.full((classes, classes), wrong) + np.eye(classes) * (right / classes - wrong)
