"""LaTeX to MathML, converted when the page is written, so that formulas need no script.

The result of `latex2mathml` is parsed as XML and rebuilt from a list of elements and attributes
that only display. A formula that cannot be converted stays as it was written, as code.
"""

from __future__ import annotations

import re
from functools import lru_cache
from xml.etree import ElementTree

from curate.report.html import Html, escape, tag

# `$5 and $3` is money: between single dollars there must be a mathematical sign, or one symbol.
FORMULA = re.compile(
    r"\$\$(?P<a>.+?)\$\$|\\\[(?P<b>.+?)\\\]|\\\((?P<c>.+?)\\\)"
    r"|(?P<boxed>\\boxed\{(?:[^{}]|\{[^{}]*\})*\})"
    r"|(?<![\\$\w])\$(?P<d>[^$\n]*[\\^_=+*/<>{}|-][^$\n]*|[A-Za-z])\$(?![\w$])",
    re.DOTALL,
)
LONGEST = 2000  # characters; longer formulas are shown as text
DEEPEST = 40  # nested braces, which the converter follows by recursion

_ELEMENTS = """
math mrow mi mn mo mtext mspace msup msub msubsup mfrac msqrt mroot mover munder munderover mtable
mtr mtd mstyle mpadded mphantom mmultiscripts mprescripts none menclose
"""
_ATTRIBUTES = """
display mathvariant stretchy fence separator form accent accentunder linethickness columnalign
rowalign columnspacing rowspacing lspace rspace width height depth displaystyle scriptlevel
movablelimits minsize maxsize symmetric largeop columnspan rowspan notation
"""
ELEMENTS, ATTRIBUTES = frozenset(_ELEMENTS.split()), frozenset(_ATTRIBUTES.split())
_VALUE = re.compile(r"[\w .%+-]{0,60}", re.ASCII)
_NAMESPACE = "{http://www.w3.org/1998/Math/MathML}"


@lru_cache(maxsize=4096)
def formula(latex: str, block: bool = False) -> Html:
    """A formula as safe MathML; as code if it is too long, too deep, or not LaTeX."""
    element = None
    if len(latex) <= LONGEST and _depth(latex) <= DEEPEST:
        try:
            from latex2mathml.converter import convert

            element = _clean(
                ElementTree.fromstring(convert(latex, display="block" if block else "inline"))
            )
        except (
            Exception,
            RecursionError,
        ):  # the converter raises anything on text that is not LaTeX
            element = None
    return element if element is not None else tag("code", latex, class_="tex")


def _depth(latex: str) -> int:
    deepest = now = 0
    for sign in latex:
        now += (sign == "{") - (sign == "}")
        deepest = max(deepest, now)
    return max(deepest, latex.count("\\left"))


def _clean(node: ElementTree.Element) -> Html:
    """Rebuild an element. One that is not on the list is replaced by its children."""
    name = node.tag.removeprefix(_NAMESPACE) if isinstance(node.tag, str) else ""
    inside = Html(
        escape(node.text or "")
        + "".join(_clean(child) + escape(child.tail or "") for child in node)
    )
    if name not in ELEMENTS:
        return inside
    kept = "".join(
        f' {key}="{escape(value)}"'
        for key, value in node.attrib.items()
        if key in ATTRIBUTES and _VALUE.fullmatch(value)
    )
    if name == "menclose":  # MathML Core, which browsers know, has none
        return Html(f'<mrow class="boxed">{inside}</mrow>')
    return Html(f"<{name}{kept}>{inside}</{name}>")
