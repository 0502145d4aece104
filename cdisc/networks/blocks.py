"""The blocks of diffusers' `UNet2DModel` as Flax Linen modules, with its structure and its field names.

A submodule `resnets.0` over there is `resnets_0` here; kernels are HWIO instead of OIHW, pictures NHWC. What the
blocks compute is what `diffusers.models.unets.unet_2d_blocks` computes, so that weights can travel both ways.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

# Residual branches and the output start at zero: the network begins as a linear map of its input (Ho et al. 2020).
_ZEROS = nn.initializers.zeros_init()

Conv3x3 = functools.partial(nn.Conv, kernel_size=(3, 3), padding=((1, 1), (1, 1)))


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018) with the parameters of `nn.GroupNorm`.

    The statistics of a group are averages of those of its channels, so the picture is never reshaped. XLA's CPU
    backend compiles and runs the small network's sampler in three quarters of the time that it needs with
    `nn.GroupNorm`.
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

        # Not the mean of squares less the squared mean, which cancel where the mean is large. It costs a third pass, 2%
        # of the time of a prediction of the small network and none of that of its gradient.
        centred = x - of_group(jnp.mean(x, axis=(1, 2)))[:, None, None, :]
        variance = of_group(jnp.mean(jnp.square(centred), axis=(1, 2)))
        factor = scale[None, :] * jax.lax.rsqrt(variance + self.epsilon)
        return (centred * factor[:, None, None, :] + bias[None, None, None, :]).astype(self.dtype)


def double(x: jax.Array) -> jax.Array:
    """Nearest-neighbour doubling: (B, H, W, C) to (B, 2 H, 2 W, C).

    Examples:
      >>> double(pictures).shape
      (2, 8, 8, 3)
    """
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def halve(x: jax.Array) -> jax.Array:
    """Averages of 2 x 2 pixels: (B, H, W, C) to (B, H / 2, W / 2, C).

    Examples:
      >>> halve(pictures).shape
      (2, 2, 2, 3)
    """
    b, h, w, c = x.shape
    return jnp.mean(x.reshape(b, h // 2, 2, w // 2, 2, c), axis=(2, 4))


class ResnetBlock2D(nn.Module):
    """Norm, SiLU, convolution, twice, with the time embedding in between and a residual connection.

    Attributes:
      out_channels: channels of the output.
      norm_num_groups: groups of both norms.
      norm_eps: epsilon of both norms.
      dtype: type of the activations.
      time_scale_shift: the time embedding is added before the second norm ("default") or scales and shifts what
        comes out of it ("scale_shift"; Dhariwal & Nichol 2021).
      output_scale_factor: what the sum with the input is divided by.
      resample: `halve` or `double`, applied to both branches after the first norm; None keeps the resolution.
    """

    out_channels: int
    norm_num_groups: int
    norm_eps: float
    dtype: jnp.dtype
    time_scale_shift: str = "default"
    output_scale_factor: float = 1.0
    resample: Callable[[jax.Array], jax.Array] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array) -> jax.Array:
        """Maps `x` (B, H, W, C) and `temb` (B, E) to (B, H, W, out_channels), H and W resampled if asked."""
        norm = functools.partial(GroupNorm, self.norm_num_groups, self.norm_eps, self.dtype)
        h = nn.silu(norm(name="norm1")(x))
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = Conv3x3(self.out_channels, dtype=self.dtype, name="conv1")(h)
        scales = self.time_scale_shift == "scale_shift"
        width = 2 * self.out_channels if scales else self.out_channels
        projected = nn.Dense(width, dtype=self.dtype, name="time_emb_proj")(nn.silu(temb))[:, None, None, :]
        if scales:
            scale, shift = jnp.split(projected, 2, axis=-1)
            h = norm(name="norm2")(h) * (1.0 + scale) + shift
        else:
            h = norm(name="norm2")(h + projected)
        h = Conv3x3(self.out_channels, dtype=self.dtype, name="conv2", kernel_init=_ZEROS)(nn.silu(h))
        if x.shape[-1] != self.out_channels:
            x = nn.Conv(self.out_channels, (1, 1), dtype=self.dtype, name="conv_shortcut")(x)
        return (x + h) / self.output_scale_factor


class Attention(nn.Module):
    """Self-attention over the pixels of a feature map, with a residual connection.

    Attributes:
      head_dim: channels of a head; there are as many heads as fit into the channels.
      norm_num_groups: groups of the norm; None leaves the norm out.
      norm_eps: epsilon of the norm.
      dtype: type of the activations.
      output_scale_factor: what the sum with the input is divided by.
    """

    head_dim: int
    norm_num_groups: int | None
    norm_eps: float
    dtype: jnp.dtype
    output_scale_factor: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, C) to the same shape."""
        b, h, w, c = x.shape
        heads = c // self.head_dim
        y = x
        if self.norm_num_groups is not None:
            y = GroupNorm(self.norm_num_groups, self.norm_eps, self.dtype, name="group_norm")(x)
        y = y.reshape(b, h * w, c)
        q, k, v = (
            nn.Dense(heads * self.head_dim, dtype=self.dtype, name=name)(y).reshape(b, h * w, heads, self.head_dim)
            for name in ("to_q", "to_k", "to_v")
        )
        y = jax.nn.dot_product_attention(q, k, v).reshape(b, h * w, heads * self.head_dim)
        y = nn.Dense(c, dtype=self.dtype, name="to_out_0", kernel_init=_ZEROS)(y)
        return (x + y.reshape(b, h, w, c)) / self.output_scale_factor


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
        return Conv3x3(x.shape[-1], dtype=self.dtype, name="conv")(double(x))


