"""The text of a trace as HTML: escaped, with formulas as MathML and marked passages.

Marked are passages in another language and repeated ones. Marks are character ranges of the sampled
text. A formula is shown as a formula and marked as a whole.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from curate.report.html import Html, escape, join, tag
from curate.report.mathml import FORMULA, formula
from curate.signals.language import language_segments

REPEATED = 5  # words: as Gopher's 5-grams, the shortest whose repetition the signals count
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+")


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """Characters `start` to `end`, of kind `foreign` or `repeated`; `note` is the explanation."""

    start: int
    end: int
    kind: str
    note: str


def render_text(text: str, marks: Sequence[Mark] = ()) -> Html:
    """The full text as safe markup, with marks and formulas."""
    parts: list[Html] = []
    at = 0
    for match in FORMULA.finditer(text):
        parts.append(_marked(text, at, match.start(), marks))
        groups = match.groupdict()
        block = groups["a"] is not None or groups["b"] is not None
        shown = formula(
            next(value for value in groups.values() if value is not None).strip(), block
        )
        inside = [m for m in marks if m.start < match.end() and m.end > match.start()]
        parts.append(_wrap(shown, inside))
        at = match.end()
    parts.append(_marked(text, at, len(text), marks))
    return join(parts)


def _marked(text: str, start: int, end: int, marks: Sequence[Mark]) -> Html:
    """A stretch of plain text, split where marks start and end."""
    near = [m for m in marks if m.start < end and m.end > start]
    cuts = sorted({start, end, *(min(max(p, start), end) for m in near for p in (m.start, m.end))})
    parts = []
    for low, high in itertools.pairwise(cuts):
        parts.append(
            _wrap(escape(text[low:high]), [m for m in near if m.start < high and m.end > low])
        )
    return join(parts)


def _wrap(inside: Html, marks: Sequence[Mark]) -> Html:
    if not marks:
        return inside
    kinds = sorted({m.kind for m in marks})
    return tag(
        "mark",
        inside,
        class_=" ".join(kinds),
        title="; ".join(dict.fromkeys(m.note for m in marks)),
    )


def repeated_marks(text: str, size: int = REPEATED) -> list[Mark]:
    """Mark passages of at least `size` words that occurred earlier in the text."""
    words = [(m.group().lower(), m.start(), m.end()) for m in _WORD.finditer(text)]
    seen: set[tuple[str, ...]] = set()
    ranges: list[tuple[int, int]] = []
    for i in range(len(words) - size + 1):
        gram = tuple(word for word, _, _ in words[i : i + size])
        if gram in seen:
            start, end = words[i][1], words[i + size - 1][2]
            if ranges and start <= ranges[-1][1]:
                ranges[-1] = (ranges[-1][0], end)
            else:
                ranges.append((start, end))
        seen.add(gram)
    return [
        Mark(start, end, "repeated", f"these {size} words or more occurred before")
        for start, end in ranges
    ]


def foreign_marks(texts: Sequence[str], targets: Sequence[str | None]) -> list[list[Mark]]:
    """Mark passages in a language other than the target, as the language signals see them."""
    marks: list[list[Mark]] = [[] for _ in texts]
    segments = language_segments(
        pl.Series("text", list(texts), dtype=pl.String), pl.Series(targets, dtype=pl.String)
    )
    places = [0] * len(texts)
    for row, segment, language in segments.select("row", "segment", "language").iter_rows():
        for word in segment.split():
            start = texts[row].find(word, places[row])
            if start < 0:
                continue
            places[row] = end = start + len(word)
            if language is None or targets[row] is None or language == targets[row]:
                continue
            last = marks[row][-1] if marks[row] else None
            note = f"language: {language}"
            if last and last.note == note and not texts[row][last.end : start].strip():
                marks[row][-1] = Mark(last.start, end, "foreign", note)
            else:
                marks[row].append(Mark(start, end, "foreign", note))
    return marks
