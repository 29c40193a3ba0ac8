"""Inline SVG for the report: the steps chart, score histograms, small tracks. Pure functions from numbers to markup.

Each drawing fits any width without scripts: places along x are percentages of the drawing, places along y and all text
sizes are CSS pixels, and a label that may need two lines is HTML below it. Colours are CSS classes, so that one drawing
serves light, dark and print: `blue` for what should be high and rows that are kept, `orange` for what should be low and
rows that are flagged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float
from markupsafe import Markup

from decant.report.words import percent


@dataclass(frozen=True, kw_only=True)
class StepFigures:
    """One model on the way; fractions in [0, 1], None where it was not measured."""

    name: str
    accuracy: float | None
    poison_success: float | None
    rows: int | None = None
    apart: bool = False
    """Stands beside the sequence (the oracle) and is not joined to it by a line."""


@dataclass(frozen=True)
class Plot:
    """Where the values 0 and 1 lie in a drawing, in CSS pixels from its top."""

    top: float
    base: float
    height: float
    """Of the whole drawing."""

    def y(self, value: float) -> float:
        """Where a value in [0, 1] lies."""
        return self.base - (self.base - self.top) * value


STEPS_PLOT = Plot(top=28, base=240, height=272)
BARS, HANGING = Plot(top=24, base=170, height=196), 48  # kept and flagged rows; depth of the bars below the axis
LABEL_ABOVE, LABEL_BELOW = -11, 21  # a value beside its point
MARK = 5  # half a marker's size
CLOSE_TO_THE_END = 80  # percent of the width, from which on a label stands to the left of its line


# ---------------------------------------------------------------------------------------------------------------------
# Accuracy and poison success along the steps
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Series:
    """One line of the steps chart."""

    key: str
    """Field of StepFigures."""
    color: str
    name: str
    square: bool
    """The marker's shape tells the series to those who can't tell the colours apart."""


ACCURACY = Series("accuracy", "blue", "accuracy", square=False)
POISON_SUCCESS = Series("poison_success", "orange", "poison success", square=True)


def steps_chart(steps: Sequence[StepFigures]) -> Markup:
    """Two lines over the steps. The higher of two values is labelled above its point, the lower one below."""
    xs = [100 * (i + 0.5) / len(steps) for i in range(len(steps))]
    drawn = [series for series in (ACCURACY, POISON_SUCCESS) if any(_value(step, series) is not None for step in steps)]
    parts = [_grid(STEPS_PLOT, [(tick, percent(tick, 0) if tick in (0, 0.5, 1) else "") for tick in np.arange(5) / 4])]
    if steps and steps[-1].apart:
        parts.append(_reference(steps[-1], xs[-1], 100 / len(steps)))
    parts += [_line(steps, xs, series) for series in drawn]
    parts += [_points(steps, xs, series) for series in drawn]  # last: over the lines of both series
    key = Markup("").join(
        Markup('<span><svg class="keymark" aria-hidden="true">{}</svg>{}</span>').format(
            Markup(_marker("50%", 7, series)), series.name
        )
        for series in drawn
    )
    said = "; ".join(
        f"{s.name}: accuracy {percent(s.accuracy)}, poison success {percent(s.poison_success)}" for s in steps
    )
    labels = Markup("").join(Markup("<span>{}{}</span>").format(step.name, _rows(step.rows)) for step in steps)
    return Markup(
        '<p class="key">{}</p><div class="chart">{}<div class="columns" aria-hidden="true">{}</div></div>'
    ).format(key, _svg(STEPS_PLOT.height, parts, "Accuracy and poison success along the steps", said), labels)


def _value(step: StepFigures, series: Series) -> float | None:
    value: float | None = getattr(step, series.key)
    return value


def _rows(rows: int | None) -> Markup:
    return Markup("") if rows is None else Markup("<small>{:,} rows</small>").format(rows)


def _reference(step: StepFigures, x: float, column: float) -> str:
    """The line that sets the last step apart, and its accuracy as a level for the others."""
    parts = f'<line class="apart" x1="{x - column / 2:.2f}%" x2="{x - column / 2:.2f}%" y1="0" y2="100%"/>'
    if step.accuracy is None:
        return parts
    level = STEPS_PLOT.y(step.accuracy)
    return f'{parts}<line class="reference" x1="0" x2="{x:.2f}%" y1="{level:.1f}" y2="{level:.1f}"/>'


def _line(steps: Sequence[StepFigures], xs: Sequence[float], series: Series) -> str:
    points = [
        (x, STEPS_PLOT.y(value))
        for x, step in zip(xs, steps, strict=True)
        if not step.apart and (value := _value(step, series)) is not None
    ]
    return "".join(
        f'<line class="line {series.color}" x1="{x0:.2f}%" y1="{y0:.1f}" x2="{x1:.2f}%" y2="{y1:.1f}"/>'
        for (x0, y0), (x1, y1) in pairwise(points)
    )


def _points(steps: Sequence[StepFigures], xs: Sequence[float], series: Series) -> str:
    """Markers with their values."""
    other = POISON_SUCCESS if series is ACCURACY else ACCURACY
    parts = []
    for x, step in zip(xs, steps, strict=True):
        mine, theirs = _value(step, series), _value(step, other)
        if mine is None:
            continue
        below = theirs is not None and (mine < theirs or (mine == theirs and series is POISON_SUCCESS))
        y = STEPS_PLOT.y(mine)
        parts.append(_marker(f"{x:.2f}%", y, series, hollow=step.apart))
        label_y = y + (LABEL_BELOW if below else LABEL_ABOVE)
        parts.append(f'<text class="value {series.color}" x="{x:.2f}%" y="{label_y:.1f}">{percent(mine)}</text>')
    return "".join(parts)


def _marker(x: str, y: float, series: Series, *, hollow: bool = False) -> str:
    kind = f"mark {series.color}{' hollow' if hollow else ''}"
    if not series.square:
        return f'<circle class="{kind}" cx="{x}" cy="{y:.1f}" r="{MARK + 0.5}"/>'
    place, side = f'x="{x}" y="{y - MARK:.1f}" transform="translate({-MARK})"', 2 * MARK
    return f'<rect class="{kind}" {place} width="{side}" height="{side}"/>'


# ---------------------------------------------------------------------------------------------------------------------
# Score histograms
# ---------------------------------------------------------------------------------------------------------------------


def histogram(
    scores: Float[np.ndarray, " n"],
    flagged: Bool[np.ndarray, " n"],
    *,
    planted: Bool[np.ndarray, " n"] | None,
    threshold: float | None,
    axis: str,
    bins: int = 40,
) -> Markup:
    """Kept and flagged rows by score, stacked; rows truly planted hang below the axis, where the truth is known.

    Higher scores are more suspicious. Heights are square roots of counts: a few flagged rows must show beside
    thousands that were kept.
    """
    low, high = _limits(scores, threshold)
    edges = np.linspace(low, high, bins + 1)
    every, kept = np.histogram(scores, edges)[0], np.histogram(scores[~flagged], edges)[0]
    most = max(1, every.max())
    places = 100 * np.arange(bins) / bins
    depth = 0 if planted is None else HANGING

    def x(score: float) -> float:
        return 100 * (score - low) / (high - low)

    def y(count: float) -> float:
        return BARS.y((count / most) ** 0.5)

    parts = [_grid(BARS, [((count / most) ** 0.5, f"{count:,}") for count in _round_counts(int(most))])]
    parts += [_bar("blue", place, 100 / bins, y(count), BARS.base) for place, count in zip(places, kept, strict=True)]
    parts += [_bar("orange", place, 100 / bins, y(a), y(k)) for place, a, k in zip(places, every, kept, strict=True)]
    if planted is not None:
        hanging = np.histogram(scores[planted], edges)[0]
        ends = BARS.base + 2 + HANGING * (hanging / max(1, hanging.max())) ** 0.5
        parts += [_bar("ink", place, 100 / bins, BARS.base + 2, end) for place, end in zip(places, ends, strict=True)]
    foot = BARS.base + depth + 18
    parts += [
        f'<text class="tick" x="{x(tick):.2f}%" y="{foot}" text-anchor="middle">{tick:g}</text>'
        for tick in _ticks(low, high, 5)
    ]
    if threshold is not None:
        parts.append(_threshold(x(threshold), threshold, BARS.base + depth))
    said = f"{len(scores):,} rows from {scores.min():.3g} to {scores.max():.3g}; {int(flagged.sum()):,} flagged"
    return Markup('<div class="chart">{}<p class="small axis-name">{} →</p></div>').format(
        _svg(BARS.height + depth, parts, "Histogram of scores", said), axis
    )


def _limits(scores: Float[np.ndarray, " n"], threshold: float | None) -> tuple[float, float]:
    values = [float(scores.min()), float(scores.max())] + ([] if threshold is None else [threshold])
    low, high = min(values), max(values)
    if low == high:
        return low - 0.5, high + 0.5
    if low >= 0 and high <= 1 and high - low > 0.5:
        return 0.0, 1.0
    return low, high


def _ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers between low and high, at most about `wanted` of them."""
    step = 10 ** np.floor(np.log10((high - low) / wanted))
    while (high - low) / step > wanted:
        step *= 2 if round(step / 10 ** np.floor(np.log10(step) + 1e-9)) != 2 else 2.5
    first = np.ceil(low / step - 1e-9)
    return [float(round(step * i, 10)) + 0.0 for i in np.arange(first, np.floor(high / step + 1e-9) + 1)]


