"""Ingest as a stage: which rows arrive, what is quarantined and why, and when it refuses and leaves nothing behind."""

import io
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from decant.data import ingest as library
from decant.data.images import pixel_digests, rows_checksum
from decant.data.ingest import pick, shares
from decant.data.settings import IngestSettings
from decant.data.sources import fingerprint
from decant.data.tables import read_images, read_places, read_rejected
from decant.errors import SourceError
from decant.paths import SOURCE_FINGERPRINT
from decant.summaries import IngestSummary
from tasks import ingest as stage

ROOT = Path(__file__).parents[1]
Ingest = Callable[..., IngestSummary]


@pytest.fixture
def ingest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ingest:
    """Runs the stage into tmp_path/out, in a working directory of its own."""
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DECANT_WORKERS", "1")

    def run(source: str | Path, seed: int = 0, **settings: Any) -> IngestSummary:
        return stage.run(seed=seed, ingest=IngestSettings(source=str(source), **settings), out=tmp_path / "out")

    return run


def noise(seed: int, height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    contents = io.BytesIO()
    Image.fromarray(pixels).save(contents, "PNG")
    return contents.getvalue()


def make_folder(folder: Path, rows: dict[str, int]) -> None:
    """Class folders with that many images each, every one different."""
    for number, (name, count) in enumerate(rows.items()):
        (folder / name).mkdir(parents=True)
        for row in range(count):
            (folder / name / f"{row:03}.png").write_bytes(png(noise(1000 * number + row)))


def make_shard(path: Path, labels: Sequence[int | None], images: list[bytes] | None = None) -> None:
    images = images or [png(noise(row)) for row in range(len(labels))]
    pq.write_table(pa.table({"image": images, "label": pa.array(labels, pa.int64())}), path)


# Which rows ---------------------------------------------------------------------------------------------------------


def test_digits_arrive_as_promised(ingest: Ingest, tmp_path: Path) -> None:
    summary = ingest("digits")
    train, test = (read_images(tmp_path / f"out/{name}.parquet") for name in ("train", "test"))
    assert (len(train), len(test), train.shape) == (2874, 720, (16, 16, 1))
    assert summary.rows_in == summary.rows_out == 2874 and summary.rejected == 0
    assert summary.checksum == train.info.checksum == rows_checksum(train)
    assert summary.test_checksum == test.info.checksum == rows_checksum(test)
    assert train.info.class_names == tuple("0123456789") and train.info.source == "digits"
    assert not set(train.ids) & set(test.ids)
    assert (tmp_path / SOURCE_FINGERPRINT).read_text() == fingerprint("digits")


def test_two_runs_give_the_same_bytes_and_another_seed_others(ingest: Ingest, tmp_path: Path) -> None:
    make_folder(tmp_path / "set", {"a": 20, "b": 10})

    def contents(seed: int) -> dict[str, bytes]:
        ingest(tmp_path / "set", seed=seed, limit=12)
        return {path.name: path.read_bytes() for path in sorted((tmp_path / "out").iterdir())}

    first = contents(0)
    assert contents(0) == first
    assert contents(1)["train.parquet"] != first["train.parquet"]


def test_a_table_is_the_same_however_its_rows_were_batched(
    ingest: Ingest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path / "set", {"a": 20, "b": 10})
    monkeypatch.setattr(library, "ROW_GROUP_BYTES", 7 * (6 * 8 * 3 + 12))  # seven rows in each group
    found = []
    for size in (4, 64):
        monkeypatch.setattr("decant.data.sources.image_folder.BATCH_ROWS", size)
        ingest(tmp_path / "set")
        found.append((tmp_path / "out/train.parquet").read_bytes())
    assert found[0] == found[1]
    assert pq.ParquetFile(tmp_path / "out/train.parquet").num_row_groups == 4  # of 24 rows


def test_without_a_test_split_a_share_of_each_class_is_set_aside(ingest: Ingest, tmp_path: Path) -> None:
    make_folder(tmp_path / "set", {"a": 40, "b": 10, "c": 2, "d": 1})
    ingest(tmp_path / "set", test_fraction=0.2)
    train, test = (read_images(tmp_path / f"out/{name}.parquet") for name in ("train", "test"))
    assert np.bincount(train.labels).tolist() == [32, 8, 1, 1], "the last row of a class is not taken"
    assert np.bincount(test.labels).tolist() == [8, 2, 1]
    assert sorted([*train.ids, *test.ids]) == list(range(53)), "an id is the row's place in the source"
    for images in (train, test):
        for row_id, pixels, label in zip(images.ids, images.pixels, images.labels, strict=True):
            start = [0, 40, 50, 52][label]
            np.testing.assert_array_equal(pixels, noise(1000 * label + row_id - start))


def test_limit_is_stratified_and_picks_before_decoding(ingest: Ingest, tmp_path: Path) -> None:
    labels = [0] * 60 + [1] * 30 + [2] * 10
    make_shard(tmp_path / "a.parquet", labels)
    summary = ingest(tmp_path / "a.parquet", limit=20, test_fraction=0.1)
    train = read_images(tmp_path / "out/train.parquet")
    assert np.bincount(train.labels).tolist() == [12, 6, 2]
    assert (summary.rows_in, summary.rows_out, summary.left_out, summary.test_rows) == (90, 20, 70, 10)
    for row_id, pixels in zip(train.ids, train.pixels, strict=True):
        np.testing.assert_array_equal(pixels, noise(row_id))


@pytest.mark.parametrize("total", [4, 7, 50, 99, 113])
def test_shares_add_up_and_are_proportional_to_within_a_row(total: int) -> None:
    sizes = np.array([1, 2, 60, 50])
    taken = shares(sizes, total)
    assert taken.sum() == total and (taken >= 1).all() and (taken <= sizes).all()
    if total >= 50:
        assert (np.abs(taken - sizes * total / sizes.sum()) < 1).all()


def test_pick_takes_random_rows_of_each_class() -> None:
    labels = np.arange(3000) % 3
    positions = pick(labels, np.array([10, 0, 500]), np.random.default_rng(0))
    assert np.bincount(labels[positions], minlength=3).tolist() == [10, 0, 500]
    assert (np.diff(positions) > 0).all()
    assert abs(positions.mean() - 1500) < 120  # four standard errors


# Bad rows -----------------------------------------------------------------------------------------------------------


def test_bad_rows_are_quarantined_with_place_and_reason(ingest: Ingest, tmp_path: Path) -> None:
    make_folder(tmp_path / "set/train", {"a": 30, "b": 30})
    make_folder(tmp_path / "set/test", {"a": 5, "b": 5, "new": 1})
    whole = (tmp_path / "set/train/a/003.png").read_bytes()
    (tmp_path / "set/train/a/003.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "set/train/b/zz.txt").write_text("notes")
    summary = ingest(tmp_path / "set", max_rejected=0.1)
    rejected = read_rejected(tmp_path / "out/rejected.parquet")
    assert rejected["split"].tolist() == ["train", "train", "test"] and rejected["row"].tolist() == [3, 60, 10]
    assert rejected["path"].str.endswith(("a/003.png", "b/zz.txt", "new/000.png")).all()
    for reason, expected in zip(rejected["reason"], ["truncated", "not an image", "label 'new'"], strict=True):
        assert expected in reason
    assert summary.rejected == 3 and summary.rows_in == summary.rows_out + 2 == 61
    train = read_images(tmp_path / "out/train.parquet")
    assert 3 not in train.ids and 4 in train.ids, "the other rows keep their ids"
    assert "quarantined: 3" in summary.note


def test_every_row_s_place_leads_to_its_picture(ingest: Ingest, tmp_path: Path) -> None:
    make_folder(tmp_path / "set", {"a": 8, "b": 9})
    (tmp_path / "set/a/003.png").write_bytes(b"no picture")
    ingest(tmp_path / "set", max_rejected=0.1)
    places = read_places(tmp_path / "out/places.parquet")
    assert len(places) == 16
    for name in ("train", "test"):
        images = read_images(tmp_path / f"out/{name}.parquet")
        for row_id, pixels in zip(images.ids, images.pixels, strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(places[row_id])), pixels)


def test_missing_labels_are_quarantined_even_where_limit_leaves_rows_out(ingest: Ingest, tmp_path: Path) -> None:
    make_shard(tmp_path / "a.parquet", [*[0, 1] * 48, None, 1, 0, -1])
    summary = ingest(tmp_path / "a.parquet", limit=10)
    rejected = read_rejected(tmp_path / "out/rejected.parquet")
    assert rejected["row"].tolist() == [96, 99] and set(rejected["reason"]) == {"label missing"}
    assert summary.rows_out == 10, "2 of 100 labels are bad, not 2 of 12"


def test_duplicates_are_reported_and_stay(ingest: Ingest, tmp_path: Path) -> None:
    images = {"train/a": [1, 2, 1, 3], "train/b": [2, 4, 5, 6], "test/a": [1, 7, 7], "test/b": [8, 8, 9]}
    for folder, seeds in images.items():
        (tmp_path / "set" / folder).mkdir(parents=True)
        for number, seed in enumerate(seeds):
            kind = ("PNG", "BMP")[number % 2]  # the same pixels in other bytes
            Image.fromarray(noise(seed)).save(tmp_path / "set" / folder / f"{number}.{kind.lower()}", kind)
    summary = ingest(tmp_path / "set")
    # ids: train 0 to 7, test 8 to 13; their pixels: 1 2 1 3 | 2 4 5 6 | 1 7 7 | 8 8 9
    found = pd.read_csv(tmp_path / "out/duplicates.csv")
    assert found.to_numpy().tolist() == [[2, 0, True], [4, 1, False], [8, 0, True], [10, 9, True], [12, 11, True]]
    assert (summary.duplicates, summary.duplicates_other_label, summary.test_rows_in_train) == (5, 1, 1)
    assert (summary.rows_out, summary.test_rows) == (8, 6), "nothing is taken out"


def test_digests_tell_images_apart_by_their_pixels_alone() -> None:
    pixels = np.stack([noise(1), noise(2), noise(1)])
    pixels[1] = noise(1)
    pixels[1, 5, 7, 2] ^= 1  # one bit of the last channel of the last pixel
    digests = pixel_digests(pixels)
    assert digests[0] == digests[2] != digests[1]
    assert digests.tolist() == pixel_digests(np.asfortranarray(pixels)).tolist(), "not by how they lie in memory"


# When it refuses ----------------------------------------------------------------------------------------------------


def test_too_many_bad_rows_are_an_error_with_the_counts(ingest: Ingest, tmp_path: Path) -> None:
    make_shard(tmp_path / "a.parquet", [0, 1] * 20, [png(noise(row)) if row % 10 else b"?" for row in range(40)])
    with pytest.raises(SourceError, match=r"0 of 40 labels and 4 of 40 images are bad.*4 x not an image.*mend them"):
        ingest(tmp_path / "a.parquet", max_rejected=0.09)
    ingest(tmp_path / "a.parquet", max_rejected=0.1)


def test_a_class_that_vanishes_is_an_error(ingest: Ingest, tmp_path: Path) -> None:
    make_folder(tmp_path / "set", {"a": 50, "b": 4, "c": 50})
    for file in (tmp_path / "set/b").iterdir():
        file.write_text("nothing")
    with pytest.raises(SourceError, match="class 'b' has no training row left, of 3 in the source"):
        ingest(tmp_path / "set")


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        ([0] * 10, {}, "1 class found in 10 rows; a classifier needs at least two"),
        ([None] * 10, {}, "0 class found in 10 rows"),
        ([0, 1, 2] * 5, {"limit": 2}, "ingest.limit=2: at least 3 expected, one row for each class"),
    ],
)
def test_labels_that_make_no_dataset_are_refused(
    ingest: Ingest, tmp_path: Path, labels: Sequence[int | None], settings: dict[str, Any], message: str
) -> None:
    make_shard(tmp_path / "a.parquet", labels)
    with pytest.raises(SourceError, match=message):
        ingest(tmp_path / "a.parquet", **settings)


