"""Adapters on the fly against the same adapters merged into the kernels."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from cdisc.diffusion.schedule import linear_beta
from cdisc.networks import backbone, denoiser, lora

X = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
T = jnp.asarray([3, 700])
SCALE = 1.7  # of every adapter here: alpha is SCALE times the rank


# Operation by operation they would be compiled anew for every shape of a kernel.
@functools.partial(jax.jit, static_argnames="rank")
def init(params, key, rank):
    return lora.init(params, key, rank, SCALE * rank)


merge = jax.jit(lora.merge)


@pytest.fixture(scope="module")
def params():
    return tiny.random_params()


@pytest.fixture(scope="module")
def base():
    """The compiled base network, `params -> eps`."""
    return jax.jit(
        lambda params: denoiser.apply(tiny.NETWORK, params, X, T, denoiser.embed(params, jnp.asarray([0, 2])))
    )


def _on_the_fly(network):
    def apply(params, adapter):
        return denoiser.apply(network, params, X, T, denoiser.embed(params, jnp.asarray([0, 2])), adapter)

    return apply


@pytest.fixture(scope="module")
def adapted():
    """The compiled adapted network, `(params, adapter) -> eps`."""
    return jax.jit(_on_the_fly(tiny.NETWORK))


def _random(adapter, seed):
    """The same adapter with numbers everywhere."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32), adapter)


def test_every_dense_and_convolution_kernel_is_adapted(params):
    kernels = lora.kernels(params)
    expected = sum(path[-1].key == "kernel" for path, _ in jax.tree_util.tree_leaves_with_path(params))
    # 2 of time, conv_in, conv_out, 2 strided; 8 residual blocks of 3, of which 5 change width; 4 attentions of 4.
    assert len(kernels) == expected == 2 + 2 + 2 + 8 * 3 + 5 + 4 * 4
    assert {"mid_block/attentions_0/to_q", "down_blocks_0/downsamplers_0/conv", "time_embedding/linear_1"} <= set(
        kernels
    )
    np.testing.assert_array_equal(kernels["conv_in"], params["conv_in"]["kernel"])
    adapter = init(params, jax.random.key(1), 3)
    assert adapter.scale == pytest.approx(SCALE)
    assert set(adapter.factors) == set(kernels)
    for path, kernel in kernels.items():
        assert adapter.factors[path]["a"].shape == (*kernel.shape[:-1], 3)
        assert adapter.factors[path]["b"].shape == (3, kernel.shape[-1])


def test_a_new_adapter_is_uniform_by_fan_in_and_has_zero_b(params):
    adapter = init(params, jax.random.key(1), 8)
    for path, factors in adapter.factors.items():
        assert not np.any(factors["b"]), path
        a = np.asarray(factors["a"])
        fan_in = np.prod(a.shape[:-1])
        assert np.abs(a).max() <= fan_in**-0.5, path
        np.testing.assert_allclose(a.std(), (3 * fan_in) ** -0.5, rtol=5 * np.sqrt(0.2 / a.size), err_msg=path)
    # Layers of one shape are drawn apart.
    q, k = (adapter.factors[f"mid_block/attentions_0/{name}"]["a"] for name in ("to_q", "to_k"))
    assert np.any(np.asarray(q) != np.asarray(k))


def _some(adapter, *paths):
    """The adapter of these layers alone."""
    return adapter.replace(factors={path: adapter.factors[path] for path in paths})


LAYERS = pytest.mark.parametrize(
    ("make", "shape"),
    [
        (functools.partial(nn.Conv, 4, (3, 3), strides=2, padding=((0, 1), (0, 1))), (2, 6, 6, 3)),
        (functools.partial(nn.Conv, 4, (3, 3), strides=2, padding=((1, 1), (1, 1))), (2, 6, 6, 3)),
        (functools.partial(nn.Conv, 4, (1, 1)), (2, 6, 6, 3)),
        (functools.partial(nn.Dense, 4), (2, 5, 3)),
    ],
    ids=["strided", "padded", "pointwise", "dense"],
)


