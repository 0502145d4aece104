"""Minuscule networks that the tests share."""

import dataclasses

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from cdisc.networks import denoiser, unet

NETWORK = unet.UNetConfig(
    sample_size=8,
    num_class_embeds=4,
    block_out_channels=(8, 16),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=4,
    norm_num_groups=4,
    patch_size=2,
)
"""Every kind of layer: patch stem, strided convolution, attention, skips; three classes and the null class."""

ONE_LEVEL = dataclasses.replace(
    NETWORK, block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)
)
"""One block of each kind, of which the middle one alone has attention: its gradient compiles quickly."""


def random_params(network: unet.UNetConfig = NETWORK, seed: int = 0) -> denoiser.Params:
    """Parameters without a zero, so that every layer has a say in the output; made without compiling anything."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: denoiser.init(network, key), jax.random.key(0))
    flat = {}
    for path, leaf in flax.traverse_util.flatten_dict(shapes, sep="/").items():
        values = rng.standard_normal(leaf.shape)
        if path.endswith("/kernel"):
            values /= np.sqrt(np.prod(leaf.shape[:-1]))
        else:
            values = 0.2 * values + path.endswith("/scale")
        flat[path] = jnp.asarray(values, jnp.float32)
    return flax.traverse_util.unflatten_dict(flat, sep="/")
