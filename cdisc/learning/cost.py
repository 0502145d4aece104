"""What training and evaluating a network cost, from shapes alone: memory, operations, and seconds on chips by name.

The memory is what XLA's compiler plans for the kind of device that is here. Operations and bytes are those of the
program before it is compiled, and hours follow from a roofline (Williams et al. 2009): the share of its peak rate that
a chip really reaches, or its bandwidth, whichever is slower.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from clu import parameter_overview
from jax.extend.core import jaxprs_in_params

from cdisc.diffusion.schedule import Schedule
from cdisc.learning import pretrain
from cdisc.networks import backbone, denoiser
from cdisc.networks.unet import UNetConfig

EFFICIENCY = 0.4
"""The share of a chip's peak rate that a large network reaches; `docs/scaling.md` has its origin and its error."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """A chip as its maker publishes it.

    Attributes:
      flops: operations a second in dense products, by the type of the activations.
      bandwidth: bytes a second to and from its memory.
      memory: bytes.
      interconnect: bytes a second to and from other chips, both directions together.
    """

    flops: Mapping[str, float]
    bandwidth: float
    memory: float
    interconnect: float

    def seconds(self, program: "Program", dtype: str) -> float:
        """How long the chip takes over a program whose activations are of type `dtype`."""
        return max(program.flops / (EFFICIENCY * self.flops[dtype]), program.traffic / self.bandwidth)


_CHIPS = json.loads(pathlib.Path(__file__).with_name("chips.json").read_text(encoding="utf-8"))
CHIPS = {name: Chip(**chip["rates"]) for name, chip in _CHIPS.items()}
"""By name. A v3-8 or v4-8 has four chips and a v4-32 sixteen, because Google counts two cores in each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """What a program demands of any chip.

    Attributes:
      flops: operations, by XLA's count.
      traffic: bytes that must cross the chip's memory: the program's arguments and results, and those of each of its
        products and convolutions. All else is taken to be fused into these.
    """

    flops: float
    traffic: float


def account(fn: Callable[..., Any], *shapes: Any, donate: tuple[int, ...] = ()) -> tuple[Program, jax.stages.Lowered]:
    """Counts what `fn` costs on any chip, and returns it lowered; `shapes` are trees of `jax.ShapeDtypeStruct`.

    Examples:
      >>> matrix = jax.ShapeDtypeStruct((8, 8), jnp.float32)
      >>> program, lowered = account(jnp.matmul, matrix, matrix)
      >>> program.flops  # 2 times 8 cubed
      1024.0
    """
    traced = jax.jit(fn, donate_argnums=donate).trace(*shapes)
    lowered = traced.lower()
    jaxpr = traced.jaxpr.jaxpr
    whole = size_in_bytes([variable.aval for variable in (*jaxpr.invars, *jaxpr.outvars)])
    return Program(flops=lowered.cost_analysis()["flops"], traffic=whole + _traffic(jaxpr)), lowered


def temporaries(lowered: jax.stages.Lowered) -> int:
    """The bytes that the compiler plans for a program besides its arguments and results.

    Examples:
      >>> program, lowered = account(lambda x: x + 1.0, jax.ShapeDtypeStruct((8,), jnp.float32))
      >>> temporaries(lowered)
      0
    """
    planned = lowered.compile().memory_analysis()
    assert planned is not None  # some backends tell nothing
    return planned.temp_size_in_bytes


def _traffic(jaxpr: Any) -> int:
    """The bytes of the operands and results of all products and convolutions in a program."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            total += size_in_bytes([variable.aval for variable in (*equation.invars, *equation.outvars)])
        total += sum(_traffic(inner) for inner in jaxprs_in_params(equation.params))
    return total


def size_in_bytes(tree: Any) -> int:
    """The bytes of a tree of shapes.

    Examples:
      >>> size_in_bytes(jax.ShapeDtypeStruct((8, 8), jnp.float32))
      256
    """
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """What a training step costs each of the devices that share it.

    Attributes:
      parameters: of the network.
      kept: bytes of the training state, the gradient and the batch.
      temporaries: bytes that a micro-batch needs besides.
      gradient: the program of one micro-batch.
      update: the program that ends a step.
      micro_batches: how often `gradient` runs in a step.
      devices: how many share a batch.
    """

    parameters: int
    kept: int
    temporaries: int
    gradient: Program
    update: Program
    micro_batches: int
    devices: int

    @property
    def flops(self) -> float:
        """Operations of a step, on all devices."""
        return self.devices * (self.micro_batches * self.gradient.flops + self.update.flops)

    def seconds(self, chip: Chip, dtype: str) -> float:
        """How long a step takes; the gradients of several devices are summed in a ring."""
        # Each device sends, and receives, nearly two gradients.
        ring = 2 * 2 * (1 - 1 / self.devices) * 4 * self.parameters / chip.interconnect
        return self.micro_batches * chip.seconds(self.gradient, dtype) + chip.seconds(self.update, dtype) + ring


def training(
    network: UNetConfig, model: backbone.Backbone, options: pretrain.PretrainOptions, schedule: Schedule, devices: int
) -> Training:
    """The cost of a step whose batch is shared evenly by `devices`.

    Examples:
      >>> found = training(config, network, pretrain.PretrainOptions(batch_size=4), schedule, devices=2)
      >>> int(found.parameters), found.devices
      (10675, 2)
    """
    # For each device, with padding where the batch cannot be divided evenly.
    size = -(-options.batch_size // (devices * options.accumulate))
    options = dataclasses.replace(options, batch_size=size * options.accumulate)
    state = jax.eval_shape(functools.partial(pretrain.init, network, options), jax.random.key(0))
    total = jax.eval_shape(pretrain.zero_total, state.params)
    picture = network.picture_shape

    def share(count: int) -> tuple[pretrain.Pictures, pretrain.StepNoise]:
        known = dataclasses.replace(options, batch_size=count, accumulate=1)
        draw = functools.partial(pretrain.draw, shape=picture, options=known, schedule=schedule)
        drawn = jax.eval_shape(draw, state, jax.random.key(0))
        return jax.eval_shape(lambda: (jnp.zeros((count, *picture)), jnp.zeros(count, jnp.int32))), drawn

    add = functools.partial(pretrain.add_gradient, backbone=model, options=options, schedule=schedule)
    mask = jax.ShapeDtypeStruct((size,), jnp.bool_)
    gradient, lowered = account(add, total, state.params, *share(size), mask, donate=(0,))
    update, _ = account(functools.partial(pretrain.update, options=options), state, total)
    return Training(
        parameters=parameter_overview.count_parameters(state.params),
        kept=size_in_bytes((state, total, share(options.batch_size))),
        temporaries=temporaries(lowered),
        gradient=gradient,
        update=update,
        micro_batches=options.accumulate,
        devices=devices,
    )


def evaluation(network: UNetConfig, model: backbone.Backbone, pictures: int) -> tuple[Program, jax.stages.Lowered]:
    """The cost of one evaluation of the null model on `pictures` pictures; and the program itself, to compile.

    Examples:
      >>> program, lowered = evaluation(config, network, pictures=2)
      >>> program.flops > 0
      True
    """
    params = jax.eval_shape(functools.partial(denoiser.init, network), jax.random.key(0))
    picture = network.picture_shape
    x = jax.ShapeDtypeStruct((pictures, *picture), jnp.float32)
    t = jax.ShapeDtypeStruct((pictures,), jnp.int32)
    return account(lambda params, x, t: backbone.null_eps(model, params)(x, t), params, x, t)
