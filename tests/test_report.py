"""The report is whole, safe, honest about what is missing, and opens in a real browser."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from decant.data.images import DatasetInfo, Images
from decant.data.tables import (
    PerturbationsWriter,
    write_images,
    write_places,
    write_rejected,
    write_truth,
    write_verdicts,
)
from decant.files import write_json
from decant.report import charts
from decant.report.pictures import diverging
from decant.report.run import most_suspicious
from decant.report.settings import ReportSettings
from decant.summaries import (
    DetectSummary,
    EvaluateSummary,
    IngestSummary,
    OperatingPoint,
    Purify1Summary,
    Purify2Summary,
    Summary,
    VerifySummary,
)
from tasks import report

CLASSES = ("cat", "<script>alert(1)</script>", 'say "no" & go')
SECTIONS = ("steps", "purification", "labels", "influence", "truth", "ingest", "record", "next")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "link", "img"}


# ---------------------------------------------------------------------------------------------------------------------
# A small run: 30 rows, of which 0-2 carry a trigger and 3-5 a wrong label
# ---------------------------------------------------------------------------------------------------------------------


def verdicts(images: Images, stage: str, flagged: np.ndarray, action: str, rng: np.random.Generator) -> pd.DataFrame:
    n = len(images)
    return pd.DataFrame(
        {
            "id": images.ids,
            "stage": stage,
            "score": flagged.any() * (np.where(flagged, 0.8, 0.1) + 0.1 * rng.random(n)),
            "flagged": flagged,
            "action": np.where(flagged, action, "keep"),
            "suggested_label": pd.array((images.labels + 1) % 3, dtype="Int32"),
            "reason": np.where(flagged, "out of line", "fits"),
        }
    )


def summary_of(stage: str, rows: int, note: str, *, purified: int) -> Summary:
    every: dict[str, Any] = {"rows_in": rows, "rows_out": rows, "note": note}
    if stage == "ingest":
        none = dict.fromkeys(("test_rows", "left_out", "rejected", "probe_rows", "test_rows_in_train"), 0)
        of_rows = {"classes": CLASSES, "shape": (8, 8, 1), "source": "", "checksum": "", "test_checksum": ""}
        return IngestSummary(**every, **none, **of_rows, duplicates=1, duplicates_other_label=0)
    if stage == "purify_1":
        return Purify1Summary(**every, go_on=True)
    if stage == "purify_2":
        return Purify2Summary(**every, flagged=purified, purified=purified, changed_rms=12.0)
    if stage == "detect":
        return DetectSummary(**every, flagged=3, affected_points=2, left_out=0, measure="influence on them (0 to 1)")
    if stage == "evaluate":
        return EvaluateSummary(**every, accuracy_received=0.25, accuracy_cleaned=0.981)
    return VerifySummary(**every)


def make_run(root: Path, *, known: bool = True, switched_off: bool = False, color: bool = False) -> dict[str, Path]:
    """The folders of a finished run under `root`; returns the arguments of `report.run`."""
    rng = np.random.default_rng(0)
    n, shape = 30, (8, 8, 3 if color else 1)
    info = DatasetInfo(class_names=CLASSES, source="a <b>folder</b>", checksum="ab" * 32)
    labels = (np.arange(n) % 3).astype(np.int32)
    received = Images(np.arange(n), rng.integers(0, 256, (n, *shape), np.uint8), labels, info)
    nothing = np.zeros(n, bool)
    mislabelled, triggered = (
        (nothing, nothing) if switched_off else (np.isin(received.ids, group) for group in ((3, 4, 5), (0, 1, 2)))
    )
    noise = np.zeros((n, *shape)) if switched_off else rng.uniform(-0.1, 0.1, (n, *shape))
    purified = received.with_pixels(np.clip(received.pixels - 255 * noise, 0, 255).astype(np.uint8))
    kept = purified.select(~mislabelled)
    frames = {
        "purify_2": verdicts(received, "purify_2", np.full(n, not switched_off), "purify", rng),
        "verify": verdicts(purified, "verify", mislabelled, "drop", rng),
        "detect": verdicts(kept, "detect", triggered[~mislabelled], "drop", rng),
    }
    outputs = {
        "purify_1": purified,
        "purify_2": purified,
        "verify": kept,
        "detect": kept.select(~triggered[~mislabelled]),
    }
    for stage in ("ingest", "purify_1", "purify_2", "verify", "detect", "evaluate"):
        (root / stage).mkdir(parents=True)
        note = "switched off: nothing done" if switched_off else f"{stage} did its <work>"
        summary_of(stage, n, note, purified=0 if switched_off else n).write(root / stage)
        if stage in outputs:
            write_images(root / stage / "train.parquet", outputs[stage])
        if stage in frames:
            write_verdicts(root / stage / "verdicts.parquet", frames[stage])
    for stage in ("purify_1", "purify_2"):
        with PerturbationsWriter(root / stage / "perturbations.parquet", received.shape) as writer:
            writer.write_perturbations(received.ids, noise / 2)
    rejected = {"split": ["train"], "row": [9], "path": ["x.png"], "reason": ["not an <image>"]}
    write_rejected(root / "ingest/rejected.parquet", pd.DataFrame(rejected))
    pd.DataFrame({"id": [] if switched_off else [8, 9]}).to_csv(root / "verify/reviews.csv", index=False)
    pd.DataFrame({"id": [7], "first_id": [1], "same_label": [True]}).to_csv(root / "ingest/duplicates.csv", index=False)
    write_places(
        root / "ingest/places.parquet", pd.DataFrame({"id": range(n), "path": [f"'{i}\".png" for i in range(n)]})
    )
    write_images(root / "simulate/train.parquet", received)
    write_images(root / "detect" / "affected.parquet", received.select(np.arange(0 if switched_off else 2)))
    truth = pd.DataFrame(
        {"id": range(6), "attack": ["badnet"] * 3 + ["label_noise"] * 3, "original_label": [0, 1, 2, 1, 2, 0]}
    )
    write_truth(root / "simulate/truth.parquet", truth if known else truth[:0])
    write_json(root / "metrics.json", METRICS if known else {})
    (root / "params.yaml").write_text(yaml.safe_dump({"seed": 3, "simulate": {"attacks": [{"name": "badnet"}]}}))
    return {"data": root, "metrics": root / "metrics.json", "settings": root / "params.yaml"}


METRICS: dict[str, Any] = {
    "as_received": {"accuracy": 0.25, "poison_success": 0.95, "rows": 30},
    "purified": {"accuracy": 0.9, "poison_success": 1.0, "rows": 30},
    "verified": {"accuracy": 0.95, "poison_success": 1.0, "rows": 27},
    "cleaned": {"accuracy": 0.981, "poison_success": 0.013, "rows": 24},
    "oracle": {"accuracy": 0.99, "poison_success": 0.0, "rows": 30},
    "purify": {"flagged": 30},
    "verify": {"flagged": 3, "precision": 1.0, "recall": 1.0},
    "detect": {"flagged": 3, "precision": 0.75, "recall": 1.0},
    "reviews": 12,
}


def make_report(root: Path, **kind: bool) -> Path:
    """A run at `root` and its page, in the layout of data/."""
    arguments = make_run(root, **kind)
    (root / "report").mkdir()
    summary = report.run(report=ReportSettings(), out=root / "report", **arguments)
    assert summary.rows_in == 30
    return root / "report/index.html"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_report(tmp_path_factory.mktemp("run"))


class Reader(HTMLParser):
    """Elements with their attributes, ids and text of a page; complains about tags that don't match."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


