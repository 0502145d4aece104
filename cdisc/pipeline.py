"""The order of the stages: pretrain, discover, adapt, evaluate, report. Nothing else knows it.

A stage is a function of the run and of what earlier stages left. It writes each finished piece to the workdir at once
and takes it from there the next time, so a run that was stopped, however, goes on where it was.
"""

import dataclasses
import functools
import importlib.metadata
import json
import pathlib
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import cdisc
from cdisc import checkpoints, console, parallel
from cdisc import config as config_lib
from cdisc.data import Dataset, colormnist, pictures, planar
from cdisc.diffusion import schedule as schedule_lib
from cdisc.discovery import concepts, poe
from cdisc.errors import UserError
from cdisc.evaluation import baselines, judge, methods, protocol
from cdisc.learning import adapt as adapt_lib
from cdisc.learning import pretrain as pretrain_lib
from cdisc.networks import backbone as backbone_lib
from cdisc.networks import denoiser
from cdisc.networks.unet import UNetConfig
from cdisc.report import figures, html
from cdisc.report import results as results_lib

STAGES = ("pretrain", "discover", "adapt", "evaluate", "report")
BUNDLED = pathlib.Path(cdisc.__file__).parent / "bundled"


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
      schedule: the forward process.
      network: the U-Net's options; None where the score is exact.
      backbone: the model as functions of its parameters.
      queries: the pictures to compose.
    """

    config: ml_collections.ConfigDict
    workdir: pathlib.Path
    dataset: Dataset
    schedule: schedule_lib.Schedule
    network: UNetConfig | None
    backbone: backbone_lib.Backbone
    queries: tuple[Query, ...]

    def key(self, stage: str, query: Query | None = None) -> jax.Array:
        """The key of a stage, or of one query in it; a query's follows from its pixels, not from its place."""
        seed = self.config.pretrain.seed if stage == "pretrain" else self.config.seed
        key = jax.random.fold_in(jax.random.key(seed), STAGES.index(stage))
        return key if query is None else jax.random.fold_in(key, zlib.crc32(query.image.tobytes()))

    def path(self, *parts: str) -> pathlib.Path:
        """A path in the workdir."""
        return self.workdir.joinpath(*parts)


@flax.struct.dataclass
class QueryModel:
    """All that is known of one query when it is sampled.

    Attributes:
      teacher: the product of its experts.
      losses: (classes,) the query's denoising loss under each trained class.
      levels: its adaptation at each level.
    """

    teacher: poe.Teacher
    losses: jax.Array
    levels: dict[str, adapt_lib.Adaptation]


def prepare(config: ml_collections.ConfigDict, workdir: pathlib.Path, query_paths: Sequence[str]) -> Run:
    """Checks everything that can be checked before work begins, and binds the workdir to this configuration.

    Raises:
      UserError: for anything in the configuration, the queries or the workdir that cannot be used.
    """
    loaders = {"colormnist": colormnist.load, "planar": planar.load}
    if config.data.name not in loaders:
        raise UserError(f"config.data.name is {config.data.name!r}: use one of {', '.join(loaders)}.")
    dataset = loaders[config.data.name](config.data)
    schedule = schedule_lib.linear_beta(
        config.diffusion.num_timesteps, config.diffusion.beta_start, config.diffusion.beta_end
    )
    discovery_options(config, schedule)
    for name, options in level_options(config).items():
        if options.steps < 1:
            raise UserError(f"config.adapt.levels.{name}.steps is {options.steps}: use a whole number from 1 on.")
    for name, options in method_options(config).items():
        if options.level not in config.adapt.levels:
            hint = config_lib.nearest(options.level, config.adapt.levels)
            raise UserError(f"config.evaluate.methods.{name}.level names no level of adaptation: {options.level!r}{hint}")
    network = None
    if config.network.kind == "unet":
        network = config_lib.options(UNetConfig, config.network, "network", ignore=("kind",))
        classes = len(dataset.split.trained)
        if network.num_class_embeds != classes + 1:
            raise UserError(
                f"config.network.num_class_embeds is {network.num_class_embeds}, but the split trains {classes} classes: "
                f"set it to {classes + 1}, one row for the null class."
            )
        prediction = config.diffusion.prediction_type
        if prediction not in backbone_lib.PREDICTION_TYPES:
            known = ", ".join(backbone_lib.PREDICTION_TYPES)
            raise UserError(f"config.diffusion.prediction_type is {prediction!r}: use one of {known}.")
        backbone = backbone_lib.unet(network, schedule, prediction)
    elif config.network.kind == "exact":
        backbone = backbone_lib.mixture(schedule)
    else:
        raise UserError(f"config.network.kind is {config.network.kind!r}: use 'unet' or 'exact'.")
    queries = own_queries(query_paths, dataset.shape) if query_paths else held_out_queries(config, dataset)
    checkpoints.writable(workdir)
    bind(workdir, config, queries)
    return Run(config, workdir, dataset, schedule, network, backbone, queries)


