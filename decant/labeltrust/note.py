"""What `verify` tells people: what was done, how sure that is, and what they may do next.

One function per sentence; it returns an empty text where there is nothing to say.
"""

from pathlib import Path

from decant.labeltrust.outcome import VerifyOutcome
from decant.labeltrust.settings import VerifySettings
from decant.labeltrust.thresholds import parse_threshold


def note(
    outcome: VerifyOutcome,
    settings: VerifySettings,
    *,
    decisions: Path,
    lowest_confirmed_rate: float | None,
    outdated: int,
    nothing_planted: bool,
) -> str:
    """The note of a run.

    decisions: the file with people's answers. outdated: rows with answers that were given to other pixels.
    lowest_confirmed_rate: as in `decant.summaries.VerifySummary`. nothing_planted: the expert is an oracle, and there
    is no simulation whose truth it could know.
    """
    if not settings.enabled:
        return "switched off: the labels pass through as they are"
    sentences = (
        _judged(outcome),
        f"By {settings.method}: {outcome.rule}" if outcome.rule else "",
        _label_noise(outcome),
        _operating_point(outcome, settings),
        _unconfirmed(settings, lowest_confirmed_rate),
        _waiting(len(outcome.queue), decisions),
        "No poison was simulated, so the oracle confirmed every label that it was shown; to judge your own data "
        "yourself, set verify.expert to person"
        if nothing_planted
        else "",
        _outdated(outdated, decisions),
        "Embeddings were compared and not pixels, so there is no scorer for other pictures"
        if settings.embeddings and outcome.label_noise_rate is not None
        else "",
        "The out-of-fold classifier got no weight: it repeats labels that the expert refuted, or adds nothing"
        if outcome.classifier_weight == 0
        else "",
        f"No further round: {outcome.stopped}" if outcome.stopped and not len(outcome.queue) else "",
    )
    return ". ".join(sentence for sentence in sentences if sentence)


def _judged(outcome: VerifyOutcome) -> str:
    answered = len(outcome.reviews)
    if outcome.label_noise_rate is None:
        return f"no label was judged, because there are too few references yet; the expert has labelled {answered} rows"
    actions = outcome.verdicts["action"].value_counts()
    dropped, relabelled = actions.get("drop", 0), actions.get("relabel", 0)
    rows = len(outcome.verdicts)
    return f"dropped {dropped} and relabelled {relabelled} of {rows} rows; the expert labelled {answered}"


def _label_noise(outcome: VerifyOutcome) -> str:
    if outcome.label_noise_rate is None:
        return ""
    said = f"About {_percent(outcome.label_noise_rate)} of the labels are wrong (estimated"
    if outcome.label_noise_interval is None:
        return f"{said})"
    low, high = map(_percent, outcome.label_noise_interval)
    return f"{said}; 95 % confidence interval from the rows drawn at random: {low} to {high})"


def _operating_point(outcome: VerifyOutcome, settings: VerifySettings) -> str:
    if not outcome.operating_points:
        return ""
    point = outcome.operating_points[0]
    refused = "dropped" if settings.action == "drop" else "dropped or relabelled"
    return (
        f"About {_percent(point.far)} of the wrong labels among the unreviewed rows probably remain (estimated); "
        f"{_percent(point.frr)} of the right ones were {refused}"
    )


def _unconfirmed(settings: VerifySettings, lowest: float | None) -> str:
    if lowest is None or lowest <= parse_threshold(settings.threshold)[1]:
        return ""
    return (
        f"The target rate {settings.threshold} rests on the label-noise model alone: the rows drawn at random can "
        f"confirm no rate below {_percent(lowest)}"
    )


def _waiting(rows: int, decisions: Path) -> str:
    if not rows:
        return ""
    return (
        f"{rows} rows wait for your answer: `decant review` shows them (or write lines `id,label` to {decisions}); "
        "then run again"
    )


def _outdated(rows: int, decisions: Path) -> str:
    if not rows:
        return ""
    return (
        f"The answers about {rows} rows don't count, because the pixels of these rows have changed since; to count "
        f"them all the same, empty the column `picture` of {decisions}"
    )


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
