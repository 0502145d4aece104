"""What every query's picture, and the samples of its teacher, teach the backbone."""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from cdisc import console, signals, storage
from cdisc.app import devices
from cdisc.app.config import Guidance
from cdisc.app.run import Run
from cdisc.app.stages.saved import saved_by_query
from cdisc.diffusion.gaussian import Gaussian
from cdisc.discovery import concepts
from cdisc.errors import UserError
from cdisc.evaluation import baselines, methods
from cdisc.keys import named
from cdisc.learning import adapt as adapt_lib


@flax.struct.dataclass
class QueryModel:
    """Everything known about one query when it is sampled.

    Attributes:
      teacher: the product of its experts.
      losses: (classes,) the query's denoising loss under each trained class; None where there is no class, because
        Orbax does not save empty arrays.
      levels: its adaptation at each level.
    """

    teacher: Gaussian
    losses: jax.Array | None
    levels: dict[str, adapt_lib.Adaptation]


def teacher_recipe(teacher: Gaussian, guidance: Guidance) -> methods.Recipe:
    """Eq. 13 for a teacher with some guidance."""
    return methods.Recipe(teacher, teacher_weight=guidance.w0, w_max=guidance.w_max, elementwise=guidance.elementwise)


def draw(run: Run, params: Any, recipes: Sequence[methods.Recipe], keys: Sequence[jax.Array], count: int) -> np.ndarray:
    """`count` samples of each of Q recipes of one structure, on the host: (Q, count, *shape).

    A device makes at most `config.sampling.batch` of them at once, which bounds its memory whatever `count` is. All of
    a recipe's starting noise is drawn together, so that its samples do not depend on how they are divided; recipes with
    the same key start from the same noise.
    """
    batches = -(-count // run.config.sampling.batch)
    items = [
        (recipe, x)
        for recipe, key in zip(recipes, keys, strict=True)
        for x in np.asarray(devices.split(jax.random.normal(key, (count, *run.dataset.shape)), batches))
    ]
    drawn = [
        np.asarray(run.sampler(devices.stack(group), params))
        for group in devices.groups(items, jax.local_device_count())
    ]
    return np.concatenate(drawn).reshape(len(recipes), -1, *run.dataset.shape)[:, :count]


def adapt(run: Run, params: Any, discoveries: Sequence[concepts.Discovery], active: bool) -> Sequence[QueryModel]:
    """What every query's picture and teacher teach the backbone, level by level.

    Leaves, beside each query's model, `adapt/query_*.jsonl`: a line for each step with its `level`, `step` and `loss`.
    """
    settings, levels = run.config.adapt, run.config.adapt.levels
    needs_pool = any(options.pool != "query" for options in levels.values())
    needs_prior = any(options.prior_weight > 0 for options in levels.values())
    prior = prior_pictures(run) if needs_prior else None

    def compare(item: tuple[jax.Array, jax.Array], params: Any) -> jax.Array:
        query, key = item
        conditional = functools.partial(run.backbone.apply, params)
        table = run.backbone.table(params)
        draws, batch = settings.class_draws, run.config.sampling.batch
        return baselines.class_losses(conditional, table, run.schedule, query, key, num_draws=draws, batch_size=batch)

    mapped_compare = devices.one_by_one(compare, num_shared=1)
    compiled = {name: compiled_level(run, options) for name, options in levels.items()}

    def work(indices: Sequence[int]) -> list[QueryModel]:
        images = devices.stack([run.queries[i].image for i in indices])
        query_keys = [run.key("adapt", run.queries[i]) for i in indices]

        def keys(use: str) -> jax.Array:
            return jnp.stack([named(key, use) for key in query_keys])

        teachers = [discoveries[i].teacher for i in indices]
        losses: Any = [None] * len(indices)
        best_first: Any = None
        pool: Any = None
        if run.backbone.table(params).shape[0]:
            losses = devices.in_groups(mapped_compare, (images, keys("compare")), params)
            best_first = jnp.argsort(losses, axis=1).astype(jnp.int32)
        if needs_pool:
            recipes = [teacher_recipe(teacher, settings.guidance) for teacher in teachers]
            pool = draw(run, params, recipes, list(keys("pool")), settings.pool_size)
        examples = adapt_lib.Examples(query=images, pool=pool, classes=best_first)
        fitted: dict[str, adapt_lib.Adaptation] = {}
        losses_by_name: dict[str, jax.Array] = {}  # (indices, steps) losses
        for name, options in levels.items():
            given = fitted[options.after].embedding if options.after else None
            examples = dataclasses.replace(examples, given=given)
            fitted[name], losses_by_name[name] = fit_level(
                compiled[name], params, examples, prior, keys(f"fit {name}"), name, options
            )
        for j, i in enumerate(indices):
            rows = [
                json.dumps({"level": name, "step": step, "loss": loss}) + "\n"
                for name, seen in losses_by_name.items()
                for step, loss in enumerate(seen[j].tolist(), start=1)
            ]
            storage.write_text(run.path("adapt", f"query_{i:04d}.jsonl"), "".join(rows))
        by_query = {name: devices.unstack(adaptations) for name, adaptations in fitted.items()}
        return [
            QueryModel(teacher, losses[j], {name: by_query[name][j] for name in levels})
            for j, teacher in enumerate(teachers)
        ]

    like = jax.eval_shape(functools.partial(untrained, run, levels), discoveries[0].teacher, params, run.key("adapt"))
    at_once = settings.chunk * jax.local_device_count()
    return saved_by_query(run, "adapt", active, like, at_once, work)


def untrained(
    run: Run, levels: dict[str, adapt_lib.AdaptOptions], teacher: Gaussian, params: Any, key: jax.Array
) -> QueryModel:
    """A query model before any learning: the structure of every one."""
    image = jnp.zeros(run.dataset.shape)
    table = run.backbone.table(params)
    examples = adapt_lib.Examples(image, classes=jnp.arange(table.shape[0]))
    adaptations: dict[str, adapt_lib.Adaptation] = {}
    for name, options in levels.items():
        if options.after:
            examples = dataclasses.replace(examples, given=adaptations[options.after].embedding)
        state = adapt_lib.init(run.backbone, params, examples, key, options)
        adaptations[name] = adapt_lib.result(state, run.backbone, params, options)
    return QueryModel(
        teacher=teacher,
        losses=jnp.zeros(table.shape[0]) if table.shape[0] else None,
        levels=adaptations,
    )


def prior_pictures(run: Run) -> adapt_lib.Prior:
    """Pictures of trained classes, the same for all queries."""
    count, train = run.config.adapt.prior_size, run.dataset.train
    return adapt_lib.Prior(*run.dataset.train_batch(train, run.key("adapt"), count, np.arange(count)))


def compiled_level(run: Run, options: adapt_lib.AdaptOptions) -> tuple[Callable[..., Any], ...]:
    """`init`, `step` and `result` of a level, mapped over queries; each compiles once for all chunks."""

    def begin(item: tuple[adapt_lib.Examples, jax.Array], params: Any, candidate: jax.Array) -> adapt_lib.FitState:
        examples, key = item
        return adapt_lib.init(run.backbone, params, examples, key, options, candidate)

    def advance(item: tuple, params: Any, prior: adapt_lib.Prior | None) -> tuple[adapt_lib.FitState, jax.Array]:
        state, examples, key = item
        return adapt_lib.step(state, run.backbone, params, run.schedule, examples, prior, key, options)

    def finish(state: adapt_lib.FitState, params: Any) -> adapt_lib.Adaptation:
        return adapt_lib.result(state, run.backbone, params, options)

    return (
        devices.side_by_side(begin, num_shared=2),
        devices.side_by_side(advance, num_shared=2),
        devices.side_by_side(finish, num_shared=1),
    )


def fit_level(
    compiled: tuple[Callable[..., Any], ...],
    params: Any,
    examples: adapt_lib.Examples,
    prior: adapt_lib.Prior | None,
    keys: jax.Array,
    name: str,
    options: adapt_lib.AdaptOptions,
) -> tuple[adapt_lib.Adaptation, jax.Array]:
    """One level, compiled, for a chunk of Q queries, all trained side by side.

    Returns:
      What each has learnt, leaves (Q, ...), and its losses (Q, steps).
    """
    begin, advance, finish = compiled
    count = devices.size(examples.query)
    # Moved once, to where the steps need them.
    examples, keys = devices.spread(examples), devices.spread(keys)
    params, prior = devices.replicate((params, prior))
    fits: list[tuple[adapt_lib.FitState, np.ndarray]] = []
    classes = 1 if examples.classes is None else examples.classes.shape[-1]
    for candidate in range(min(options.candidates, classes)):
        state = begin((examples, keys), params, jnp.int32(candidate))
        seen = []
        for _ in console.progress(range(options.steps), f"adapt {name}"):
            signals.obey()
            state, loss = advance((state, examples, keys), params, prior)
            seen.append(loss)
        losses = np.moveaxis(devices.stack(seen), 0, -1)  # (devices, each, steps); waits for the last step
        fits.append((state, losses))
        finite = np.isfinite(losses).all(axis=(0, 1))
        if not finite.all():
            raise UserError(
                f"adapt: the loss of level {name} is not finite at step {int(np.argmin(finite)) + 1}: lower its "
                "learning rates; what was finished before is kept."
            )
    if len(fits) > 1:
        state, losses = devices.select_best(fits, [seen[..., options.steps // 2 :].mean(axis=-1) for _, seen in fits])
    return devices.gather((finish(state, params), losses), count)
