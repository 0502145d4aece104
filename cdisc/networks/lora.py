"""Low-rank adapters on every dense and convolution kernel, as a pure pytree (Hu et al. 2021).

An adapter maps the path of a layer, such as `mid_block/resnets_0/conv1`, to two factors. The adapted kernel is
`W + scale * (a @ b)`, with `a` (..., in, rank) shaped like the kernel and `b` (rank, out): for a convolution, one of
the kernel's own size to `rank` channels followed by a 1x1 one. `b` starts at zero, so a new adapter changes nothing.
"""

import functools
import itertools
import math
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from cdisc.diffusion.parameterization import EpsFn
from cdisc.networks.denoiser import Params

Adapter = dict[str, dict[str, jax.Array]]


def kernels(params: Params) -> dict[str, jax.Array]:
    """The kernel of every dense and convolution layer, by the layer's path."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    return {path.removesuffix("/kernel"): leaf for path, leaf in flat.items() if path.endswith("/kernel")}


def init(params: Params, key: jax.Array, rank: int) -> Adapter:
    """An adapter that changes nothing: `a` uniform in +-1/sqrt(fan in), `b` zero.

    Args:
      params: the network's parameters.
      key: for `a`.
      rank: the inner dimension of every factor pair.
    """
    shapes = {path: kernel.shape for path, kernel in sorted(kernels(params).items())}
    sizes = [math.prod(shape[:-1]) * rank for shape in shapes.values()]
    # One draw for all: XLA takes longer to compile one for each of a network's kernels than to compile the network.
    numbers = jax.random.uniform(key, (sum(sizes),), minval=-1.0, maxval=1.0)
    parts = jnp.split(numbers, list(itertools.accumulate(sizes))[:-1])
    return {
        path: {
            "a": part.reshape(*shape[:-1], rank) * math.prod(shape[:-1]) ** -0.5,
            "b": jnp.zeros((rank, shape[-1])),
        }
        for (path, shape), part in zip(shapes.items(), parts, strict=True)
    }


def merge(params: Params, adapter: Adapter, scale: float) -> Params:
    """Parameters with `scale * (a @ b)` added to every adapted kernel (scale is alpha / rank)."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    for path, factors in adapter.items():
        flat[f"{path}/kernel"] = flat[f"{path}/kernel"] + scale * (factors["a"] @ factors["b"])
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _low_rank(module: nn.Conv | nn.Dense, x: jax.Array, factors: dict[str, jax.Array]) -> jax.Array:
    """The adapter's part of a layer's output, before scaling."""
    # In the layer's own type: a wider one would spread to everything that follows.
    dtype = x.dtype if module.dtype is None else module.dtype
    x, a, b = (array.astype(dtype) for array in (x, factors["a"], factors["b"]))
    if isinstance(module, nn.Dense):
        return (x @ a) @ b
    strides = module.strides if isinstance(module.strides, tuple) else (module.strides or 1,) * 2
    padding: Any = module.padding
    h = jax.lax.conv_general_dilated(x, a, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return h @ b


def _interceptor(adapter: Adapter, scale: float, next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Adds the adapter's part to the output of each layer that has one."""
    out = next_fun(*args, **kwargs)
    factors = adapter.get("/".join(context.module.path))
    if factors is None or context.method_name != "__call__":
        return out
    return out + scale * _low_rank(context.module, args[0], factors)


def adapt(eps_fn: EpsFn, adapter: Adapter, scale: float) -> EpsFn:
    """The eps-function with its network adapted on the fly: the base kernels stay unchanged.

    Equal to the same function of `merge(params, adapter, scale)`; under `vmap` over adapters the base's work is shared.
    """

    def adapted(x: jax.Array, t: jax.Array) -> jax.Array:
        with nn.intercept_methods(functools.partial(_interceptor, adapter, scale)):
            return eps_fn(x, t)

    return adapted