def _layer(make, shape, dtype):
    """A network of one layer: its input, itself and its parameters."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return make(dtype=dtype, name="layer")(x)

    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    shapes = jax.eval_shape(lambda key: Layer().init(key, x), jax.random.key(0))["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), shapes)
    return x, lambda params, x, adapter=None: lora.apply(Layer(), params, adapter, x), params


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@LAYERS
def test_a_new_adapter_changes_no_bit_of_a_layer_nor_its_type(make, shape, dtype):
    """Layer by layer: one compiled program for the whole network may round another way."""
    x, apply, params = _layer(make, shape, dtype)
    adapter = init(params, jax.random.key(1), 2)
    out = apply(params, x)
    assert out.dtype == dtype
    adapted = apply(params, x, adapter)
    assert adapted.dtype == dtype
    np.testing.assert_array_equal(np.asarray(adapted, np.float32), np.asarray(out, np.float32))
    merged = merge(params, adapter)["layer"]
    np.testing.assert_array_equal(merged["kernel"], params["layer"]["kernel"])


@LAYERS
def test_applying_on_the_fly_is_merging_whatever_the_layer_and_its_padding(make, shape):
    x, apply, params = _layer(make, shape, "float32")
    adapter = _random(init(params, jax.random.key(1), 2), 1)
    expected = apply(merge(params, adapter), x)
    assert np.abs(expected - apply(params, x)).max() > 0.1
    np.testing.assert_allclose(apply(params, x, adapter), expected, atol=1e-4)


def test_a_new_adapter_leaves_the_network_as_it_is(params, base, adapted):
    adapter = init(params, jax.random.key(1), 2)
    np.testing.assert_allclose(adapted(params, adapter), base(params), atol=1e-5)
    merged = jax.tree.leaves(merge(params, adapter))
    for leaf, old in zip(merged, jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(leaf, old)


def test_merge_adds_the_scaled_product_to_the_kernels_alone(params):
    adapter = _random(init(params, jax.random.key(1), 2), 0)
    before = jax.tree.map(np.array, params)
    merged = merge(params, _some(adapter, "conv_in", "mid_block/attentions_0/to_q"))
    for path, kernel, old in (
        ("conv_in", merged["conv_in"]["kernel"], before["conv_in"]["kernel"]),
        (
            "mid_block/attentions_0/to_q",
            merged["mid_block"]["attentions_0"]["to_q"]["kernel"],
            before["mid_block"]["attentions_0"]["to_q"]["kernel"],
        ),
    ):
        product = np.einsum("...r,ro->...o", *(np.asarray(adapter.factors[path][name], np.float64) for name in "ab"))
        np.testing.assert_allclose(kernel, old + SCALE * product, rtol=1e-5, atol=1e-6)
        assert np.abs(product).max() > 0.01
    changed = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, new), old in zip(jax.tree_util.tree_leaves_with_path(merged), jax.tree.leaves(before), strict=True)
        if np.any(np.asarray(new) != old)
    ]
    assert changed == ["conv_in/kernel", "mid_block/attentions_0/to_q/kernel"]
    for leaf, old in zip(jax.tree.leaves(params), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(leaf, old)


def test_applying_on_the_fly_is_merging(params, base, adapted):
    adapter = _random(init(params, jax.random.key(1), 2), 1)
    expected = np.asarray(base(merge(params, adapter)))
    assert np.abs(expected - np.asarray(base(params))).max() > 0.1 * expected.std()
    np.testing.assert_allclose(adapted(params, adapter), expected, atol=2e-4 * max(1.0, expected.std()))


def test_each_layer_alone_acts_as_its_merged_kernel(params, base, adapted):
    """So that no layer's adapter is left out of the forward pass, nor covered by a larger neighbour."""
    adapter = _random(init(params, jax.random.key(1), 2), 2)
    unadapted = np.asarray(base(params))
    silent = []
    for path in adapter.factors:
        alone = {
            other: factors if other == path else {"a": factors["a"], "b": jnp.zeros_like(factors["b"])}
            for other, factors in adapter.factors.items()
        }
        alone = adapter.replace(factors=alone)
        out = np.asarray(adapted(params, alone))
        np.testing.assert_allclose(out, base(merge(params, alone)), atol=2e-4, err_msg=path)
        if np.abs(out - unadapted).max() < 1e-3:
            silent.append(path)
    assert silent == []


