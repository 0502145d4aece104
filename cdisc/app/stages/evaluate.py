"""Samples of every method for every query, and their figures."""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cdisc import console, runtime, signals, storage
from cdisc.app import config as config_lib
from cdisc.app import hosts, workdir
from cdisc.app.report import results as results_lib
from cdisc.app.run import Run
from cdisc.app.stages.adapt import QueryModel, draw
from cdisc.app.stages.discover import NOTHING
from cdisc.app.stages.judge import judge_report, load_judge
from cdisc.app.stages.saved import read_seconds, saved_by_query
from cdisc.data import compositions
from cdisc.data.queries import Query
from cdisc.discovery import concepts
from cdisc.errors import UserError, about
from cdisc.evaluation import features, judge, methods, options, protocol
from cdisc.keys import named

REAL = "real pictures"

_TRAINING = 1000
"""Pictures that the network learnt from, among which the nearest to each sample is sought."""


def densities_of(run: Run, params: Any, query: Query, model: QueryModel) -> dict[str, methods.GuidedDensity]:
    """Every method's density for one query."""
    composed = None if model.composed is None else model.composed.embedding
    known = (model.teacher, run.backbone.table(params), model.losses, composed, model.adaptations)
    return methods.densities(jnp.asarray(query.image), *known, run.config.evaluate, run.config.guidance)


def evaluate(
    run: Run, params: Any, discoveries: Sequence[concepts.Discovery], models: Sequence[QueryModel], active: bool
) -> Sequence[dict[str, np.ndarray]]:
    """Samples of every method for every query, measured; writes `results.json`.

    What needs the product of a query without modes is left out.
    """
    settings, levels = run.config.evaluate, run.config.adapt.levels

    def work(indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
        known = [models[i] for i in indices]
        found = [discoveries[i].found for i in indices]
        densities = [densities_of(run, params, run.queries[i], model) for i, model in zip(indices, known, strict=True)]
        keys = [run.key("evaluate", run.queries[i]) for i in indices]
        # All methods start from the same noise, so that their samples can be compared one by one.
        starts, draws = ([named(key, use) for key in keys] for use in ("noise", "product"))
        drawn = {}
        for name in densities[0]:
            signals.obey()
            drawn[name] = draw(run, params, [density[name] for density in densities], starts, settings.samples)
        # The product itself, without the network: right where the teacher is, but not a realistic picture.
        drawn[options.PRODUCT] = np.stack(
            [model.teacher.sample(key, settings.samples) for model, key in zip(known, draws, strict=True)]
        )
        results: list[dict[str, np.ndarray]] = [{} for _ in indices]
        for name, samples in drawn.items():
            needed = options.needs_product(levels, settings.methods, name)
            for result, has_product, made in zip(results, found, samples, strict=True):
                if has_product or not needed:
                    result[name] = made
                    if not np.isfinite(made).all():
                        raise UserError(f"evaluate: samples of {name} are not finite: lower its guidance.")
        return results

    samples = saved_by_query(run, "evaluate", active, jax.local_device_count(), work)
    if active and hosts.first():
        signals.obey()  # a judge may have to be trained
        write_results(run, discoveries, samples, load_judge(run))
    return samples


def score_class(
    run: Run,
    places: Sequence[int],
    samples: Sequence[dict[str, np.ndarray]],
    judged_by: judge.Judge,
    compared_in: features.Features,
    training: jax.Array | None,
) -> tuple[list[dict[str, protocol.Figures]], dict[str, dict[str, protocol.Figures]]]:
    """What was drawn for the queries at some places, all of one composition and one seed, measured.

    Where there is a composition, `training` are pictures that the network learnt from.
    """
    settings, dataset, composition = run.config.evaluate, run.dataset, run.queries[places[0]].composition
    shown = [jnp.asarray(run.queries[i].image) for i in places]

    def drawn() -> Iterator[dict[str, jax.Array]]:
        for i in places:
            signals.obey()
            yield jax.tree.map(jnp.asarray, samples[i])

    references, real = None, {}
    if composition is not None:
        pictures = jnp.asarray(dataset.references(composition, settings.references + settings.samples))
        with about(f"{dataset.name}, {run.queries[places[0]].name}: "):
            parts = {"the queries": np.stack(shown), "the references": np.asarray(pictures)}
            protocol.require_disjoint(parts | {"what the network learnt from": np.asarray(training)})
        # Other real pictures of the composition in place of samples: what a perfect method would reach.
        references, real = pictures[: settings.references], {REAL: pictures[settings.references :]}
    extract, k = compared_in.extract, settings.k
    return protocol.score_class(
        judged_by, shown, drawn(), composition, references, real=real, k=k, extract=extract, training=training
    )


def write_results(
    run: Run,
    discoveries: Sequence[concepts.Discovery],
    samples: Sequence[dict[str, np.ndarray]],
    judged_by: judge.Judge,
) -> None:
    """Measures the samples, class by class, and writes `results.json`."""
    # A picture of unknown composition is a class of its own.
    labels = [i if query.composition is None else query.composition for i, query in enumerate(run.queries)]
    classes: dict[tuple[Hashable, int], list[int]] = {}
    for i, (label, query) in enumerate(zip(labels, run.queries, strict=True)):
        classes.setdefault((label, query.seed), []).append(i)
    settings, factors, training = run.config.evaluate, run.dataset.split.factors, None
    compared_in = features.judge_features(judged_by)
    if settings.features != "judge":
        compared_in = features.load(settings.features, settings.weights)
    if any(query.composition is not None for query in run.queries):
        key, rows = named(run.key("evaluate"), "training"), np.arange(_TRAINING)
        training, _ = run.dataset.train_batch(run.dataset.train, key, _TRAINING, rows)
    measured: dict[int, dict[str, protocol.Figures]] = {}
    pools = {}
    for of, places in classes.items():
        figures, pools[of] = score_class(run, places, samples, judged_by, compared_in, training)
        measured |= zip(places, figures, strict=True)
    queries = [
        {
            "name": query.name,
            "attributes": None if query.composition is None else compositions.attributes(factors, query.composition),
            "source": query.source,
            "seed": query.seed,
            **({} if discovery.found else {"failed": NOTHING}),
            **protocol.describe(discovery),
            "methods": measured[i],
        }
        for i, (query, discovery) in enumerate(zip(run.queries, discoveries, strict=True))
    ]
    pooled_by_class = [
        {"attributes": queries[classes[label, seed][0]]["attributes"], "seed": seed, "methods": pooled}
        for (label, seed), pooled in pools.items()
        if pooled
    ]
    figures_of = [query["methods"] for query in queries]
    failed = sum("failed" in query for query in queries)
    if failed:
        console.warn(f"evaluate: {failed} of {len(queries)} queries: {NOTHING}.")
    results_lib.write(
        run.path("results.json"),
        {
            "schema_version": results_lib.SCHEMA_VERSION,
            "dataset": run.dataset.name,
            "data_hash": run.dataset.fingerprint,
            "config_hash": storage.digest(config_lib.as_dict(run.config)),
            "run_hash": workdir.identity(run.content, "figures"),
            "seed": run.config.seed,
            "versions": runtime.versions(),
            "seconds": read_seconds(run.path("seconds.json")),
            # An exact judge needs no calibration, and one of nothing has none.
            **({} if run.network is None or not judged_by.factors else {"judge": judge_report(run, judged_by)}),
            "features": compared_in.label,
            "queries": queries,
            **({"classes": pooled_by_class} if pooled_by_class else {}),
            "methods": protocol.overall(figures_of, labels, list(pools.values()), [label for label, _ in pools]),
        },
    )
