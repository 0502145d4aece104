"""The class-conditional U-Net: diffusers' `UNet2DModel`, plus an optional patch stem.

The stem (space to depth before `conv_in`, depth to space after `conv_out`) is the one thing that diffusers does not
have. With `patch_size = 1` the network is exactly a `UNet2DModel`, and `cdisc.networks.interop` reads and writes it.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cdisc.errors import require_known, require_positive
from cdisc.networks.blocks import Conv3x3, DownBlock2D, GroupNorm, MidBlock2D, UpBlock2D

DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")

# Spread of the random frequencies of a new Fourier time embedding: diffusers' constant.
_FOURIER_SCALE = 16.0


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """The options of `UNet2DModel` that cdisc has, under their published names, and `patch_size`, `dtype`, `remat`.

    Attributes:
      sample_size: height and width of the pictures, in pixels; a pair where they differ.
      in_channels: channels of the pictures.
      out_channels: channels of the prediction.
      center_input_sample: whether pictures come in [0, 1] and are stretched to [-1, 1] first.
      time_embedding_type: "positional", or "fourier": random frequencies of the logarithm of the timestep, and the
        output divided by the timestep, which therefore must not be 0 (Song et al. 2021).
      time_embedding_dim: width of the time embedding; None for four times the first level.
      num_class_embeds: rows of the class-embedding table, the null class last; None for an unconditional network.
      class_embed_type: None for the table; "timestep" embeds a number as if it were a timestep, with weights of its
        own; "identity" takes vectors as they are.
      down_block_types: one of `DOWN_BLOCKS` for each level, from fine to coarse.
      up_block_types: one of `UP_BLOCKS` for each level, from coarse to fine.
      block_out_channels: channels of each level, from fine to coarse.
      layers_per_block: residual blocks in each down block; each up block has one more.
      mid_block_scale_factor: what the sums of the middle block are divided by.
      add_attention: whether the middle block attends.
      attention_head_dim: channels of an attention head; None for a single head.
      norm_num_groups: groups of every group norm.
      attn_norm_num_groups: groups of the norm before the middle block's attention; None for `norm_num_groups`, or for
        no norm at all where `resnet_time_scale_shift` is "scale_shift".
      norm_eps: epsilon of every group norm.
      resnet_time_scale_shift: whether the time embedding is added ("default") or scales and shifts ("scale_shift").
      downsample_padding: 1, or 0 for the asymmetric padding of the published DDPM checkpoints.
      downsample_type: how "AttnDownBlock2D" halves: "conv", or "resnet" as in "ResnetDownsampleBlock2D".
      upsample_type: how "AttnUpBlock2D" doubles: "conv", or "resnet" as in "ResnetUpsampleBlock2D".
      flip_sin_to_cos: whether the cosines come first in the positional time embedding.
      freq_shift: shift of the frequencies of the positional time embedding.
      patch_size: side of the pixel patches that the stem folds into channels.
      dtype: type in which the activations are computed, "float32" or "bfloat16"; parameters are float32.
      remat: whether a gradient recomputes the activations within each block instead of keeping them.

    Raises:
      ValueError: for a value that no network can have, naming the option.
    """

    sample_size: int | tuple[int, int] = 32
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    num_class_embeds: int | None = None
    class_embed_type: str | None = None
    down_block_types: tuple[str, ...] = ("DownBlock2D", "DownBlock2D")
    up_block_types: tuple[str, ...] = ("UpBlock2D", "UpBlock2D")
    block_out_channels: tuple[int, ...] = (64, 128)
    layers_per_block: int = 1
    mid_block_scale_factor: float = 1.0
    add_attention: bool = True
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    patch_size: int = 1
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        """Refuses what would fail, or mean something else, when the network is traced."""
        require_positive(
            sample_size=self.sample_size,
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            time_embedding_dim=self.time_embedding_dim,
            num_class_embeds=self.num_class_embeds,
            block_out_channels=self.block_out_channels,
            layers_per_block=self.layers_per_block,
            attention_head_dim=self.attention_head_dim,
            norm_num_groups=self.norm_num_groups,
            attn_norm_num_groups=self.attn_norm_num_groups,
            patch_size=self.patch_size,
        )
        if not self.block_out_channels:
            raise ValueError("block_out_channels is empty: give the channels of at least one level.")
        for name, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
            for kind in getattr(self, name):
                if kind not in known:  # the nearest name would be another network's
                    raise ValueError(f"{name} has {kind!r}, which cdisc does not have: it has {', '.join(known)}.")
            given, levels = len(getattr(self, name)), len(self.block_out_channels)
            if given != levels:
                raise ValueError(f"{name} has {given} blocks, but block_out_channels has {levels}: give one for each.")
        if self.norm_eps < 0:
            raise ValueError(f"norm_eps is {self.norm_eps}: it is added to a variance, so use no negative number.")
        if self.mid_block_scale_factor == 0:
            raise ValueError("mid_block_scale_factor is 0: the middle block's sums are divided by it.")
        if self.block_out_channels[0] // 2 <= self.freq_shift:
            raise ValueError(
                f"freq_shift is {self.freq_shift}: it must be below half of the {self.block_out_channels[0]} channels "
                "of the first level."
            )
        require_known("time_embedding_type", self.time_embedding_type, ("positional", "fourier"))
        require_known("class_embed_type", self.class_embed_type, (None, "timestep", "identity"))
        require_known("resnet_time_scale_shift", self.resnet_time_scale_shift, ("default", "scale_shift"))
        require_known("downsample_type", self.downsample_type, ("conv", "resnet"))
        require_known("upsample_type", self.upsample_type, ("conv", "resnet"))
        require_known("dtype", self.dtype, ("float32", "bfloat16"))
        require_known("downsample_padding", self.downsample_padding, (0, 1))
        head = 1 if self.attention_head_dim is None else self.attention_head_dim
        for i, channels in enumerate(self.block_out_channels):
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"norm_num_groups is {self.norm_num_groups}, which does not divide the {channels} channels of "
                    f"level {i} in block_out_channels."
                )
            if i in self.attending_levels and channels < head:
                raise ValueError(
                    f"attention_head_dim is {head}, more than the {channels} channels of level {i}, which attends."
                )
        if self.attn_norm_num_groups is not None and self.block_out_channels[-1] % self.attn_norm_num_groups:
            raise ValueError(
                f"attn_norm_num_groups is {self.attn_norm_num_groups}, which does not divide the "
                f"{self.block_out_channels[-1]} channels of the middle block."
            )
        shrink = self.patch_size * 2 ** (len(self.block_out_channels) - 1)
        if isinstance(self.sample_size, tuple) and len(self.sample_size) != 2:
            raise ValueError(f"sample_size is {self.sample_size}: give a side, or height and width.")
        if any(side % shrink for side in self.picture_shape[:2]):
            raise ValueError(
                f"sample_size is {self.sample_size}: these levels and patches need a multiple of {shrink}."
            )

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of what the network denoises."""
        sides = self.sample_size if isinstance(self.sample_size, tuple) else (self.sample_size,) * 2
        return *sides, self.in_channels

    def for_classes(self, classes: int, shape: tuple[int, ...], data: str) -> "UNetConfig":
        """These options for training on `classes` classes of pictures; a table of None gets a row for each, and null's.

        Args:
          classes: how many are trained.
          shape: (H, W, C) of the pictures.
          data: what they are called.

        Raises:
          ValueError: for a network that cannot be trained on them, naming the option.
        """
        if shape != self.picture_shape:
            raise ValueError(
                f"sample_size and in_channels are for pictures of {'x'.join(map(str, self.picture_shape))}, and those "
                f"of {data} are {'x'.join(map(str, shape))}: make them agree."
            )
        if self.num_class_embeds not in (None, classes + 1):
            raise ValueError(
                f"num_class_embeds is {self.num_class_embeds}, but the split trains {classes}: set it to "
                f"{classes + 1}, one row for the null class."
            )
        if self.class_embed_type is not None:
            raise ValueError(f"class_embed_type is {self.class_embed_type!r}: a run needs a table, None.")
        return dataclasses.replace(self, num_class_embeds=classes + 1)

    @property
    def embedding_dim(self) -> int:
        """Width of the time embedding, and so of a class embedding."""
        return 4 * self.block_out_channels[0] if self.time_embedding_dim is None else self.time_embedding_dim

    @property
    def attending_levels(self) -> frozenset[int]:
        """The levels, 0 the finest, at which any block attends."""
        last = len(self.block_out_channels) - 1
        down = {i for i, kind in enumerate(self.down_block_types) if kind == "AttnDownBlock2D"}
        up = {last - i for i, kind in enumerate(self.up_block_types) if kind == "AttnUpBlock2D"}
        return frozenset(down | up | ({last} if self.add_attention else set()))

    @property
    def mid_attention_groups(self) -> int | None:
        """Groups of the norm before the middle block's attention; None where there is no such norm."""
        if self.attn_norm_num_groups is None and self.resnet_time_scale_shift == "default":
            return self.norm_num_groups
        return self.attn_norm_num_groups


