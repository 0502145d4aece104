"""Figures that compare a set of samples with real pictures, with the attributes asked for, and with the query.

All figures of sets are taken in whatever feature space they are given: the judge's (see `judge`), so that their values
compare methods with each other and not with papers that used another network.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from cdisc.diffusion.gaussian import Gaussian


class PrecisionRecall(NamedTuple):
    """How much of the samples looks real, and how much of the real the samples reach.

    Attributes:
      precision: () share of the SAMPLES that lie inside the manifold of the real pictures.
      recall: () share of the REAL pictures that lie inside the manifold of the samples.
    """

    precision: jax.Array
    recall: jax.Array


def precision_recall(real: jax.Array, fake: jax.Array, *, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991, Eq. 1 and 2).

    The manifold of a set is the union of closed balls, one around each member, each reaching to the member's k-th
    nearest neighbour in its own set, itself not counted. Samples that copy one picture have tiny balls: whatever their
    precision, their recall is near 0.

    Distances are computed from differences: the expansion |a|^2 - 2ab + |b|^2 would cancel in float32, give near-copies
    balls as wide as its rounding error, and so invent recall. Memory is of the order of (N + M) D, not of N M D.

    Args:
      real: (N, D) features of real pictures, N > k.
      fake: (M, D) features of samples, M > k.
      k: which neighbour sets the radius.

    Raises:
      ValueError: if a set has k members or fewer, so that k-th neighbours do not exist.

    Examples:
      >>> precision_recall(real, real[:4], k=2).precision  # real pictures are precise
      Array(1., dtype=float32)
    """
    for name, features in (("real", real), ("fake", fake)):
        _require_neighbours(name, features, k)
    return PrecisionRecall(precision=_share_inside(real, fake, k), recall=_share_inside(fake, real, k))


def right_recall(real: jax.Array, fake: jax.Array, right: jax.Array, *, k: int = 3) -> jax.Array:
    """Recall by the RIGHT samples alone: how much of the real pictures they reach, as in `precision_recall`.

    Recall by all samples counts wrong ones that lie around the real pictures, whose balls are wide. The wrong ones are
    left out here as members and as neighbours. What is right need not look real, and a few right samples far apart have
    wide balls too: where accuracy or precision is low, coverage (`density_coverage`) tells more.

    Args:
      real: (N, D) features of real pictures.
      fake: (M, D) features of samples.
      right: (M,) bool, whether a sample shows all that was asked for.
      k: which neighbour sets the radius.

    Returns:
      () share of the real pictures; 0 with k right samples or fewer, which have no manifold.

    Examples:
      >>> right_recall(real, real, jnp.ones(6, bool), k=2)
      Array(1., dtype=float32)
    """
    return jnp.where(jnp.sum(right) > k, _share_inside(fake, real, k, right), 0.0)


class DensityCoverage(NamedTuple):
    """Precision and recall that the real pictures alone scale (Naeem et al. 2020, arXiv 2002.09797, Eq. 4 and 5).

    Attributes:
      density: () in how many real pictures' balls a sample lies, over k; 1 in expectation for equal distributions, and
        above where samples crowd where real pictures do.
      coverage: () share of the real pictures with a sample in their ball.
    """

    density: jax.Array
    coverage: jax.Array


@functools.partial(jax.jit, static_argnames="k")
def density_coverage(real: jax.Array, fake: jax.Array, *, k: int = 3) -> DensityCoverage:
    """Density and coverage, with the closed balls around real pictures of `precision_recall`.

    Balls around samples play no part, so an outlier among the samples cannot raise either figure. Few samples cannot
    cover many pictures: compare methods at one number of samples.

    Args:
      real: (N, D) features of real pictures, N > k.
      fake: (M, D) features of samples.
      k: which neighbour sets the radius.

    Raises:
      ValueError: if there are k real pictures or fewer.

    Examples:
      >>> density_coverage(real, real, k=2).coverage
      Array(1., dtype=float32)
    """
    _require_neighbours("real", real, k)
    radii = _squared_radii(real, k)
    inside = jax.lax.map(lambda sample: _squared_distances(real, sample) <= radii, fake)  # (M, N)
    density = jnp.mean(jnp.sum(inside, axis=1) / k)
    return DensityCoverage(density, coverage=jnp.mean(jnp.any(inside, axis=0).astype(jnp.float32)))


