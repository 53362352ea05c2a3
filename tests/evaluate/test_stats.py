"""pass@k, cons@k and intervals against enumeration and closed forms."""

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.evaluate.stats import (
    Level,
    bootstrap,
    compare_levels,
    cons_at_k,
    paired_difference,
    pass_at_1,
    pass_at_k,
)

counts = st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))


@settings(deadline=None)
@given(counts, st.integers(1, 12))
def test_pass_at_k_is_the_chance_over_all_draws(nc, k):
    n, c = nc
    drawn = list(combinations([1] * c + [0] * (n - c), min(k, n)))
    assert pass_at_k([n], [c], k)[0] == pytest.approx(np.mean([any(d) for d in drawn]), abs=1e-12)


def test_pass_at_k_of_many_samples_is_exact():
    n, c, k = 1000, 7, 64
    assert pass_at_k([n], [c], k)[0] == pytest.approx(1 - comb(n - c, k) / comb(n, k), rel=1e-12)
    assert pass_at_k([n, n], [0, n], k).tolist() == [0.0, 1.0]


def test_pass_at_1_is_the_share_of_correct_samples():
    assert pass_at_1([4, 2, 1], [1, 2, 0]).tolist() == [0.25, 1.0, 0.0]


def test_pass_at_k_without_samples_is_unknown_and_with_too_few_is_a_lower_bound():
    assert np.isnan(pass_at_k([0], [0], 4)[0])
    assert pass_at_k([2], [1], 16)[0] == 1.0
    assert pass_at_k([2], [0], 16)[0] == 0.0
    assert pass_at_k([], [], 3).shape == (0,)


@pytest.mark.parametrize(("n", "c", "k"), [(3, 4, 1), (3, -1, 1), (-1, 0, 1), (3, 1, 0)])
def test_pass_at_k_refuses_impossible_counts(n, c, k):
    with pytest.raises(ValueError, match="pass@k"):
        pass_at_k([n], [c], k)


@pytest.mark.parametrize(
    ("clusters", "right", "expected"),
    [
        ([0, 0, 1], [1, 1, 0], 1.0),
        ([0, 0, 1], [0, 0, 1], 0.0),
        ([0, 1], [1, 0], 0.5),  # a tie is a coin
        ([0, 1, 2], [1, 0, 0], 1 / 3),
        ([5, 5, 9, 9, 2], [1, 1, 0, 0, 0], 0.5),
        ([-1, -1, -1, 0], [0, 0, 0, 1], 1.0),  # no answer, no vote
        ([-1, -1], [0, 0], 0.0),
        ([0, 0], [1, 0], 0.5),  # verdicts that differ within a cluster
    ],
)
def test_cons_at_k_is_the_majority_vote(clusters, right, expected):
    assert cons_at_k([0] * len(clusters), clusters, right)[0] == pytest.approx(expected)


def test_cons_at_k_separates_problems():
    problem, cluster, right = [2, 0, 0, 2, 0, 2], [0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]
    got = cons_at_k(problem, cluster, right, problems=4)
    assert got[[0, 2]].tolist() == [1.0, 1.0]
    assert np.isnan(got[[1, 3]]).all()
    assert cons_at_k([], [], []).shape == (0,)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 3)), min_size=1, max_size=20),
    st.randoms(),
)
def test_cons_at_k_agrees_with_counting_and_not_with_order(samples, random):
    right_cluster = 1
    problem, cluster = zip(*samples, strict=True)
    got = cons_at_k(problem, cluster, [c == right_cluster for c in cluster], problems=4)
    for p in range(4):
        votes = [c for q, c in samples if q == p]
        answers = [c for c in votes if c >= 0]
        most = max((answers.count(c) for c in answers), default=0)
        top = [c for c in set(answers) if answers.count(c) == most]
        expected = np.nan if not votes else (right_cluster in top) / len(top) if top else 0.0
        assert got[p] == pytest.approx(expected, nan_ok=True)
    shuffled = list(samples)
    random.shuffle(shuffled)
    problem, cluster = zip(*shuffled, strict=True)
    again = cons_at_k(problem, cluster, [c == right_cluster for c in cluster], problems=4)
    np.testing.assert_array_equal(got, again)


def test_bootstrap_is_the_mean_with_the_interval_of_the_normal_law():
    values = np.random.default_rng(7).normal(0.5, 0.2, size=400)
    (estimate,) = bootstrap(values[:, None], resamples=4000)
    half = 1.96 * values.std() / 20
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=half * 0.1)
    assert estimate.high == pytest.approx(values.mean() + half, abs=half * 0.1)
    assert estimate.count == 400


def test_bootstrap_intervals_have_their_nominal_coverage():
    rng = np.random.default_rng(3)
    table = rng.random((100, 300)) < 0.3  # 300 experiments of 100 problems
    held = [e.low <= 0.3 <= e.high for e in bootstrap(table, resamples=1000, seed=1)]
    assert 0.89 <= np.mean(held) <= 0.99


