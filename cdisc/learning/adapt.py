"""Adaptation: what one picture, or the pool of its teacher, can teach a frozen backbone.

The levels differ in what is learnt (a class embedding, free or in the span of the trained ones; low-rank adapters
beside it) and from what (the query, the teacher's samples, or both). All are the plain eps loss on a handful of
numbers: arXiv 2605.07078, Eq. 15, is the level with LoRA on the teacher's pool. Textual inversion (Gal et al. 2023) is
the free embedding on the query; LoRA on the query alone is close to DreamBooth (Ruiz et al. 2023).

Everything here treats one query; `jax.vmap` over queries trains all their adapters in one program.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import optax

from cdisc.diffusion.loss import denoising_loss
from cdisc.diffusion.parameterization import EpsFn
from cdisc.diffusion.schedule import Schedule
from cdisc.networks import denoiser, lora
from cdisc.networks.unet import UNetConfig

POOLS = ("query", "teacher", "both")
STARTS = ("normal", "top1")
SPACES = ("free", "span")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptOptions:
    """One level of adaptation.

    Attributes:
      pool: "query", "teacher" (samples of the product of experts) or "both" (each half of the time).
      start: the class embedding starts at "normal", N(0, 0.01^2), or at the "top1" class.
      space: the embedding is "free", or a combination of the trained ones: in their "span".
      l1: weight of the L1 norm of the combination's coefficients, for "span".
      rank: inner dimension of the LoRA factors; 0 learns the embedding alone.
      alpha: the adapter's scale is `alpha / rank`.
      steps: optimiser steps.
      batch_size: pictures a step.
      learning_rate: of the adapter (Adam).
      embedding_learning_rate: of the embedding (Adam).
      null_dropout: share of the batch that sees the null class instead of the new embedding.
      prior_weight: weight of the loss on pictures of trained classes, with their own embeddings; 0 leaves it out.
    """

    pool: str
    start: str
    space: str = "free"
    l1: float = 0.0
    rank: int = 0
    alpha: float = 0.0
    steps: int
    batch_size: int
    learning_rate: float = 0.0
    embedding_learning_rate: float
    null_dropout: float = 0.0
    prior_weight: float = 0.0

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


def adapted_eps(
    network: UNetConfig, params: denoiser.Params, adaptation: Adaptation, scale: float
) -> tuple[EpsFn, EpsFn]:
    """The null and the conditional eps-function of an adapted backbone, its adapter applied on the fly."""
    null = denoiser.null_eps(network, params)
    conditional = denoiser.conditional_eps(network, params, adaptation.embedding)
    if not adaptation.adapter:
        return null, conditional
    return lora.adapt(null, adaptation.adapter, scale), lora.adapt(conditional, adaptation.adapter, scale)


def _decode(trainable: dict, table: jax.Array, space: str) -> jax.Array:
    """The embedding (E,) that the trained numbers stand for."""
    return trainable["embedding"] if space == "free" else trainable["embedding"] @ table


def _initial(
    network: UNetConfig, params: denoiser.Params, top1: jax.Array, options: AdaptOptions, key: jax.Array
) -> dict:
    """The trainable numbers before the first step."""
    key_embedding, key_adapter = jax.random.split(key)
    table = denoiser.class_table(params)
    size = network.embedding_dim if options.space == "free" else table.shape[0]
    if options.start == "normal":
        embedding = 0.01 * jax.random.normal(key_embedding, (size,))
    elif options.space == "free":
        embedding = table[top1]
    else:
        embedding = jax.nn.one_hot(top1, size)
    adapter = lora.init(params, key_adapter, options.rank) if options.rank else {}
    return {"embedding": embedding, "adapter": adapter}


def fit(
    network: UNetConfig,
    params: denoiser.Params,
    schedule: Schedule,
    key: jax.Array,
    query: jax.Array,
    pool: jax.Array,
    top1: jax.Array,
    prior: tuple[jax.Array, jax.Array],
    options: AdaptOptions,
) -> tuple[Adaptation, jax.Array]:
    """Learns one level of adaptation for one query.

    Args:
      network: the backbone's options.
      params: its frozen parameters.
      schedule: the forward process.
      key: for the start, the batches and the noise.
      query: (H, W, C) the picture.
      pool: (P, H, W, C) samples of its teacher.
      top1: () the trained class that explains it best.
      prior: pictures (R, H, W, C) and labels (R,) of trained classes, for prior preservation.
      options: the level.

    Returns:
      The adaptation, and the loss of each step (steps,).

    Raises:
      ValueError: if the options name a pool, start or space that does not exist.
    """
    for value, known in ((options.pool, POOLS), (options.start, STARTS), (options.space, SPACES)):
        if value not in known:
            raise ValueError(f"{value!r} is not one of {', '.join(known)}")
    key_init, key_train = jax.random.split(key)
    trainable = _initial(network, params, top1, options, key_init)
    table, null = denoiser.class_table(params), denoiser.null_embedding(params)
    tx = optax.multi_transform(
        {"embedding": optax.adam(options.embedding_learning_rate), "adapter": optax.adam(options.learning_rate)},
        {"embedding": "embedding", "adapter": jax.tree.map(lambda _: "adapter", trainable["adapter"])},
    )

    def draw(key: jax.Array) -> jax.Array:
        """A batch of what the new class should look like."""
        key_index, key_source = jax.random.split(key)
        if options.pool == "query":
            return jnp.broadcast_to(query[None], (options.batch_size, *query.shape))
        batch = pool[jax.random.randint(key_index, (options.batch_size,), 0, pool.shape[0])]
        if options.pool == "teacher":
            return batch
        from_query = jax.random.bernoulli(key_source, 0.5, (options.batch_size, *(1,) * query.ndim))
        return jnp.where(from_query, query[None], batch)

    def eps_of(trainable: dict, embeddings: jax.Array) -> EpsFn:
        def eps_fn(x: jax.Array, t: jax.Array) -> jax.Array:
            return denoiser.apply(network, params, x, t, embeddings)

        return lora.adapt(eps_fn, trainable["adapter"], options.scale) if options.rank else eps_fn

    def loss_fn(trainable: dict, key: jax.Array) -> jax.Array:
        key_batch, key_null, key_loss, key_prior, key_prior_loss = jax.random.split(key, 5)
        embedding = _decode(trainable, table, options.space)
        dropped = jax.random.bernoulli(key_null, options.null_dropout, (options.batch_size, 1))
        embeddings = jnp.where(dropped, null[None, :], embedding[None, :])
        loss = denoising_loss(eps_of(trainable, embeddings), schedule, key_loss, draw(key_batch))
        if options.space == "span":
            loss += options.l1 * jnp.sum(jnp.abs(trainable["embedding"]))
        if options.prior_weight > 0:
            images, labels = prior
            rows = jax.random.randint(key_prior, (options.batch_size,), 0, images.shape[0])
            eps_fn = eps_of(trainable, table[labels[rows]])
            loss += options.prior_weight * denoising_loss(eps_fn, schedule, key_prior_loss, images[rows])
        return loss

    def step(carry: tuple, i: jax.Array) -> tuple[tuple, jax.Array]:
        trainable, opt_state = carry
        loss, gradients = jax.value_and_grad(loss_fn)(trainable, jax.random.fold_in(key_train, i))
        updates, opt_state = tx.update(gradients, opt_state, trainable)
        return (optax.apply_updates(trainable, updates), opt_state), loss

    (trainable, _), losses = jax.lax.scan(step, (trainable, tx.init(trainable)), jnp.arange(options.steps))
    return Adaptation(_decode(trainable, table, options.space), trainable["adapter"]), losses
