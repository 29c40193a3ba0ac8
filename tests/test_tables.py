"""The tables on disk: what goes in comes out, what is wrong is named, and nothing is ever partly written."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import decant.data.images
from decant.data import parquet, tables
from decant.data.images import DatasetInfo, Images, RowsChecksum, concat_images, rows_checksum
from decant.data.tables import apply_verdicts
from decant.errors import TableError

INFO = DatasetInfo(class_names=("cat", "Hund", "猫"), source="a folder", checksum="c0ffee")


def images(rows: int = 7, shape: tuple[int, int, int] = (3, 5, 1), first_id: int = 100) -> Images:
    rng = np.random.default_rng(rows)
    pixels = rng.integers(0, 256, (rows, *shape), dtype=np.uint8)
    return Images(first_id + 3 * np.arange(rows), pixels, rng.integers(0, 3, rows).astype(np.int32), INFO)


def verdicts(ids: list[int], actions: list[str], labels: list[int | None] | None = None) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": np.array(ids, np.int64),
            "stage": "verify",
            "score": np.linspace(0, 1, len(ids), dtype=np.float32),
            "flagged": [action != "keep" for action in actions],
            "action": actions,
            "suggested_label": pd.array(labels or [None] * len(ids), "Int32"),
            "suggested_trust": np.array([np.nan if label is None else 0.75 for label in labels or []] or np.nan, "f4"),
            "reason": "because",
        }
    )


def assert_same(left: Images, right: Images) -> None:
    for name in ("ids", "pixels", "labels"):
        one, other = getattr(left, name), getattr(right, name)
        assert one.dtype == other.dtype, name
        np.testing.assert_array_equal(one, other, err_msg=name)
    assert left.info == right.info


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Images -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 5, 1), (8, 8, 3), (1, 1, 1)])
def test_images_come_back_as_they_were_written(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    written = images(shape=shape)
    tables.write_images(tmp_path / "t.parquet", written)
    assert_same(tables.read_images(tmp_path / "t.parquet"), written)


def test_a_table_without_rows_keeps_its_shape_and_info(tmp_path: Path) -> None:
    empty = images().select(np.zeros(7, bool))
    tables.write_images(tmp_path / "t.parquet", empty)
    found = tables.read_images(tmp_path / "t.parquet")
    assert len(found) == 0 and found.shape == (3, 5, 1) and found.info == INFO


def test_column_is_arrows_canonical_tensor_that_other_tools_know(tmp_path: Path) -> None:
    written = images()
    tables.write_images(tmp_path / "t.parquet", written)
    column = pq.read_table(tmp_path / "t.parquet").column("image")
    assert column.type == pa.fixed_shape_tensor(pa.uint8(), (3, 5, 1))
    np.testing.assert_array_equal(column.combine_chunks().to_numpy_ndarray(), written.pixels)


def test_a_large_table_streams_in_row_groups_of_a_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 32 * 2**10)
    written = images(rows=90, shape=(32, 16, 2))  # 90 KiB
    tables.write_images(tmp_path / "t.parquet", written)
    parts = list(tables.iter_images(tmp_path / "t.parquet"))
    assert [len(part) for part in parts] == [31, 31, 28]  # 32 rows are 32 KiB of pixels, but ids and labels count
    assert_same(concat_images(parts), written)


def test_written_in_parts_or_at_once_the_rows_are_the_same(tmp_path: Path) -> None:
    written = images(rows=10)
    with tables.ImagesWriter(tmp_path / "t.parquet", written.shape, INFO) as writer:
        for start in (0, 4, 8):
            writer.write_images(written.select(np.arange(start, min(start + 4, 10))))
    assert_same(tables.read_images(tmp_path / "t.parquet"), written)


def test_info_may_be_written_last(tmp_path: Path) -> None:
    with tables.ImagesWriter(tmp_path / "t.parquet", (3, 5, 1), None) as writer:
        writer.write_images(images())
        writer.write_info(INFO)
    assert tables.read_images(tmp_path / "t.parquet").info == INFO


def test_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet"):
        tables.write_images(tmp_path / name, images(rows=50))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    tables.write_images(tmp_path / "c.parquet", images(rows=50).with_labels(np.zeros(50)))
    assert (tmp_path / "c.parquet").read_bytes() != (tmp_path / "a.parquet").read_bytes()


def test_one_row_is_found_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 1000)  # several row groups
    written = images(rows=90)
    tables.write_images(tmp_path / "t.parquet", written)
    found = tables.read_image_row(tmp_path / "t.parquet", int(written.ids[80]))
    assert found is not None
    assert_same(found, written.select(np.array([80])))
    assert tables.read_image_row(tmp_path / "t.parquet", 101) is None


def test_labels_are_read_without_the_pixels(tmp_path: Path) -> None:
    written = images()
    tables.write_images(tmp_path / "t.parquet", written)
    ids, labels, info = tables.read_labels(tmp_path / "t.parquet")
    assert ids.tolist() == written.ids.tolist() and labels.tolist() == written.labels.tolist() and info == INFO
    assert tables.count_rows(tmp_path / "t.parquet") == 7


def test_checksum_depends_on_every_column_and_not_on_the_division_into_parts() -> None:
    whole = images(rows=10)
    checksum = RowsChecksum()
    for rows in (np.arange(3), np.arange(3, 10)):
        checksum.update(whole.select(rows))
    assert checksum.hexdigest() == rows_checksum(whole)
    pixels = whole.pixels.copy()
    pixels[9, 0, 0, 0] ^= 1
    changed = [
        whole.with_pixels(pixels),
        whole.with_labels((whole.labels + 1) % 3),
        images(rows=10, first_id=101),
        whole.select(np.arange(10)[::-1]),
    ]
    assert len({rows_checksum(other) for other in [whole, *changed]}) == 5


# Nothing partial ----------------------------------------------------------------------------------------------------


def test_an_exception_leaves_no_file(tmp_path: Path) -> None:
    def write_half() -> None:
        with tables.ImagesWriter(tmp_path / "t.parquet", (3, 5, 1), INFO) as writer:
            writer.write_images(images())
            assert files_in(tmp_path) != ["t.parquet"], "the name appears only at the end"
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        write_half()
    assert files_in(tmp_path) == []


def test_an_exception_leaves_the_former_file(tmp_path: Path) -> None:
    tables.write_images(tmp_path / "t.parquet", images())
    with pytest.raises(KeyboardInterrupt), tables.ImagesWriter(tmp_path / "t.parquet", (3, 5, 1), INFO) as writer:
        writer.write_images(images(rows=2))
        raise KeyboardInterrupt
    assert len(tables.read_images(tmp_path / "t.parquet")) == 7
    assert files_in(tmp_path) == ["t.parquet"]


# Errors name file, column, expected and found -----------------------------------------------------------------------


def write_wrong(path: Path, column: str, values: pa.Array | None) -> None:
    """An Images table with one column replaced, or left out."""
    tables.write_images(path, images())
    table = pq.read_table(path)
    at = table.schema.get_field_index(column)
    table = table.remove_column(at) if values is None else table.set_column(at, column, values)
    pq.write_table(table.replace_schema_metadata(INFO.to_metadata()), path)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("id", None, "column 'id': int64 expected, no such column found"),
        ("id", pa.array(["a"] * 7), "column 'id': int64 expected, string found"),
        ("label", pa.array([0.5] * 7), "column 'label': int32 expected, double found"),
        ("label", pa.array([3] * 7, pa.int32()), "column 'label': 0 to 2 expected, 3 to 3 found"),
        ("label", pa.array([-1] * 7, pa.int32()), "column 'label': 0 to 2 expected, -1 to -1 found"),
        ("image", None, "column 'image': fixed_shape_tensor of uint8 .* expected, no such column found"),
        ("image", pa.array([b"png"] * 7), "column 'image': fixed_shape_tensor of uint8 .* expected, binary found"),
    ],
)
def test_a_wrong_column_is_named(tmp_path: Path, column: str, values: pa.Array | None, message: str) -> None:
    write_wrong(tmp_path / "t.parquet", column, values)
    with pytest.raises(TableError, match=f"^{tmp_path / 't.parquet'}: {message}"):
        tables.read_images(tmp_path / "t.parquet")


def test_what_is_no_images_table_is_said(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with pytest.raises(TableError, match="no such file; run the stage that writes it"):
        tables.read_images(path)
    path.write_text("not Parquet")
    with pytest.raises(TableError, match="not a Parquet file"):
        tables.read_images(path)
    tables.write_images(path, images())
    pq.write_table(pq.read_table(path).replace_schema_metadata({}), path)
    with pytest.raises(TableError, match="schema metadata 'decant' expected, none found; run ingest on it"):
        tables.read_images(path)


def test_a_table_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables.write_images(tmp_path / "t.parquet", images())
    monkeypatch.setattr(decant.data.images, "SCHEMA_VERSION", 2)
    with pytest.raises(TableError, match="schema version 2 expected, 1 found; ingest it again"):
        tables.read_images(tmp_path / "t.parquet")


# Verdicts, Truth, Perturbations, Rejected ---------------------------------------------------------------------------


def test_verdicts_come_back_as_they_were_written(tmp_path: Path) -> None:
    written = verdicts([5, 3, 9], ["keep", "relabel", "drop"], [None, 2, None])
    tables.write_verdicts(tmp_path / "v.parquet", written)
    pd.testing.assert_frame_equal(tables.read_verdicts(tmp_path / "v.parquet"), written, check_dtype=False)


def test_a_stage_that_suggests_nothing_leaves_the_suggestion_out(tmp_path: Path) -> None:
    written = verdicts([5, 3], ["keep", "drop"])
    tables.write_verdicts(tmp_path / "v.parquet", written.drop(columns=["suggested_label", "suggested_trust"]))
    pd.testing.assert_frame_equal(tables.read_verdicts(tmp_path / "v.parquet"), written, check_dtype=False)
    found = apply_verdicts(images(rows=1, first_id=5), written[:1].drop(columns=["suggested_label"]))
    assert found.ids.tolist() == [5]


def test_bad_verdicts_are_not_written(tmp_path: Path) -> None:
    cases = {
        "'action': one of keep, drop, relabel, purify expected, 'burn' found": verdicts([1], ["burn"]),
        "'id': one verdict per row expected, id 4 found twice": verdicts([4, 4], ["keep", "drop"]),
        "'score': finite numbers expected": verdicts([1], ["keep"]).assign(score=np.nan),
        "'reason': string expected, none given": verdicts([1], ["keep"]).drop(columns="reason"),
    }
    for message, frame in cases.items():
        with pytest.raises(TableError, match=f"v.parquet: column {message}"):
            tables.write_verdicts(tmp_path / "v.parquet", frame)
    assert files_in(tmp_path) == []


def test_truth_rejected_and_perturbations_come_back(tmp_path: Path) -> None:
    truth = pd.DataFrame({"id": [1, 1], "attack": ["lsp", "badnet"], "original_label": [0, 2]})
    tables.write_truth(tmp_path / "t.parquet", truth)
    pd.testing.assert_frame_equal(tables.read_truth(tmp_path / "t.parquet"), truth, check_dtype=False)
    rejected = pd.DataFrame({"split": ["train"], "row": [3], "path": ["a/ü.png"], "reason": ["not an image"]})
    tables.write_rejected(tmp_path / "r.parquet", rejected)
    pd.testing.assert_frame_equal(tables.read_rejected(tmp_path / "r.parquet"), rejected, check_dtype=False)
    taken_off = np.linspace(-1, 1, 2 * 15).reshape(2, 3, 5, 1)
    with tables.PerturbationsWriter(tmp_path / "p.parquet", (3, 5, 1)) as writer:
        writer.write_perturbations(np.array([4, 7]), taken_off)
    ids, found = next(tables.iter_perturbations(tmp_path / "p.parquet"))
    assert ids.tolist() == [4, 7]
    np.testing.assert_allclose(found, taken_off, atol=2**-11)  # half of float16's spacing below 1


# apply_verdicts -----------------------------------------------------------------------------------------------------


def test_verdicts_drop_and_relabel_exactly_the_rows_that_they_name() -> None:
    rows = images(rows=5)  # ids 100, 103, 106, 109, 112
    found = apply_verdicts(rows, verdicts([109, 103, 100], ["drop", "relabel", "keep"], [None, 2, None]))
    assert found.ids.tolist() == [100, 103, 106, 112], "order and ids stay"
    assert found.labels.tolist() == [rows.labels[0], 2, rows.labels[2], rows.labels[4]]
    np.testing.assert_array_equal(found.pixels, rows.pixels[[0, 1, 2, 4]])


def test_a_flag_or_a_suggestion_alone_changes_nothing() -> None:
    rows = images(rows=3)
    assert_same(apply_verdicts(rows, verdicts([100, 103], ["keep", "keep"], [2, 2]).assign(flagged=True)), rows)
    assert_same(apply_verdicts(rows, verdicts([], [])), rows)


def test_applying_the_same_relabels_twice_is_applying_them_once() -> None:
    once = apply_verdicts(images(), verdicts([100, 106], ["relabel", "relabel"], [1, 0]))
    assert_same(apply_verdicts(once, verdicts([100, 106], ["relabel", "relabel"], [1, 0])), once)


def test_verdicts_on_unknown_rows_or_without_a_label_are_refused() -> None:
    with pytest.raises(TableError, match="column 'id': ids of the images expected, 101 found"):
        apply_verdicts(images(), verdicts([101], ["drop"]))
    with pytest.raises(TableError, match="a label expected to relabel id 103, none found"):
        apply_verdicts(images(), verdicts([100, 103], ["relabel", "relabel"], [1, None]))
