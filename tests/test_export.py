"""The exported dataset, opened with its real readers, and the audit of what was changed."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from decant.data.export import audit, folder_names, write_huggingface, write_image_folder
from decant.data.images import DatasetInfo, Images
from decant.data.settings import ExportSettings, IngestSettings
from decant.data.tables import read_images, write_images, write_places, write_verdicts
from decant.summaries import ExportSummary
from tasks import export as stage
from tasks import ingest

NAMES = ("T-shirt/top", "Ankle boot", "猫")


def table(path: Path, rows: int, channels: int, first_id: int = 0) -> Images:
    """Rows whose ids are neither dense nor sorted."""
    rng = np.random.default_rng(rows + channels)
    ids = first_id + 5 * rng.permutation(rows).astype(np.int64)
    pixels = rng.integers(0, 256, (rows, 9, 7, channels), dtype=np.uint8)
    info = DatasetInfo(class_names=NAMES, source="somewhere", checksum="")
    images = Images(ids, pixels, (np.arange(rows) % 3).astype(np.int32), info)
    write_images(path, images)
    return images


def verdicts(path: Path, stage_name: str, lines: list[tuple[int, bool, str, int | None]]) -> Path:
    frame = pd.DataFrame(lines, columns=["id", "flagged", "action", "suggested_label"])
    frame["suggested_label"] = frame["suggested_label"].astype("Int32")
    write_verdicts(path, frame.assign(stage=stage_name, score=0.25, reason=f"{stage_name} says so"))
    return path


# The layouts, opened with their real readers ------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_datasets_opens_the_parquet_with_images_and_class_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    images = table(tmp_path / "train.parquet", 2500, channels)
    assert write_huggingface(tmp_path / "train-00000-of-00001.parquet", tmp_path / "train.parquet") == 2500
    found = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "train-*.parquet"), cache_dir=str(tmp_path / "cache"), split="train"
    )
    assert isinstance(found.features["image"], datasets.Image)
    assert found.features["label"].names == list(NAMES)
    assert found["id"][:] == images.ids.tolist() and found["label"][:] == images.labels.tolist()
    for row in (0, 1, 2499):
        np.testing.assert_array_equal(np.asarray(found[row]["image"]).reshape(9, 7, channels), images.pixels[row])


def test_torchvision_opens_the_folder_with_the_same_images_and_classes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    images = table(tmp_path / "train.parquet", 30, 3)
    assert write_image_folder(tmp_path / "folder", tmp_path / "train.parquet") == 30
    found = datasets.ImageFolder(tmp_path / "folder")
    assert sorted(found.classes) == sorted(["T-shirt_top", "Ankle boot", "猫"]) and len(found) == 30
    row_of = {row_id: row for row, row_id in enumerate(images.ids)}
    for (path, label), (image, _) in zip(found.samples, found, strict=True):
        row = row_of[int(Path(path).stem)]
        np.testing.assert_array_equal(np.asarray(image), images.pixels[row])
        assert found.classes[label] == folder_names(NAMES)[images.labels[row]]


def test_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    table(tmp_path / "train.parquet", 1200, 1)
    for name in ("a", "b"):
        write_huggingface(tmp_path / name, tmp_path / "train.parquet")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_class_names_become_safe_and_different_folder_names() -> None:
    hostile = (
        "a/b",
        "a:b",
        "..",
        "../../etc",
        "",
        ".git",
        "NUL",
        "Cat",
        "cat",
        "x" * 300,
        "end.",
        "猫 ü-1",
        "tab\tnew\n",
    )
    found = folder_names(hostile)
    assert len({name.casefold() for name in found}) == len(hostile)
    for name in found:
        assert name and Path(name).name == name and not name.startswith(".") and not name.endswith((".", " "))
        assert not set(name) & set('/\\:*?"<>|\t\n') and len(name) <= 110
    assert found[11] == "猫 ü-1" and found[7] == "Cat", "what is harmless stays as it is"


@pytest.mark.parametrize("layout", ["parquet", "folder"])
def test_an_exported_dataset_can_be_ingested_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    monkeypatch.chdir(tmp_path)
    tables = {"train": table(tmp_path / "train.parquet", 60, 1), "test": table(tmp_path / "test.parquet", 12, 1, 1001)}
    (tmp_path / "again").mkdir()
    for name in tables:
        if layout == "parquet":
            write_huggingface(tmp_path / f"set/{name}-00000-of-00001.parquet", tmp_path / f"{name}.parquet")
        else:
            write_image_folder(tmp_path / "set" / name, tmp_path / f"{name}.parquet")
    ingest.run(seed=0, ingest=IngestSettings(source=str(tmp_path / "set")), out=tmp_path / "again")
    for name, images in tables.items():
        found = read_images(tmp_path / f"again/{name}.parquet")
        assert set(found.info.class_names) == set(NAMES if layout == "parquet" else folder_names(NAMES))
        if layout == "parquet":
            for column in ("ids", "pixels", "labels"):
                np.testing.assert_array_equal(getattr(found, column), getattr(images, column))
        else:
            assert content(found, found.info.class_names) == content(images, tuple(folder_names(NAMES)))


def content(images: Images, names: tuple[str, ...]) -> set[tuple[bytes, str]]:
    """What a dataset holds when ids and order don't count."""
    return {(pixels.tobytes(), names[label]) for pixels, label in zip(images.pixels, images.labels, strict=True)}


