"""Deciding: rules, the funnel, selection, explanation, and errors."""

from __future__ import annotations

import io

import duckdb
import polars as pl
import pytest
from rich.console import Console

from curate.errors import CurateError, UsageError
from curate.filter import apply_rules, explain, load_rules, print_funnel
from curate.filter.rules import RuleSet
from curate.warehouse.schemas import arrow_schema

Connection = duckdb.DuckDBPyConnection


def rules(
    keep: dict[str, str], select: dict[str, object] | None = None, kind: str = "sft"
) -> RuleSet:
    named = [{"name": name, "keep": sql, "reason": "a test"} for name, sql in keep.items()]
    return RuleSet.model_validate(
        {"name": "test", "kind": kind, "rules": named, "select": select or {}}
    )


def ids(result_frame: pl.DataFrame) -> list[str]:
    return sorted(result_frame["trace_id"].to_list())


def counts(funnel: pl.DataFrame) -> dict[str, tuple[int, int | None]]:
    """Map each rule to (drops first, drops alone)."""
    summed = funnel.group_by("rule").agg(pl.col("drops_first").sum(), pl.col("drops_alone").sum())
    return {name: (first, alone) for name, first, alone in summed.iter_rows()}


def test_shipped_rule_sets_decide_as_they_say(con: Connection) -> None:
    cold = apply_rules(con, load_rules("cold-start"))
    assert ids(cold.kept) == [f"t{p}{s}" for p in range(4) for s in (4, 5)]
    assert counts(cold.funnel)["correct"] == (4, 8)
    assert counts(cold.funnel)["finished"] == (4, 4)
    assert counts(cold.funnel)["well-formed"] == (4, 8)
    assert counts(cold.funnel)["readable"] == (0, 8)
    assert counts(cold.funnel)["one-language"] == (4, 4)
    assert ids(apply_rules(con, load_rules("rejection")).kept) == ids(cold.kept)
    assert apply_rules(con, load_rules("unfiltered")).kept.height == 24


def test_funnel_has_the_columns_of_its_schema_and_adds_up(con: Connection) -> None:
    funnel = apply_rules(con, load_rules("rejection")).funnel
    assert funnel.columns == [
        c for c in arrow_schema("funnel").names if c not in ("corpus", "corpus_version")
    ]
    for (_source, _band), part in funnel.sort("position").group_by("source", "difficulty"):
        assert part["traces"].n_unique() == 1
        assert (
            part["remaining"].to_list()
            == (part["traces"] - part["drops_first"].cum_sum()).to_list()
        )
    assert set(funnel["source"]) == {"even", "odd"}
    assert set(funnel["difficulty"]) == {"0.0-0.2", "0.2-0.4", "0.6-0.8", "0.8-1.0"}


def test_a_null_predicate_does_not_pass(con: Connection) -> None:
    result = apply_rules(con, rules({"judged": "judge_verdict = 'correct' OR trace_id = 't00'"}))
    assert ids(result.kept) == ["t00"]


def test_rules_and_where_select_the_traces_to_decide_on(con: Connection) -> None:
    result = apply_rules(con, rules({"right": "verdict = 'correct'"}), where="problem_id = 'p1'")
    assert result.funnel["traces"].sum() == 6
    assert ids(result.kept) == ["t12", "t13", "t14", "t15"]


def test_best_shortest_random_and_diverse(con: Connection) -> None:
    right = {"right": "verdict = 'correct'"}
    best = apply_rules(con, rules(right, {"per_problem": {"best": {"k": 1, "by": "step_count"}}}))
    assert ids(best.kept) == ["t05", "t15", "t25", "t35"]
    short = apply_rules(con, rules(right, {"per_problem": {"shortest": {"k": 1}}}))
    assert ids(short.kept) == ["t02", "t12", "t22", "t32"]
    drawn = [
        ids(
            apply_rules(con, rules(right, {"per_problem": {"random": {"k": 2}}, "seed": seed})).kept
        )
        for seed in (0, 0, 1, 2, 3)
    ]
    assert all(len(chosen) == 8 for chosen in drawn)
    assert drawn[0] == drawn[1]
    assert len({tuple(chosen) for chosen in drawn}) > 1
    diverse = apply_rules(con, rules(right, {"per_problem": {"diverse": {"k": 2}}})).kept
    assert diverse.group_by("problem_id").len()["len"].to_list() == [2] * 4
    everything = apply_rules(con, rules(right, {"per_problem": {"diverse": {"k": 9}}})).kept
    assert everything.height == 16


