"""The diagonal Gaussian: the one density of discovery whose products, noised forms and scores are all Gaussian again.

An expert, the product of experts, the background and the Query-only teacher are each a `Gaussian`. A product is formed
between clean densities and then noised. Noising first and adding the scores afterwards would describe another density:
the noise would be counted once per factor.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from cdisc.diffusion.parameterization import EpsFn
from cdisc.diffusion.schedule import Schedule, alpha_bar_at


@flax.struct.dataclass
class Gaussian:
    """The density `N(x; mean, diag(variance))` over arrays of some `shape`.

    N densities are one container whose leaves lead with N; `jax.vmap` gives them the methods written for one.

    Attributes:
      mean: (*shape).
      variance: (*shape), positive.
    """

    mean: jax.Array
    variance: jax.Array

    def log_prob_of_entries(self, x: jax.Array) -> jax.Array:
        """`log N(x_r; mean_r, variance_r)` of each entry r, in nats; one `x` (1, *shape) meets all of N densities."""
        return -0.5 * (jnp.square(x - self.mean) / self.variance + jnp.log(2.0 * np.pi * self.variance))

    def log_prob(self, x: jax.Array) -> jax.Array:
        """`log N(x; mean, diag(variance))` in nats, (B,), for `x` (B, *shape)."""
        entries = jax.tree.map(lambda leaf: leaf[None], self).log_prob_of_entries(x)
        return jnp.sum(entries, axis=tuple(range(1, x.ndim)))

    def sample(self, key: jax.Array, n: int) -> jax.Array:
        """`n` independent draws, (n, *shape)."""
        noise = jax.random.normal(key, (n, *self.mean.shape), self.mean.dtype)
        return self.mean[None] + jnp.sqrt(self.variance)[None] * noise

    def noised(self, schedule: Schedule, t: jax.Array) -> "Gaussian":
        """The density of `x_t` for `x_0` from this one: `N(sqrt(a) mean, a variance + 1 - a)` at each `t` (B,).

        Returns:
          B densities, one for each timestep.
        """
        a = alpha_bar_at(schedule, t, self.mean[None])
        return Gaussian(mean=jnp.sqrt(a) * self.mean[None], variance=a * self.variance[None] + (1.0 - a))

    def eps(self, schedule: Schedule) -> EpsFn:
        """The exact noise prediction, `sqrt(1 - a) (x - sqrt(a) mean) / (a variance + 1 - a)`.

        It is `-sqrt(1 - a)` times the score of `noised` (arXiv 2605.07078, Eq. 12).
        """

        def eps_fn(x: jax.Array, t: jax.Array) -> jax.Array:
            density = self.noised(schedule, t)
            return jnp.sqrt(1.0 - alpha_bar_at(schedule, t, x)) * (x - density.mean) / density.variance

        return eps_fn

    def product(self, weights: jax.Array) -> "Gaussian":
        """The normalised product `prod_j N(mean_j, variance_j)^{w_j}` of K densities, entry by entry (Eq. 7).

        Precisions and precision-weighted means add up: `1/S = sum_j w_j / s2_j`, `mu = S sum_j w_j m_j / s2_j`.

        Args:
          weights: (K, *shape). A factor of weight zero is left out, whatever it holds; an entry in which all are zero
            has no density (its variance is infinite), nor has one whose negative weights outweigh the others (its
            variance is negative: `cdisc.discovery.algebra` refuses it).
        """
        present = weights != 0
        precisions = jnp.where(present, weights / self.variance, 0.0)
        information = jnp.sum(jnp.where(present, precisions * self.mean, 0.0), axis=0)
        variance = 1.0 / jnp.sum(precisions, axis=0)
        return Gaussian(mean=variance * information, variance=variance)
