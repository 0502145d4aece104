"""Densities whose noised score is known in closed form: the oracle against which every estimate can be checked.

A mixture of Gaussians stays a mixture under the forward process: with `a = abar_t`, component c of `p_t` is
`N(sqrt(a) mean_c, a variance_c + 1 - a)`. Its eps stands wherever a network's does (`parameterization.EpsFn`), so a
whole discovery can run without a network, and the optimal denoiser of a finite set of pictures is the special case of
zero variances (`empirical`).

Two ways to the same numbers, chosen by the shape of `variances`. One variance per dimension forms all differences
`x - sqrt(a) mean_c`, (B, C, d) numbers in memory, and is accurate to float32 everywhere. One variance per component,
(C, 1, ..., 1), needs only the matrix product of `x` and the means, (B, C) numbers, and serves thousands of pictures;
the squared distances then carry an absolute error near `1e-7 * |x - centre|^2`, which at t = 1, divided by twice
`1 - a = 1e-4`, is some tenths of a nat for 32 x 32 pictures, and negligible from t = 50 on.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from cdisc.diffusion.parameterization import EpsFn
from cdisc.diffusion.schedule import Schedule
from cdisc.keys import named

_HIGHEST = jax.lax.Precision.HIGHEST  # TF32 would lose the small differences between large distances
_VARIANCE_ELEMENTS = 2**22  # of (C, d) arrays held at once by `posterior_variance`: 16 MiB each


@flax.struct.dataclass
class GaussianMixture:
    """The density `p_0 = sum_c weights_c N(means_c, diag(variances_c))` over arrays of some `shape`.

    Attributes:
      weights: (C,) nonnegative, summing to one; a component of weight zero counts as absent.
      means: (C, *shape).
      variances: (C, *shape), or (C, 1, ..., 1) for isotropic components. Zero is allowed: a point mass, whose noised
        densities (t >= 1) are as well defined as any.
    """

    weights: jax.Array
    means: jax.Array
    variances: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return self.means.shape[1:]


def empirical(images: jax.Array, *, bandwidth: float = 0.0) -> GaussianMixture:
    """The distribution of a finite set of pictures, each blurred by `N(0, bandwidth^2 I)`.

    With zero bandwidth its eps is the optimal denoiser of that set: the one that has memorised it.

    Args:
      images: (N, *shape), equally weighted.
      bandwidth: standard deviation of the kernel, in units of the pictures.

    Examples:
      >>> images = jnp.array([[0.0, 1.0], [2.0, 3.0]])
      >>> empirical(images, bandwidth=0.5).variances
      Array([[0.25],
             [0.25]], dtype=float32)
    """
    n = images.shape[0]
    variances = jnp.full((n,) + (1,) * (images.ndim - 1), bandwidth**2, images.dtype)
    return GaussianMixture(weights=jnp.full((n,), 1.0 / n, images.dtype), means=images, variances=variances)


def restrict(mixture: GaussianMixture, keep: jax.Array) -> GaussianMixture:
    """The mixture given that the component is one of `keep`, with weights renormalised to sum to one.

    Args:
      mixture: C components.
      keep: (K,) integer indices, giving K components in that order; or a (C,) bool mask, giving all C components with
        weight zero outside the mask (so that the shapes do not depend on its values).

    Examples:
      >>> restrict(density, jnp.array([1])).means
      Array([[1., 0.]], dtype=float32)
      >>> restrict(density, jnp.array([False, True])).weights
      Array([0., 1.], dtype=float32)
    """
    keep = jnp.asarray(keep)
    if keep.dtype == jnp.bool_:
        weights = jnp.where(keep, mixture.weights, 0.0)
        return dataclasses.replace(mixture, weights=weights / jnp.sum(weights))
    weights = mixture.weights[keep]
    return GaussianMixture(weights / jnp.sum(weights), mixture.means[keep], mixture.variances[keep])


def component(mixture: GaussianMixture, c: int | jax.Array) -> GaussianMixture:
    """Component `c` alone: the conditional density of one class.

    Examples:
      >>> component(density, 1).means
      Array([[1., 0.]], dtype=float32)
    """
    return restrict(mixture, jnp.asarray(c)[None])


def sample(mixture: GaussianMixture, key: jax.Array, n: int) -> jax.Array:
    """`n` independent samples of `p_0`, (n, *shape).

    Examples:
      >>> jax.jit(sample, static_argnums=2)(density, key, 5).shape
      (5, 2)
    """
    which = jax.random.categorical(named(key, "component"), jnp.log(mixture.weights), shape=(n,))
    noise = jax.random.normal(named(key, "noise"), (n, *mixture.shape), mixture.means.dtype)
    return mixture.means[which] + jnp.sqrt(mixture.variances[which]) * noise


def log_density(mixture: GaussianMixture, schedule: Schedule, x: jax.Array, t: jax.Array) -> jax.Array:
    """`log p_t(x)` in nats, (B,), for `x` (B, *shape) at `t` (B,) in 0..T; t = 0 is `p_0` itself.

    Zero variances have a density only for t >= 1.

    Examples:
      >>> jax.jit(log_density)(density, schedule, jnp.array([[1.0, 0.0]]), jnp.array([0]))  # log(0.5 / (2 pi 0.04))
      Array([0.69], dtype=float32)
    """
    return jax.nn.logsumexp(_log_joint(_flat(mixture), x.reshape(x.shape[0], -1), schedule.alpha_bar[t]), axis=1)


def responsibilities(mixture: GaussianMixture, schedule: Schedule, x: jax.Array, t: jax.Array) -> jax.Array:
    """`p(c | x_t = x)`, (B, C): how likely each component is to have made `x` (B, *shape) at `t` (B,).

    Examples:
      >>> jax.jit(responsibilities)(density, schedule, x, t)
      Array([[0.  , 1.  ],
             [0.73, 0.27]], dtype=float32)
    """
    return jax.nn.softmax(_log_joint(_flat(mixture), x.reshape(x.shape[0], -1), schedule.alpha_bar[t]), axis=1)


def mixture_eps(mixture: GaussianMixture, schedule: Schedule) -> EpsFn:
    """The exact `eps(x, t) = -sqrt(1 - a) grad log p_t(x)`, `t` in 1..T: what a perfect network would predict.

    In a jitted function, build it there from a mixture that came as an argument: means that enter by closure become
    constants of the program.

    Examples:
      >>> jax.jit(mixture_eps(density, schedule))(x, t)
      Array([[-0.34,  0.23],
             [-0.26,  0.38]], dtype=float32)
    """
    flat = _flat(mixture)

    def eps_fn(x: jax.Array, t: jax.Array) -> jax.Array:
        a = schedule.alpha_bar[t]
        points = x.reshape(x.shape[0], -1)
        gamma = jax.nn.softmax(_log_joint(flat, points, a), axis=1)
        spread = _noised_variance(flat, a)
        if _is_isotropic(flat):
            precision = gamma / spread[:, :, 0]
            centre = _centre(flat)
            offset = points - jnp.sqrt(a)[:, None] * centre
            pulled = jnp.matmul(precision, flat.means - centre, precision=_HIGHEST)
            whitened = offset * jnp.sum(precision, axis=1, keepdims=True) - jnp.sqrt(a)[:, None] * pulled
        else:
            whitened = jnp.sum(gamma[:, :, None] * _differences(flat, points, a) / spread, axis=1)
        return (jnp.sqrt(1.0 - a)[:, None] * whitened).reshape(x.shape)

    return eps_fn


def posterior_mean(mixture: GaussianMixture, schedule: Schedule, x: jax.Array, t: jax.Array) -> jax.Array:
    """`E[x_0 | x_t = x]`, (B, *shape), for `x` (B, *shape) at `t` (B,) in 1..T.

    Equal to Tweedie's formula on `mixture_eps`, but formed as an average of the components' posterior means, so that
    no precision is lost in the division by `sqrt(abar_t)` at high noise.

    Examples:
      >>> jax.jit(posterior_mean)(density, schedule, x, t)
      Array([[ 0.96,  0.03],
             [-0.48,  0.01]], dtype=float32)
    """
    flat = _flat(mixture)
    a = schedule.alpha_bar[t]
    points = x.reshape(x.shape[0], -1)
    gamma = jax.nn.softmax(_log_joint(flat, points, a), axis=1)
    spread = _noised_variance(flat, a)
    prior = (1.0 - a)[:, None, None] / spread
    gain = jnp.sqrt(a)[:, None, None] * flat.variances[None] / spread
    if _is_isotropic(flat):
        from_means = jnp.matmul(gamma * prior[:, :, 0], flat.means, precision=_HIGHEST)
    else:
        from_means = jnp.sum(gamma[:, :, None] * prior * flat.means[None], axis=1)
    return (from_means + points * jnp.sum(gamma[:, :, None] * gain, axis=1)).reshape(x.shape)


def posterior_variance(mixture: GaussianMixture, schedule: Schedule, x: jax.Array, t: jax.Array) -> jax.Array:
    """The diagonal of `Cov[x_0 | x_t = x]`, (B, *shape), for `x` (B, *shape) at `t` (B,) in 1..T.

    By the law of total variance: the components' own posterior variances plus the spread of their posterior means.
    Equal to second-order Tweedie, `(1 - a) / a * sqrt(a) * diag(d E[x_0 | x] / d x)`.

    Examples:
      >>> jax.jit(posterior_variance)(density, schedule, x, t)
      Array([[0.03, 0.03],
             [0.78, 0.04]], dtype=float32)
    """
    flat = _flat(mixture)
    gammas = responsibilities(mixture, schedule, x, t)

    def of_one(args: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        point, a, gamma = args
        spread = a * flat.variances + 1.0 - a
        means = ((1.0 - a) * flat.means + jnp.sqrt(a) * flat.variances * point[None]) / spread
        within = flat.variances * (1.0 - a) / spread
        mean = jnp.sum(gamma[:, None] * means, axis=0, keepdims=True)
        return jnp.sum(gamma[:, None] * (within + jnp.square(means - mean)), axis=0)

    at_once = max(1, _VARIANCE_ELEMENTS // flat.means.size)
    args = (x.reshape(x.shape[0], -1), schedule.alpha_bar[t], gammas)
    return jax.lax.map(of_one, args, batch_size=at_once).reshape(x.shape)


def modes(
    mixture: GaussianMixture,
    schedule: Schedule,
    t: int,
    *,
    max_steps: int = 20_000,
    tolerance: float = 1e-9,
    radius: float = 1e-3,
) -> np.ndarray:
    """The local maxima of `p_t`, (M, *shape) float32 in noisy space, the densest first.

    Divided by `sqrt(abar_t)` they are the clean prototypes. Found by Gaussian mean shift in float64 from both sides of
    every component's mean: the fixed point of `x = (sum_c g_c / V_c)^-1 sum_c g_c sqrt(a) mean_c / V_c`, with `g_c` the
    responsibilities and `V_c` the noised variances, which climbs at every step (Carreira-Perpinan 2000). The starts are
    a hundredth of a standard deviation off the means, because a mean can sit on a saddle by symmetry and would never
    leave it. In two or more dimensions a mixture can have a mode that no component leads to (three equal Gaussians on
    a triangle, within a percent of the width at which they fuse); such a mode is missed. It cannot be jitted: how
    many modes there are is the answer. A step costs 4 C^2 d multiplications: use it up to a thousand components or so.

    Args:
      mixture: the density `p_0`.
      schedule: the noise schedule.
      t: one timestep in 0..T; at least 1 if a variance is zero.
      max_steps: bound on the steps of a chain.
      tolerance: a chain has arrived when its step, in units of the smallest noised standard deviation of any
        component, is below this (root mean square over the dimensions).
      radius: ends closer than this, in the same units, are one mode.

    Raises:
      ValueError: if a noised variance is zero, or a chain has not arrived after `max_steps`.

    Examples:
      >>> modes(density, schedule, 0)
      array([[-1.,  0.],
             [ 1.,  0.]], dtype=float32)
    """
    alive = np.asarray(mixture.weights) > 0
    a = float(schedule.alpha_bar[t])
    dims = int(np.prod(mixture.shape))
    log_weights = np.log(np.asarray(mixture.weights, np.float64)[alive])
    centres = np.sqrt(a) * np.asarray(mixture.means, np.float64)[alive].reshape(-1, dims)
    spread = a * np.asarray(mixture.variances, np.float64)[alive].reshape(len(centres), -1) + 1.0 - a
    if spread.min() <= 0:
        raise ValueError("modes of a mixture with a zero variance exist only for t >= 1.")
    unit = np.sqrt(spread.min())

    def climb(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One mean-shift step from `x` (n, dims), and the log density there, (n,)."""
        precision = np.broadcast_to(1.0 / spread, centres.shape)
        squares = np.square(x) @ precision.T - 2.0 * x @ (precision * centres).T
        squares = squares + np.sum(precision * np.square(centres), axis=1)
        logs = log_weights - 0.5 * (squares - np.sum(np.log(precision), axis=1))
        top = logs.max(axis=1, keepdims=True)
        gamma = np.exp(logs - top)
        total = gamma.sum(axis=1)
        return (gamma @ (precision * centres)) / (gamma @ precision), top[:, 0] + np.log(total)

    side = np.random.default_rng(0).standard_normal(centres.shape) * 0.01 * np.sqrt(spread)
    x = np.concatenate([centres + side, centres - side])
    moving = np.arange(len(x))
    for _ in range(max_steps):
        new, _ = climb(x[moving])
        step = np.sqrt(np.mean(np.square(new - x[moving]), axis=1)) / unit
        x[moving] = new
        moving = moving[step > tolerance]
        if not moving.size:
            break
    else:
        raise ValueError(f"{moving.size} mean-shift chains still move at t = {t} after {max_steps} steps.")

    _, heights = climb(x)
    x = x[np.argsort(-heights, kind="stable")]
    norms = np.sum(np.square(x), axis=1)
    close = norms[:, None] + norms[None] - 2.0 * x @ x.T <= dims * np.square(radius * unit)
    taken = np.zeros(len(x), bool)
    found = []
    for index in range(len(x)):
        if not taken[index]:
            found.append(index)
            taken |= close[index]
    return x[found].reshape(-1, *mixture.shape).astype(np.float32)


