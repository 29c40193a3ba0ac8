"""The prior of labels as a person writes it on a command line (`--prior`)."""

from typing import TYPE_CHECKING

from decant.errors import SettingsError

if TYPE_CHECKING:
    from decant.labeltrust.scorer import Prior


def parse_prior(text: str) -> "Prior":
    """Reads `batch`, `uniform`, or the share of labels that are right (0 to 1). Raises SettingsError."""
    if text == "batch":
        return "batch"
    if text == "uniform":
        return "uniform"
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise SettingsError(f"--prior: batch, uniform or the share of right labels (0 to 1) expected, {text!r} found")
    return share
