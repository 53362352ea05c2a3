"""HTML from data: one place where text becomes markup, and text is always escaped there.

A `Html` is markup; every other string is text. `tag("p", text)` escapes `text`, whatever it holds,
so that model output cannot become an element, an attribute or a script. Attributes that could run
something are refused by name.
"""

from __future__ import annotations

import html
import re
from typing import Any

from curate.visible import visible


class Html(str):
    """A string that is markup already."""

    __slots__ = ()


_VOID = {"meta", "br", "input", "circle", "line", "rect", "path", "polyline", "polygon"}
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*")
# Never written, whoever asks: handlers, addresses and inline styles.
_REFUSED = re.compile(r"on.*|href|src|srcdoc|action|formaction|style|xlink.*", re.IGNORECASE)


def escape(text: object) -> Html:
    """Anything as text in an element or a quoted attribute; markup is passed through."""
    if isinstance(text, Html):
        return text
    return Html(html.escape(visible("" if text is None else str(text)), quote=True))


def tag(name: str, /, *children: object, **attributes: Any) -> Html:
    """An element. `class_` and `data_x` stand for `class` and `data-x`; None leaves an attribute
    out, True is bare."""
    if not _NAME.fullmatch(name) or name.lower() == "script":
        raise ValueError(f"no element '{name}'")
    written = ""
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if not _NAME.fullmatch(key) or _REFUSED.fullmatch(key):
            raise ValueError(f"no attribute '{key}'")
        if value is not None and value is not False:
            written += f" {key}" if value is True else f' {key}="{escape(value)}"'
    inside = join(*children)
    if name in _VOID and not inside:
        return Html(
            f"<{name}{written}>" if name in ("meta", "br", "input") else f"<{name}{written}/>"
        )
    return Html(f"<{name}{written}>{inside}</{name}>")


def join(*children: object) -> Html:
    """Children one after the other; lists are taken apart, None is nothing."""
    made = []
    for child in children:
        if isinstance(child, list | tuple):
            made.append(join(*child))
        elif child is not None:
            made.append(escape(child))
    return Html("".join(made))


def number(value: float | int | None, digits: int = 3) -> str:
    """A number as the eye wants it: thousands apart, no more digits than say something."""
    if value is None:
        return "–"
    if isinstance(value, int) or (abs(value) >= 1000 and float(value).is_integer()):
        return f"{value:,.0f}"
    return (
        f"{value:,.0f}"
        if abs(value) >= 1000
        else f"{value:.{digits}g}"
        if abs(value) >= 1
        else f"{value:.{digits}f}"
    )


def table(head: list[str], rows: list[list[object]], caption: str = "", numeric: int = 1) -> Html:
    """A table; columns from the `numeric`-th on are numbers."""
    cells = [
        tag(
            "tr",
            [
                tag(
                    "td" if i else "th",
                    v,
                    scope=None if i else "row",
                    class_="n" if i >= numeric else None,
                )
                for i, v in enumerate(row)
            ],
        )
        for row in rows
    ]
    top = [
        tag("th", name, scope="col", class_="n" if i >= numeric else None)
        for i, name in enumerate(head)
    ]
    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption) if caption else None,
            tag("thead", tag("tr", top)),
            tag("tbody", cells),
        ),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption or "table",
    )
