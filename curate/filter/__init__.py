"""Rules decide which traces make a corpus: SQL predicates in YAML, a selection, and a funnel that
shows the effect of each.

In order: `load_rules`, `apply_rules` over a connection with the view `annotated`, `print_funnel`,
`explain` for one trace, and `write_corpus` for the sealed result.
"""

from curate.filter.corpus import corpus_rows, write_corpus
from curate.filter.decide import Explanation, FilterResult, apply_rules, explain
from curate.filter.funnel import print_funnel
from curate.filter.rules import RuleSet, load_rules

__all__ = [
    "Explanation",
    "FilterResult",
    "RuleSet",
    "apply_rules",
    "corpus_rows",
    "explain",
    "load_rules",
    "print_funnel",
    "write_corpus",
]
