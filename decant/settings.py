"""Every parameter of the pipeline: its meaning, unit, default and range. `params.yaml` is this file filled in.

One frozen dataclass per params block. They live together, apart from the code that they steer, because a command line
must be able to say "unknown parameter" without waiting four seconds for torch: nothing heavy is imported here.

`load` is strict: an unknown key, a value of the wrong kind or out of range raises SettingsError, which names the key
and what is allowed. What must not make a stage stale (device, workers) is no parameter; see `decant.runtime`.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from decant.errors import SettingsError

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Range:
    """Closed range of a number; None is open-ended."""

    low: float | None = None
    high: float | None = None

    def holds(self, value: float) -> bool:
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"at least {self.low:g}" if self.low is not None else f"at most {self.high:g}"
        return f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Form:
    """What a text must look like."""

    pattern: str
    example: str

    def holds(self, value: str) -> bool:
        return re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return f"such as {self.example}"


Fraction = Annotated[float, Range(0, 1)]
Promise = Annotated[str, Form(r"(frr|far)=0?\.\d+", "frr=0.02 or far=0.001")]
Count = Annotated[int, Range(0)]
Positive = Annotated[int, Range(1)]


@dataclass(frozen=True, kw_only=True)
class IngestSettings:
    source: str = "digits"
    """`digits`, `torchvision:MNIST|FashionMNIST|CIFAR10|CIFAR100`, or a path: Hugging Face image Parquet (a file or a
    folder of shards), an ImageFolder directory, a Decant Images Parquet."""
    limit: Positive | None = None
    """Keep a class-stratified random subset of that many training rows."""
    size: Annotated[int, Range(8, 1024)] | None = None
    """Side in pixels to which every image is resized; null: the commonest size of the source."""
    color: Literal["auto", "gray", "rgb"] = "auto"
    """`auto`: gray when every sampled image is gray, else rgb."""
    probe: str | None = None
    """Labelled images that you know to be clean (any source of the same classes); `purify.when: auto` compares the data
    with them. Never trained on."""
    test_fraction: Annotated[float, Range(0.01, 0.9)] = 0.2
    """Share of each class set aside as test rows when the source has no test split."""
    max_rejected: Fraction = 0.05
    """Share of rows that may be quarantined before ingest refuses the source."""


@dataclass(frozen=True, kw_only=True)
class SimulateSettings:
    attacks: tuple[Mapping[str, Any], ...] = ()
    """Planted in this order; each a mapping with `name` (a file of decant/attacks) and that attack's parameters."""
    affected_points: Count = 5
    """Triggered test images handed to `detect` with the label that a user saw predicted."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The one training recipe, used by baseline, train, unlearn and evaluate alike."""

    network: Literal["small_cnn", "resnet18", "resnet50", "densenet121", "mobilenet_v2"] = "small_cnn"
    """Layers and sizes: `decant.models.networks`. All but the first are meant for a GPU."""
    epochs: Positive = 10
    batch_size: Positive = 64
    lr: Annotated[float, Range(1e-6, 10)] = 0.05
    """Peak learning rate of the OneCycle schedule."""
    momentum: Fraction = 0.9
    weight_decay: Annotated[float, Range(0, 1)] = 5e-4
    augment: Literal["none", "shift", "shift_flip"] = "none"
    """`shift`: random translation by up to 1/8 of the side, reflected; `shift_flip`: and a horizontal flip."""


@dataclass(frozen=True, kw_only=True)
class PurifySettings:
    """D-VAE's two-stage purification: what both stages share."""

    when: Literal["auto", "always", "never"] = "auto"
    """`auto`: where there is evidence that the data carries a shortcut (`decant.purify.gate`); where there is none, no
    pixel is touched."""
    rows: Literal["all", "flagged"] = "all"
    """Which rows get purified pixels; `flagged`: only those that seem to carry a perturbation, the others keep theirs
    exactly."""
    preset: Literal["auto", "paper", "small", "standard", "px64", "px224"] = "auto"
    """Network and length of training (`decant.purify.dvae`). `auto` goes by image size and number of rows; `paper` is the
    official code."""
    objective: Literal["code", "eq14"] = "code"
    """`code`: the official code's loss; `eq14`: the paper's Eq. 14 to the letter."""
    sample: Positive = 100_000
    """Rows, drawn at random, that D-VAE is fitted on; all rows are purified."""


@dataclass(frozen=True, kw_only=True)
class PurifyStageSettings:
    """One stage of it."""

    kld_limit: Annotated[float, Range(0)] = 0.25
    """Nats per pixel: the rate below which the KL term has no gradient. 0.25 in stage 1 and 0.75 in stage 2 are the
    paper's 1.0 and 3.0 per latent position at half resolution."""
    epochs: Positive | None = None
    """null: the preset's."""


