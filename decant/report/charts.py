"""Inline SVG for the report: the steps chart, score histograms, small tracks. Pure functions from numbers to markup.

Colours are CSS classes, so that one drawing serves light, dark and print: `blue` for what should be high and rows that
are kept, `orange` for what should be low and rows that are flagged. Each chart is drawn twice, at two widths; the style
sheet shows one: on a phone, text that shrinks with the drawing can't be read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

WIDE, NARROW = 1024, 360  # CSS pixels


@dataclass(frozen=True, kw_only=True)
class Step:
    """One model on the way; fractions in [0, 1], None where it was not measured."""

    name: str
    accuracy: float | None
    poison_success: float | None
    rows: int | None = None
    apart: bool = False
    """Stands beside the sequence (the oracle) and is not joined to it by a line."""


def percent(fraction: float | None, digits: int = 1) -> str:
    return "–" if fraction is None else f"{100 * fraction:.{digits}f}\u00a0%"


def responsive(draw_wide: Markup, draw_narrow: Markup) -> Markup:
    return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(draw_wide, draw_narrow)


# ---------------------------------------------------------------------------------------------------------------------
# Accuracy and poison success along the steps
# ---------------------------------------------------------------------------------------------------------------------

SERIES = (("accuracy", "blue", "accuracy"), ("poison_success", "orange", "poison success"))


def steps_chart(steps: Sequence[Step]) -> Markup:
    return responsive(_steps(steps, WIDE), _steps(steps, NARROW))


def _steps(steps: Sequence[Step], width: int) -> Markup:
    """Two lines over the steps. The higher of two values is labelled above its point, the lower one below."""
    wide = width == WIDE
    top, bottom, left, right = (28, 300, 48, 128) if wide else (56, 300, 38, 4)
    column = (width - left - right) / max(1, len(steps))
    xs = [left + column * (i + 0.5) for i in range(len(steps))]

    def y(fraction: float) -> float:
        return bottom - 18 - (bottom - 18 - top) * fraction

    parts = [_grid(left, width - right, y)]
    if steps and steps[-1].apart:
        x = (xs[-1] + xs[-2]) / 2 if len(xs) > 1 else left
        parts.append(f'<line class="apart" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 8}" y2="{bottom + 44}"/>')
        if steps[-1].accuracy is not None:
            level = y(steps[-1].accuracy)
            parts.append(f'<line class="reference" x1="{left}" x2="{xs[-1]:.1f}" y1="{level:.1f}" y2="{level:.1f}"/>')
    drawn = []
    for place, (key, color, name) in enumerate(SERIES):
        points = [(x, y(v), s) for x, s in zip(xs, steps, strict=True) if (v := getattr(s, key)) is not None]
        if points:
            drawn.append(_series(points, key, color))
            end = (width - right, points[-1][1]) if wide else None
            parts.append(_series_name(name, key, color, place, end))
    parts += [line for line, _ in drawn] + [marks for _, marks in drawn]
    parts += [_step_label(x, bottom + 18, step, wide) for x, step in zip(xs, steps, strict=True)]
    description = "; ".join(
        f"{s.name}: accuracy {percent(s.accuracy)}, poison success {percent(s.poison_success)}" for s in steps
    )
    return _svg(width, bottom + (56 if wide else 72), parts, "Accuracy and poison success along the steps", description)


def _grid(left: float, right: float, y: Callable[[float], float]) -> str:
    lines = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        level = y(tick)
        kind = "axis" if tick == 0 else "grid"
        lines.append(f'<line class="{kind}" x1="{left}" x2="{right}" y1="{level:.1f}" y2="{level:.1f}"/>')
        if tick in (0, 0.5, 1):
            lines.append(
                f'<text class="tick" x="{left - 8}" y="{level + 4:.1f}" text-anchor="end">{percent(tick, 0)}</text>'
            )
    return "".join(lines)


def _series(points: Sequence[tuple[float, float, Step]], key: str, color: str) -> tuple[str, str]:
    """(line, markers and values): the values are drawn last, over the lines of both series."""
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y, step in points if not step.apart)
    parts = []
    for x, y, step in points:
        mine, other = getattr(step, key), step.poison_success if key == "accuracy" else step.accuracy
        below = other is not None and (mine < other or (mine == other and key == "poison_success"))
        parts.append(_marker(x, y, color + (" hollow" if step.apart else ""), square=key == "poison_success"))
        value_y = y + 21 if below else y - 11
        parts.append(f'<text class="value {color}" x="{x:.1f}" y="{value_y:.1f}">{percent(mine)}</text>')
    return f'<polyline class="line {color}" points="{joined}"/>', "".join(parts)


def _series_name(name: str, key: str, color: str, place: int, end: tuple[float, float] | None) -> str:
    """At the right end of its line, or without room for that (`end` is None) in a key on top."""
    if end is not None:
        return f'<text class="name {color}" x="{end[0] + 10:.1f}" y="{end[1] + 5:.1f}">{name}</text>'
    x = 44 + 150 * place
    mark = _marker(x, 14, color, square=key == "poison_success")
    return f'{mark}<text class="name {color}" x="{x + 12}" y="19">{name}</text>'


def _marker(x: float, y: float, color: str, *, square: bool) -> str:
    """A circle or a square: the shape says the series to those who can't tell the colours apart."""
    if square:
        return f'<rect class="mark {color}" x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10"/>'
    return f'<circle class="mark {color}" cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>'


