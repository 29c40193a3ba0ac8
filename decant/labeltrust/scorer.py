"""TrustScorer: a fitted LabelTrust that scores SL-mappings, that is pairs of a picture and a label from any model.

This is the paper's second use, besides cleaning a dataset: a model predicts a label, and the picture is compared with
the references of that label. A scorer holds the Siamese networks (an ensemble, whose class scores are averaged), the
reference pictures under their right labels, and a calibration.

``plus``:  trust(x, l) = k(x) r_l(x),   r_l ~ softmax(m(x) / T)_l J[l, g],   g: the label as given
           k, T: `decant.labeltrust.out_of_distribution`; J: joint distribution of right and given labels
           (`decant.labeltrust.label_noise`), uniform unless `prior` says otherwise
``paper``: trust(x, l) = mean over references r of class l of sigmoid(L(x, r)), as in the paper: no probability

Trust is in [0, 1]; higher means that the label is more likely right. It is NaN for a class without references. A scorer
never looks at the model that made the prediction.

Cost: three networks of 200 steps fitted to 100 references of 28 x 28 take about 20 s on one CPU core.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import numpy as np
from jaxtyping import Float, Int, UInt8

from decant.data.images import Images
from decant.errors import StageError
from decant.labeltrust import label_noise, out_of_distribution, scorer_file
from decant.labeltrust.ensemble import Ensemble, pool_of
from decant.labeltrust.out_of_distribution import OOD_SHARE, Calibration
from decant.labeltrust.prior import Prior
from decant.labeltrust.settings import VerifySettings
from decant.labeltrust.siamese import Siamese, train
from decant.streams import child, stream

MEMBERS = 3  # networks of the ensemble that `fit` trains: each leaves another third of the references out
FEW = 20  # references of a class; with at least as many, two networks that leave out a half each are enough
EPISODE_ROWS = 8  # of a class in an episode
MIN_REFERENCES = 2  # of a class, as in the paper: one row makes no same-class pair
BATCH_ROWS = 200  # labels from which on the prior `batch` is estimated


@dataclass(frozen=True)
class Judged:
    """Trust in n given labels, and the most likely class of each picture."""

    trust: Float[np.ndarray, " n"]
    """float32, in the given label; NaN: a class without references, or no label (-1)."""
    suggested: Int[np.ndarray, " n"]
    """The most likely class, which may be the given one."""
    suggested_trust: Float[np.ndarray, " n"]


@dataclass(frozen=True, eq=False, kw_only=True)
class TrustScorer:
    """Networks, references and calibration, and the trust that follows from them."""

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

    # Fitting ---------------------------------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        references: Images,
        *,
        settings: VerifySettings,
        seed: int,
        on_step: Callable[[], None] = lambda: None,
    ) -> Self:
        """Train a scorer on rows with right labels; classes with fewer than two of them are not judged.

        `plus`: MEMBERS networks of settings.steps steps, each of which leaves out one fold of the references. T and k
        are fitted to the left-out scores. Where there are other rows with labels that may be wrong,
        `decant.labeltrust.verify.verify` makes a scorer that has learnt from these, too.

        Raises: StageError when fewer than two classes have two references.
        """
        references = _judgeable(references)

        def trained(rows: Images, member: int) -> Siamese:
            pools, seed_of_member = [(pool_of(rows), EPISODE_ROWS)], child(seed, "scorer", "network", member)
            return train(
                pools, rows.shape, mode=settings.mode, steps=settings.steps, seed=seed_of_member, on_step=on_step
            )

        if settings.mode == "paper":
            return cls.uncalibrated([trained(references, 0)], references)
        fold = _folds(references.labels, stream(seed, "scorer", "folds"))
        networks, left_out, ordinary, shuffled = [], [], [], []
        for member in range(fold.max() + 1):
            inside, outside = references.select(fold != member), references.select(fold == member)
            networks.append(trained(inside, member))
            ensemble = Ensemble.of(networks[-1:], pool_of(inside))
            left_out.append(outside.labels)
            ordinary.append(ensemble.scores(outside.pixels))
            shuffled.append(ensemble.scores(out_of_distribution.patch_shuffled(outside.pixels)))
        scores, columns = np.concatenate(ordinary), np.unique(np.concatenate(left_out), return_inverse=True)[1]
        temperature = out_of_distribution.fit_temperature(scores, columns)
        calibration = out_of_distribution.fit(scores, np.concatenate(shuffled), temperature)
        return cls(mode="plus", networks=tuple(networks), references=references, calibration=calibration)

    @classmethod
    def uncalibrated(cls, networks: Sequence[Siamese], references: Images) -> Self:
        """A scorer of mode `paper` from trained networks. references: under their right labels."""
        return cls(mode="paper", networks=tuple(networks), references=_judgeable(references), calibration=None)

    @classmethod
    def calibrated(
        cls,
        networks: Sequence[Siamese],
        references: Images,
        *,
        temperature: float,
        ordinary: Float[np.ndarray, "n judged"],
    ) -> Self:
        """A scorer of mode `plus` from trained networks, such as the two halves of `decant.labeltrust.verify`.

        references: under their right labels. temperature: of the label-noise model. ordinary: class scores of
        untrusted rows, each by a network that did not train on the row.
        """
        references = _judgeable(references)
        shuffled = out_of_distribution.patch_shuffled(references.pixels)
        scores = Ensemble.of(networks, pool_of(references)).scores(shuffled)
        calibration = out_of_distribution.fit(ordinary, scores, temperature)
        return cls(mode="plus", networks=tuple(networks), references=references, calibration=calibration)

    # Properties ------------------------------------------------------------------------------------------------------

    @cached_property
    def judged(self) -> Int[np.ndarray, " judged"]:
        """The classes that have references, ascending: the columns of `class_scores`."""
        return np.unique(self.references.labels)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of all classes, also of those without references."""
        return self.references.info.class_names

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channel) of the pictures that it takes."""
        return self.references.shape

    @cached_property
    def _ensemble(self) -> Ensemble:
        return Ensemble.of(self.networks, pool_of(self.references))

    # Scoring ---------------------------------------------------------------------------------------------------------

    def score(
        self,
        pixels: UInt8[np.ndarray, "n h w c"],
        labels: Int[np.ndarray, " n"],
        *,
        prior: Prior = "batch",
        ood_share: float = OOD_SHARE,
    ) -> Float[np.ndarray, " n"]:
        """float32 trust in the labels: the probability that each is right (`paper`: the paper's score).

        ood_share: assumed share of pictures that show none of the classes.
        """
        return self.judge(self.class_scores(pixels), labels, prior=prior, ood_share=ood_share).trust

    def score_matrix(
        self, pixels: UInt8[np.ndarray, "n h w c"], *, ood_share: float = OOD_SHARE
    ) -> Float[np.ndarray, "n classes"]:
        """float32 trust in each class as a label, with the prior `uniform`; NaN: no references.

        `plus`: rows sum to the probability that the picture shows one of the classes.
        """
        scores = self.class_scores(pixels)
        matrix = np.full((len(scores), len(self.class_names)), np.nan, np.float32)
        matrix[:, self.judged] = self._belief(scores, np.full(len(scores), -1), "uniform", ood_share)
        return matrix

    def suggestion(
        self, pixels: UInt8[np.ndarray, "n h w c"], *, ood_share: float = OOD_SHARE
    ) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """(most likely class by the picture alone, float32 trust in it)."""
        matrix = self.score_matrix(pixels, ood_share=ood_share)
        best = np.nan_to_num(matrix, nan=-1).argmax(1)
        return best, matrix[np.arange(len(matrix)), best]

    def class_scores(self, pixels: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n judged"]:
        """float32 m_c, averaged over the networks: all that `judge` needs of a picture.

        Raises: StageError for pictures of another shape.
        """
        if pixels.shape[1:] != self.shape or pixels.dtype != np.uint8:
            found = f"{pixels.dtype} {pixels.shape}"
            raise StageError(f"pictures: uint8 (n, {', '.join(map(str, self.shape))}) expected, {found} found")
        return self._ensemble.scores(pixels)

    def judge(
        self,
        scores: Float[np.ndarray, "n judged"],
        labels: Int[np.ndarray, " n"],
        *,
        prior: Prior = "batch",
        ood_share: float = OOD_SHARE,
    ) -> Judged:
        """Trust and suggestion from class scores. labels: class numbers, -1 for none."""
        rows, has_references = np.arange(len(labels)), np.isin(labels, self.judged)
        given = np.where(has_references, np.searchsorted(self.judged, labels), -1)
        belief = self._belief(scores, given, prior, ood_share)
        best = belief.argmax(1)
        trust = np.where(has_references, belief[rows, given], np.nan)
        return Judged(
            trust.astype(np.float32), self.judged[best].astype(np.int64), belief[rows, best].astype(np.float32)
        )

    def _belief(self, scores: np.ndarray, given: np.ndarray, prior: Prior, ood_share: float) -> np.ndarray:
        """(n, judged) float64 trust in each class. given: (n,) column of the given label, -1 for none of them."""
        if self.calibration is None:
            return scores.astype(np.float64)
        belief, labelled = self.calibration.class_probabilities(scores), given >= 0
        model = _prior_model(scores[labelled], given[labelled], prior, self.calibration.temperature)
        if model is not None:
            belief[labelled] = model.posterior(scores[labelled], given[labelled])
        return belief * self.calibration.in_distribution(scores, ood_share)[:, None]

    def nearest(self, pixels: UInt8[np.ndarray, "n h w c"], label: int, k: int) -> Int[np.ndarray, "n k_or_fewer"]:
        """Rows of `references` with that label, those of the largest pair logits first; (n, 0) where there are none."""
        rows = np.flatnonzero(self.references.labels == label)
        if not len(rows):
            return np.empty((len(pixels), 0), np.int64)
        logits = self._ensemble.pair_logits(pixels, rows)  # (n, references of the class)
        return rows[np.argsort(-logits, 1, kind="stable")[:, :k]]

    # File ------------------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write safetensors with a JSON header; the same scorer gives the same bytes."""
        scorer_file.write(path, self.mode, self.networks, self.references, self.calibration)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a scorer. Raises: TableError, which names the file and the field, where it is no scorer's."""
        mode, networks, references, calibration = scorer_file.read(path)
        return cls(mode=mode, networks=networks, references=references, calibration=calibration)


def _judgeable(references: Images) -> Images:
    """The references of classes that have enough of them, sorted by label."""
    counts = np.bincount(references.labels, minlength=references.classes)
    if (counts >= MIN_REFERENCES).sum() < 2:
        raise StageError(
            f"references: at least two of each of two classes expected, {counts.tolist()} found (per class)"
        )
    kept = np.flatnonzero(counts[references.labels] >= MIN_REFERENCES)
    return references.select(kept[np.argsort(references.labels[kept], kind="stable")])


def _folds(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n,) fold of each reference, even within every class. labels: sorted."""
    counts = np.unique(labels, return_counts=True)[1]
    members = min(MEMBERS if counts.min() < FEW else 2, counts.min())
    return np.concatenate([rng.permutation(count) for count in counts]) % members


def _prior_model(
    scores: np.ndarray, given: np.ndarray, prior: Prior, temperature: float
) -> label_noise.LabelNoiseModel | None:
    """The label-noise model that a prior stands for; None: the uniform one, under which a label says nothing."""
    classes = scores.shape[1]
    if prior == "uniform" or (prior == "batch" and len(given) < BATCH_ROWS):
        return None
    if prior == "batch":
        fitted = label_noise.fit(scores / temperature, given, np.zeros((classes, classes)))
        return label_noise.LabelNoiseModel(fitted.joint, fitted.temperature * temperature)
    return label_noise.LabelNoiseModel(_uniform_joint(float(prior), classes), temperature)


def _uniform_joint(right: float, classes: int) -> np.ndarray:
    """J with that share of right labels; the others are any other class equally often."""
    assert 0 <= right <= 1, f"prior: a share of right labels in 0-1 expected, {right} found"
    wrong = (1 - right) / (classes * (classes - 1))
    return np.full((classes, classes), wrong) + np.eye(classes) * (right / classes - wrong)
