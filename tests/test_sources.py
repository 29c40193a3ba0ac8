"""Each kind of source: which rows it lists, with which ids and labels, and what its errors tell the user to do."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from decant.data.images import DatasetInfo, Images
from decant.data.sources import Source, fingerprint, image_folder, open_source
from decant.data.sources.base import Split
from decant.data.sources.digits import enlarged
from decant.data.tables import write_images
from decant.errors import DecantError, SourceError


def png(value: int) -> bytes:
    contents = io.BytesIO()
    Image.new("L", (4, 4), value).save(contents, "PNG")
    return contents.getvalue()


def opened(source: str | Path, seed: int = 0) -> Source:
    return open_source(str(source), test_fraction=0.2, rng=np.random.default_rng(seed))


def items(split: Split, rows: list[int] | None = None) -> list[Any]:
    wanted = np.arange(len(split)) if rows is None else np.array(rows)
    return [item for _, batch in split.read(wanted) for item in batch]


def write_shard(path: Path, images: Any, labels: Any, names: list[str] | None = None, **columns: Any) -> None:
    """A Hugging Face shard with small row groups; `images` are bytes, or dicts for a struct column."""
    features = {"image": {"_type": "Image"}} | ({"label": {"names": names, "_type": "ClassLabel"}} if names else {})
    table = pa.table({"image": images, "label": labels, **columns})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}),
        path,
        row_group_size=3,
    )


def structs(values: range) -> list[dict[str, Any]]:
    return [{"bytes": png(value), "path": f"{value}.png"} for value in values]


def make_folder(folder: Path, files: dict[str, int]) -> None:
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(value))


# digits -------------------------------------------------------------------------------------------------------------


def test_digits_keep_an_image_and_its_copy_on_the_same_side() -> None:
    source = opened("digits")
    assert source.test is not None
    assert (len(source.train), len(source.test)) == (2874, 720)
    bases = [np.stack(items(split)[::2]) for split in (source.train, source.test)]
    originals = np.rint(enlarged(load_digits().images * 255 / 16)).astype(np.uint8)[..., None]
    assert {image.tobytes() for part in bases for image in part} == {image.tobytes() for image in originals}
    for split in (source.train, source.test):
        np.testing.assert_array_equal(split.labels[::2], split.labels[1::2])
        pixels = np.stack(items(split)).astype(float)
        apart = np.abs(pixels[::2] - pixels[1::2]).mean(), np.abs(pixels[::2] - np.roll(pixels[1::2], 1, 0)).mean()
        assert 5 < apart[0] < 0.6 * apart[1], "a copy differs from its image, but less than from another"
    assert sorted([*source.train.ids, *source.test.ids]) == list(range(3594))


def test_digits_depend_on_the_seed_alone() -> None:
    first, again, other = (np.stack(items(opened("digits", seed).train)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_enlarging_is_bilinear_like_torchs() -> None:
    import torch

    small = np.random.default_rng(0).random((5, 8, 8))
    theirs = torch.nn.functional.interpolate(torch.tensor(small)[:, None], (16, 16), mode="bilinear")[:, 0]
    np.testing.assert_allclose(enlarged(small), theirs.numpy(), atol=1e-12)


# Hugging Face Parquet -----------------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two training shards of 7 and 4 rows, 5 test rows; row i of a split shows the grey level i (test: 100 + i)."""
    names = ["cat", "dog", "eel"]
    write_shard(tmp_path / "train-00000-of-00002.parquet", structs(range(7)), [0, 1, 2, 0, 1, 2, 0], names)
    write_shard(tmp_path / "train-00001-of-00002.parquet", structs(range(7, 11)), [1, 2, 0, 1], names)
    write_shard(tmp_path / "test-00000-of-00001.parquet", structs(range(100, 105)), [0, 1, 2, 0, 1], names)
    return tmp_path


