"""Embeddings that a user brings along: what is refused, and that labels are judged by them alone."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples import digits

from decant.data.tables import write_images, write_truth
from decant.errors import TableError
from decant.labeltrust.experts import Oracle
from decant.labeltrust.settings import VerifySettings
from decant.labeltrust.verify import verify
from decant.models.embeddings import read_embeddings
from tasks.verify import run

IDS = np.array([5, 0, 3])
VALUES = np.random.default_rng(0).normal(3, 2, (6, 4)).astype(np.float32)  # row i belongs to id i


def parquet(path: Path, ids: object, embedding: object, kind: pa.DataType | None = None) -> Path:
    column = embedding if isinstance(embedding, pa.Array) else pa.array(embedding, kind)
    pq.write_table(pa.table({"id": ids, "embedding": column}), path)
    return path


def test_both_formats_give_the_rows_asked_for_standardised(tmp_path: Path) -> None:
    np.save(tmp_path / "e.npy", VALUES)
    wanted = (VALUES[IDS] - VALUES[IDS].mean(0)) / VALUES[IDS].std(0)
    np.testing.assert_allclose(read_embeddings(tmp_path / "e.npy", IDS), wanted, atol=1e-5)
    shuffled = np.array([4, 3, 0, 5])
    flat = pa.array(VALUES[shuffled].ravel())
    for column in (pa.FixedSizeListArray.from_arrays(flat, 4), pa.array(VALUES[shuffled].tolist())):
        found = read_embeddings(parquet(tmp_path / "e.parquet", shuffled, column), IDS)
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_feature_that_never_varies_says_nothing(tmp_path: Path) -> None:
    many = np.full((1000, 1), 0.1)  # whose mean isn't 0.1, for rounding
    np.save(tmp_path / "e.npy", np.c_[np.arange(1000), many])
    assert (read_embeddings(tmp_path / "e.npy", np.arange(1000))[:, 1] == 0).all()


@pytest.mark.parametrize(
    ("ids", "embedding", "kind", "message"),
    [
        ([0, 3], [[1.0], [2.0]], None, "column 'id': every row expected, 1 missing, such as id 5"),
        ([0, 3, 5, 5], [[1.0]] * 4, None, "column 'id': each id once expected, 1 repeated"),
        ([0, 3, 5], [[1.0], [2.0, 3.0], [1.0]], None, "column 'embedding': one length expected, 1 to 2 found"),
        (
            [0, 3, 5],
            [[1.0], [2.0], [float("nan")]],
            None,
            "'embedding': finite numbers expected, id 5 has",
        ),
        ([0, 3, 5], [[1.0], [2.0], [None]], pa.list_(pa.float32()), "finite numbers expected, id 5 has others"),
        ([0, 3, 5], [[1.0], [2.0], None], None, "rows without gaps expected"),
        (["a", "b", "c"], [[1.0]] * 3, None, "column 'id': whole numbers expected, string found"),
        ([0, 3, 5], ["x", "y", "z"], None, "column 'embedding': lists of numbers expected, string found"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    tmp_path: Path, ids: list[object], embedding: list[object], kind: pa.DataType | None, message: str
) -> None:
    with pytest.raises(TableError) as error:
        read_embeddings(parquet(tmp_path / "mine.parquet", ids, embedding, kind), IDS)
    assert "mine.parquet" in str(error.value)
    assert message in str(error.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    for name, content in (("text.parquet", b"id,embedding"), ("text.npy", b"1 2 3")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TableError, match=f"{name}: not a"):
            read_embeddings(tmp_path / name, IDS)
    np.save(tmp_path / "objects.npy", np.array([[{}]], object), allow_pickle=True)
    np.save(tmp_path / "short.npy", VALUES[:5])
    np.save(tmp_path / "flat.npy", VALUES[:, 0])
    for name, message in (("objects", "not a .npy file of numbers"), ("short", "up to id 5; 5 rows found")):
        with pytest.raises(TableError, match=message):
            read_embeddings(tmp_path / f"{name}.npy", IDS)
    with pytest.raises(TableError, match=r"\(rows, d\) expected, float32 \(6,\) found"):
        read_embeddings(tmp_path / "flat.npy", IDS)
    with pytest.raises(TableError, match="no such file"):
        read_embeddings(tmp_path / "absent.npy", IDS)
    pq.write_table(pa.table({"id": [1]}), tmp_path / "half.parquet")
    with pytest.raises(TableError, match=r"column 'embedding' .* expected, id found"):
        read_embeddings(tmp_path / "half.parquet", IDS)


def test_labels_are_judged_by_the_embeddings_and_not_by_the_pixels() -> None:
    """The pixels are another row's; only the embedding knows the class."""
    train, _ = digits()
    images = train.select(np.arange(600))
    right, wrong = images.labels, np.arange(600) % 10 == 0
    given = images.with_labels(np.where(wrong, (right + 1 + np.arange(600) // 10 % 9) % 10, right))
    given = given.with_pixels(np.roll(images.pixels, 1, axis=0))
    features = images.pixels[:, ::2, ::2].reshape(600, -1).astype(np.float32)
    features = (features - features.mean(0)) / (features.std(0) + 1e-6)
    truth = pd.DataFrame({"id": images.ids[wrong], "attack": "planted", "original_label": right[wrong]})
    settings = VerifySettings(steps=60, rounds=0)
    outcome = verify(given, Oracle(given, truth), settings, seed=0, embeddings=features)
    flagged = outcome.verdicts["flagged"].to_numpy()
    assert flagged[wrong].mean() > 0.8
    assert flagged[~wrong].mean() < 0.05
    assert outcome.scorer is None


def test_the_stage_writes_no_scorer_and_says_so(tmp_path: Path) -> None:
    images = digits()[0].select(np.arange(200))
    (tmp_path / "out").mkdir()
    write_images(tmp_path / "images.parquet", images)
    write_truth(tmp_path / "truth.parquet", pd.DataFrame({"id": [0], "attack": ["x"], "original_label": [1]}))
    np.save(tmp_path / "e.npy", images.pixels.reshape(200, -1))
    settings = VerifySettings(steps=2, rounds=1, embeddings=str(tmp_path / "e.npy"))
    paths = {name: tmp_path / f"{name}.parquet" for name in ("images", "truth")}
    paths |= {"received": paths["images"], "decisions": tmp_path / "none.csv", "out": tmp_path / "out"}
    summary = run(seed=0, verify=settings, **paths)
    assert "no scorer for other pictures" in summary.note
    assert not (tmp_path / "out/scorer.safetensors").exists()
    assert summary.rows_in == 200