# ---------------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------------


def test_page_has_every_section_and_a_way_to_it(page: Path) -> None:
    reader = Reader(page.read_text())
    assert [a["id"] for a in reader.all("section")] == list(SECTIONS)
    assert {a["href"] for a in reader.all("a")} >= {f"#{name}" for name in SECTIONS}


def test_page_loads_nothing_but_the_run_records(page: Path) -> None:
    reader = Reader(page.read_text())
    sources = [
        a.get("src") or a.get("href") for tag, a in reader.elements if tag in ("img", "script", "link", "iframe")
    ]
    outside = {source for source in sources if source and not source.startswith("data:")}
    assert outside == {"../runs/runs.js"}
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", page.read_text())


def test_every_image_says_what_it_shows(page: Path) -> None:
    reader = Reader(page.read_text())
    assert len(reader.all("img")) > 40
    assert all(attributes["alt"] for attributes in reader.all("img"))
    assert all("aria-label" in a or "aria-hidden" in a for a in reader.all("svg"))


def test_names_from_outside_stay_text(page: Path) -> None:
    reader = Reader(page.read_text())
    assert [a.get("src") for a in reader.all("script")] == ["../runs/runs.js", None]
    for words in ("<script>alert(1)</script>", "a <b>folder</b>", "not an <image>", "verify did its <work>"):
        assert words in reader.text