def discovery_options(
    config: ml_collections.ConfigDict, schedule: schedule_lib.Schedule
) -> concepts.DiscoveryOptions:
    """`config.discover` as options, its timesteps checked against the schedule."""
    options = config_lib.options(concepts.DiscoveryOptions, config.discover, "discover")
    outside = [t for t in options.timesteps if not 1 <= t <= schedule.num_timesteps]
    if outside:
        raise UserError(f"config.discover.timesteps has {outside[0]}: each must be in 1..{schedule.num_timesteps}.")
    if options.num_experts > options.capacity:
        raise UserError(
            f"config.discover.num_experts is {options.num_experts}, more than the pool holds (capacity "
            f"{options.capacity}): lower the one or raise the other."
        )
    return options


def level_options(config: ml_collections.ConfigDict) -> dict[str, adapt_lib.AdaptOptions]:
    """`config.adapt.levels` as options."""
    levels = config.adapt.levels.items()
    return {name: config_lib.options(adapt_lib.AdaptOptions, level, f"adapt.levels.{name}") for name, level in levels}


def method_options(config: ml_collections.ConfigDict) -> dict[str, MethodOptions]:
    """`config.evaluate.methods` as options."""
    chosen = config.evaluate.methods.items()
    return {name: config_lib.options(MethodOptions, method, f"evaluate.methods.{name}") for name, method in chosen}


def held_out_queries(config: ml_collections.ConfigDict, dataset: Dataset) -> tuple[Query, ...]:
    """`num_queries` query pictures of held-out compositions: each once in an order drawn by the seed, then again."""
    held_out = dataset.split.held_out
    count = config.evaluate.num_queries
    if count < 1:
        raise UserError(f"config.evaluate.num_queries is {count}: use a whole number from 1 on.")
    order = np.random.default_rng(config.seed).permutation(len(held_out))
    queries = []
    for i in range(count):
        composition = held_out[order[i % len(held_out)]]
        turn = i // len(held_out)
        names = [values[j] for values, j in zip(dataset.split.factors.values, composition, strict=True)]
        image = dataset.queries(composition, turn + 1)[turn]
        name = " ".join(names) + (f" ({turn + 1})" if turn else "")
        queries.append(Query(name, np.asarray(image), tuple(composition), f"{dataset.name}, query part"))
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
        "queries": {query.name: f"{zlib.crc32(query.image.tobytes()):08x}" for query in queries},
    }
    if not path.exists():
        checkpoints.write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): choose another --workdir.") from error
    changed = config_lib.differences(before, content)
    if changed:
        names = ", ".join(changed[:3]) + (" and others" if len(changed) > 3 else "")
        raise UserError(f"{workdir} was made with another configuration ({names} differ): choose another --workdir.")


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path, stages: Sequence[str], query_paths: Sequence[str]) -> None:
    """Runs `stages`, in their order, and leaves their results in `workdir`.

    Args:
      config: the configuration.
      workdir: a folder, made if it is not there.
      stages: some of `STAGES`. What the others should have left is taken from the workdir.
      query_paths: pictures to compose; none takes held-out ones.

    Raises:
      UserError: for whatever the person can mend.
    """
    for stage in stages:
        if stage not in STAGES:
            raise UserError(f"there is no stage {stage!r}{config_lib.nearest(stage, STAGES)}: use {', '.join(STAGES)}.")
    this = prepare(config, workdir, query_paths)
    device = jax.devices()[0]
    console.say(
        f"cdisc {cdisc.__version__} on {jax.local_device_count()} {device.platform} device(s), jax {jax.__version__}, "
        f"config {config_lib.digest(config.to_dict())[:12]}, seed {config.seed}, {len(this.queries)} queries"
    )
    with stage_clock(this, "pretrain", stages):
        params = pretrain(this, "pretrain" in stages)
    if not set(stages) - {"pretrain"}:
        return
    with stage_clock(this, "discover", stages):
        discoveries = discover(this, params, "discover" in stages)
    if not set(stages) - {"pretrain", "discover"}:
        return
    with stage_clock(this, "adapt", stages):
        models = adapt(this, params, discoveries, "adapt" in stages)
    if not set(stages) & {"evaluate", "report"}:
        return
    with stage_clock(this, "evaluate", stages):
        samples = evaluate(this, params, discoveries, models, "evaluate" in stages)
    if "report" in stages:
        with stage_clock(this, "report", stages):
            report(this, params, discoveries, samples)


