"""What a method can reach: the frontier of accuracy and recall along a dial, and differences of two methods.

Guidance, steps and the like trade recall for accuracy. A method is therefore a curve, and methods compare at equal
accuracy, or by the area under their curves; at one setting each, they compare dials. Whether a difference stands is
asked of the same queries under both methods (`statistics.paired_bootstrap`).
"""

from typing import NamedTuple

import numpy as np

ACCURATE = 0.8
"""Accuracy from which on the area counts: below it, recall is of little use."""


class Frontier(NamedTuple):
    """The upper envelope of the points (accuracy, recall) that a dial reaches, by growing accuracy.

    Between two neighbours it is the line that joins them; at less accuracy than the first, the first's recall. The line
    is a guess where a dial's settings lie far apart: it is not drawn between points that another one dominates.

    Attributes:
      accuracy: (n,) growing.
      recall: (n,) falling.
    """

    accuracy: np.ndarray
    recall: np.ndarray


def frontier(accuracy: np.ndarray, recall: np.ndarray) -> Frontier:
    """The points that no other one matches in both figures.

    Args:
      accuracy: (N,) at each setting of the dial, in any order.
      recall: (N,) at the same settings.

    Raises:
      ValueError: if there is no point, or one that is not finite.

    Examples:
      >>> frontier(np.array([0.5, 0.9, 0.4]), np.array([0.8, 0.2, 0.7])).accuracy
      array([0.5, 0.9])
    """
    accuracy, recall = np.asarray(accuracy, np.float64), np.asarray(recall, np.float64)
    if accuracy.shape != recall.shape or accuracy.ndim != 1 or not accuracy.size:
        raise ValueError(f"a frontier needs points, not accuracy {accuracy.shape} with recall {recall.shape}")
    if not np.isfinite([accuracy, recall]).all():
        raise ValueError("a frontier needs finite points: leave out the settings that have no accuracy or no recall")
    order = np.lexsort((recall, accuracy))[::-1]  # by falling accuracy, the highest recall first
    falling = recall[order]
    beats = np.append(True, falling[1:] > np.maximum.accumulate(falling)[:-1])
    kept = order[beats][::-1]
    return Frontier(accuracy[kept], recall[kept])


def recall_at(envelope: Frontier, accuracy: float) -> float:
    """The recall at an accuracy of at least `accuracy`; NaN where the dial never reaches it.

    Examples:
      >>> recall_at(frontier(np.array([0.5, 0.9]), np.array([0.8, 0.2])), 0.9)
      0.2
    """
    return float(np.interp(accuracy, *envelope, right=np.nan))


def area(envelope: Frontier, least: float = ACCURATE) -> float:
    """The mean of the recall over accuracies from `least` to 1, as 0 where the dial does not reach.

    A perfect method, with accuracy 1 and recall 1, has 1; one that is never right in `least` of its samples has 0.

    Examples:
      >>> area(frontier(np.array([1.0]), np.array([1.0])))
      1.0
    """
    knots = np.concatenate([[least], envelope.accuracy[envelope.accuracy > least]])
    return float(np.trapezoid(np.interp(knots, *envelope), knots) / (1.0 - least))
