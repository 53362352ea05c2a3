from __future__ import annotations

import polars as pl

from curate.records import Problem
from curate.verify import VerifierPool
from curate.verify.consensus import (
    cluster_ids,
    clusters,
    largest_cluster,
)


def test_answers_are_clustered_by_what_they_mean(pool: VerifierPool) -> None:
    answers = ["1/2", "2", "0.5", None, r"\frac{1}{2}", "x = 1/2", "2.0", "no idea"]
    groups = clusters(answers, pool=pool)
    assert [cluster.members for cluster in groups] == [(0, 2, 4, 5), (1, 6), (7,)]
    assert groups[0].share == 0.5
    assert largest_cluster([None, None], pool=pool) is None


def test_the_first_of_equally_large_clusters_wins_and_choices_count(pool: VerifierPool) -> None:
    best = largest_cluster(["3", "4"], pool=pool)
    assert best is not None
    assert best.answer == "3"
    problem = Problem("Which?", choices=["dogs", "cats"])
    best = largest_cluster(["(B)", "cats", "A"], "choice", problem, pool)
    assert best is not None
    assert best.members == (0, 1)


def test_ids_are_within_a_problem(pool: VerifierPool) -> None:
    frame = pl.DataFrame(
        {
            "problem_id": ["a", "b", "a", "b", "a", "b"],
            "extracted": ["1", "1", "1.0", None, "2", "x+1"],
        }
    )
    assert cluster_ids(frame, pool=pool) == [0, 0, 0, None, 1, 1]
    assert cluster_ids(frame.head(0), pool=pool) == []
