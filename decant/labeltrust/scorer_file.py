"""The file of a `decant.labeltrust.scorer.TrustScorer`: safetensors with a JSON header, both checked when it is read.

Tensors: `networks.<i>.<weight>`, `references.pixels` (n, h, w, c) uint8, `references.labels` and `references.ids`
(n,) int64. The metadata's one key `decant` holds the JSON of a `Header`. Nothing in such a file is ever executed.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from decant.data.images import DatasetInfo, Images
from decant.errors import SettingsError, TableError
from decant.files import replacing
from decant.labeltrust.out_of_distribution import Calibration
from decant.labeltrust.siamese import Siamese
from decant.settings import Block, Positive, load

Side = Annotated[int, Field(ge=8, le=4096)]
Mode = Literal["plus", "paper"]


@dataclass(frozen=True, kw_only=True)
class Header(Block):
    """The metadata of a scorer's file."""

    kind: Literal["trust_scorer"] = "trust_scorer"
    version: Literal[1] = 1
    mode: Mode
    networks: Positive
    height: Side
    width: Side
    channels: Literal[1, 3]
    class_names: tuple[str, ...]
    temperature: Annotated[float, Field(ge=0.01, le=100)] | None
    """This and the next two: the `Calibration`; null in mode `paper`."""
    slope: Annotated[float, Field(ge=0, le=1000)] | None
    intercept: Annotated[float, Field(ge=-1000, le=1000)] | None
    source: str
    """Where the references came from, as `ingest.source` says it."""
    checksum: str
    """Of the rows that the references came from."""


def write(
    path: Path, mode: Mode, networks: Sequence[Siamese], references: Images, calibration: Calibration | None
) -> None:
    """Write a scorer's file at once; the same scorer gives the same bytes."""
    height, width, channels = references.shape
    fitted = asdict(calibration) if calibration else dict.fromkeys(("temperature", "slope", "intercept"))
    info = asdict(references.info)
    header = Header(mode=mode, networks=len(networks), height=height, width=width, channels=channels, **fitted, **info)  # type: ignore[arg-type]
    tensors = {
        "references.pixels": torch.from_numpy(np.ascontiguousarray(references.pixels)),
        "references.labels": torch.from_numpy(references.labels.astype(np.int64)),
        "references.ids": torch.from_numpy(references.ids),
    }
    for number, network in enumerate(networks):
        weights = network.state_dict()
        tensors |= {f"networks.{number}.{name}": each.detach().cpu().contiguous() for name, each in weights.items()}
    with replacing(path) as temporary:
        text = json.dumps(asdict(header), sort_keys=True, allow_nan=False)
        temporary.write_bytes(to_bytes(tensors, metadata={"decant": text}))


def read(path: Path) -> tuple[Mode, tuple[Siamese, ...], Images, Calibration | None]:
    """Read (mode, networks in eval mode on the CPU, references, calibration) from a scorer's file.

    Raises: TableError, one line with the file and the field, where the file is missing, damaged or no scorer's.
    """
    if not path.is_file():
        raise TableError(f"{path}: no such file; `decant run verify` writes it, or name a scorer with --scorer")
    try:
        with safe_open(path, "pt") as file:
            header = _header(path, file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise TableError(f"{path}: not a safetensors file ({str(error).splitlines()[0]})") from error
    references = _references(path, header, tensors)
    networks = tuple(_network(path, header, tensors, number) for number in range(header.networks))
    if header.mode == "paper":
        return header.mode, networks, references, None
    for name in ("temperature", "slope", "intercept"):
        if getattr(header, name) is None:
            raise TableError(f"{path}: header field {name!r}: a number expected in mode plus, null found")
    assert header.temperature is not None and header.slope is not None and header.intercept is not None
    return header.mode, networks, references, Calibration(header.temperature, header.slope, header.intercept)


def _header(path: Path, metadata: dict[str, str]) -> Header:
    if "decant" not in metadata:
        raise TableError(f"{path}: header key 'decant' expected, none found: not a file of Decant")
    try:
        values = json.loads(metadata["decant"])
    except json.JSONDecodeError as error:
        raise TableError(f"{path}: header key 'decant': JSON expected ({error})") from error
    if not isinstance(values, dict) or values.get("kind") != "trust_scorer":
        raise TableError(f"{path}: header field 'kind': trust_scorer expected, none found: another kind of model")
    for field in fields(Header):
        if field.default is MISSING and field.name not in values:
            raise TableError(f"{path}: header field {field.name!r} expected, none found")
    try:
        return load(Header, values, f"{path}: header")
    except SettingsError as error:
        raise TableError(str(error)) from error


def _references(path: Path, header: Header, tensors: dict[str, Tensor]) -> Images:
    shape, classes = (header.height, header.width, header.channels), len(header.class_names)
    pixels = _tensor(path, tensors, "references.pixels", torch.uint8, lambda found: found[1:] == shape, f"(n, {shape})")
    n = len(pixels)
    labels, ids = (
        _tensor(path, tensors, f"references.{name}", torch.int64, lambda found: found == (n,), f"({n},)").numpy()
        for name in ("labels", "ids")
    )
    counts = np.bincount(labels.clip(0, classes), minlength=classes) if n else np.zeros(1)
    is_sound = n and labels.min() >= 0 and labels.max() < classes and (np.diff(labels) >= 0).all()
    if not is_sound or (counts == 1).any() or (counts > 1).sum() < 2:
        raise TableError(
            f"{path}: tensor 'references.labels': ascending classes below {classes} expected, two at least, of two rows"
        )
    info = DatasetInfo(class_names=header.class_names, source=header.source, checksum=header.checksum)
    return Images(ids, pixels.numpy(), labels.astype(np.int32), info)


def _network(path: Path, header: Header, tensors: dict[str, Tensor], number: int) -> Siamese:
    with torch.random.fork_rng(devices=[]):  # its first weights are drawn, and then replaced
        network = Siamese((header.height, header.width, header.channels), header.mode)
    weights = {
        name: _tensor(
            path,
            tensors,
            f"networks.{number}.{name}",
            wanted.dtype,
            lambda found, shape=tuple(wanted.shape): found == shape,
            str(tuple(wanted.shape)),
        )
        for name, wanted in network.state_dict().items()
    }
    network.load_state_dict(weights)
    return network.eval()


def _tensor(
    path: Path, tensors: dict[str, Tensor], name: str, dtype: torch.dtype, fits: Callable[..., bool], shape: str
) -> Tensor:
    found: Any = tensors.get(name)
    if found is None:
        raise TableError(f"{path}: tensor {name!r} expected, none found")
    if found.dtype != dtype or not fits(tuple(found.shape)):
        raise TableError(f"{path}: tensor {name!r}: {dtype} {shape} expected, {found.dtype} {tuple(found.shape)} found")
    return found
