"""What `--dry_run` says of a configuration before anything of it is allocated: memory, operations, hours on chips."""

import math

import jax

from cdisc.app.config import Config, as_dict
from cdisc.errors import UserError, about
from cdisc.evaluation import methods
from cdisc.learning import cost
from cdisc.networks import backbone
from cdisc.networks.unet import UNetConfig

_PICTURES_A_CHAIN = 5
"""What discovery keeps of a chain that waits or has ended, as XLA plans it for a CPU."""


def evaluations(config: Config, classes: int | None) -> dict[str, int]:
    """The most evaluations of the network that each stage makes for one query, a picture each.

    A picture in a step of learning counts as three: its gradient takes twice as long as its prediction.

    Args:
      config: the configuration.
      classes: how many classes are trained; None if only the data can tell, and then the query's comparison with them,
        before adaptation, is left out. So is always that with sums of the classes' parts, which the data's factors
        decide (`composition.of_picture`).
    """
    settings, num_steps = config.adapt, config.sampling.num_steps
    adapting = 0 if classes is None else settings.class_draws * classes
    if any(level.pool != "query" for level in settings.levels.values()):
        adapting += settings.pool_size * num_steps
    adapting += sum(level.max_evaluations for level in settings.levels.values())
    return {
        "discover": config.discover.max_evaluations,
        "adapt": adapting,
        "evaluate": config.evaluate.samples * num_steps * methods.evaluations(config.evaluate),
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
    learning, lanes = config.pretrain, config.discover.lanes
    step = cost.training(network, model, learning, schedule, devices)
    single, evaluated = cost.evaluation(network, model, lanes)
    classes = None if network.num_class_embeds is None else network.num_class_embeds - 1
    counts = evaluations(config, classes)
    bound = f"at most {', '.join(f'{count:,} evaluations to {stage}' for stage, count in counts.items())}"
    if classes is None:
        bound += " without a comparison with the data's classes (config.network.num_class_embeds is None)"
    queries = config.evaluate.num_queries
    # For a derivative, a picture is taken to need as much as in a training step; for a sample, as in an evaluation.
    derivative = step.temporaries / -(-learning.batch_size // (devices * learning.accumulate))
    at_once = pictures_at_once(config, classes)
    of_each = {"discover": derivative, "adapt": derivative, "evaluate": cost.temporaries(evaluated) / lanes}
    later = {stage: 4 * step.parameters + of_each[stage] * pictures for stage, pictures in at_once.items()}
    picture = 4 * math.prod(network.picture_shape)
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
        f"predicted on {devices} chip(s), at {cost.EFFICIENCY:.0%} of their peak rate:",
        f"{'chip':>10} {'steps/s':>9} {'h to train':>11} {'s a query':>10} {f'h for {queries} queries':>20}  fits",
    ]
    for name, chip in cost.CHIPS.items():
        seconds = step.seconds(chip, network.dtype)
        query = sum(counts.values()) * chip.seconds(single, network.dtype) / lanes
        lines.append(
            f"{name:>10} {1 / seconds:>9.3g} {learning.steps * seconds / 3600:>11.3g} {query:>10.3g} "
            f"{query * queries / devices / 3600:>20.3g}  {'yes' if peak <= chip.memory else 'no'}"
        )
    return "\n".join(lines)
