"""The curvature of the noised density, from products with the Jacobian of its score."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cdisc.diffusion.parameterization import EpsFn
from cdisc.diffusion.schedule import Schedule, alpha_bar_at, sigma
from cdisc.discovery.modes import ModePool


def newton_distance(schedule: Schedule, pool: ModePool) -> jax.Array:
    """How far the stationary point is that each point of a pool stands for: (N,), root mean square in clean space.

    The residual divided by the curvature, in clean units: the length of a Newton step, were the density as flat in all
    directions as in its flattest. On the flat top of two Gaussians that just merge it is a third of the true distance,
    elsewhere it is at least about that. Infinite where the pool has no point.

    Examples:
      >>> distance = newton_distance(schedule, found.pool)
      >>> bool((distance[found.pool.mask] < 0.1).all())
      True
    """
    distance = pool.residual * sigma(schedule, pool.t) / jnp.abs(pool.curvature)
    return jnp.where(pool.mask, distance, jnp.inf)


def largest_eigenvalue(apply: Callable[[jax.Array], jax.Array], first: jax.Array, products: int) -> jax.Array:
    """The largest eigenvalue of a linear map at each point of a batch: (L,).

    It is taken over the Krylov space of `products` products with the map (Lanczos, with full orthogonalisation). Power
    iteration would need as many products and use only the last one. The result is a lower bound. With the map of
    `normalised_jacobian` it is 1 + `ModePool.curvature`: a point that it calls a saddle is one.

    Args:
      apply: the map, symmetric or nearly so; rows (L, *shape) do not depend on each other.
      first: (L, *shape) the vectors that span the space, such as noise.
      products: how many. More than a row has entries change nothing.

    Examples:
      >>> matrix = jnp.array([[2.0, 0.0], [0.0, 5.0]])
      >>> largest_eigenvalue(lambda v: v @ matrix, jnp.ones((1, 2)), products=2)
      Array([5.], dtype=float32)
    """
    count, shape = first.shape[0], first.shape[1:]
    size = int(np.prod(shape))

    def grow(carry: tuple[jax.Array, jax.Array], i: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        basis, v = carry  # (products, L, size), (L, size)
        basis = basis.at[i].set(v)
        image = apply(v.reshape(count, *shape)).reshape(count, size)
        rest = image
        for _ in range(2):  # twice is enough to be orthogonal to rounding
            rest = rest - _combine(basis, _coordinates(basis, rest))
        scale = jnp.linalg.norm(image, axis=-1, keepdims=True)
        norm = jnp.linalg.norm(rest, axis=-1, keepdims=True)
        # An exhausted space leaves only rounding: zero vectors then add the eigenvalue 0, which changes nothing.
        grows = norm > 1e-4 * scale
        following = jnp.where(grows, rest / jnp.where(grows, norm, 1.0), 0.0)
        return (basis, following), image

    v = first.reshape(count, size)
    v = v / jnp.linalg.norm(v, axis=-1, keepdims=True)
    empty = jnp.zeros_like(first, shape=(products, count, size))
    (basis, _), images = jax.lax.scan(grow, (empty, v), jnp.arange(products))
    projected = jnp.einsum("iln,jln->lij", basis, images, precision=jax.lax.Precision.HIGHEST)
    # A network's Jacobian is not quite symmetric; only its symmetric part bends the density.
    return jnp.linalg.eigvalsh(projected, symmetrize_input=True)[:, -1]


def normalised_jacobian(
    eps_fn: EpsFn, schedule: Schedule, x: jax.Array, t: jax.Array
) -> Callable[[jax.Array], jax.Array]:
    """The map `v -> sqrt(abar_t) (d x0hat / dx) v` at each point of a batch.

    `d x0hat / dx` is `Cov[x_0 | x] sqrt(abar_t) / (1 - abar_t)`, so the product is unitless and, for an exact score,
    symmetric and positive semi-definite; it is `I - sqrt(1 - abar_t) d eps / dx`. Linearised once, in forward mode:
    the linearisation costs one evaluation of `eps_fn` and each product one more.

    Examples:
      >>> jax.jit(lambda v: normalised_jacobian(eps_fn, schedule, x, t)(v))(jnp.ones_like(x)).shape
      (2, 2)
    """
    root = jnp.sqrt(1.0 - alpha_bar_at(schedule, t, x))
    _, eps_jvp = jax.linearize(lambda x: eps_fn(x, t), x)
    return lambda v: v - root * eps_jvp(v)


def _coordinates(basis: jax.Array, v: jax.Array) -> jax.Array:
    return jnp.einsum("iln,ln->il", basis, v, precision=jax.lax.Precision.HIGHEST)


def _combine(basis: jax.Array, coordinates: jax.Array) -> jax.Array:
    return jnp.einsum("iln,il->ln", basis, coordinates, precision=jax.lax.Precision.HIGHEST)