@pytest.mark.parametrize("source", ["nowhere/at/all", "imagenet", "one_class", "broken"])
def test_a_refused_source_is_one_line_exit_code_2_and_nothing_written(tmp_path: Path, source: str) -> None:
    make_folder(tmp_path / "one_class", {"only": 3})
    make_folder(tmp_path / "broken", {"a": 3, "b": 3})
    for file in (tmp_path / "broken/a").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    path = source if source == "imagenet" else str(tmp_path / source)
    params["ingest"] |= {"source": path}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    before = sorted(path for path in tmp_path.rglob("*"))
    result = subprocess.run(
        [sys.executable, "-m", "tasks", "ingest", "--out", "data/ingest"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "DECANT_WORKERS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("ingest: ") and result.stderr.count("\n") == 1
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before] in ([], [tmp_path / "data"])


# Round trip ---------------------------------------------------------------------------------------------------------


def test_an_ingested_table_can_be_ingested_again(ingest: Ingest, tmp_path: Path) -> None:
    make_folder(tmp_path / "set", {"a": 20, "b": 10})
    ingest(tmp_path / "set", limit=12)
    before = [read_images(tmp_path / f"out/{name}.parquet") for name in ("train", "test")]
    (tmp_path / "out").rename(tmp_path / "again")
    (tmp_path / "out").mkdir()
    ingest(tmp_path / "again")
    for name, images in zip(("train", "test"), before, strict=True):
        found = read_images(tmp_path / f"out/{name}.parquet")
        assert found.info.checksum == images.info.checksum and found.info.class_names == ("a", "b")


def test_clean_rows_to_compare_with_are_decoded_as_the_dataset_is(tmp_path: Path, ingest: Ingest) -> None:
    make_folder(tmp_path / "source", {"cat": 6, "dog": 6})
    make_folder(tmp_path / "clean", {"cat": 2, "dog": 3})
    (tmp_path / "clean/dog/torn.png").write_bytes(b"no image")
    summary = ingest(tmp_path / "source", probe=str(tmp_path / "clean"), size=10, color="gray", max_rejected=0.5)
    probe = read_images(tmp_path / "out/probe.parquet")
    assert probe.shape == (10, 10, 1) and probe.labels.tolist() == [0, 0, 1, 1, 1]
    assert summary.probe_rows == 5 and "clean rows to compare with: 5" in summary.note
    rejected = read_rejected(tmp_path / "out/rejected.parquet")
    assert rejected["split"].tolist() == ["probe"] and rejected["path"].iloc[0].endswith("torn.png")


def test_without_them_the_table_is_there_and_empty(tmp_path: Path, ingest: Ingest) -> None:
    make_folder(tmp_path / "source", {"cat": 3, "dog": 3})
    assert ingest(tmp_path / "source").probe_rows == 0
    assert len(read_images(tmp_path / "out/probe.parquet")) == 0


def test_clean_rows_of_other_classes_are_refused(tmp_path: Path, ingest: Ingest) -> None:
    make_folder(tmp_path / "source", {"cat": 3, "dog": 3})
    make_folder(tmp_path / "clean", {"cat": 2, "fox": 2})
    with pytest.raises(
        SourceError, match=r"ingest\.probe: the classes of ingest\.source expected \(cat, dog\), cat, fox found"
    ):
        ingest(tmp_path / "source", probe=str(tmp_path / "clean"))
