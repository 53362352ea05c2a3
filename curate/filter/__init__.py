"""Rules decide which traces make a corpus: YAML of SQL predicates, selection, and the funnel that shows what each did.

rules = load_rules("rejection")
result = apply_rules(connection, rules)     # connection: DuckDB with the view `annotated`
print_funnel(result.funnel)
print(explain(connection, rules, trace_id))
"""

from curate.filter.engine import Explanation, FilterResult, apply_rules, explain
from curate.filter.funnel import print_funnel
from curate.filter.rules import RuleSet, load_rules

__all__ = ["Explanation", "FilterResult", "RuleSet", "apply_rules", "explain", "load_rules", "print_funnel"]
