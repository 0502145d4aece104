"""From a configuration to the options of the algorithms, with all checks that do not need its data."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from cdisc.app.config import flatten, parse
from cdisc.diffusion.schedule import Schedule
from cdisc.discovery.concepts import DiscoveryOptions
from cdisc.errors import UserError, about, nearest, require_known, require_positive
from cdisc.learning.adapt import AdaptOptions
from cdisc.learning.pretrain import PretrainOptions
from cdisc.networks import interop
from cdisc.networks.unet import UNetConfig

_COUNTS = (
    "diffusion.num_timesteps",
    "sampling.num_steps",
    "sampling.batch",
    "adapt.pool_size",
    "adapt.prior_size",
    "adapt.class_draws",
    "adapt.chunk",
    "evaluate.samples",
    "evaluate.references",
    "evaluate.k",
    "evaluate.judge.pictures",
    "evaluate.judge.steps",
)
"""Fields that must be at least 1 when present."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidanceOptions:
    """How strongly a teacher guides the null model (`poe.adaptive_weight`).

    Attributes:
      w0: its weight at pure noise.
      w_max: the weight's cap.
      elementwise: whether each element has a weight of its own.
    """

    w0: float
    w_max: float
    elementwise: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """A way to sample a level of adaptation.

    Attributes:
      level: the level's name in `config.adapt.levels`.
      guidance: weight of the new class.
      teacher_weight: `w0` of the teacher beside it; 0 leaves the teacher out.
      teacher_sigma_min: the teacher guides where the noise-to-signal ratio is at least this.
    """

    level: str
    guidance: float
    teacher_weight: float
    teacher_sigma_min: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The options of every stage.

    Attributes:
      training: of a backbone; None where none can be trained.
      discovery: of the modes, the experts and their teacher.
      guidance: of the teacher in the samples that are shown.
      adapt_guidance: of the teacher in the samples that are learnt from.
      levels: of adaptation, in dependency order (`after`).
      methods: the ways to sample them.
    """

    training: PretrainOptions | None
    discovery: DiscoveryOptions
    guidance: GuidanceOptions
    adapt_guidance: GuidanceOptions
    levels: dict[str, AdaptOptions]
    methods: dict[str, MethodOptions]


def read(config: ml_collections.ConfigDict) -> Options:
    """The options of a configuration, with everything checked that needs neither its data nor its schedule.

    Raises:
      UserError: for values that no stage could work with.
    """
    values = flatten(config.to_dict())  # some configurations lack some of them
    with about("config."):
        require_positive(**{name: values.get(name) for name in _COUNTS})
    references, k = values.get("evaluate.references"), values.get("evaluate.k")
    if references is not None and k is not None and references <= k:
        raise UserError(
            f"config.evaluate.references is {references}: precision and recall look for {k} neighbours of each "
            f"(config.evaluate.k), so use more than {k}."
        )
    discovery = parse(DiscoveryOptions, config.discover, "discover")
    if discovery.num_experts > discovery.capacity:
        raise UserError(
            f"config.discover.num_experts is {discovery.num_experts}, more than the pool holds (capacity "
            f"{discovery.capacity}): lower the one or raise the other."
        )
    chosen = config.evaluate.methods.items()
    methods = {name: parse(MethodOptions, method, f"evaluate.methods.{name}") for name, method in chosen}
    for name, method in methods.items():
        if method.level not in config.adapt.levels:
            hint = nearest(method.level, config.adapt.levels)
            raise UserError(f"config.evaluate.methods.{name}.level names no level: {method.level!r}{hint}")
    return Options(
        training=_training(config.pretrain) if config.network.kind == "unet" else None,
        discovery=discovery,
        guidance=parse(GuidanceOptions, config.guidance, "guidance"),
        adapt_guidance=parse(GuidanceOptions, config.adapt.guidance, "adapt.guidance"),
        levels=_levels(config.adapt.levels),
        methods=methods,
    )


def _training(section: Mapping[str, Any]) -> PretrainOptions:
    """`config.pretrain` as options; its intervals, which are not among them, are checked too."""
    with about("config.pretrain."):
        require_known("result", section.get("result"), ("last", "best"))
        for name, least in (("save_every", 1), ("keep", 1), ("samples_every", 0)):
            value = section.get(name)
            if value is None or value < least:
                raise ValueError(f"{name} is {value}: use a whole number from {least} on.")
    ignore = ("seed", "from_scratch", "bundle", "save_every", "keep", "samples_every", "result", "restore")
    return parse(PretrainOptions, section, "pretrain", ignore)


def _levels(section: Mapping[str, Any]) -> dict[str, AdaptOptions]:
    """`config.adapt.levels` as options, in dependency order (`after`)."""
    waiting = {name: parse(AdaptOptions, level, f"adapt.levels.{name}") for name, level in section.items()}
    for name, level in waiting.items():
        with about(f"config.adapt.levels.{name}."):
            if level.after and level.after not in waiting:
                raise ValueError(f"after names no level: {level.after!r}{nearest(level.after, waiting)}")
    ordered: dict[str, AdaptOptions] = {}
    while waiting:
        ready = [name for name, level in waiting.items() if level.after in ("", *ordered)]
        if not ready:
            raise UserError(f"config.adapt.levels: {' and '.join(waiting)} wait for one another; mend their after.")
        ordered |= {name: waiting.pop(name) for name in ready}
    return ordered


def check_timesteps(config: ml_collections.ConfigDict, schedule: Schedule) -> None:
    """Checks that a schedule has the timesteps that a configuration names.

    Raises:
      UserError: if not.
    """
    last, discovery = schedule.num_timesteps, config.discover
    named = {"discover.timesteps": discovery.timesteps, "discover.hierarchy": discovery.hierarchy}
    for name, timesteps in (named | {"sampling.num_steps": (config.sampling.num_steps,)}).items():
        if max(timesteps, default=0) > last:
            raise UserError(
                f"config.{name} has {max(timesteps)}: the schedule has {last} timesteps, so use at most that."
            )


def scheduler_of(config: ml_collections.ConfigDict) -> interop.SchedulerConfig:
    """The forward process of `config.diffusion`, what a network predicts there, and where samplers clip.

    Raises:
      UserError: for a process or a prediction type that does not exist.
    """
    settings = config.diffusion
    with about("config.diffusion."):
        return interop.SchedulerConfig(
            num_train_timesteps=settings.num_timesteps,
            beta_start=settings.beta_start,
            beta_end=settings.beta_end,
            prediction_type=settings.get("prediction_type", "epsilon"),  # an exact score's configuration has none
            clip=config.sampling.clip,
        )


def network_options(config: ml_collections.ConfigDict, classes: int) -> UNetConfig:
    """`config.network` as options of a network for `classes` trained classes; a table of None gets a row for each.

    Raises:
      UserError: for a network that cannot be trained on them.
    """
    network = parse(UNetConfig, config.network, "network", ignore=("kind",))
    if network.num_class_embeds is None:
        network = dataclasses.replace(network, num_class_embeds=classes + 1)
    if network.num_class_embeds != classes + 1:
        raise UserError(
            f"config.network.num_class_embeds is {network.num_class_embeds}, but the split trains {classes}: "
            f"set it to {classes + 1}, one row for the null class."
        )
    if network.class_embed_type is not None:
        raise UserError(f"config.network.class_embed_type is {network.class_embed_type!r}: a run needs a table, None.")
    return network


def pretrained_options(
    config: ml_collections.ConfigDict, levels: Mapping[str, AdaptOptions]
) -> tuple[UNetConfig, interop.SchedulerConfig]:
    """The options of the network in the folder `config.network.path`.

    Raises:
      UserError: for a network, or a level of adaptation, that a run whose only data are queries cannot use.
    """
    folder, null = config.network.path, config.network.null_class
    if not folder:
        raise UserError("config.network.path is empty: give --config.network.path=FOLDER, one that diffusers saved.")
    network, scheduler = interop.load_options(folder)
    if network.in_channels not in (1, 3) or network.out_channels != network.in_channels:
        raise UserError(
            f"{folder} maps {network.in_channels} channels to {network.out_channels}: a query is a picture of 1 or 3 "
            "channels, so use a network that maps these to as many."
        )
    if network.center_input_sample:
        raise UserError(f"{folder} has center_input_sample: queries are in [-1, 1], so use a network without it.")
    if network.class_embed_type is not None:
        raise UserError(f"{folder} has class_embed_type {network.class_embed_type!r}: a run needs a table, null.")
    rows = network.num_class_embeds
    if rows is None and null is not None:
        raise UserError(f"{folder} has no classes: leave config.network.null_class out.")
    if rows is not None and (null is None or not 0 <= null < rows):
        raise UserError(
            f"{folder} has {rows} classes, and config.network.null_class is {null}: name the row, 0 to {rows - 1}, "
            "that was trained to stand for no class; without one there is no unconditional density to climb."
        )
    for name, level in levels.items():
        with about(f"config.adapt.levels.{name}."):
            if rows in (None, 1) and not level.after and level.start == "top1":
                raise ValueError(f"start is 'top1', and {folder} has no class to start at: set it to 'normal'.")
            if rows in (None, 1) and level.space == "span":
                raise ValueError(f"space is 'span', and {folder} has no classes to span one: set it to 'free'.")
            if level.prior_weight > 0:
                raise ValueError(
                    f"prior_weight is {level.prior_weight}, and there are no pictures for it: set it to 0."
                )
    return network, scheduler