@dataclass(frozen=True, kw_only=True)
class SecondPurifyStageSettings(PurifyStageSettings):
    """What the first has cleaned, with three times the rate."""

    kld_limit: Annotated[float, Range(0)] = 0.75
    """As in stage 1."""


@dataclass(frozen=True, kw_only=True)
class VerifySettings:
    """LabelTrust."""

    enabled: bool = True
    mode: Literal["plus", "paper"] = "plus"
    """`plus`: the score of a row is the probability that its label is wrong, and rows with trusted labels are learnt
    from, too; `paper`: the method as published, whose score is no probability."""
    references: Annotated[int, Range(2, 100)] = 10
    """Trusted rows per class before the first round (x in the paper)."""
    rounds: Count = 2
    """Rounds of the refeed loop after the first scoring."""
    reviews: Count = 5
    """Rows per class that the expert is shown in each round."""
    choice: Literal["active", "random"] = "active"
    """Which rows those are: where an answer helps most, or any (to compare with)."""
    budget: Positive | None = None
    """Most rows that the expert is shown in all, references included; null: no limit but references, rounds and
    reviews. A round that can't afford a row per class is the end."""
    stop_below: Fraction = 0.0
    """No further round once the trusts lead to expect less than this share of the rows to be judged wrongly, which is
    the most that any review could gain. 0: all rounds. `plus` only."""
    steps: Positive = 200
    """Training steps of one Siamese network; those that also learn from rows whose label they agree with take up to
    3 times as many, from 12,000 rows on. Mode `paper` was measured with 1,000."""
    passes: Count = 1
    """`plus`: self-training passes before the first round: rows whose label the network agrees with join its
    training rows; two networks, each judges the other's. Every round ends with one more. 0: no self-training at all."""
    classifier: bool = False
    """`plus`: a small classifier trained on the given labels, in five folds, is heard, too: for photographs, and
    where people confuse classes. Not for data with triggers, which it learns: these need the pictures' own opinion."""
    pretrain: Count = 0
    """Steps of contrastive learning on all rows without their labels, from which every network starts; 0: none."""
    threshold: Fraction | Promise = 0.5
    """A row is kept when its trust is at least this; or the rate that the threshold must keep to, by what the trusts
    lead to expect: `frr=0.02` (of the right labels refused) or `far=0.001` (of the wrong labels accepted)."""
    action: Literal["drop", "relabel"] = "drop"
    """What happens to a row whose label is refuted; `relabel` only above `relabel_above`, else it is dropped."""
    relabel_above: Fraction = 0.95
    """Trust in the suggested class from which on a row is relabelled."""
    embeddings: str | None = None
    """Features of the rows to compare instead of their pixels: a Parquet file (columns `id` and `embedding`, a list of
    numbers) or .npy (row i belongs to id i). Then no scorer is written, as other pictures have no embedding here."""
    expert: Literal["oracle", "file", "person"] = "oracle"
    """`oracle` answers from the simulation's truth (without a simulation it calls every label right); `file` answers
    from data/inputs/decisions.csv; `person` too, and `decant run` brings up the review page and waits for the rows that
    have no answer there yet."""

    def __post_init__(self) -> None:
        if self.mode == "paper" and isinstance(self.threshold, str):
            raise SettingsError("verify.threshold: the score of mode paper is no probability and promises no rate")
        if self.mode == "paper" and self.stop_below:
            raise SettingsError("verify.stop_below: the score of mode paper is no probability; 0 expected")
        if self.classifier and (self.mode == "paper" or self.embeddings):
            raise SettingsError("verify.classifier: needs mode plus and pixels (verify.embeddings: null)")


@dataclass(frozen=True, kw_only=True)
class DetectSettings:
    """Influence of training rows on affected points."""

    enabled: bool = True
    detector: Literal[
        "joint",
        "renormalised",
        "delta",
        "ekfac_threshold",
        "trak",
        "activation_clustering",
        "spectral_signature",
        "frequency",
    ] = "joint"
    """A file of decant/detectors; docs/methods/influence.md compares them."""
    damping: Annotated[float, Range(0, 100)] = 0.1
    """EK-FAC damping, as a share of each layer's mean eigenvalue."""
    same_label: bool = True
    """Only rows that carry the affected point's predicted label can be flagged."""
    copies: Positive = 50
    """`delta`: transformed copies per affected point (n in the paper)."""
    tolerance: Count = 2
    """`delta`: copies that may disagree (n_tol in the paper)."""
    tau: float = 0.0
    """`delta`: a copy votes a row down when its influence changes by less than this (τ in the paper)."""
    varied: Literal["both", "labels", "images"] = "both"
    """`delta`: what a copy changes about its point; all but `both` are the paper's ablations."""


