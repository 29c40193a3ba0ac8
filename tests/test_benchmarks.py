"""The bars: each one is compared with its figure, and a figure that was never measured falls short."""

import sys
from pathlib import Path

import pytest
from samples import ROOT

from benchmarks.__main__ import bars_of, check, main, names, table
from decant.files import write_json

BAR = {"name": "a bar", "benchmark": "toy", "scale": "small", "key": "x", "limit": 0.5, "source": "a test"}


@pytest.mark.parametrize(
    ("direction", "figure", "holds"),
    [("at least", 0.5, True), ("at least", 0.49, False), ("at most", 0.5, True), ("at most", 0.51, False)],
)
def test_a_bar_holds_up_to_its_limit(tmp_path: Path, direction: str, figure: float, holds: bool) -> None:
    write_json(tmp_path / "toy-small.json", {"mean": {"x": figure}})
    assert check([{**BAR, "direction": direction}], tmp_path) is holds


def test_what_was_never_measured_falls_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not check([{**BAR, "direction": "at most"}], tmp_path)
    assert capsys.readouterr().out.startswith("SHORT a bar: not measured")


def test_bars_are_well_formed_and_each_stands_once() -> None:
    bars = bars_of(None)
    assert all(set(bar) == {*BAR, "direction"} for bar in bars)
    assert all(bar["direction"] in ("at least", "at most") and bar["scale"] in ("small", "full") for bar in bars)
    keys = [(bar["benchmark"], bar["scale"], bar["key"]) for bar in bars]
    assert len(keys) == len(set(keys))


def test_table_shows_every_value() -> None:
    result = {"values": {"x": [0.25, 0.75]}, "mean": {"x": 0.5}, "std": {"x": 0.354}}
    assert table(result).splitlines()[-1] == "| x | 0.5 | 0.35 | 0.25, 0.75 |"


def test_without_a_name_the_benchmarks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in names())


def test_parameters_page_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import parameters

    assert parameters.page() == (ROOT / "docs/parameters.md").read_text(encoding="utf-8"), "run `make docs`"
    sys.modules.pop("parameters")
