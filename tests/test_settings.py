"""Parameters: what is refused, and that the message says what is allowed."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from decant.errors import SettingsError
from decant.settings import BLOCKS, block_class, load_params, schema


def test_absent_blocks_and_keys_take_their_defaults() -> None:
    params = load_params({"verify": {"threshold": 0.9}})
    assert params["seed"] == 0
    assert params["verify"].threshold == 0.9
    assert params["ingest"].source == "digits"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"verfy": {}}, "params.yaml: unknown block 'verfy'; known: seed, ingest,"),
        ({"verify": {"treshold": 1}}, "verify.treshold: unknown parameter; known: enabled,"),
        (
            {"verify": {"threshold": 1.5}},
            "verify.threshold: number (0 to 1) or text (such as frr=0.02 or far=0.001) expected, 1.5 found",
        ),
        (
            {"verify": {"threshold": "high"}},
            "verify.threshold: number (0 to 1) or text (such as frr=0.02 or far=0.001) expected, 'high' found",
        ),
        ({"verify": {"enabled": 1}}, "verify.enabled: true or false expected, 1 found"),
        ({"verify": {"mode": "fast"}}, "verify.mode: one of plus, paper expected, 'fast' found"),
        ({"train": {"epochs": True}}, "train.epochs: whole number (at least 1) expected, True found"),
        ({"train": {"epochs": 2.5}}, "train.epochs: whole number (at least 1) expected, 2.5 found"),
        ({"ingest": {"limit": 0}}, "ingest.limit: whole number (at least 1) or null expected, 0 found"),
        ({"ingest": ["digits"]}, "ingest: a block of parameters expected"),
        ({"seed": -1}, "seed: whole number (at least 0) expected, -1 found"),
        ({"seed": True}, "seed: whole number (at least 0) expected, True found"),
        ({"detect": {"tau": float("nan")}}, "detect.tau: number expected, nan found"),
        ({"ingest": {"source": b"\xff"}}, "ingest: numbers, texts, true, false, null or lists expected"),
        ({"simulate": {"attacks": [3]}}, "simulate.attacks: a list expected, [3] found"),
    ],
)
def test_refused_with_what_is_allowed(params: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        load_params(params)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("block", "key", "methods"),
    [
        ("detect", "detector", "activation_clustering, delta, ekfac_threshold, frequency, joint, renormalised, "
         "spectral_signature, trak"),
        ("unlearn", "method", "auto, badt, finetune, potion, retrain, scrub, ssd"),
    ],
)  # fmt: skip
def test_a_misspelt_method_is_refused_with_all_that_there_are(block: str, key: str, methods: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_params({block: {key: "jiont"}})
    assert str(caught.value) == f"{block}.{key}: one of {methods} expected, 'jiont' found"


def test_a_whole_number_is_a_number() -> None:
    assert load_params({"purify_1": {"kld_limit": 2}})["purify_1"].kld_limit == 2.0


def test_a_text_that_yaml_takes_for_a_date_is_the_text() -> None:
    assert load_params({"ingest": {"source": date(2024, 1, 1)}})["ingest"].source == "2024-01-01"


def test_a_run_is_called_by_what_it_cleans_and_bad_parameters_keep_none_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.clean import what_is_cleaned  # here: it loads Prefect

    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("seed: 3\ningest: {source: /data/photos}\n")
    assert what_is_cleaned() == "photos, seed 3"
    (tmp_path / "params.yaml").write_text("verify: {threshold: nonsense}\n")
    assert what_is_cleaned() == "clean"


@pytest.mark.parametrize("block", BLOCKS)
def test_every_parameter_says_what_it_means(block: str) -> None:
    plain = {"enabled", "epochs", "batch_size", "momentum", "weight_decay"}  # whose names say it
    for name, parameter in schema(block_class(block))["properties"].items():
        assert "default" in parameter and ("description" in parameter or name in plain), name


@pytest.mark.parametrize(
    ("params", "end"),
    [
        ({"verfy": {}}, ". Did you mean 'verify'?"),
        ({"verify": {"treshold": 1}}, ". Did you mean 'threshold'?"),
        ({"extra": {}}, ", evaluate, export, report"),  # no slip of the pen: no hint
    ],
)
def test_only_a_misspelt_name_gets_a_hint_and_it_comes_last(params: dict[str, Any], end: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_params(params)
    assert str(refused.value).endswith(end)
