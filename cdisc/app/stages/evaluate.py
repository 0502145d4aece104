"""Samples of every method for every query, and their figures."""

import dataclasses
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cdisc import console, runtime, signals, storage
from cdisc.app import config as config_lib
from cdisc.app import devices, hosts
from cdisc.app.config import Config
from cdisc.app.report import results as results_lib
from cdisc.app.run import Query, Run
from cdisc.app.stages.adapt import QueryModel, draw, learns_from_product
from cdisc.app.stages.discover import NOTHING, found
from cdisc.app.stages.judge import judge_report, load_judge
from cdisc.app.stages.saved import read_seconds, saved_by_query
from cdisc.data import compositions
from cdisc.discovery import concepts
from cdisc.errors import UserError
from cdisc.evaluation import judge, methods, protocol
from cdisc.keys import named

PRODUCT = "product"
REAL = "real pictures"


def densities_of(run: Run, params: Any, query: Query, model: QueryModel) -> dict[str, methods.GuidedDensity]:
    """Every method's density for one query."""
    image, table, options = jnp.asarray(query.image), run.backbone.table(params), run.config.evaluate
    known = (model.teacher, table, model.losses, model.adaptations)
    return methods.densities(image, *known, options, run.config.guidance)


def needs_product(config: Config, method: str) -> bool:
    """Whether a method means nothing for a query whose discovery found no modes to multiply."""
    own = config.evaluate.methods.get(method)
    if own is None:
        return method in ("poe", PRODUCT)
    return own.teacher_weight > 0 or learns_from_product(config.adapt.levels, own.level)


@dataclasses.dataclass(frozen=True)
class Present(Sequence[dict[str, np.ndarray]]):
    """Samples of queries by method, without those that there are none of."""

    saved: Sequence[dict[str, np.ndarray]]

    def __len__(self) -> int:
        return len(self.saved)

    def __getitem__(self, index: Any) -> Any:
        return {name: samples for name, samples in self.saved[index].items() if not np.isnan(samples).all()}


