"""The U-Net as pure functions of its parameters.

Parameters are one dict: those of `UNet2D`, and `class_embedding`, the table (classes + 1, E) whose last row is the
null class. An embedding enters as a vector, so that one from outside the table can be used too. An unconditional
network has no table: it is its own null class, whose embedding is zero.

Timesteps are the paper's, 1..T. The network counts 0..T-1, as diffusers does: the shift happens here and only here.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from cdisc.keys import named
from cdisc.networks import lora
from cdisc.networks.unet import TimeProjection, TimestepEmbedding, UNet2D, UNetConfig

Params = dict[str, Any]


def init(config: UNetConfig, key: jax.Array) -> Params:
    """Random parameters; the class table starts at N(0, 0.02^2), small against the time embedding.

    Examples:
      >>> sorted(jax.eval_shape(lambda: init(config, key)))[:2]
      ['class_embedding', 'conv_in']
    """
    params = _init_unet(config, named(key, "unet"))
    key_table = named(key, "class_embedding")
    if config.class_embed_type == "timestep":
        projected = jnp.zeros((1, params["time_embedding"]["linear_1"]["kernel"].shape[0]))
        perceptron = TimestepEmbedding(config.embedding_dim, jnp.dtype(config.dtype))
        params["class_embedding"] = perceptron.init(key_table, projected)["params"]
    elif config.class_embed_type is None and config.num_class_embeds is not None:
        shape = (config.num_class_embeds, config.embedding_dim)
        params["class_embedding"] = {"embedding": 0.02 * jax.random.normal(key_table, shape)}
    return params


@functools.partial(jax.jit, static_argnums=0)
def _init_unet(config: UNetConfig, key: jax.Array) -> Params:
    """The parameters of `UNet2D`, by one program: operation by operation they take much longer."""
    x = jnp.zeros((1, *config.picture_shape))
    return dict(UNet2D(config).init(key, x, jnp.zeros((1,), jnp.int32))["params"])


def apply(
    config: UNetConfig,
    params: Params,
    x: jax.Array,
    t: jax.Array,
    class_embedding: jax.Array | None = None,
    adapter: lora.Adapter | None = None,
) -> jax.Array:
    """What the network predicts.

    Args:
      config: the network's options.
      params: its parameters.
      x: (B, H, W, C) noisy pictures.
      t: (B,) in 1..T.
      class_embedding: (B, E), or (B, L, E) with one for each of its `unet.residual_blocks`; None adds nothing.
      adapter: low-rank factors beside the kernels; None for the network as it is.

    Examples:
      >>> jax.jit(apply, static_argnums=0)(config, params, pictures, t, embed(params, labels)).shape
      (2, 4, 4, 3)
    """
    out = lora.apply(UNet2D(config), params, adapter, x, t - 1, class_embedding)
    assert isinstance(out, jax.Array)  # not a pair: the network has no mutable collections
    return out


def _table(params: Params) -> jax.Array:
    """All embeddings, the null class last: (classes + 1, E)."""
    table: jax.Array | None = params.get("class_embedding", {}).get("embedding")
    return jnp.zeros((1, params["time_embedding"]["linear_2"]["bias"].shape[0])) if table is None else table


def class_table(params: Params) -> jax.Array:
    """The embeddings of the trained classes, without the null class: (classes, E).

    Examples:
      >>> class_table(toy_params)
      Array([[ 1.,  0.],
             [-1.,  0.]], dtype=float32)
    """
    return _table(params)[:-1]


def null_embedding(params: Params) -> jax.Array:
    """The embedding of the null class: (E,).

    Examples:
      >>> null_embedding(toy_params)
      Array([0., 0.], dtype=float32)
    """
    return _table(params)[-1]


def embed(params: Params, labels: jax.Array) -> jax.Array:
    """The embeddings of `labels` (B,), in which the number of classes means the null class: (B, E).

    Examples:
      >>> embed(toy_params, jnp.array([1, 2]))  # a class and the null class
      Array([[-1.,  0.],
             [ 0.,  0.]], dtype=float32)
    """
    return _table(params)[labels]


def embed_number(config: UNetConfig, params: Params, numbers: jax.Array) -> jax.Array:
    """The class embeddings (B, E) of `numbers` (B,), for a network whose `class_embed_type` is "timestep".

    Examples:
      >>> numbered = dataclasses.replace(config, class_embed_type="timestep", num_class_embeds=None)
      >>> jax.eval_shape(lambda: embed_number(numbered, init(numbered, key), jnp.array([7]))).shape
      (1, 32)
    """
    projected = TimeProjection(config).apply({"params": params.get("time_proj", {})}, numbers)
    perceptron = TimestepEmbedding(config.embedding_dim, jnp.dtype(config.dtype))
    embeddings = perceptron.apply({"params": params["class_embedding"]}, projected)
    assert isinstance(embeddings, jax.Array)
    return embeddings


def null_last(params: Params, row: int) -> Params:
    """The parameters with row `row` of the table, the null class, moved to the end.

    Examples:
      >>> null_last(toy_params, 0)["class_embedding"]["embedding"]
      Array([[-1.,  0.],
             [ 0.,  0.],
             [ 1.,  0.]], dtype=float32)
    """
    table = _table(params)
    table = jnp.concatenate([table[:row], table[row + 1 :], table[row][None]])
    return {**params, "class_embedding": {"embedding": table}}


def new_classes(params: Params, count: int) -> Params:
    """The parameters with `count` classes that are as the null class is, in the place of theirs.

    Examples:
      >>> class_table(new_classes(toy_params, 4)).shape
      (4, 2)
    """
    return {**params, "class_embedding": {"embedding": jnp.tile(null_embedding(params), (count + 1, 1))}}


def add_class(config: UNetConfig, params: Params, embedding: jax.Array) -> tuple[UNetConfig, Params]:
    """The network with one more class, `embedding` (E,), as the last before the null class.

    An unconditional network becomes a conditional one of that class and the null class.

    Examples:
      >>> wider, more = add_class(config, params, null_embedding(params))
      >>> wider.num_class_embeds, class_table(more).shape
      (4, (3, 32))
    """
    table = jnp.concatenate([class_table(params), embedding[None], null_embedding(params)[None]])
    config = dataclasses.replace(config, num_class_embeds=table.shape[0], class_embed_type=None)
    return config, {**params, "class_embedding": {"embedding": table}}
