"""What a configuration costs, before anything of it is allocated: memory, operations, and hours on chips by name.

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

from cdisc.app.config import Config, as_dict
from cdisc.app.model import with_timesteps
from cdisc.diffusion.schedule import Schedule
from cdisc.errors import UserError, about
from cdisc.learning import pretrain
from cdisc.networks import backbone, denoiser
from cdisc.networks.unet import UNetConfig

EFFICIENCY = 0.4
"""The share of a chip's peak rate that a large network reaches; `docs/scaling.md` has its origin and its error."""

_PICTURES_A_CHAIN = 5
"""What discovery keeps of a chain that waits or has ended, as XLA plans it for a CPU."""


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
    """Counts what `fn` costs on any chip, and returns it lowered; `shapes` are trees of `jax.ShapeDtypeStruct`."""
    traced = jax.jit(fn, donate_argnums=donate).trace(*shapes)
    lowered = traced.lower()
    jaxpr = traced.jaxpr.jaxpr
    whole = size_in_bytes([variable.aval for variable in (*jaxpr.invars, *jaxpr.outvars)])
    return Program(flops=lowered.cost_analysis()["flops"], traffic=whole + _traffic(jaxpr)), lowered


def temporaries(lowered: jax.stages.Lowered) -> int:
    """The bytes that the compiler plans for a program besides its arguments and results."""
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
    """The bytes of a tree of shapes."""
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
    """The cost of a step whose batch is shared evenly by `devices`."""
    # For each device, with padding where the batch cannot be divided evenly.
    size = -(-options.batch_size // (devices * options.accumulate))
    options = dataclasses.replace(options, batch_size=size * options.accumulate)
    state = jax.eval_shape(functools.partial(pretrain.init, network, options), jax.random.key(0))
    total = jax.eval_shape(pretrain.zero_total, state.params)
    picture = (network.sample_size, network.sample_size, network.in_channels)

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
    """The cost of one evaluation of the null model on `pictures` pictures; and the program itself, to compile."""
    params = jax.eval_shape(functools.partial(denoiser.init, network), jax.random.key(0))
    picture = (network.sample_size, network.sample_size, network.in_channels)
    x = jax.ShapeDtypeStruct((pictures, *picture), jnp.float32)
    t = jax.ShapeDtypeStruct((pictures,), jnp.int32)
    return account(lambda params, x, t: backbone.null_eps(model, params)(x, t), params, x, t)


def evaluations(config: Config, classes: int | None) -> dict[str, int]:
    """The most evaluations of the network that each stage makes for one query, a picture each.

    A picture in a step of learning counts as three: its gradient takes twice as long as its prediction.

    Args:
      config: the configuration.
      classes: how many classes are trained; None if only the data can tell, and then the query's comparison with them,
        before adaptation, is left out.
    """
    settings, num_steps = config.adapt, config.sampling.num_steps
    adapting = 0 if classes is None else settings.class_draws * classes
    if any(level.pool != "query" for level in settings.levels.values()):
        adapting += settings.pool_size * num_steps
    adapting += sum(level.max_evaluations for level in settings.levels.values())
    sigmas = {config.evaluate.query_only_sigma, *config.evaluate.query_only_sigmas}
    # What is learnt beside the null model, the teacher alone, Top-1 and Top-3 with it, and Query-only at each width.
    a_step = 2 * len(config.evaluate.methods) + 1 + 2 + 4 + len(sigmas)
    return {
        "discover": config.discover.max_evaluations,
        "adapt": adapting,
        "evaluate": config.evaluate.samples * num_steps * a_step,
    }


def pictures_at_once(config: Config, classes: int | None) -> dict[str, int]:
    """How many pictures a device evaluates at once in each stage after training: what its memory grows with.

    They do not depend on the number of queries, chains or samples.

    Args:
      config: the configuration.
      classes: how many classes are trained; None, for unknown, counts as many.
    """
    discovery, batch = config.discover, config.sampling.batch
    learning = [level.pictures for level in config.adapt.levels.values()]
    return {
        "discover": min(discovery.lanes, max(discovery.chains, discovery.capacity)),
        "adapt": max(config.adapt.chunk * max(learning, default=0), batch),
        # A guided sample evaluates the null model and each of its classes; Top-3 has most.
        "evaluate": min(batch, config.evaluate.samples) * (4 if classes is None or classes >= 3 else 2),
    }


def report(config: Config, devices: int) -> str:
    """What `--dry_run` prints.

    Args:
      config: the configuration.
      devices: how many chips share the work.

    Raises:
      UserError: for a configuration without a U-Net, with options that cannot be used, or a count below one.
    """
    if devices < 1:
        raise UserError(f"--device_count is {devices}: use a whole number from 1 on.")
    network, scheduler = config.network, config.scheduler()
    if not isinstance(network, UNetConfig):
        raise UserError(
            "--dry_run needs config.network.kind 'unet', whose options are in the configuration: this one is "
            f"{as_dict(config)['network']['kind']!r}."
        )
    schedule = scheduler.schedule()
    with about("config.network."):
        model = backbone.unet(network, schedule, scheduler.prediction_type)
    config = with_timesteps(config, schedule)
    learning, lanes = config.pretrain, config.discover.lanes
    step = training(network, model, learning, schedule, devices)
    single, evaluated = evaluation(network, model, lanes)
    classes = None if network.num_class_embeds is None else network.num_class_embeds - 1
    counts = evaluations(config, classes)
    bound = f"at most {', '.join(f'{count:,} evaluations to {stage}' for stage, count in counts.items())}"
    if classes is None:
        bound += " without a comparison with the data's classes (config.network.num_class_embeds is None)"
    queries = config.evaluate.num_queries
    # For a derivative, a picture is taken to need as much as in a training step; for a sample, as in an evaluation.
    derivative = step.temporaries / -(-learning.batch_size // (devices * learning.accumulate))
    at_once = pictures_at_once(config, classes)
    of_each = {"discover": derivative, "adapt": derivative, "evaluate": temporaries(evaluated) / lanes}
    later = {stage: 4 * step.parameters + of_each[stage] * pictures for stage, pictures in at_once.items()}
    picture = 4 * network.sample_size**2 * network.in_channels
    later["discover"] += _PICTURES_A_CHAIN * picture * config.discover.chains
    trained = step.kept + step.temporaries
    peak = max(trained, *later.values())
    lines = [
        f"network: {step.parameters:,} parameters in float32, activations in {network.dtype}",
        f"training: {learning.steps:,} steps of {learning.batch_size} pictures in {learning.accumulate} micro-"
        f"batch(es), {step.flops / 1e12:.3g} TFLOP a step",
        f"memory of each of {devices} device(s), compiled for {jax.default_backend()}: {step.kept / 1e9:.2f} GB kept, "
        f"{step.temporaries / 1e9:.2f} GB temporary, {trained / 1e9:.2f} GB at the peak; later, about "
        + ", ".join(f"{later[stage] / 1e9:.2f} GB to {stage} ({at_once[stage]} pictures at once)" for stage in at_once),
        f"a query: {bound}; {single.flops / lanes / 1e9:.3g} GFLOP each",
        f"predicted on {devices} chip(s), at {EFFICIENCY:.0%} of their peak rate:",
        f"{'chip':>10} {'steps/s':>9} {'h to train':>11} {'s a query':>10} {f'h for {queries} queries':>20}  fits",
    ]
    for name, chip in CHIPS.items():
        seconds = step.seconds(chip, network.dtype)
        query = sum(counts.values()) * chip.seconds(single, network.dtype) / lanes
        lines.append(
            f"{name:>10} {1 / seconds:>9.3g} {learning.steps * seconds / 3600:>11.3g} {query:>10.3g} "
            f"{query * queries / devices / 3600:>20.3g}  {'yes' if peak <= chip.memory else 'no'}"
        )
    return "\n".join(lines)