def _round_counts(most: int) -> list[int]:
    """The largest count, and 1, 10, 100, ... below it as far as their square roots don't touch."""
    counts = [most]
    for count in (10**k for k in range(8, -1, -1)):
        if count < most and counts[-1] ** 0.5 - count**0.5 > 0.11 * most**0.5 and count > 0.007 * most:
            counts.append(count)
    return counts


def _bar(color: str, x: float, width: float, top: float, bottom: float) -> str:
    """A bar that leaves a tenth of its width free."""
    if bottom <= top:
        return ""
    return (
        f'<rect class="bar {color}" x="{x + 0.05 * width:.2f}%" y="{top:.1f}" width="{0.9 * width:.2f}%" '
        f'height="{bottom - top:.1f}"/>'
    )


def _threshold(x: float, value: float, bottom: float) -> str:
    anchor, shift = ("end", -6) if x > CLOSE_TO_THE_END else ("start", 6)
    return (
        f'<line class="threshold" x1="{x:.2f}%" x2="{x:.2f}%" y1="{BARS.top - 14}" y2="{bottom}"/>'
        f'<text class="tick strong" x="{x:.2f}%" dx="{shift}" y="{BARS.top - 5}" text-anchor="{anchor}">'
        f"threshold {value:.3g}</text>"
    )


