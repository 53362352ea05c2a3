"""Wrong references: planted, ranked and corrected; old traces are judged again."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from curate.annotate import job as annotate
from curate.annotate.corrections import correct, pairs, read_corrections
from curate.console.query import saved_query
from curate.errors import UsageError
from curate.job import Context
from curate.train.rollouts import trace_frame
from curate.warehouse import Warehouse
from curate.warehouse.check import check

# models that answer sums: accuracy of each, and spread of its wrong answers
SOURCES = {"strong": (0.8, 6), "medium": (0.6, 6), "weak": (0.25, 6)}


def warehouse(root: Path, problems: int, samples: int, planted: set[int], seed: int) -> Warehouse:
    """Sums with the answers of three simulated models; the references of `planted` are wrong.

    Three in ten wrong answers to a problem are the same slip, which all models make.
    """
    dice = random.Random(seed)
    rows, traces = [], []
    for i in range(problems):
        right = 100 + i
        reference = right + dice.choice([-10, -1, 1, 10]) if i in planted else right
        rows.append(
            {"problem_id": f"p{i:04d}", "question": f"{i} + 100 =", "reference": str(reference)}
            | {"verifier": "math", "split": "train"}
        )
        slip = right + dice.choice([-2, 2, 20])
        hard = dice.uniform(0.4, 1.3)
        for model, (accuracy, spread) in SOURCES.items():
            for sample in range(samples):
                if dice.random() < accuracy * hard:
                    answer = right
                elif dice.random() < 0.3:
                    answer = slip
                else:
                    answer = right + dice.randint(-spread, spread)
                traces.append(
                    {"trace_id": f"{model}-{i}-{sample}", "attempt": 0, "problem_id": f"p{i:04d}"}
                    | {"sample_index": sample, "recipe": "r1-zero", "form": "plain"}
                    | {"model": model, "template": "plain", "finish_reason": "stop"}
                    | {"completion": f"\\boxed{{{answer}}}", "answer": f"\\boxed{{{answer}}}"}
                )
    wh = Warehouse(root)
    wh.write("problems", "sums", rows, key="sums")
    wh.write("traces", "samples", trace_frame(traces), key="samples")
    return wh


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Context, set[str]]]:
    """300 problems, 5 % of them with a wrong reference, 8 samples of each of three models."""
    wrong = set(random.Random(1).sample(range(300), 15))
    wh = warehouse(tmp_path_factory.mktemp("planted"), 300, 8, wrong, seed=2)
    with Context(wh) as context:
        annotate.run(annotate.AnnotateConfig(signals=[]), context)
        yield context, {f"p{i:04d}" for i in wrong}


RIGHT = "SELECT problem_id, count(*) FILTER (verdict = 'correct') AS n FROM annotated GROUP BY ALL"


def suspects(context: Context) -> pl.DataFrame:
    return context.warehouse.sql(saved_query(Path("suspicious_references")))


def test_planted_references_are_ranked_first_and_corrected(
    planted: tuple[Context, set[str]], tmp_path: Path
) -> None:
    context, wrong = planted
    ranked = suspects(context)
    assert ranked["posterior"].to_list() == sorted(ranked["posterior"], reverse=True)
    likely = set(ranked.filter(pl.col("posterior") > 0.9)["problem_id"])
    recall, precision = len(likely & wrong) / len(wrong), len(likely & wrong) / len(likely)
    assert recall >= 0.8, (recall, precision)
    assert precision >= 0.9, (recall, precision)
    right = {f"p{i:04d}": str(100 + i) for i in range(300)}
    hits = ranked.filter(pl.col("problem_id").is_in(sorted(likely & wrong)))
    proposed = [right[p] == a for p, a in hits.select("problem_id", "proposed").iter_rows()]
    assert sum(proposed) >= 0.8 * len(proposed), "the answer that is proposed is the right one"

    wh = context.warehouse
    before = wh.sql(RIGHT)
    traces = wh.sql("SELECT count(*), count(DISTINCT trace_id) FROM traces").row(0)
    path = tmp_path / "corrections.csv"
    hits.write_csv(path)
    result = correct(read_corrections(path), context)
    assert result.facts["changed"] > 100
    assert wh.sql("SELECT count(*), count(DISTINCT trace_id) FROM traces").row(0) == traces
    after = wh.sql(RIGHT)
    both = before.join(after, on="problem_id", suffix="_after")
    changed = both.filter(pl.col("n") != pl.col("n_after"))
    assert set(changed["problem_id"]) == set(hits["problem_id"])
    assert (changed["n_after"] > changed["n"]).all()
    latest = wh.latest("problems", "sums").read().collect()
    assert latest.height == 300
    assert latest["correction"].null_count() == 300 - hits.height
    assert not set(suspects(context)["problem_id"]) & set(hits["problem_id"])
    assert check(wh.root).damages == []

    # Correct again by hand: the newest correction counts, and repeating it changes nothing.
    one = hits["problem_id"][0]
    assert correct(pairs([f"{one}=7"]), context).facts["correction"] == 2
    assert wh.sql("SELECT reference FROM problems WHERE problem_id = ?", [one]).item() == "7"
    correct_now = "SELECT count(*) FROM annotated WHERE problem_id = ? AND verdict = 'correct'"
    assert wh.sql(correct_now, [one]).item() == 0
    assert correct(pairs([f"{one}=7"]), context).rows == 0
    assert correct(pairs([f"{one}={right[one]}"]), context).facts["correction"] == 3
    assert wh.sql(correct_now, [one]).item() > 0
    assert annotate.run(annotate.AnnotateConfig(signals=[]), context).rows == 0


def test_agreement_within_one_source_grows_slowly_and_adds_up_over_sources(tmp_path: Path) -> None:
    """The posterior by hand, from the formula in the query."""
    from math import exp, lgamma, log

    answers = {f"easy{i}": {"a": ["1"] * 6, "b": ["1"] * 6} for i in range(4)}
    answers |= {"one": {"a": ["2"] * 4}, "two": {"a": ["2"] * 2, "b": ["2"] * 2}}
    rows = [
        {"problem_id": p, "question": p, "reference": "1", "verifier": "math", "split": "train"}
        for p in answers
    ]
    traces = [
        {"trace_id": f"{p}{m}{i}", "attempt": 0, "problem_id": p, "sample_index": i}
        | {"recipe": "r1-zero", "form": "plain", "model": m, "template": "t"}
        | {"finish_reason": "stop", "completion": f"\\boxed{{{a}}}", "answer": f"\\boxed{{{a}}}"}
        for p, by_model in answers.items()
        for m, given in by_model.items()
        for i, a in enumerate(given)
    ]
    wh = Warehouse(tmp_path)
    wh.write("problems", "few", rows, key=1)
    wh.write("traces", "few", trace_frame(traces), key=1)
    with Context(wh) as context:
        annotate.run(annotate.AnnotateConfig(signals=[]), context)
        posteriors = dict(suspects(context).select("problem_id", "posterior").iter_rows())

    def evidence(accuracy: float, k: int) -> float:
        """Evidence of strength 1: problems are solved always or never; wrong answers coincide."""
        a, w = accuracy, 1 - accuracy
        return lgamma(a + k) - lgamma(w + k) - lgamma(a) + lgamma(w)

    def posterior(log_factor: float) -> float:
        return 1 / (1 + exp(-(log_factor + log(0.05 / 0.95))))

    one, two = evidence(24 / 30, 4), evidence(24 / 30, 2) + evidence(24 / 26, 2)
    assert posterior(one) < 0.5 < posterior(two), "four samples of one source are not four sources"
    assert posteriors == {"two": pytest.approx(posterior(two), abs=1e-4)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("problem_id,proposed\np0001,\n", "1 row without proposed"),
        ("problem_id,proposed\np0001,1\np0001,2\n", "p0001 occurs more than once"),
        ("problem,proposed\np0001,1\n", "no column problem_id"),
    ],
)
def test_files_of_corrections_are_checked(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "corrections.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_corrections(path)


def test_an_unknown_problem_changes_nothing(planted: tuple[Context, set[str]]) -> None:
    context, _ = planted
    versions = len(context.warehouse.versions("problems"))
    with pytest.raises(UsageError, match="1 unknown problem"):
        correct(pairs(["nobody=1"]), context)
    rows = [{"problem_id": "g", "question": "q", "reference": "1", "verifier": "procedural"}]
    context.warehouse.write("problems", "generated", rows, key=1)
    with pytest.raises(UsageError, match="judged by the verifier 'procedural', which reads no ref"):
        correct(pairs(["g=2"]), context)
    assert len(context.warehouse.versions("problems")) == versions + 1


def test_the_commands(tmp_path: Path) -> None:
    wh = warehouse(tmp_path, 40, 8, {3}, seed=5)
    base: list[Any] = [sys.executable, "-m", "curate.cli"]
    where = ["-w", str(wh.root)]
    subprocess.run([*base, "annotate", "signals=[]", *where], check=True, capture_output=True)
    table = [*base, "sql", "--file", "suspicious_references", "-f", "csv", *where]
    csv = subprocess.run(table, check=True, capture_output=True, text=True).stdout
    assert csv.splitlines()[1].startswith("p0003,")
    path = tmp_path / "corrections.csv"
    path.write_text("\n".join(csv.splitlines()[:2]) + "\n")
    done = subprocess.run([*base, "correct", str(path), *where], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 reference corrected" in done.stdout
