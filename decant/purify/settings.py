"""Parameters of the stages `purify_1` and `purify_2`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from decant.errors import SettingsError
from decant.registry import CLEANING_METHODS
from decant.settings import Block, Positive


@dataclass(frozen=True, kw_only=True)
class PurifySettings(Block):
    """What both stages of purification share."""

    method: Annotated[str, Field(json_schema_extra={"enum": CLEANING_METHODS.names()})] = "dvae"
    """A file of decant/purify/methods that cleans images, at its own defaults; docs/purification-methods.md compares
    them. All but `dvae` purify every row in one stage and, of the parameters below, use `when` alone."""
    when: Literal["auto", "always", "never"] = "auto"
    """`auto`: purify where a test finds a sign that the data carries a shortcut, else leave every pixel as it is
    (`decant.purify.gate`). Methods other than `dvae` need clean rows (`ingest.probe`) for that test, and are always
    applied without them."""
    rows: Literal["all", "flagged"] = "all"
    """Which rows get purified pixels; `flagged`: only those that seem to carry a perturbation, the others keep theirs
    exactly."""
    preset: Literal["auto", "paper", "small", "standard", "px64", "px224"] = "auto"
    """Network and length of training (`decant.purify.dvae`). `auto` goes by image size and number of rows; `paper` is
    the official code."""
    objective: Literal["code", "eq14"] = "code"
    """`code`: the official code's loss; `eq14`: the paper's Eq. 14 to the letter."""
    sample: Positive = 100_000
    """Rows, drawn at random, that D-VAE is fitted on; all rows are purified."""

    def __post_init__(self) -> None:
        if self.method not in CLEANING_METHODS.names():
            known = ", ".join(CLEANING_METHODS.names())
            raise SettingsError(f"purify.method: a method that cleans images expected ({known}), {self.method!r} found")
        if self.method != "dvae" and self.rows == "flagged":
            raise SettingsError(f"purify.rows: only purify.method: dvae flags rows; all expected with {self.method}")


@dataclass(frozen=True, kw_only=True)
class PurifyStageSettings(Block):
    """Parameters of D-VAE's first stage."""

    kld_limit: Annotated[float, Field(ge=0)] = 0.25
    """Rate limit in nats per pixel, below which the KL term has no gradient. 0.25 in stage 1 and 0.75 in stage 2 are
    the paper's 1.0 and 3.0 per latent position at half resolution."""
    epochs: Positive | None = None
    """Passes over the sample; null: the preset's."""


@dataclass(frozen=True, kw_only=True)
class SecondPurifyStageSettings(PurifyStageSettings):
    """Parameters of D-VAE's second stage, which is fitted on the first one's output with three times the rate."""

    kld_limit: Annotated[float, Field(ge=0)] = 0.75
    """As in stage 1."""
    epochs: Positive | None = None
    """Passes over the sample; null: the preset's."""
