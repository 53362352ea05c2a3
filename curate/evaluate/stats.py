"""Estimates of an evaluation as pure functions of arrays: pass@1, pass@k, cons@k, intervals.

Every estimate is a mean over problems of one value per problem, so that one bootstrap over problems
serves all of them: problems are independent draws, the k samples of one problem are not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 2000
_CELLS = 20_000_000  # resampling weights held at once: 80 MB


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems with its interval. NaN if there is nothing to estimate it from."""

    value: float
    low: float
    high: float
    count: int  # problems


def pass_at_1(samples: ArrayLike, correct: ArrayLike) -> Floats:
    """Share of correct samples per problem, (problems,): pass@1 of the report, section 3.1."""
    return pass_at_k(samples, correct, 1)


def pass_at_k(samples: ArrayLike, correct: ArrayLike, k: int) -> Floats:
    """Unbiased chance that one of k samples is correct, per problem: 1 - C(n - c, k) / C(n, k).

    `samples` n and `correct` c are counts of shape (problems,). Chen et al. 2021, equation 1. A
    problem with n < k gets pass@n, which is at most pass@k; one without samples gets NaN.
    """
    n, c = np.asarray(samples, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if k < 1 or np.any(n < 0) or np.any((c < 0) | (c > n)):
        raise ValueError("pass@k needs k >= 1 and 0 <= correct <= samples")
    none_right = np.ones(np.broadcast(n, c).shape)
    for j in range(int(min(k, n.max(initial=0)))):
        # The j-th draw without replacement is wrong too. There are no draws beyond n.
        remaining = np.maximum(n - j, 1)
        none_right *= np.where(j < n, np.maximum(n - c - j, 0) / remaining, 1.0)
    return np.where(n > 0, 1.0 - none_right, np.nan)


def cons_at_k(
    problem: ArrayLike, cluster: ArrayLike, correct: ArrayLike, problems: int | None = None
) -> Floats:
    """Whether the answer that most samples of a problem agree on is correct: cons@k of the report.

    All three arguments have shape (samples,): index of the problem, id of the cluster of equivalent
    answers within the problem (negative for a sample without an answer, which has no vote), and
    whether the sample is correct. A tie counts as the expected value of drawing one of the tied
    answers. Without any answer the value is 0, without samples NaN. Returns (problems,).
    """
    index, ids = np.asarray(problem, dtype=np.int64), np.asarray(cluster, dtype=np.int64)
    right = np.asarray(correct, dtype=np.float64)
    count = int(index.max(initial=-1)) + 1 if problems is None else problems
    seen = np.bincount(index, minlength=count) > 0
    votes = ids >= 0
    pairs, inverse = np.unique(np.stack([index[votes], ids[votes]]), axis=1, return_inverse=True)
    inverse, owner = inverse.reshape(-1), pairs[0]
    size = np.bincount(inverse, minlength=len(owner)).astype(np.float64)
    # Members of a cluster have one verdict, unless the verifier is not transitive: then their share
    # counts.
    share = np.bincount(inverse, weights=right[votes], minlength=len(owner)) / np.maximum(size, 1)
    largest = np.zeros(count)
    np.maximum.at(largest, owner, size)
    top = size == largest[owner]
    tied = np.bincount(owner[top], minlength=count)
    won = np.bincount(owner[top], weights=share[top], minlength=count) / np.maximum(tied, 1)
    return np.where(seen, won, np.nan)


def bootstrap(
    values: ArrayLike, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> list[Estimate]:
    """Mean over problems of each column of (problems, columns), with its percentile interval (Efron
    1979).

    Problems are drawn with replacement, the same draws for all columns. NaN marks a problem without
    a value in a column, and is left out of that column. With fewer than two problems there is a
    mean and no interval.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2:
        raise ValueError(f"bootstrap needs (problems, columns), not shape {table.shape}")
    present = ~np.isnan(table)
    filled = np.where(present, table, 0.0)
    counts = present.sum(axis=0)
    with np.errstate(invalid="ignore"):
        means = filled.sum(axis=0) / counts
    drawn = _resampled_means(filled, present.astype(np.float64), resamples, seed)
    tail = 100 * (1 - level) / 2
    estimates = []
    for j, count in enumerate(counts):
        column = drawn[:, j][~np.isnan(drawn[:, j])]
        low, high = np.percentile(column, [tail, 100 - tail]) if count > 1 else (np.nan, np.nan)
        estimates.append(Estimate(float(means[j]), float(low), float(high), int(count)))
    return estimates


def paired_difference(
    ours: ArrayLike,
    theirs: ArrayLike,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Estimate:
    """Mean over problems of ours - theirs, both (problems,) on the same problems, with its
    interval.

    A problem that is NaN in either is left out. What makes a problem hard for both cancels out,
    which makes the interval narrower than that of two separate levels.
    """
    difference = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    return bootstrap(difference[:, None], resamples, seed, level)[0]


def _resampled_means(filled: Floats, present: Floats, resamples: int, seed: int) -> Floats:
    """Means of `resamples` draws, (resamples, columns), a few at a time to bound memory."""
    problems = len(filled)
    if problems == 0:
        return np.full((resamples, filled.shape[1]), np.nan)
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // problems)
    parts = []
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, problems, size=(rows, problems), dtype=np.int32)
        flat = (drawn + np.arange(rows, dtype=np.int64)[:, None] * problems).reshape(-1)
        weights = (
            np.bincount(flat, minlength=rows * problems).reshape(rows, problems).astype(np.float64)
        )
        with np.errstate(invalid="ignore"):
            parts.append((weights @ filled) / (weights @ present))
    return np.concatenate(parts)
