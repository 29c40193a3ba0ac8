"""export: the cleaned dataset in the layouts that other tools open, its model, and an audit of every change.

Writes train-00000-of-00001.parquet and test-00000-of-00001.parquet (Hugging Face layout), audit.csv,
model.safetensors and, with `export.image_folder`, image_folder/<split>/<class>/<id>.png.
"""

import shutil
from pathlib import Path

from decant.data.export import audit, write_huggingface, write_image_folder
from decant.data.settings import ExportSettings
from decant.data.tables import count_rows, read_verdicts
from decant.files import write_csv
from decant.summaries import ExportSummary


def run(
    *,
    export: ExportSettings,
    train: Path,
    test: Path,
    received: Path,
    places: Path,
    model: Path,
    purify_verdicts: Path,
    verify_verdicts: Path,
    detect_verdicts: Path,
    out: Path,
) -> ExportSummary:
    verdicts = [read_verdicts(path) for path in (purify_verdicts, verify_verdicts, detect_verdicts)]
    lines = audit(verdicts, received, train, places)
    write_csv(out / "audit.csv", lines, float_format="%.6g")
    shutil.copyfile(model, out / "model.safetensors")
    files = 0
    for split, table in (("train", train), ("test", test)):
        write_huggingface(out / f"{split}-00000-of-00001.parquet", table)
        if export.image_folder:
            files += write_image_folder(out / "image_folder" / split, table)
    rows_in, rows_out = count_rows(received), count_rows(train)
    changed = lines["action"].value_counts()
    dropped, relabelled = int(changed.get("drop", 0)), int(changed.get("relabel", 0))
    note = (
        f"{rows_out} of {rows_in} training rows as Hugging Face Parquet{f' and {files} PNG files' if files else ''}; "
        f"audit of {lines['id'].nunique()} rows: {dropped} dropped, {relabelled} relabelled"
    )
    return ExportSummary(
        rows_in=rows_in,
        rows_out=rows_out,
        test_rows=count_rows(test),
        dropped=dropped,
        relabelled=relabelled,
        audited=len(lines),
        files=files,
        note=note,
    )
