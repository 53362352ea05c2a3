"""Cluster the answers to a problem by equivalence, and find the one that most samples agree on.

Used for cons@k (majority vote) and for pseudo-references, marked as such, of problems that have no
reference. Answers are compared in rounds: in each, the first answer of a problem without a
cluster is compared with all later ones. One batch holds the comparisons of all problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from curate.records import Problem
from curate.verify.registry import verifier_named
from curate.verify.workers.pool import VerifierPool, default_pool


@dataclass(frozen=True, slots=True)
class Cluster:
    """Equivalent answers. `share` is relative to all samples, including those without an answer."""

    answer: str  # the most common spelling; the first one on a tie
    members: tuple[int, ...]  # indices into the answers, in order
    share: float


def clusters(
    answers: Sequence[str | None],
    verifier: str = "math",
    problem: Problem | None = None,
    pool: VerifierPool | None = None,
) -> list[Cluster]:
    """Return clusters of one problem's answers, largest first (ties: the earlier one first).

    `answers` are extracted answers; None does not vote. `problem` gives the choices or metadata
    that a verifier needs.
    """
    ids = _cluster([list(answers)], [_comparable(verifier, problem)], pool or default_pool())[0]
    members: dict[int, list[int]] = {}
    for i, cluster in enumerate(ids):
        if cluster is not None:
            members.setdefault(cluster, []).append(i)
    agreeing = []
    for group in members.values():
        spellings = [answers[i] or "" for i in group]
        agreeing.append(
            Cluster(max(spellings, key=spellings.count), tuple(group), len(group) / len(answers))
        )
    return sorted(agreeing, key=lambda cluster: (-len(cluster.members), cluster.members[0]))


def largest_cluster(
    answers: Sequence[str | None],
    verifier: str = "math",
    problem: Problem | None = None,
    pool: VerifierPool | None = None,
) -> Cluster | None:
    """Return the answer that most samples agree on; None if no sample has an answer."""
    return next(iter(clusters(answers, verifier, problem, pool)), None)


def cluster_ids(
    frame: pl.DataFrame, verifier: str = "math", pool: VerifierPool | None = None
) -> list[int | None]:
    """Return for each row the number of its answer's cluster within its problem (None without an
    answer).

    Columns: problem_id, extracted; model, model_hash, policy_step, verifier, choices and metadata
    are used if they are present.
    """
    keys = [
        name
        for name in ("model", "model_hash", "policy_step", "problem_id")
        if name in frame.columns
    ]
    extras = [name for name in ("verifier", "choices", "metadata") if name in frame.columns]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, row in enumerate(frame.select(keys).iter_rows()):
        groups.setdefault(row, []).append(i)
    answers = frame["extracted"].to_list()
    problems = []
    for rows in groups.values():
        first_row = {name: frame[name][rows[0]] for name in extras}
        choices = first_row.get("choices")
        problem = Problem(
            "",
            choices=list(choices) if choices is not None else None,
            metadata=first_row.get("metadata"),
        )
        problems.append(_comparable(first_row.get("verifier") or verifier, problem))
    numbered = _cluster(
        [[answers[i] for i in rows] for rows in groups.values()], problems, pool or default_pool()
    )
    result: list[int | None] = [None] * len(answers)
    for rows, ids in zip(groups.values(), numbered, strict=True):
        for i, cluster in zip(rows, ids, strict=True):
            result[i] = cluster
    return result


def consensus_frame(
    frame: pl.DataFrame, share: float = 0.5, samples: int = 2, pool: VerifierPool | None = None
) -> pl.DataFrame:
    """Return verdicts of kind `consensus`, one row per trace, in the columns of the table
    `verdicts`.

    Columns: trace_id, attempt, problem_id, text (the completion, its reasoning opened), form, and
    those of problems; model_hash and policy_step, if present, separate the samples of different
    policies. An answer is correct if it is in the largest cluster of its problem and wrong if it is
    not; unverifiable if there are fewer than `samples` samples or that cluster holds less than
    `share` of them.
    """
    pool = pool or default_pool()
    fields = [name for name in Problem.__dataclass_fields__ if name in frame.columns]
    problems = [
        Problem(**{"question": "", **row}) for row in frame.select(fields).iter_rows(named=True)
    ]
    answers = pool.answers(problems, frame["text"].to_list(), frame["form"].to_list())
    whose = [name for name in ("model_hash", "policy_step", "problem_id") if name in frame.columns]
    frame = frame.with_columns(pl.Series("extracted", answers, dtype=pl.String))
    frame = frame.with_columns(pl.Series("cluster", cluster_ids(frame, pool=pool), dtype=pl.Int64))
    cluster = pl.col("cluster")
    # Ids follow the order of first appearance, so the first of equally large clusters wins.
    largest = cluster.drop_nulls().mode().min().over(whose)
    agreed = frame.with_columns(largest=largest, of=pl.len().over(whose)).with_columns(
        share=(cluster == pl.col("largest")).sum().over(whose) / pl.col("of"),
        answer=pl.col("extracted").filter(cluster == pl.col("largest")).first().over(whose),
    )
    enough = (pl.col("share") >= share) & (pl.col("of") >= samples)
    reason = pl.format(
        "pseudo-reference {}: {} of {} samples",
        pl.col("answer").str.slice(0, 80),
        pl.col("share").round(2),
        pl.col("of"),
    )
    version = pl.col("verifier").replace_strict(
        {name: verifier_named(name).version for name in frame["verifier"].unique().to_list()},
        return_dtype=pl.String,
    )
    return agreed.select(
        "trace_id",
        "attempt",
        verifier=pl.format("consensus-{}", pl.col("verifier")),
        verifier_version=pl.format("{}-{}", version, pl.lit(f"{len(frame):09d}")),
        kind=pl.lit("consensus"),
        verdict=pl.when(~enough.fill_null(False))
        .then(pl.lit("unverifiable"))
        .when(cluster == pl.col("largest"))
        .then(pl.lit("correct"))
        .otherwise(pl.lit("wrong")),
        extracted=pl.col("extracted"),
        detail=pl.when(enough.fill_null(False)).then(reason).otherwise(pl.lit("no consensus")),
        seconds=pl.lit(0.0),
    )


def _comparable(verifier: str, problem: Problem | None) -> Problem:
    """Return a problem whose verifier compares two answers; a procedural score cannot, so the text
    verifier does.
    """
    name = "math" if verifier.startswith("math-") else verifier
    name = name if name in ("math", "choice", "exact", "text") else "text"
    return replace(problem or Problem(""), verifier=name)


def _cluster(
    groups: list[list[str | None]], problems: list[Problem], pool: VerifierPool
) -> list[list[int | None]]:
    """Return for each group the number of each answer's cluster."""
    # Equal strings are one answer: a group of 64 samples has a handful of them.
    distinct = [
        list(dict.fromkeys(answer for answer in group if answer is not None)) for group in groups
    ]
    number: list[dict[str, int]] = [{} for _ in groups]
    counts = [0] * len(groups)
    while True:
        pairs: list[tuple[int, str]] = []
        batch: list[Problem] = []
        for g, answers in enumerate(distinct):
            unassigned = [answer for answer in answers if answer not in number[g]]
            if not unassigned:
                continue
            number[g][unassigned[0]] = counts[g]
            reference = replace(problems[g], reference=unassigned[0])
            pairs += [(g, answer) for answer in unassigned[1:]]
            batch += [reference] * (len(unassigned) - 1)
            counts[g] += 1
        if not pairs:
            if all(
                len(answers) == len(numbers)
                for answers, numbers in zip(distinct, number, strict=True)
            ):
                break
            continue
        for (g, answer), verdict in zip(
            pairs, pool.judge_answers(batch, [answer for _, answer in pairs]), strict=True
        ):
            if verdict.verdict == "correct":
                number[g][answer] = counts[g] - 1
    return [
        [None if answer is None else numbers[answer] for answer in group]
        for group, numbers in zip(groups, number, strict=True)
    ]
