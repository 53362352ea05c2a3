"""Make text of models, data and servers safe to show: control characters become visible signs.

A terminal obeys escape sequences (titles, links, colours, moving the cursor), and marks of text
direction reorder what a person reads. `visible` replaces both by their code points, as ⟨U+001B⟩.
"""

from __future__ import annotations

import re

# C0 and C1 control characters except line break and tab, direction marks and overrides, line and
# paragraph separators, the byte order mark, lone surrogates, and invisible tag characters.
_UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"
    r"\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: object) -> str:
    """The text with every control and direction character replaced by its code point."""
    return _UNSAFE.sub(lambda match: f"⟨U+{ord(match.group()):04X}⟩", str(text))


def one_line(text: object) -> str:
    """The same on one line, for a cell of a table or a progress display."""
    return visible(text).replace("\n", "⏎").replace("\t", " ")


def guard_formula(text: str) -> str:
    """Prefix an apostrophe to a leading = + - @ or tab, so that no spreadsheet runs the text."""
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
