"""What each method samples, given what is known about a query: one kind of density, one sampler for all.

Every method is the null model moved by guidance towards a Gaussian teacher, towards classes, or both:
`eps_null + w_T(t) (eps_T - eps_null) + sum_c w_c (eps_c - eps_null)` (arXiv 2605.07078, Eq. 13, with
classes next to the teacher). Methods differ only in their teacher, their classes and their weights.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from cdisc.diffusion import guidance
from cdisc.diffusion.gaussian import Gaussian
from cdisc.diffusion.parameterization import EpsFn
from cdisc.diffusion.schedule import Schedule
from cdisc.discovery import poe
from cdisc.networks import lora
from cdisc.networks.backbone import Backbone, class_eps


@flax.struct.dataclass
class GuidedDensity:
    """At each noise level, `p(x) ~ p_null (p_T / p_null)^w_T(t) prod_c (p_c / p_null)^w_c`; by default, `p_null`.

    Densities of one structure share one compiled sampler.

    Attributes:
      teacher: the Gaussian teacher; None for a method without one.
      teacher_weight: () `w0` of Eq. 14.
      teacher_sigma_min: () the teacher guides where the noise-to-signal ratio is at least this.
      embeddings: (k, E) the classes' embeddings, or (k, L, E).
      weights: (k,) the classes' guidance weights.
      class_sigma_min: () classes guide by these weights where the noise-to-signal ratio is at least this,
      class_sigma_max: () and at most this; elsewhere by weights of the same shares whose sum is 1, which for one class
        is the conditional model itself.
      adapter: of the kernels, for all classes and the null one; without factors where nothing is adapted.
      w_max: cap of the teacher's weight.
      elementwise: whether the teacher's weight is one for each element (`poe.adaptive_weight`).
    """

    teacher: Gaussian | None = None
    teacher_weight: float | jax.Array = 0.0
    teacher_sigma_min: float | jax.Array = 0.0
    embeddings: jax.Array | tuple[()] = ()
    weights: jax.Array | tuple[()] = ()
    class_sigma_min: float | jax.Array = 0.0
    class_sigma_max: float | jax.Array = float("inf")
    adapter: lora.Adapter = flax.struct.field(default_factory=lora.Adapter)
    w_max: float = flax.struct.field(pytree_node=False, default=2.0)
    elementwise: bool = flax.struct.field(pytree_node=False, default=False)


def guided_eps(backbone: Backbone, params: Any, schedule: Schedule, density: GuidedDensity) -> EpsFn:
    """The eps-function of a guided density."""
    null = backbone.null(params)
    if not isinstance(density.embeddings, tuple):
        null = jnp.broadcast_to(null, density.embeddings.shape[1:])
    embeddings = jnp.stack([null, *density.embeddings])
    if density.adapter.factors:  # merged once, not at every step of a sampler
        params = lora.merge(params, density.adapter)

    def all_classes(x: jax.Array, t: jax.Array) -> jax.Array:
        """The null class and the others in one batch, which is faster than one after the other: (1 + k, B, ...)."""
        return jax.vmap(lambda embedding: class_eps(backbone, params, embedding)(x, t))(embeddings)

    def guided(x: jax.Array, t: jax.Array) -> jax.Array:
        null, *classes = all_classes(x, t)
        terms = []
        for eps, constant in zip(classes, density.weights, strict=True):
            weight = guidance.interval(
                guidance.constant(constant),
                schedule,
                density.class_sigma_min,
                density.class_sigma_max,
                outside=constant / sum(density.weights),
            )
            terms.append((eps, weight(t)))
        if density.teacher is not None:
            weight = poe.adaptive_weight(
                density.teacher, schedule, density.teacher_weight, density.w_max, density.elementwise
            )
            weight = guidance.interval(weight, schedule, density.teacher_sigma_min)
            terms.append((density.teacher.eps(schedule)(x, t), weight(t)))
        return guidance.move(null, terms)

    return guided
