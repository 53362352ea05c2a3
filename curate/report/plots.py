"""Plots as inline SVG: lines over steps, two histograms on one axis, estimates with intervals.

Series differ in dash and marker as well as in colour, and every plot has its numbers in a table
next to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from curate.report.html import Html, number, table, tag

WIDE, HIGH = 330, 190
LEFT, RIGHT, TOP, BOTTOM = 58, 10, 10, 30
DASHES = (None, "6 3", "2 3", "8 3 2 3", "1 4", "10 4")


@dataclass(frozen=True)
class Series:
    """Points (x, y) in order of x. A y of None is a gap."""

    name: str
    points: Sequence[tuple[float, float | None]]


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers from at most `low` to at least `high`, which may be equal."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return [0.0, 1.0]
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / wanted
    unit = 10.0 ** math.floor(math.log10(rough))
    step = unit * min((m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough), default=10)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def lines(title: str, series: Sequence[Series], x_name: str, y_name: str = "") -> Html:
    """Lines over a common axis."""
    points = [(x, y) for s in series for x, y in s.points if y is not None]
    if not points:
        return _figure(title, tag("p", "Not measured.", class_="empty"), None)
    xs, ys = (
        ticks(min(x for x, _ in points), max(x for x, _ in points)),
        ticks(min(0, *(y for _, y in points)), max(y for _, y in points)),
    )
    parts = [_axes(xs, ys, x_name, y_name)]
    for i, one in enumerate(series):
        style = f"s{i % len(DASHES)}"
        for run in _runs(one.points):
            at = " ".join(
                f"{_at(x, xs, LEFT, WIDE - RIGHT):.1f},{_at(y, ys, HIGH - BOTTOM, TOP):.1f}"
                for x, y in run
            )
            parts.append(
                tag(
                    "polyline",
                    points=at,
                    class_=f"line {style}",
                    stroke_dasharray=DASHES[i % len(DASHES)],
                )
            )
            parts += [
                tag(
                    "circle",
                    tag("title", f"{one.name}, {x_name} {number(x, 0)}: {number(y)}"),
                    cx=f"{_at(x, xs, LEFT, WIDE - RIGHT):.1f}",
                    cy=f"{_at(y, ys, HIGH - BOTTOM, TOP):.1f}",
                    r=2.5,
                    class_=f"dot {style}",
                )
                for x, y in run
            ]
    steps = sorted({x for x, _ in points})
    values = [dict(s.points) for s in series]
    rows: list[list[object]] = [[number(x, 0), *(number(v.get(x)) for v in values)] for x in steps]
    return _figure(
        title, _svg(title, parts), table([x_name, *(s.name for s in series)], rows, title)
    )


def _runs(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    """Stretches of points without a gap."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is None:
            runs.append([])
        else:
            runs[-1].append((x, y))
    return [run for run in runs if run]


def legend(names: Sequence[str]) -> Html:
    """Names of the series, with colour and dash."""
    return tag(
        "ul",
        [
            tag(
                "li",
                tag(
                    "svg",
                    tag(
                        "line",
                        x1=0,
                        y1=6,
                        x2=30,
                        y2=6,
                        class_=f"line s{i % len(DASHES)}",
                        stroke_dasharray=DASHES[i % len(DASHES)],
                    ),
                    width=30,
                    height=12,
                    aria_hidden="true",
                ),
                name,
            )
            for i, name in enumerate(names)
        ],
        class_="legend",
    )


def histograms(
    title: str, edges: Sequence[float], kept: Sequence[int], dropped: Sequence[int], note: str = ""
) -> Html:
    """Shares of kept (above the axis) and dropped (below it) traces in the same bins."""
    totals = max(sum(kept), 1), max(sum(dropped), 1)
    shares = [k / totals[0] for k in kept], [d / totals[1] for d in dropped]
    top = max([*shares[0], *shares[1], 1e-9])
    wide, high, middle = WIDE - LEFT - RIGHT, (HIGH - TOP - BOTTOM) / 2, (TOP + HIGH - BOTTOM) / 2
    parts = [tag("line", x1=LEFT, x2=WIDE - RIGHT, y1=middle, y2=middle, class_="axis")]
    step = wide / max(len(kept), 1)
    for i in range(len(kept)):
        span = f"{number(edges[i])} to {number(edges[i + 1])}"
        for part, count, kind in (
            (shares[0][i], kept[i], "kept"),
            (shares[1][i], dropped[i], "dropped"),
        ):
            tall = high * part / top
            parts.append(
                tag(
                    "rect",
                    tag("title", f"{kind}, {span}: {number(count)} ({part:.1%})"),
                    x=f"{LEFT + i * step + 0.5:.1f}",
                    y=f"{middle - tall if kind == 'kept' else middle:.1f}",
                    width=f"{max(step - 1, 0.5):.1f}",
                    height=f"{tall:.1f}",
                    class_=f"bar {kind}",
                )
            )
    parts += [
        tag("text", number(edges[0]), x=LEFT, y=HIGH - 14, class_="tick"),
        tag(
            "text", number(edges[-1]), x=WIDE - RIGHT, y=HIGH - 14, text_anchor="end", class_="tick"
        ),
        tag("text", "kept", x=LEFT - 6, y=middle - high / 2, text_anchor="end", class_="tick"),
        tag("text", "dropped", x=LEFT - 6, y=middle + high / 2, text_anchor="end", class_="tick"),
        tag("text", f"to {top:.0%}", x=LEFT - 6, y=TOP + 8, text_anchor="end", class_="tick"),
    ]
    rows = [
        [f"{number(edges[i])} – {number(edges[i + 1])}", kept[i], dropped[i]]
        for i in range(len(kept))
    ]
    return _figure(
        title, _svg(title, parts), table(["from – to", "kept", "dropped"], rows, title), note
    )


