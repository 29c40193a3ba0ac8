"""What is known of a batch of labels before their pictures are looked at (`--prior`)."""

from typing import Literal

from decant.errors import SettingsError

Prior = Literal["batch", "uniform"] | float
"""`batch`: the joint distribution of right and given labels is estimated from the rows that are scored together, if
there are at least `decant.labeltrust.scorer.BATCH_ROWS` (else as `uniform`). `uniform`: nothing is known, every class
is equally likely. A number: this share of the labels is right.

Nobody knows how good the model is that made a prediction. A good model's predictions deserve more trust than their
pictures alone give them, and its rare mistakes then get more trust, too.
"""


def parse_prior(text: str) -> Prior:
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