class stage_clock:  # noqa: N801 - used as a function
    """Says that a stage begins and ends, and keeps the seconds that it took when it did its work."""

    def __init__(self, this: Run, stage: str, stages: Sequence[str]):
        """Starts nothing yet."""
        self._run, self._stage, self._active = this, stage, stage in stages

    def __enter__(self) -> None:
        """Starts the clock."""
        self._start = time.monotonic()

    def __exit__(self, kind: type | None, *_: object) -> None:
        """Stops it, if the stage did not fail."""
        if kind is not None or not self._active:
            return
        seconds = time.monotonic() - self._start
        path = self._run.path("seconds.json")
        known = read_seconds(path)
        # A stage that only restored its results keeps the time that they took to make.
        known[self._stage] = max(seconds, known.get(self._stage, 0.0))
        checkpoints.write_text(path, json.dumps(known))
        console.say(f"{self._stage}: {seconds:.1f} s")


def read_seconds(path: pathlib.Path) -> dict[str, float]:
    """Seconds by stage, in the order in which they ran; empty if none has."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def unfinished(stage: str, path: pathlib.Path) -> UserError:
    """The complaint that a stage was not asked for and has left no result."""
    return UserError(f"{path} is not there: add {stage} to --stages.")


# --- pretrain -----------------------------------------------------------------------------------------------------


def pretrain(this: Run, active: bool) -> Any:
    """The backbone's parameters: exact, restored, bundled or trained."""
    if this.network is None:
        return this.dataset.train
    like = jax.eval_shape(functools.partial(denoiser.init, this.network), this.key("pretrain"))
    path = this.path("pretrain", "params")
    if checkpoints.exists(path):
        return checkpoints.restore(path, like)
    if not active:
        raise unfinished("pretrain", path)
    if this.config.pretrain.from_scratch:
        params = train_backbone(this)
    elif not this.config.pretrain.bundle:
        raise UserError("config.pretrain names no bundled backbone: set --config.pretrain.from_scratch=True.")
    else:
        params = checkpoints.restore_npz(BUNDLED / f"{this.config.pretrain.bundle}.npz", like, bundle_about(this))
        console.say(f"pretrain: the bundled backbone {this.config.pretrain.bundle}")
    checkpoints.save(path, params)
    return params


def bundle_about(this: Run) -> dict[str, str]:
    """What a bundled backbone must agree with."""
    return {"config": config_lib.backbone_digest(this.config), "data": this.dataset.fingerprint}


def pretrain_options(config: ml_collections.ConfigDict) -> pretrain_lib.PretrainOptions:
    """`config.pretrain` as options."""
    ignore = ("seed", "from_scratch", "bundle", "save_every")
    return config_lib.options(pretrain_lib.PretrainOptions, config.pretrain, "pretrain", ignore)


