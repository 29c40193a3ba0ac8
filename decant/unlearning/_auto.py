"""Did it work? What a user can measure of a result, and the cheapest method whose result passes.

A method is accepted when, beside the trained model,

* no affected point that the trained model predicts as reported is still predicted so,
* at most FORGOTTEN of the flagged rows are predicted as labelled, and
* accuracy on kept rows held out from the unlearning is lower by no more than `margin`.

Where none passes, the model is retrained. Where even that leaves affected points as they were, poison stayed among the
kept rows and retraining teaches it again: then the tried result that passes at a margin of REPAIR is taken instead, if
there is one (rows of that poison are among the held-out ones and rightly count as lost).

Nothing here knows which rows are poison. Where flagged rows look like their label (Witches' Brew), the second condition
fails even for exact retraining; a cheap method can't be told there from one that only hides the poison, and is refused.
Held-out rows were training rows of the trained model, which counts against a method; retraining takes them back in.
"""

from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from decant.data.images import Images
from decant.models.training import accuracy, predict
from decant.unlearning.base import Task, unlearn_with

FORGOTTEN = 0.05
HELD_OUT = 0.1  # of the kept rows
REPAIR = 0.05
FOUND_IN_PART = "affected points are still predicted as reported: more rows cause them than were flagged"
CHEAP = ("potion", "ssd")
"""What is tried, in this order. The others take half as long as retraining and pass no more often."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Shares in [0, 1]; None where there is nothing to ask."""

    affected: float | None
    """Of the affected points: still predicted as reported."""
    flagged: float | None
    """Of the flagged rows: predicted as labelled."""
    accuracy: float | None
    """On kept rows: held out ones, or, where nothing is chosen by it, all of them."""

    def passes(self, before: "Findings", margin: float) -> bool:
        """Without an affected point or a held-out row there is no evidence, and nothing passes."""
        if self.affected is None or self.flagged is None or self.accuracy is None or before.accuracy is None:
            return False
        return self.affected == 0 and self.flagged <= FORGOTTEN and self.accuracy >= before.accuracy - margin

    def __str__(self) -> str:
        named = {"affected": self.affected, "flagged": self.flagged, "accuracy": self.accuracy}
        return " ".join(f"{name} {100 * share:.1f} %" for name, share in named.items() if share is not None)


def measured(model: nn.Module, task: Task, affected: Images, kept: Images) -> Findings:
    """What can be said of `model`, beside the trained one, without the truth."""
    if len(affected):
        affected = affected.select(predict(task.model, affected.pixels).argmax(1) == affected.labels)
    shares = [accuracy(model, images) for images in (affected, task.flagged, kept)]
    return Findings(affected=shares[0], flagged=shares[1], accuracy=shares[2])


@dataclass(frozen=True, kw_only=True)
class Choice:
    method: str
    model: nn.Module
    found: Findings
    seconds: float
    """Of all that was tried."""
    note: str = ""


def cheapest(task: Task, affected: Images, *, margin: float) -> Choice:
    """The first of CHEAP whose result passes, else exact retraining, unless only a repair helps."""
    held = np.zeros(len(task.kept), bool)
    held[np.random.default_rng([task.seed, 5]).permutation(len(held))[: round(HELD_OUT * len(held))]] = True
    held_out, partial = task.kept.select(held), replace(task, kept=task.kept.select(~held))
    before = measured(task.model, task, affected, held_out)
    tried: list[Choice] = []
    for name in (*CHEAP, "retrain") if before.affected is not None else ("retrain",):
        done = unlearn_with(name, task if name == "retrain" else partial)
        found = measured(done.model, task, affected, held_out)
        tried.append(Choice(method=name, model=done.model, found=found, seconds=done.seconds))
        if found.passes(before, margin):
            break
    taken = tried[-1]
    if taken.found.affected:  # even after retraining
        repairs = [choice for choice in tried if choice.found.passes(before, REPAIR)]
        taken = max(repairs, key=lambda choice: choice.found.accuracy or 0.0, default=taken)
    attempts = "; ".join(f"{choice.method}: {choice.found}" for choice in tried)
    note = f"before: {before}; {attempts}{remark(tried[-1].found)}"
    return replace(taken, seconds=sum(choice.seconds for choice in tried), note=note)


def remark(found: Findings) -> str:
    """What follows from affected points that the last attempt left as they were."""
    return f"; {FOUND_IN_PART}" if found.affected else ""
