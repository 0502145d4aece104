"""The blocks of diffusers' `UNet2DModel` as Flax Linen modules, with its structure and its field names.

A submodule `resnets.0` over there is `resnets_0` here; kernels are HWIO instead of OIHW, pictures NHWC. What the
blocks compute is what `diffusers.models.unets.unet_2d_blocks` computes, so that weights can travel both ways.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

# Residual branches and the output start at zero: the network begins as a linear map of its input (Ho et al. 2020).
_ZEROS = nn.initializers.zeros_init()

Conv3x3 = functools.partial(nn.Conv, kernel_size=(3, 3), padding=((1, 1), (1, 1)))


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018) with the parameters of `nn.GroupNorm`, in two passes over the picture.

    The statistics of a group are averages of those of its channels, so the picture is never reshaped. XLA's CPU
    backend compiles and runs the small network's sampler in three quarters of the time that `nn.GroupNorm` takes.
    """

    num_groups: int
    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, C) to the same shape; statistics are taken in float32.

        Raises:
          ValueError: if the groups do not divide the channels.
        """
        b, channels = x.shape[0], x.shape[-1]
        if channels % self.num_groups:
            raise ValueError(f"{self.num_groups} groups do not divide {channels} channels")
        scale = self.param("scale", nn.initializers.ones_init(), (channels,))
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))

        def of_group(statistic: jax.Array) -> jax.Array:
            mean = jnp.mean(statistic.reshape(b, self.num_groups, -1), axis=-1)
            return jnp.repeat(mean, channels // self.num_groups, axis=-1)

        mean = of_group(jnp.mean(x, axis=(1, 2)))
        variance = of_group(jnp.mean(jnp.square(x), axis=(1, 2))) - jnp.square(mean)
        factor = scale[None, :] * jax.lax.rsqrt(jnp.maximum(variance, 0.0) + self.epsilon)
        return ((x - mean[:, None, None, :]) * factor[:, None, None, :] + bias[None, None, None, :]).astype(self.dtype)


class ResnetBlock2D(nn.Module):
    """Norm, SiLU, convolution, twice, with the time embedding added in between and a residual connection."""

    out_channels: int
    norm_num_groups: int
    norm_eps: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array) -> jax.Array:
        """Maps `x` (B, H, W, C) and `temb` (B, E) to (B, H, W, out_channels)."""
        norm = functools.partial(GroupNorm, self.norm_num_groups, self.norm_eps, self.dtype)
        h = Conv3x3(self.out_channels, dtype=self.dtype, name="conv1")(nn.silu(norm(name="norm1")(x)))
        shift = nn.Dense(self.out_channels, dtype=self.dtype, name="time_emb_proj")(nn.silu(temb))
        h = norm(name="norm2")(h + shift[:, None, None, :])
        h = Conv3x3(self.out_channels, dtype=self.dtype, name="conv2", kernel_init=_ZEROS)(nn.silu(h))
        if x.shape[-1] != self.out_channels:
            x = nn.Conv(self.out_channels, (1, 1), dtype=self.dtype, name="conv_shortcut")(x)
        return x + h


class Attention(nn.Module):
    """Self-attention over the pixels of a feature map, with a residual connection."""

    head_dim: int
    norm_num_groups: int
    norm_eps: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, C) to the same shape; `C` is a multiple of `head_dim`."""
        b, h, w, c = x.shape
        y = GroupNorm(self.norm_num_groups, self.norm_eps, self.dtype, name="group_norm")(x)
        y = y.reshape(b, h * w, c)
        q, k, v = (
            nn.Dense(c, dtype=self.dtype, name=name)(y).reshape(b, h * w, c // self.head_dim, self.head_dim)
            for name in ("to_q", "to_k", "to_v")
        )
        y = jax.nn.dot_product_attention(q, k, v).reshape(b, h * w, c)
        y = nn.Dense(c, dtype=self.dtype, name="to_out_0", kernel_init=_ZEROS)(y)
        return x + y.reshape(b, h, w, c)


class Downsample2D(nn.Module):
    """A strided convolution that halves the resolution."""

    padding: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, C) to (B, H / 2, W / 2, C)."""
        # Padding 0 means "bottom and right only" in the published DDPM checkpoints.
        pad = (0, 1) if self.padding == 0 else (self.padding, self.padding)
        return nn.Conv(x.shape[-1], (3, 3), strides=2, padding=(pad, pad), dtype=self.dtype, name="conv")(x)


class Upsample2D(nn.Module):
    """Nearest-neighbour doubling, then a convolution."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, C) to (B, 2 H, 2 W, C)."""
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return Conv3x3(x.shape[-1], dtype=self.dtype, name="conv")(x)


class DownBlock2D(nn.Module):
    """Residual blocks, each followed by attention if `attention`, then a downsampler unless it is the last block."""

    out_channels: int
    num_layers: int
    add_downsample: bool
    downsample_padding: int
    attention: bool
    head_dim: int
    norm_num_groups: int
    norm_eps: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Returns the output and the skip connections, first to last."""
        common = (self.norm_num_groups, self.norm_eps, self.dtype)
        skips: tuple[jax.Array, ...] = ()
        for i in range(self.num_layers):
            x = ResnetBlock2D(self.out_channels, *common, name=f"resnets_{i}")(x, temb)
            if self.attention:
                x = Attention(self.head_dim, *common, name=f"attentions_{i}")(x)
            skips += (x,)
        if self.add_downsample:
            x = Downsample2D(self.downsample_padding, self.dtype, name="downsamplers_0")(x)
            skips += (x,)
        return x, skips


class MidBlock2D(nn.Module):
    """A residual block, attention if `attention`, and a second residual block at the lowest resolution."""

    attention: bool
    head_dim: int
    norm_num_groups: int
    norm_eps: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array) -> jax.Array:
        """Maps (B, H, W, C) to the same shape."""
        common = (self.norm_num_groups, self.norm_eps, self.dtype)
        x = ResnetBlock2D(x.shape[-1], *common, name="resnets_0")(x, temb)
        if self.attention:
            x = Attention(self.head_dim, *common, name="attentions_0")(x)
        return ResnetBlock2D(x.shape[-1], *common, name="resnets_1")(x, temb)


class UpBlock2D(nn.Module):
    """Residual blocks on the concatenation with the skips, each with attention if asked, then an upsampler."""

    out_channels: int
    num_layers: int
    add_upsample: bool
    attention: bool
    head_dim: int
    norm_num_groups: int
    norm_eps: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, skips: tuple[jax.Array, ...], temb: jax.Array) -> jax.Array:
        """Consumes `skips`, of which there are `num_layers`, last to first."""
        common = (self.norm_num_groups, self.norm_eps, self.dtype)
        for i in range(self.num_layers):
            x = jnp.concatenate([x, skips[-1 - i]], axis=-1)
            x = ResnetBlock2D(self.out_channels, *common, name=f"resnets_{i}")(x, temb)
            if self.attention:
                x = Attention(self.head_dim, *common, name=f"attentions_{i}")(x)
        if self.add_upsample:
            x = Upsample2D(self.dtype, name="upsamplers_0")(x)
        return x