# Compiled once for each pair of shapes: the evaluation asks again for every method and query.
@functools.partial(jax.jit, static_argnames="k")
def _share_inside(members: jax.Array, points: jax.Array, k: int, counted: jax.Array | None = None) -> jax.Array:
    """The share of `points` (M, D) inside the manifold of `members` (N, D), or of those `counted` (N,) among them."""
    radii = _squared_radii(members, k, counted)
    inside = jax.lax.map(lambda point: jnp.any(_squared_distances(members, point) <= radii), points)
    return jnp.mean(inside.astype(jnp.float32))


def _squared_radii(members: jax.Array, k: int, counted: jax.Array | None = None) -> jax.Array:
    """Each member's squared distance to its k-th nearest neighbour: (N,); -1, an empty ball, for those not counted."""
    counted = jnp.ones(members.shape[0], bool) if counted is None else counted

    def squared_radius(index: jax.Array) -> jax.Array:
        # The member itself is left out by its index: by its distance, a duplicate could be left out in its place.
        distances = jnp.where(counted, _squared_distances(members, members[index]), jnp.inf).at[index].set(jnp.inf)
        return jnp.where(counted[index], jnp.sort(distances)[k - 1], -1.0)

    return jax.lax.map(squared_radius, jnp.arange(members.shape[0]))


def _squared_distances(members: jax.Array, point: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(members - point[None]), axis=-1)


def _require_neighbours(name: str, features: jax.Array, k: int) -> None:
    if features.shape[0] <= k:
        raise ValueError(f"the {k}-th nearest neighbour needs more than {k} {name} features, not {features.shape[0]}")


@jax.jit
def vendi(features: jax.Array, bandwidth: float | jax.Array) -> jax.Array:
    """The Vendi score: how many different pictures a set amounts to (Friedman & Dieng 2023, arXiv 2210.02410, Eq. 1).

    It is exp(-sum_i l_i log l_i), l the eigenvalues of K / n, with the kernel K_ij = exp(-|x_i - x_j|^2 / (2 h^2)).

    Args:
      features: (n, D). The score grows with n where pictures differ: compare methods at one n.
      bandwidth: () h, above 0; one for all methods, as the median distance of real pictures (`median_distance`).

    Returns:
      (): from 1, all the same, to n, all far apart.

    Examples:
      >>> vendi(jnp.array([[0.0], [0.0], [99.0]]), bandwidth=1.0)  # between one picture and three
      Array(1.89, dtype=float32)
    """
    squares = jax.lax.map(lambda point: _squared_distances(features, point), features)
    eigenvalues = jnp.linalg.eigvalsh(jnp.exp(-squares / (2.0 * bandwidth**2)) / features.shape[0])
    # Rounding leaves some below 0, where the entropy is not defined.
    return jnp.exp(jnp.sum(jax.scipy.special.entr(jnp.maximum(eigenvalues, 0.0))))


@jax.jit
def median_distance(features: jax.Array) -> jax.Array:
    """The median of the distances between two different members of `features` (N, D), N > 1: ().

    Examples:
      >>> median_distance(jnp.array([[0.0], [1.0], [3.0]]))
      Array(2., dtype=float32)
    """
    squares = jax.lax.map(lambda point: _squared_distances(features, point), features)
    return jnp.sqrt(jnp.median(squares[jnp.triu_indices(features.shape[0], k=1)]))


def f1(precision: float, recall: float) -> float:
    """The harmonic mean of precision and recall; 0 where both are 0.

    Examples:
      >>> f1(0.5, 1.0)
      0.6666666666666666
    """
    return 2.0 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def kid(real: ArrayLike, fake: ArrayLike) -> float:
    """The kernel distance: unbiased squared MMD with the kernel (xy / D + 1)^3 (Binkowski et al. 2018, Eq. 4).

    Unlike FID its expectation does not depend on how many samples there are, so sets of different sizes compare. It is
    one estimate over all pairs, without subsets; for equal distributions it scatters around 0 and may be negative.

    Args:
      real: (N, D) features of real pictures, N > 1.
      fake: (M, D) features of samples, M > 1.

    Raises:
      ValueError: if a set has fewer than two members, or features that are not finite.

    Examples:
      >>> kid(np.eye(3), np.eye(3)) < 0  # unbiased, so below 0 for equal sets
      True
    """
    x, y = _as_doubles("KID", real, fake)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / x.shape[1] + 1.0) ** 3

    def off_diagonal(matrix: np.ndarray) -> float:
        return (matrix.sum() - np.trace(matrix)) / (len(matrix) * (len(matrix) - 1))

    return float(off_diagonal(kernel(x, x)) + off_diagonal(kernel(y, y)) - 2.0 * kernel(x, y).mean())


