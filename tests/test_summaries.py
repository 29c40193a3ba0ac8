"""A stage's summary.json comes back as it was written, and another version's is refused with what to do."""

import json
from pathlib import Path

import pytest

from decant.errors import StageError
from decant.summaries import FILE, OperatingPoint, Reliability, SimulateSummary, VerifySummary

EVERY = {"rows_in": 10, "rows_out": 9, "note": "one row “dropped”"}


def test_a_summary_survives_its_file(tmp_path: Path) -> None:
    point = OperatingPoint(threshold="far=0.01", trust=0.5, refused=1, far=0.01, frr=0.0)
    said = VerifySummary(
        **EVERY,  # type: ignore[arg-type]
        label_noise_interval=(0.1, 0.2),
        reliability=Reliability(rows=3, brier=0.1, ece=0.0),
        operating_points=(point,),
    )
    said.write(tmp_path)
    assert VerifySummary.read(tmp_path) == said
    assert set(json.loads((tmp_path / FILE).read_text(encoding="utf-8"))) > {"rows_in", "queued", "threshold"}


@pytest.mark.parametrize("change", [{"flagged": 3}, {"triggered": None}, {"attacks": {"badnet": "many"}}])
def test_a_summary_of_another_version_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    said = EVERY | {"attacks": {"badnet": 3}, "triggered": 1, "affected_points": 0}
    (tmp_path / FILE).write_text(json.dumps(said))
    assert SimulateSummary.read(tmp_path).planted
    (tmp_path / FILE).write_text(json.dumps(said | change))
    with pytest.raises(StageError, match=f"{next(iter(change))}.* run that stage again"):
        SimulateSummary.read(tmp_path)


def test_a_missing_summary_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="run the stage that writes it"):
        SimulateSummary.read(tmp_path)
