"""What every stage needs of a pretrained model: an eps-function that takes its class as a vector.

A U-Net and a Gaussian mixture both provide it, so the whole path from a query to samples runs on either.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from cdisc.diffusion import exact
from cdisc.diffusion.parameterization import EpsFn, eps_from_score, eps_from_v, eps_from_x0
from cdisc.diffusion.schedule import Schedule
from cdisc.errors import require_array, require_known
from cdisc.networks import denoiser, lora
from cdisc.networks.unet import UNetConfig, residual_blocks

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A class-conditional model, as functions of its parameters.

    Attributes:
      apply: `(params, x (B, *shape), t (B,), embeddings (B, E), adapter=None) -> eps (B, *shape)`, a pure function of
        all of them; an adapter of None or without factors changes nothing.
      table: `params -> (classes, E)`, the embeddings of the trained classes.
      null: `params -> (E,)`, the embedding that means no class at all: the unconditional model.
      num_blocks: L, in how many places a class enters; `embeddings` may be (B, L, E), with a vector for each of them. 0
        where it enters as a whole.
    """

    apply: "Apply"
    table: Callable[[Any], jax.Array]
    null: Callable[[Any], jax.Array]
    num_blocks: int = 0


class Apply(Protocol):
    """The signature of `Backbone.apply`."""

    def __call__(
        self, params: Any, x: jax.Array, t: jax.Array, embeddings: jax.Array, adapter: lora.Adapter | None = None, /
    ) -> jax.Array:
        """The noise predicted in `x`."""
        ...


def unet(config: UNetConfig, schedule: Schedule, prediction_type: str = "epsilon") -> Backbone:
    """The U-Net of `config`; its parameters are those of `denoiser.init`.

    Args:
      config: the network's options.
      schedule: the forward process.
      prediction_type: what the network predicts: "epsilon", "v_prediction" or "sample", the clean picture (diffusers'
        names).

    Raises:
      ValueError: for another prediction type, or a network that has no answer at the first timestep of a schedule.

    Examples:
      >>> unet(config, schedule).table(params).shape
      (2, 32)
    """
    require_known("prediction_type", prediction_type, PREDICTION_TYPES)
    if config.time_embedding_type == "fourier":
        raise ValueError(
            "time_embedding_type is 'fourier', which takes the logarithm of the timestep, and schedules begin at 0: "
            "such a network was trained with another kind of noise and can be evaluated, but not sampled."
        )

    def apply(
        params: denoiser.Params,
        x: jax.Array,
        t: jax.Array,
        embeddings: jax.Array,
        adapter: lora.Adapter | None = None,
    ) -> jax.Array:
        require_array("x", x, "float32", (4,), "pictures (B, H, W, C) as float32")
        _require_rows(x, t, embeddings)
        return _to_eps(prediction_type, schedule, x, denoiser.apply(config, params, x, t, embeddings, adapter), t)

    blocks = len(residual_blocks(config))
    return Backbone(apply=apply, table=denoiser.class_table, null=denoiser.null_embedding, num_blocks=blocks)


def mixture(schedule: Schedule) -> Backbone:
    """An exact model: its parameters are a `GaussianMixture`, a class is a component, an embedding is its weights.

    Examples:
      >>> mixture(schedule).table(density)
      Array([[1., 0.],
             [0., 1.]], dtype=float32)
    """

    def apply(
        params: exact.GaussianMixture,
        x: jax.Array,
        t: jax.Array,
        embeddings: jax.Array,
        adapter: lora.Adapter | None = None,
    ) -> jax.Array:
        if adapter is not None and adapter.factors:
            raise ValueError("an exact mixture has no layers: leave the adapter out.")
        require_array("x", x, "float32", range(2, 9), "a batch (B, *shape) as float32")
        _require_rows(x, t, embeddings)

        def one(x: jax.Array, t: jax.Array, weights: jax.Array) -> jax.Array:
            return exact.mixture_eps(dataclasses.replace(params, weights=weights), schedule)(x[None], t[None])[0]

        return jax.vmap(one)(x, t, embeddings)

    def table(params: exact.GaussianMixture) -> jax.Array:
        return jnp.eye(params.weights.shape[0])

    return Backbone(apply=apply, table=table, null=lambda params: params.weights)


def function(
    predict: Callable[..., jax.Array], schedule: Schedule, prediction_type: str = "epsilon", with_params: bool = False
) -> Backbone:
    """Any function as a model without classes, whose embeddings have no entries.

    Args:
      predict: `predict(x, t)`, or `predict(params, x, t)`, from `x` (B, *shape) and `t` (B,) to (B, *shape).
      schedule: the forward process.
      prediction_type: what it predicts: one of `PREDICTION_TYPES`, or "score", the gradient of `log p_t`.
      with_params: whether it takes parameters.

    Raises:
      ValueError: for another prediction type; when it is called, for a result of another shape.

    Examples:
      >>> model = function(lambda x, t: -x, schedule, "score")
      >>> null_eps(model, None)(x, t).shape
      (2, 2)
    """
    require_known("predicts", prediction_type, (*PREDICTION_TYPES, "score"))

    def apply(
        params: Any, x: jax.Array, t: jax.Array, embeddings: jax.Array, adapter: lora.Adapter | None = None
    ) -> jax.Array:
        del embeddings, adapter
        out = predict(params, x, t) if with_params else predict(x, t)
        if getattr(out, "shape", None) != x.shape:
            raise ValueError(f"the model made {out!r} of x with the shape {x.shape}: it must return one of that shape.")
        return _to_eps(prediction_type, schedule, x, out, t)

    return Backbone(apply=apply, table=lambda _: jnp.zeros((0, 0)), null=lambda _: jnp.zeros(0))


def _to_eps(prediction_type: str, schedule: Schedule, x: jax.Array, out: jax.Array, t: jax.Array) -> jax.Array:
    """The noise in `x`, from whatever a network predicts."""
    if prediction_type == "epsilon":
        return out
    if prediction_type == "score":
        return eps_from_score(schedule, out, t)
    return (eps_from_v if prediction_type == "v_prediction" else eps_from_x0)(schedule, x, out, t)


def _require_rows(x: jax.Array, t: jax.Array, embeddings: jax.Array) -> None:
    """Refuses timesteps or embeddings that are not one for each picture."""
    for name, given in (("t", t), ("embeddings", embeddings)):
        if given.shape[:1] != x.shape[:1]:
            raise ValueError(f"x has the shape {x.shape} and {name} {given.shape}: give one for each row of x.")


def class_eps(backbone: Backbone, params: Any, embedding: jax.Array, adapter: lora.Adapter | None = None) -> EpsFn:
    """The eps-function of the class with embedding `embedding` (E,) or (L, E), under the adapter if there is one.

    Examples:
      >>> class_eps(toy, toy_params, jnp.array([1.0, 0.0]))(x, t)
      Array([[-0.46,  0.31],
             [-1.45,  0.39]], dtype=float32)
    """

    def eps_fn(x: jax.Array, t: jax.Array) -> jax.Array:
        embeddings = jnp.broadcast_to(embedding[None], (x.shape[0], *embedding.shape))
        return backbone.apply(params, x, t, embeddings, adapter)

    return eps_fn


def null_eps(backbone: Backbone, params: Any) -> EpsFn:
    """The unconditional eps-function, whose density discovery climbs (arXiv 2605.07078, Eq. 2).

    Examples:
      >>> jax.jit(null_eps(mixture(schedule), density))(x, t)
      Array([[-0.34,  0.23],
             [-0.26,  0.38]], dtype=float32)
    """
    return class_eps(backbone, params, backbone.null(params))
