"""Words out of order: pairs of function words that no grammar allows, and misplaced sentence marks.

Salad of common words has the vocabulary of prose, so only the order of its words betrays it.
Function words are few and frequent: in shuffled text every tenth word is one that cannot follow the
word before it, in prose hardly one in a thousand. The patterns use exactly one space, since a
masked formula leaves more.
"""

from __future__ import annotations

import polars as pl

_BE = "is|are|was|were|has|have|had"
_MODAL = "can|could|will|would|should|must"
_JOIN = "and|or|but|if|because|than|therefore|hence"
_SUBJECT = "we|they|he|she"
_ARTICLE = "the|an|its|their|our|my|your|his|every"
# English, as "first word: words that cannot follow". Left out on purpose: "a" (a variable), "this",
# "that" and "her" (pronouns, too), "to" (equal to), "in" and "on" (adverbs, too).
_ENGLISH = {
    _ARTICLE: (
        f"{_ARTICLE}|{_BE}|{_MODAL}|{_JOIN}|{_SUBJECT}|of|from|with|into|at|for|so|it|be|when"
    ),
    "of|from|with|into|by": f"{_BE}|{_MODAL}|but|if|because|than|{_SUBJECT}|be|of|from|with|into",
    _SUBJECT: f"{_ARTICLE}|{_SUBJECT}|of|from|with|into|than|for",
    "is|are|was|were|be": f"is|are|was|were|{_MODAL}|has|had|they|we|and",
    _MODAL: f"of|from|is|are|was|were|has|had|{_MODAL}|than|an|and",
    "and|or|but|because|if": "and|or|but|than|because",
    "to": f"is|are|was|were|has|had|{_MODAL}|{_SUBJECT}|to|of|than|because",
}
# German: an article before a verb, a conjunction, a pronoun or a preposition.
_GERMAN = {
    "dem|den|einem|einen|eine|ein|zum|zur|des": (
        "ist|sind|wird|und|oder|aber|wenn|weil|dass|wir|man|ich|er|also|dann|durch|mit|von|aus"
        "|nicht|muss|kann"
    ),
    "und|oder|aber": "und|oder|ist|des|aber",
    "wir|man": "der|dem|des|ist|und|wir|von",
    "ist|sind": "ist|sind|und|wird",
}
# Romance languages: an article before a verb, a conjunction or another article.
_ROMANCE = {
    "el|los|las|del|una|unos": "el|los|las|del|es|son|y|que se|por|para|con|si|pero|entonces|de|en",
    "le|les|des|une": "les|des|une|est|sont|et|donc|mais|si|pour|dans|avec|nous|on|de",
    "il|gli|della|dei": "il|gli|della|dei|sono|quindi|ma|con|per|di",
    "os|uma|dos|das": "os|uma|dos|das|são|então|mas|com|por|de|em",
}
_NO_END = (
    "the|its|their|every|el|las|del|sus|le|la|les|des|ses|ces|dem|den|einem|einen|zum|zur"
    "|welche[rs]?|deren|wessen"
)
_NO_FINAL = (
    "and|or|because|than|if|into|que|con|porque|aunque|pero|et|ou|de|sur|avec|dans|dont|si|und|oder"
    "|weil|dass|obwohl|nachdem|beim"
)
# Chinese: the particles 把, 被, 与, 从 without their noun, 的 before a conjunction, a sentence that
# begins with a particle or ends in a conjunction.
_CHINESE = (
    r"[把被与从][的了]|的(?:因为|所以|如果|而且|但是|于是|那么|因此|把|被|从而|来自)"
    r"|(?:[^之]与|把|被|从|以及|从而)[。；，！？]|(?:因为|如果|而且|并且|或者|虽然)[。；！？]|[在于]的(?:被|把|在|对)"
    r"|[，。；！？](?:的[^确]|了[^解]|们|吗|呢)|的的|了了|是是|在在"
)


def _pairs(table: dict[str, str]) -> str:
    return "|".join(f"(?:{first}) (?:{second})" for first, second in table.items())


# Words that can end a sentence in another of these languages (an, du, los, par) are left out.
_CLASH = (
    rf"(?i)(?-u:\b)(?:{_pairs(_ENGLISH)}|{_pairs(_GERMAN)}|{_pairs(_ROMANCE)})(?:[ .,;]|$)"
    rf"|(?i)(?-u:\b)(?:(?:{_NO_END})[.,;]|(?:{_NO_FINAL})[.;])"
)
# The end of one sentence where the next begins with a small letter, and words that open a sentence
# after a small letter. Writers who use no capitals do the first only, titles the second.
_SMALL_START = r"\p{Ll}{3}[.!?] \p{Ll}"
_LATE_OPENER = (
    r"\p{Ll},? (?:The|So|Then|We|But|If|This|It|And|For|Now|First|Since|Therefore|Wait|Next|Thus"
    r"|When|Let|That|Is|Are|To|He|She|They|There|Each|After|El|Los|Las|Entonces|Por|Como|Cada|Le"
    r"|Les|Donc|On|Pour|Der|Die|Das|Wir|Dann|Also|Wenn|Il|Quindi|Allora|Então|Os|Cada|Så|Dus|Так"
    r"|Поэтому|Если|Значит|Тогда|Мы)[ ,]"
)


def clashes(prose: pl.Expr) -> pl.Expr:
    """Pairs of function words that no grammar allows, and function words that end a sentence."""
    return prose.str.count_matches(_CLASH)


def chinese_clashes(prose: pl.Expr) -> pl.Expr:
    """The same for Chinese particles and conjunctions."""
    return prose.str.count_matches(_CHINESE)


def misplaced_marks(prose: pl.Expr) -> pl.Expr:
    """Sentence marks and capitals out of place, counted in pairs: the fewer of the two kinds."""
    return pl.min_horizontal(
        prose.str.count_matches(_SMALL_START), prose.str.count_matches(_LATE_OPENER)
    )
