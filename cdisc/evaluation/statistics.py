"""How far figures can be trusted: bootstrap intervals, of one method, of a paired difference, and of an AUROC.

What is resampled must be independent: classes, or queries where each is of its own class. Several queries or seeds of
one class are averaged first.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Interval(NamedTuple):
    """A figure and the percentile interval of its bootstrap (Efron 1979).

    Attributes:
      estimate: on the data as they are.
      low: end of the interval.
      high: its other end. An interval of a difference that contains 0 shows no difference.
    """

    estimate: float
    low: float
    high: float


def bootstrap(
    values: ArrayLike,
    rng: np.random.Generator,
    *,
    statistic: Callable[[np.ndarray], Any] = np.mean,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """A statistic of Q independent items, with the interval of resamples of as many items, with replacement.

    Few items give intervals that are somewhat too short.

    Args:
      values: (Q, ...) figures of the items.
      rng: the source of the resamples.
      statistic: from the figures of drawn items (Q, ...) to a number.
      resamples: how many.
      confidence: share of the resamples between the ends.

    Raises:
      ValueError: if there are fewer than two items.

    Examples:
      >>> bootstrap([0.0, 1.0, 0.0, 1.0], np.random.default_rng(0)).estimate
      0.5
    """
    values = np.asarray(values)
    if len(values) < 2:
        raise ValueError(f"an interval needs two items or more, not {len(values)}")
    rows = rng.integers(len(values), size=(resamples, len(values)))
    return _between(float(statistic(values)), [float(statistic(values[drawn])) for drawn in rows], confidence)


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    rng: np.random.Generator,
    *,
    statistic: Callable[[np.ndarray], Any] = np.mean,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """The difference of two methods' statistics, with its interval.

    Each resample draws the SAME items for both methods: how hard an item is, is no part of the difference.

    Args:
      first: (Q, ...) a method's figures of Q independent items.
      second: (Q, ...) the other method's, of the same items in the same order.
      rng: as in `bootstrap`, like the rest.
      statistic: as there.
      resamples: as there.
      confidence: as there.

    Returns:
      `statistic(first) - statistic(second)` and its interval.

    Raises:
      ValueError: if the items are not the same number, or fewer than two.

    Examples:
      >>> paired_bootstrap([1.0, 2.0], [0.5, 1.5], np.random.default_rng(0))  # the same for each item
      Interval(estimate=0.5, low=0.5, high=0.5)
    """
    first, second = np.asarray(first), np.asarray(second)
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"a paired interval needs the same two queries or more, not {len(first)} and {len(second)}")
    both = np.stack([first, second], axis=1)

    def difference(drawn: np.ndarray) -> float:
        return float(statistic(drawn[:, 0]) - statistic(drawn[:, 1]))

    return bootstrap(both, rng, statistic=difference, resamples=resamples, confidence=confidence)


def auroc(positive: ArrayLike, negative: ArrayLike) -> float:
    """The probability that a score of `positive` (P,) is above one of `negative` (N,), ties counting one half.

    It is the area under the receiver operating characteristic (Hanley & McNeil 1982): 1/2 for a score that tells
    nothing, 1 for one that some threshold makes exact.

    Raises:
      ValueError: if either is empty.

    Examples:
      >>> auroc([3.0, 2.0], [1.0, 2.0])
      0.875
    """
    positive, negative = np.asarray(positive, np.float64), np.asarray(negative, np.float64)
    if not (positive.size and negative.size):
        raise ValueError(f"an AUROC needs scores of both kinds, not {positive.size} and {negative.size}")
    above = positive[:, None] - negative[None]
    return float(np.mean((above > 0) + 0.5 * (above == 0)))


def auroc_interval(
    scores: ArrayLike,
    positive: ArrayLike,
    rng: np.random.Generator,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """The `auroc` of scores (Q,) for what is `positive` (Q,) bool; each kind is resampled by itself.

    Raises:
      ValueError: if a kind is missing, or a score is not a number.

    Examples:
      >>> auroc_interval([3.0, 2.0, 1.0, 0.0], [True, True, False, False], np.random.default_rng(0))
      Interval(estimate=1.0, low=1.0, high=1.0)
    """
    scores, positive = np.asarray(scores, np.float64), np.asarray(positive, bool)
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores are not numbers")
    kinds = scores[positive], scores[~positive]
    estimate = auroc(*kinds)
    drawn = [auroc(*(rng.choice(kind, len(kind)) for kind in kinds)) for _ in range(resamples)]
    return _between(estimate, drawn, confidence)


def _between(estimate: float, drawn: Sequence[float], confidence: float) -> Interval:
    tail = (1.0 - confidence) / 2.0
    return Interval(estimate, *map(float, np.quantile(drawn, [tail, 1.0 - tail])))
