"""The U-Net against a plain numpy transcription of diffusers' `UNet2DModel`, and against its published layout."""

import dataclasses

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.extend.core import jaxprs_in_params

from cdisc.networks import blocks, denoiser, unet

# The network of the tests with every other choice made the other way.
OTHER = unet.UNetConfig(
    sample_size=8,
    in_channels=2,
    out_channels=1,
    down_block_types=("AttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
    block_out_channels=(8, 16),
    layers_per_block=2,
    add_attention=False,
    attention_head_dim=None,
    norm_num_groups=4,
    norm_eps=1e-2,
    downsample_padding=0,
    flip_sin_to_cos=False,
    freq_shift=1,
)

# What the network of the tests leaves at its default: residual resampling, a time embedding that scales and shifts, ...
MODULATED = unet.UNetConfig(
    sample_size=8,
    center_input_sample=True,
    time_embedding_type="fourier",
    time_embedding_dim=12,
    down_block_types=("AttnDownBlock2D", "ResnetDownsampleBlock2D", "DownBlock2D"),
    up_block_types=("ResnetUpsampleBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(6, 10, 6),
    mid_block_scale_factor=1.7,
    attention_head_dim=4,  # leaves two channels over
    norm_num_groups=2,
    resnet_time_scale_shift="scale_shift",
    downsample_type="resnet",
)


def test_group_norm_is_the_library_s():
    x = 3.0 + 2.0 * jax.random.normal(jax.random.key(0), (2, 4, 6, 12))
    variables = {"params": {"scale": jnp.arange(12.0), "bias": jnp.linspace(-1.0, 1.0, 12)}}
    for dtype in (jnp.float32, jnp.bfloat16):
        ours = blocks.GroupNorm(3, 1e-2, dtype).apply(variables, x.astype(dtype))
        theirs = nn.GroupNorm(3, epsilon=1e-2, dtype=dtype).apply(variables, x.astype(dtype))
        assert ours.dtype == theirs.dtype == dtype
        tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
        np.testing.assert_allclose(np.asarray(ours, float), np.asarray(theirs, float), rtol=tolerance, atol=tolerance)
    with pytest.raises(ValueError, match="5 groups do not divide 12 channels"):
        blocks.GroupNorm(5, 1e-2, jnp.float32).init(jax.random.key(0), x)


@pytest.mark.parametrize("large", [0.0, 1e3, 1e4])
def test_group_norm_keeps_its_accuracy_where_the_mean_is_large(large):
    # Catches: the variance as the mean of squares less the squared mean, which is off by 8 at 1,000.
    x = np.random.default_rng(0).standard_normal((2, 16, 16, 4)).astype(np.float32) + np.float32(large)
    norm = blocks.GroupNorm(2, 1e-5, jnp.float32)
    ours = norm.apply({"params": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}}, x)
    groups = x.astype(np.float64).reshape(2, 16, 16, 2, 2)
    axes = (1, 2, 4)
    exact = (groups - groups.mean(axes, keepdims=True)) / np.sqrt(groups.var(axes, keepdims=True) + 1e-5)
    np.testing.assert_allclose(ours, exact.reshape(x.shape), atol=1e-6 + 1e-6 * large)


class Reference:
    """`UNet2DModel` in float64 numpy: NHWC pictures, parameters by path."""

    def __init__(self, config, params):
        self.config = config
        flat = flax.traverse_util.flatten_dict(params, sep="/")
        self.params = {path: np.asarray(leaf, np.float64) for path, leaf in flat.items()}

    def dense(self, path, x):
        return x @ self.params[f"{path}/kernel"] + self.params[f"{path}/bias"]

    def conv(self, path, x, pad=(1, 1), stride=1):
        kernel = self.params[f"{path}/kernel"]
        size = kernel.shape[0]
        x = np.pad(x, ((0, 0), pad, pad, (0, 0)))
        rows, columns = ((n - size) // stride + 1 for n in x.shape[1:3])
        out = np.zeros((x.shape[0], rows, columns, kernel.shape[-1])) + self.params[f"{path}/bias"]
        for i in range(size):
            for j in range(size):
                patch = x[:, i : i + stride * rows : stride, j : j + stride * columns : stride]
                out += patch[:, :rows, :columns] @ kernel[i, j]
        return out

    def norm(self, path, x):
        groups = x.reshape(x.shape[0], -1, self.config.norm_num_groups, x.shape[-1] // self.config.norm_num_groups)
        mean, var = groups.mean(axis=(1, 3), keepdims=True), groups.var(axis=(1, 3), keepdims=True)
        normed = ((groups - mean) / np.sqrt(var + self.config.norm_eps)).reshape(x.shape)
        return normed * self.params[f"{path}/scale"] + self.params[f"{path}/bias"]

    @staticmethod
    def silu(x):
        return x / (1.0 + np.exp(-x))

    def resnet(self, path, x, temb):
        if temb.ndim == 3:  # one for each residual block, as they come
            temb = temb[:, len(self.blocks)]
        self.blocks.append(path)
        h = self.silu(self.norm(f"{path}/norm1", x))
        if "downsamplers" in path:
            x, h = ((y[:, ::2] + y[:, 1::2]) / 2 for y in (x, h))
            x, h = ((y[:, :, ::2] + y[:, :, 1::2]) / 2 for y in (x, h))
        if "upsamplers" in path:
            x, h = (y.repeat(2, axis=1).repeat(2, axis=2) for y in (x, h))
        h = self.conv(f"{path}/conv1", h)
        projected = self.dense(f"{path}/time_emb_proj", self.silu(temb))[:, None, None]
        if self.config.resnet_time_scale_shift == "default":
            h = self.norm(f"{path}/norm2", h + projected)
        else:
            scale, shift = projected[..., : h.shape[-1]], projected[..., h.shape[-1] :]
            h = self.norm(f"{path}/norm2", h) * (1 + scale) + shift
        h = self.conv(f"{path}/conv2", self.silu(h))
        shortcut = f"{path}/conv_shortcut"
        return h + (self.conv(shortcut, x, pad=(0, 0)) if f"{shortcut}/kernel" in self.params else x)

    def attention(self, path, x):
        b, h, w, c = x.shape
        head = c if self.config.attention_head_dim is None else self.config.attention_head_dim
        # Without a norm where the time embedding scales and shifts, but in the middle block alone.
        norm = f"{path}/group_norm"
        y = (self.norm(norm, x) if f"{norm}/scale" in self.params else x).reshape(b, h * w, c)
        q, k, v = (self.dense(f"{path}/{name}", y) for name in ("to_q", "to_k", "to_v"))
        out = np.zeros_like(q)
        for first in range(0, q.shape[-1], head):
            part = slice(first, first + head)
            logits = q[:, :, part] @ k[:, :, part].transpose(0, 2, 1) / np.sqrt(head)
            weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
            out[:, :, part] = weights / weights.sum(axis=-1, keepdims=True) @ v[:, :, part]
        return x + self.dense(f"{path}/to_out_0", out).reshape(b, h, w, c)

    def time(self, t):
        c = self.config
        if c.time_embedding_type == "fourier":
            angles = 2 * np.pi * np.log(t)[:, None] * self.params["time_proj/weight"]
            x = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
            return self.dense("time_embedding/linear_2", self.silu(self.dense("time_embedding/linear_1", x)))
        half = c.block_out_channels[0] // 2
        angles = t[:, None] * 10000.0 ** (-np.arange(half) / (half - c.freq_shift))
        first, second = (np.cos, np.sin) if c.flip_sin_to_cos else (np.sin, np.cos)
        x = np.concatenate([first(angles), second(angles)], axis=1)
        return self.dense("time_embedding/linear_2", self.silu(self.dense("time_embedding/linear_1", x)))

    def __call__(self, x, t, class_embedding=None):
        c, p = self.config, self.config.patch_size
        temb = self.time(t)
        self.blocks = []
        if class_embedding is not None:
            temb = temb + class_embedding if class_embedding.ndim == 2 else temb[:, None] + class_embedding
        b, height, width = x.shape[:3]
        if c.center_input_sample:
            x = 2 * x - 1
        # Channel (i p + j) C + k of a patch is its pixel (i, j), colour k.
        x = np.concatenate([x[:, i::p, j::p] for i in range(p) for j in range(p)], axis=-1)
        x = self.conv("conv_in", x)
        skips = [x]
        last = len(c.block_out_channels) - 1
        for i, kind in enumerate(c.down_block_types):
            for j in range(c.layers_per_block):
                x = self.resnet(f"down_blocks_{i}/resnets_{j}", x, temb)
                if kind == "AttnDownBlock2D":
                    x = self.attention(f"down_blocks_{i}/attentions_{j}", x)
                skips.append(x)
            if i < last and f"down_blocks_{i}/downsamplers_0/conv1/kernel" in self.params:
                x = self.resnet(f"down_blocks_{i}/downsamplers_0", x, temb)
                skips.append(x)
            elif i < last:
                pad = (0, 1) if c.downsample_padding == 0 else (1, 1)
                x = self.conv(f"down_blocks_{i}/downsamplers_0/conv", x, pad, stride=2)
                skips.append(x)
        x = self.resnet("mid_block/resnets_0", x, temb) / c.mid_block_scale_factor
        if c.add_attention:
            x = self.attention("mid_block/attentions_0", x) / c.mid_block_scale_factor
        x = self.resnet("mid_block/resnets_1", x, temb) / c.mid_block_scale_factor
        for i, kind in enumerate(c.up_block_types):
            for j in range(c.layers_per_block + 1):
                x = self.resnet(f"up_blocks_{i}/resnets_{j}", np.concatenate([x, skips.pop()], axis=-1), temb)
                if kind == "AttnUpBlock2D":
                    x = self.attention(f"up_blocks_{i}/attentions_{j}", x)
            if i < last and f"up_blocks_{i}/upsamplers_0/conv1/kernel" in self.params:
                x = self.resnet(f"up_blocks_{i}/upsamplers_0", x, temb)
            elif i < last:
                x = self.conv(f"up_blocks_{i}/upsamplers_0/conv", x.repeat(2, axis=1).repeat(2, axis=2))
        assert not skips
        x = self.conv("conv_out", self.silu(self.norm("conv_norm_out", x)))
        out = np.zeros((b, height, width, c.out_channels))
        for i in range(p):
            for j in range(p):
                k = (i * p + j) * c.out_channels
                out[:, i::p, j::p] = x[..., k : k + c.out_channels]
        return out / t[:, None, None, None] if c.time_embedding_type == "fourier" else out


def _inputs(config, batch):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((batch, config.sample_size, config.sample_size, config.in_channels)).astype(np.float32)
    return x, rng.integers(0, 1000, batch), rng.standard_normal((batch, config.embedding_dim)).astype(np.float32)


@pytest.fixture(scope="module")
def apply():
    """The compiled network: one program for each configuration and shape."""
    return jax.jit(
        lambda config, params, x, t, c: unet.UNet2D(config).apply({"params": params}, x, t, c), static_argnums=0
    )


def test_the_network_is_the_transcription_with_every_kind_of_layer(apply):
    params = tiny.random_params()
    x, t, c = _inputs(tiny.NETWORK, 3)
    expected = Reference(tiny.NETWORK, params)(x, t, c)
    assert expected.std() > 0.1
    np.testing.assert_allclose(apply(tiny.NETWORK, params, x, t, c), expected, atol=2e-4)


def test_the_network_is_the_transcription_with_every_other_option(apply):
    params = tiny.random_params(OTHER)
    x, t, _ = _inputs(OTHER, 3)
    out = apply(OTHER, params, x, t, None)
    assert out.shape == (3, 8, 8, 1)
    np.testing.assert_allclose(out, Reference(OTHER, params)(x, t), atol=2e-4)


def test_the_network_is_the_transcription_with_residual_resampling_and_modulation(apply):
    params = tiny.random_params(MODULATED)
    # Attention in the middle has no norm here, and as many channels as whole heads fit.
    assert set(params["mid_block"]["attentions_0"]) == {"to_q", "to_k", "to_v", "to_out_0"}
    assert params["mid_block"]["attentions_0"]["to_q"]["kernel"].shape == (6, 4)
    x, _, c = _inputs(MODULATED, 3)
    t = np.asarray([1, 20, 300])
    expected = Reference(MODULATED, params)(x, t, c) * t[:, None, None, None]
    out = apply(MODULATED, params, x, t, c) * t[:, None, None, None]
    assert (expected.std(axis=(1, 2, 3)) > 0.1).all()
    np.testing.assert_allclose(out, expected, atol=2e-4)


@pytest.mark.parametrize("network", [tiny.NETWORK, MODULATED, dataclasses.replace(OTHER, remat=True)])
def test_each_residual_block_has_a_class_embedding_of_its_own(apply, network):
    # Catches: a block left out, the order of two, a resampler that sees another block's, the last for all.
    params = tiny.random_params(network)
    blocks_, reference = unet.residual_blocks(network), Reference(network, params)
    x, t, c = _inputs(network, 2)
    t = np.asarray([1, 20])  # the Fourier kind has no zero, and divides by it
    rows = c[:, None] + np.random.default_rng(5).standard_normal((2, len(blocks_), c.shape[1])).astype(np.float32)
    scale = t[:, None, None, None] if network.time_embedding_type == "fourier" else 1.0
    out = scale * apply(network, params, x, t, rows)
    np.testing.assert_allclose(out, scale * reference(x, t, rows), atol=2e-4)
    assert blocks_ == tuple(reference.blocks)
    # The same row for all is one embedding for all.
    alike = np.repeat(c[:, None], len(blocks_), axis=1)
    shared = scale * apply(network, params, x, t, c)
    np.testing.assert_allclose(scale * apply(network, params, x, t, alike), shared, atol=1e-5)
    assert np.abs(out - shared).max() > 0.05


def test_a_picture_does_not_see_the_rest_of_its_batch(apply):
    params = tiny.random_params()
    x, t, c = _inputs(tiny.NETWORK, 3)
    whole = apply(tiny.NETWORK, params, x, t, c)
    x_other, c_other = np.concatenate([x[:1], 5.0 * x[1:]]), np.concatenate([c[:1], -c[1:]])
    changed = apply(tiny.NETWORK, params, x_other, np.asarray([t[0], 1, 2]), c_other)
    np.testing.assert_allclose(changed[0], whole[0], atol=1e-5)
    assert np.abs(np.asarray(changed[1] - whole[1])).max() > 0.01


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32(apply):
    params = tiny.random_params()
    x, t, c = _inputs(tiny.NETWORK, 3)
    half = dataclasses.replace(tiny.NETWORK, dtype="bfloat16")
    exact, rounded = apply(tiny.NETWORK, params, x, t, c), apply(half, params, x, t, c)
    assert rounded.dtype == jnp.float32
    assert 1e-4 < np.sqrt(np.mean(np.square(rounded - exact))) / np.std(exact) < 0.1
    shapes = jax.eval_shape(lambda key: denoiser.init(half, key), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def _types(jaxpr, found):
    """The types that each primitive of a program puts out, by the primitive's name."""
    for equation in jaxpr.eqns:
        found.setdefault(equation.primitive.name, set()).update(str(out.aval.dtype) for out in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            _types(inner, found)
    return found


def test_norms_and_softmax_are_computed_in_float32_among_convolutions_in_bfloat16():
    half = dataclasses.replace(tiny.NETWORK, dtype="bfloat16")
    params = jax.eval_shape(lambda key: denoiser.init(half, key), jax.random.key(0))
    x, t, c = _inputs(half, 3)
    program = jax.make_jaxpr(lambda params: unet.UNet2D(half).apply({"params": params}, x, t, c))(params)
    found = _types(program.jaxpr, {})
    assert found["conv_general_dilated"] == {"bfloat16"}
    # The norms' square roots; the softmax's exponentials.
    assert found["rsqrt"] == found["exp"] == {"float32"}


def _layers(shapes):
    paths = flax.traverse_util.flatten_dict(shapes, sep="/")
    return {path.rpartition("/")[0] for path in paths}


def test_every_layer_has_the_name_that_diffusers_gives_it():
    def resnet(path, shortcut):
        names = ["norm1", "conv1", "time_emb_proj", "norm2", "conv2"] + ["conv_shortcut"] * shortcut
        return [f"{path}/{name}" for name in names]

    def attention(path):
        return [f"{path}/{name}" for name in ("group_norm", "to_q", "to_k", "to_v", "to_out_0")]

    expected = ["conv_in", "conv_norm_out", "conv_out", "time_embedding/linear_1", "time_embedding/linear_2"]
    expected += ["class_embedding"]
    expected += [*resnet("down_blocks_0/resnets_0", False), "down_blocks_0/downsamplers_0/conv"]
    expected += [*resnet("down_blocks_1/resnets_0", True), *attention("down_blocks_1/attentions_0")]
    expected += [*resnet("mid_block/resnets_0", False), *resnet("mid_block/resnets_1", False)]
    expected += attention("mid_block/attentions_0")
    for j in range(2):
        expected += [*resnet(f"up_blocks_0/resnets_{j}", True), *attention(f"up_blocks_0/attentions_{j}")]
        expected += resnet(f"up_blocks_1/resnets_{j}", True)
    expected += ["up_blocks_0/upsamplers_0/conv"]
    assert _layers(jax.eval_shape(lambda key: denoiser.init(tiny.NETWORK, key), jax.random.key(0))) == set(expected)


def test_the_number_of_parameters_is_the_one_counted_by_hand():
    def conv(i, o):
        return 9 * i * o + o

    def dense(i, o):
        return i * o + o

    def resnet(i, o):
        shortcut = dense(i, o) if i != o else 0
        return 2 * i + conv(i, o) + dense(32, o) + 2 * o + conv(o, o) + shortcut

    def attention(c):
        return 2 * c + 4 * dense(c, c)

    counts = {
        "time_embedding": dense(8, 32) + dense(32, 32),
        "class_embedding": 4 * 32,
        "conv_in": conv(3 * 4, 8),
        "down_blocks_0": resnet(8, 8) + conv(8, 8),
        "down_blocks_1": resnet(8, 16) + attention(16),
        "mid_block": 2 * resnet(16, 16) + attention(16),
        # Skips, last to first: 16 and 8 (the downsampler's), then 8 and 8 (conv_in's).
        "up_blocks_0": resnet(16 + 16, 16) + resnet(16 + 8, 16) + 2 * attention(16) + conv(16, 16),
        "up_blocks_1": resnet(16 + 8, 8) + resnet(8 + 8, 8),
        "conv_norm_out": 2 * 8,
        "conv_out": conv(8, 3 * 4),
    }
    shapes = jax.eval_shape(lambda key: denoiser.init(tiny.NETWORK, key), jax.random.key(0))
    assert {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in shapes.items()} == counts


def test_space_to_depth_folds_a_patch_into_channels_and_back():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    folded = unet.space_to_depth(jnp.asarray(x), 2)
    assert folded.shape == (2, 2, 3, 12)
    # The four pixels of one patch, row by row, each with its three colours.
    expected = np.concatenate([x[1, 2, 4], x[1, 2, 5], x[1, 3, 4], x[1, 3, 5]])
    np.testing.assert_array_equal(folded[1, 1, 2], expected)
    np.testing.assert_array_equal(unet.depth_to_space(folded, 2), x)
    np.testing.assert_array_equal(unet.space_to_depth(jnp.asarray(x), 1), x)
    np.testing.assert_array_equal(unet.depth_to_space(jnp.asarray(x), 1), x)


@pytest.mark.parametrize(("flip", "shift"), [(True, 0), (False, 1)])
def test_time_embedding_is_the_formula(flip, shift):
    t = np.asarray([0, 1, 37, 999])
    embedding = unet.time_embedding(jnp.asarray(t), 8, flip, shift)
    expected = np.zeros((4, 8))
    for row, time in enumerate(t):
        for k in range(4):
            angle = time * np.exp(-np.log(10000.0) * k / (4 - shift))
            sin, cos = (k + 4, k) if flip else (k, k + 4)
            expected[row, sin], expected[row, cos] = np.sin(angle), np.cos(angle)
    np.testing.assert_allclose(embedding, expected, atol=1e-4)


def test_a_time_embedding_of_odd_width_ends_in_a_zero():
    t = jnp.asarray([5, 700])
    even, odd = unet.time_embedding(t, 6, True, 0), unet.time_embedding(t, 7, True, 0)
    np.testing.assert_array_equal(odd, np.pad(even, ((0, 0), (0, 1))))


def test_fourier_embedding_is_the_formula():
    embedding = unet.fourier_embedding(jnp.asarray([1.0, 20.0]), jnp.asarray([0.5, -2.0, 3.0]))
    angles = 2 * np.pi * np.log([[1.0], [20.0]]) * [0.5, -2.0, 3.0]
    np.testing.assert_allclose(embedding, np.concatenate([np.sin(angles), np.cos(angles)], axis=1), atol=1e-5)


def test_the_frequencies_of_a_fourier_embedding_are_not_learnt():
    module = unet.TimeProjection(MODULATED)
    t = jnp.asarray([3.0])
    params = {"weight": jnp.linspace(-1.0, 1.0, 6)}
    gradient = jax.grad(lambda p: jnp.sum(module.apply({"params": p}, t)))(params)
    np.testing.assert_array_equal(gradient["weight"], np.zeros(6))


def test_halve_averages_and_double_repeats():
    x = jnp.arange(8.0).reshape(1, 2, 4, 1)
    np.testing.assert_array_equal(blocks.halve(x)[0, :, :, 0], [[2.5, 4.5]])
    doubled = np.asarray(blocks.double(x))[0, :, :, 0]
    assert doubled.shape == (4, 8)
    np.testing.assert_array_equal(doubled[1], [0, 0, 1, 1, 2, 2, 3, 3])
    np.testing.assert_array_equal(doubled[2], [4, 4, 5, 5, 6, 6, 7, 7])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"down_block_types": ("DownBlock2D", "AttnDwonBlock2D")},
            "has 'AttnDwonBlock2D', which cdisc does not have: it has DownBlock2D, AttnDown",
        ),
        ({"up_block_types": ("SkipUpBlock2D", "UpBlock2D")}, "up_block_types has 'SkipUpBlock2D'"),
        ({"norm_num_groups": 3}, "norm_num_groups is 3, which does not divide the 64 channels of level 0"),
        ({"attention_head_dim": -8}, "attention_head_dim is -8: use whole numbers from 1 on"),
        ({"sample_size": 6, "patch_size": 2}, "sample_size is 6: these levels and patches need a multiple of 4"),
    ],
)
def test_a_network_that_cannot_be_is_refused_before_anything_is_computed(options, message):
    with pytest.raises(ValueError, match=message):
        unet.UNetConfig(**options)


def test_the_width_of_an_embedding_is_four_times_the_first_level():
    assert tiny.NETWORK.embedding_dim == 32
    assert unet.UNetConfig(block_out_channels=(128, 256)).embedding_dim == 512


def test_attention_lets_every_pixel_attend_to_all_of_its_picture_in_each_head():
    module = blocks.Attention(head_dim=4, norm_num_groups=2, norm_eps=1e-5, dtype=jnp.float32)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 2, 8)).astype(np.float32)
    shapes = jax.eval_shape(lambda key: module.init(key, jnp.asarray(x)), jax.random.key(0))["params"]
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)
    config = unet.UNetConfig(attention_head_dim=4, norm_num_groups=2)
    expected = Reference(config, {"attention": params}).attention("attention", x.astype(np.float64))
    np.testing.assert_allclose(module.apply({"params": params}, x), expected, rtol=1e-3, atol=1e-3)


