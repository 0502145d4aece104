"""Adaptation: what one picture, or the pool of its teacher, can teach a frozen backbone.

Adaptations differ in what is learnt (a class embedding: free, in the span of the trained ones, or one for each residual
block; low-rank factors with it) and from what (the query, the teacher's samples, or both). All minimise the plain eps
loss over a handful of numbers: arXiv 2605.07078, Eq. 15, is LoRA on the teacher's pool. Textual inversion (Gal et al.
2023) is the free embedding on the query, an embedding for each block is close to P+ (Voynov et al. 2023), and LoRA on
the query alone to DreamBooth (Ruiz et al. 2023).

Everything here treats one query: `init`, then `step` again and again, then `result`, or `fit` for all of it. `jax.vmap`
over queries trains all their adapters in one program. The loop over steps is Python's: XLA's CPU backend runs the
gradient of a convolution inside `lax.scan` about eight times slower than outside it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cdisc.diffusion.loss import LOSSES, denoising_loss
from cdisc.diffusion.schedule import Schedule
from cdisc.errors import require_array, require_known, require_positive
from cdisc.keys import named
from cdisc.networks import lora
from cdisc.networks.backbone import Backbone

POOLS = ("query", "teacher", "both")
STARTS = ("normal", "top1", "composed")
SPACES = ("free", "span", "per_block")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptOptions:
    """What one adaptation learns, and how.

    Attributes:
      pool: "query", "teacher" (samples of the product of experts) or "both" (each half of the time).
      start: the class embedding starts at "normal", N(0, 0.01^2), at the "top1" class, or at the "composed" one: the
        sum of parts of classes that explains the query best (`composition.explain`).
      after: the adaptation whose embedding this one goes on from, instead of `start`; "" for none.
      candidates: how many classes are tried as the start, for "top1": each of the best ones gets all the steps and the
        same noise, and the fit with the smallest mean loss over its second half is kept. A fit mostly ends at the digit
        it started at, and the losses of whole classes tell colours apart better than digits.
      space: the embedding c is "free", or a combination of the trained ones: in their "span"; "per_block" learns a free
        c and a d(l) from zero, and residual block l of the network sees c + d(l).
      l1: weight of the L1 norm of the combination's coefficients, for "span".
      rank: inner dimension of the LoRA factors; 0 learns the embedding alone.
      alpha: the scale of the factors' product is `alpha / rank`.
      steps: optimiser steps.
      batch_size: pictures a step.
      learning_rate: of the factors (Adam).
      embedding_learning_rate: of the embedding (Adam); 0 leaves it where it starts.
      block_learning_rate: of d(l) (Adam), for "per_block".
      decay: whether the rates fall to zero over the steps, along a cosine.
      null_dropout: share of the batch that sees the null class instead of the new embedding.
      loss: "eps" (Eq. 15) or "v" (`diffusion.loss.loss_weight`).
      prior_weight: weight of the loss on pictures of trained classes, with their own embeddings; 0 leaves it out.

    Raises:
      ValueError: for a choice that does not exist, numbers out of range, candidates of a start that has none, and
        options under which nothing would be learnt.
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
    block_learning_rate: float = 0.0
    decay: bool = False
    null_dropout: float = 0.0
    loss: str = "eps"
    prior_weight: float = 0.0

    def __post_init__(self) -> None:
        """Refuses what would fail when the first step is traced."""
        choices = {"pool": POOLS, "start": STARTS, "space": SPACES, "loss": LOSSES}
        for field, known in choices.items():
            require_known(field, getattr(self, field), known)
        require_positive(steps=self.steps, batch_size=self.batch_size, candidates=self.candidates)
        if self.candidates > 1 and (self.after or self.start != "top1"):
            raise ValueError(f"candidates is {self.candidates}: only an adaptation that starts at 'top1' has some.")
        if self.after and self.space == "span":
            raise ValueError(
                "space is 'span': an adaptation after another one learns a 'free' or 'per_block' embedding."
            )
        if self.start == "composed" and self.space == "span":
            raise ValueError("start is 'composed': it has no coefficients in the 'span', so use another space.")
        if self.rank < 0:
            raise ValueError(f"rank is {self.rank}: use a whole number, 0 for the embedding alone.")
        for name in ("learning_rate", "embedding_learning_rate", "block_learning_rate", "l1", "prior_weight"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}: use a number from 0 on.")
        if not 0.0 <= self.null_dropout < 1.0:
            raise ValueError(f"null_dropout is {self.null_dropout}: use a share below 1.")
        positive = {"alpha": self.rank > 0, "learning_rate": self.rank > 0}
        positive |= {"block_learning_rate": self.space == "per_block"}
        positive |= {"embedding_learning_rate": self.rank == 0 and self.space != "per_block"}
        for name, needed in positive.items():
            if needed and not getattr(self, name) > 0.0:
                raise ValueError(
                    f"{name} is {getattr(self, name)}: with rank {self.rank} and space {self.space!r} nothing would be "
                    "learnt, so use a positive one."
                )

    def require(self, classes: int, composable: bool, pictures: bool) -> None:
        """Refuses what a network and its data have nothing for.

        Args:
          classes: how many the network was trained on.
          composable: whether they are sums of parts (`evaluation.composition`).
          pictures: whether there are pictures of them.

        Raises:
          ValueError: naming the field.
        """
        if self.start == "top1" and not self.after and not classes:
            raise ValueError("start is 'top1', and the network has no class to start at: set it to 'normal'.")
        if self.start == "composed" and not composable:
            raise ValueError(
                "start is 'composed', and there are no classes that are known to be sums of parts: that takes a "
                "network trained here on two factors or more, each value of which is trained; set it to 'top1'."
            )
        if self.space == "span" and not classes:
            raise ValueError("space is 'span', and the network has no classes to span one: set it to 'free'.")
        if self.prior_weight > 0 and not pictures:
            raise ValueError(f"prior_weight is {self.prior_weight}, and there are no pictures for it: set it to 0.")

    @property
    def pictures(self) -> int:
        """How many pictures a step sees: its batch, and as many of trained classes where these have a weight."""
        return self.batch_size * (2 if self.prior_weight > 0 else 1)

    @property
    def max_evaluations(self) -> int:
        """How many evaluations of the network all steps take; a picture's gradient takes as long as three."""
        return 3 * self.candidates * self.steps * self.pictures

    def describe(self) -> str:
        """What is learnt, from what, and where it starts, for a sentence that begins with "Learns"."""
        space = {
            "free": "",
            "span": " in the span of the trained ones",
            "per_block": ", for each residual block its own",
        }
        source = {
            "query": "the query",
            "teacher": "the teacher's samples",
            "both": "the query and the teacher's samples",
        }
        factors = f" and LoRA of rank {self.rank}" if self.rank else ""
        nearest = f"one of the {self.candidates} nearest classes" if self.candidates > 1 else "the nearest class"
        starts = {"normal": "noise", "top1": nearest, "composed": "the sum of parts of classes that explains it best"}
        start = f"what {self.after} learnt" if self.after else starts[self.start]
        return f"a new class embedding{space[self.space]}{factors} from {source[self.pool]}, starting at {start}"


