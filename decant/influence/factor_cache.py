"""A cache of EK-FAC's factors on disk, found by a hash of what they were computed from, never by a name.

A file's name is a SHA-256 over the model's modules and weights, the rows, and the settings: other weights, one other
pixel, or another seed give another file, so that old factors can't be taken for new ones. The bases are written as soon
as they are known, before the pass for the eigenvalues, and a run that was killed there goes on from them. Files are
renamed into place when they are complete; deleting the folder loses nothing but time.

The hash can't see the code of `forward`: give a model whose code has changed another folder.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from decant.files import replacing
from decant.influence.ekfac import Bases, Factors, cross_entropy, fit, sampled_cross_entropy
from decant.runtime import cache_folder, writable

FORMAT = 2  # to be raised when the same input gives other factors
PARTS = ("Q_A", "Q_S", "Lambda")
HASHED_AT_ONCE = 2**26  # numbers of a tensor
KEPT = 4  # files that stay when another is made; a ResNet-18's takes about half a GiB


def cached(
    folder: Path,
    model: nn.Module,
    train: tuple[Tensor, Int[Tensor, " n"]],
    *,
    fisher: Literal["true", "empirical"] = "true",
    seed: int = 0,
    basis_rows: int | None = None,
    eigenvalue_rows: int | None = None,
    normalisation: bool = False,
    low_precision: bool = False,
    memory: int | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> dict[str, Factors]:
    """The factors of `ekfac.fit` over the training rows, read from `folder` where an equal call has left them there.

    train: (inputs (n, ...), labels (n,) int64). `fisher`: of labels sampled from the model (`seed`), or of the rows'
    own. The rest as in `ekfac.fit`; `memory` changes no result and is not part of the hash.
    """
    x, y = train
    settings: dict[str, Any] = {
        "basis_rows": basis_rows,
        "eigenvalue_rows": eigenvalue_rows,
        "normalisation": normalisation,
        "low_precision": low_precision,
    }
    key = _key(model, train, {"fisher": fisher, "seed": seed, **settings})
    complete, bases_only = folder / f"{key}.safetensors", folder / f"{key}.bases.safetensors"
    device = next(model.parameters()).device
    if complete.is_file():
        return {name: Factors(*parts) for name, parts in _read(complete, device).items()}
    _make_room(folder)
    bases: Bases | None = None
    if bases_only.is_file():
        bases = {name: (Q_A, Q_S) for name, (Q_A, Q_S) in _read(bases_only, device).items()}
    factors = fit(
        model,
        x,
        sampled_cross_entropy(len(x), seed=seed) if fisher == "true" else cross_entropy(y),
        bases=bases,
        on_bases=lambda found: _write(bases_only, dict(found)),
        memory=memory,
        on_rows=on_rows,
        **settings,
    )
    _write(complete, {name: (f.Q_A, f.Q_S, f.Lambda) for name, f in factors.items()})
    bases_only.unlink(missing_ok=True)  # another process may have been at work on the same
    return factors


def own_folder() -> Path | None:
    """The folder where `detect` leaves curvature and `decant suspects` finds it; None where it can't be written."""
    return writable(cache_folder() / "curvature")


def _make_room(folder: Path) -> None:
    """Deletes all but the KEPT files that were written last."""
    files = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime) if folder.is_dir() else []
    for old in files[: max(0, len(files) - KEPT)]:
        old.unlink(missing_ok=True)


def _key(model: nn.Module, train: tuple[Tensor, Tensor], settings: dict[str, Any]) -> str:
    """SHA-256 of everything that the factors follow from, but the code of `forward`."""
    modules = [(name, type(module).__qualname__, repr(module)) for name, module in model.named_modules()]
    found = hashlib.sha256(json.dumps([FORMAT, modules, settings], sort_keys=True).encode())
    for name, tensor in [*model.state_dict().items(), ("inputs", train[0]), ("labels", train[1])]:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        for part in tensor.detach().reshape(-1).split(HASHED_AT_ONCE):
            found.update(part.cpu().contiguous().view(torch.uint8).numpy())
    return found.hexdigest()


def _write(path: Path, layers: dict[str, tuple[Tensor, ...]]) -> None:
    """Layer name to its tensors, in the order of PARTS; the last may be missing."""
    tensors = {
        f"{name}/{part}": tensor.cpu().contiguous()
        for name, tensors in layers.items()
        for part, tensor in zip(PARTS, tensors, strict=False)
    }
    with replacing(path) as temporary:
        temporary.write_bytes(to_bytes(tensors, metadata={"decant": json.dumps({"factors": FORMAT})}))


def _read(path: Path, device: torch.device) -> dict[str, tuple[Tensor, ...]]:
    """Layer name to its tensors, in the order of PARTS."""
    tensors = load_file(path, device=str(device))
    names = dict.fromkeys(key.rpartition("/")[0] for key in tensors)
    return {name: tuple(tensors[f"{name}/{part}"] for part in PARTS if f"{name}/{part}" in tensors) for name in names}