def _resampling(config: UNetConfig, kind: str) -> str:
    """How a block halves or doubles: by a strided convolution ("conv") or a residual block ("resnet")."""
    named = {"AttnDownBlock2D": config.downsample_type, "AttnUpBlock2D": config.upsample_type}
    return named.get(kind, "resnet" if kind.startswith("Resnet") else "conv")


def residual_blocks(config: UNetConfig) -> tuple[str, ...]:
    """The paths of the network's residual blocks in the order in which they run: down, middle, up.

    Those that halve or double the picture are among them. Row l of a per-block class embedding is for block l.

    Examples:
      >>> residual_blocks(config)[:2]
      ('down_blocks_0/resnets_0', 'mid_block/resnets_0')
    """
    paths, last = [], len(config.block_out_channels) - 1
    parts = (("down", "downsamplers", config.down_block_types, 0), ("up", "upsamplers", config.up_block_types, 1))
    for part, sampler, kinds, more in parts:
        for i, kind in enumerate(kinds):
            paths += [f"{part}_blocks_{i}/resnets_{j}" for j in range(config.layers_per_block + more)]
            if i < last and _resampling(config, kind) == "resnet":
                paths.append(f"{part}_blocks_{i}/{sampler}_0")
        if part == "down":
            paths += ["mid_block/resnets_0", "mid_block/resnets_1"]
    return tuple(paths)


