"""Text never becomes markup, whatever it holds."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.report.html import Html, escape, join, number, tag
from curate.report.marked_text import Mark, foreign_marks, render_text, repeated_marks
from curate.report.mathml import ATTRIBUTES, ELEMENTS, formula
from tests.report.conftest import HOSTILE


class Reader(HTMLParser):
    """The elements, attributes and text that a parser sees."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def check_inert(markup: str) -> None:
    allowed = ELEMENTS | {"mark", "code"}
    for name, attributes in Reader(markup).elements:
        assert name in allowed
        assert set(attributes) <= ATTRIBUTES | {"class", "title"}


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_and_never_becomes_an_element(text):
    check_inert(render_text(text, [Mark(0, len(text), "foreign", '"><script>')]))


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from("<>&\"'$\\{}()[]=^_/ab \n\x00中"), max_size=60))
def test_any_text_is_inert(text):
    check_inert(render_text(text, repeated_marks(text)))


@settings(deadline=None)
@given(st.text(max_size=200).filter(lambda t: "$" not in t and "\\" not in t))
def test_text_without_formulas_is_shown_in_full(text):
    from curate.report.html import visible

    assert Reader(render_text(text)).text == visible(text).replace("\r\n", "\r\n")


def test_handlers_addresses_and_styles_are_never_written():
    for name in ("onclick", "href", "src", "style", "srcdoc", "formaction", "xlink_href"):
        with pytest.raises(ValueError):
            tag("p", **{name: "x"})
    for name in ("script", "SCRIPT", "p onclick=x"):
        with pytest.raises(ValueError):
            tag(name)
    assert (
        tag("p", "<b>", class_='"><i>', hidden=True, lang=None)
        == '<p class="&quot;&gt;&lt;i&gt;" hidden>&lt;b&gt;</p>'
    )
    assert join(["a", None, Html("<br>")], "<") == "a<br>&lt;"


def test_what_turns_text_around_or_hides_in_it_is_shown():
    assert escape("a\u202eb\x00") == "a⟨U+202E⟩b⟨U+0000⟩"


def test_formulas_become_mathml_and_keep_only_what_shows_something():
    mathml = formula("\\frac{1}{2}")
    assert "<mfrac>" in mathml
    assert mathml.startswith('<math display="inline">')
    assert 'class="boxed"' in formula("\\boxed{5}")
    assert "javascript" not in formula("\\href{javascript:alert(1)}{x}").split(">", 1)[0]
    assert formula("{" * 100 + "x" + "}" * 100).startswith("<code")
    assert formula("x" * 3000).startswith("<code")


def test_money_is_not_a_formula():
    assert "<math" not in render_text("It costs $5 and then $3 more.")
    assert "<math" in render_text("So $5 + 3 = 8$ it is.")


def test_marks_lie_on_the_words_they_mean():
    texts = [
        "先算 let us see the sum of them 然后 $x^2$ 完成了",
        "All of this is English, and it is good.",
    ]
    marks = foreign_marks(texts, ["zh", "en"])
    assert [texts[0][m.start : m.end] for m in marks[0]] == ["let us see the sum of them"]
    assert marks[1] == []
    again = "one two three four five six. one two three four five seven"
    assert [again[m.start : m.end] for m in repeated_marks(again)] == ["one two three four five"]
    assert 'class="foreign repeated"' in render_text(
        "ab", [Mark(0, 2, "foreign", ""), Mark(0, 2, "repeated", "")]
    )


def test_numbers_for_the_eye():
    assert [number(v) for v in (None, 3, 12345, 0.5, 1234.5, 2.0)] == [
        "–",
        "3",
        "12,345",
        "0.500",
        "1,234",
        "2",
    ]
