"""Frontiers against their definition and areas known in closed form."""

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