@flax.struct.dataclass
class Adaptation:
    """A new class of the backbone: `p(x | embedding)` under the adapted kernels.

    Attributes:
      embedding: (E,) the new class embedding; (L, E), c + d(l) for each residual block, where it was learnt so.
      adapter: of the kernels; without factors where only the embedding is learnt.
    """

    embedding: jax.Array
    adapter: lora.Adapter


@flax.struct.dataclass
class Examples:
    """What there is to learn from, for one query; only the fields that the options call for are needed.

    Attributes:
      query: (H, W, C) the picture.
      pool: (P, H, W, C) samples of its teacher, for the pools "teacher" and "both".
      classes: (N,) int32, the trained classes that explain it best, best first, for the start "top1".
      composed: (E,) the class that is a sum of parts (`composition.Explained`), for the start "composed".
      given: (E,) or (L, E), the embedding that an adaptation with `after` goes on from.
    """

    query: jax.Array
    pool: jax.Array | None = None
    classes: jax.Array | None = None
    composed: jax.Array | None = None
    given: jax.Array | None = None

    def need(self, field: str) -> jax.Array:
        """The value of a field that the options call for.

        Raises:
          ValueError: if it is None.
        """
        value: jax.Array | None = getattr(self, field)
        if value is None:
            raise ValueError(f"examples.{field} is None, and these options learn from it.")
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
      learnt: "embedding" is c, (E,) or (L, E), or its coefficients in the span (classes,). "blocks" is d, (L, E), for
        the space "per_block". "adapter" is that of the kernels, for a rank above 0.
      opt_state: the optimiser's.
    """

    step: jax.Array
    learnt: dict[str, Any]
    opt_state: optax.OptState


def _optimizer(options: AdaptOptions) -> optax.GradientTransformation:
    """Adam, with a rate for each part that is learnt."""
    rates = {"embedding": options.embedding_learning_rate}
    if options.space == "per_block":
        rates["blocks"] = options.block_learning_rate
    if options.rank:
        rates["adapter"] = options.learning_rate
    parts = {
        name: optax.adam(optax.cosine_decay_schedule(rate, options.steps) if options.decay else rate)
        for name, rate in rates.items()
    }
    return optax.multi_transform(parts, {name: name for name in parts})


def init(
    backbone: Backbone,
    params: Any,
    examples: Examples,
    key: jax.Array,
    options: AdaptOptions,
    candidate: int | jax.Array = 0,
) -> FitState:
    """The state before the first step; for the start "top1", at the class `examples.classes[candidate]`.

    Raises:
      TypeError: if the examples are no float32 pictures, or the key is none.
      ValueError: if the examples lack what the options call for, or the backbone has no residual blocks for them.

    Examples:
      >>> state = init(toy, toy_params, Examples(query=query), key, teach)
      >>> int(state.step), sorted(state.learnt)
      (0, ['embedding'])
    """
    axes = len(examples.query.shape)
    require_array("examples.query", examples.query, "float32", range(1, 9), "a picture as float32")
    if examples.pool is not None:
        require_array("examples.pool", examples.pool, "float32", (axes + 1,), "pictures like the query as float32")
    table = backbone.table(params)
    size = table.shape[0] if options.space == "span" else table.shape[1]
    if options.after:
        embedding = examples.need("given")
    elif options.start == "normal":
        embedding = 0.01 * jax.random.normal(named(key, "embedding"), (size,))
    elif options.start == "composed":
        embedding = examples.need("composed")
    elif options.space == "span":
        embedding = jax.nn.one_hot(examples.need("classes")[candidate], size)
    else:
        embedding = table[examples.need("classes")[candidate]]
    learnt: dict[str, Any] = {"embedding": embedding}
    if options.space == "per_block":
        if not backbone.num_blocks:
            raise ValueError("space is 'per_block', and this backbone has no residual blocks: set it to 'free'.")
        learnt["blocks"] = jnp.zeros((backbone.num_blocks, size))
    if options.rank:
        learnt["adapter"] = lora.init(params, named(key, "factors"), options.rank, options.alpha)
    return FitState(step=jnp.zeros((), jnp.int32), learnt=learnt, opt_state=_optimizer(options).init(learnt))


def _draw(examples: Examples, key: jax.Array, options: AdaptOptions) -> jax.Array:
    """A batch (B, H, W, C) of what the new class should look like."""
    copies = jnp.broadcast_to(examples.query[None], (options.batch_size, *examples.query.shape))
    if options.pool == "query":
        return copies
    pool = examples.need("pool")
    batch = pool[jax.random.randint(named(key, "rows"), (options.batch_size,), 0, pool.shape[0])]
    if options.pool == "teacher":
        return batch
    from_query = jax.random.bernoulli(named(key, "source"), 0.5, (options.batch_size, *(1,) * examples.query.ndim))
    return jnp.where(from_query, copies, batch)


def step(
    state: FitState,
    backbone: Backbone,
    params: Any,
    schedule: Schedule,
    examples: Examples,
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
      examples: what there is to learn from.
      prior: pictures of trained classes; may be None if `options.prior_weight` is zero.
      key: the key of the whole run, that of `init`.
      options: what is learnt, and how.

    Returns:
      The state after the step, and its loss.

    Examples:
      >>> examples = Examples(query=query)
      >>> state = init(toy, toy_params, examples, key, teach)
      >>> stepped = jax.jit(lambda state: step(state, toy, toy_params, schedule, examples, None, key, teach))
      >>> state, loss = stepped(state)
      >>> int(state.step), bool(loss > 0)
      (1, True)
    """
    table, null = backbone.table(params), backbone.null(params)
    key = named(key, "step", state.step)

    def loss_fn(learnt: dict[str, Any]) -> jax.Array:
        def loss_of(images: jax.Array, embeddings: jax.Array, key: jax.Array) -> jax.Array:
            def eps_fn(x: jax.Array, t: jax.Array) -> jax.Array:
                return backbone.apply(params, x, t, embeddings, learnt.get("adapter"))

            return denoising_loss(eps_fn, schedule, key, images, options.loss)

        embedding = _embedding(learnt, table, options)
        dropped = jax.random.bernoulli(named(key, "null"), options.null_dropout, (options.batch_size,))
        absent = jnp.broadcast_to(null, embedding.shape)
        embeddings = jax.vmap(lambda drop: jnp.where(drop, absent, embedding))(dropped)
        loss = loss_of(_draw(examples, named(key, "batch"), options), embeddings, named(key, "noise"))
        if options.space == "span":
            loss += options.l1 * jnp.sum(jnp.abs(learnt["embedding"]))
        if prior is not None and options.prior_weight > 0:
            rows = jax.random.randint(named(key, "prior rows"), (options.batch_size,), 0, prior.images.shape[0])
            known = loss_of(prior.images[rows], table[prior.labels[rows]], named(key, "prior noise"))
            loss += options.prior_weight * known
        return loss

    loss, gradients = jax.value_and_grad(loss_fn)(state.learnt)
    updates, opt_state = _optimizer(options).update(gradients, state.opt_state, state.learnt)
    learnt = optax.apply_updates(state.learnt, updates)
    return FitState(step=state.step + 1, learnt=learnt, opt_state=opt_state), loss