def test_every_suspect_names_the_file_behind_it(page: Path) -> None:
    titles = re.findall(r'<span title="([^"]*)">row (\d+)</span>', page.read_text(encoding="utf-8"))
    assert titles and all(html.unescape(title) == f"'{row}\".png" for title, row in titles)


def test_headline_and_figures_come_from_the_metrics(page: Path) -> None:
    text = Reader(page.read_text()).text.replace("\u00a0", " ")
    assert (
        "As received, this data trains a model that is right on 25.0 % of clean images and gives the attacker’s"
        " label to 95.0 % of triggered ones; purified and without 6 of its 30 rows, it trains one that is right on"
        " 98.1 % and gives the attacker’s label to 1.3 %."
    ) in text
    assert "99.0 % for the same rows, never poisoned" in text
    assert "asked about 2 of 30 rows" in text


def test_operating_points_are_a_table_where_they_are_known(page: Path, tmp_path: Path) -> None:
    assert "Operating points" not in page.read_text()
    arguments = make_run(tmp_path)
    point = OperatingPoint(threshold="far=0.001", trust=0.98765, refused=1234, far=0.00091, frr=0.7702)
    replace(VerifySummary.read(tmp_path / "verify"), operating_points=(point,)).write(tmp_path / "verify")
    report.run(report=ReportSettings(), out=tmp_path, **arguments)
    line = re.search(r"<tr>[^\n]*far=0\.001[^\n]*</tr>", (tmp_path / "index.html").read_text())
    assert line is not None
    assert re.findall(r">([^<>]+)<", line[0]) == ["far=0.001", "0.9877", "1,234", "0.09 %", "77.02 %"]


def test_accuracy_on_unchecked_labels_is_called_that(tmp_path: Path) -> None:
    arguments = make_run(tmp_path, known=False)
    write_json(arguments["metrics"], {key: {"accuracy": 0.25, "rows": 30} for key in ("as_received", "cleaned")})
    report.run(report=ReportSettings(), out=tmp_path, **arguments)
    text = Reader((tmp_path / "index.html").read_text()).text.replace("\u00a0", " ")
    assert "is right on 25.0 % of the test images, by the labels that came with them" in text
    assert "where one is wrong, a model that is right counts as mistaken" in text
    assert "clean images" not in text and "no step has changed" not in text


def test_truth_is_marked_only_where_it_is_known(page: Path, tmp_path: Path) -> None:
    known, unknown = page.read_text(), make_report(tmp_path, known=False).read_text()
    labels, influence = known.split('id="labels"')[1].split('id="influence"')
    assert labels.count('class="truth bad"') == 3  # the rows with a wrong label
    assert influence.count('class="truth bad"') == 3  # the rows with a trigger
    assert 'class="truth' not in unknown
    assert "no truth to measure the verdicts against" in unknown


def test_page_without_metrics_or_findings_says_so(tmp_path: Path) -> None:
    reader = Reader(make_report(tmp_path, known=False, switched_off=True).read_text())
    assert [a["id"] for a in reader.all("section")] == list(SECTIONS)
    assert "it found nothing to change" in reader.text
    assert reader.text.count("switched off: nothing done") >= 5
    assert "Nothing was measured" in reader.text
    assert reader.all("img") == []


def test_a_section_about_what_did_not_happen_is_one_line(tmp_path: Path) -> None:
    text = make_report(tmp_path, known=False, switched_off=True).read_text()
    for section in ("purification", "labels", "influence", "truth"):
        body = text.split(f'<section id="{section}"')[1].split("</section>")[0]
        assert body.count("<p") == 1 and "<svg" not in body and "<h3" not in body, section


def test_a_perturbation_that_the_simulation_planted_hangs_below_the_axis(tmp_path: Path) -> None:
    arguments = make_run(tmp_path)
    planted = pd.DataFrame({"id": [0, 1], "attack": "lsp", "original_label": [0, 1]})
    write_truth(tmp_path / "simulate/truth.parquet", planted)
    report.run(report=ReportSettings(), out=tmp_path, **arguments)
    section = (tmp_path / "index.html").read_text().split('<section id="purification"')[1].split("</section>")[0]
    assert section.count('class="bar ink"') in (1, 2)  # two rows, in one bin or in two