def test_selection_does_not_depend_on_the_order_of_rows(con: Connection) -> None:
    con.sql("CREATE VIEW turned AS SELECT * FROM annotated ORDER BY trace_id DESC")
    chosen = rules(
        {"right": "verdict = 'correct'"}, {"per_problem": {"random": {"k": 1}}, "budget": 3}
    )
    assert ids(apply_rules(con, chosen).kept) == ids(apply_rules(con, chosen, view="turned").kept)


def test_balance_budget_and_difficulty(con: Connection) -> None:
    uneven = rules(
        {"some": "problem_id <> 'p3' OR trace_id = 't30'"},
        {"balance": {"by": "source", "ratio": 1}},
    )
    kept = apply_rules(con, uneven).kept
    assert dict(kept.group_by("source").len().iter_rows()) == {"even": 7, "odd": 7}
    assert apply_rules(con, rules({}, {"budget": 5})).kept.height == 5
    band = apply_rules(con, rules({}, {"difficulty": {"low": 0.3, "high": 0.7}})).kept
    assert set(band["problem_id"]) == {"p1", "p2"}
    # four of six traces of every problem are correct
    rate = apply_rules(con, rules({}, {"difficulty": {"low": 0.3, "high": 0.4, "model": "small"}}))
    assert rate.kept.height == 24
    with pytest.raises(CurateError, match="'difficulty' dropped most"):
        apply_rules(con, rules({}, {"difficulty": {"low": 0.5, "high": 1, "model": "small"}}))
    with pytest.raises(CurateError, match="'difficulty' dropped most"):
        apply_rules(con, rules({}, {"difficulty": {"model": "nobody"}}))


def test_the_best_of_all_traces_by_any_expression(con: Connection) -> None:
    top = apply_rules(con, rules({}, {"top": {"k": 4, "by": "step_count"}}))
    steps = con.sql("SELECT trace_id, step_count FROM annotated").pl()
    limit = steps["step_count"].sort(descending=True)[3]
    kept = steps.filter(steps["trace_id"].is_in(ids(top.kept)))
    assert kept.height == 4
    assert kept["step_count"].min() == limit
    unknown = "CASE WHEN trace_id = 't05' THEN 1.0 END"
    first = apply_rules(con, rules({}, {"top": {"k": 1, "by": unknown}, "budget": 3}))
    assert ids(first.kept) == ["t05"], "a trace without a value comes last"
    with pytest.raises(UsageError, match=r"select\.top.*nocolumn"):
        apply_rules(con, rules({}, {"top": {"k": 1, "by": "nocolumn"}}))


def test_a_filter_that_keeps_nothing_names_the_rule(con: Connection) -> None:
    impossible = rules({"some": "problem_id = 'p0'", "hard": "step_count > 1000"})
    with pytest.raises(
        CurateError, match=r"keeps none of 24 traces\. Rule 'some' dropped most"
    ) as caught:
        apply_rules(con, impossible)
    assert caught.value.exit_code == 1
    with pytest.raises(CurateError, match="got no traces"):
        apply_rules(con, rules({}), where="problem_id = 'none'")


def test_a_rule_that_fails_is_named(con: Connection) -> None:
    with pytest.raises(UsageError, match=r"rule 'bad' of rule set 'test' fails: .*nocolumn"):
        apply_rules(con, rules({"fine": "attempt = 0", "bad": "nocolumn > 1"}))
    with pytest.raises(UsageError, match=r"rule 'bad' .*Could not convert"):
        apply_rules(con, rules({"bad": "source::INTEGER > 1"}))


def test_explain_says_which_rule_and_with_what_values(con: Connection) -> None:
    fell = explain(con, load_rules("rejection"), "t00")
    assert fell.dropped_by == "correct"
    assert "verdict = 'wrong', judge_verdict = null" in str(fell)
    passed = dict(fell.rules.select("rule", "passed").iter_rows())
    assert not passed.pop("correct")
    assert all(passed.values())
    assert explain(con, load_rules("rejection"), "t04").dropped_by is None
    chosen = rules({"right": "verdict = 'correct'"}, {"per_problem": {"shortest": {"k": 1}}})
    assert "selection step 'per_problem'" in str(explain(con, chosen, "t04"))
    with pytest.raises(UsageError, match="no trace has an id"):
        explain(con, chosen, "zzz")
    with pytest.raises(UsageError, match="traces have an id"):
        explain(con, chosen, "t")


def test_print_funnel_shows_every_rule(con: Connection) -> None:
    out = io.StringIO()
    print_funnel(apply_rules(con, load_rules("rejection")).funnel, Console(file=out, width=120))
    text = out.getvalue()
    assert all(rule.name in text for rule in load_rules("rejection").rules)
    assert "per_problem" in text
