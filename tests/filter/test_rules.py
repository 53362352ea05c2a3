"""Rule files: refusals, and limits of predicates."""

from __future__ import annotations

from pathlib import Path

import pytest

from curate.errors import UsageError
from curate.filter.expressions import check_expression
from curate.filter.rules import load_rules

SHIPPED = ("cold-start", "rejection", "unfiltered")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_rule_sets_load_and_give_reasons(name: str) -> None:
    rules = load_rules(name)
    assert rules.name == name
    assert all(len(rule.reason) > 20 for rule in rules.rules)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rulez: []", "rulez"),
        ("rules: [{name: a, keep: 'x > 1'}]", "rules.0.reason"),
        ("rules: [{name: a, keep: 'x >', reason: b}]", "'a' is not valid SQL"),
        ("rules: [{name: a, keep: x, reason: b}, {name: a, keep: y, reason: b}]", "distinct"),
        ("rules: [{name: budget, keep: x, reason: b}]", "distinct"),
        ("select: {per_problem: {best: {k: 1}, random: {k: 1}}}", "choose one of"),
        ("select: {per_problem: {best: {k: 0}}}", "greater than or equal to 1"),
        ("select: {difficulty: {low: 0.8, high: 0.2}}", "the band is empty"),
        ("kind: neither", "kind"),
        ("- a list", "a config is a mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_wrong_file_says_where(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        load_rules(path)
    assert "mine.yaml" in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(UsageError, match="cold-start, rejection, unfiltered"):
        load_rules("nothing-like-it")


def test_overrides_replace_one_value() -> None:
    rules = load_rules("rejection", {"select.per_problem.best.k": 7, "select.budget": 10})
    assert rules.select.per_problem.best is not None
    assert (rules.select.per_problem.best.k, rules.select.budget) == (7, 10)
    with pytest.raises(UsageError, match="is a value, not a group of keys"):
        load_rules("rejection", {"name.x": 1})


@pytest.mark.parametrize(
    "sql",
    [
        "1) ; DROP TABLE traces; SELECT (1",
        "true) FROM traces WHERE (true",
        "true) UNION SELECT (true",
        "true; COPY traces TO 'x'",
        "(SELECT count(*) FROM traces) > 1",
        "trace_id IN (SELECT trace_id FROM traces)",
        "EXISTS (FROM read_csv('/etc/hosts'))",
        "json_serialize_plan('FROM read_csv(''/etc/passwd'')')::VARCHAR LIKE '%root%'",
        "len(JSON_SERIALIZE_PLAN('FROM traces')::VARCHAR) > 3",
        "list_transform([1], x -> json_serialize_plan('FROM traces')) IS NULL",
        "loop_share > ?",
        "loop_share > $1",
        "random() > 0.5",
        "nextval('s') > 1",
        "now() > created_at",
        "created_at < current_date",
        "age(created_at) < INTERVAL 3 DAY",
        "get_current_timestamp() > created_at",
        "current_setting('home_directory') = ''",
        "*",
        "",
    ],
)
def test_a_predicate_only_reads_one_row(sql: str) -> None:
    with pytest.raises(UsageError, match="rule 'r'"):
        check_expression(sql, "r")


def test_columns_of_a_predicate() -> None:
    assert check_expression("a > 1 AND readable(b, c) -- not d\n OR a IS NULL", "r") == (
        "a",
        "b",
        "c",
    )
    assert check_expression("error IS NULL", "r") == ("error",)


@pytest.mark.parametrize(
    "sql",
    ["1 - loop_share > 0.5", "a + b > 1", "year(created_at) = 2026", "date_part('hour', t) < 9"],
)
def test_arithmetic_and_dates_are_steady(sql: str) -> None:
    """DuckDB marks their forms for times with a time zone as varying between queries."""
    assert check_expression(sql, "r")


def test_overrides_replace_only_the_named_values() -> None:
    rules = load_rules(
        "cold-start",
        {"select": {"contamination": {"benchmarks": ["a.jsonl"], "n": 13}, "budget": 5}},
    )
    assert rules.select.contamination is not None
    assert rules.select.contamination.n == 13
    assert rules.select.per_problem.best is not None  # the file's value is kept
    other = load_rules("cold-start", {"select": {"per_problem": {"shortest": {"k": 3}}}})
    assert other.select.per_problem.ways() == ["shortest"]  # one way replaces the other