def frechet_distance(real: ArrayLike, fake: ArrayLike) -> float:
    """The squared Fréchet distance of the Gaussians that fit two sets: FID's formula (Heusel et al. 2017, Eq. 6).

    It is FID only in the features of the Inception network that Heusel et al. used. Its bias grows as the sets shrink,
    and depends on what made them (Chong & Forsyth 2020): at one hundred pictures it ranks methods roughly at best.

    The trace of the root of S_1 S_2 is the sum of the singular values of A_1 A_2^T, where S_i = A_i^T A_i: roots of
    eigenvalues, which rounding makes negative where a set has fewer pictures than features, do not arise.

    Args:
      real: (N, D) features of real pictures, N > 1.
      fake: (M, D) features of samples, M > 1.

    Raises:
      ValueError: if a set has fewer than two members, or features that are not finite.

    Examples:
      >>> sets = np.array([[0.0], [2.0]])
      >>> round(frechet_distance(sets, sets + 3.0), 3)  # the squared distance of the means
      9.0
    """
    x, y = _as_doubles("the Fréchet distance", real, fake)
    # The triangular factor R of A = Q R has A's A^T A, and at most D rows.
    a, b = (np.linalg.qr(z - z.mean(axis=0), mode="r") / np.sqrt(len(z) - 1) for z in (x, y))
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(np.square(x.mean(axis=0) - y.mean(axis=0)).sum() + np.square(a).sum() + np.square(b).sum() - 2 * cross)


def cosine_similarity(real: ArrayLike, fake: ArrayLike) -> float:
    """The mean cosine between a sample's features and a real picture's, over all pairs: in -1..1.

    In CLIP's features it is the paper's "CLIP image similarity" (arXiv 2605.07078, section 4.2, times 100 there), as
    far as that is published: it does not say which pairs.

    Args:
      real: (N, D) features of real pictures.
      fake: (M, D) features of samples.

    Raises:
      ValueError: if a set is empty, or has features that are not finite.

    Examples:
      >>> cosine_similarity(np.array([[1.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 1.0]]))
      0.5
    """
    x, y = _as_doubles("the cosine similarity", real, fake, least=1)
    means = (np.mean(z / np.linalg.norm(z, axis=1, keepdims=True).clip(min=1e-12), axis=0) for z in (x, y))
    return float(np.dot(*means))


