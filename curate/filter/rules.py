"""Rule sets: named SQL predicates in YAML, the selection among the traces that pass, and the
corpus's form.

A predicate states what to keep. It is one SQL expression over a row of the `annotated` view, and it
only reads: statements, subqueries and functions with varying results are refused, so that a corpus
can be reproduced.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from curate.config import Config, group_at, read_yaml, validate
from curate.errors import UsageError, did_you_mean
from curate.filter.expressions import check_expression
from curate.prompts.forms import FormName
from curate.prompts.render import TemplateName
from curate.shipped import data_dir


class Rule(Config):
    """A named predicate with a reason."""

    name: str = Field(min_length=1)
    """Name in the funnel."""
    keep: str = Field(min_length=1)
    """SQL expression over a row of `annotated`: traces for which it is true are kept."""
    reason: str = Field(min_length=1)
    """Explanation for the reader of the funnel."""


class Best(Config):
    """The k best traces of a problem."""

    k: int = Field(ge=1)
    """Traces per problem."""
    by: str = "quality"
    """SQL expression over a row of `annotated`; the highest values are the best."""


class Top(Config):
    """The k traces with the highest `by` of all that remain, any SQL expression over one row."""

    k: int = Field(ge=1)
    """Traces in all."""
    by: str = "quality"
    """Expression that ranks the traces."""


class Pick(Config):
    """k traces of a problem."""

    k: int = Field(ge=1)
    """Traces per problem."""


class PerProblem(Config):
    """Choice among the traces of a problem that passed the rules, in at most one of four ways."""

    best: Best | None = None
    """The traces with the highest values of an expression."""
    random: Pick | None = None
    """Random traces, by a hash of seed and trace."""
    shortest: Pick | None = None
    """The traces with the fewest characters of completion."""
    diverse: Pick | None = None
    """The best by `quality`, then repeatedly the one whose step count, length and reflection are
    farthest from those chosen."""

    @model_validator(mode="after")
    def one_way(self) -> PerProblem:
        if len(self.ways()) > 1:
            raise ValueError(
                f"choose one of best, random, shortest and diverse, not {' and '.join(self.ways())}"
            )
        return self

    def ways(self) -> list[str]:
        return [
            name
            for name in ("best", "random", "shortest", "diverse")
            if getattr(self, name) is not None
        ]


class Difficulty(Config):
    """A band of difficulty, both ends included."""

    low: float = Field(default=0.0, ge=0, le=1)
    """Lower end."""
    high: float = Field(default=1.0, ge=0, le=1)
    """Upper end."""
    by: str = "difficulty"
    """SQL expression of difficulty, between 0 (easy) and 1 (hard)."""
    model: str | None = None
    """Use 1 - pass rate of this model's traces on the problem, among the traces being filtered."""

    @model_validator(mode="after")
    def ordered(self) -> Difficulty:
        if self.low > self.high:
            raise ValueError(f"the band is empty: low {self.low} is above high {self.high}")
        return self


class Balance(Config):
    """No value of `by` may hold more than `ratio` times as many traces as the smallest one."""

    by: str = "source"
    """SQL expression of the value."""
    ratio: float = Field(default=1.0, ge=1)
    """Maximum ratio of the largest group to the smallest."""


class Duplicates(Config):
    """Keep only the best of texts that are the same once folded or share most word 3-grams."""

    over: Literal["completion", "reasoning", "question"] = "completion"
    """`completion` and `reasoning` compare traces; `question` compares problems and drops every
    trace of the duplicates."""
    near: bool = True
    """Compare word 3-grams as well; false: only texts that are the same once folded."""
    threshold: float = Field(default=0.8, gt=0, le=1)
    """Minimum Jaccard similarity of near duplicates."""
    merge_templates: bool = False
    """Near duplicates among questions may differ in numbers, signs and relations."""
    by: str = "quality"
    """SQL expression; of duplicates, the one with the highest value is kept."""
    within: str | None = None
    """SQL of a value that two texts must share to be compared, such as `source`, `problem_id` or
    `dataset`; null: all are compared."""


class Contamination(Config):
    """Drop problems that are items of benchmark files (see curate/filter/contamination.py)."""

    benchmarks: list[str] = Field(min_length=1)
    """Data files, .txt with an item per line, or names of benchmarks such as aime24."""
    column: str | None = None
    """Column of the items; null: the first with a usual name."""
    n: int = Field(default=10, ge=4)
    """Texts that share n words in a row, a rare run of three words or their numbers are
    compared."""
    similarity: float = Field(default=0.6, gt=0, le=1)
    """Texts that are at least this similar are the same problem."""


class Selection(Config):
    """Applied after the rules, in the order of these fields."""

    contamination: Contamination | None = None
    """Drop problems of benchmarks."""
    duplicates: Duplicates | None = None
    """Drop duplicates."""
    difficulty: Difficulty | None = None
    """Keep a band of difficulty."""
    per_problem: PerProblem = PerProblem()
    """Limit the traces of each problem."""
    balance: Balance | None = None
    """Limit the larger groups of traces."""
    top: Top | None = None
    """Keep the best of all."""
    budget: int | None = Field(default=None, ge=1)
    """Maximum number of traces."""
    seed: int = 0
    """Seed of random choices and ties."""


