"""Verifiers: mathematics, choices, text, procedural problems, code, a model as judge, consensus.

from curate.verify import verify, verify_answers, VerifierPool

verify(problem, completion)              # -> Verdict(verdict="correct" | "wrong" | "unverifiable",
...) verify_answers(["1/2"], ["\\\\boxed{0.5}"])  # plain pairs
"""

from __future__ import annotations

from collections.abc import Sequence

from curate.records import Problem, Verdict
from curate.verify.command import cli_verify
from curate.verify.consensus import Cluster, clusters, largest_cluster
from curate.verify.extract import THINK, find_answer
from curate.verify.registry import REGISTRY, verifier_named, versions
from curate.verify.workers.pool import VerifierPool, default_pool

__all__ = [
    "REGISTRY",
    "Cluster",
    "VerifierPool",
    "cli_verify",
    "clusters",
    "default_pool",
    "find_answer",
    "largest_cluster",
    "verifier_named",
    "verify",
    "verify_answers",
    "verify_batch",
    "versions",
]


def verify(problem: Problem, completion: str, delimiters: tuple[str, str] = THINK) -> Verdict:
    """Return the verdict of the problem's verifier on a completion. Thread-safe; limits as in
    `VerifierPool`.
    """
    return default_pool().verify(problem, completion, delimiters)


def verify_batch(
    problems: Sequence[Problem], completions: Sequence[str], delimiters: tuple[str, str] = THINK
) -> list[Verdict]:
    """Return verdicts in the order of the input, using all cores."""
    return default_pool().verify_batch(problems, completions, delimiters)


def verify_answers(
    golds: Sequence[str], predictions: Sequence[str], verifier: str = "math"
) -> list[Verdict]:
    """Return verdicts for plain pairs of reference and prediction (a completion or a bare
    answer).
    """
    return default_pool().verify_answers(golds, predictions, verifier)