def _as_doubles(figure: str, real: ArrayLike, fake: ArrayLike, least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Both sets as float64, in which differences of large sums keep their digits."""
    sets = []
    for name, features in (("real", real), ("fake", fake)):
        found = np.asarray(features, np.float64)
        if len(found) < least:
            raise ValueError(f"{figure} needs at least {least} {name} features, not {len(found)}")
        bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
        if bad.size:
            raise ValueError(f"{bad.size} of {len(found)} {name} features are not finite, the first that of {bad[0]}")
        sets.append(found)
    return sets[0], sets[1]


@jax.jit
def nearest_distance(samples: jax.Array, pictures: jax.Array) -> jax.Array:
    """The RMS difference of each sample (n, *shape) from the picture, of `pictures` (N, *shape), nearest to it: (n,).

    Between samples and training pictures it tells copying from drawing; compare it with that of other real pictures.

    Examples:
      >>> nearest_distance(jnp.array([[0.0, 0.0]]), jnp.array([[1.0, 1.0], [5.0, 5.0]]))
      Array([1.], dtype=float32)
    """
    flat = pictures.reshape(pictures.shape[0], -1)
    nearest = jax.lax.map(lambda sample: jnp.min(_squared_distances(flat, sample.reshape(-1))), samples)
    return jnp.sqrt(nearest / flat.shape[1])


@jax.jit
def log_likelihood(density: Gaussian, pictures: jax.Array) -> jax.Array:
    """The mean log-likelihood of pictures under a Gaussian, in nats an entry: ().

    Unlike samples' recall it is exact, and neither copies nor noise can pass for variety: a class that varies where the
    density does not is punished, and a density that varies where the class does not, too.

    Args:
      density: mean and variance (*shape).
      pictures: (N, *shape).

    Examples:
      >>> log_likelihood(Gaussian(jnp.zeros(2), jnp.ones(2)), jnp.zeros((3, 2)))  # -log(2 pi) / 2
      Array(-0.92, dtype=float32)
    """
    return jnp.mean(density.log_prob(pictures)) / density.mean.size


def attribute_accuracy(seen: jax.Array, wanted: jax.Array) -> jax.Array:
    """For each factor the share of pictures that show the value wanted: (F,).

    Args:
      seen: (N, F) value indices that a judge saw.
      wanted: (N, F) or (F,) value indices.

    Examples:
      >>> attribute_accuracy(jnp.array([[0, 1], [0, 2]]), jnp.array([0, 1]))
      Array([1. , 0.5], dtype=float32)
    """
    return jnp.mean(_matches(seen, wanted).astype(jnp.float32), axis=0)


@jax.jit
def joint_accuracy(seen: jax.Array, wanted: jax.Array) -> jax.Array:
    """The share of pictures that show the value wanted of EVERY factor: (). Arguments as in `attribute_accuracy`.

    Examples:
      >>> joint_accuracy(jnp.array([[0, 1], [0, 2]]), jnp.array([0, 1]))
      Array(0.5, dtype=float32)
    """
    return jnp.mean(all_right(seen, wanted).astype(jnp.float32))


@jax.jit
def all_right(seen: jax.Array, wanted: jax.Array) -> jax.Array:
    """Which pictures show the value wanted of every factor: (N,) bool. Arguments as in `attribute_accuracy`.

    Examples:
      >>> all_right(jnp.array([[0, 1], [0, 2]]), jnp.array([0, 1]))
      Array([ True, False], dtype=bool)
    """
    return jnp.all(_matches(seen, wanted), axis=-1)


def _matches(seen: jax.Array, wanted: jax.Array) -> jax.Array:
    return seen == jnp.broadcast_to(wanted, seen.shape)


@jax.jit
def distance_to_query(samples: jax.Array, query: jax.Array) -> jax.Array:
    """The mean over samples (n, *shape) of the RMS difference of their entries from `query` (*shape): ().

    Between pictures in [-1, 1] it lies in [0, 2]. A method that copies its query is near 0.

    Examples:
      >>> distance_to_query(jnp.array([[1.0, 1.0], [0.0, 0.0]]), jnp.zeros(2))
      Array(0.5, dtype=float32)
    """
    squares = jnp.square(samples - query[None])
    return jnp.mean(jnp.sqrt(jnp.mean(squares, axis=tuple(range(1, squares.ndim)))))


def balanced_accuracy(logits: jax.Array, values: jax.Array) -> jax.Array:
    """The accuracy of each value that occurs, averaged over values: a rare one counts as much as a common one.

    Args:
      logits: (N, V) of a classifier.
      values: (N,) the true value indices.

    Returns:
      (): in 0..1; a classifier that always says "no" has 1/2, however rare "yes" is.

    Examples:
      >>> always_no = jnp.array([[1.0, 0.0]] * 4)
      >>> balanced_accuracy(always_no, jnp.array([0, 0, 0, 1]))
      Array(0.5, dtype=float32)
    """
    right = (jnp.argmax(logits, axis=-1) == values).astype(jnp.float32)
    of_value = jax.nn.one_hot(values, logits.shape[-1])
    counts = of_value.sum(axis=0)
    return jnp.mean(right @ of_value / jnp.maximum(counts, 1.0), where=counts > 0)


def calibration_error(logits: jax.Array, values: jax.Array, *, bins: int = 10) -> jax.Array:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599, Eq. 3): how far confidence is from being right.

    Args:
      logits: (N, V) of a classifier.
      values: (N,) the true value indices.
      bins: of equal width in the confidence, the largest probability.

    Returns:
      (): the mean over the pictures of |accuracy - mean confidence| in their bin, in 0..1.

    Examples:
      >>> sure = jnp.array([[99.0, 0.0]] * 4)
      >>> calibration_error(sure, jnp.array([0, 0, 0, 1]))
      Array(0.25, dtype=float32)
    """
    confidence = jnp.max(jax.nn.softmax(logits), axis=-1)
    gap = (jnp.argmax(logits, axis=-1) == values) - confidence
    which = jnp.minimum((confidence * bins).astype(jnp.int32), bins - 1)
    return jnp.sum(jnp.abs(jax.ops.segment_sum(gap, which, num_segments=bins))) / values.shape[0]
