"""The diagonal covariance around each mode, from the Jacobian of the denoiser there (arXiv 2605.07078, section 3).

With `a = abar_t`, `r = (1 - a) / a` and `u = sqrt(a) diag(d x0hat / dx)`, second-order Tweedie says
`Cov[x_0 | x_t] = r sqrt(a) d x0hat / dx`. The paper does not say how a variance follows from the Jacobian: three
readings are in `variance`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, get_args

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from cdisc.diffusion.parameterization import EpsFn
from cdisc.diffusion.schedule import Schedule, alpha_bar_at, expand
from cdisc.discovery.curvature import largest_eigenvalue, normalised_jacobian
from cdisc.discovery.modes import ModePool, in_lanes, normal_each, row_keys
from cdisc.discovery.sharding import map_rows, varying_as
from cdisc.errors import require_known
from cdisc.keys import named

Estimator = Literal["hutchinson", "lattice"]
ESTIMATORS: tuple[str, ...] = get_args(Estimator)
Covariance = Literal["posterior", "laplace", "deconvolved"]
COVARIANCES: tuple[str, ...] = get_args(Covariance)


@flax.struct.dataclass
class ClipInfo:
    """Which variances are a bound and not what the Jacobian says; shaped like them.

    Attributes:
      below: bool, where the variance was raised to `floor`.
      above: bool, where `u` was lowered to `1 - delta`.
    """

    below: jax.Array
    above: jax.Array


def jacobian_diagonal(
    eps_fn: EpsFn,
    schedule: Schedule,
    x: jax.Array,
    t: jax.Array,
    key: jax.Array,
    *,
    probes: int,
    estimator: Estimator,
) -> jax.Array:
    """An unbiased estimate of `u = sqrt(abar_t) diag(d x0hat / dx)`.

    With `U` the Jacobian times `sqrt(abar_t)`, the two estimators are

    * "hutchinson": the mean of `v * (U v)` over independent Rademacher `v`. The variance of entry r is
      `sum_{q != r} U_rq^2 / probes`.
    * "lattice": entries get one of `probes` colours (see `lattice_colours`), and probe k is a random sign field
      restricted to colour k. Entry r reads the one probe of its colour, so only entries of that colour disturb it:
      the variance is `sum_{q != r, colour q = colour r} U_rq^2`. On pictures, where `U` is large between neighbours
      and between the channels of a pixel, those terms are the small ones. With as many probes as entries it is exact.

    Probes go through `jax.linearize`, in forward mode; finite differences would drown in the rounding of TF32 or bf16.
    A product that a network computes in bf16 is still rounded to three digits, and `U v` is what remains of `v` when a
    nearly equal vector is subtracted: measured on the bundled ColorMNIST network, which predicts v, the variances of
    `variance` move by 2% or less (root mean square) up to t = 400. A prediction of eps itself loses more the higher the
    noise: an exact one, rounded likewise, loses 6% at t = 300 and 18% at 400.

    Args:
      eps_fn: The noise prediction.
      schedule: The noise schedule.
      x: (B, *shape).
      t: (B,) int32.
      key: Random key. Row i depends on the key and on i, not on the other rows.
      probes: Products with the Jacobian, at least 1. In all, `1 + probes` evaluations a row.
      estimator: "hutchinson" or "lattice".

    Returns:
      (B, *shape), not clipped: noise may carry it outside of [0, 1].

    Examples:
      >>> how = dict(probes=2, estimator="lattice")
      >>> u = jax.jit(lambda x: jacobian_diagonal(eps_fn, schedule, x, t, key, **how))(x)
      >>> exact = jax.jit(lambda x: exact_diagonal(eps_fn, schedule, x, t))(x)
      >>> bool(jnp.allclose(u, exact, atol=1e-4))  # as many probes as entries
      True
    """
    keys = row_keys(key, x.shape[0])
    return _diagonal(normalised_jacobian(eps_fn, schedule, x, t), keys, x, probes=probes, estimator=estimator)


def exact_diagonal(eps_fn: EpsFn, schedule: Schedule, x: jax.Array, t: jax.Array) -> jax.Array:
    """The diagonal that `jacobian_diagonal` estimates, one product for each entry: (B, *shape).

    For few entries, or as a reference.

    Examples:
      >>> exact_diagonal(eps_fn, schedule, x, t)
      Array([[0.26, 0.26],
             [0.51, 0.03]], dtype=float32)
    """
    keys = row_keys(jax.random.key(0), x.shape[0])  # any signs will do: each is multiplied by itself
    apply = normalised_jacobian(eps_fn, schedule, x, t)
    return _diagonal(apply, keys, x, probes=int(np.prod(x.shape[1:])), estimator="lattice")


def variance(
    schedule: Schedule, u: jax.Array, t: jax.Array, *, kind: Covariance, delta: float, floor: float
) -> tuple[jax.Array, ClipInfo]:
    """The clean variance `s2` of each entry, from the normalised Jacobian diagonal `u`.

    * "posterior": `r u`, the variance of `x_0` given `x_t` (second-order Tweedie).
    * "laplace": `r / (1 - u)`, the Laplace approximation of `p_t`, rescaled to clean space; it contains the noise.
    * "deconvolved": `r u / (1 - u)`, the same with the noise kernel removed; exact for a Gaussian component.

    All three grow with `u`, and two of them have a pole at `u = 1`. A negative `u` is an error of the network or of the
    estimate and gets the smallest variance, which is one number for all noise levels: a smallest `u` would be a
    smallest `r u`, 140 times as large at t = 400 as at t = 50, and the coarse experts would lose the query to the fine
    ones. Under exact scores the bound seldom holds (1% of the entries). Of the bundled ColorMNIST network's `u`, 79%
    are negative at t = 50 and 95% at t = 400, and the bound decides. Over the 12 held-out queries it was chosen on,
    0.81 of the product's samples are right with a smallest `u` of 1e-3 or a floor of 1e-3, and 0.87 with a floor of
    2e-3; the gain is two queries'. On mixtures of blurred digits it is closer to the exact variances than 1e-3 is.

    Args:
      schedule: The noise schedule.
      u: (B, *shape).
      t: (B,) int32.
      kind: One of the three.
      delta: For "laplace" and "deconvolved", `u` is at most `1 - delta`.
      floor: The smallest variance, at every noise level.

    Returns:
      (B, *shape), and where a bound holds.

    Examples:
      >>> u = exact_diagonal(eps_fn, schedule, x, t)
      >>> s2, clipped = variance(schedule, u, t, kind="posterior", delta=1e-3, floor=2e-3)
      >>> s2
      Array([[0.03, 0.03],
             [0.78, 0.04]], dtype=float32)
    """
    require_known("covariance", kind, COVARIANCES)
    a = alpha_bar_at(schedule, t, u)
    r = (1.0 - a) / a
    above = (u > 1.0 - delta) & (kind != "posterior")
    u = jnp.where(above, 1.0 - delta, u)
    s2 = r * u if kind == "posterior" else r / (1.0 - u) if kind == "laplace" else r * u / (1.0 - u)
    return jnp.maximum(s2, floor), ClipInfo(below=s2 < floor, above=above)


def linearise(
    eps_fn: EpsFn,
    schedule: Schedule,
    pool: ModePool,
    key: jax.Array,
    *,
    curvature_iterations: int,
    probes: int,
    estimator: Estimator,
    lanes: int,
    axis_name: str | None = None,
) -> tuple[ModePool, jax.Array, jax.Array]:
    """What the Jacobian says about each point of a pool: whether it is a mode, and how wide.

    The Hessian of `log p_t` is `(U - I) / (1 - abar_t)` with `U = sqrt(abar_t) d x0hat / dx`, positive semi-definite
    for an exact score: its largest eigenvalue tells saddles from modes (`curvature.largest_eigenvalue`), its diagonal
    gives the variances. Both come from one linearisation.

    Args:
      eps_fn: The noise prediction.
      schedule: The noise schedule.
      pool: N points.
      key: Random key.
      curvature_iterations: Jacobian products a point for the eigenvalue.
      probes: Jacobian products a point for the diagonal.
      estimator: "hutchinson" or "lattice" (`jacobian_diagonal`).
      lanes: Points evaluated together.
      axis_name: Over whose devices the points are sharded (`sharding`).

    Returns:
      The pool with its curvature; `u` (N, *shape), the diagonal of `U`, zero where absent; and the evaluations made,
      () int32.

    Examples:
      >>> how = dict(curvature_iterations=2, probes=2, estimator="lattice", lanes=4)
      >>> measured = jax.jit(lambda pool: linearise(eps_fn, schedule, pool, key, **how))
      >>> pool, u, evaluations = measured(found.pool)
      >>> u.shape, int(evaluations)
      ((4, 2), 20)
    """
    size = int(np.prod(pool.x.shape[1:]))
    iterations = min(curvature_iterations, size)
    first = varying_as(normal_each(named(key, "curvature"), pool.x), pool.x)
    keys = row_keys(named(key, "probes"), pool.x.shape[0])

    def measure(x: jax.Array, t: jax.Array, first: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        apply = normalised_jacobian(eps_fn, schedule, x, t)
        largest = largest_eigenvalue(apply, first, iterations)
        return largest, _diagonal(apply, keys, x, probes=probes, estimator=estimator)

    cost = 1 + iterations + products_of(estimator, probes, size)

    def of_rows(rows: tuple[jax.Array, ...], mask: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        return in_lanes(measure, rows, mask, lanes=lanes, cost=cost)

    (largest, u), nfe = map_rows(of_rows, (pool.x, pool.t, first, keys), pool.mask, axis_name)
    u = jnp.where(expand(pool.mask, u), u, 0.0)  # idle lanes too: they depend on how the points were sharded
    return dataclasses.replace(pool, curvature=jnp.where(pool.mask, largest - 1.0, jnp.inf)), u, nfe


def products_of(estimator: Estimator, probes: int, size: int) -> int:
    """How many Jacobian products an estimator makes for `size` entries: the lattice never needs more than `size`.

    Examples:
      >>> products_of("lattice", 16, size=2), products_of("hutchinson", 16, size=2)
      (2, 16)
    """
    return min(probes, size) if estimator == "lattice" else probes


@functools.lru_cache(maxsize=32)
def lattice_colours(shape: tuple[int, ...], colours: int) -> np.ndarray:
    """Gives each entry one of `colours` colours such that entries of one colour lie far apart.

    Pictures (H, W, C) are coloured `(y + p x + q c) mod colours`, a lattice in the plane and across the channels. The
    steps p, q are those with the least `sum 1 / (1 + distance^2)^2` over pairs of one colour, where the distance is
    taken in the plane: the channels of a pixel count as touching, and pairs in both another channel and another pixel
    count half. Other shapes are coloured in turn. With as many colours as entries, each entry has its own.

    Returns:
      int32 (*shape), values in 0..colours - 1.

    Examples:
      >>> lattice_colours((2, 4, 1), 4)[..., 0]
      array([[0, 2, 0, 2],
             [1, 3, 1, 3]], dtype=int32)
    """
    size = int(np.prod(shape))
    if len(shape) != 3 or colours >= size:
        return (np.arange(size, dtype=np.int32) % colours).reshape(shape)
    channels = shape[2]
    reach = int(np.ceil(np.sqrt(colours))) + 2
    dy, dx, dc = np.meshgrid(
        np.arange(-reach, reach + 1), np.arange(-reach, reach + 1), np.arange(1 - channels, channels), indexing="ij"
    )
    other = (dy != 0) | (dx != 0) | (dc != 0)
    dy, dx, dc = dy[other], dx[other], dc[other]
    # (channels - |dc|) of the channels have a partner at offset dc. Other channels of other pixels are less alike.
    share = (1.0 - np.abs(dc) / channels) * np.where((dc != 0) & ((dy != 0) | (dx != 0)), 0.5, 1.0)
    cost = share / np.square(1.0 + dy**2 + dx**2)
    best, best_steps = np.inf, (0, 0)
    for p in range(colours):
        for q in range(colours if channels > 1 else 1):
            total = cost[(dy + p * dx + q * dc) % colours == 0].sum()
            if total < best - 1e-12:
                best, best_steps = total, (p, q)
    y, x, c = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    return ((y + best_steps[0] * x + best_steps[1] * c) % colours).astype(np.int32)


def _diagonal(
    apply: Callable[[jax.Array], jax.Array], keys: jax.Array, like: jax.Array, *, probes: int, estimator: Estimator
) -> jax.Array:
    """`jacobian_diagonal` of the map `apply` on rows shaped as `like` (B, *shape), with a key for each row."""
    require_known("estimator", estimator, ESTIMATORS)
    shape = like.shape[1:]
    products = products_of(estimator, probes, int(np.prod(shape)))
    if estimator == "lattice":
        colours = jnp.asarray(lattice_colours(shape, products))
        signs = jax.vmap(lambda key: jax.random.rademacher(named(key, "signs"), shape, like.dtype))(keys)

        def probe(k: jax.Array) -> jax.Array:
            return signs * (colours == k)[None].astype(like.dtype)
    else:

        def probe(k: jax.Array) -> jax.Array:
            return jax.vmap(lambda key: jax.random.rademacher(named(key, "probe", k), shape, like.dtype))(keys)

    def add(k: jax.Array, total: jax.Array) -> jax.Array:
        v = probe(k)
        return total + v * apply(v)

    total = jax.lax.fori_loop(0, products, add, jnp.zeros_like(like))
    return total if estimator == "lattice" else total / products
