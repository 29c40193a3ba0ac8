"""Choosing the cheapest unlearning method whose result passes a check that needs no truth: `unlearn.method: auto`.

A result is accepted when, compared with the trained model,

    affected   no affected point that the trained model predicts as reported is still predicted so,
    flagged    at most FORGOTTEN of the flagged rows are predicted as labelled, and
    accuracy   on kept rows held out from the unlearning is lower by no more than `margin`.

The methods of CHEAP are tried in their order; where none passes, the model is retrained. Where even retraining leaves
affected points as they were, poison stayed among the kept rows and was learnt again. Then the best result that passes
with a margin of REPAIR is taken instead, if there is one (rows of that poison are among the held-out ones, and rightly
count as lost).

Nothing here knows which rows are poison. Where flagged rows look like their label (Witches' Brew), the second condition
fails even for exact retraining: there a cheap method can't be distinguished from one that only hides the poison, and is
refused. Held-out rows were training rows of the trained model, which counts against a method; retraining takes them
back in.
"""

from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from decant.data.images import Images
from decant.models.training import accuracy, predict
from decant.streams import stream
from decant.unlearning.base import UnlearningTask, unlearn_with

FORGOTTEN = 0.05
HELD_OUT = 0.1  # of the kept rows
REPAIR = 0.05
FOUND_IN_PART = "affected points are still predicted as reported: more rows cause this than were flagged"
CHEAP = ("potion", "ssd")
"""What is tried before retraining. The other methods take half as long as retraining and pass no more often."""


@dataclass(frozen=True, kw_only=True)
class ModelFindings:
    """What was measured of a model without the truth: shares in [0, 1]; None where there are no such rows."""

    affected: float | None
    """Of the affected points: still predicted as reported."""
    flagged: float | None
    """Of the flagged rows: predicted as labelled."""
    accuracy: float | None
    """On kept rows: the held-out ones, or all of them where no method is chosen by it."""

    def passes(self, before: "ModelFindings", margin: float) -> bool:
        """Whether all three conditions hold. False where an affected point or a held-out row is missing as evidence."""
        if self.affected is None or self.flagged is None or self.accuracy is None or before.accuracy is None:
            return False
        return self.affected == 0 and self.flagged <= FORGOTTEN and self.accuracy >= before.accuracy - margin

    def __str__(self) -> str:
        named = {"affected": self.affected, "flagged": self.flagged, "accuracy": self.accuracy}
        return " ".join(f"{name} {100 * share:.1f} %" for name, share in named.items() if share is not None)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A method that was tried, and what it left."""

    method: str
    model: nn.Module
    seconds: float
    found: ModelFindings


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The method that was chosen, and its model."""

    method: str
    model: nn.Module
    seconds: float
    """Of all attempts together."""
    note: str
    """For people: what each attempt left, and what follows from it."""


def measured(model: nn.Module, task: UnlearningTask, affected: Images, kept: Images) -> ModelFindings:
    """What can be measured of `model` without the truth; only affected points that the trained model predicts count."""
    if len(affected):
        affected = affected.select(predict(task.model, affected.pixels).argmax(1) == affected.labels)
    shares = [accuracy(model, images) for images in (affected, task.flagged, kept)]
    return ModelFindings(affected=shares[0], flagged=shares[1], accuracy=shares[2])


def cheapest(task: UnlearningTask, affected: Images, *, margin: float) -> Choice:
    """The first method of CHEAP whose result passes, else exact retraining, or a repair where that can't help."""
    order = stream(task.seed, "unlearn", "held-out rows").permutation(len(task.kept))
    drawn, rest = np.split(order, [round(HELD_OUT * len(order))])
    held_out, partial = task.kept.select(np.sort(drawn)), replace(task, kept=task.kept.select(np.sort(rest)))
    before = measured(task.model, task, affected, held_out)
    tried: list[Attempt] = []
    for name in (*CHEAP, "retrain") if before.affected is not None else ("retrain",):
        done = unlearn_with(name, task if name == "retrain" else partial)
        found = measured(done.model, task, affected, held_out)
        tried.append(Attempt(method=name, model=done.model, seconds=done.seconds, found=found))
        if found.passes(before, margin):
            break
    taken = _taken(tried, before)
    attempts = "; ".join(f"{attempt.method}: {attempt.found}" for attempt in tried)
    return Choice(
        method=taken.method,
        model=taken.model,
        seconds=sum(attempt.seconds for attempt in tried),
        note=f"before: {before}; {attempts}{remark(tried[-1].found)}",
    )


def _taken(tried: list[Attempt], before: ModelFindings) -> Attempt:
    """The last attempt, or the best repair where even that, retraining, left affected points as they were."""
    last = tried[-1]
    if not last.found.affected:
        return last
    repairs = [attempt for attempt in tried if attempt.found.passes(before, REPAIR)]
    return max(repairs, key=lambda attempt: attempt.found.accuracy or 0.0, default=last)


def remark(found: ModelFindings) -> str:
    """The end of a note: what follows where an attempt left affected points as they were; else empty."""
    return f"; {FOUND_IN_PART}" if found.affected else ""
