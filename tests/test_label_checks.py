"""Label checks: one contract for all, and each against an independent truth."""

import dataclasses
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import ROOT, digits
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from decant.attacks.base import load_attacks
from decant.data.images import Images
from decant.errors import SettingsError, StageError
from decant.label_checks import asd, cae, labeltrust, loss, orion, spectral
from decant.label_checks import base as label_checks
from decant.label_checks.base import CheckCase, CheckResult
from decant.labeltrust.experts import Expert
from decant.labeltrust.outcome import VerifyOutcome
from decant.labeltrust.review_rounds import Reviews, draw_references
from decant.labeltrust.settings import VerifySettings
from decant.labeltrust.verify import verify
from decant.models import cross_validation, networks
from decant.models.cross_validation import out_of_fold
from decant.models.features import logits_and_features, nearest, spectral_signature, stage_outputs, two_clusters
from decant.models.settings import TrainSettings
from decant.models.training import predict, steps_of
from decant.registry import CONFIDENCE_SCORERS, LABEL_CHECKS, Family

ROWS, REFERENCES = 600, 5
TRAIN = TrainSettings(epochs=6)
QUICK: dict[str, dict[str, object]] = {
    "asd": {"first": 4, "second": 2, "third": 1, "iterations": 10},
    "confident_learning": {"folds": 3},
    "labeltrust": {"steps": 30},
}
"""What keeps the contract test short."""
FINDS_WRONG_LABELS = {
    "asd": 0.8,
    "cae": 0.9,
    "confident_learning": 0.9,
    "datalab": 0.9,
    "knn": 0.95,
    "labeltrust": 0.85,
    "loss": 0.9,
    "orion": 0.8,
}
"""AUROC that each reaches on 600 digits at least. The two others look for a common direction or a cluster among the
wrong rows of a class, which labels drawn at random don't have: they are tested with a backdoor."""
BACKDOOR = {"name": "badnet", "mode": "dirty", "victim": None, "target": 0, "rate": 0.04, "size": 6}


def case_with(attack: dict[str, object], seed: int = 0) -> tuple[CheckCase, np.ndarray]:
    """(600 digits with that attack, 5 confirmed rows per class and 10 refuted ones of them known; (n,) is wrong)."""
    right = digits()[0].select(np.arange(ROWS))
    (planned,) = load_attacks([attack])
    given = planned.poison(right, np.random.default_rng(seed), np.zeros(ROWS, bool)).images
    wrong = given.labels != right.labels
    rows = [np.flatnonzero(~wrong & (right.labels == label))[:REFERENCES] for label in range(10)]
    references = np.concatenate([*rows, np.flatnonzero(wrong)[:10]])
    answers = right.labels[references].astype(np.int64)
    return CheckCase(images=given, references=references, answers=answers, train=TRAIN, seed=seed), wrong


@cache
def mislabelled() -> tuple[CheckCase, np.ndarray]:
    return case_with({"name": "label_noise", "rate": 0.1})


@cache
def backdoored() -> tuple[CheckCase, np.ndarray]:
    return case_with(BACKDOOR)


@cache
def judged(name: str) -> CheckResult:
    return label_checks.judge(name, mislabelled()[0], **QUICK.get(name, {}))


def auroc(check: CheckResult, case: CheckCase, wrong: np.ndarray) -> float:
    """Of the rows that nobody told it about."""
    return float(roc_auc_score(wrong[case.others], check.suspicion[case.others]))


@pytest.mark.parametrize("name", label_checks.names())
def test_every_check_keeps_the_contract(name: str) -> None:
    case, wrong = mislabelled()
    before = case.images.ids.copy(), case.images.pixels.copy(), case.images.labels.copy()
    check = judged(name)
    assert check.suspicion.shape == (ROWS,) and check.suspicion.dtype == np.float32
    assert np.isfinite(check.suspicion).all()
    assert check.flagged.shape == (ROWS,) and check.flagged.dtype == bool
    assert check.suggested.dtype == np.int64 and check.suggested.min() >= -1 and check.suggested.max() < 10
    assert check.note and "\n" not in check.note
    after = case.images.ids, case.images.pixels, case.images.labels
    assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))
    if name in FINDS_WRONG_LABELS:
        assert auroc(check, case, wrong) > FINDS_WRONG_LABELS[name]


@pytest.mark.parametrize("name", label_checks.names())
def test_the_experts_word_stands_about_references(name: str) -> None:
    case, wrong = mislabelled()
    check, rows = judged(name), case.references
    assert (check.flagged[rows] == wrong[rows]).all() and wrong[rows].sum() == 10
    assert (check.suggested[rows] == case.answers).all()
    assert (check.suspicion[rows][wrong[rows]] == check.suspicion.max()).all()


