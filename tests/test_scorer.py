"""TrustScorer on digits: its trust in right, wrong and out-of-distribution SL-mappings, and its file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from samples import digits
from scorers import UNKNOWN_CLASS, references, scorer_of_nine

from decant.data.images import Images
from decant.errors import StageError, TableError
from decant.labeltrust import out_of_distribution
from decant.labeltrust.out_of_distribution import Calibration
from decant.labeltrust.scorer import BATCH_ROWS, TrustScorer
from decant.labeltrust.settings import VerifySettings
from decant.labeltrust.siamese import Pool, class_scores
from decant.models.training import to_device


@pytest.fixture(scope="module")
def scorer() -> TrustScorer:
    return scorer_of_nine()


@pytest.fixture(scope="module")
def paper() -> TrustScorer:
    return TrustScorer.fit(references(range(10)), settings=VerifySettings(mode="paper", steps=100), seed=0)


def known() -> Images:
    """Unseen digits of classes with references."""
    _, test = digits()
    return test.select(test.labels != UNKNOWN_CLASS)


def unknown_class() -> np.ndarray:
    """Digits of the class without references: out of distribution."""
    _, test = digits()
    return test.pixels[test.labels == UNKNOWN_CLASS]


# ---------------------------------------------------------------------------------------------------------------------
# Trust
# ---------------------------------------------------------------------------------------------------------------------


def test_right_labels_are_trusted_and_wrong_ones_are_not(scorer: TrustScorer) -> None:
    test = known()
    matrix = scorer.score_matrix(test.pixels)[:, :9]
    right = np.eye(9, dtype=bool)[test.labels]
    assert matrix[right].mean() > 0.85
    assert matrix[~right].mean() < 0.02
    assert (matrix.argmax(1) == test.labels).mean() > 0.92


def test_trust_is_about_the_share_of_right_labels(scorer: TrustScorer) -> None:
    """Expected calibration error over all pairs of picture and label, and over pairs of a trust between 0.1 and 0.9."""
    test = known()
    trust = scorer.score_matrix(test.pixels, ood_share=0)[:, :9].ravel()
    right = np.eye(9)[test.labels].ravel()
    which = np.minimum((trust * 10).astype(int), 9)
    gaps = np.bincount(which, trust - right, 10)
    assert np.abs(gaps).sum() / len(trust) < 0.02
    middle = (trust > 0.1) & (trust < 0.9)
    assert abs(trust[middle].mean() - right[middle].mean()) < 0.2


def test_a_picture_of_no_known_class_is_trusted_with_no_label(scorer: TrustScorer) -> None:
    _, best_of_known = scorer.suggestion(known().pixels)
    _, best_of_unknown = scorer.suggestion(unknown_class())
    noise = np.random.default_rng(0).integers(0, 256, (100, *scorer.shape)).astype(np.uint8)
    assert best_of_known.mean() > 0.85
    assert best_of_unknown.mean() < 0.6  # a 9 has much of a 3, a 4, a 5 and an 8; over four seeds 0.37 to 0.46
    assert scorer.suggestion(noise)[1].mean() < 0.6  # over four seeds 0.20 to 0.40
    assert (
        scorer.suggestion(unknown_class(), ood_share=0)[1].mean() > best_of_unknown.mean() + 0.05
    )  # the softmax alone
    assert scorer.suggestion(unknown_class(), ood_share=0.5)[1].mean() < 0.3


def test_a_class_without_references_gets_no_trust_but_a_suggestion(scorer: TrustScorer) -> None:
    labels = np.full(len(unknown_class()), UNKNOWN_CLASS)
    judged = scorer.judge(scorer.class_scores(unknown_class()), labels)
    assert np.isnan(judged.trust).all()
    assert (judged.suggested != UNKNOWN_CLASS).all() and np.isfinite(judged.suggested_trust).all()
    assert np.isnan(scorer.score_matrix(unknown_class())[:, UNKNOWN_CLASS]).all()


def test_a_single_reference_of_a_class_is_too_few() -> None:
    rows = references(range(3), 4)
    alone = np.flatnonzero(rows.labels == 2)[1:]
    scorer = TrustScorer.fit(rows.select(np.delete(np.arange(12), alone)), settings=VerifySettings(steps=1), seed=0)
    assert scorer.judged.tolist() == [0, 1]
    with pytest.raises(StageError, match="at least two of each of two classes expected"):
        TrustScorer.fit(rows.select(rows.labels == 1), settings=VerifySettings(steps=1), seed=0)


def test_paper_mode_is_the_mean_sigmoid_over_the_references(paper: TrustScorer) -> None:
    test = known()
    rows = paper.references
    pool = Pool.of(to_device(rows.pixels), torch.from_numpy(rows.labels.astype(np.int64)), 10)
    plain = class_scores(paper.networks[0], to_device(test.pixels), pool).numpy()
    found = paper.score(test.pixels, test.labels)
    np.testing.assert_allclose(found, plain[np.arange(len(test)), test.labels], atol=1e-6)
    assert found.mean() > plain.mean() + 0.3


def test_an_ensembles_scores_are_the_mean_of_the_plain_ones(scorer: TrustScorer) -> None:
    """The ensemble embeds the references once and takes rows in chunks; `class_scores` takes each network by itself."""
    pixels, rows = known().pixels, scorer.references
    pool = Pool.of(to_device(rows.pixels), torch.from_numpy(rows.labels.astype(np.int64)), 9)
    assert len(scorer.networks) == 3
    plain = [class_scores(network, to_device(pixels), pool).numpy() for network in scorer.networks]
    np.testing.assert_allclose(scorer.class_scores(pixels), np.mean(plain, 0), atol=1e-5)


def test_a_row_is_judged_alike_alone_and_among_others(scorer: TrustScorer) -> None:
    test = known()
    together = scorer.score(test.pixels, test.labels, prior="uniform")
    alone = [scorer.score(test.pixels[i : i + 1], test.labels[i : i + 1])[0] for i in (0, 7, 200)]
    np.testing.assert_allclose(together[[0, 7, 200]], alone, atol=1e-5)


def test_a_prior_is_bayes_rule(scorer: TrustScorer) -> None:
    """With one label in ten wrong, the odds against each other class are those of the picture times 9 x 8."""
    test = known()
    picture = scorer.score_matrix(test.pixels, ood_share=0)[:, :9].astype(float)
    rows = np.arange(len(test))
    own = picture[rows, test.labels]
    expected = 0.9 * own / (0.9 * own + 0.1 / 8 * (1 - own))
    np.testing.assert_allclose(scorer.score(test.pixels, test.labels, prior=0.9, ood_share=0), expected, atol=1e-5)
    np.testing.assert_allclose(scorer.score(test.pixels, test.labels, prior=1 / 9, ood_share=0), own, atol=1e-5)


def test_the_prior_of_a_batch_learns_how_good_the_labels_are(scorer: TrustScorer) -> None:
    test = known()
    labels = test.labels.copy()
    wrong = np.random.default_rng(0).permutation(len(labels))[:30]
    labels[wrong] = (labels[wrong] + 4) % 9
    right = labels == test.labels
    uniform, batch = (scorer.score(test.pixels, labels, prior=prior) for prior in ("uniform", "batch"))
    assert len(labels) >= BATCH_ROWS
    assert batch[right].mean() > uniform[right].mean()
    assert batch[~right].mean() < 0.25
    few = slice(0, BATCH_ROWS - 1)
    np.testing.assert_allclose(scorer.score(test.pixels[few], labels[few]), uniform[few], atol=1e-5)


def test_nearest_references_carry_the_label_and_look_most_alike(scorer: TrustScorer) -> None:
    """A reference itself is its own nearest one."""
    own = np.flatnonzero(scorer.references.labels == 3)
    found = scorer.nearest(scorer.references.pixels[own], 3, 4)
    assert found.shape == (10, 4) and np.isin(found, own).all()
    assert (found[:, 0] == own).mean() >= 0.7
    assert scorer.nearest(unknown_class(), UNKNOWN_CLASS, 4).shape == (len(unknown_class()), 0)


def test_pictures_of_another_shape_are_refused(scorer: TrustScorer) -> None:
    with pytest.raises(StageError, match=r"uint8 \(n, 16, 16, 1\) expected, uint8 \(2, 28, 28, 1\) found"):
        scorer.class_scores(np.zeros((2, 28, 28, 1), np.uint8))


def test_a_scorer_calibrated_from_trained_networks_is_the_same(scorer: TrustScorer) -> None:
    test = known()
    ordinary = scorer.class_scores(test.pixels)
    other = TrustScorer.calibrated(scorer.networks, references(range(9)), temperature=1.5, ordinary=ordinary)
    np.testing.assert_allclose(other.class_scores(test.pixels), ordinary, atol=1e-5)
    assert other.calibration is not None and other.calibration.temperature == 1.5
    assert other.suggestion(unknown_class())[1].mean() < 0.6 < 0.85 < other.suggestion(test.pixels)[1].mean()


def test_the_out_of_distribution_share_is_bayes_rule() -> None:
    """The posterior odds are those at equal shares times (1 - u) / u."""
    calibration = Calibration(temperature=1.0, slope=0.7, intercept=-0.4)
    scores = np.array([[-3.0, 1.0], [2.0, 0.5], [6.0, -1.0]])
    even = calibration.in_distribution(scores, 0.5)
    np.testing.assert_allclose(even, 1 / (1 + np.exp(0.4 - 0.7 * np.array([1.0, 2.0, 6.0]))))
    for share in (0.1, 0.8):
        weighted = (1 - share) * even / ((1 - share) * even + share * (1 - even))
        np.testing.assert_allclose(calibration.in_distribution(scores, share), weighted)
    assert (calibration.in_distribution(scores, 0) == 1).all()


def test_scores_that_do_not_separate_leave_the_share_as_it_was() -> None:
    scores = np.random.default_rng(0).normal(size=(50, 3))
    calibration = out_of_distribution.fit(scores, scores + 1, temperature=2.0)  # shuffled ones score higher
    np.testing.assert_allclose(calibration.in_distribution(scores, 0.3), 0.7)


def test_patch_shuffling_moves_every_quarter() -> None:
    picture = np.zeros((1, 5, 4, 1), np.uint8)
    picture[0, :2, :2], picture[0, :2, 2:], picture[0, 3:, :2], picture[0, 3:, 2:] = 1, 2, 3, 4
    versions = out_of_distribution.patch_shuffled(picture)
    corners = versions[:, [0, 0, 4, 4], [0, 3, 0, 3], 0]
    assert len({tuple(row) for row in corners}) == 6
    assert (np.sort(corners, 1) == [1, 2, 3, 4]).all() and (corners != [1, 2, 3, 4]).all()


# ---------------------------------------------------------------------------------------------------------------------
# File
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["scorer", "paper"])
def test_a_saved_scorer_says_the_same(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    scorer: TrustScorer = request.getfixturevalue(kind)
    scorer.save(tmp_path / "one")
    loaded = TrustScorer.load(tmp_path / "one")
    pixels = digits()[1].pixels
    np.testing.assert_array_equal(loaded.score_matrix(pixels), scorer.score_matrix(pixels))
    assert (loaded.mode, loaded.calibration, loaded.class_names) == (
        scorer.mode,
        scorer.calibration,
        scorer.class_names,
    )
    np.testing.assert_array_equal(loaded.references.ids, scorer.references.ids)
    loaded.save(tmp_path / "two")
    assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes()


def changed(scorer: TrustScorer, path: Path, tensors: dict[str, torch.Tensor | None], **fields: object) -> Path:
    """The scorer's file with some header fields and tensors replaced; None takes them out."""
    scorer.save(path)
    with safe_open(path, "pt") as file:
        values = json.loads(file.metadata()["decant"]) | fields
    found = load_file(path) | tensors
    kept = {name: tensor for name, tensor in found.items() if tensor is not None}
    text = json.dumps({name: value for name, value in values.items() if value != "absent"})
    path.write_bytes(to_bytes(kept, metadata={"decant": text}))
    return path


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "small_cnn"}, "header field 'kind': trust_scorer expected"),
        ({"mode": "best"}, "header.mode: one of plus, paper expected, 'best' found"),
        ({"mode": "absent"}, "header field 'mode' expected, none found"),
        ({"height": 100_000}, "header.height: whole number (8 to 4096) expected, 100000 found"),
        ({"width": 20}, "tensor 'references.pixels'"),
        ({"temperature": float("nan")}, "header.temperature: number (0.01 to 100) or null expected, nan found"),
        ({"temperature": None}, "header field 'temperature': a number expected in mode plus, null found"),
        ({"class_names": ["a", "b"]}, "tensor 'references.labels': ascending classes below 2 expected"),
        ({"networks": 4}, "tensor 'networks.3.encoder.0.weight' expected, none found"),
        ({"mode": "paper"}, "tensor 'networks.0.head.weight' expected, none found"),
        ({"colour": "red"}, "header.colour: unknown parameter"),
    ],
)  # fmt: skip
def test_a_wrong_header_is_refused_by_field(
    scorer: TrustScorer, tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    path = changed(scorer, tmp_path / "scorer.safetensors", {}, **fields)
    with pytest.raises(TableError) as raised:
        TrustScorer.load(path)
    assert str(path) in str(raised.value) and message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("references.labels", torch.arange(90) // 10 + 1, "tensor 'references.labels'"),
        ("references.labels", ((torch.arange(90) + 9) // 10).clip(0, 8), "two at least, of two rows"),  # one of class 0
        ("references.ids", None, "tensor 'references.ids' expected, none found"),
        ("references.pixels", torch.zeros(90, 16, 16, 1), "torch.uint8 (n, (16, 16, 1)) expected, torch.float32"),
        ("networks.1.head.0.weight", torch.zeros(2, 2), "(64, 128) expected, torch.float32 (2, 2) found"),
    ],
)
def test_a_wrong_tensor_is_refused_by_name(
    scorer: TrustScorer, tmp_path: Path, name: str, tensor: torch.Tensor | None, message: str
) -> None:
    path = changed(scorer, tmp_path / "scorer.safetensors", {name: tensor}, class_names=list("012345678"))
    with pytest.raises(TableError) as raised:
        TrustScorer.load(path)
    assert str(path) in str(raised.value) and message in str(raised.value)


@pytest.mark.parametrize("contents", [b"", b"\x80\x04pickle?", b"\xff" * 64, to_bytes({"x": torch.zeros(1)})])
def test_what_is_no_scorer_is_refused(contents: bytes, tmp_path: Path) -> None:
    path = tmp_path / "scorer.safetensors"
    path.write_bytes(contents)
    with pytest.raises(TableError, match=str(path)):
        TrustScorer.load(path)
    with pytest.raises(TableError, match="no such file"):
        TrustScorer.load(tmp_path / "other.safetensors")
