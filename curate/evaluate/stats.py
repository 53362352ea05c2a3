"""Estimates of an evaluation as pure functions of arrays: pass@1, pass@k, cons@k, intervals.

Every estimate is a mean over problems of one value per problem, so that one bootstrap over problems
serves all of them: problems are independent draws, the k samples of one problem are not. If a model
was trained with several seeds, they are a second level of the bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    seeds: int = 1  # training seeds; of a difference, the larger number of both sides


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
        # probability that the j-th draw without replacement is wrong too; at most n draws exist
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
    answers. If no sample has an answer the value is 0; without samples it is NaN. Returns shape
    (problems,).
    """
    index, ids = np.asarray(problem, dtype=np.int64), np.asarray(cluster, dtype=np.int64)
    right = np.asarray(correct, dtype=np.float64)
    count = int(index.max(initial=-1)) + 1 if problems is None else problems
    seen = np.bincount(index, minlength=count) > 0
    votes = ids >= 0
    pairs, inverse = np.unique(np.stack([index[votes], ids[votes]]), axis=1, return_inverse=True)
    inverse, owner = inverse.reshape(-1), pairs[0]
    size = np.bincount(inverse, minlength=len(owner)).astype(np.float64)
    # Members of a cluster share one verdict, unless the verifier is not transitive: then the
    # share of correct ones counts.
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
    return compare_levels([Level.of_means(table[None])], (), resamples, seed, level)[0]


@dataclass(frozen=True, slots=True)
class Level:
    """Measured values of one model, or of several that differ only in their training seed.

    Both arrays have shape (seeds, problems, metrics). The level of a metric is the sum of its
    numerators divided by the sum of its denominators: a mean over problems where the denominator is
    1, a ratio (such as accuracy per answered text) where it is a share. NaN in both marks a problem
    without a value.
    """

    numerator: Floats
    denominator: Floats

    @staticmethod
    def of_means(values: Floats) -> Level:
        """Level of plain means: the denominator of every value is 1."""
        return Level(values, np.where(np.isnan(values), np.nan, 1.0))

    def masked(self, keep: NDArray[np.bool_]) -> Level:
        """The same level with NaN outside `keep`, (problems, metrics)."""
        return Level(
            np.where(keep, self.numerator, np.nan), np.where(keep, self.denominator, np.nan)
        )


def compare_levels(
    levels: Sequence[Level],
    pairs: Sequence[tuple[int, int]],
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> list[list[Estimate]]:
    """Estimates per metric of each level, then of each difference `levels[i] - levels[j]`.

    A hierarchical bootstrap: each draw takes problems with replacement, and training seeds with
    replacement if there are several. All levels share the draws of problems, and levels with
    equally many seeds share the draws of seeds, so that differences are paired. Of S seeds a
    draw takes S - 1: the variance of a mean of S draws would be too low by the factor (S - 1) / S
    (Rao and Wu 1988). A
    problem that either side of a difference lacks is left out of both.
    """
    blocks: list[tuple[Level, ...]] = [(one,) for one in levels]
    for ours, theirs in pairs:
        keep = _present(levels[ours]) & _present(levels[theirs])
        blocks.append((levels[ours].masked(keep), levels[theirs].masked(keep)))
    terms = [term for block in blocks for term in block]
    drawn = iter(_drawn(terms, resamples, seed))
    tail = 100 * (1 - level) / 2
    results = []
    for block in blocks:
        values, draws = _minus([next(drawn) for _ in block])
        counts = (_fill(block[0].denominator).sum(axis=0) > 0).sum(axis=0)
        seeds = max(len(term.numerator) for term in block)
        results.append(
            [
                _estimate(float(values[j]), draws[:, j], int(count), seeds, tail)
                for j, count in enumerate(counts)
            ]
        )
    return results


def _present(level: Level) -> NDArray[np.bool_]:
    """Whether every seed has a value, (problems, metrics)."""
    return np.asarray(~np.isnan(level.numerator).any(axis=0), dtype=np.bool_)


def _fill(values: Floats) -> Floats:
    return np.where(np.isnan(values), 0.0, values)


def _minus(parts: list[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """Value and draws of a level, or of the difference of two."""
    if len(parts) == 1:
        return parts[0]
    (value, draws), (other_value, other_draws) = parts
    return value - other_value, draws - other_draws


def _estimate(value: float, draws: Floats, count: int, seeds: int, tail: float) -> Estimate:
    draws = draws[~np.isnan(draws)]
    usable = count > 1 and len(draws)
    low, high = np.percentile(draws, [tail, 100 - tail]) if usable else (np.nan, np.nan)
    return Estimate(value, float(low), float(high), count, seeds)


def _drawn(terms: Sequence[Level], resamples: int, seed: int) -> list[tuple[Floats, Floats]]:
    """Value (metrics,) and resampled values (resamples, metrics) of each level."""
    flat = [_fill(array) for term in terms for array in (term.numerator, term.denominator)]
    # one matrix product for all levels: (problems, columns), with seeds x metrics columns per level
    wide = np.concatenate(
        [
            a.transpose(1, 0, 2).reshape(problems, seeds * metrics)
            for a in flat
            for seeds, problems, metrics in [a.shape]
        ],
        axis=1,
    )
    sums = _resampled_sums(wide, resamples, seed)
    values = []
    start = 0
    with np.errstate(invalid="ignore", divide="ignore"):
        for numerator, denominator in zip(flat[::2], flat[1::2], strict=True):
            seeds, _, metrics = numerator.shape
            middle, end = start + seeds * metrics, start + 2 * seeds * metrics
            weights = _seed_weights(seeds, resamples, seed)[:, :, None]
            above, below = (
                (weights * sums[:, a:b].reshape(resamples, seeds, metrics)).sum(axis=1)
                for a, b in ((start, middle), (middle, end))
            )
            exact = numerator.sum(axis=(0, 1)) / denominator.sum(axis=(0, 1))
            values.append((exact, above / below))
            start = end
    return values


def _seed_weights(seeds: int, resamples: int, seed: int) -> Floats:
    """Number of times that each draw takes each training seed, (resamples, seeds)."""
    if seeds == 1:
        return np.ones((resamples, 1))
    rng = np.random.default_rng([seed, seeds])
    return rng.multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=resamples).astype(np.float64)


def paired_difference(
    ours: ArrayLike,
    theirs: ArrayLike,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Estimate:
    """Mean over problems of ours - theirs, both (problems,) on the same problems, with its
    interval.

    A problem that is NaN in either is left out. Difficulty that both share cancels out, so the
    interval is narrower than with two separate levels.
    """
    difference = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    return bootstrap(difference[:, None], resamples, seed, level)[0]


def _resampled_sums(values: Floats, resamples: int, seed: int) -> Floats:
    """Sums over problems of `resamples` draws, (resamples, columns), a few at a time to bound
    memory.
    """
    problems = len(values)
    if problems == 0:
        return np.full((resamples, values.shape[1]), np.nan)
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // problems)
    parts = []
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, problems, size=(rows, problems), dtype=np.int32)
        flat = (drawn + np.arange(rows, dtype=np.int64)[:, None] * problems).reshape(-1)
        weights = np.bincount(flat, minlength=rows * problems).reshape(rows, problems)
        parts.append(weights.astype(np.float64) @ values)
    return np.concatenate(parts)
