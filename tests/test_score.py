"""`decant score`: labels from every place, faults named."""

import argparse
import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples import ROOT, digits
from scorers import UNKNOWN_CLASS, scorer_of_nine

from decant.cli import main
from decant.data.images import NO_LABEL
from decant.data.inputs import open_pictures
from decant.data.tables import write_images

ROWS = 24


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scorer.safetensors; pictures/NN.png (the first test digits, and a broken file); table.parquet: the same rows."""
    folder = tmp_path_factory.mktemp("score")
    scorer_of_nine().save(folder / "scorer.safetensors")
    _, test = digits()
    (folder / "pictures").mkdir()
    for row in range(ROWS):
        Image.fromarray(test.pixels[row, ..., 0]).save(folder / f"pictures/{row:02}.png")
    (folder / "pictures/broken.png").write_bytes(b"no picture")
    write_images(folder / "table.parquet", test.select(np.arange(ROWS)))
    return folder


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def score(*words: str) -> list[dict[str, str]]:
    assert main.main(["score", *words, "--scorer", "scorer.safetensors", "--out", "out.csv"]) == 0
    with open("out.csv", newline="") as file:
        return list(csv.DictReader(file))


def predictions(name: str, lines: list[str]) -> str:
    Path(name).write_text("\n".join(lines) + "\n")
    return name


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


def test_right_predictions_are_trusted_and_wrong_ones_doubtful(capsys: pytest.CaptureFixture[str]) -> None:
    _, test = digits()
    right = test.labels[:ROWS]
    wrong = np.arange(ROWS) % 4 == 0
    given = np.where(wrong, (right + 1) % 9, right)
    lines = ["file,label", *(f"{row:02}.png,{label}" for row, label in enumerate(given)), "broken.png,3"]
    found = score("pictures", "--labels", predictions("p.csv", lines))
    assert [row["file"] for row in found] == [f"{row:02}.png" for row in range(ROWS)] + ["broken.png"]
    judged = [row for row, label in zip(found, right, strict=False) if label != UNKNOWN_CLASS]
    is_wrong = wrong[right != UNKNOWN_CLASS]
    doubtful = np.array([row["status"] == "doubtful" for row in judged])
    assert doubtful[is_wrong].all() and doubtful[~is_wrong].mean() < 0.25
    suggested = np.array([row["suggested"] for row in judged])
    assert (suggested == right[right != UNKNOWN_CLASS].astype(str)).mean() > 0.85
    unknown = [row for row, label in zip(found, given, strict=False) if label == UNKNOWN_CLASS]
    assert unknown and all(row["trust"] == "" for row in unknown)
    assert {row["status"] for row in unknown} == {"not judged: no references of 9"}
    assert found[-1]["status"].startswith("not read: not an image") and found[-1]["suggested"] == ""
    out = capsys.readouterr().out
    assert f"doubtful {doubtful.sum()} " in " ".join(out.split())
    assert "not read" in out and "out.csv" in out


def test_the_scores_are_those_of_the_library() -> None:
    _, test = digits()
    found = score("table.parquet", "--prior", "uniform")
    trust = scorer_of_nine().score(test.pixels[:ROWS], test.labels[:ROWS], prior="uniform")
    written = [float(row["trust"] or "nan") for row in found]
    np.testing.assert_allclose(written, trust, atol=1e-5)
    assert [int(row["id"]) for row in found] == test.ids[:ROWS].tolist()
    assert [row["label"] for row in found] == test.labels[:ROWS].astype(str).tolist()


def test_class_folders_are_labels_and_pictures_are_resized_and_turned_gray(tmp_path: Path) -> None:
    _, test = digits()
    for row in range(ROWS):
        folder = tmp_path / f"set/{test.labels[row]}"
        folder.mkdir(parents=True, exist_ok=True)
        large = Image.fromarray(test.pixels[row, ..., 0]).resize((40, 40), Image.Resampling.BILINEAR)
        large.convert("RGB").save(folder / f"{row:02}.png")
    found = score(str(tmp_path / "set"))
    by_name = {row["file"].split("/")[1]: row for row in found}
    plain = {row["file"]: row for row in score("pictures", "--labels", predictions("p.csv", plain_lines()))}
    near = [
        abs(float(by_name[name]["trust"]) - float(plain[name]["trust"])) for name in by_name if plain[name]["trust"]
    ]
    assert len(found) == ROWS and np.median(near) < 0.1


@pytest.mark.parametrize(
    ("class_names", "labels"),
    [
        (("1", "7", "9"), [NO_LABEL, 0, NO_LABEL, NO_LABEL]),  # a folder called 2 is not the third class
        (("cat", "dog", "cow"), [0, 1, 2, NO_LABEL]),  # of no name in common: numbers
        ((" x", "2"), [NO_LABEL, NO_LABEL, 1, 0]),
    ],
)
def test_folders_are_classes_by_name_or_where_none_is_by_number(
    tmp_path: Path, class_names: tuple[str, ...], labels: list[int]
) -> None:
    for name in ("0", "1", "2", " x"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "picture.png")
    found = open_pictures(str(tmp_path), class_names)
    by_folder = {found.file_of(row).split("/")[0]: int(found.labels[row]) for row in range(4)}
    assert [by_folder[name] for name in ("0", "1", "2", " x")] == labels


def test_folders_of_other_classes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "picture.png")
    assert main.main(["score", str(tmp_path), "--scorer", "scorer.safetensors"]) == 2
    assert "no picture has a label; 'cat' is not a class of the scorer" in capsys.readouterr().err


def plain_lines() -> list[str]:
    _, test = digits()
    return ["file,label", *(f"{row:02}.png,{test.labels[row]}" for row in range(ROWS))]


def test_predictions_by_id_name_the_rows_they_are_for() -> None:
    found = score("table.parquet", "--labels", predictions("p.csv", ["id,label", "3,5", "7,0"]))
    assert [row["id"] for row in found if row["trust"]] == ["3", "7"]
    assert {row["status"] for row in found if not row["trust"]} == {"no label in p.csv"}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file,label", "00.png,ten"], "p.csv, line 2: one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 expected, 'ten' found"),
        (["file,label", "00.png,1", "99.png,1"], "p.csv, line 3: file of a picture expected, '99.png' found"),
        (["file,label", "00.png,1", "00.png,2"], "p.csv, line 3: file 00.png has another label further up"),
        (["name,label", "00.png,1"], "p.csv: columns id,label or file,label expected, name, label found"),
        (["file,label"], "p.csv: the label of one picture at least expected, none found"),
    ],
)
def test_wrong_predictions_get_one_line_and_exit_code_2(
    lines: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["score", "pictures", "--labels", predictions("p.csv", lines), "--scorer", "scorer.safetensors"]
    assert main.main(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["score", "pictures"], "pictures: no picture has a label; give predictions with --labels"),
        (["score", "nowhere/"], "nowhere/: no such file or folder"),
        (["score", "pictures", "--prior", "2"], "--prior: batch, uniform or the share of right labels"),
        (["score", "pictures", "--threshold", "7"], "--threshold: a trust from 0 to 1 expected, 7 found"),
        (["score", "pictures", "--scorer", "table.parquet"], "table.parquet: not a safetensors file"),
        (["serve", "--host", "0.0.0.0"], "other machines could reach it; set a token first"),
        (["serve", "--prior", "batch"], "requests are judged one by one"),
    ],
)
def test_wrong_words_get_one_line_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DECANT_TOKEN", raising=False)
    scorer = [] if "--scorer" in words else ["--scorer", "scorer.safetensors"]
    assert main.main([*words, *scorer]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_table_that_is_no_utf_8_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("latin.csv").write_bytes("file,label\n00.png,K\u00e4se\n".encode("latin-1"))
    words = ["score", "pictures", "--labels", "latin.csv", "--scorer", "scorer.safetensors"]
    assert main.main(words) == 2
    assert "latin.csv: not a CSV in UTF-8" in capsys.readouterr().err


def test_a_folder_is_no_file_to_write_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["score", "pictures", "--out", "pictures", "--scorer", "scorer.safetensors"]) == 2
    assert "a file expected, this is a folder" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["70000", "-1", "http"])
def test_a_port_is_a_number_up_to_65535(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("serve", "review"):
        with pytest.raises(SystemExit, match="2"):
            main.main([command, f"--port={port}"])
        assert f"a number from 0 to 65535 expected, '{port}' found" in capsys.readouterr().err


def test_the_docs_name_every_option() -> None:
    page = (ROOT / "docs/command-line.md").read_text()
    for name in ("score", "serve"):
        section = page.split(f"## decant {name}\n")[1].split("\n## ")[0]
        parser = argparse.ArgumentParser(add_help=False)
        main.COMMANDS[name].add_arguments(parser)
        for option in parser.format_usage().split():
            if option.startswith("[--"):
                assert f"`{option[1:]}" in section, (name, option)


def test_the_first_example_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, test = digits()
    scorer_of_nine().save(tmp_path / "data/verify/scorer.safetensors")
    monkeypatch.chdir(tmp_path)
    found = {"pixels": test.pixels[:5], "labels": test.labels[:5]}
    exec((ROOT / "docs/score.md").read_text().split("```python\n")[1].split("```")[0], found)
    np.testing.assert_allclose(found["trust"], scorer_of_nine().score(test.pixels[:5], test.labels[:5]))
    assert found["suggested"].shape == found["certainty"].shape == (5,)
