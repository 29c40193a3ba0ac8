"""Figures against counting by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from samples import INFO
from torch import Tensor, nn

from decant.data.images import Images
from decant.report.metrics import histogram, model_metrics, rows_to_flag, verdict_metrics


class Brightness(nn.Module):
    """Predicts class 1 for white images, class 0 for black ones."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x.mean((1, 2, 3))
        return torch.stack([1 - bright, bright], 1)


def black_and_white(whites: list[bool], labels: list[int]) -> Images:
    pixels = np.array(whites, np.uint8)[:, None, None, None] * np.full((1, 4, 4, 1), 255, np.uint8)
    return Images(np.arange(len(whites)), pixels, np.array(labels, np.int32), INFO)


def verdicts(flagged: list[int], ids: list[int]) -> pd.DataFrame:
    scores = [0.9 if row in flagged else 0.1 for row in ids]
    return pd.DataFrame({"id": ids, "stage": "verify", "score": scores, "flagged": [row in flagged for row in ids]})


def test_accuracy_and_poison_success_are_shares() -> None:
    test = black_and_white([True, False, False, False], [1, 0, 1, 0])
    triggered = black_and_white([True, True, True, False], [1, 1, 1, 1])  # label: what the attacker wants
    figures = model_metrics(Brightness(), test=test, triggered=triggered, rows=7)
    assert figures == {"accuracy": 0.75, "poison_success": 0.75, "rows": 7}


def test_poison_success_is_absent_without_triggered_rows() -> None:
    test = black_and_white([True], [1])
    assert model_metrics(Brightness(), test=test, triggered=test.select(np.zeros(1, bool)), rows=1) == {
        "accuracy": 1.0,
        "rows": 1,
    }


def test_precision_and_recall_by_hand() -> None:
    found = verdict_metrics(verdicts([1, 2, 3, 4], list(range(10))), np.array([2, 3, 9]))
    assert found == {"flagged": 4, "precision": 0.5, "recall": pytest.approx(2 / 3, abs=1e-6)}


def test_a_stage_answers_only_for_rows_that_it_saw() -> None:
    found = verdict_metrics(verdicts([1], [1, 2]), np.array([1, 77]))  # 77 was dropped before
    assert found["recall"] == 1.0


def test_undefined_figures_are_absent() -> None:
    assert verdict_metrics(verdicts([], [1, 2]), np.array([], int)) == {"flagged": 0}


def test_histogram_counts_every_row_once() -> None:
    bars = histogram(verdicts([1, 2], list(range(10))), bins=4)
    assert bars["kept"].sum() == 8 and bars["flagged"].sum() == 2
    assert bars["flagged"].iloc[-1] == 2 and bars["kept"].iloc[0] == 8


def test_each_check_ought_to_flag_its_own_kind_only() -> None:
    received = black_and_white([False] * 4, [0, 1, 5, 5])
    truth = pd.DataFrame(
        {
            "id": [0, 1, 2, 3, 0],
            "attack": ["lsp", "label_noise", "badnet", "badnet", "label_noise"],
            "original_label": [0, 4, 8, 5, 0],  # id 2 dirty-label, id 3 label-consistent
        }
    )
    wanted = rows_to_flag(truth, pd.Series(received.labels, index=received.ids))
    assert {check: sorted(ids) for check, ids in wanted.items()} == {"purify": [0], "verify": [1, 2], "detect": [2, 3]}
