"""What every query's picture, and the samples of its teacher, teach the backbone."""

import dataclasses
import functools
import json
from collections.abc import Sequence
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
from cdisc.evaluation import baselines, composition, methods
from cdisc.keys import named
from cdisc.learning import adapt as adapt_lib


@flax.struct.dataclass
class QueryModel:
    """Everything known about one query when it is sampled.

    Attributes:
      teacher: the product of its experts.
      losses: (classes,) the query's denoising loss under each trained class; None where there is no class.
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
    noise = [devices.split(jax.random.normal(key, (count, *run.dataset.shape)), batches) for key in keys]
    repeated = devices.stack([density for density in densities for _ in range(batches)])
    drawn = np.array(run.sampler((repeated, np.concatenate(noise)), params))
    return drawn.reshape(len(densities), -1, *run.dataset.shape)[:, :count]


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
    if run.backbone.num_blocks and composition.composable(split.trained, split.factors.sizes):
        parts = composition.parts_of(run.backbone.table(params), split.trained, split.factors.sizes)
    batch = run.config.sampling.batch

    def compare(item: tuple[jax.Array, jax.Array], params: Any) -> Any:
        query, key = item
        known = (run.backbone, params, run.schedule, query)
        losses = baselines.class_losses(*known, key, num_draws=settings.class_draws, batch_size=batch)
        if parts is None:
            return losses, None
        at, draws, levels = named(key, "composed"), settings.composed_draws, settings.composed_noise_levels
        seen = composition.of_picture(*known, at, parts, num_draws=draws, batch_size=batch, noise_levels=levels)
        return losses, seen

    compared = devices.one_by_one(compare, num_shared=1)
    fits = {name: adapt_lib.fitter(run.backbone, options, devices.side_by_side) for name, options in specs.items()}

    def work(indices: Sequence[int]) -> list[QueryModel]:
        queries = [run.queries[i] for i in indices]

        def keys(use: str) -> jax.Array:
            return jnp.stack([named(run.key("adapt", query), use) for query in queries])

        images, teachers = devices.stack([query.image for query in queries]), [discoveries[i].teacher for i in indices]
        losses, composed, classes, pool = None, None, None, None
        if num_classes:
            losses, composed = compared((images, keys("compare")), params)
            for query, seen in zip(queries, np.isnan(losses).all(axis=1), strict=True):
                if seen:
                    raise UserError(f"adapt: no class has a loss for {query.name}: the network's output is NaN.")
            classes = jnp.argsort(losses, axis=1).astype(jnp.int32)
        if any(options.pool != "query" for options in specs.values()):
            densities = [methods.teacher_density(teacher, settings.guidance) for teacher in teachers]
            pool = jnp.asarray(draw(run, params, densities, list(keys("pool")), settings.pool_size))
        examples = adapt_lib.Examples(
            query=images, pool=pool, classes=classes, composed=composed and composed.embedding
        )
        learnt: dict[str, adapt_lib.Adaptation] = {}
        rows: list[list[str]] = [[] for _ in indices]
        params_on, schedule_on, prior_on = devices.replicate((params, run.schedule, prior))
        for name, options in specs.items():
            given = learnt[options.after].embedding if options.after else None
            # Moved once, to where the steps need them.
            item = devices.spread((dataclasses.replace(examples, given=given), keys(f"fit {name}")))
            progress = functools.partial(console.progress, what=f"adapt {name}")
            try:
                fitted = fits[name](params_on, schedule_on, *item, prior_on, progress)
            except FloatingPointError as error:
                raise UserError(f"adapt: {name}: {error}; what was finished before is kept.") from error
            learnt[name], seen = devices.gather(fitted, len(indices))
            for lines, of_query in zip(rows, np.asarray(seen).tolist(), strict=True):
                lines += [json.dumps({"level": name, "step": n, "loss": loss}) for n, loss in enumerate(of_query, 1)]
        for i, lines in zip(indices, rows, strict=True):
            storage.write_text(run.path("adapt", f"query_{i:04d}.jsonl"), "".join(f"{line}\n" for line in lines))
        return devices.unstack(QueryModel(devices.stack(teachers), losses, composed, learnt))

    return saved_by_query(run, "adapt", active, settings.chunk * jax.local_device_count(), work)