def intervals(
    title: str, rows: Sequence[tuple[str, float, float | None, float | None]], zero: bool = False
) -> Html:
    """Estimates with intervals, one per line. `zero` draws the line of no difference."""
    left, line = 190, 22
    values = [v for _, *three in rows for v in three if v is not None]
    marks = ticks(min([*values, 0.0]), max(values))
    high = TOP + line * len(rows) + BOTTOM
    parts = [
        tag(
            "g",
            tag(
                "line",
                x1=f"{_at(t, marks, left, 620):.1f}",
                x2=f"{_at(t, marks, left, 620):.1f}",
                y1=TOP,
                y2=high - BOTTOM,
                class_="axis" if t == 0 and zero else "grid",
            ),
            tag(
                "text",
                number(t, 2) if t else "0",
                x=f"{_at(t, marks, left, 620):.1f}",
                y=high - 14,
                text_anchor="middle",
                class_="tick",
            ),
        )
        for t in marks
    ]
    for i, (name, value, low, up) in enumerate(rows):
        y = TOP + line * (i + 0.5)
        x = _at(value, marks, left, 620)
        title = f"{name}: {number(value)}" + (
            f" [{number(low)}, {number(up)}]" if low is not None else ""
        )
        parts.append(
            tag(
                "text",
                name if len(name) < 32 else name[:31] + "…",
                x=left - 8,
                y=y + 4,
                text_anchor="end",
                class_="label",
            )
        )
        if low is not None and up is not None:
            parts.append(
                tag(
                    "line",
                    x1=f"{_at(low, marks, left, 620):.1f}",
                    x2=f"{_at(up, marks, left, 620):.1f}",
                    y1=y,
                    y2=y,
                    class_="range",
                )
            )
        parts.append(tag("circle", tag("title", title), cx=f"{x:.1f}", cy=y, r=4, class_="dot s0"))
    return _figure(title, _svg(title, parts, 640, high), None)


def _at(value: float, marks: Sequence[float], low: float, high: float) -> float:
    span = (marks[-1] - marks[0]) or 1.0
    return low + (value - marks[0]) / span * (high - low)


def _axes(xs: Sequence[float], ys: Sequence[float], x_name: str, y_name: str) -> Html:
    parts = []
    for y in ys:
        at = f"{_at(y, ys, HIGH - BOTTOM, TOP):.1f}"
        parts.append(tag("line", x1=LEFT, x2=WIDE - RIGHT, y1=at, y2=at, class_="grid"))
        parts.append(
            tag("text", f"{y:g}", x=LEFT - 6, y=at, dy="0.32em", text_anchor="end", class_="tick")
        )
    for x in xs:
        at = f"{_at(x, xs, LEFT, WIDE - RIGHT):.1f}"
        parts.append(tag("text", f"{x:g}", x=at, y=HIGH - 16, text_anchor="middle", class_="tick"))
    parts.append(
        tag(
            "text",
            x_name,
            x=(LEFT + WIDE - RIGHT) / 2,
            y=HIGH - 3,
            text_anchor="middle",
            class_="tick",
        )
    )
    if y_name:
        parts.append(tag("text", y_name, x=LEFT, y=8, class_="tick"))
    return tag("g", parts)


def _svg(title: str, parts: Sequence[Html], wide: float = WIDE, high: float = HIGH) -> Html:
    return tag(
        "svg",
        list(parts),
        viewBox=f"0 0 {wide} {high}",
        width=wide,
        height=high,
        role="img",
        aria_label=title,
    )


def _figure(title: str, drawing: Html, numbers: Html | None, note: str = "") -> Html:
    more = tag("details", tag("summary", "numbers"), numbers) if numbers else None
    return tag(
        "figure",
        tag("figcaption", title),
        drawing,
        tag("p", note, class_="note") if note else None,
        more,
    )