class Output(Config):
    """Form and template of a corpus."""

    form: FormName | None = None
    """Output form of the completions; null: that of the trace."""
    template: TemplateName | None = None
    """Template of the prompts; null: that of the trace."""


class RuleSet(Config):
    """A whole rule file."""

    name: str = Field(min_length=1)
    """Name of the rule set, and of its corpora unless the filter names them."""
    about: str = ""
    """One sentence for readers."""
    kind: Literal["sft", "rl"] = "sft"
    """`sft`: rows are traces. `rl`: rows are problems, without completions."""
    output: Output = Output()
    """Form and template of the corpus."""
    where: str | None = None
    """SQL condition on the traces to consider; others do not appear in the funnel."""
    rules: Annotated[list[Rule], Field(default_factory=list)]
    """Predicates in the order of the funnel; a trace must pass all of them."""
    select: Selection = Selection()
    """Selection among the traces that passed."""

    @field_validator("rules")
    @classmethod
    def distinct(cls, rules: list[Rule]) -> list[Rule]:
        names = [rule.name for rule in rules]
        twice = sorted({name for name in names if names.count(name) > 1 or name in STEPS})
        if twice:
            raise ValueError(
                f"rule names must be distinct, and not one of {', '.join(STEPS)}: "
                f"{', '.join(twice)}"
            )
        return rules

    @model_validator(mode="after")
    def expressions(self) -> RuleSet:
        for name, sql in self.predicates().items():
            check_expression(sql, name)
        return self

    def predicates(self) -> dict[str, str]:
        """Return every SQL expression of the rule set, by its place."""
        named = {rule.name: rule.keep for rule in self.rules}
        if self.where is not None:
            named["where"] = self.where
        if self.select.per_problem.best is not None:
            named["select.per_problem.best.by"] = self.select.per_problem.best.by
        if self.select.duplicates is not None:
            named["select.duplicates.by"] = self.select.duplicates.by
            if self.select.duplicates.within is not None:
                named["select.duplicates.within"] = self.select.duplicates.within
        if self.select.difficulty is not None:
            named["select.difficulty.by"] = self.select.difficulty.by
        if self.select.balance is not None:
            named["select.balance.by"] = self.select.balance.by
        if self.select.top is not None:
            named["select.top.by"] = self.select.top.by
        return named


# Names of the selection steps in the funnel, in order of execution.
STEPS = ("contamination", "duplicates", "difficulty", "per_problem", "balance", "top", "budget")


def load_rules(
    path_or_name: str | Path,
    overrides: dict[str, Any] | None = None,
    without: Sequence[str] = (),
) -> RuleSet:
    """Load a rule set from a YAML file, or the shipped one of that name (`cold-start`, `rejection`,
    `unfiltered`).

    `overrides` replaces values at dotted places: {"select.per_problem.best.k": 2}. `without` names
    rules to leave out. Raises `UsageError` with the file and the place of an error.
    """
    path = _find(path_or_name)
    content = read_yaml(path)
    for place, value in (overrides or {}).items():
        group, last = group_at(content, place, f"{path}: {place}")
        group[last] = _laid_over(group.get(last), value)
    content.setdefault("name", path.stem)
    try:
        return _without(validate(RuleSet, content, str(path)), without, str(path))
    except UsageError as error:
        # The error about a refused SQL expression names its rule, not the file.
        place = "" if str(error).startswith(str(path)) else f"{path}: "
        raise UsageError(f"{place}{error}") from error


def _without(rules: RuleSet, names: Sequence[str], where: str) -> RuleSet:
    """Return the rule set without the named rules."""
    own = [rule.name for rule in rules.rules]
    for name in names:
        if name not in own:
            raise UsageError(
                f"{where}: without: no rule '{name}'{did_you_mean(name, own)} There are "
                f"{', '.join(own) or 'none'}"
            )
    return rules.model_copy(update={"rules": [r for r in rules.rules if r.name not in names]})


def _find(path_or_name: str | Path) -> Path:
    path = Path(path_or_name)
    if path.is_file():
        return path
    folder = data_dir("pipelines") / "rules"
    shipped = folder / f"{path_or_name}.yaml"
    if (
        path.suffix in ("", ".yaml")
        and len(path.parts) == 1
        and (folder / f"{path.stem}.yaml").is_file()
    ):
        return folder / f"{path.stem}.yaml" if path.suffix else shipped
    names = sorted(p.stem for p in folder.glob("*.yaml"))
    hint = did_you_mean(path.stem, names)
    raise UsageError(
        f"no rule set '{path_or_name}': give a YAML file, or one of {', '.join(names)}{hint}"
    )


def _laid_over(old: Any, new: Any) -> Any:
    """Merge mappings key by key; among the ways to choose per problem, the new one replaces the
    old one.
    """
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    ways = set(PerProblem.model_fields)
    kept = {
        key: value
        for key, value in old.items()
        if key in new or not (set(new) & ways and key in ways)
    }
    return kept | {key: _laid_over(old.get(key), value) for key, value in new.items()}