def test_shards_are_one_dataset_in_the_order_of_their_names(shards: Path) -> None:
    source = opened(shards)
    assert source.class_names == ("cat", "dog", "eel") and source.test is not None
    assert source.train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1]
    assert items(source.train) == [png(value) for value in range(11)]
    assert items(source.test) == [png(value) for value in range(100, 105)]
    assert source.train.ids.tolist() == list(range(11)) and source.test.ids.tolist() == list(range(11, 16))
    assert source.train.path_of(8) == f"{shards}/train-00001-of-00002.parquet:1"


def test_only_the_wanted_rows_are_handed_out(shards: Path) -> None:
    assert items(opened(shards).train, [2, 5, 6, 7, 10]) == [png(value) for value in (2, 5, 6, 7, 10)]


def test_row_groups_without_a_wanted_row_are_not_read(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = []
    read = pq.ParquetFile.iter_batches

    def spy(self: pq.ParquetFile, *args: Any, **options: Any) -> Any:
        groups.extend(options["row_groups"])
        return read(self, *args, **options)

    train = opened(shards).train
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    items(train, [4, 10])
    assert groups == [1, 1]  # rows 3 to 5 of the first shard, row 3 of the second


@pytest.mark.parametrize("layout", ["data/{}-0.parquet", "{}/0000.parquet", "{}.parquet"])
def test_splits_are_found_in_the_layouts_of_the_hub(tmp_path: Path, layout: str) -> None:
    write_shard(tmp_path / layout.format("train"), structs(range(4)), [0, 1, 0, 1], ["a", "b"])
    write_shard(tmp_path / layout.format("validation"), structs(range(2)), [0, 1], ["a", "b"])
    source = opened(tmp_path)
    assert len(source.train) == 4 and source.test is not None and len(source.test) == 2
    assert source.note == "validation is the test split"
    write_shard(tmp_path / layout.format("test"), structs(range(3)), [0, 1, 0], ["a", "b"])
    source = opened(tmp_path)
    assert source.test is not None and len(source.test) == 3 and source.note == "the validation split is not used"


def test_a_single_file_is_all_training_rows(tmp_path: Path) -> None:
    write_shard(tmp_path / "test-0.parquet", structs(range(4)), [0, 1, 0, 1], ["a", "b"])
    source = opened(tmp_path / "test-0.parquet")
    assert len(source.train) == 4 and source.test is None


def test_images_may_be_plain_binary_or_missing(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.parquet", [png(1), None, png(3)], [0, 1, 0], ["a", "b"])
    assert items(opened(tmp_path / "a.parquet").train) == [png(1), None, png(3)]
    broken = [{"bytes": png(1), "path": "x"}, {"bytes": None, "path": "y"}, None]
    write_shard(tmp_path / "b.parquet", broken, [0, 1, 0], ["a", "b"])
    assert items(opened(tmp_path / "b.parquet").train) == [png(1), None, None]


def test_labels_that_are_missing_or_out_of_range_are_faults_of_their_rows(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.parquet", structs(range(6)), [0, None, 2, -1, 1, -7], ["a", "b"])
    train = opened(tmp_path / "a.parquet").train
    assert train.labels.tolist() == [0, -1, -1, -1, 1, -1]
    assert train.faults == {
        1: "label missing",
        2: "label 2: 0 to 1 expected",
        3: "label missing",
        5: "label -7: 0 to 1 expected",
    }


def test_text_labels_are_their_own_names(tmp_path: Path) -> None:
    write_shard(tmp_path / "train.parquet", structs(range(5)), ["zebra", "ant", None, "", "ant"])
    write_shard(tmp_path / "test.parquet", structs(range(2)), ["ant", "whale"])
    source = opened(tmp_path)
    assert source.class_names == ("ant", "zebra") and source.test is not None
    assert source.train.labels.tolist() == [1, 0, -1, -1, 0] and set(source.train.faults.values()) == {"label missing"}
    assert source.test.labels.tolist() == [0, -1]
    assert source.test.faults == {1: "label 'whale': one of the training classes expected"}


def test_numbers_without_names_are_the_classes_that_occur(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.parquet", structs(range(4)), pa.array([7, 3, -1, 7], pa.int16()))
    source = opened(tmp_path / "a.parquet")
    assert source.class_names == ("3", "7") and source.train.labels.tolist() == [1, 0, -1, 1]


def test_an_id_column_is_kept_only_if_its_values_differ_over_all_splits(tmp_path: Path) -> None:
    write_shard(tmp_path / "train.parquet", structs(range(2)), [0, 1], ["a", "b"], id=[50, 40])
    write_shard(tmp_path / "test.parquet", structs(range(2)), [0, 1], ["a", "b"], id=[30, 60])
    source = opened(tmp_path)
    assert source.test is not None
    assert source.train.ids.tolist() == [50, 40] and source.test.ids.tolist() == [30, 60]
    write_shard(tmp_path / "test.parquet", structs(range(2)), [0, 1], ["a", "b"], id=[40, 60])
    source = opened(tmp_path)
    assert source.test is not None
    assert source.train.ids.tolist() == [0, 1] and source.test.ids.tolist() == [2, 3]


def test_damaged_or_unsuitable_parquet_says_what_to_do(tmp_path: Path) -> None:
    def message(source: Path) -> str:
        with pytest.raises(DecantError) as error:
            items(opened(source).train)
        assert "\n" not in str(error.value)
        return str(error.value)

    (tmp_path / "a.parquet").write_bytes(b"PAR1 but no more")
    assert "not a Parquet file" in message(tmp_path / "a.parquet")
    pq.write_table(pa.table({"picture": [b""], "label": [0]}), tmp_path / "b.parquet")
    assert "column 'image' or 'img' expected, picture, label found" in message(tmp_path / "b.parquet")
    pq.write_table(pa.table({"image": ["cat.png"], "label": [0]}), tmp_path / "c.parquet")
    assert "column 'image': binary, or a struct with 'bytes', expected, string found" in message(tmp_path / "c.parquet")
    pq.write_table(pa.table({"image": [b""], "label": [0.5]}), tmp_path / "d.parquet")
    assert "column 'label': whole numbers or text expected, double found" in message(tmp_path / "d.parquet")
    write_shard(tmp_path / "e" / "train.parquet", structs(range(2)), [0, 1], ["a", "b"])
    write_shard(tmp_path / "e" / "extra.parquet", structs(range(2)), [0, 1], ["a", "b"])
    assert "its name says no split, others do" in message(tmp_path / "e")
    write_shard(tmp_path / "f" / "train.parquet", structs(range(2)), [0, 1], ["a", "b"])
    write_shard(tmp_path / "f" / "test.parquet", structs(range(2)), [0, 1], ["b", "a"])
    assert "different class names" in message(tmp_path / "f")
    write_shard(tmp_path / "g" / "test.parquet", structs(range(2)), [0, 1], ["a", "b"])
    write_shard(tmp_path / "g" / "test-1.parquet", structs(range(2)), [0, 1], ["a", "b"])
    assert "no training split" in message(tmp_path / "g")


@pytest.mark.parametrize("kind", ["huggingface", "decant"])
def test_damage_inside_the_data_is_met_while_reading(tmp_path: Path, kind: str) -> None:
    if kind == "huggingface":
        write_shard(tmp_path / "a.parquet", [np.random.default_rng(0).bytes(200_000)], [0], ["a", "b"])
    else:
        decant_table(tmp_path / "a.parquet", list(range(4000)))
    contents = bytearray((tmp_path / "a.parquet").read_bytes())
    contents[4:20_000] = bytes(19_996)
    (tmp_path / "a.parquet").write_bytes(contents)
    with pytest.raises(SourceError, match=r"can't be read as Parquet .*; fetch it again or take it out"):
        items(opened(tmp_path / "a.parquet").train)


# Folders of images --------------------------------------------------------------------------------------------------


def test_a_folder_per_class_with_a_test_split(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train/dog/1.png": 1, "train/cat/deep/2.png": 2, "train/cat/a.png": 3})
    make_folder(tmp_path, {"test/cat/4.png": 4, "test/wolf/5.png": 5, "val/cat/6.png": 6, "notes.txt": 0})
    source = opened(tmp_path)
    assert source.class_names == ("cat", "dog") and source.test is not None
    assert [Path(item).relative_to(tmp_path / "train").as_posix() for item in items(source.train)] == [
        "cat/a.png",
        "cat/deep/2.png",
        "dog/1.png",
    ]
    assert source.train.labels.tolist() == [0, 0, 1]
    assert source.test.labels.tolist() == [0, -1]
    assert source.test.faults == {1: "label 'wolf': no training folder of that name"}
    assert source.test.ids.tolist() == [3, 4]
    assert source.note == "test/ is the test split, val/ is not used"


def test_plain_class_folders_have_no_test_split(tmp_path: Path) -> None:
    make_folder(tmp_path, {"cat/1.png": 1, "test/2.png": 2})
    source = opened(tmp_path)
    assert source.class_names == ("cat", "test") and source.test is None


def test_litter_is_passed_over_and_odd_files_are_rows(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a/1.png": 1, "a/.DS_Store": 0, "a/Thumbs.db": 0, "a/.hidden/2.png": 2, ".git/3.png": 3})
    make_folder(tmp_path, {"b/ spaces & ümläute [x].png": 4, "__MACOSX/b/._5.png": 5, "b/list.txt": 0})
    (tmp_path / "b" / "empty.png").touch()
    os.symlink(tmp_path / "a" / "1.png", tmp_path / "b" / "link.png")
    os.symlink(tmp_path / "nowhere", tmp_path / "b" / "lost.png")
    os.symlink(tmp_path / "b", tmp_path / "b" / "loop")
    source = opened(tmp_path)
    assert source.class_names == ("a", "b")
    names = [Path(item).name for item in items(source.train)]
    assert names == ["1.png", " spaces & ümläute [x].png", "empty.png", "link.png", "list.txt", "lost.png"]


def test_a_name_that_is_no_utf8_can_be_reported(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a/1.png": 1, "b/2.png": 2})
    (tmp_path / "a" / "1.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/a/\xff.png"))
    train = opened(tmp_path).train
    assert train.path_of(0).endswith(r"a/\xff.png")
    assert os.path.exists(items(train)[0])


def test_a_linked_class_folder_is_followed(tmp_path: Path) -> None:
    make_folder(tmp_path, {"elsewhere/1.png": 1, "set/b/2.png": 2})
    (tmp_path / "set" / "a").symlink_to(tmp_path / "elsewhere")
    assert opened(tmp_path / "set").class_names == ("a", "b")


# Decant's own tables ------------------------------------------------------------------------------------------------


def decant_table(path: Path, ids: list[int], names: tuple[str, ...] = ("no", "yes")) -> Images:
    pixels = np.random.default_rng(ids[0]).integers(0, 256, (len(ids), 4, 4, 3), dtype=np.uint8)
    info = DatasetInfo(class_names=names, source="somewhere", checksum="")
    images = Images(np.array(ids), pixels, (np.arange(len(ids)) % 2).astype(np.int32), info)
    write_images(path, images)
    return images


def test_decant_tables_keep_ids_labels_names_and_pixels(tmp_path: Path) -> None:
    train = decant_table(tmp_path / "train.parquet", [9, 4, 17])
    test = decant_table(tmp_path / "test.parquet", [3, 5])
    pq.write_table(pa.table({"x": [1]}), tmp_path / "verdicts.parquet")  # beside them, as in data/
    source = opened(tmp_path)
    assert source.class_names == ("no", "yes") and source.test is not None
    for split, images in ((source.train, train), (source.test, test)):
        np.testing.assert_array_equal(split.ids, images.ids)
        np.testing.assert_array_equal(split.labels, images.labels)
        np.testing.assert_array_equal(np.stack(items(split)), images.pixels)
    assert opened(tmp_path / "train.parquet").test is None
    np.testing.assert_array_equal(items(source.train, [2])[0], train.pixels[2])


def test_decant_tables_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    decant_table(tmp_path / "train.parquet", [1, 2])
    decant_table(tmp_path / "test.parquet", [2, 3])
    with pytest.raises(SourceError, match="ids of their own expected"):
        opened(tmp_path)
    decant_table(tmp_path / "test.parquet", [3, 4], names=("yes", "no"))
    with pytest.raises(SourceError, match="the same class names expected"):
        opened(tmp_path)


# Errors -------------------------------------------------------------------------------------------------------------


def test_what_can_not_be_a_source_gets_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    make_folder(tmp_path, {"flat/1.png": 1, "empty_class/a/1.png": 1})
    for folder in ("empty", "empty_class/b", "no_images/a"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "no_images" / "a" / "list.txt").write_text("cat")
    (tmp_path / "set.zip").write_bytes(b"PK")
    expected = {
        "imagenet": "unknown source and no such folder; known: digits, torchvision:",
        "torchvision:SVHN": "one of MNIST, FashionMNIST, CIFAR10, CIFAR100 expected",
        str(tmp_path / "nowhere"): "no such file or folder",
        str(tmp_path / "empty"): "no class folders; give each class a folder of its own",
        str(tmp_path / "flat"): "no class folders",
        str(tmp_path / "no_images"): "no image files",
        str(tmp_path / "empty_class"): "b: a class folder without images; fill it or remove it",
        str(tmp_path / "set.zip"): "not a Parquet file; name a .parquet file or a folder of images",
    }
    for source, message in expected.items():
        with pytest.raises(SourceError, match=re.escape(message)) as error:
            opened(source)
        assert "\n" not in str(error.value)


# Fingerprint --------------------------------------------------------------------------------------------------------


def test_fingerprint_changes_with_the_files_and_only_with_them(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a/1.png": 1, "b/2.png": 2})
    seen = [fingerprint(str(tmp_path))]
    assert fingerprint(str(tmp_path)) == seen[0]
    (tmp_path / "b" / "2.png").write_bytes(b"other contents")
    seen.append(fingerprint(str(tmp_path)))
    os.utime(tmp_path / "a" / "1.png", ns=(1, 1))
    seen.append(fingerprint(str(tmp_path)))
    (tmp_path / "a" / "1.png").rename(tmp_path / "a" / "3.png")
    seen.append(fingerprint(str(tmp_path)))
    (tmp_path / "b" / "lost.png").symlink_to("nowhere")
    seen.append(fingerprint(str(tmp_path)))
    seen.append(fingerprint(str(tmp_path / "nowhere")))
    assert len(set(seen)) == len(seen)
    assert fingerprint("digits") == fingerprint("digits") != fingerprint("torchvision:MNIST")


def test_fingerprint_needs_no_heavy_library() -> None:
    heavy = ("torch", "torchvision", "scipy", "sklearn", "pyarrow", "pandas", "PIL")
    program = (
        "import sys, decant.data.sources as s; s.fingerprint('digits'); "
        f"sys.exit(any(m in sys.modules for m in {heavy}))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_torchvision_set_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MNIST's own file format, with three training rows and one test row; nothing is downloaded."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for stem, rows in (("train", slice(0, 3)), ("t10k", slice(3, 4))):
        count = len(pixels[rows])
        shape = b"".join(n.to_bytes(4, "big") for n in (count, 28, 28))
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + shape + pixels[rows].tobytes())
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + shape[:4] + bytes(range(count)))
    monkeypatch.setenv("DECANT_CACHE", str(tmp_path))
    source = opened("torchvision:FashionMNIST")
    assert source.class_names[0] == "T-shirt/top" and source.test is not None
    np.testing.assert_array_equal(np.stack(items(source.train))[..., 0], pixels[:3])
    np.testing.assert_array_equal(items(source.test)[0][..., 0], pixels[3])
    assert source.train.labels.tolist() == [0, 1, 2] and source.test.ids.tolist() == [3]


def test_walk_lists_every_file_once_in_the_order_of_names(tmp_path: Path) -> None:
    make_folder(tmp_path, {"b.png": 1, "a/2.png": 1, "a/1.png": 1, "c/3.png": 1})
    os.mkfifo(tmp_path / "a" / "pipe.png")  # opening it would wait for ever
    assert [Path(path).relative_to(tmp_path).as_posix() for path in image_folder.walk(tmp_path)] == [
        "a/1.png",
        "a/2.png",
        "b.png",
        "c/3.png",
    ]
