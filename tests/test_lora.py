"""Adapters on the fly against the same adapters merged into the kernels."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from cdisc.networks import denoiser, lora

X = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
T = jnp.asarray([3, 700])
SCALE = 1.7
# Operation by operation they would be compiled anew for every shape of a kernel.
init = jax.jit(lora.init, static_argnames="rank")
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
        embeddings = denoiser.embed(params, jnp.asarray([0, 2]))
        return lora.adapt(lambda x, t: denoiser.apply(network, params, x, t, embeddings), adapter, SCALE)(X, T)

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
    assert set(adapter) == set(kernels)
    for path, kernel in kernels.items():
        assert adapter[path]["a"].shape == (*kernel.shape[:-1], 3)
        assert adapter[path]["b"].shape == (3, kernel.shape[-1])


def test_a_new_adapter_is_uniform_by_fan_in_and_has_zero_b(params):
    adapter = init(params, jax.random.key(1), 8)
    for path, factors in adapter.items():
        assert not np.any(factors["b"]), path
        a = np.asarray(factors["a"])
        fan_in = np.prod(a.shape[:-1])
        assert np.abs(a).max() <= fan_in**-0.5, path
        np.testing.assert_allclose(a.std(), (3 * fan_in) ** -0.5, rtol=5 * np.sqrt(0.2 / a.size), err_msg=path)
    # Layers of one shape are drawn apart.
    q, k = (adapter[f"mid_block/attentions_0/{name}"]["a"] for name in ("to_q", "to_k"))
    assert np.any(np.asarray(q) != np.asarray(k))


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
    return x, lambda params, x: Layer().apply({"params": params}, x), params


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@LAYERS
def test_a_new_adapter_changes_no_bit_of_a_layer_nor_its_type(make, shape, dtype):
    """Layer by layer: one compiled program for the whole network may round another way."""
    x, apply, params = _layer(make, shape, dtype)
    adapter = init(params, jax.random.key(1), 2)
    out = apply(params, x)
    assert out.dtype == dtype
    adapted = lora.adapt(lambda x, t: apply(params, x), adapter, SCALE)(x, T)
    assert adapted.dtype == dtype
    np.testing.assert_array_equal(np.asarray(adapted, np.float32), np.asarray(out, np.float32))
    merged = merge(params, adapter, SCALE)["layer"]
    np.testing.assert_array_equal(merged["kernel"], params["layer"]["kernel"])


@LAYERS
def test_applying_on_the_fly_is_merging_whatever_the_layer_and_its_padding(make, shape):
    x, apply, params = _layer(make, shape, "float32")
    adapter = _random(init(params, jax.random.key(1), 2), 1)
    expected = apply(merge(params, adapter, SCALE), x)
    assert np.abs(expected - apply(params, x)).max() > 0.1
    np.testing.assert_allclose(lora.adapt(lambda x, t: apply(params, x), adapter, SCALE)(x, T), expected, atol=1e-4)


def test_a_new_adapter_leaves_the_network_as_it_is(params, base, adapted):
    adapter = init(params, jax.random.key(1), 2)
    np.testing.assert_allclose(adapted(params, adapter), base(params), atol=1e-5)
    merged = jax.tree.leaves(merge(params, adapter, SCALE))
    for leaf, old in zip(merged, jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(leaf, old)


def test_merge_adds_the_scaled_product_to_the_kernels_alone(params):
    adapter = _random(init(params, jax.random.key(1), 2), 0)
    before = jax.tree.map(np.array, params)
    merged = merge(params, {path: adapter[path] for path in ("conv_in", "mid_block/attentions_0/to_q")}, SCALE)
    for path, kernel, old in (
        ("conv_in", merged["conv_in"]["kernel"], before["conv_in"]["kernel"]),
        (
            "mid_block/attentions_0/to_q",
            merged["mid_block"]["attentions_0"]["to_q"]["kernel"],
            before["mid_block"]["attentions_0"]["to_q"]["kernel"],
        ),
    ):
        product = np.einsum("...r,ro->...o", *(np.asarray(adapter[path][name], np.float64) for name in "ab"))
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
    expected = np.asarray(base(merge(params, adapter, SCALE)))
    assert np.abs(expected - np.asarray(base(params))).max() > 0.1 * expected.std()
    np.testing.assert_allclose(adapted(params, adapter), expected, atol=2e-4 * max(1.0, expected.std()))


def test_each_layer_alone_acts_as_its_merged_kernel(params, base, adapted):
    """So that no layer's adapter is left out of the forward pass, nor covered by a larger neighbour."""
    adapter = _random(init(params, jax.random.key(1), 2), 2)
    unadapted = np.asarray(base(params))
    silent = []
    for path in adapter:
        alone = {
            other: factors if other == path else {"a": factors["a"], "b": jnp.zeros_like(factors["b"])}
            for other, factors in adapter.items()
        }
        out = np.asarray(adapted(params, alone))
        np.testing.assert_allclose(out, base(merge(params, alone, SCALE)), atol=2e-4, err_msg=path)
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
        return lora.adapt(lambda x, t: Pair().apply({"params": params}, x), adapter, SCALE)(X, T)

    return jax.jit(apply), params, [_random(adapter, seed) for seed in (4, 5, 6)]


def test_a_layer_without_factors_is_left_alone(pair):
    apply, params, (adapter, *_) = pair
    some = {"dense": adapter["dense"]}
    out = apply(params, some)
    np.testing.assert_allclose(out, apply(merge(params, some, SCALE), {}), atol=1e-5)
    assert np.abs(out - apply(params, adapter)).max() > 0.1


def test_many_adapters_at_once_equal_one_after_the_other(pair):
    apply, params, adapters = pair
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *adapters)
    together = jax.jit(jax.vmap(apply, in_axes=(None, 0)))(params, stacked)
    for row, adapter in zip(together, adapters, strict=True):
        np.testing.assert_allclose(row, apply(params, adapter), atol=1e-5)


def test_an_adapter_learns_the_same_where_activations_are_computed_anew():
    params, again = tiny.random_params(tiny.ONE_LEVEL), dataclasses.replace(tiny.ONE_LEVEL, remat=True)
    adapter = _random(init(params, jax.random.key(2), 2), 7)

    def gradient(network):
        apply = _on_the_fly(network)
        return jax.jit(jax.grad(lambda adapter: jnp.sum(jnp.square(apply(params, adapter)))))(adapter)

    gradients = [gradient(network) for network in (tiny.ONE_LEVEL, again)]
    assert gradients[0].keys() == gradients[1].keys() == lora.kernels(params).keys()
    for one, two in zip(*map(jax.tree.leaves, gradients), strict=True):
        assert np.abs(one).max() > 0
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-4 * np.abs(one).max())