@dataclass(frozen=True, kw_only=True)
class UnlearnSettings:
    """Taking the flagged rows' effect out of the model."""

    enabled: bool = True
    method: Literal["auto", "retrain", "finetune", "ssd", "scrub", "badt", "potion"] = "retrain"
    """A file of decant/unlearning; `auto`: a cheap one where a check accepts its result, else `retrain`, and a repair
    where retraining can't help because poison was found only in part."""
    margin: Fraction = 0.005
    """`auto`: accuracy on held-out kept rows that a cheap method may cost."""


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    bins: Annotated[int, Range(4, 200)] = 40
    """Bins of the score histograms."""


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    image_folder: bool = False
    """Also write the cleaned dataset as an ImageFolder of PNG files."""


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    rows: Annotated[int, Range(1, 200)] = 18
    """Suspicious rows shown per stage."""


BLOCKS: Mapping[str, type] = {
    "ingest": IngestSettings,
    "simulate": SimulateSettings,
    "train": TrainSettings,
    "purify": PurifySettings,
    "purify_1": PurifyStageSettings,
    "purify_2": SecondPurifyStageSettings,
    "verify": VerifySettings,
    "detect": DetectSettings,
    "unlearn": UnlearnSettings,
    "evaluate": EvaluateSettings,
    "export": ExportSettings,
    "report": ReportSettings,
}


def load_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """`{"seed": int, block name: its settings}` from the contents of params.yaml; every block is checked."""
    for key in params:
        if key != "seed" and key not in BLOCKS:
            raise SettingsError(f"params.yaml: unknown block {key!r}; known: seed, {', '.join(BLOCKS)}")
    seed = _checked(params.get("seed", 0), Annotated[int, Range(0)], "seed")
    return {"seed": seed} | {name: load(kind, params.get(name) or {}, name) for name, kind in BLOCKS.items()}


def load(kind: type[Settings], values: Mapping[str, Any], block: str) -> Settings:
    """The settings `kind` from a mapping; `block` is how error messages call it.

    Raises: SettingsError for an unknown key, a wrong kind or a value out of range.
    """
    if not isinstance(values, Mapping):
        raise SettingsError(f"{block}: a block of parameters expected, {values!r} found")
    kinds = typing.get_type_hints(kind, include_extras=True)
    for key in values:
        if key not in kinds:
            raise SettingsError(f"{block}.{key}: unknown parameter; known: {', '.join(kinds)}")
    return kind(**{key: _checked(value, kinds[key], f"{block}.{key}") for key, value in values.items()})


def describe(kind: type) -> dict[str, str]:
    """Parameter name to what is allowed, for help texts."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: _allowed(hints[field.name]) for field in dataclasses.fields(kind)}


def _checked(value: Any, kind: Any, key: str) -> Any:
    """`value` as `kind`, where `kind` is an annotation of a settings dataclass."""
    for option in _options(kind):
        base, limits = _split(option)
        if base is type(None) and value is None:
            return None
        if typing.get_origin(base) is Literal and value in typing.get_args(base):
            return value
        if typing.get_origin(base) is tuple and isinstance(value, list | tuple):
            item = typing.get_args(base)[0]
            return tuple(_checked(v, item, f"{key}[{i}]") for i, v in enumerate(value))
        if typing.get_origin(base) is not None and isinstance(value, Mapping):
            return dict(value)
        if _is_a(value, base) and (limits is None or limits.holds(value)):
            return base(value)
    raise SettingsError(f"{key}: {_allowed(kind)} expected, {value!r} found")


def _is_a(value: Any, base: Any) -> bool:
    if base is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if base is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return base in (bool, str) and isinstance(value, base)


def _options(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _split(kind: Any) -> tuple[Any, Range | Form | None]:
    if typing.get_origin(kind) is Annotated:
        base, limits = typing.get_args(kind)
        return base, limits
    return kind, None


def _allowed(kind: Any) -> str:
    words = []
    for option in _options(kind):
        base, limits = _split(option)
        if base is type(None):
            words.append("null")
        elif typing.get_origin(base) is Literal:
            words.append("one of " + ", ".join(map(str, typing.get_args(base))))
        elif typing.get_origin(base) is tuple:
            words.append("a list")
        else:
            name = {"int": "whole number", "float": "number", "str": "text", "bool": "true or false"}
            word = name.get(getattr(base, "__name__", ""), "a block of parameters")
            words.append(f"{word} ({limits})" if limits else word)
    return " or ".join(words)