def _embedding(learnt: dict[str, Any], table: jax.Array, options: AdaptOptions) -> jax.Array:
    """The class embedding, (E,) or (L, E), that the learnt numbers stand for."""
    embedding: jax.Array = learnt["embedding"]
    if options.space == "span":
        return embedding @ table
    if options.space == "per_block":
        return jnp.broadcast_to(embedding, learnt["blocks"].shape) + learnt["blocks"]
    return embedding


def result(state: FitState, backbone: Backbone, params: Any, options: AdaptOptions) -> Adaptation:
    """What was learnt.

    Examples:
      >>> state = init(toy, toy_params, Examples(query=query), key, teach)
      >>> result(state, toy, toy_params, teach).embedding.shape
      (2,)
    """
    embedding = _embedding(state.learnt, backbone.table(params), options)
    return Adaptation(embedding, state.learnt.get("adapter", lora.Adapter()))


def late_loss(losses: jax.Array | np.ndarray) -> jax.Array:
    """By what candidates are compared: the mean of the losses (..., steps) over the second half of the steps.

    Examples:
      >>> float(late_loss(np.array([9.0, 9.0, 1.0, 3.0])))
      2.0
    """
    return jnp.mean(losses[..., losses.shape[-1] // 2 :], axis=-1)


def _of_one(fn: Callable[..., Any], num_shared: int) -> Callable[..., Any]:
    return jax.jit(fn)


@functools.cache
def fitter(
    backbone: Backbone, options: AdaptOptions, mapped: Callable[[Callable[..., Any], int], Callable[..., Any]] = _of_one
) -> Callable[..., tuple[Adaptation, np.ndarray]]:
    """One adaptation from start to result as `fit(params, schedule, examples, key, prior=None, progress=iter)`.

    It learns from each candidate in turn and keeps, for each query by itself, what had the smallest `late_loss`; of
    equal candidates, the first. It returns the adaptation and its losses (..., steps), on the host, and raises a
    FloatingPointError that names the step if a loss is not finite.

    Args:
      backbone: the pretrained model.
      options: what is learnt, and how.
      mapped: `(fn, num_shared) -> fn` compiles a function of a query's item and so many arguments that all queries
        share; by default, for one query. Where it maps `fn` over many, their examples and keys lead with its axes.

    Examples:
      >>> learn = fitter(toy, teach)
      >>> learnt, losses = learn(toy_params, schedule, Examples(query=query), key)
      >>> learnt.embedding.shape, losses.shape
      ((2,), (40,))
    """
    begin = mapped(lambda item, params, candidate: init(backbone, params, item[0], item[1], options, candidate), 2)
    advance = mapped(
        lambda carry, params, schedule, prior: step(
            carry[0], backbone, params, schedule, carry[1], prior, carry[2], options
        ),
        3,
    )
    finish = mapped(lambda state, params: result(state, backbone, params, options), 1)

    def fit(
        params: Any,
        schedule: Schedule,
        examples: Examples,
        key: jax.Array,
        prior: Prior | None = None,
        progress: Callable[[range], Iterable[int]] = iter,
    ) -> tuple[Adaptation, np.ndarray]:
        classes = 1 if examples.classes is None else examples.classes.shape[-1]
        found = []
        for candidate in range(min(options.candidates, classes)):
            state, losses = begin((examples, key), params, jnp.int32(candidate)), []
            for _ in progress(range(options.steps)):
                state, loss = advance((state, examples, key), params, schedule, prior)
                losses.append(loss)
            seen = np.stack([np.asarray(loss) for loss in losses], axis=-1)
            finite = np.isfinite(seen).all(axis=tuple(range(seen.ndim - 1)))
            if not finite.all():
                raise FloatingPointError(
                    f"the loss is not finite at step {int(np.argmin(finite)) + 1}: lower the learning rates"
                )
            found.append((finish(state, params), seen))
        best = np.argmin([late_loss(seen) for _, seen in found], axis=0)

        def pick(*leaves: Any) -> np.ndarray:
            index = best.reshape(1, *best.shape, *(1,) * (np.ndim(leaves[0]) - best.ndim))
            return np.take_along_axis(np.stack([np.asarray(leaf) for leaf in leaves]), index, axis=0)[0]

        return jax.tree.map(pick, *found)

    return fit


def fit(
    backbone: Backbone,
    params: Any,
    schedule: Schedule,
    examples: Examples,
    key: jax.Array,
    options: AdaptOptions,
    prior: Prior | None = None,
) -> Adaptation:
    """One adaptation for one query, from start to result, on one device; the arguments are those of `step`.

    Raises:
      FloatingPointError: if the loss is not finite, naming the step.
      TypeError, ValueError: as `init` does.

    Examples:
      >>> learnt = fit(toy, toy_params, schedule, Examples(query=query), key, teach)
      >>> bool(jnp.abs(learnt.embedding - query).max() < 0.2)  # its class is what the query shows
      True
    """
    learnt, _ = fitter(backbone, options)(params, schedule, examples, key, prior)
    return jax.tree.map(jnp.asarray, learnt)
