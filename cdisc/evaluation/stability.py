"""Whether two discoveries of one query found the same concepts."""

from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from cdisc.diffusion.gaussian import Gaussian


class Agreement(NamedTuple):
    """How far two sets of Gaussians are the same, after matching.

    Attributes:
      overlap: the pairs whose means lie within the radius, over the size of the larger set; 1 for equal sets.
      distance: the mean of the matched pairs' 2-Wasserstein distances, per entry of the pictures; 0 for equal ones.
    """

    overlap: float
    distance: float


def agreement(first: Gaussian, second: Gaussian, radius: float) -> Agreement:
    """Matches two sets one to one at the least total distance (Kuhn 1955), and compares the pairs.

    Args:
      first: (K, *shape) means and variances, K at least 1.
      second: (L, *shape), L at least 1.
      radius: root mean square distance of means within which two are one, as `discover.merge_radius`.

    Raises:
      ValueError: if a set is empty.

    Examples:
      >>> means = jnp.array([[0.0, 0.0], [1.0, 1.0]])
      >>> agreement(Gaussian(means, jnp.ones((2, 2))), Gaussian(means[::-1], jnp.ones((2, 2))), radius=0.1)
      Agreement(overlap=np.float64(1.0), distance=0.0)
    """
    (m, s), (n, r) = ((np.asarray(g.mean), np.sqrt(np.asarray(g.variance))) for g in (first, second))
    if not (len(m) and len(n)):
        raise ValueError(f"an agreement needs concepts on both sides, not {len(m)} and {len(n)}")
    axes = tuple(range(2, m.ndim + 1))
    means = np.mean(np.square(m[:, None] - n[None]), axis=axes)
    # Of two diagonal Gaussians: the squared distance of their means and of their standard deviations.
    squares = means + np.mean(np.square(s[:, None] - r[None]), axis=axes)
    rows, columns = linear_sum_assignment(np.sqrt(squares))
    near = np.sqrt(means[rows, columns]) <= radius
    return Agreement(near.sum() / max(len(m), len(n)), float(np.mean(np.sqrt(squares[rows, columns]))))