def train_backbone(this: Run) -> denoiser.Params:
    """Trains the backbone, from its last checkpoint if there is one; returns the averaged parameters."""
    options = pretrain_options(this.config)
    key_init, key_train = jax.random.split(this.key("pretrain"))
    folder = this.path("pretrain", "train")
    saved = checkpoints.steps(folder)
    init = functools.partial(pretrain_lib.init, this.network, options)
    if saved:
        state = checkpoints.restore_step(folder, saved[-1], jax.eval_shape(init, key_init))
        console.say(f"pretrain: goes on at step {saved[-1]} of {options.steps}")
    else:
        state = init(key_init)
    train_step = jax.jit(
        functools.partial(
            pretrain_lib.train_step,
            backbone=this.backbone,
            options=options,
            schedule=this.schedule,
            batch_fn=this.dataset.train_batch,
        ),
        donate_argnums=0,
    )
    every = this.config.pretrain.save_every
    first = int(state.step)
    losses: list[jax.Array] = []
    for step in console.progress(range(first, options.steps), "pretrain", options.steps, first):
        state, metrics = train_step(state, this.dataset.train, key_train)
        losses.append(metrics["loss"])
        if (step + 1) % every == 0 or step + 1 == options.steps:
            block = np.asarray(jnp.stack(losses))
            if not np.isfinite(block).all():
                bad = step + 1 - len(block) + int(np.argmin(np.isfinite(block)))
                kept = checkpoints.steps(folder)
                where = f"the checkpoint of step {kept[-1]} is kept" if kept else "no checkpoint had been written"
                raise UserError(
                    f"pretrain: the loss of step {bad + 1} is {block[np.argmin(np.isfinite(block))]}; {where}: lower "
                    "config.pretrain.learning_rate."
                )
            checkpoints.save_step(folder, step + 1, state)
            with this.path("pretrain", "loss.csv").open("a", encoding="utf-8") as file:
                file.write(f"{step + 1},{block.mean():.6f}\n")
            losses = []
    return state.ema


# --- discover -----------------------------------------------------------------------------------------------------


def groups(items: Sequence[Any], count: int) -> Iterator[Sequence[Any]]:
    """`items` in runs of `count`."""
    return (items[i : i + count] for i in range(0, len(items), count))


def stack(trees: Sequence[Any]) -> Any:
    """One tree whose leaves have a leading axis, from trees of one structure."""
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *trees)


def unstack(tree: Any) -> list[Any]:
    """The inverse of `stack`."""
    host = jax.tree.map(np.asarray, tree)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], host) for i in range(parallel.size(host))]


def stack_keys(keys: Sequence[jax.Array]) -> jax.Array:
    """Keys (Q,) from single ones."""
    return jnp.stack(list(keys))


def saved_by_query(
    this: Run, stage: str, active: bool, like: Any, at_once: int, work: Callable[[Sequence[Query]], Sequence[Any]]
) -> list[Any]:
    """The result of `work` for each query, restored where it was saved, `at_once` of the others at a time."""
    paths = [this.path(stage, f"query_{i:04d}") for i in range(len(this.queries))]
    todo = [i for i, path in enumerate(paths) if not checkpoints.exists(path)]
    if todo and not active:
        raise unfinished(stage, paths[todo[0]])
    batches = list(groups(todo, at_once))
    for batch in console.progress(batches, stage):
        for i, out in zip(batch, work([this.queries[i] for i in batch]), strict=True):
            checkpoints.save(paths[i], out)
    return [jax.tree.map(np.asarray, checkpoints.restore(path, like)) for path in paths]


def discover(this: Run, params: Any, active: bool) -> list[concepts.Discovery]:
    """The discovery of every query."""
    options = discovery_options(this.config, this.schedule)

    def one(item: tuple[jax.Array, jax.Array], params: Any) -> concepts.Discovery:
        query, key = item
        return concepts.discover(backbone_lib.null_eps(this.backbone, params), this.schedule, query, key, options)

    mapped = parallel.one_by_one(one, num_shared=1)

    def work(queries: Sequence[Query]) -> list[concepts.Discovery]:
        images = stack([query.image for query in queries])
        found = unstack(mapped((images, stack_keys([this.key("discover", query) for query in queries])), params))
        for query, discovery in zip(queries, found, strict=True):
            if not np.isfinite(discovery.teacher.mean).all() or not discovery.pool.mask.any():
                raise UserError(
                    f"discover: the score of the backbone led to no finite mode for {query.name!r}: "
                    "raise config.discover.max_residual or max_steps, or train the backbone longer."
                )
        return found

    key = this.key("discover", this.queries[0])
    like = jax.eval_shape(one, (this.queries[0].image, key), params)
    return saved_by_query(this, "discover", active, like, jax.local_device_count(), work)


