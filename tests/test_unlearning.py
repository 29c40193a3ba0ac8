"""Unlearning methods against the definition: a model as if the flagged rows had never been there, measured by the truth
that the methods don't see."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from samples import ROOT, digits
from torch import nn

from decant.attacks import load_attacks
from decant.errors import SettingsError
from decant.images import Images
from decant.settings import TrainSettings
from decant.training import accuracy, predict, train_classifier
from decant.unlearning import Task, Unlearned, _auto, names, unlearn_with
from decant.unlearning._auto import Findings, cheapest
from decant.unlearning._dampening import importances
from tasks.simulate import plant, triggered_rows

TRAIN = TrainSettings(epochs=4)


@cache
def backdoored() -> tuple[Task, Images, Images]:
    """(the task with all of the poison flagged, triggered rows, affected points)."""
    train, test = digits()
    attack = load_attacks([{"name": "badnet", "rate": 0.04, "size": 6}])[0]
    rows, truth = plant(train, [attack], np.random.default_rng(0))
    triggered, affected = triggered_rows(test, [attack], 5, np.random.default_rng(0))
    guilty = np.isin(rows.ids, truth["id"])
    model = train_classifier(rows, TRAIN, seed=0)
    task = Task(model=model, kept=rows.select(~guilty), flagged=rows.select(guilty), train=TRAIN, seed=0)
    return task, triggered, affected


@pytest.mark.parametrize("name", names())
def test_every_method_keeps_the_contract(name: str) -> None:
    whole, _, _ = backdoored()
    task = replace(whole, kept=whole.kept.select(np.arange(200)), train=TrainSettings(epochs=1))
    weights = [parameter.clone() for parameter in task.model.parameters()]
    first = unlearn_with(name, task)
    assert all(torch.equal(a, b) for a, b in zip(weights, task.model.parameters(), strict=True))
    assert first.model is not task.model and not first.model.training and first.seconds > 0
    again = unlearn_with(name, task).model
    pixels = task.kept.pixels[:50]
    assert (predict(first.model, pixels) == predict(again, pixels)).all()


@cache
def unlearnt(name: str) -> nn.Module:
    return unlearn_with(name, backdoored()[0]).model


@pytest.mark.parametrize("name", ["retrain", "potion", "scrub"])
def test_a_backdoor_is_gone_and_the_rest_is_not(name: str) -> None:
    _, test = digits()
    task, triggered, _ = backdoored()
    assert accuracy(task.model, triggered) > 0.9  # type: ignore[operator]
    model = unlearnt(name)
    assert accuracy(model, triggered) < 0.1  # type: ignore[operator]
    assert accuracy(model, test) > accuracy(task.model, test) - 0.04  # type: ignore[operator]


def test_retraining_is_training_on_the_kept_rows() -> None:
    task, _, _ = backdoored()
    plain = train_classifier(task.kept, TRAIN, seed=0)
    found = unlearnt("retrain")
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), found.parameters(), strict=True))


def test_importances_are_the_squared_gradients_that_autograd_gives() -> None:
    """One row: the batch is the row, so that the mean over batches is its own squared gradient. Under a wrong label,
    whose gradient is far above float32's rounding."""
    task, _, _ = backdoored()
    row = task.flagged.select(np.arange(1)).with_labels(np.array([0]))
    inputs = torch.from_numpy(row.pixels).permute(0, 3, 1, 2) / 255
    logits = task.model(inputs)
    loss = logits.logsumexp(1).sum() - logits[0, row.labels[0]]
    wanted = torch.autograd.grad(loss, list(task.model.parameters()))
    for found, gradient in zip(importances(task.model, row, 2), wanted, strict=True):
        torch.testing.assert_close(found, gradient**2, rtol=1e-3, atol=1e-12)


def test_potion_heals_what_retraining_cannot_when_half_of_the_poison_is_found() -> None:
    task, triggered, _ = backdoored()
    half = np.arange(len(task.flagged)) % 2 == 0
    kept = replace(
        task.kept,
        ids=np.r_[task.kept.ids, task.flagged.ids[~half]],
        pixels=np.r_[task.kept.pixels, task.flagged.pixels[~half]],
        labels=np.r_[task.kept.labels, task.flagged.labels[~half]],
    )
    partly = replace(task, kept=kept, flagged=task.flagged.select(half))
    assert accuracy(unlearn_with("retrain", partly).model, triggered) > 0.5  # type: ignore[operator]
    assert accuracy(unlearn_with("potion", partly).model, triggered) < 0.1  # type: ignore[operator]


def test_auto_removes_the_backdoor_and_tells_what_it_measured() -> None:
    _, test = digits()
    task, triggered, affected = backdoored()
    choice = cheapest(task, affected, margin=0.005)
    assert accuracy(choice.model, triggered) <= 0.05  # type: ignore[operator]
    assert accuracy(choice.model, test) > accuracy(task.model, test) - 0.02  # type: ignore[operator]
    assert choice.note.startswith("before: affected 100.0 %") and f"; {choice.method}: affected 0.0 %" in choice.note


def test_auto_repairs_where_retraining_leaves_affected_points_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retraining that learns the trigger again, and a cheap method that forgets it but costs more than the margin."""
    task, _, affected = backdoored()
    models = {"retrain": task.model, "potion": unlearnt("retrain"), "ssd": task.model}
    monkeypatch.setattr(_auto, "unlearn_with", lambda name, given: Unlearned(model=models[name], seconds=1.0))
    choice = cheapest(task, affected, margin=-1.0)
    assert choice.method == "potion" and choice.model is models["potion"] and choice.seconds == 3
    assert choice.note.endswith(_auto.FOUND_IN_PART)


def test_auto_accepts_nothing_without_evidence() -> None:
    task, _, affected = backdoored()
    assert cheapest(task, affected.select(np.arange(0)), margin=1.0).method == "retrain"


@pytest.mark.parametrize(
    ("affected", "flagged", "accuracy", "passes"),
    [(0.0, 0.05, 0.99, True), (0.2, 0.0, 1.0, False), (0.0, 0.06, 1.0, False), (0.0, 0.0, 0.98, False)],
)
def test_every_condition_of_the_check_counts(affected: float, flagged: float, accuracy: float, passes: bool) -> None:
    before = Findings(affected=1.0, flagged=1.0, accuracy=1.0)
    found = Findings(affected=affected, flagged=flagged, accuracy=accuracy)
    assert found.passes(before, margin=0.011) is passes


def test_an_unknown_method_or_parameter_is_named() -> None:
    task, _, _ = backdoored()
    with pytest.raises(SettingsError, match="unlearning: one of badt, finetune, potion"):
        unlearn_with("forget", task)
    with pytest.raises(SettingsError, match=r"ssd\.beta: unknown parameter"):
        unlearn_with("ssd", task, beta=1)


def test_page_names_every_method() -> None:
    page = (ROOT / "docs/methods/unlearning.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in names())