@pytest.mark.parametrize("name", ["activation_clustering", "cae", "orion", "spectral"])
def test_the_same_case_gives_the_same_judgement(name: str) -> None:
    fresh, _ = case_with({"name": "label_noise", "rate": 0.1})
    again = label_checks.judge(name, fresh, **QUICK.get(name, {}))
    assert np.array_equal(again.suspicion, judged(name).suspicion)
    assert np.array_equal(again.flagged, judged(name).flagged)


def test_unknown_names_and_parameters_are_refused_in_one_line() -> None:
    case, _ = mislabelled()
    with pytest.raises(SettingsError, match=r"^label check: one of activation_clustering, .*, 'prayer' found$"):
        label_checks.judge("prayer", case)
    with pytest.raises(SettingsError, match=r"^knn.k: whole number \(at least 1\) expected, 0 found$"):
        label_checks.judge("knn", case, k=0)


@pytest.mark.parametrize("name", ["asd", "cae", "labeltrust", "orion"])
def test_too_few_references_are_refused_by_those_that_need_them(name: str) -> None:
    case, _ = mislabelled()
    poor = dataclasses.replace(case, references=np.arange(3), answers=np.array([4, 4, 7]))
    with pytest.raises(StageError, match=rf"^{name}: two references of each of two classes at least expected, \[0, 0,"):
        label_checks.judge(name, poor)


@pytest.mark.parametrize("name", ["confident_learning", "knn"])
def test_a_case_without_spoilt_labels_is_left_alone(name: str) -> None:
    images = digits()[0].select(np.arange(ROWS))
    references = np.arange(60)
    case = CheckCase(images=images, references=references, answers=images.labels[:60].astype(int), train=TRAIN, seed=0)
    assert label_checks.judge(name, case, **QUICK.get(name, {})).flagged.mean() < 0.03


@pytest.mark.parametrize("family", [LABEL_CHECKS, CONFIDENCE_SCORERS])
def test_the_page_names_every_member_with_its_parameters(family: Family) -> None:
    lines = (ROOT / "docs/label-checks.md").read_text(encoding="utf-8").splitlines()
    for name in family.names():
        rows = [line for line in lines if line.startswith(f"| `{name}` |")]
        for field in dataclasses.fields(importlib.import_module(f"{family.package}.{name}").Settings):
            assert any(f"`{field.name}` (" in row for row in rows), f"{name}.{field.name}"
        assert rows, name


@pytest.mark.parametrize("page", ["label-checks.md", "score.md"])
def test_imports_of_the_docs_examples_exist(page: str) -> None:
    blocks = (ROOT / "docs" / page).read_text(encoding="utf-8").split("```python\n")[1:]
    lines = [line for block in blocks for line in block.split("```")[0].splitlines()]
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    exec("\n".join(imports), {})
    assert len(imports) >= 3


# What checks are made of ----------------------------------------------------------------------------------------------


def test_the_example_of_how_to_add_a_check_is_one_and_finds_wrong_labels(tmp_path: Path) -> None:
    page = (ROOT / "docs/adding-a-method.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def judge" in block)
    (tmp_path / "class_mean.py").write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("class_mean", tmp_path / "class_mean.py")
    assert spec is not None and spec.loader is not None
    sys.modules["class_mean"] = module = importlib.util.module_from_spec(spec)  # where dataclasses look
    spec.loader.exec_module(module)
    case, wrong = mislabelled()
    check = module.judge(case, module.Settings())
    assert auroc(check, case, wrong) > 0.8 and check.flagged.sum() == ROWS // 10
    assert (check.suggested == digits()[0].labels[:ROWS]).mean() > 0.7
    del sys.modules["class_mean"]


def test_features_and_last_layer_give_the_logits() -> None:
    images = digits()[0].select(np.arange(40))
    for name in ("small_cnn", "resnet18"):
        model = networks.build(networks.Architecture(name, images.shape, images.info.class_names), seed=1).eval()
        logits, features = logits_and_features(model, images.pixels)
        last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
        by_hand = features @ last.weight.detach().numpy().T + last.bias.detach().numpy()
        assert np.allclose(by_hand, logits, atol=1e-5)
        assert np.array_equal(logits, predict(model, images.pixels))