def test_bootstrap_is_the_same_for_the_same_seed_and_for_any_chunking(monkeypatch):
    table = np.random.default_rng(0).random((50, 3))
    one = bootstrap(table, resamples=500, seed=4)
    assert one == bootstrap(table, resamples=500, seed=4)
    assert one != bootstrap(table, resamples=500, seed=5)
    monkeypatch.setattr("curate.evaluate.stats._CELLS", 700)
    assert one == bootstrap(table, resamples=500, seed=4)


def test_bootstrap_leaves_out_unknown_values():
    nan = np.nan
    table = np.array([[1.0, 1.0, nan], [0.0, nan, nan], [1.0, nan, nan], [nan, nan, nan]])
    full, single, none = bootstrap(table, resamples=300)
    assert full.value == pytest.approx(2 / 3)
    assert full.count == 3
    assert 0 <= full.low <= full.high <= 1
    assert (single.value, single.count) == (1.0, 1)
    assert np.isnan([single.low, single.high]).all()
    assert none.count == 0
    assert np.isnan(none.value)
    assert np.isnan(bootstrap(np.empty((0, 1)), resamples=5)[0].value)
    with pytest.raises(ValueError, match="problems, columns"):
        bootstrap(np.zeros(3))


def test_a_constant_has_an_interval_of_zero_width():
    estimate = paired_difference(np.full(30, 0.75), np.full(30, 0.5))
    assert (estimate.value, estimate.low, estimate.high) == (0.25, 0.25, 0.25)


def test_pairs_reveal_a_difference_that_two_levels_hide():
    rng = np.random.default_rng(1)
    hard = rng.random(200)
    theirs, ours = hard, np.clip(hard + 0.03 + rng.normal(0, 0.02, 200), 0, 1.1)
    difference = paired_difference(ours, theirs)
    level_ours, level_theirs = bootstrap(np.stack([ours, theirs], axis=1))
    assert difference.low > 0
    assert level_theirs.high > level_ours.low  # the levels overlap
    ours[0] = np.nan
    assert paired_difference(ours, theirs).count == 199


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_a_model_has_no_difference_from_itself(values):
    estimate = paired_difference(values, values, resamples=100)
    assert (estimate.value, estimate.low, estimate.high) == (0.0, 0.0, 0.0)


def test_levels_over_seeds_are_means_and_their_intervals_cover_seeds():
    rng = np.random.default_rng(5)
    seeds, problems = 3, 400
    effects = np.array([0.0, 0.2, 0.4])  # effect of each training seed
    values = rng.random((seeds, problems, 1)) * 0.1 + effects[:, None, None]
    several = compare_levels([Level.of_means(values)], ())[0][0]
    one = compare_levels([Level.of_means(values.mean(axis=0, keepdims=True))], ())[0][0]
    assert several.value == pytest.approx(one.value) == pytest.approx(values.mean())
    assert (several.seeds, one.seeds, several.count) == (3, 1, 400)
    # The mean of two of the three effects varies between 0 and 0.4; the problems hardly vary.
    assert several.high - several.low == pytest.approx(0.4, abs=0.02)
    assert one.high - one.low < 0.02


def test_intervals_over_seeds_have_their_nominal_coverage():
    rng = np.random.default_rng(8)
    held = []
    for _ in range(200):
        effect = rng.normal(0, 0.1, size=(8, 1, 1))
        values = 0.5 + effect + rng.normal(0, 0.3, size=(8, 100, 1))
        estimate = compare_levels([Level.of_means(values)], (), resamples=400)[0][0]
        held.append(estimate.low <= 0.5 <= estimate.high)
    assert 0.86 <= np.mean(held) <= 0.99


def test_differences_pair_seeds_and_a_single_seed_pairs_with_all():
    rng = np.random.default_rng(2)
    effects = np.array([0.0, 0.3, 0.6])[:, None, None]
    ours = effects + rng.random((3, 50, 1)) * 0.01
    theirs = ours - 0.1
    base = np.zeros((1, 50, 1))
    levels = [Level.of_means(values) for values in (ours, theirs, base)]
    paired, against_base = (block[0] for block in compare_levels(levels, [(0, 1), (0, 2)])[3:])
    assert (paired.low, paired.high) == pytest.approx((0.1, 0.1))
    assert against_base.value == pytest.approx(ours.mean())
    assert against_base.high - against_base.low > 0.5


def test_a_ratio_is_that_of_the_sums_and_not_the_mean_of_ratios():
    right = np.array([[[0.5], [0.0]]])  # of the samples
    answered = np.array([[[1.0], [0.25]]])
    ratio = compare_levels([Level(right, answered)], ())[0][0]
    assert ratio.value == pytest.approx(0.5 / 1.25)
    nothing = compare_levels([Level(right * 0, answered * 0)], ())[0][0]
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()
    assert nothing.count == 0
