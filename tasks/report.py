"""report: the page that shows what was wrong, what was done about it, and what that gained."""

from pathlib import Path

from decant.files import write_text
from decant.report.page import render
from decant.report.run import read_run
from decant.report.settings import ReportSettings
from decant.summaries import ReportSummary


def run(*, report: ReportSettings, data: Path, metrics: Path, settings: Path, out: Path) -> ReportSummary:
    finished = read_run(data, metrics, settings, suspects=report.rows)
    page = render(finished)
    write_text(out / "index.html", page)
    received, kept = finished.counts["received"], finished.counts["kept"]
    return ReportSummary(rows_in=received, rows_out=kept, bytes=len(page.encode()), note="wrote index.html")