def test_the_network_begins_at_zero(apply):
    """Its last convolution starts at zero, and with it the loss at the power of the noise."""
    params = denoiser.init(tiny.NETWORK, jax.random.key(0))
    x, t, c = _inputs(tiny.NETWORK, 3)
    np.testing.assert_array_equal(apply(tiny.NETWORK, params, x, t, c), np.zeros_like(x))
    for path in ("down_blocks_0/resnets_0/conv2", "mid_block/attentions_0/to_out_0", "conv_out"):
        assert not np.any(flax.traverse_util.flatten_dict(params, sep="/")[f"{path}/kernel"])


def test_a_network_for_so_many_classes_of_pictures():
    # Catches: no row for the null class, a table of another length, a network without a table or of another shape.
    for given in (None, 4):
        network = dataclasses.replace(tiny.NETWORK, num_class_embeds=given)
        assert network.for_classes(3, (8, 8, 3), "these") == tiny.NETWORK
    for changes, classes, shape, sentence in (
        ({}, 4, (8, 8, 3), "num_class_embeds is 4, but the split trains 4: set it to 5, one row for the null class"),
        ({}, 2, (8, 8, 3), "num_class_embeds is 4, but the split trains 2: set it to 3"),
        ({}, 3, (8, 8, 1), "are for pictures of 8x8x3, and those of these are 8x8x1"),
        ({"class_embed_type": "identity"}, 3, (8, 8, 3), "class_embed_type is 'identity': a run needs a table, None"),
    ):
        with pytest.raises(ValueError, match=sentence):
            dataclasses.replace(tiny.NETWORK, **changes).for_classes(classes, shape, "these")
