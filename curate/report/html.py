"""HTML from data: the one module that turns text into markup, escaping all of it.

An `Html` is markup; any other string is text. `tag("p", text)` escapes `text`, so that model output
cannot become an element, an attribute or a script. Attributes that could run something are refused
by name.
"""

from __future__ import annotations

import html
import re
from typing import Any

from curate.visible import visible


class Html(str):
    """A string that already is markup."""

    __slots__ = ()


_VOID = {"meta", "br", "input", "circle", "line", "rect", "path", "polyline", "polygon"}
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*")
# Never written, whatever the caller: handlers, addresses and inline styles.
_REFUSED = re.compile(r"on.*|href|src|srcdoc|action|formaction|style|xlink.*", re.IGNORECASE)


def escape(text: object) -> Html:
    """Text for an element or a quoted attribute. Markup passes unchanged."""
    if isinstance(text, Html):
        return text
    return Html(html.escape(visible("" if text is None else str(text)), quote=True))


def tag(name: str, /, *children: object, **attributes: Any) -> Html:
    """An element. `class_` and `data_x` mean `class` and `data-x`; None omits an attribute, True
    gives a bare one.
    """
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
    """Concatenate children. Lists are flattened, None is skipped."""
    parts = []
    for child in children:
        if isinstance(child, list | tuple):
            parts.append(join(*child))
        elif child is not None:
            parts.append(escape(child))
    return Html("".join(parts))


def number(value: float | int | None, digits: int = 3) -> str:
    """A number for reading: with thousands separators and no meaningless digits."""
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


def table(
    head: list[str],
    rows: list[list[object]],
    caption: str = "",
    numeric: int = 1,
    stacked: bool = False,
) -> Html:
    """A table. Columns from index `numeric` on hold numbers.

    `stacked`: on a narrow screen each row is a block of lines, with the heads as labels.
    """
    cells = [
        tag(
            "tr",
            [
                tag(
                    "td" if i else "th",
                    v,
                    scope=None if i else "row",
                    class_="n" if i >= numeric else None,
                    data_label=(head[i] or None) if stacked and i >= numeric else None,
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
            class_="stack" if stacked else None,
        ),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption or "table",
    )
