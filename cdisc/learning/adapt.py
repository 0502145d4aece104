"""Adaptation: what one picture, or the pool of its teacher, can teach a frozen backbone.

The levels differ in what is learnt (a class embedding, free or in the span of the trained ones; low-rank adapters
with it) and from what (the query, the teacher's samples, or both). All minimise the plain eps loss over a handful of
numbers: arXiv 2605.07078, Eq. 15, is the level with LoRA on the teacher's pool. Textual inversion (Gal et al. 2023) is
the free embedding on the query; LoRA on the query alone is close to DreamBooth (Ruiz et al. 2023).

Everything here treats one query: `init`, then `step` again and again, then `result`, or `fit` for all of it. `jax.vmap`
over queries trains all their adapters in one program. The loop over steps is Python's: XLA's CPU backend runs the
gradient of a convolution inside `lax.scan` about eight times slower than outside it.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from cdisc.diffusion.loss import LOSSES, denoising_loss
from cdisc.diffusion.parameterization import EpsFn
from cdisc.diffusion.schedule import Schedule
from cdisc.errors import require_known
from cdisc.networks import lora
from cdisc.networks.backbone import Backbone

POOLS = ("query", "teacher", "both")
STARTS = ("normal", "top1")
SPACES = ("free", "span")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptOptions:
    """One level of adaptation.

    Attributes:
      pool: "query", "teacher" (samples of the product of experts) or "both" (each half of the time).
      start: the class embedding starts at "normal", N(0, 0.01^2), or at the "top1" class.
      after: the level whose embedding this one goes on from, instead of `start`; "" for none.
      candidates: how many classes are tried as the start, for "top1": each of the best ones gets all the steps and the
        same noise, and the fit with the smallest mean loss over its second half is kept. A fit mostly ends at the digit
        it started at, and the losses of whole classes tell colours apart better than digits.
      space: the embedding is "free", or a combination of the trained ones: in their "span".
      l1: weight of the L1 norm of the combination's coefficients, for "span".
      rank: inner dimension of the LoRA factors; 0 learns the embedding alone.
      alpha: the adapter's scale is `alpha / rank`.
      steps: optimiser steps.
      batch_size: pictures a step.
      learning_rate: of the adapter (Adam).
      embedding_learning_rate: of the embedding (Adam).
      decay: whether both rates fall to zero over the steps, along a cosine.
      null_dropout: share of the batch that sees the null class instead of the new embedding.
      loss: "eps" (Eq. 15) or "v" (`diffusion.loss.loss_weight`).
      prior_weight: weight of the loss on pictures of trained classes, with their own embeddings; 0 leaves it out.

    Raises:
      ValueError: for a pool, start, space or loss that does not exist, a negative rank, or an adapter without a scale.
    """

    pool: str
    start: str
    after: str = ""
    candidates: int = 1
    space: str = "free"
    l1: float = 0.0
    rank: int = 0
    alpha: float = 0.0
    steps: int
    batch_size: int
    learning_rate: float = 0.0
    embedding_learning_rate: float
    decay: bool = False
    null_dropout: float = 0.0
    loss: str = "eps"
    prior_weight: float = 0.0

    def __post_init__(self) -> None:
        """Refuses what would fail when the first step is traced."""
        choices = {"pool": POOLS, "start": STARTS, "space": SPACES, "loss": LOSSES}
        for field, known in choices.items():
            require_known(field, getattr(self, field), known)
        if self.rank < 0:
            raise ValueError(f"rank is {self.rank}: use a whole number, 0 for the embedding alone.")
        if self.rank and not self.alpha > 0:
            raise ValueError(f"alpha is {self.alpha}: an adapter of rank {self.rank} needs a positive one.")

    @property
    def scale(self) -> float:
        """What multiplies the product of the LoRA factors."""
        return self.alpha / self.rank if self.rank else 0.0


@flax.struct.dataclass
class Adaptation:
    """A new class of the backbone: `p(x | embedding)` under the adapted kernels.

    Attributes:
      embedding: (E,) the new class embedding.
      adapter: LoRA factors by layer; empty where only the embedding is learnt.
    """

    embedding: jax.Array
    adapter: lora.Adapter


@flax.struct.dataclass
class Lesson:
    """What there is to learn from, for one query; a level needs only the fields that its options call for.

    Attributes:
      query: (H, W, C) the picture.
      pool: (P, H, W, C) samples of its teacher, for the pools "teacher" and "both".
      classes: (N,) int32, the trained classes that explain it best, best first, for the start "top1".
      given: (E,) the embedding that a level with `after` goes on from.
    """

    query: jax.Array
    pool: jax.Array | None = None
    classes: jax.Array | None = None
    given: jax.Array | None = None

    def need(self, field: str) -> jax.Array:
        """The value of a field that a level needs.

        Raises:
          ValueError: if it is None.
        """
        value: jax.Array | None = getattr(self, field)
        if value is None:
            raise ValueError(f"lesson.{field} is None, and this level learns from it")
        return value


@flax.struct.dataclass
class Prior:
    """Pictures of trained classes, which an adapter should not change.

    Attributes:
      images: (R, H, W, C).
      labels: (R,) int32.
    """

    images: jax.Array
    labels: jax.Array


@flax.struct.dataclass
class FitState:
    """All that learning carries from one step to the next.

    Attributes:
      step: () int32, steps done.
      embedding: (E,) the embedding, or (classes,) its coefficients in the span.
      adapter: LoRA factors by layer; empty where only the embedding is learnt.
      opt_state: the optimiser's.
    """

    step: jax.Array
    embedding: jax.Array
    adapter: lora.Adapter
    opt_state: optax.OptState


def _optimizer(options: AdaptOptions) -> optax.GradientTransformation:
    """Adam, with one rate for the embedding and one for the adapter."""
    rates = {"embedding": options.embedding_learning_rate, "adapter": options.learning_rate}
    shapes = {
        name: optax.cosine_decay_schedule(rate, options.steps) if options.decay else rate
        for name, rate in rates.items()
    }
    return optax.multi_transform(
        {name: optax.adam(shape) for name, shape in shapes.items()}, {name: name for name in rates}
    )


def init(
    backbone: Backbone,
    params: Any,
    lesson: Lesson,
    key: jax.Array,
    options: AdaptOptions,
    candidate: int | jax.Array = 0,
) -> FitState:
    """The state before the first step; for the start "top1", at the class `lesson.classes[candidate]`."""
    key_embedding, key_adapter = jax.random.split(key)
    table = backbone.table(params)
    size = table.shape[1] if options.space == "free" else table.shape[0]
    if options.after:
        embedding = lesson.need("given")
    elif options.start == "normal":
        embedding = 0.01 * jax.random.normal(key_embedding, (size,))
    elif options.space == "free":
        embedding = table[lesson.need("classes")[candidate]]
    else:
        embedding = jax.nn.one_hot(lesson.need("classes")[candidate], size)
    adapter = lora.init(params, key_adapter, options.rank) if options.rank else {}
    opt_state = _optimizer(options).init({"embedding": embedding, "adapter": adapter})
    return FitState(step=jnp.zeros((), jnp.int32), embedding=embedding, adapter=adapter, opt_state=opt_state)


def _draw(lesson: Lesson, key: jax.Array, options: AdaptOptions) -> jax.Array:
    """A batch (B, H, W, C) of what the new class should look like."""
    key_index, key_source = jax.random.split(key)
    copies = jnp.broadcast_to(lesson.query[None], (options.batch_size, *lesson.query.shape))
    if options.pool == "query":
        return copies
    pool = lesson.need("pool")
    batch = pool[jax.random.randint(key_index, (options.batch_size,), 0, pool.shape[0])]
    if options.pool == "teacher":
        return batch
    from_query = jax.random.bernoulli(key_source, 0.5, (options.batch_size, *(1,) * lesson.query.ndim))
    return jnp.where(from_query, copies, batch)


def step(
    state: FitState,
    backbone: Backbone,
    params: Any,
    schedule: Schedule,
    lesson: Lesson,
    prior: Prior | None,
    key: jax.Array,
    options: AdaptOptions,
) -> tuple[FitState, jax.Array]:
    """One step of learning. Its randomness follows from `key` and `state.step` alone.

    Args:
      state: the state before the step.
      backbone: the pretrained model.
      params: its frozen parameters.
      schedule: the forward process.
      lesson: what the query has to teach.
      prior: pictures of trained classes; may be None if `options.prior_weight` is zero.
      key: the key of the whole run.
      options: the level.

    Returns:
      The state after the step, and its loss.
    """
    table, null = backbone.table(params), backbone.null(params)
    keys = jax.random.split(jax.random.fold_in(key, state.step), 5)
    key_batch, key_null, key_loss, key_prior, key_prior_loss = keys

    def loss_fn(trainable: dict) -> jax.Array:
        def eps_of(embeddings: jax.Array) -> EpsFn:
            def eps_fn(x: jax.Array, t: jax.Array) -> jax.Array:
                return backbone.apply(params, x, t, embeddings)

            return lora.adapt(eps_fn, trainable["adapter"], options.scale) if options.rank else eps_fn

        embedding = _decode(trainable["embedding"], table, options)
        dropped = jax.random.bernoulli(key_null, options.null_dropout, (options.batch_size, 1))
        embeddings = jnp.where(dropped, null[None, :], embedding[None, :])
        loss = denoising_loss(eps_of(embeddings), schedule, key_loss, _draw(lesson, key_batch, options), options.loss)
        if options.space == "span":
            loss += options.l1 * jnp.sum(jnp.abs(trainable["embedding"]))
        if prior is not None and options.prior_weight > 0:
            rows = jax.random.randint(key_prior, (options.batch_size,), 0, prior.images.shape[0])
            eps_fn = eps_of(table[prior.labels[rows]])
            loss += options.prior_weight * denoising_loss(
                eps_fn, schedule, key_prior_loss, prior.images[rows], options.loss
            )
        return loss

    trainable = {"embedding": state.embedding, "adapter": state.adapter}
    loss, gradients = jax.value_and_grad(loss_fn)(trainable)
    updates, opt_state = _optimizer(options).update(gradients, state.opt_state, trainable)
    trainable = optax.apply_updates(trainable, updates)
    return FitState(step=state.step + 1, opt_state=opt_state, **trainable), loss


def _decode(embedding: jax.Array, table: jax.Array, options: AdaptOptions) -> jax.Array:
    """The class embedding (E,) that the learnt numbers stand for."""
    return embedding if options.space == "free" else embedding @ table


def result(state: FitState, backbone: Backbone, params: Any, options: AdaptOptions) -> Adaptation:
    """What was learnt."""
    return Adaptation(_decode(state.embedding, backbone.table(params), options), state.adapter)


_init = jax.jit(init, static_argnames=("backbone", "options"))
_step = jax.jit(step, static_argnames=("backbone", "options"))


def fit(
    backbone: Backbone,
    params: Any,
    schedule: Schedule,
    lesson: Lesson,
    key: jax.Array,
    options: AdaptOptions,
    prior: Prior | None = None,
) -> Adaptation:
    """One level for one query, from its start to what was learnt, on one device; the arguments are those of `step`.

    Raises:
      FloatingPointError: if the loss is not finite, naming the step.
    """
    fits = []
    classes = 1 if lesson.classes is None else lesson.classes.shape[0]
    for candidate in range(min(options.candidates, classes)):
        state, losses = _init(backbone, params, lesson, key, options, candidate), []
        for _ in range(options.steps):
            state, loss = _step(state, backbone, params, schedule, lesson, prior, key, options)
            losses.append(loss)
        course = jnp.stack(losses)
        finite = jnp.isfinite(course)
        if not finite.all():
            raise FloatingPointError(f"the loss is not finite at step {int(jnp.argmin(finite)) + 1}: lower the rates")
        fits.append((float(jnp.mean(course[options.steps // 2 :])), state))
    _, best = min(fits, key=lambda fit: fit[0])
    return result(best, backbone, params, options)
