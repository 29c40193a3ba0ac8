"""Parameters of the stages `ingest` and `export`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from decant.settings import Block, Fraction, Positive


@dataclass(frozen=True, kw_only=True)
class IngestSettings(Block):
    """Which dataset is read, and how."""

    source: str = "digits"
    """`digits`, `torchvision:MNIST|FashionMNIST|CIFAR10|CIFAR100`, or a path: Hugging Face image Parquet (a file or a
    folder of shards), a folder of class folders, or a Decant table."""
    limit: Positive | None = None
    """Keep a class-stratified random subset of that many training rows."""
    size: Annotated[int, Field(ge=8, le=1024)] | None = None
    """Side in pixels to which every image is resized; null: the commonest size of the source."""
    color: Literal["auto", "gray", "rgb"] = "auto"
    """`auto`: gray when every sampled image is gray, else rgb."""
    probe: str | None = None
    """Labelled images that you know to be clean (any source of the same classes); `purify.when: auto` compares the data
    with them. Never trained on."""
    test_fraction: Annotated[float, Field(ge=0.01, le=0.9)] = 0.2
    """Share of each class set aside as test rows when the source has no test split."""
    max_rejected: Fraction = 0.05
    """Share of rows that may be quarantined before ingest refuses the source."""


@dataclass(frozen=True, kw_only=True)
class ExportSettings(Block):
    """In which layouts the cleaned dataset is written."""

    image_folder: bool = False
    """Also write the cleaned dataset as an ImageFolder of PNG files."""