def test_poison_success_may_be_missing(tmp_path: Path) -> None:
    arguments = make_run(tmp_path)
    write_json(arguments["metrics"], {key: {"accuracy": 0.5, "rows": 30} for key in ("as_received", "cleaned")})
    report.run(report=ReportSettings(), out=tmp_path, **arguments)
    text = Reader((tmp_path / "index.html").read_text()).text
    assert "is right on 50.0" in text and "attacker" not in text


def test_same_run_gives_the_same_bytes(page: Path, tmp_path: Path) -> None:
    assert make_report(tmp_path).read_bytes() == page.read_bytes()


def test_page_of_color_images_stays_small(tmp_path: Path) -> None:
    assert make_report(tmp_path, color=True).stat().st_size < 1.5 * 2**20


# ---------------------------------------------------------------------------------------------------------------------
# Its parts
# ---------------------------------------------------------------------------------------------------------------------


def test_most_suspicious_rows_are_the_flagged_with_the_highest_scores() -> None:
    frame = pd.DataFrame({"id": [1, 2, 3, 4], "score": [0.9, 0.3, 0.5, 0.5], "flagged": [False, True, True, True]})
    assert most_suspicious(frame, 3).tolist() == [3, 4, 2]
    assert most_suspicious(frame, 3, seen=[3]).tolist() == [4, 2, 1]


def test_perturbation_of_nothing_is_gray_and_signs_have_their_own_color() -> None:
    gray = diverging(np.zeros((1, 1, 1)))
    darker, lighter = diverging(np.array([[[-0.01], [0.01]]]))[0]
    assert np.ptp(gray) == 0
    assert darker[2] > darker[0] and lighter[0] > lighter[2]


def test_higher_value_is_labelled_above_its_point_and_the_lower_below() -> None:
    svg = str(charts.steps_chart([charts.StepFigures(name="a b", accuracy=0.8, poison_success=0.8001)]))
    heights = dict(re.findall(r'class="value (\w+)" x="[\d.]+%" y="([\d.]+)"', svg))
    assert float(heights["orange"]) < float(heights["blue"])


def test_histogram_bars_hold_every_row() -> None:
    scores = np.array([0.0, 0.1, 0.9, 1.0])
    svg = str(charts.histogram(scores, scores > 0.5, planted=None, threshold=0.5, axis="x", bins=2))
    bars = re.findall(r'class="bar (\w+)" x="[\d.]+%" y="[\d.]+" width="[\d.]+%" height="([\d.]+)"', svg)
    assert [color for color, _ in bars] == ["blue", "orange"]
    assert len({height for _, height in bars}) == 1  # two rows each


# ---------------------------------------------------------------------------------------------------------------------
# In a browser
# ---------------------------------------------------------------------------------------------------------------------

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome found")


def browse(page: Path, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars")
    logging = ("--disable-component-update", "--enable-logging=stderr", "--v=0", f"--user-data-dir={profile}")
    command = [CHROMIUM, *quiet, *logging, *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@needs_chromium
def test_browser_fills_in_what_the_runs_took(page: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(page.parent, folder / "report")
    (folder / "runs").mkdir()
    record = {
        "seconds": 12.345,
        "peak_memory_mib": 1234,
        "device": "a <b>CPU</b>",
        "python": "3.11",
        "date": "2030-01-02T03:04:05",
    }
    (folder / "runs/runs.js").write_text(f"window.decantRuns = {json.dumps({'verify': record})};\n")
    result = browse(folder / "report/index.html", tmp_path / "profile", "--dump-dom")
    text = Reader(result.stdout).text
    assert "12.3" in text and "1,234" in text and "a <b>CPU</b>, Python 3.11" in text and "2030-01-02 03:04" in text
    assert "which is missing" in text and 'id="no-runs" hidden' in result.stdout
    assert "Uncaught" not in result.stderr


@needs_chromium
def test_browser_shows_the_page_without_run_records(page: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    result = browse(page, tmp_path / "profile", "--window-size=1000,900", f"--screenshot={picture}")
    assert "Uncaught" not in result.stderr
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert 0.01 < (pixels < 128).mean() < 0.5  # dark text on light paper: neither blank nor black