class Pair(nn.Module):
    """A strided convolution and a dense layer."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="dense")(
            nn.silu(nn.Conv(4, (3, 3), strides=2, padding=((1, 1), (1, 1)), name="conv")(x))
        )


@pytest.fixture(scope="module")
def pair():
    """A network of two layers, `(params, adapter) -> output`, its parameters and three adapters."""
    params = _random(jax.eval_shape(Pair().init, jax.random.key(0), X)["params"], 0)
    adapter = init(params, jax.random.key(1), 2)

    def apply(params, adapter):
        return lora.apply(Pair(), params, adapter, X)

    return jax.jit(apply), params, [_random(adapter, seed) for seed in (4, 5, 6)]


def test_a_layer_without_factors_is_left_alone(pair):
    apply, params, (adapter, *_) = pair
    some = _some(adapter, "dense")
    out = apply(params, some)
    np.testing.assert_allclose(out, apply(merge(params, some), None), atol=1e-5)
    assert np.abs(out - apply(params, adapter)).max() > 0.1


def test_many_adapters_at_once_equal_one_after_the_other(pair):
    apply, params, adapters = pair
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *adapters)
    together = jax.jit(jax.vmap(apply, in_axes=(None, 0)))(params, stacked)
    for row, adapter in zip(together, adapters, strict=True):
        np.testing.assert_allclose(row, apply(params, adapter), atol=1e-5)


def test_one_compiled_function_serves_every_adapter_and_none():
    """An adapter is an argument: none sticks in a compiled program, and none is ignored by one."""
    # Catches: an interceptor around a function that was compiled before.
    params = tiny.random_params(tiny.ONE_LEVEL)
    model = backbone.unet(tiny.ONE_LEVEL, linear_beta(1000))
    embeddings = denoiser.embed(params, jnp.asarray([0, 2]))
    apply = jax.jit(model.apply)
    first, second = (_random(init(params, jax.random.key(1), 2), seed) for seed in (1, 2))
    plain = np.asarray(apply(params, X, T, embeddings))
    outs = {}
    for name, adapter in (("first", first), ("second", second), ("none", None), ("empty", lora.Adapter())):
        outs[name] = np.asarray(apply(params, X, T, embeddings, adapter))
        expected = plain if name in ("none", "empty") else apply(merge(params, adapter), X, T, embeddings)
        np.testing.assert_allclose(outs[name], expected, atol=2e-4 * max(1.0, plain.std()), err_msg=name)
    assert min(np.abs(outs["first"] - plain).max(), np.abs(outs["first"] - outs["second"]).max()) > 0.1 * plain.std()
    # The scale is the adapter's own.
    twice = first.replace(scale=2.0 * first.scale)
    expected = apply(merge(params, twice), X, T, embeddings)
    np.testing.assert_allclose(apply(params, X, T, embeddings, twice), expected, atol=2e-4 * max(1.0, plain.std()))
    assert np.abs(expected - outs["first"]).max() > 0.1 * plain.std()


def test_factors_of_a_layer_that_is_not_there_are_refused(pair):
    apply, params, (adapter, *_) = pair
    other = adapter.replace(factors={"norm": adapter.factors["dense"]})
    for use in (apply, lora.merge):
        with pytest.raises(ValueError, match="factors of norm, a layer that the network does not have"):
            use(params, other)


def test_an_adapter_learns_the_same_where_activations_are_computed_anew():
    params, again = tiny.random_params(tiny.ONE_LEVEL), dataclasses.replace(tiny.ONE_LEVEL, remat=True)
    adapter = _random(init(params, jax.random.key(2), 2), 7)

    def gradient(network):
        apply = _on_the_fly(network)
        return jax.jit(jax.grad(lambda adapter: jnp.sum(jnp.square(apply(params, adapter)))))(adapter)

    gradients = [gradient(network) for network in (tiny.ONE_LEVEL, again)]
    assert gradients[0].factors.keys() == gradients[1].factors.keys() == lora.kernels(params).keys()
    for one, two in zip(*map(jax.tree.leaves, gradients), strict=True):
        assert np.abs(one).max() > 0
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-4 * np.abs(one).max())