def _step_label(x: float, y: float, step: Step, wide: bool) -> str:
    words = [step.name] if wide else step.name.split(" ", 1)
    lines = [f'<tspan x="{x:.1f}" dy="{17 if i else 0}">{escape(word)}</tspan>' for i, word in enumerate(words)]
    if step.rows is not None:
        rows = f"{step.rows:,} rows" if wide else f"{step.rows:,}"
        lines.append(f'<tspan class="rows" x="{x:.1f}" dy="17">{rows}</tspan>')
    return f'<text class="step" x="{x:.1f}" y="{y:.1f}">{"".join(lines)}</text>'


# ---------------------------------------------------------------------------------------------------------------------
# Score histograms
# ---------------------------------------------------------------------------------------------------------------------


def histogram(
    scores: np.ndarray,
    flagged: np.ndarray,
    *,
    planted: np.ndarray | None,
    threshold: float | None,
    axis: str,
    bins: int = 40,
) -> Markup:
    """Kept and flagged rows by score, stacked; rows truly planted hang below the axis, where the truth is known.

    scores: (n,), higher is more suspicious; flagged, planted: (n,) bool. Heights are square roots of counts: a few
    flagged rows must show beside thousands that were kept.
    """
    arguments = (scores, flagged, planted, threshold, axis, bins)
    return responsive(_histogram(*arguments, width=WIDE), _histogram(*arguments, width=NARROW))


def _histogram(
    scores: np.ndarray,
    flagged: np.ndarray,
    planted: np.ndarray | None,
    threshold: float | None,
    axis: str,
    bins: int,
    *,
    width: int,
) -> Markup:
    low, high = _limits(scores, threshold)
    edges = np.linspace(low, high, bins + 1)
    both = np.histogram(scores, edges)[0]
    kept = np.histogram(scores[~flagged], edges)[0]
    hanging = np.histogram(scores[planted], edges)[0] if planted is not None else np.zeros(bins, int)
    left, right, top, base, depth = 44, 12, 24, 170, (48 if planted is not None else 0)
    unit = (base - top) / np.sqrt(max(1, both.max()))
    hanging_unit = depth / np.sqrt(max(1, hanging.max()))

    def x(score: float) -> float:
        return left + (width - left - right) * (score - low) / (high - low)

    parts = [_count_grid(int(both.max()), left, width - right, base, unit)]
    for i in range(bins):
        x0, wide = x(edges[i]) + 0.5, x(edges[i + 1]) - x(edges[i]) - 1
        h_both, h_kept = unit * both[i] ** 0.5, unit * kept[i] ** 0.5
        parts.append(_bar("blue", x0, base - h_kept, wide, h_kept))
        parts.append(_bar("orange", x0, base - h_both, wide, h_both - h_kept))
        parts.append(_bar("ink", x0, base + 2, wide, hanging_unit * hanging[i] ** 0.5))
    parts.append(f'<line class="axis" x1="{left}" x2="{width - right}" y1="{base}" y2="{base}"/>')
    foot = base + depth + 18
    for tick in _ticks(low, high, 6 if width == WIDE else 4):
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{foot}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text class="tick" x="{left}" y="{foot + 20}">{escape(axis)} →</text>')
    if threshold is not None:
        parts.append(_threshold(x(threshold), threshold, top, base + depth, flip=x(threshold) > width - 150))
    description = f"{len(scores):,} rows from {scores.min():.3g} to {scores.max():.3g}; {int(flagged.sum()):,} flagged"
    return _svg(width, foot + 28, parts, "Histogram of scores", description)


def _limits(scores: np.ndarray, threshold: float | None) -> tuple[float, float]:
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


def _count_grid(most: int, left: float, right: float, base: float, unit: float) -> str:
    """Lines at 1, 10, 100, ... rows, and at the highest bar, leaving out those that would touch each other."""
    counts = [most]
    for count in (10**k for k in range(8, -1, -1)):
        if count < most and unit * (counts[-1] ** 0.5 - count**0.5) > 16 and unit * count**0.5 > 12:
            counts.append(count)
    lines = []
    for count in counts:
        y = base - unit * count**0.5
        lines.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text class="tick" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{count:,}</text>')
    return "".join(lines)


def _bar(color: str, x: float, y: float, width: float, height: float) -> str:
    if height <= 0:
        return ""
    return f'<rect class="bar {color}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _threshold(x: float, value: float, top: float, bottom: float, *, flip: bool) -> str:
    anchor, shift = ("end", -6) if flip else ("start", 6)
    return (
        f'<line class="threshold" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 14}" y2="{bottom}"/>'
        f'<text class="tick strong" x="{x + shift:.1f}" y="{top - 5}" text-anchor="{anchor}">'
        f"threshold {value:.3g}</text>"
    )


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
        parts.append(f'<circle class="mark {color} hollow" cx="{_inset(before)}" cy="12" r="5"/>')
    if after is not None:
        parts.append(f'<circle class="mark {color}" cx="{_inset(after)}" cy="12" r="5.5"/>')
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


def _svg(width: int, height: float, parts: Sequence[str], title: str, description: str) -> Markup:
    head = Markup(
        '<svg class="chart" viewBox="0 0 {w} {h}" style="max-width:{w}px" role="img" aria-label="{t}. {d}">'
    ).format(w=width, h=round(height), t=title, d=description)
    return Markup("{}{}</svg>").format(head, Markup("".join(parts)))