def test_stages_are_the_network_cut_where_the_picture_shrinks() -> None:
    images = digits()[0].select(np.arange(5))
    model = networks.build(networks.Architecture("small_cnn", images.shape, images.info.class_names), seed=1).eval()
    x = torch.from_numpy(images.pixels).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        by_hand = [model[:end](x) for end in (4, 8, 12, 13)]  # before each pooling, and after the last
        pooled = [torch.nn.functional.adaptive_avg_pool2d(part, min(4, part.shape[2])).flatten(1) for part in by_hand]
    found = stage_outputs(model, images.pixels)
    assert [part.shape[2] for part in by_hand] == [16, 8, 4, 2] and len(found) == 4
    assert all(np.allclose(a, b.numpy(), atol=1e-5) for a, b in zip(found, pooled, strict=True))


@pytest.mark.parametrize("itself", [False, True])
def test_nearest_rows_are_those_of_scikit_learn(itself: bool) -> None:
    rows = np.random.default_rng(0).normal(size=(1100, 9)).astype(np.float32)
    asked = rows if itself else rows[:700] + 0.1
    distances, indices = nearest(asked, rows, 4, itself=itself)
    index = NearestNeighbors(n_neighbors=4, algorithm="brute").fit(rows)
    wanted, order = index.kneighbors(None if itself else asked)
    assert np.allclose(distances, wanted, atol=1e-3) and (indices == order).mean() > 0.999


# Each check -----------------------------------------------------------------------------------------------------------


def test_knn_relabels_by_the_share_of_neighbours_counted_by_hand() -> None:
    case, _ = mislabelled()
    check = label_checks.judge("knn", case, k=7, eta=0.6, near=0)
    flat = case.images.pixels.reshape(ROWS, -1) / 255.0
    for row in range(0, ROWS, 13):
        if not case.others[row]:
            continue
        order = np.argsort(((flat - flat[row]) ** 2).sum(1), kind="stable")
        votes = np.bincount(case.known.labels[order[order != row][:7]], minlength=10) / 7
        given = case.images.labels[row]
        assert check.suspicion[row] == pytest.approx(1 - votes[given])
        assert check.flagged[row] == (votes.argmax() != given and votes.max() >= 0.6)
        assert check.suggested[row] == votes.argmax()


def test_confident_learning_is_cleanlab_on_predictions_out_of_fold() -> None:
    filtering = pytest.importorskip("cleanlab.filter")
    case, _ = mislabelled()
    probabilities = out_of_fold(case.known, TRAIN, folds=3, seed=case.seed)
    assert np.allclose(probabilities.sum(1), 1)
    issues = filtering.find_label_issues(case.known.labels.astype(int), probabilities, n_jobs=1)
    others, check = case.others, judged("confident_learning")
    assert (check.flagged[others] == issues[others]).all() and issues[others].any()
    own = probabilities[np.arange(ROWS), case.known.labels]
    assert np.allclose(check.suspicion[others], 1 - own[others], atol=1e-6)


def test_predictions_out_of_fold_don_t_know_their_own_labels() -> None:
    """Random labels can't be predicted by a network that didn't see them: in fold they could."""
    images = digits()[0].select(np.arange(200))
    shuffled = images.with_labels(np.random.default_rng(0).integers(0, 2, 200))
    probabilities = out_of_fold(shuffled, TrainSettings(epochs=20), folds=4, seed=0)
    assert (probabilities.argmax(1) == shuffled.labels).mean() < 0.65


def test_a_rare_class_leaves_the_others_their_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    images = digits()[0].select(np.arange(40)).with_labels(np.array([0] * 20 + [1] * 18 + [2] * 2))
    trained: list[int] = []

    def train(images: Images, settings: TrainSettings, *, seed: int, on_step: Callable[[], None]) -> object:
        trained.append(len(images))
        return seed

    monkeypatch.setattr(cross_validation, "train_classifier", train)
    monkeypatch.setattr(cross_validation, "predict", lambda model, pixels: np.full((len(pixels), 10), model))
    assert np.isfinite(cross_validation.out_of_fold(images, TrainSettings(), folds=5, seed=0)).all()
    assert trained == 5 * [32]
    assert cross_validation.out_of_fold_steps(images.labels, TrainSettings(), 5) == 5 * steps_of(32, TrainSettings())


def test_labels_of_a_class_without_references_do_not_silence_the_others() -> None:
    case, wrong = mislabelled()
    known = case.answers != 9
    poor = dataclasses.replace(case, references=case.references[known], answers=case.answers[known])
    check = label_checks.judge("labeltrust", poor, **QUICK["labeltrust"])
    judged_rows = poor.others & (case.images.labels != 9)
    assert roc_auc_score(wrong[judged_rows], check.suspicion[judged_rows]) > 0.8