def _grid(plot: Plot, ticks: Sequence[tuple[float, str]]) -> str:
    """The axis, and a line at every (value, label) of the ticks; labels stand in the margin on the left."""
    lines = [f'<line class="axis" x1="0" x2="100%" y1="{plot.base}" y2="{plot.base}"/>']
    for value, label in ticks:
        y = plot.y(value)
        if value:
            lines.append(f'<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>')
        if label:
            lines.append(f'<text class="tick" x="-8" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    return "".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# Small tracks
# ---------------------------------------------------------------------------------------------------------------------


def track(before: float | None, after: float | None, reference: float | None, color: str) -> Markup:
    """From before (hollow) to after (filled) on a line from 0 to 100 %, with a tick at the reference."""
    parts = ['<line class="rail" x1="0" x2="100%" y1="12" y2="12"/>']
    if before is not None and after is not None:
        low, high = sorted((before, after))
        parts.append(f'<line class="move {color}" x1="{_inset(low)}" x2="{_inset(high)}" y1="12" y2="12"/>')
    if reference is not None:
        parts.append(f'<line class="tickmark" x1="{_inset(reference)}" x2="{_inset(reference)}" y1="2" y2="22"/>')
    if before is not None:
        parts.append(f'<circle class="mark {color} hollow" cx="{_inset(before)}" cy="12" r="{MARK}"/>')
    if after is not None:
        parts.append(f'<circle class="mark {color}" cx="{_inset(after)}" cy="12" r="{MARK + 0.5}"/>')
    return Markup('<svg class="track" aria-hidden="true">{}</svg>').format(Markup("".join(parts)))


def shares(kept: int, relabelled: int, dropped: int) -> Markup:
    """One bar: rows kept as they are, relabelled, dropped."""
    total, x, parts = max(1, kept + relabelled + dropped), 0.0, []
    for count, color in ((kept, "blue"), (relabelled, "pale"), (dropped, "orange")):
        if count:
            parts.append(
                f'<rect class="bar {color}" x="{100 * x:.2f}%" y="7" width="{100 * count / total:.2f}%" height="10"/>'
            )
        x += count / total
    return Markup('<svg class="track" aria-hidden="true">{}</svg>').format(Markup("".join(parts)))


def meter(value: float) -> Markup:
    """A trust in [0, 1] as a filled line."""
    filled = min(1.0, max(0.0, value))
    rail = '<line class="rail" x1="0" x2="100%" y1="3" y2="3"/>'
    line = f'<line class="move ink" x1="0" x2="{100 * filled:.1f}%" y1="3" y2="3"/>' if filled else ""
    return Markup('<svg class="meter" aria-hidden="true">{}</svg>').format(Markup(rail + line))


def _inset(fraction: float) -> str:
    """A percentage that leaves room for half a marker at both ends."""
    return f"{2 + 96 * min(1.0, max(0.0, fraction)):.2f}%"


def _svg(height: float, parts: Sequence[str], title: str, description: str) -> Markup:
    head = '<svg class="plot" style="height: {}px" role="img" aria-label="{}. {}">'
    return Markup(head).format(round(height), title, description) + Markup("".join(parts)) + Markup("</svg>")