class DownBlock2D(nn.Module):
    """Residual blocks, each followed by attention if `attention`, then a downsampler unless it is the last block.

    The downsampler is a strided convolution ("conv") or a residual block that halves ("resnet").
    """

    out_channels: int
    num_layers: int
    add_downsample: bool
    downsample_padding: int
    attention: bool
    head_dim: int
    norm_num_groups: int
    norm_eps: float
    dtype: jnp.dtype
    time_scale_shift: str = "default"
    downsample_type: str = "conv"

    @nn.compact
    def __call__(self, x: jax.Array, tembs: Sequence[jax.Array]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Returns the output and the skip connections, first to last; `tembs` (B, E) are those of its resnets."""
        common = (self.norm_num_groups, self.norm_eps, self.dtype)
        resnet = functools.partial(ResnetBlock2D, self.out_channels, *common, self.time_scale_shift)
        skips: tuple[jax.Array, ...] = ()
        for i in range(self.num_layers):
            x = resnet(name=f"resnets_{i}")(x, tembs[i])
            if self.attention:
                x = Attention(self.head_dim, *common, name=f"attentions_{i}")(x)
            skips += (x,)
        if self.add_downsample:
            if self.downsample_type == "resnet":
                x = resnet(resample=halve, name="downsamplers_0")(x, tembs[-1])
            else:
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
    attn_norm_num_groups: int | None
    time_scale_shift: str = "default"
    output_scale_factor: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, tembs: Sequence[jax.Array]) -> jax.Array:
        """Maps (B, H, W, C) to the same shape; `tembs` (B, E) are those of its two resnets."""
        resnet = functools.partial(
            ResnetBlock2D,
            x.shape[-1],
            self.norm_num_groups,
            self.norm_eps,
            self.dtype,
            self.time_scale_shift,
            self.output_scale_factor,
        )
        x = resnet(name="resnets_0")(x, tembs[0])
        if self.attention:
            x = Attention(
                self.head_dim,
                self.attn_norm_num_groups,
                self.norm_eps,
                self.dtype,
                self.output_scale_factor,
                name="attentions_0",
            )(x)
        return resnet(name="resnets_1")(x, tembs[1])


class UpBlock2D(nn.Module):
    """Residual blocks on the concatenation with the skips, each with attention if asked, then an upsampler.

    The upsampler doubles before a convolution ("conv") or within a residual block ("resnet").
    """

    out_channels: int
    num_layers: int
    add_upsample: bool
    attention: bool
    head_dim: int
    norm_num_groups: int
    norm_eps: float
    dtype: jnp.dtype
    time_scale_shift: str = "default"
    upsample_type: str = "conv"

    @nn.compact
    def __call__(self, x: jax.Array, skips: tuple[jax.Array, ...], tembs: Sequence[jax.Array]) -> jax.Array:
        """Consumes `skips`, of which there are `num_layers`, last to first; `tembs` (B, E) are those of its resnets."""
        common = (self.norm_num_groups, self.norm_eps, self.dtype)
        resnet = functools.partial(ResnetBlock2D, self.out_channels, *common, self.time_scale_shift)
        for i in range(self.num_layers):
            x = resnet(name=f"resnets_{i}")(jnp.concatenate([x, skips[-1 - i]], axis=-1), tembs[i])
            if self.attention:
                x = Attention(self.head_dim, *common, name=f"attentions_{i}")(x)
        if self.add_upsample:
            if self.upsample_type == "resnet":
                x = resnet(resample=double, name="upsamplers_0")(x, tembs[-1])
            else:
                x = Upsample2D(self.dtype, name="upsamplers_0")(x)
        return x