# The stage ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def history(tmp_path: Path) -> dict[str, Path]:
    """Six rows received (ids 0 to 5, labels 0 1 2 0 1 2): 1 was relabelled to 2, 4 dropped, 3 only flagged."""
    info = DatasetInfo(class_names=NAMES, source="somewhere", checksum="")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 1), dtype=np.uint8)
    received = Images(np.arange(6), pixels, np.array([0, 1, 2, 0, 1, 2], np.int32), info)
    cleaned = received.with_labels(np.array([0, 2, 2, 0, 1, 2])).select(np.array([0, 1, 2, 3, 5]))
    for name, images in (("received", received), ("train", cleaned), ("test", received)):
        write_images(tmp_path / f"{name}.parquet", images)
    write_places(tmp_path / "places", pd.DataFrame({"id": range(6), "path": [f"boots/{row}.jpg" for row in range(6)]}))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return {
        "places": tmp_path / "places",
        "received": tmp_path / "received.parquet",
        "train": tmp_path / "train.parquet",
        "test": tmp_path / "test.parquet",
        "model": tmp_path / "model.safetensors",
        "purify_verdicts": verdicts(tmp_path / "p", "purify_2", [(3, True, "keep", None), (4, True, "keep", None)]),
        "verify_verdicts": verdicts(tmp_path / "v", "verify", [(0, False, "keep", 1), (1, True, "relabel", 2)]),
        "detect_verdicts": verdicts(tmp_path / "d", "detect", [(4, True, "drop", None), (5, False, "keep", None)]),
    }


def test_audit_has_a_line_for_each_flag_and_change_and_no_other(history: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    summary = stage.run(export=ExportSettings(), **history, out=tmp_path / "out")
    lines = pd.read_csv(tmp_path / "out/audit.csv", keep_default_na=False)
    assert lines.columns.tolist() == [
        "id", "stage", "action", "label_received", "label_now", "score", "reason", "path",
    ]  # fmt: skip
    assert lines.to_numpy().tolist() == [
        [1, "verify", "relabel", "Ankle boot", "猫", 0.25, "verify says so", "boots/1.jpg"],
        [3, "purify_2", "keep", "T-shirt/top", "T-shirt/top", 0.25, "purify_2 says so", "boots/3.jpg"],
        [4, "purify_2", "keep", "Ankle boot", "", 0.25, "purify_2 says so", "boots/4.jpg"],
        [4, "detect", "drop", "Ankle boot", "", 0.25, "detect says so", "boots/4.jpg"],
    ]
    assert (summary.rows_in, summary.rows_out, summary.dropped, summary.relabelled) == (6, 5, 1, 1)
    assert "5 of 6 training rows" in summary.note


def test_audit_without_a_single_verdict_is_an_empty_table(tmp_path: Path, history: dict[str, Path]) -> None:
    silent = pd.DataFrame(
        {"id": [0], "stage": "verify", "score": 0.0, "flagged": False, "action": "keep", "reason": ""}
    )
    lines = audit([silent, silent], history["received"], history["train"], history["places"])
    assert len(lines) == 0 and "label_received" in lines


def test_stage_writes_the_whole_dataset_and_folders_only_when_asked(history: dict[str, Path], tmp_path: Path) -> None:
    for image_folder in (False, True):
        out = tmp_path / f"out_{image_folder}"
        out.mkdir()
        summary = stage.run(export=ExportSettings(image_folder=image_folder), **history, out=out)
        assert (out / "model.safetensors").read_bytes() == b"weights"
        names = {path.name for path in out.iterdir()} - {"image_folder"}
        expected = {"train-00000-of-00001.parquet", "test-00000-of-00001.parquet", "audit.csv", "model.safetensors"}
        assert names == expected
        assert (out / "image_folder").exists() == image_folder
        assert summary.files == (5 + 6 if image_folder else 0)
        summary.write(out)
        assert ExportSummary.read(out) == summary
    file = tmp_path / "out_True/image_folder/train/猫/1.png"
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(file.read_bytes()))), read_images(history["train"]).pixels[1, ..., 0]
    )
