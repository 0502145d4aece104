"""One run: its configuration, checked before work begins, and what all stages share."""

import contextlib
import dataclasses
import json
import pathlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from cdisc import checkpoints, console, hosts, parallel, signals, watch
from cdisc import config as config_lib
from cdisc.data import Dataset, avatars, celeba, colormnist, compositions, folder, pictures, planar
from cdisc.data import queries as queries_data
from cdisc.diffusion import schedule as schedule_lib
from cdisc.discovery import concepts
from cdisc.errors import UserError
from cdisc.learning.adapt import AdaptOptions
from cdisc.learning.pretrain import PretrainOptions
from cdisc.networks import backbone as backbone_lib
from cdisc.networks import interop
from cdisc.networks.unet import UNetConfig

STAGES = ("pretrain", "discover", "adapt", "evaluate", "report")

_SHOWN_LATE = 90.0
"""Seconds to wait for what another host has written: NFS keeps for a minute that a file was not there."""

_COUNTS = (
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
"""What must be at least one, where a configuration has it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Query:
    """One picture to compose, and what is known of it.

    Attributes:
      name: what it is called in results and report.
      image: (*shape) float32.
      composition: value indices, one for each factor; None if nobody said.
      source: where it comes from.
    """

    name: str
    image: np.ndarray
    composition: tuple[int, ...] | None
    source: str


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


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What all stages share.

    Attributes:
      config: the whole configuration.
      workdir: where the stages leave their results.
      dataset: the pictures.
      scheduler: the forward process, and what the network predicts, as diffusers has them.
      schedule: the same forward process by its numbers.
      network: the U-Net's options; None where the score is exact.
      backbone: the model as functions of its parameters.
      queries: the pictures to compose.
      profile: a folder for traces of a few steps; None traces nothing.
    """

    config: ml_collections.ConfigDict
    workdir: pathlib.Path
    dataset: Dataset
    scheduler: interop.SchedulerConfig
    schedule: schedule_lib.Schedule
    network: UNetConfig | None
    backbone: backbone_lib.Backbone
    queries: tuple[Query, ...]
    profile: pathlib.Path | None = None

    def key(self, stage: str, query: Query | None = None) -> jax.Array:
        """The key of a stage, or of one query in it; a query's follows from its pixels, not from its place."""
        seed = self.config.pretrain.seed if stage == "pretrain" else self.config.seed
        key = jax.random.fold_in(jax.random.key(seed), STAGES.index(stage))
        return key if query is None else jax.random.fold_in(key, zlib.crc32(query.image.tobytes()))

    def path(self, *parts: str) -> pathlib.Path:
        """A path in the workdir."""
        return self.workdir.joinpath(*parts)

    def trace_folder(self, stage: str) -> pathlib.Path | None:
        """Where the traces of a stage go; None where nothing is traced."""
        return None if self.profile is None else self.profile / stage


def prepare(config: ml_collections.ConfigDict, workdir: pathlib.Path, query_paths: Sequence[str]) -> Run:
    """Checks everything that can be checked before work begins; the workdir is not touched.

    Raises:
      UserError: for anything in the configuration or the queries that cannot be used.
    """
    loaders = {
        "colormnist": colormnist.load,
        "avatars": avatars.load,
        "celeba": celeba.load,
        "planar": planar.load,
        "folder": folder.load,
    }
    if config.data.name not in (*loaders, "queries"):
        raise UserError(f"config.data.name is {config.data.name!r}: use one of {', '.join(loaders)}, queries.")
    kind = config.network.kind
    if kind not in ("unet", "exact", "diffusers"):
        raise UserError(f"config.network.kind is {kind!r}: use 'unet', 'exact' or 'diffusers'.")
    if (config.data.name == "queries") != (kind == "diffusers"):
        raise UserError(
            f"config.data.name is {config.data.name!r} and config.network.kind is {kind!r}: 'queries' and 'diffusers' "
            "go together, as in configs/pretrained.py."
        )
    network: UNetConfig | None = None
    if kind == "diffusers":
        network, scheduler = pretrained_options(config)
        shape = (network.sample_size, network.sample_size, network.in_channels)
        dataset = queries_data.load(pathlib.Path(config.network.path).resolve().name, shape)
    else:
        with hosts.first_alone():  # some data are made once and kept
            dataset = loaders[config.data.name](config.data)
        scheduler = scheduler_of(config)
        if kind == "unet":
            network = network_options(config, len(dataset.split.trained))
            pretrain_options(config)
    schedule = scheduler.schedule()
    if network is None:
        backbone = backbone_lib.mixture(schedule)
    else:
        backbone = backbone_lib.unet(network, schedule, scheduler.prediction_type)
    discovery_options(config, schedule)
    level_options(config)
    config_lib.options(GuidanceOptions, config.guidance, "guidance")
    config_lib.options(GuidanceOptions, config.adapt.guidance, "adapt.guidance")
    check_counts(config, schedule)
    for name, method in method_options(config).items():
        if method.level not in config.adapt.levels:
            hint = config_lib.nearest(method.level, config.adapt.levels)
            raise UserError(f"config.evaluate.methods.{name}.level names no level: {method.level!r}{hint}")
    queries = own_queries(query_paths, dataset.shape) if query_paths else held_out_queries(config, dataset)
    for composition in dict.fromkeys(query.composition for query in queries):
        if composition is not None:
            # Said now, and not when everything else is done.
            dataset.references(composition, config.evaluate.references + config.evaluate.samples)
    return Run(config, workdir, dataset, scheduler, schedule, network, backbone, queries)


@contextlib.contextmanager
def opened(config: ml_collections.ConfigDict, workdir: pathlib.Path, query_paths: Sequence[str]) -> Iterator[Run]:
    """What `prepare` gives, in a workdir that is this process's alone and bound to this configuration and its queries.

    Raises:
      UserError: as `prepare`, and for a workdir that cannot be written, is in use, or was made with others.
    """
    this = prepare(config, workdir, query_paths)
    pictures_found = config_lib.digest([zlib.crc32(query.image.tobytes()) for query in this.queries])
    hosts.require_alike(data=this.dataset.fingerprint[:12], queries=pictures_found[:12])
    checkpoints.writable(workdir)
    with checkpoints.locked(workdir) if hosts.first() else contextlib.nullcontext():
        bind(workdir, config, this.queries)
        yield this


def scheduler_of(config: ml_collections.ConfigDict) -> interop.SchedulerConfig:
    """The forward process of `config.diffusion`, what a network predicts there, and where samplers clip.

    Raises:
      UserError: for a process or a prediction type that there is not.
    """
    settings = config.diffusion
    return interop.SchedulerConfig(
        num_train_timesteps=settings.num_timesteps,
        beta_start=settings.beta_start,
        beta_end=settings.beta_end,
        prediction_type=settings.get("prediction_type", "epsilon"),  # an exact score's configuration has none
        clip=config.sampling.clip,
    )


def network_options(config: ml_collections.ConfigDict, classes: int) -> UNetConfig:
    """`config.network` as options of a network for `classes` trained classes; a table of None has a row for each.

    Raises:
      UserError: for a network that cannot be trained on them.
    """
    network = config_lib.options(UNetConfig, config.network, "network", ignore=("kind",))
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


def pretrained_options(config: ml_collections.ConfigDict) -> tuple[UNetConfig, interop.SchedulerConfig]:
    """The options of the network in the folder `config.network.path`.

    Raises:
      UserError: for a network, or a level of adaptation, that a run without any data but queries has no use for.
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
    for name, level in level_options(config).items():
        field = f"config.adapt.levels.{name}"
        if rows in (None, 1) and not level.after and level.start == "top1":
            raise UserError(f"{field}.start is 'top1', and {folder} has no class to start at: set it to 'normal'.")
        if rows in (None, 1) and level.space == "span":
            raise UserError(f"{field}.space is 'span', and {folder} has no classes to span one: set it to 'free'.")
        if level.prior_weight > 0:
            raise UserError(
                f"{field}.prior_weight is {level.prior_weight}, and there are no pictures for it: set it to 0."
            )
    return network, scheduler


def pretrain_options(config: ml_collections.ConfigDict) -> PretrainOptions:
    """`config.pretrain` as options, the intervals beside them checked.

    Raises:
      UserError: for values that cannot be used.
    """
    config_lib.require_known("config.pretrain.result", config.pretrain.get("result"), ("last", "best"))
    for name, least in (("save_every", 1), ("samples_every", 0)):
        value = config.pretrain.get(name)
        if value is None or value < least:
            raise UserError(f"config.pretrain.{name} is {value}: use a whole number from {least} on.")
    ignore = ("seed", "from_scratch", "bundle", "save_every", "samples_every", "result", "restore")
    return config_lib.options(PretrainOptions, config.pretrain, "pretrain", ignore)


def discovery_options(config: ml_collections.ConfigDict, schedule: schedule_lib.Schedule) -> concepts.DiscoveryOptions:
    """`config.discover` as options, its timesteps checked against the schedule."""
    options = config_lib.options(concepts.DiscoveryOptions, config.discover, "discover")
    for name in ("timesteps", "hierarchy"):
        outside = [t for t in getattr(options, name) if not 1 <= t <= schedule.num_timesteps]
        if outside:
            raise UserError(f"config.discover.{name} has {outside[0]}: each must be in 1..{schedule.num_timesteps}.")
    if options.num_experts > options.capacity:
        raise UserError(
            f"config.discover.num_experts is {options.num_experts}, more than the pool holds (capacity "
            f"{options.capacity}): lower the one or raise the other."
        )
    return options


def check_counts(config: ml_collections.ConfigDict, schedule: schedule_lib.Schedule) -> None:
    """Checks the counts that belong to no options.

    Raises:
      UserError: for one that no stage could work with.
    """
    values = config_lib.flatten(config.to_dict())  # some configurations have no use for some of them
    config_lib.require_positive(**{f"config.{name}": values.get(name) for name in _COUNTS})
    if config.sampling.num_steps > schedule.num_timesteps:
        raise UserError(
            f"config.sampling.num_steps is {config.sampling.num_steps}: the schedule has {schedule.num_timesteps} "
            "timesteps, so use at most as many."
        )
    references, k = values.get("evaluate.references"), values.get("evaluate.k")
    if references is not None and k is not None and references <= k:
        raise UserError(
            f"config.evaluate.references is {references}: precision and recall look for {k} neighbours of each "
            f"(config.evaluate.k), so use more than {k}."
        )


def level_options(config: ml_collections.ConfigDict) -> dict[str, AdaptOptions]:
    """`config.adapt.levels` as options, each level behind the one that it goes on from.

    Raises:
      UserError: for a level that cannot be fitted.
    """
    levels = config.adapt.levels.items()
    waiting = {name: config_lib.options(AdaptOptions, level, f"adapt.levels.{name}") for name, level in levels}
    for name, options in waiting.items():
        field = f"config.adapt.levels.{name}"
        counts = ("steps", "candidates", "batch_size")
        config_lib.require_positive(**{f"{field}.{count}": getattr(options, count) for count in counts})
        if options.candidates > 1 and (options.after or options.start != "top1"):
            raise UserError(f"{field}.candidates is {options.candidates}: only a level that starts at 'top1' has some.")
        if options.after and options.after not in waiting:
            hint = config_lib.nearest(options.after, waiting)
            raise UserError(f"{field}.after names no level: {options.after!r}{hint}")
        if options.after and options.space != "free":
            raise UserError(f"{field}.space is {options.space!r}: a level after another one learns a 'free' embedding.")
    ordered: dict[str, AdaptOptions] = {}
    while waiting:
        ready = [name for name, options in waiting.items() if options.after in ("", *ordered)]
        if not ready:
            raise UserError(f"config.adapt.levels: {' and '.join(waiting)} wait for one another; mend their after.")
        ordered |= {name: waiting.pop(name) for name in ready}
    return ordered


def method_options(config: ml_collections.ConfigDict) -> dict[str, MethodOptions]:
    """`config.evaluate.methods` as options."""
    chosen = config.evaluate.methods.items()
    return {name: config_lib.options(MethodOptions, method, f"evaluate.methods.{name}") for name, method in chosen}


def held_out_queries(config: ml_collections.ConfigDict, dataset: Dataset) -> tuple[Query, ...]:
    """`num_queries` query pictures of held-out compositions: each once in an order drawn by the seed, then again."""
    held_out = dataset.split.held_out
    if not held_out:
        raise UserError("this configuration has no pictures of its own: give --query=PICTURE.")
    count = config.evaluate.num_queries
    if count < 1:
        raise UserError(f"config.evaluate.num_queries is {count}: use a whole number from 1 on.")
    order = np.random.default_rng(config.seed).permutation(len(held_out))
    taken = [  # each composition's pictures at once: for some data, every other number of them is compiled anew
        dataset.queries(held_out[j], -(-(count - place) // len(order))) for place, j in enumerate(order[:count])
    ]
    queries = []
    for i in range(count):
        turn, place = divmod(i, len(order))
        composition = held_out[order[place]]
        name = compositions.title(dataset.split.factors, composition) + (f" ({turn + 1})" if turn else "")
        image = np.asarray(taken[place][turn])
        queries.append(Query(name, image, tuple(composition), f"{dataset.name}, query part"))
    return tuple(queries)


def own_queries(paths: Sequence[str], shape: tuple[int, ...]) -> tuple[Query, ...]:
    """The person's own pictures, of which nothing else is known."""
    if len(shape) != 3:
        raise UserError("--query gives a picture, and this configuration's data are points: leave --query out.")
    queries = []
    for path in paths:
        image, warning = pictures.read_query(path, shape)
        if warning is not None:
            console.warn(warning)
        queries.append(Query(pathlib.Path(path).name, image, None, path))
    return tuple(queries)


def bind(workdir: pathlib.Path, config: ml_collections.ConfigDict, queries: tuple[Query, ...]) -> None:
    """Writes the configuration to the workdir, or makes sure that it is the one that is there.

    Raises:
      UserError: if the workdir was made with another configuration or other queries.
    """
    path = workdir / "config.json"
    content = {
        "config": json.loads(config_lib.to_json(config)),
        # With their places: results are kept by place, and two pictures may have one name.
        "queries": {
            f"{i:04d} {query.name}": f"{zlib.crc32(query.image.tobytes()):08x}" for i, query in enumerate(queries)
        },
    }
    with hosts.first_alone():
        if hosts.first() and not path.exists():
            checkpoints.write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
    if not path.exists():
        raise UserError(f"{workdir} is not the same folder on all hosts: choose a --workdir that they share.")
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): choose another --workdir.") from error
    free = {f"config.{name}" for name in config_lib.NOT_IN_RESULTS}
    changed = [name for name in config_lib.differences(before, content) if name not in free]
    if changed:
        names = ", ".join(changed[:3]) + (" and others" if len(changed) > 3 else "")
        raise UserError(f"{workdir} was made with another configuration ({names} differ): choose another --workdir.")


