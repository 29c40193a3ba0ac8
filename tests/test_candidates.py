"""Candidates for affected points: a planted backdoor's victims come first; the command that offers them."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from samples import ROOT, digits
from scenes import BADNET, backdoored

from decant.attacks import badnet
from decant.cli import main, suspects
from decant.data.images import Images, concat_images
from decant.data.tables import read_images, write_images
from decant.detectors.affected import read_affected
from decant.detectors.candidates import TAIL, rank, tail
from decant.detectors.settings import DetectSettings
from decant.labeltrust.scorer import Judged, TrustScorer
from decant.models import networks
from decant.models.settings import TrainSettings
from decant.models.training import architecture_of


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Images]:
    """A checkout after `decant run train`, with a backdoor in it; 60 test digits and, last, five triggered eights."""
    scene, (_, test) = backdoored(), digits()
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / "dvc.yaml").touch()
    for name in ("train", "verify", "ingest", "inputs"):
        (folder / "data" / name).mkdir(parents=True)
    write_images(folder / "data/verify/train.parquet", scene.train)
    networks.save(folder / "data/train/model.safetensors", scene.model, architecture_of(scene.train, TrainSettings()))
    victims = badnet.trigger(test, BADNET, np.random.default_rng(0)).select(np.arange(5))
    images = concat_images([test.select(np.arange(60)), victims])
    images = Images(np.arange(65), images.pixels, images.labels, images.info)
    write_images(folder / "data/ingest/test.parquet", images)
    return folder, images


def test_the_tail_counts_from_the_median_in_spreads() -> None:
    rng = np.random.default_rng(0)
    body = rng.normal(0.1, 0.02, 200)
    heavy = np.concatenate([body, np.full(TAIL, 0.5)])
    assert tail(heavy) == pytest.approx((0.5 - 0.1) / 0.02, rel=0.15)
    assert tail(body) < 3 and tail(3 * body + 1) == pytest.approx(tail(body))  # no matter where, and in what unit
    assert tail(body[: 2 * TAIL - 1]) == 0


class AnyFive:
    """A scorer that trusts every prediction but 5, and has no references of class 3."""

    def class_scores(self, pixels: np.ndarray) -> np.ndarray:
        return np.zeros((len(pixels), 10), np.float32)

    def judge(self, scores: np.ndarray, labels: np.ndarray, *, prior: str) -> Judged:
        trust = np.where(labels == 5, 0.25, 1.0).astype(np.float32)
        return Judged(np.where(labels == 3, np.nan, trust), labels, trust)


def test_a_backdoors_victims_come_first_and_a_scorers_distrust_weighs(place: tuple[Path, Images]) -> None:
    folder, images = place
    model, _ = networks.load(folder / "data/train/model.safetensors")
    train = read_images(folder / "data/verify/train.parquet")
    scorer: TrustScorer = AnyFive()  # type: ignore[assignment]
    found = rank(model, train, images.pixels, DetectSettings(), seed=0, scorer=scorer)
    assert (np.argsort(-found.concentration)[:3] >= 60).all() and (found.predicted[60:] == 5).all()
    weight = np.select([found.predicted == 5, found.predicted == 3], [0.75, 0.5], 0)
    assert np.allclose(found.suspicion, weight * found.concentration) and found.suspicion.max() > 0


def test_the_command_offers_rows_that_detect_can_read(
    place: tuple[Path, Images], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, images = place
    monkeypatch.chdir(folder)
    assert main.main(["suspects", "--count", "4"]) == 0
    assert "65 images examined" in " ".join(capsys.readouterr().out.split())
    with open("data/inputs/suspects.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and {row["predicted"] for row in rows[:3]} == {"5"}
    points = read_affected(Path("data/inputs/suspects.csv"), images)
    assert points is not None
    ids = [int(Path(row["image"]).stem.partition("-id")[2]) for row in rows]
    assert np.array_equal(points.pixels, images.pixels[ids])  # the very pixels


def test_copied_lines_lead_to_the_pictures_wherever_they_were_written(
    place: tuple[Path, Images], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, images = place
    monkeypatch.chdir(folder)
    for out in ("elsewhere/found.csv", "data/inputs/deeper/found.csv"):
        assert main.main(["suspects", "--count", "2", "--limit", "30", "--out", out]) == 0
        copied = Path("data/inputs/affected.csv")
        shutil.copy(out, copied)
        points = read_affected(copied, images)
        assert points is not None and len(points) == 2


@pytest.mark.parametrize("out", ["found", "data/found", "folder.csv"])
def test_an_out_that_is_no_file_is_refused_before_the_work(
    out: str, place: tuple[Path, Images], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place[0])
    Path("folder.csv").mkdir(exist_ok=True)
    monkeypatch.setattr(suspects, "examined", None)
    assert main.main(["suspects", "--out", out]) == 2
    error = capsys.readouterr().err
    assert f"{Path(out).with_suffix('')}.csv expected" in error and error.count("\n") == 1


def test_a_checkout_without_a_model_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert main.main(["suspects"]) == 2
    assert "`decant run train` first" in capsys.readouterr().err
