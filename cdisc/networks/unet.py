"""The class-conditional U-Net: diffusers' `UNet2DModel`, plus an optional patch stem.

The stem (space to depth before `conv_in`, depth to space after `conv_out`) is the one thing that diffusers does not
have. With `patch_size = 1` the network is exactly a `UNet2DModel`.
"""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from cdisc.networks.blocks import Conv3x3, DownBlock2D, GroupNorm, MidBlock2D, UpBlock2D


@flax.struct.dataclass
class UNetConfig:
    """The options of `UNet2DModel` that cdisc has, under their published names, and `patch_size`, `dtype`.

    Attributes:
      sample_size: height and width of the pictures, in pixels.
      in_channels: channels of the pictures.
      out_channels: channels of the prediction.
      num_class_embeds: rows of the class-embedding table, the null class last; None for an unconditional network.
      down_block_types: "DownBlock2D" or "AttnDownBlock2D" for each level, from fine to coarse.
      up_block_types: "UpBlock2D" or "AttnUpBlock2D" for each level, from coarse to fine.
      block_out_channels: channels of each level, from fine to coarse.
      layers_per_block: residual blocks in each down block; each up block has one more.
      add_attention: whether the middle block attends.
      attention_head_dim: channels of an attention head; None for a single head.
      norm_num_groups: groups of every group norm.
      norm_eps: epsilon of every group norm.
      downsample_padding: 1, or 0 for the asymmetric padding of the published DDPM checkpoints.
      flip_sin_to_cos: whether the cosines come first in the positional time embedding.
      freq_shift: shift of the frequencies of the positional time embedding.
      patch_size: side of the pixel patches that the stem folds into channels.
      dtype: type in which the activations are computed; parameters are float32.
    """

    sample_size: int = 32
    in_channels: int = 3
    out_channels: int = 3
    num_class_embeds: int | None = None
    down_block_types: tuple[str, ...] = ("DownBlock2D", "DownBlock2D")
    up_block_types: tuple[str, ...] = ("UpBlock2D", "UpBlock2D")
    block_out_channels: tuple[int, ...] = (64, 128)
    layers_per_block: int = 1
    add_attention: bool = True
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    downsample_padding: int = 1
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    patch_size: int = 1
    dtype: str = "float32"

    @property
    def embedding_dim(self) -> int:
        """Width of the time embedding, and so of a class embedding."""
        return 4 * self.block_out_channels[0]


def space_to_depth(x: jax.Array, patch: int) -> jax.Array:
    """Folds `patch` x `patch` pixels into channels: (B, H, W, C) to (B, H / p, W / p, p p C)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // patch, w // patch, patch * patch * c)


def depth_to_space(x: jax.Array, patch: int) -> jax.Array:
    """The inverse of `space_to_depth`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, patch, patch, c // patch**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h * patch, w * patch, c // patch**2)


def time_embedding(timesteps: jax.Array, dim: int, flip_sin_to_cos: bool, freq_shift: int) -> jax.Array:
    """Sines and cosines of `timesteps` (B,) at `dim / 2` frequencies: (B, dim) (Vaswani et al. 2017)."""
    half = dim // 2
    frequencies = jnp.exp(-jnp.log(1e4) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift))
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies[None, :]
    parts = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(parts[::-1] if flip_sin_to_cos else parts, axis=-1)


class TimestepEmbedding(nn.Module):
    """The two-layer perceptron on the positional time embedding."""

    dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, C) to (B, dim)."""
        x = nn.silu(nn.Dense(self.dim, dtype=self.dtype, name="linear_1")(x))
        return nn.Dense(self.dim, dtype=self.dtype, name="linear_2")(x)


class UNet2D(nn.Module):
    """`UNet2DModel` as a function of a picture, a timestep and a class embedding given as a vector."""

    config: UNetConfig

    @nn.compact
    def __call__(self, x: jax.Array, timesteps: jax.Array, class_embedding: jax.Array | None = None) -> jax.Array:
        """Predicts from `x` (B, H, W, C).

        Args:
          x: noisy pictures.
          timesteps: (B,) in diffusers' count, 0..T-1.
          class_embedding: (B, embedding_dim), added to the time embedding; None adds nothing.

        Returns:
          (B, H, W, out_channels), float32.
        """
        c = self.config
        dtype = jnp.dtype(c.dtype)
        common: dict[str, Any] = {"norm_num_groups": c.norm_num_groups, "norm_eps": c.norm_eps, "dtype": dtype}

        def head_dim(channels: int) -> int:
            return channels if c.attention_head_dim is None else c.attention_head_dim

        positional = time_embedding(timesteps, c.block_out_channels[0], c.flip_sin_to_cos, c.freq_shift)
        temb = TimestepEmbedding(c.embedding_dim, dtype, name="time_embedding")(positional)
        if class_embedding is not None:
            temb = temb + class_embedding

        x = space_to_depth(x, c.patch_size)
        x = Conv3x3(c.block_out_channels[0], dtype=dtype, name="conv_in")(x)
        skips: tuple[jax.Array, ...] = (x,)
        last = len(c.block_out_channels) - 1
        for i, (kind, channels) in enumerate(zip(c.down_block_types, c.block_out_channels, strict=True)):
            x, more = DownBlock2D(
                out_channels=channels,
                num_layers=c.layers_per_block,
                add_downsample=i < last,
                downsample_padding=c.downsample_padding,
                attention=kind == "AttnDownBlock2D",
                head_dim=head_dim(channels),
                name=f"down_blocks_{i}",
                **common,
            )(x, temb)
            skips += more
        x = MidBlock2D(attention=c.add_attention, head_dim=head_dim(x.shape[-1]), name="mid_block", **common)(x, temb)
        for i, (kind, channels) in enumerate(zip(c.up_block_types, c.block_out_channels[::-1], strict=True)):
            num_layers = c.layers_per_block + 1
            x = UpBlock2D(
                out_channels=channels,
                num_layers=num_layers,
                add_upsample=i < last,
                attention=kind == "AttnUpBlock2D",
                head_dim=head_dim(channels),
                name=f"up_blocks_{i}",
                **common,
            )(x, skips[-num_layers:], temb)
            skips = skips[:-num_layers]
        x = nn.silu(GroupNorm(c.norm_num_groups, c.norm_eps, dtype, name="conv_norm_out")(x))
        x = Conv3x3(
            c.out_channels * c.patch_size**2, dtype=dtype, name="conv_out", kernel_init=nn.initializers.zeros_init()
        )(x)
        return depth_to_space(x, c.patch_size).astype(jnp.float32)