# --- adapt --------------------------------------------------------------------------------------------------------


def teacher_recipe(this: Run, params: Any, teacher: poe.Teacher) -> methods.Recipe:
    """Eq. 13 with the configured guidance."""
    guidance = this.config.guidance
    return methods.teacher_recipe(
        teacher, this.backbone.table(params), guidance.w0, w_max=guidance.w_max, elementwise=guidance.elementwise
    )


@functools.lru_cache(maxsize=8)
def sampler(this: Run, num_samples: int) -> Callable[..., jax.Array]:
    """A compiled sampler of recipes: `(recipe, key), params -> (1, num_samples, *shape)` for one stacked query."""

    def one(item: tuple[methods.Recipe, jax.Array], params: Any) -> jax.Array:
        recipe, key = item
        return methods.sample(
            this.backbone,
            params,
            this.schedule,
            recipe,
            key,
            shape=this.dataset.shape,
            num_samples=num_samples,
            num_steps=this.config.sampling.num_steps,
            clip=this.config.sampling.clip,
        )

    return parallel.one_by_one(one, num_shared=1)


def adapt(this: Run, params: Any, discoveries: Sequence[concepts.Discovery], active: bool) -> list[QueryModel]:
    """What every query's picture and teacher teach the backbone, level by level."""
    levels = level_options(this.config)
    lessons = list(zip(this.queries, discoveries, strict=True))
    prior = prior_pictures(this) if any(options.prior_weight > 0 for options in levels.values()) else None
    settings = this.config.adapt
    draw = sampler(this, settings.pool_size) if any(o.pool != "query" for o in levels.values()) else None

    def basics(item: tuple[jax.Array, jax.Array], params: Any) -> jax.Array:
        query, key = item
        table = this.backbone.table(params)
        conditional = functools.partial(this.backbone.apply, params)
        return baselines.class_losses(
            conditional, table, this.schedule, query, key, num_draws=settings.class_draws, batch_size=64
        )

    compare = parallel.one_by_one(basics, num_shared=1)
    place = {query.name: i for i, query in enumerate(this.queries)}

    def work(queries: Sequence[Query]) -> list[QueryModel]:
        keys = [jax.random.split(this.key("adapt", query), 3) for query in queries]
        losses, pools = [], []
        for group in groups(list(range(len(queries))), jax.local_device_count()):
            images = stack([queries[i].image for i in group])
            losses += unstack(compare((images, stack_keys([keys[i][0] for i in group])), params))
            if draw is not None:
                teachers = [lessons[place[queries[i].name]][1].teacher for i in group]
                recipes = stack([teacher_recipe(this, params, teacher) for teacher in teachers])
                pools += unstack(draw((recipes, stack_keys([keys[i][1] for i in group])), params))
        lesson = adapt_lib.Lesson(
            query=stack([query.image for query in queries]),
            pool=stack(pools) if pools else np.zeros((len(queries), 0, *this.dataset.shape), np.float32),
            top1=np.stack([np.asarray(baselines.top1(row), np.int32) for row in losses]),
        )
        fitted = {
            name: unstack(fit_level(this, params, lesson, prior, stack_keys([k[2] for k in keys]), name, options))
            for name, options in levels.items()
        }
        return [
            QueryModel(discoveries[place[query.name]].teacher, losses[i], {name: fitted[name][i] for name in levels})
            for i, query in enumerate(queries)
        ]

    like = jax.eval_shape(functools.partial(untrained, this, levels), discoveries[0].teacher, params, this.key("adapt"))
    return saved_by_query(this, "adapt", active, like, settings.chunk, work)


