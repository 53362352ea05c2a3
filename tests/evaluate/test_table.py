"""From samples to rows and printed tables: counting rules, slices, pairs, and bad input."""

import re
from pathlib import Path

import polars as pl
import pytest

import curate
from curate.errors import CurateError
from curate.evaluate.table import SCHEMA, evaluation_rows, format_table


def samples(model: str, verdicts: dict[str, str], **columns) -> pl.DataFrame:
    """One row per letter of a problem's string: c correct, w wrong, u unverifiable, - unjudged."""
    names = {"c": "correct", "w": "wrong", "u": "unverifiable", "-": None}
    rows = [
        {
            "model": model,
            "problem_id": p,
            "sample_index": i,
            "verdict": names[v],
            "cluster": {"c": 0, "w": i + 1}.get(v),
        }
        for p, letters in verdicts.items()
        for i, v in enumerate(letters)
    ]
    return pl.DataFrame(
        rows, schema_overrides={"verdict": pl.String, "cluster": pl.Int64}
    ).with_columns(**{name: pl.lit(value) for name, value in columns.items()})


def level(rows: pl.DataFrame, metric: str, model: str = "a", k: int | None = None, **where) -> dict:
    where = {"slice": "all", "baseline": None} | where
    part = rows.filter(pl.col("metric") == metric, pl.col("model") == model)
    for name, value in where.items():
        part = part.filter(pl.col(name).eq_missing(value))
    if k:
        part = part.filter(pl.col("k") == k)
    assert part.height == 1, part
    return part.row(0, named=True)


def test_columns_are_those_of_the_schema():
    sql = (Path(curate.__file__).parent.parent / "schemas" / "evaluations.sql").read_text()
    assert list(SCHEMA) == re.findall(r"^    (\w+) ", sql, re.MULTILINE)
    rows = evaluation_rows(samples("a", {"p": "cw"}))
    assert rows.schema == pl.Schema(SCHEMA)


def test_levels_by_hand():
    data = samples(
        "a",
        {"p": "ccww", "q": "wwww", "r": "cwww"},
        well_formed=True,
        completion_tokens=10,
        truncated=False,
    )
    rows = evaluation_rows(data)
    assert level(rows, "pass@1")["value"] == pytest.approx((0.5 + 0 + 0.25) / 3)
    assert level(rows, "pass@k", k=4)["value"] == pytest.approx(2 / 3)
    assert level(rows, "pass@k", k=2)["value"] == pytest.approx((5 / 6 + 0 + 0.5) / 3)
    # p: two agree on the right answer; q: four differ; r: a tie of four
    assert level(rows, "cons@k")["value"] == pytest.approx((1 + 0 + 0.25) / 3)
    assert level(rows, "format")["value"] == 1
    assert level(rows, "length")["value"] == 10
    assert level(rows, "truncated")["value"] == 0
    assert {r["k"] for r in rows.filter(pl.col("metric") != "pass@k").iter_rows(named=True)} == {4}
    assert "language" not in rows["metric"]
    assert level(rows, "pass@1")["problem_count"] == 3


def test_a_problem_without_any_judged_sample_is_left_out_and_reported():
    rows = evaluation_rows(
        pl.concat([samples("a", {"p": "cw", "q": "uu"}), samples("b", {"p": "cc", "q": "uu"})])
    )
    assert level(rows, "pass@1")["value"] == 0.5
    assert level(rows, "pass@1")["problem_count"] == 1
    assert level(rows, "unverifiable")["value"] == 0.5
    assert "1 problem could not be judged" in format_table(rows)


def test_unverifiable_counts_as_not_correct_if_another_sample_was_judged():
    rows = evaluation_rows(
        pl.concat([samples("a", {"p": "uu", "q": "cu"}), samples("b", {"p": "cw", "q": "cc"})])
    )
    assert level(rows, "pass@1")["value"] == pytest.approx(0.25)
    assert level(rows, "pass@1", "b")["value"] == pytest.approx(0.75)
    assert level(rows, "unverifiable")["value"] == 0


def test_a_failed_request_does_not_count_as_a_sample():
    rows = evaluation_rows(samples("a", {"p": "c-", "q": "cw", "r": "--"}), k=2)
    assert level(rows, "pass@1")["value"] == pytest.approx(0.75)
    assert level(rows, "pass@1")["problem_count"] == 2


def test_differences_are_over_the_problems_of_both_models():
    data = pl.concat(
        [
            samples("a", {"p": "ww", "q": "cw", "r": "cc"}),
            samples("b", {"p": "cw", "q": "cc", "s": "ww"}),
        ]
    )
    rows = evaluation_rows(data, [("b", "a")])
    row = level(rows, "pass@1", "b", baseline="a")
    assert row["value"] == pytest.approx(0.5)
    assert (row["low"], row["high"]) == (0.5, 0.5)
    assert row["problem_count"] == 2
    assert rows.filter(
        pl.col("baseline").is_not_null() & (pl.col("metric") == "unverifiable")
    ).is_empty()


def test_without_clusters_consensus_is_null():
    rows = evaluation_rows(samples("a", {"p": "cw"}).drop("cluster"))
    assert "cons@k" not in rows["metric"]


def test_slices_by_source_and_difficulty_add_up():
    one = samples("a", {"p": "cc", "q": "cw"}, source="x", difficulty=0.1, model_hash="h")
    two = samples("a", {"r": "ww"}, source="y", difficulty=1.0, model_hash="h")
    rows = evaluation_rows(pl.concat([one, two]))
    assert level(rows, "pass@1", slice="source=x")["value"] == 0.75
    assert level(rows, "pass@1", slice="source=y")["value"] == 0
    assert level(rows, "pass@1", slice="difficulty=0.0-0.2")["value"] == 0.75
    assert level(rows, "pass@1", slice="difficulty=0.8-1.0")["problem_count"] == 1
    assert level(rows, "pass@1", slice="source=y")["low"] is None  # one problem has no interval
    assert rows["model_hash"].unique().to_list() == ["h"]
    assert rows["slice"].n_unique() == 5