def test_references_do_not_pass_for_rows_drawn_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which the noise model believes that they tell how many labels are wrong."""
    case, _ = mislabelled()
    drawn: list[int] = []

    def reviewed(images: Images, expert: Expert, settings: VerifySettings, *, seed: int) -> VerifyOutcome:
        for number in range(40):
            reviews = Reviews(images)
            draw_references(reviews, expert, settings.references, np.random.default_rng(number), settings.budget)
            assert (np.flatnonzero(reviews.reviewed) == np.sort(case.references)).all()
            drawn.append(int((reviews.rounds == 0).sum()))
        return verify(images, expert, dataclasses.replace(settings, steps=2, passes=0), seed=seed)

    monkeypatch.setattr(labeltrust, "verify", reviewed)
    label_checks.judge("labeltrust", case)
    assert drawn == 40 * [0]


def test_spectral_scores_are_squared_projections_on_numpys_first_singular_vector() -> None:
    rows = np.random.default_rng(0).normal(size=(80, 7)).astype(np.float32) @ np.diag([3, 1, 1, 1, 1, 1, 2])
    centred = rows - rows.mean(0)
    _, _, directions = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    assert np.allclose(spectral_signature(rows)(rows), (centred @ directions[0]) ** 2, rtol=1e-4)


def test_spectral_takes_the_share_that_it_is_told_of_every_class() -> None:
    case, _ = mislabelled()
    check = spectral.judge(case, spectral.Settings(share=0.1, multiplier=1.5))  # without the expert's answers
    for label in range(10):
        rows = case.known.labels == label
        taken, left = check.suspicion[rows & check.flagged], check.suspicion[rows & ~check.flagged]
        assert len(taken) == round(0.15 * rows.sum()) and taken.min() > left.max()


@pytest.mark.parametrize("name", ["spectral", "activation_clustering"])
def test_what_is_made_for_backdoors_finds_one(name: str) -> None:
    case, wrong = backdoored()
    check = label_checks.judge(name, case)
    target = (case.images.labels == BACKDOOR["target"]) & case.others
    assert roc_auc_score(wrong[target], check.suspicion[target]) > 0.95


def test_two_clouds_of_unequal_size_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(0, 1, (90, 12)), rng.normal(6, 1, (10, 12))]).astype(np.float32)
    to_large, to_small = two_clusters(rows, 10, seed=0)(rows).T
    assert ((to_small < to_large) == (np.arange(100) >= 90)).all()


def test_the_larger_component_of_losses_is_flagged_and_nothing_below_it() -> None:
    rng = np.random.default_rng(0)
    losses = np.exp(np.concatenate([rng.normal(-6, 1, 900), rng.normal(1, 0.5, 100)]))
    flagged = loss.larger_of_two(losses, seed=0)
    assert (flagged == (np.arange(1000) >= 900)).all()
    assert losses[flagged].min() > np.median(losses)


def test_asd_ranks_by_symmetric_cross_entropy_and_splits_by_class() -> None:
    logits = np.array([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]], np.float32)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([1, 2])
    reverse = -(p * np.log(np.eye(3)[labels].clip(1e-4, 1))).sum(1)
    wanted = -0.1 * np.log(p[[0, 1], labels]) + reverse
    assert np.allclose(asd.split_losses(logits, labels), wanted, rtol=1e-5)
    found = asd.smallest_of_each_class(np.array([3.0, 1.0, 2.0, 9.0, 8.0, 7.0]), np.array([0, 0, 0, 1, 1, 1]), 1)
    assert found.tolist() == [False, True, False, False, False, True]


def test_the_auto_encoder_rebuilds_any_size() -> None:
    for shape in ((28, 28, 1), (13, 18, 3)):
        rebuilt, logits = cae.AutoEncoder(shape, 4)(torch.rand(3, shape[2], *shape[:2]))
        assert rebuilt.shape == (3, shape[2], *shape[:2]) and logits.shape == (3, 4)


def test_side_networks_learn_from_the_references_alone() -> None:
    rng = np.random.default_rng(0)
    stages = [rng.normal(size=(60, 5)) for _ in range(2)]
    labels = np.tile([0, 2], 10)
    for stage in stages:
        stage[:20, 0] += np.where(labels == 2, 4, -4)
    found = orion.side_outputs([stage[:20] for stage in stages], labels, stages, 3)
    assert np.allclose(found.sum(1), 1) and (found[:, 1] == 0).all()
    assert (found[:20].argmax(1) == labels).all()