def untrained(
    this: Run, levels: dict[str, adapt_lib.AdaptOptions], teacher: poe.Teacher, params: Any, key: jax.Array
) -> QueryModel:
    """A query model before any learning: the structure of every one."""
    image = jnp.zeros(this.dataset.shape)
    lesson = adapt_lib.Lesson(query=image, pool=image[None], top1=jnp.int32(0))
    states = {name: (adapt_lib.init(this.backbone, params, lesson, key, o), o) for name, o in levels.items()}
    return QueryModel(
        teacher=teacher,
        losses=jnp.zeros(this.backbone.table(params).shape[0]),
        levels={name: adapt_lib.result(state, this.backbone, params, o) for name, (state, o) in states.items()},
    )


def prior_pictures(this: Run) -> adapt_lib.Prior:
    """Pictures of trained classes, the same for all queries."""
    images, labels = this.dataset.train_batch(this.dataset.train, this.key("adapt"), this.config.adapt.prior_size)
    return adapt_lib.Prior(images, labels)


def fit_level(
    this: Run,
    params: Any,
    lessons: adapt_lib.Lesson,
    prior: adapt_lib.Prior | None,
    keys: jax.Array,
    name: str,
    options: adapt_lib.AdaptOptions,
) -> adapt_lib.Adaptation:
    """One level for a chunk of queries, all trained side by side; leaves lead with the queries."""

    def begin(item: tuple[adapt_lib.Lesson, jax.Array], params: Any) -> adapt_lib.FitState:
        lesson, key = item
        return adapt_lib.init(this.backbone, params, lesson, key, options)

    def advance(item: tuple, params: Any, prior: adapt_lib.Prior | None) -> tuple[adapt_lib.FitState, jax.Array]:
        state, lesson, key = item
        return adapt_lib.step(state, this.backbone, params, this.schedule, lesson, prior, key, options)

    def finish(state: adapt_lib.FitState, params: Any) -> adapt_lib.Adaptation:
        return adapt_lib.result(state, this.backbone, params, options)

    count = parallel.size(lessons.query)
    lessons, keys = parallel.spread(lessons), parallel.spread(keys)
    state = parallel.side_by_side(begin, num_shared=1)((lessons, keys), params)
    step = parallel.side_by_side(advance, num_shared=2)
    losses = []
    for _ in console.progress(range(options.steps), f"adapt {name}"):
        state, loss = step((state, lessons, keys), params, prior)
        losses.append(loss)
    bad = [i for i, loss in enumerate(losses) if not np.isfinite(np.asarray(loss)).all()]
    if bad:
        raise UserError(
            f"adapt: the loss of level {name} is not finite at step {bad[0] + 1}: lower its learning rates; what was "
            "finished before is kept."
        )
    return parallel.gather(parallel.side_by_side(finish, num_shared=1)(state, params), count)


# --- evaluate -----------------------------------------------------------------------------------------------------


def recipes_of(this: Run, params: Any, query: Query, model: QueryModel) -> dict[str, methods.Recipe]:
    """Every method's recipe for one query."""
    settings, guidance = this.config.evaluate, this.config.guidance
    table = this.backbone.table(params)
    recipes = {"poe": teacher_recipe(this, params, model.teacher)}
    levels = level_options(this.config)
    for name, method in method_options(this.config).items():
        adaptation = model.levels[method.level]
        recipes[name] = methods.class_recipe(
            adaptation.embedding[None],
            jnp.asarray([method.guidance], jnp.float32),
            adapter=adaptation.adapter,
            scale=levels[method.level].scale,
            teacher=model.teacher if method.teacher_weight > 0 else None,
            teacher_weight=method.teacher_weight,
            teacher_sigma_min=method.teacher_sigma_min,
            w_max=guidance.w_max,
        )
    best = baselines.top1(model.losses)
    classes, shares = baselines.top3_weights(model.losses, settings.tau_k)
    recipes["top1"] = methods.class_recipe(table[best][None], jnp.asarray([settings.class_guidance], jnp.float32))
    recipes["top3"] = methods.class_recipe(table[classes], settings.class_guidance * shares)
    for sigma in sorted({settings.query_only_sigma, *settings.query_only_sigmas}):
        teacher = baselines.query_only_teacher(jnp.asarray(query.image), sigma)
        recipes[query_only_name(sigma)] = teacher_recipe(this, params, teacher)
    return recipes