def space_to_depth(x: jax.Array, patch: int) -> jax.Array:
    """Folds `patch` x `patch` pixels into channels: (B, H, W, C) to (B, H / p, W / p, p p C).

    Examples:
      >>> space_to_depth(pictures, 2).shape
      (2, 2, 2, 12)
    """
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // patch, w // patch, patch * patch * c)


def depth_to_space(x: jax.Array, patch: int) -> jax.Array:
    """The inverse of `space_to_depth`.

    Examples:
      >>> bool((depth_to_space(space_to_depth(pictures, 2), 2) == pictures).all())
      True
    """
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, patch, patch, c // patch**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h * patch, w * patch, c // patch**2)


def time_embedding(timesteps: jax.Array, dim: int, flip_sin_to_cos: bool, freq_shift: int) -> jax.Array:
    """Sines and cosines of `timesteps` (B,) at `dim / 2` frequencies: (B, dim) (Vaswani et al. 2017).

    An odd `dim` ends in a zero.

    Examples:
      >>> time_embedding(jnp.array([0, 10]), dim=4, flip_sin_to_cos=True, freq_shift=0)
      Array([[ 1.  ,  1.  ,  0.  ,  0.  ],
             [-0.84,  1.  , -0.54,  0.1 ]], dtype=float32)
    """
    half = dim // 2
    frequencies = jnp.exp(-jnp.log(1e4) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift))
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies[None, :]
    parts = [jnp.sin(angles), jnp.cos(angles)]
    embedding = jnp.concatenate(parts[::-1] if flip_sin_to_cos else parts, axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, dim % 2)))


def fourier_embedding(timesteps: jax.Array, frequencies: jax.Array) -> jax.Array:
    """Sines, then cosines, of `log(timesteps)` (B,) at `frequencies` (F,): (B, 2 F) (Song et al. 2021).

    Examples:
      >>> fourier_embedding(jnp.array([1.0, 2.0]), frequencies=jnp.array([1.0]))
      Array([[ 0.  ,  1.  ],
             [-0.94, -0.35]], dtype=float32)
    """
    angles = jnp.log(timesteps.astype(jnp.float32))[:, None] * frequencies[None, :] * 2.0 * jnp.pi
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class TimeProjection(nn.Module):
    """The first, fixed part of the time embedding; the frequencies of the Fourier kind are kept as parameters."""

    config: UNetConfig

    @nn.compact
    def __call__(self, timesteps: jax.Array) -> jax.Array:
        """Maps (B,) to (B, channels of the first level), or twice as many for the Fourier kind."""
        c = self.config
        width = c.block_out_channels[0]
        if c.time_embedding_type == "positional":
            return time_embedding(timesteps, width, c.flip_sin_to_cos, c.freq_shift)
        weight = self.param("weight", nn.initializers.normal(_FOURIER_SCALE), (width,))
        # Drawn once and never learnt.
        return fourier_embedding(timesteps, jax.lax.stop_gradient(weight))


