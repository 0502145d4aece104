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

from cdisc import console, storage
from cdisc.app import devices
from cdisc.app.run import Run
from cdisc.app.stages.saved import saved_by_query
from cdisc.diffusion.gaussian import Gaussian
from cdisc.discovery import concepts
from cdisc.errors import UserError
from cdisc.evaluation import baselines, methods
from cdisc.keys import named
from cdisc.learning import adapt as adapt_lib
from cdisc.learning import composition


@flax.struct.dataclass
class QueryModel:
    """Everything known about one query when it is sampled.

    Attributes:
      teacher: the product of its experts.
      losses: (classes,) the query's denoising loss under each trained class; None where there is no class, because
        Orbax does not save empty arrays.
      composed: the sum of parts of the trained classes that explains it best; None where classes have no parts.
      adaptations: what was learnt from it, by the names of `config.adapt.levels`.
    """

    teacher: Gaussian
    losses: jax.Array | None
    composed: composition.Explained | None
    adaptations: dict[str, adapt_lib.Adaptation]


def draw(
    run: Run, params: Any, densities: Sequence[methods.GuidedDensity], keys: Sequence[jax.Array], count: int
) -> np.ndarray:
    """`count` samples of each of Q densities of one structure, on the host: (Q, count, *shape).

    A device makes at most `config.sampling.batch` of them at once, which bounds its memory whatever `count` is. All of
    a density's starting noise is drawn together, so that its samples do not depend on how they are divided; densities
    with the same key start from the same noise.
    """
    batches = -(-count // run.config.sampling.batch)
    items = [
        (density, x)
        for density, key in zip(densities, keys, strict=True)
        for x in np.asarray(devices.split(jax.random.normal(key, (count, *run.dataset.shape)), batches))
    ]
    drawn = [
        np.asarray(run.sampler(devices.stack(group), params))
        for group in devices.groups(items, jax.local_device_count())
    ]
    return np.concatenate(drawn).reshape(len(densities), -1, *run.dataset.shape)[:, :count]


def adapt(run: Run, params: Any, discoveries: Sequence[concepts.Discovery], active: bool) -> Sequence[QueryModel]:
    """What every query's picture and teacher teach the backbone, one adaptation after the other.

    Leaves, beside each query's model, `adapt/query_*.jsonl`: a line for each step with its `level`, `step` and `loss`.
    """
    settings, specs = run.config.adapt, run.config.adapt.levels
    num_classes, prior = run.backbone.table(params).shape[0], None
    if any(options.prior_weight > 0 for options in specs.values()):
        rows, key = np.arange(settings.prior_size), named(run.key("adapt"), "prior")
        prior = adapt_lib.Prior(*run.dataset.train_batch(run.dataset.train, key, settings.prior_size, rows))

    parts, split = None, run.dataset.split
    # The embedding of an exact mixture is its weights: a sum of them is no class.
    if run.backbone.num_blocks and len(split.factors.names) > 1:
        sizes = [len(values) for values in split.factors.values]
        parts = composition.parts_of(run.backbone.table(params), split.trained, sizes)

    def compare(item: tuple[jax.Array, jax.Array], params: Any, parts: Any) -> tuple[jax.Array, Any]:
        query, key = item
        losses_of = functools.partial(
            baselines.class_losses,
            functools.partial(run.backbone.apply, params),
            schedule=run.schedule,
            query=query,
            batch_size=run.config.sampling.batch,
        )
        losses = losses_of(run.backbone.table(params), key=key, num_draws=settings.class_draws)
        if parts is None:
            return losses, None

        def of_sums(embeddings: jax.Array) -> jax.Array:
            return losses_of(embeddings, key=named(key, "composed"), num_draws=settings.composed_draws)

        start = jnp.asarray(split.trained, jnp.int32)[baselines.top1(losses)]
        return losses, composition.explain(of_sums, parts, start)

    compared = devices.one_by_one(compare, num_shared=2)
    fits = {name: fitter(run, name, options) for name, options in specs.items()}

    def work(indices: Sequence[int]) -> list[QueryModel]:
        queries = [run.queries[i] for i in indices]

        def keys(use: str) -> jax.Array:
            return jnp.stack([named(run.key("adapt", query), use) for query in queries])

        examples = adapt_lib.Examples(query=devices.stack([query.image for query in queries]))
        teachers = [discoveries[i].teacher for i in indices]
        losses, composed = [None] * len(indices), [None] * len(indices)
        if num_classes:
            losses, sums = devices.in_groups(compared, (examples.query, keys("compare")), params, parts)
            for query, seen in zip(queries, np.isnan(losses).all(axis=1), strict=True):
                if seen:
                    raise UserError(f"adapt: no class has a loss for {query.name}: the network's output is NaN.")
            examples = dataclasses.replace(examples, classes=jnp.argsort(losses, axis=1).astype(jnp.int32))
            if sums is not None:
                examples, composed = dataclasses.replace(examples, composed=sums.embedding), devices.unstack(sums)
        if any(options.pool != "query" for options in specs.values()):
            densities = [methods.teacher_density(teacher, settings.guidance) for teacher in teachers]
            examples = dataclasses.replace(
                examples, pool=jnp.asarray(draw(run, params, densities, list(keys("pool")), settings.pool_size))
            )
        learnt: dict[str, adapt_lib.Adaptation] = {}
        rows: list[list[str]] = [[] for _ in indices]
        for name, options in specs.items():
            given = learnt[options.after].embedding if options.after else None
            learnt[name], seen = fits[name](
                params, dataclasses.replace(examples, given=given), prior, keys(f"fit {name}")
            )
            for lines, of_query in zip(rows, np.asarray(seen).tolist(), strict=True):
                lines += [json.dumps({"level": name, "step": n, "loss": loss}) for n, loss in enumerate(of_query, 1)]
        for i, lines in zip(indices, rows, strict=True):
            storage.write_text(run.path("adapt", f"query_{i:04d}.jsonl"), "".join(f"{line}\n" for line in lines))
        by_name = {name: devices.unstack(adaptations) for name, adaptations in learnt.items()}
        return [
            QueryModel(teacher, losses[j], composed[j], {name: of_queries[j] for name, of_queries in by_name.items()})
            for j, teacher in enumerate(teachers)
        ]

    def untrained(teacher: Gaussian, params: Any, key: jax.Array) -> QueryModel:
        nothing = jnp.zeros(())
        composed = parts and composition.Explained(
            jnp.zeros(len(parts.sizes), jnp.int32), parts.values[0], nothing, nothing.astype(jnp.int32)
        )
        examples = adapt_lib.Examples(
            jnp.zeros(run.dataset.shape), classes=jnp.arange(num_classes), composed=composed and composed.embedding
        )
        learnt: dict[str, adapt_lib.Adaptation] = {}
        for name, options in specs.items():
            given = learnt[options.after].embedding if options.after else None
            state = adapt_lib.init(run.backbone, params, dataclasses.replace(examples, given=given), key, options)
            learnt[name] = adapt_lib.result(state, run.backbone, params, options)
        return QueryModel(teacher, jnp.zeros(num_classes) if num_classes else None, composed, learnt)

    like = jax.eval_shape(untrained, discoveries[0].teacher, params, run.key("adapt"))
    return saved_by_query(run, "adapt", active, like, settings.chunk * jax.local_device_count(), work)


def fitter(
    run: Run, name: str, options: adapt_lib.AdaptOptions
) -> Callable[[Any, adapt_lib.Examples, adapt_lib.Prior | None, jax.Array], tuple[adapt_lib.Adaptation, jax.Array]]:
    """`fit(params, examples, prior, keys)` of one adaptation for Q queries side by side; compiled once for all chunks.

    It returns what each query has taught, leaves (Q, ...), and the losses (Q, steps).
    """
    backbone, schedule = run.backbone, run.schedule

    begin = devices.side_by_side(
        lambda item, params, candidate: adapt_lib.init(backbone, params, item[0], item[1], options, candidate),
        num_shared=2,
    )
    advance = devices.side_by_side(
        lambda state_item, params, prior: adapt_lib.step(
            state_item[0], backbone, params, schedule, state_item[1], prior, state_item[2], options
        ),
        num_shared=2,
    )
    finish = devices.side_by_side(
        lambda state, params: adapt_lib.result(state, backbone, params, options), num_shared=1
    )

    def fit(
        params: Any, examples: adapt_lib.Examples, prior: adapt_lib.Prior | None, keys: jax.Array
    ) -> tuple[adapt_lib.Adaptation, jax.Array]:
        # Moved once, to where the steps need them.
        item = devices.spread((examples, keys))
        params_on, prior_on = devices.replicate((params, prior))
        try:
            found = adapt_lib.best_fit(
                lambda candidate: begin(item, params_on, jnp.int32(candidate)),
                lambda state: advance((state, *item), params_on, prior_on),
                lambda state: finish(state, params_on),
                options,
                1 if examples.classes is None else examples.classes.shape[-1],
                lambda steps: console.progress(steps, f"adapt {name}"),
            )
        except FloatingPointError as error:
            raise UserError(f"adapt: {name}: {error}; what was finished before is kept.") from error
        return devices.gather(found, devices.size(examples.query))

    return fit