def query_only_name(sigma: float) -> str:
    """The name of Query-only at one width of its teacher."""
    return f"query_only sigma={sigma:g}"


def evaluate(
    this: Run, params: Any, discoveries: Sequence[concepts.Discovery], models: Sequence[QueryModel], active: bool
) -> list[dict[str, np.ndarray]]:
    """Samples of every method for every query, measured; writes `results.json`."""
    settings = this.config.evaluate
    draw = sampler(this, settings.samples)
    place = {query.name: i for i, query in enumerate(this.queries)}

    def work(queries: Sequence[Query]) -> list[dict[str, jax.Array]]:
        recipes = [recipes_of(this, params, query, models[place[query.name]]) for query in queries]
        # One key for all methods: they start from the same noise, so their samples can be compared one by one.
        keys = stack_keys([this.key("evaluate", query) for query in queries])
        drawn = {name: unstack(draw((stack([r[name] for r in recipes]), keys), params)) for name in recipes[0]}
        for name, samples in drawn.items():
            if not all(np.isfinite(sample).all() for sample in samples):
                raise UserError(f"evaluate: samples of {name} are not finite: lower its guidance.")
        return [{name: samples[i] for name, samples in drawn.items()} for i in range(len(queries))]

    names = recipes_of(this, params, this.queries[0], models[0])
    like = {name: jax.ShapeDtypeStruct((settings.samples, *this.dataset.shape), jnp.float32) for name in names}
    samples = saved_by_query(this, "evaluate", active, like, jax.local_device_count(), work)
    if active:
        write_results(this, discoveries, samples, load_judge(this))
    return samples


def load_judge(this: Run) -> judge.Judge:
    """The judge of the samples: exact for points; for pictures restored, bundled or trained on real ones."""
    factors = this.dataset.split.factors
    if this.network is None:
        return judge.nearest_level_judge(factors.names, [[float(v) for v in values] for values in factors.values])
    network = judge.JudgeNetwork(num_values=tuple(len(values) for values in factors.values))
    key_init, key_train = jax.random.split(this.key("evaluate"))
    init = functools.partial(judge.init, network, shape=this.dataset.shape)
    like = jax.eval_shape(init, key_init)
    path = this.path("evaluate", "judge")
    bundle = BUNDLED / f"{this.config.pretrain.bundle}_judge.npz"
    if checkpoints.exists(path):
        params = checkpoints.restore(path, like)
    else:
        if this.config.pretrain.bundle and not this.config.pretrain.from_scratch:
            params = checkpoints.restore_npz(bundle, like, judge_about(this))
        else:
            data = judge.Labelled(*this.dataset.labelled("train", 20_000, 0))
            steps = this.config.evaluate.judge_steps
            params, _ = judge.train(network, init(key_init), judge.draw, data, key_train, steps=steps)
        checkpoints.save(path, params)
    return judge.network_judge(network, params, factors.names)


def judge_about(this: Run) -> dict[str, str]:
    """What a bundled judge must agree with."""
    steps = this.config.evaluate.judge_steps
    return {"config": config_lib.digest({"judge_steps": steps}), "data": this.dataset.fingerprint}


