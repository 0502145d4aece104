"""Intervals against the coverage that they claim; AUROCs against pairs counted one by one."""

import numpy as np
import pytest

from cdisc.evaluation import frontier
from cdisc.evaluation import statistics as lib


def test_intervals_hold_the_true_difference_as_often_as_they_say():
    # Queries differ far more than methods do. Catches: the two methods drawn apart, whose intervals would always hold
    # it; one tail for both; an interval of single queries instead of means.
    held, widths = [], []
    for trial in range(300):
        rng = np.random.default_rng(trial)
        easy = rng.normal(0.0, 10.0, 40)
        first, second = easy + 0.3 + rng.normal(0.0, 0.5, 40), easy + rng.normal(0.0, 0.5, 40)
        found = lib.paired_bootstrap(first, second, rng, resamples=400)
        held.append(found.low <= 0.3 <= found.high)
        widths.append(found.high - found.low)
        assert found.estimate == pytest.approx(np.mean(first - second))
    assert 0.90 <= np.mean(held) <= 0.98
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.sqrt(0.5 / 40), rel=0.1)


def test_intervals_of_methods_without_chance():
    rng = np.random.default_rng(0)
    same = rng.uniform(size=7)
    assert lib.paired_bootstrap(same, same, rng) == (0.0, 0.0, 0.0)
    np.testing.assert_allclose(lib.paired_bootstrap(same + 0.25, same, rng), 0.25)
    # One query of four differs: some resamples lack it.
    assert lib.paired_bootstrap([1.0, 0, 0, 0], [0.0, 0, 0, 0], rng).low == 0.0
    for first, second in (([1.0], [0.0]), ([1.0, 2.0], [1.0])):
        with pytest.raises(ValueError, match="same two queries"):
            lib.paired_bootstrap(first, second, rng)


def test_a_statistic_sees_the_drawn_queries_whole():
    # (queries, settings, 2), the areas of the frontiers of their means: what is averaged is the query, not the area.
    rng = np.random.default_rng(1)
    first, second = rng.uniform(0.7, 1.0, size=(2, 12, 3, 2))

    def of(points):
        return frontier.area(frontier.frontier(*points.mean(axis=0).T))

    found = lib.paired_bootstrap(first, second, rng, statistic=of, resamples=200)
    assert found.estimate == pytest.approx(of(first) - of(second))
    assert found.low < found.estimate < found.high
    again = lib.paired_bootstrap(first, second, np.random.default_rng(2), statistic=of, resamples=50)
    assert again == lib.paired_bootstrap(first, second, np.random.default_rng(2), statistic=of, resamples=50)


def test_an_interval_of_a_mean_has_the_width_of_its_standard_error():
    # Catches: the spread of items instead of means, one tail for both ends, resamples without replacement.
    values = np.random.default_rng(0).normal(3.0, 2.0, 60)
    found = lib.bootstrap(values, np.random.default_rng(1))
    assert found.estimate == pytest.approx(values.mean())
    error = values.std() / np.sqrt(60)
    assert (found.high - found.estimate, found.estimate - found.low) == pytest.approx((1.96 * error,) * 2, rel=0.1)
    half = lib.bootstrap(values, np.random.default_rng(1), confidence=0.5)
    assert half.high - half.low == pytest.approx(2 * 0.674 * error, rel=0.1)
    with pytest.raises(ValueError, match="two items or more, not 1"):
        lib.bootstrap([1.0], np.random.default_rng(0))


def test_auroc_is_the_share_of_pairs_in_order():
    # Catches: ties as losses, the two kinds exchanged, a mean of scores instead of an order.
    assert lib.auroc([3.0, 2.0], [1.0, 0.0]) == 1.0
    assert lib.auroc([0.0], [1.0, 2.0]) == 0.0
    assert lib.auroc([1.0, 1.0], [1.0]) == 0.5
    assert lib.auroc([5.0, 1.0, 1.0], [1.0, 0.0]) == pytest.approx((2 + 1.5 + 1.5) / 6)
    assert lib.auroc(np.exp([5.0, 1.0, 1.0]), np.exp([1.0, 0.0])) == lib.auroc([5.0, 1.0, 1.0], [1.0, 0.0])
    for kinds in (([], [1.0]), ([1.0], [])):
        with pytest.raises(ValueError, match="both kinds"):
            lib.auroc(*kinds)


def test_auroc_intervals_hold_the_truth():
    # Two normal scores one standard deviation apart: the AUROC is Phi(1 / sqrt 2) = 0.7602.
    held = []
    for trial in range(100):
        rng = np.random.default_rng(trial)
        positive = rng.uniform(size=80) < 0.4
        found = lib.auroc_interval(rng.normal(size=80) + positive, positive, rng, resamples=300)
        held.append(found.low <= 0.7602 <= found.high)
    assert 0.88 <= np.mean(held) <= 1.0
    with pytest.raises(ValueError, match="1 of 2 scores"):
        lib.auroc_interval([np.nan, 1.0], [True, False], np.random.default_rng(0))
    with pytest.raises(ValueError, match="both kinds"):
        lib.auroc_interval([0.0, 1.0], [True, True], np.random.default_rng(0))