def test_rows_do_not_depend_on_the_order_of_samples():
    data = pl.concat(
        [
            samples("a", {f"p{i}": "cwcw"[: 1 + i % 4] for i in range(30)}),
            samples("b", {"p1": "cc"}),
        ]
    )
    rows = evaluation_rows(data, [("b", "a")], resamples=200)
    other = evaluation_rows(
        data.sample(fraction=1, shuffle=True, seed=2), [("b", "a")], resamples=200
    )
    key = ["model", "baseline", "slice", "metric", "k"]
    assert rows.sort(key).equals(other.sort(key))


def test_the_printed_tables():
    data = pl.concat(
        [
            samples(
                "base",
                {f"p{i}": "wwwc" for i in range(20)},
                well_formed=False,
                completion_tokens=100,
            ),
            samples(
                "tuned",
                {f"p{i}": "cccw" for i in range(20)},
                well_formed=True,
                completion_tokens=50,
            ),
        ]
    )
    rows = evaluation_rows(data, [("tuned", "base")], resamples=200)
    text = format_table(rows)
    assert "20 problems, 4 samples each" in text
    assert re.search(r"base +0\.250 +0\.250 +1\.000 +0\.000 +100\.0", text)
    assert re.search(r"tuned - base +\+0\.500 +\+0\.750 +\+0\.000 +\+1\.000 +-50\.0", text)
    assert "[+0.50, +0.50]" in text
    assert "pass@4" in text
    assert "truncated" not in text
    assert all(len(line) <= 110 and line == line.rstrip() for line in text.splitlines())
    with pytest.raises(CurateError, match="no slice 'nope'"):
        format_table(rows, "nope")


def test_truncation_is_shown_only_if_it_occurs():
    rows = evaluation_rows(samples("a", {"p": "cw", "q": "cw"}, truncated=True))
    assert "truncated" in format_table(rows)


def test_bad_input_is_reported():
    with pytest.raises(CurateError, match="no sample has a verdict"):
        evaluation_rows(samples("a", {"p": "--"}))
    with pytest.raises(CurateError, match="cannot compare 'z'"):
        evaluation_rows(samples("a", {"p": "c"}), [("z", "a")])
    with pytest.raises(ValueError, match="verdict"):
        evaluation_rows(samples("a", {"p": "c"}).drop("verdict"))
    with pytest.raises(ValueError, match="twice"):
        evaluation_rows(pl.concat([samples("a", {"p": "c"})] * 2))


def test_accuracy_per_answered_text_leaves_out_texts_without_an_answer():
    data = samples("a", {"p": "cw", "q": "ww"}).with_columns(
        answered=pl.Series([True, False, True, False])
    )
    rows = evaluation_rows(data)
    assert level(rows, "pass@1")["value"] == pytest.approx(1 / 4)
    assert level(rows, "per answer")["value"] == pytest.approx(1 / 2)


def test_learning_only_the_form_raises_pass_at_1_and_not_accuracy_per_answer():
    before = samples("before", dict.fromkeys("pqr", "cw--")).with_columns(
        verdict=pl.col("verdict").fill_null("wrong"),
        answered=pl.Series([True, True, False, False] * 3),
    )
    after = samples("after", dict.fromkeys("pqr", "ccww"), answered=True)
    rows = evaluation_rows(pl.concat([before, after]), [("after", "before")])
    gain = {"model": "after", "baseline": "before"}
    assert level(rows, "pass@1", **gain)["value"] == pytest.approx(1 / 4)
    assert level(rows, "per answer", **gain)["value"] == pytest.approx(0)


def test_voting_is_the_gain_of_the_majority():
    rows = evaluation_rows(samples("a", {"p": "ccw", "q": "cww"}))
    cons, once = (level(rows, metric)["value"] for metric in ("cons@k", "pass@1"))
    assert level(rows, "voting")["value"] == pytest.approx(cons - once)


def test_greedy_answers_are_a_separate_metric():
    greedy = samples("a", {"p": "c", "q": "w"})
    rows = evaluation_rows(samples("a", {"p": "wwww", "q": "wwww"}), greedy=greedy)
    assert level(rows, "greedy")["value"] == pytest.approx(1 / 2)
    assert level(rows, "pass@1")["value"] == 0
    assert "greedy" in format_table(rows)
    assert "greedy" not in format_table(evaluation_rows(samples("a", {"p": "wc"})))


def test_training_seeds_are_runs_of_one_model():
    runs = [
        samples("a", {"p": letters, "q": letters}, run=number)
        for number, letters in enumerate(["cccc", "wwww", "ccww"])
    ]
    base = samples("base", {"p": "wwww", "q": "wwww"})
    data = pl.concat([*runs, base.with_columns(run=pl.lit(0))], how="vertical_relaxed")
    rows = evaluation_rows(data, [("a", "base")])
    assert level(rows, "pass@1")["value"] == pytest.approx(1 / 2)
    assert level(rows, "pass@1")["seeds"] == 3
    gain = level(rows, "pass@1", baseline="base")
    assert (gain["value"], gain["seeds"]) == (pytest.approx(1 / 2), 3)
    assert gain["low"] < 0.3 < 0.7 < gain["high"]  # both problems agree, the seeds do not
    assert "3 training seeds" in format_table(rows)
