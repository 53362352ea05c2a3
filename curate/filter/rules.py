"""Rule sets: YAML of named SQL predicates, what is selected from the traces that pass them, and
the corpus they make.

A predicate says what to keep. It is one SQL expression over one row of the `annotated` view, and
it only reads: statements, subqueries and functions that answer differently twice are refused, so
that a corpus can be made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from curate.config import Config, did_you_mean, group_at, read_yaml, validate
from curate.errors import UsageError
from curate.filter.expressions import check_expression
from curate.prompts.forms import FormName
from curate.prompts.render import TemplateName
from curate.warehouse.schemas import data_dir


class Rule(Config):
    """Keeps the traces for which `keep` is true. `reason` says why, for the reader of
    the funnel.
    """

    name: str = Field(min_length=1)
    keep: str = Field(min_length=1)
    reason: str = Field(min_length=1)


class Best(Config):
    """The k traces of a problem with the highest `by`, any SQL expression over one row."""

    k: int = Field(ge=1)
    by: str = "quality"


class Pick(Config):
    """k traces of a problem."""

    k: int = Field(ge=1)


class PerProblem(Config):
    """How traces are chosen among those of one problem that passed the rules; at most one of the
    four.

    random: as the hash of seed and trace falls. shortest: by characters of the completion.
    diverse: the best by `quality`, then each time the one whose step count, length and reflection
    lie farthest from those chosen.
    """

    best: Best | None = None
    random: Pick | None = None
    shortest: Pick | None = None
    diverse: Pick | None = None

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
    """A band of difficulty, both ends included. `by` is a SQL expression of difficulty between 0
    (easy) and 1 (hard).

    With `model` the difficulty is 1 - pass rate of that model's traces on the problem, as the
    traces at hand show it.
    """

    low: float = Field(default=0.0, ge=0, le=1)
    high: float = Field(default=1.0, ge=0, le=1)
    by: str = "difficulty"
    model: str | None = None

    @model_validator(mode="after")
    def ordered(self) -> Difficulty:
        if self.low > self.high:
            raise ValueError(f"the band is empty: low {self.low} is above high {self.high}")
        return self


class Balance(Config):
    """No value of `by` may hold more than `ratio` times as many traces as the smallest one."""

    by: str = "source"
    ratio: float = Field(default=1.0, ge=1)


class Duplicates(Config):
    """Of texts that are the same once folded, or (`near`) share most word 3-grams, only the best
    by `by` is kept.

    over: `completion` compares traces; `question` compares problems, and drops every trace of the
    lesser ones.
    within: SQL of what two texts must share to be compared (`source`, `problem_id`, `dataset`); by
    default all are.
    threshold: the least Jaccard similarity of near duplicates.
    merge_templates: near duplicates among questions may differ in numbers, signs and relations.
    """

    over: Literal["completion", "reasoning", "question"] = "completion"
    near: bool = True
    threshold: float = Field(default=0.8, gt=0, le=1)
    merge_templates: bool = False
    by: str = "quality"
    within: str | None = None


class Contamination(Config):
    """Drop problems that are items of benchmark files (data files, or .txt with an item per line).

    `n` words in a row, a rare run of three words or the same numbers make two texts worth
    comparing; both are the same problem from `similarity` on (see curate/filter/contamination.py).
    """

    benchmarks: list[str] = Field(min_length=1)
    column: str | None = None
    n: int = Field(default=10, ge=4)
    similarity: float = Field(default=0.6, gt=0, le=1)


class Selection(Config):
    """Applied after the rules, in the order of these fields. `seed` breaks every tie."""

    contamination: Contamination | None = None
    duplicates: Duplicates | None = None
    difficulty: Difficulty | None = None
    per_problem: PerProblem = PerProblem()
    balance: Balance | None = None
    budget: int | None = Field(default=None, ge=1)
    seed: int = 0


class Output(Config):
    """How prompts of the corpus are rendered again: output form and prompt template. None: those of
    the trace.
    """

    form: FormName | None = None
    template: TemplateName | None = None


class RuleSet(Config):
    """A whole rule file."""

    name: str = Field(min_length=1)
    about: str = ""
    kind: Literal["sft", "rl"] = "sft"
    output: Output = Output()
    where: str | None = None
    rules: Annotated[list[Rule], Field(default_factory=list)]
    select: Selection = Selection()

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
        """Every SQL expression of the rule set, by its place."""
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
        return named


# Names of selection steps in the funnel, in the order in which they are done.
STEPS = ("contamination", "duplicates", "difficulty", "per_problem", "balance", "budget")


def load_rules(
    path_or_name: str | Path,
    overrides: dict[str, Any] | None = None,
    without: Sequence[str] = (),
) -> RuleSet:
    """The rule set in a YAML file, or the shipped one of that name (`cold-start`, `rejection`,
    `unfiltered`).

    `overrides` lays values over dotted places: {"select.per_problem.best.k": 2}. `without` names
    rules to leave out. Raises `UsageError` with the file and the place for anything that is wrong
    with it.
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
        # A SQL expression that is refused names its rule, and not the file.
        place = "" if str(error).startswith(str(path)) else f"{path}: "
        raise UsageError(f"{place}{error}") from error


def _without(rules: RuleSet, names: Sequence[str], where: str) -> RuleSet:
    """The rule set without the named rules."""
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
    names = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
    raise UsageError(f"no rule set '{path_or_name}': give a YAML file, or one of {names}")


def _laid_over(old: Any, new: Any) -> Any:
    """Mappings are merged key by key; of the ways to choose per problem, the new one takes the
    place of the old.
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