def unfinished(stage: str, path: pathlib.Path) -> UserError:
    """The complaint that a stage was not asked for and has left no result."""
    return UserError(f"{path} is not there: add {stage} to --stages.")


def meet(paths: Sequence[pathlib.Path]) -> None:
    """Waits for all processes, and until each of them is shown the checkpoints at `paths`, which they have written.

    Raises:
      UserError: if one is not there.
    """
    hosts.gather()
    checkpoints.require(paths, _SHOWN_LATE if hosts.several() else 0.0)


class Saved(Sequence[Any]):
    """What a stage left for each query, on the host. Read when it is asked for: all of it may not fit in memory."""

    def __init__(self, paths: Sequence[pathlib.Path], like: Any):
        self._paths, self._like = paths, like

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: Any) -> Any:
        return jax.tree.map(np.asarray, checkpoints.restore(self._paths[index], self._like))


def saved_by_query(
    this: Run, stage: str, active: bool, like: Any, at_once: int, work: Callable[[Sequence[int]], Sequence[Any]]
) -> Saved:
    """What a stage leaves for each query; what was not saved before is worked out and saved.

    Args:
      this: the run.
      stage: its name, and its folder's.
      active: whether the stage was asked for; if not, everything must be there.
      like: the structure, shapes and types of one result.
      at_once: how many queries `work` is given at a time.
      work: from indices into `this.queries` to their results.

    Raises:
      UserError: if a result is missing and the stage was not asked for, or cannot be written, or is lost meanwhile.
    """
    paths = [this.path(stage, f"query_{i:04d}") for i in range(len(this.queries))]
    missing = [i for i, path in enumerate(paths) if not checkpoints.exists(path)]
    if missing and not active:
        raise unfinished(stage, paths[missing[0]])
    # Always the same queries side by side: in other company, a query's last bits may be others.
    share = list(parallel.groups(range(len(paths)), at_once))[jax.process_index() :: jax.process_count()]
    batches = [batch for batch in share if not set(batch).isdisjoint(missing)]
    for batch in console.progress(watch.traced(batches, this.trace_folder(stage)), stage, len(batches)):
        signals.obey()
        for i, result in zip(batch, work(batch), strict=True):
            if i in missing:
                checkpoints.save(paths[i], result)
    meet(paths)
    return Saved(paths, like)


def read_seconds(path: pathlib.Path) -> dict[str, float]:
    """Seconds by stage, in the order in which they ran; empty if none has."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {stage: spent["seconds"] for stage, spent in known.items()}