def _flat(mixture: GaussianMixture) -> GaussianMixture:
    """The same mixture over vectors: means (C, d), variances (C, d) or (C, 1)."""
    count = mixture.means.shape[0]
    return dataclasses.replace(
        mixture, means=mixture.means.reshape(count, -1), variances=mixture.variances.reshape(count, -1)
    )


def _is_isotropic(flat: GaussianMixture) -> bool:
    return flat.variances.shape[1] == 1 and flat.means.shape[1] > 1


def _centre(flat: GaussianMixture) -> jax.Array:
    """A common origin (1, d): distances taken as matrix products are accurate only relative to their distance to it."""
    return jnp.mean(flat.means, axis=0, keepdims=True)


def _noised_variance(flat: GaussianMixture, a: jax.Array) -> jax.Array:
    """`a variance_c + 1 - a`, (B, C, d or 1), for `a` (B,)."""
    a = a[:, None, None]
    return a * flat.variances[None] + 1.0 - a


def _differences(flat: GaussianMixture, x: jax.Array, a: jax.Array) -> jax.Array:
    """`x - sqrt(a) mean_c`, (B, C, d), for `x` (B, d) and `a` (B,)."""
    return x[:, None, :] - jnp.sqrt(a)[:, None, None] * flat.means[None]


def _log_joint(flat: GaussianMixture, x: jax.Array, a: jax.Array) -> jax.Array:
    """`log weights_c + log N(x; sqrt(a) mean_c, a variance_c + 1 - a)`, (B, C), for `x` (B, d) and `a` (B,)."""
    spread = _noised_variance(flat, a)
    dims = flat.means.shape[1]
    if _is_isotropic(flat):
        spread = spread[:, :, 0]
        centre = _centre(flat)
        means = jnp.sqrt(a)[:, None] * jnp.sum(jnp.square(flat.means - centre), axis=1)[None]
        offset = x - jnp.sqrt(a)[:, None] * centre
        cross = jnp.matmul(offset, (flat.means - centre).T, precision=_HIGHEST)
        squares = jnp.sum(jnp.square(offset), axis=1, keepdims=True) + jnp.sqrt(a)[:, None] * (means - 2.0 * cross)
        exponent = jnp.maximum(squares, 0.0) / spread + dims * jnp.log(2.0 * jnp.pi * spread)
    else:
        terms = jnp.square(_differences(flat, x, a)) / spread + jnp.log(2.0 * jnp.pi * spread)
        exponent = jnp.sum(terms, axis=2)
    return jnp.log(flat.weights)[None] - 0.5 * exponent
