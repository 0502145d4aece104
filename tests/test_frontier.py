"""Frontiers against their definition and areas known in closed form; the bootstrap's intervals against their truth."""

import numpy as np
import pytest

from cdisc.evaluation import frontier as lib


def test_the_envelope_leaves_out_what_another_setting_matches_in_both():
    # Catches: the convex hull, points in the dial's order, of equal accuracies the lower recall kept.
    envelope = lib.frontier([0.9, 0.6, 0.7, 0.95, 0.9, 0.95], [0.5, 0.8, 0.4, 0.5, 0.45, 0.1])
    np.testing.assert_array_equal(envelope.accuracy, [0.6, 0.95])
    np.testing.assert_array_equal(envelope.recall, [0.8, 0.5])
    # A point below the chord of its neighbours stays: the dial reaches it, and nothing reaches the chord.
    assert len(lib.frontier([0.6, 0.8, 1.0], [0.8, 0.4, 0.2]).accuracy) == 3


def test_recall_at_an_accuracy_is_interpolated_and_not_extrapolated():
    envelope = lib.frontier([0.85, 0.95, 0.99], [0.6, 0.2, 0.1])
    assert lib.recall_at(envelope, 0.91) == pytest.approx(0.6 - 0.4 * 0.6)
    assert lib.recall_at(envelope, 0.95) == pytest.approx(0.2)
    assert lib.recall_at(envelope, 0.5) == 0.6  # at least as accurate, and nothing less accurate recalls more
    assert lib.recall_at(envelope, 0.99) == pytest.approx(0.1)
    assert np.isnan(lib.recall_at(envelope, 0.995))


@pytest.mark.parametrize(
    ("accuracy", "recall", "expected"),
    [
        ([1.0], [1.0], 1.0),  # perfect
        ([0.8], [1.0], 0.0),  # never right often enough
        ([0.9], [0.5], 0.25),  # half of the range at one half
        ([0.8, 1.0], [1.0, 0.0], 0.5),  # a triangle
        ([0.7, 0.9], [0.6, 0.2], (0.4 + 0.2) / 2 * 0.1 / 0.2),  # the line is cut at 0.8
        ([0.9, 0.7], [0.2, 0.6], (0.4 + 0.2) / 2 * 0.1 / 0.2),  # in any order
        ([0.9, 0.85], [0.5, 0.1], 0.25),  # a dominated setting adds nothing
    ],
)
def test_area_of_frontiers_known_in_closed_form(accuracy, recall, expected):
    # Catches: an area that is not divided by 0.2, one from the first point on, one that goes on beyond the last.
    assert lib.area(lib.frontier(accuracy, recall)) == pytest.approx(expected)


def test_area_is_the_mean_of_the_recall_over_accuracies():
    rng = np.random.default_rng(0)
    envelope = lib.frontier(rng.uniform(0.6, 1.0, 9), rng.uniform(0.0, 1.0, 9))
    grid = 0.8 + 0.2 * (np.arange(20_000) + 0.5) / 20_000
    mean = np.mean(np.nan_to_num([lib.recall_at(envelope, accuracy) for accuracy in grid]))
    assert lib.area(envelope) == pytest.approx(mean, abs=1e-4)


def test_points_that_make_no_frontier_are_refused():
    for accuracy, recall in (([], []), ([0.5], [0.5, 0.5]), ([[0.5]], [[0.5]])):
        with pytest.raises(ValueError, match="needs points"):
            lib.frontier(np.asarray(accuracy), np.asarray(recall))
    with pytest.raises(ValueError, match="finite"):
        lib.frontier([0.5, np.nan], [0.5, 0.5])


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
        return lib.area(lib.frontier(*points.mean(axis=0).T))

    found = lib.paired_bootstrap(first, second, rng, statistic=of, resamples=200)
    assert found.estimate == pytest.approx(of(first) - of(second))
    assert found.low < found.estimate < found.high
    again = lib.paired_bootstrap(first, second, np.random.default_rng(2), statistic=of, resamples=50)
    assert again == lib.paired_bootstrap(first, second, np.random.default_rng(2), statistic=of, resamples=50)