def write_results(
    this: Run, discoveries: Sequence[concepts.Discovery], samples: Sequence[dict[str, np.ndarray]], judged_by: judge.Judge
) -> None:
    """Measures the samples and writes `results.json`."""
    settings = this.config.evaluate
    queries = []
    for query, discovery, drawn in zip(this.queries, discoveries, samples, strict=True):
        references, attributes = None, None
        if query.composition is not None:
            references = this.dataset.references(query.composition, settings.references + settings.samples)
            attributes = named_attributes(this, query.composition)
            # Other real pictures of the composition in the place of samples: what a perfect method would reach.
            drawn = {**drawn, "real pictures": references[settings.references :]}
            references = jnp.asarray(references[: settings.references])
        figures_of = {
            name: protocol.score_samples(
                judged_by, jnp.asarray(images), jnp.asarray(query.image), query.composition, references, k=settings.k
            )
            for name, images in drawn.items()
        }
        queries.append(
            {
                "name": query.name,
                "attributes": attributes,
                "source": query.source,
                "prototypes": prototypes_of(discovery),
                "nfe": int(discovery.nfe),
                "methods": figures_of,
            }
        )
    results_lib.write(
        this.path("results.json"),
        {
            "schema_version": results_lib.SCHEMA_VERSION,
            "dataset": this.dataset.name,
            "config_hash": config_lib.digest(this.config.to_dict()),
            "seed": this.config.seed,
            "versions": versions(),
            "seconds": read_seconds(this.path("seconds.json")),
            "queries": queries,
            "methods": protocol.aggregate([query["methods"] for query in queries]),
        },
    )


def named_attributes(this: Run, composition: tuple[int, ...]) -> dict[str, str]:
    """A composition in words, factor to value."""
    factors = this.dataset.split.factors
    return {name: values[i] for name, values, i in zip(factors.names, factors.values, composition, strict=True)}


def prototypes_of(discovery: concepts.Discovery) -> list[dict[str, Any]]:
    """The selected modes of a discovery, best first."""
    pool, picks = discovery.pool, discovery.selection
    return [
        {
            "t": int(pool.t[j]),
            "basin": int(pool.basin[j]),
            "gain": float(picks.gains[i]),
            "curvature": float(pool.curvature[j]),
            "residual": float(pool.residual[j]),
        }
        for i, j in enumerate(picks.indices)
        if picks.mask[i]
    ]


def versions() -> dict[str, str]:
    """The software and the device of this run."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"cdisc": cdisc.__version__, **found, "device": jax.devices()[0].device_kind}


# --- report -------------------------------------------------------------------------------------------------------


def report(
    this: Run, params: Any, discoveries: Sequence[concepts.Discovery], samples: Sequence[dict[str, np.ndarray]]
) -> None:
    """Writes `report/index.html` from what the other stages left."""
    results = results_lib.read(this.path("results.json"))
    results["seconds"] = read_seconds(this.path("seconds.json"))
    results_lib.write(this.path("results.json"), results)
    panels = []
    for query, discovery, drawn, entry in zip(this.queries, discoveries, samples, results["queries"], strict=True):
        places = [j for j, present in zip(discovery.selection.indices, discovery.selection.mask, strict=True) if present]
        prototypes = tuple(
            html.Prototype(
                mean=discovery.gaussians.mean[j],
                variance=discovery.gaussians.variance[j],
                ownership=discovery.teacher.weights[i],
                t=found["t"],
                basin=found["basin"],
                gain=found["gain"],
                curvature=found["curvature"],
            )
            for i, (j, found) in enumerate(zip(places, entry["prototypes"], strict=True))
        )
        panels.append(
            html.QueryPanel(
                name=query.name,
                attributes=entry["attributes"],
                query=query.image,
                prototypes=prototypes,
                mean=discovery.teacher.mean,
                variance=discovery.teacher.variance,
                samples=drawn,
                measures=entry["methods"],
            )
        )
    title = f"cdisc on {this.dataset.name}"
    subtitle = f"config {results['config_hash'][:12]}, seed {this.config.seed}"
    path = this.path("report", "index.html")
    html.write(
        path,
        html.Page(
            title=title, subtitle=subtitle, results=results, queries=tuple(panels), plane=plane_of(this, params)
        ),
    )
    console.say(f"report: {path}")


def plane_of(this: Run, params: Any) -> figures.Plane | None:
    """The trained and held-out cells of points in the plane; None for pictures."""
    if this.network is not None:
        return None
    levels = tuple(float(level) for level in this.config.data.levels)
    held_out = planar.planar_mixture(levels, levels, float(this.config.data.std), this.dataset.split, held_out=True)
    return figures.Plane(
        trained_means=params.means,
        trained_variances=params.variances,
        held_out_means=held_out.means,
        held_out_variances=held_out.variances,
    )