class TimestepEmbedding(nn.Module):
    """The two-layer perceptron on the time projection."""

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
          class_embedding: (B, embedding_dim), added to the time embedding, or (B, L, embedding_dim), where row l is
            added to what residual block l (`residual_blocks`) sees of it; None adds nothing. `cdisc.networks.denoiser`
            makes it from labels.

        Returns:
          (B, H, W, out_channels), float32.
        """
        c = self.config
        dtype = jnp.dtype(c.dtype)
        common: dict[str, Any] = {
            "norm_num_groups": c.norm_num_groups,
            "norm_eps": c.norm_eps,
            "dtype": dtype,
            "time_scale_shift": c.resnet_time_scale_shift,
        }

        def remat(block: Any) -> Any:
            return nn.remat(block) if c.remat else block

        def head_dim(channels: int) -> int:
            return channels if c.attention_head_dim is None else c.attention_head_dim

        projected = TimeProjection(c, name="time_proj")(timesteps)
        temb = TimestepEmbedding(c.embedding_dim, dtype, name="time_embedding")(projected)
        blocks = residual_blocks(c)
        if class_embedding is None:
            seen = dict.fromkeys(blocks, temb)
        elif class_embedding.ndim == 2:
            seen = dict.fromkeys(blocks, temb + class_embedding)
        else:
            seen = {block: temb + class_embedding[:, i] for i, block in enumerate(blocks)}

        def tembs(name: str) -> tuple[jax.Array, ...]:
            return tuple(temb for block, temb in seen.items() if block.startswith(f"{name}/"))

        if c.center_input_sample:
            x = 2.0 * x - 1.0
        x = space_to_depth(x, c.patch_size)
        x = Conv3x3(c.block_out_channels[0], dtype=dtype, name="conv_in")(x)
        skips: tuple[jax.Array, ...] = (x,)
        last = len(c.block_out_channels) - 1
        for i, (kind, channels) in enumerate(zip(c.down_block_types, c.block_out_channels, strict=True)):
            x, more = remat(DownBlock2D)(
                out_channels=channels,
                num_layers=c.layers_per_block,
                add_downsample=i < last,
                downsample_padding=c.downsample_padding,
                downsample_type=_resampling(c, kind),
                attention=kind == "AttnDownBlock2D",
                head_dim=head_dim(channels),
                name=f"down_blocks_{i}",
                **common,
            )(x, tembs(f"down_blocks_{i}"))
            skips += more
        x = remat(MidBlock2D)(
            attention=c.add_attention,
            head_dim=head_dim(x.shape[-1]),
            attn_norm_num_groups=c.mid_attention_groups,
            output_scale_factor=c.mid_block_scale_factor,
            name="mid_block",
            **common,
        )(x, tembs("mid_block"))
        for i, (kind, channels) in enumerate(zip(c.up_block_types, c.block_out_channels[::-1], strict=True)):
            num_layers = c.layers_per_block + 1
            x = remat(UpBlock2D)(
                out_channels=channels,
                num_layers=num_layers,
                add_upsample=i < last,
                upsample_type=_resampling(c, kind),
                attention=kind == "AttnUpBlock2D",
                head_dim=head_dim(channels),
                name=f"up_blocks_{i}",
                **common,
            )(x, skips[-num_layers:], tembs(f"up_blocks_{i}"))
            skips = skips[:-num_layers]
        x = nn.silu(GroupNorm(c.norm_num_groups, c.norm_eps, dtype, name="conv_norm_out")(x))
        x = Conv3x3(
            c.out_channels * c.patch_size**2, dtype=dtype, name="conv_out", kernel_init=nn.initializers.zeros_init()
        )(x)
        x = depth_to_space(x, c.patch_size).astype(jnp.float32)
        if c.time_embedding_type == "fourier":
            x = x / timesteps.astype(jnp.float32)[:, None, None, None]
        return x
