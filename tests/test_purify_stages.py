"""purify_1 and purify_2 as the pipeline runs them: when they purify, which rows, and that the rest stay as they are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import digits

from decant.attacks.base import load_attacks
from decant.data.images import Images
from decant.data.tables import iter_perturbations, read_images, read_verdicts, write_images
from decant.errors import SettingsError, TableError
from decant.purify.methods import base as methods
from decant.purify.settings import PurifySettings, PurifyStageSettings
from decant.settings import load_params
from decant.summaries import Purify1Summary, Purify2Summary
from tasks import purify_1, purify_2

LSP = {"name": "lsp", "strength": 32, "patch": 4}


def some_digits(rows: int = 800) -> Images:
    return digits()[0].select(np.arange(rows))


def run(
    root: Path, received: Images, probe: Images | None = None, epochs: int = 4, **settings: Any
) -> tuple[Images, Purify2Summary]:
    """(what purify_2 puts out, its summary)."""
    write_images(root / "received.parquet", received)
    write_images(root / "probe.parquet", received.select(np.arange(0)) if probe is None else probe)
    purify = PurifySettings(**settings)
    # With 2 epochs the reconstruction is so poor that the residual is the image itself: clean data looks suspicious.
    first = PurifyStageSettings(kld_limit=0.25, epochs=epochs)
    second = PurifyStageSettings(kld_limit=0.75, epochs=epochs)
    common = {"seed": 0, "purify": purify}
    first_summary = purify_1.run(
        **common, purify_1=first, images=root / "received.parquet", probe=root / "probe.parquet", out=root / "one"
    )
    first_summary.write(root / "one")
    summary = purify_2.run(
        **common, purify_2=second, first_dir=root / "one", received=root / "received.parquet", out=root / "two"
    )
    assert not (root / "two/purified.parquet").exists()
    return read_images(root / "two/train.parquet"), summary


def poisoned(images: Images, **settings: Any) -> tuple[Images, np.ndarray]:
    (attack,) = load_attacks([{**LSP, **settings}])
    result = attack.poison(images, np.random.default_rng(0), np.zeros(len(images), bool))
    return result.images, result.rows


@pytest.mark.slow
def test_auto_leaves_clean_data_exactly_as_it_is(tmp_path: Path) -> None:
    train, _ = digits()
    out, summary = run(tmp_path, train)
    assert (out.pixels == train.pixels).all() and (out.labels == train.labels).all() and (out.ids == train.ids).all()
    assert summary.purified == summary.flagged == 0
    assert summary.note.startswith("No sign of planted noise (") and summary.note.endswith(
        "; from 4 on there would be): your pixels are untouched"
    )
    assert "subtracted" not in Purify1Summary.read(tmp_path / "one").note  # nothing was, in the end
    verdicts = read_verdicts(tmp_path / "two/verdicts.parquet")
    assert not verdicts["flagged"].any() and set(verdicts["reason"]) == {"unchanged"}


@pytest.mark.slow
def test_auto_purifies_what_carries_a_shortcut(tmp_path: Path) -> None:
    received, _ = poisoned(some_digits(600))
    out, summary = run(tmp_path, received)
    assert summary.purified == len(received) and (out.pixels != received.pixels).any((1, 2, 3)).all()


@pytest.mark.slow
def test_flagged_rows_alone_are_purified_when_asked(tmp_path: Path) -> None:
    received, rows = poisoned(some_digits(600), strength=48, rate=0.5)
    out, summary = run(tmp_path, received, rows="flagged")
    changed = (out.pixels != received.pixels).any((1, 2, 3))
    flagged = read_verdicts(tmp_path / "two/verdicts.parquet")["flagged"].to_numpy()
    assert (changed == flagged).all() and summary.purified == flagged.sum()
    actions = read_verdicts(tmp_path / "two/verdicts.parquet")["action"].to_numpy()
    assert (actions[changed] == "purify").all() and (actions[~changed] == "keep").all()  # the audit lists what changed
    assert 0 < flagged.mean() < 1 and rows[flagged].mean() > 0.8


@pytest.mark.parametrize("spoilt", [False, True])
def test_clean_rows_to_compare_with_decide_before_anything_is_fitted(tmp_path: Path, spoilt: bool) -> None:
    train = some_digits()
    received = poisoned(train, strength=48)[0] if spoilt else train
    out, summary = run(tmp_path, received, probe=digits()[1].select(np.arange(200)), epochs=1)
    assert bool(summary.purified) is spoilt
    assert ((out.pixels == received.pixels).all()) is np.bool_(not spoilt)
    if not spoilt:
        assert summary.note.startswith("as purify_1 decided")
        assert Purify1Summary.read(tmp_path / "one").note.startswith("No sign of planted noise (accuracy ")


def test_never_passes_through(tmp_path: Path) -> None:
    received, _ = poisoned(some_digits())
    out, summary = run(tmp_path, received, when="never")
    assert (out.pixels == received.pixels).all() and summary.purified == 0


def test_always_asks_nobody(tmp_path: Path) -> None:
    few = some_digits(300)
    out, summary = run(tmp_path, few, when="always", epochs=1)
    assert summary.purified == 300 and (out.pixels != few.pixels).any()


@pytest.mark.parametrize("when", ["auto", "always"])
def test_another_method_yields_exactly_its_own_pixels(tmp_path: Path, when: str) -> None:
    received, _ = poisoned(some_digits(), strength=48)
    out, summary = run(tmp_path, received, method="jpeg", when=when)
    expected = methods.clean("jpeg", received, seed=0).pixels
    assert np.array_equal(out.pixels, expected) and not np.array_equal(expected, received.pixels)
    assert np.array_equal(out.ids, received.ids) and np.array_equal(out.labels, received.labels)
    assert np.array_equal(read_images(tmp_path / "one/train.parquet").pixels, received.pixels)
    assert summary.purified == 800 and summary.flagged == 0 and summary.note.endswith(", by jpeg")
    verdicts = read_verdicts(tmp_path / "two/verdicts.parquet")
    changed = (out.pixels != received.pixels).any((1, 2, 3))
    assert (verdicts["action"] == np.where(changed, "purify", "keep")).all() and not verdicts["flagged"].any()
    perturbations = np.concatenate(
        [part for _, part in iter_perturbations(tmp_path / "two/perturbations.parquet")]
    )  # what the report shows
    assert np.abs(255.0 * perturbations - (received.pixels.astype(int) - expected)).max() < 0.1


@pytest.mark.parametrize("spoilt", [False, True])
def test_clean_rows_to_compare_with_decide_about_another_method_too(tmp_path: Path, spoilt: bool) -> None:
    train = some_digits()
    received = poisoned(train, strength=48)[0] if spoilt else train
    out, summary = run(tmp_path, received, probe=digits()[1].select(np.arange(200)), method="bdr")
    assert bool(summary.purified) is spoilt and np.array_equal(out.pixels, received.pixels) is not spoilt


def test_methods_that_clean_no_images_are_refused_in_one_line() -> None:
    with pytest.raises(SettingsError) as error:
        load_params({"purify": {"method": "ueraser"}})
    assert str(error.value) == (
        "purify.method: a method that cleans images expected "
        "(avatar, bdr, dvae, gray, jpeg, lfu, none), 'ueraser' found"
    )
    with pytest.raises(SettingsError, match=r"^purify.rows: only purify.method: dvae flags rows; all expected"):
        load_params({"purify": {"method": "jpeg", "rows": "flagged"}})
    assert {name for name in methods.names() if methods.cleans(name)} == {
        "avatar", "bdr", "dvae", "gray", "jpeg", "lfu", "none",
    }  # fmt: skip


def test_the_first_stages_rows_must_be_those_received(tmp_path: Path) -> None:
    few = some_digits(300)
    run(tmp_path, few, method="none")
    write_images(tmp_path / "received.parquet", few.select(np.arange(300)[::-1]))
    with pytest.raises(TableError, match=r"one/train.parquet: the rows of .* others found; run purify_1 again$"):
        purify_2.run(
            seed=0, purify=PurifySettings(), purify_2=PurifyStageSettings(), first_dir=tmp_path / "one",
            received=tmp_path / "received.parquet", out=tmp_path / "two",
        )  # fmt: skip
