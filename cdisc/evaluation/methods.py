"""What each method samples, given what is known about a query: one kind of density, one sampler for all.

Every method is the null model moved by guidance towards a Gaussian teacher, towards classes, or both:
`eps_null + w_T(t) (eps_T - eps_null) + sum_c w_c (eps_c - eps_null)` (arXiv 2605.07078, Eq. 13, with
classes next to the teacher). Methods differ only in their teacher, their classes and their weights.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from cdisc.diffusion import guidance
from cdisc.diffusion.gaussian import Gaussian
from cdisc.diffusion.parameterization import EpsFn
from cdisc.diffusion.sampling import DDIMOptions, ddim
from cdisc.diffusion.schedule import Schedule
from cdisc.discovery import poe
from cdisc.evaluation import baselines
from cdisc.evaluation.options import Evaluate
from cdisc.networks import lora
from cdisc.networks.backbone import Backbone, class_eps

COMPOSED = "composed"
"""The method that samples the class of `composition.explain`."""


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


def teacher_density(teacher: Gaussian, guidance: poe.Guidance) -> GuidedDensity:
    """The null model guided towards a Gaussian teacher (Eq. 13).

    Examples:
      >>> teacher_density(found.teacher, poe.Guidance()).teacher.mean.shape
      (2,)
    """
    return GuidedDensity(teacher, teacher_weight=guidance.w0, w_max=guidance.w_max, elementwise=guidance.elementwise)


def query_only_name(sigma: float) -> str:
    """The name of Query-only at one width of its teacher.

    Examples:
      >>> query_only_name(0.3)
      'query_only sigma=0.3'
    """
    return f"query_only sigma={sigma:g}"


def densities(
    query: jax.Array,
    teacher: Gaussian,
    table: jax.Array,
    losses: jax.Array | None,
    composed: jax.Array | None,
    learnt: Mapping[str, Any],
    options: Evaluate,
    guidance: poe.Guidance,
) -> dict[str, GuidedDensity]:
    """Every method's density for one query.

    Args:
      query: (*shape).
      teacher: the product of its experts.
      table: (classes, E) embeddings of the trained classes.
      losses: (classes,) the query's denoising loss under each of them; None where there is no class.
      composed: (E,) the sum of parts of classes that explains the query best; None where classes have no parts.
      learnt: the `embedding` and the `adapter` of each adaptation that a method samples.
      options: the methods.
      guidance: of the teacher, where it guides alone.

    Examples:
      >>> table, losses, none = jnp.eye(3), jnp.array([0.3, 0.1, 0.2]), {}
      >>> ways = densities(query, found.teacher, table, losses, None, none, Evaluate(), poe.Guidance())
      >>> sorted(ways)
      ['poe', 'query_only sigma=1', 'top1', 'top3']
    """
    rows = np.asarray(table)
    found = {"poe": teacher_density(teacher, guidance)}
    # Also at weight 0, so that methods share one compiled sampler.
    beside = dataclasses.replace(found["poe"], teacher_weight=0.0)
    for name, method in options.methods.items():
        adaptation = learnt[method.level]
        found[name] = dataclasses.replace(
            beside,
            embeddings=adaptation.embedding[None],
            weights=jnp.asarray([method.guidance], jnp.float32),
            class_sigma_min=method.class_sigma_min,
            class_sigma_max=method.class_sigma_max,
            adapter=adaptation.adapter,
            teacher_weight=method.teacher_weight,
            teacher_sigma_min=method.teacher_sigma_min,
        )
    weight = jnp.asarray([options.class_guidance], jnp.float32)
    if losses is not None:
        found["top1"] = dataclasses.replace(beside, embeddings=rows[baselines.top1(losses)][None], weights=weight)
    if composed is not None:
        found[COMPOSED] = dataclasses.replace(beside, embeddings=composed[None], weights=weight)
    if losses is not None and len(rows) >= 3:
        classes, shares = baselines.top3_weights(losses, options.tau_k)
        found["top3"] = GuidedDensity(embeddings=rows[classes], weights=weight * shares)
    for sigma in sorted({options.query_only_sigma, *options.query_only_sigmas}):
        found[query_only_name(sigma)] = teacher_density(baselines.query_only_teacher(query, sigma), guidance)
    return found


def evaluations(options: Evaluate) -> int:
    """The most evaluations of the network that a step of all of `densities` takes for a picture of each.

    Examples:
      >>> evaluations(Evaluate())
      10
    """
    sigmas = {options.query_only_sigma, *options.query_only_sigmas}
    # The null model with each of what is learnt, alone with the teacher, with Top-1's class, the composed one and
    # Top-3's classes, and alone with each Query-only.
    return 2 * len(options.methods) + 1 + 2 + 2 + 4 + len(sigmas)


def sentences(options: Evaluate, learnt: Mapping[str, str]) -> dict[str, str]:
    """What each method of `densities` is.

    Args:
      options: the methods.
      learnt: the name of each adaptation to what it learns, as `AdaptOptions.describe` says it.

    Examples:
      >>> sentences(Evaluate(), {})["top1"]
      'The trained class that denoises the query best, guided.'
    """
    found = {
        "poe": "The null model guided towards the product of the experts (Eq. 13, 14).",
        "top1": "The trained class that denoises the query best, guided.",
        COMPOSED: "The sum of the trained classes' parts that explains the query best, guided; needs their factors.",
        "top3": "The three best trained classes, composed.",
    }
    for name, method in options.methods.items():
        beside = f", the teacher beside it at weight {method.teacher_weight:g}" if method.teacher_weight > 0 else ""
        found[name] = f"Learns {learnt[method.level]}; guidance {method.guidance:g}{beside}."
    for sigma in {options.query_only_sigma, *options.query_only_sigmas}:
        found[query_only_name(sigma)] = "A Gaussian of this width around the query as the teacher."
    unpublished = " The paper publishes no width: its text calls it small, its figures suggest a wide one."
    found[query_only_name(options.query_only_sigma)] += unpublished
    return found


def guided_eps(backbone: Backbone, params: Any, schedule: Schedule, density: GuidedDensity) -> EpsFn:
    """The eps-function of a guided density.

    Examples:
      >>> towards = teacher_density(found.teacher, poe.Guidance())
      >>> jax.jit(guided_eps(points, density, schedule, towards))(x, t).shape
      (2, 2)
    """
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


def sample(
    backbone: Backbone, params: Any, schedule: Schedule, density: GuidedDensity, x: jax.Array, options: DDIMOptions
) -> jax.Array:
    """Samples of a guided density, from noise `x` (B, *shape), by DDIM as the options have it.

    Examples:
      >>> towards = teacher_density(found.teacher, poe.Guidance())
      >>> few = DDIMOptions(num_steps=2, clip=None)
      >>> jax.jit(lambda x: sample(points, density, schedule, towards, x, few))(x).shape
      (2, 2)
    """
    return ddim(guided_eps(backbone, params, schedule, density), schedule, x, **options.ddim_options)