def evaluate(
    run: Run, params: Any, discoveries: Sequence[concepts.Discovery], models: Sequence[QueryModel], active: bool
) -> Sequence[dict[str, np.ndarray]]:
    """Samples of every method for every query, measured; writes `results.json`.

    What needs the product of a query without modes is NaN in its file, and absent from what is returned.
    """
    settings = run.config.evaluate

    def work(indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
        known = [models[i] for i in indices]
        without = [j for j, i in enumerate(indices) if not found(discoveries[i])]
        densities = [densities_of(run, params, run.queries[i], model) for i, model in zip(indices, known, strict=True)]
        keys = [run.key("evaluate", run.queries[i]) for i in indices]
        # All methods start from the same noise, so that their samples can be compared one by one.
        starts, draws = ([named(key, use) for key in keys] for use in ("noise", "product"))
        drawn = {}
        for name in densities[0]:
            signals.obey()
            drawn[name] = draw(run, params, [density[name] for density in densities], starts, settings.samples)
        # The product itself, without the network: right where the teacher is, but not a realistic picture.
        drawn[PRODUCT] = np.stack(
            [model.teacher.sample(key, settings.samples) for model, key in zip(known, draws, strict=True)]
        )
        for name, samples in drawn.items():
            absent = without if needs_product(run.config, name) else []
            if not np.isfinite(np.delete(samples, absent, axis=0)).all():
                raise UserError(f"evaluate: samples of {name} are not finite: lower its guidance.")
            samples[absent] = np.nan
        return devices.unstack(drawn)

    names = densities_of(run, params, run.queries[0], models[0])
    like = {
        name: jax.ShapeDtypeStruct((settings.samples, *run.dataset.shape), jnp.float32) for name in (*names, PRODUCT)
    }
    samples = Present(saved_by_query(run, "evaluate", active, like, jax.local_device_count(), work))
    if active and hosts.first():
        signals.obey()  # a judge may have to be trained
        write_results(run, discoveries, samples, load_judge(run))
    return samples


def score_class(
    run: Run, queries: Sequence[Query], samples: Iterable[dict[str, np.ndarray]], judged_by: judge.Judge | None
) -> tuple[list[dict[str, protocol.Figures]], dict[str, dict[str, protocol.Figures]]]:
    """What was drawn for the queries of one class, measured.

    Args:
      run: the run.
      queries: of one composition, or a single one of unknown composition.
      samples: for each of them, method name to samples; taken one by one.
      judged_by: see `load_judge`.

    Returns:
      For each query, method name to its figures; and method name to the figures of all queries together, empty where
      these have too few samples for precision and recall.
    """
    settings, composition = run.config.evaluate, queries[0].composition
    references, real = None, {}
    if composition is not None:
        pictures = run.dataset.references(composition, settings.references + settings.samples)
        references = jnp.asarray(pictures[: settings.references])
        # Other real pictures of the composition in place of samples: what a perfect method would reach.
        real = {REAL: pictures[settings.references :]}
    together = len(queries) > 1 and len(queries) * settings.samples > settings.k
    figures: list[dict[str, protocol.Figures]] = []
    pools: dict[str, list[np.ndarray]] = {}
    for query, drawn in zip(queries, samples, strict=True):
        signals.obey()
        figures.append({})
        for name, images in {**drawn, **real}.items():
            shown, image = jnp.asarray(images), jnp.asarray(query.image)
            if judged_by is None:
                figures[-1][name] = protocol.unjudged(shown, image)
                continue
            figures[-1][name] = protocol.score_samples(judged_by, shown, image, composition, references, k=settings.k)
            # The same real pictures are compared with every query: pooled, they would be copies of one another.
            if together and name != REAL:
                pools.setdefault(name, []).append(np.asarray(judged_by.features(shown)))
    if judged_by is None or references is None or not together:
        return figures, {}
    given = judged_by.features(jnp.asarray(np.stack([query.image for query in queries])))
    others = judged_by.features(references)
    pooled = {
        name: protocol.score_pooled(jnp.asarray(np.concatenate(pool)), given, others, k=settings.k)
        for name, pool in pools.items()
    }
    return figures, pooled


def write_results(
    run: Run,
    discoveries: Sequence[concepts.Discovery],
    samples: Sequence[dict[str, np.ndarray]],
    judged_by: judge.Judge | None,
) -> None:
    """Measures the samples, class by class, and writes `results.json`."""
    # A picture of unknown composition is a class of its own.
    labels = [i if query.composition is None else query.composition for i, query in enumerate(run.queries)]
    classes: dict[Hashable, list[int]] = {}
    for i, label in enumerate(labels):
        classes.setdefault(label, []).append(i)
    measured: dict[int, dict[str, protocol.Figures]] = {}
    pools = []
    for places in classes.values():
        drawn = (samples[i] for i in places)
        figures, pooled = score_class(run, [run.queries[i] for i in places], drawn, judged_by)
        measured |= zip(places, figures, strict=True)
        pools.append(pooled)
    queries: list[dict[str, Any]] = []
    for i, (query, discovery) in enumerate(zip(run.queries, discoveries, strict=True)):
        signals.obey()
        queries.append(
            {
                "name": query.name,
                "attributes": None
                if query.composition is None
                else compositions.attributes(run.dataset.split.factors, query.composition),
                "source": query.source,
                **({} if found(discovery) else {"failed": NOTHING}),
                "prototypes": prototypes_of(discovery),
                "nfe": int(discovery.info.nfe),
                "discovery": {name: value for name, value in vars(discovery.info).items() if name != "nfe"}
                | {"timesteps": run.config.discover.timesteps},
                "methods": measured[i],
            }
        )
    methods = protocol.aggregate([query["methods"] for query in queries], labels)
    failed = sum("failed" in query for query in queries)
    if failed:
        console.warn(f"evaluate: {failed} of {len(queries)} queries: {NOTHING}.")
    for overall in methods.values():
        overall["failed"] = len(queries) - overall["queries"]
    for name, pooled in protocol.aggregate_pooled(pools).items():
        methods[name]["pooled"] = pooled
    results_lib.write(
        run.path("results.json"),
        {
            "schema_version": results_lib.SCHEMA_VERSION,
            "dataset": run.dataset.name,
            "data_hash": run.dataset.fingerprint,
            "config_hash": storage.digest(config_lib.as_dict(run.config)),
            "seed": run.config.seed,
            "versions": runtime.versions(),
            "seconds": read_seconds(run.path("seconds.json")),
            # An exact judge needs no calibration.
            **({} if judged_by is None or run.network is None else {"judge": judge_report(run, judged_by)}),
            "queries": queries,
            "methods": methods,
        },
    )


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
