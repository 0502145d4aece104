"""The page that shows what the other stages found."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from cdisc import console, signals, storage
from cdisc.app import config as config_lib
from cdisc.app import workdir
from cdisc.app.report import cards, html
from cdisc.app.report import results as results_lib
from cdisc.app.run import Run
from cdisc.app.stages.evaluate import REAL
from cdisc.app.stages.saved import read_seconds
from cdisc.data import planar
from cdisc.discovery import concepts, novelty
from cdisc.discovery import hierarchy as hierarchy_lib
from cdisc.evaluation import methods, options
from cdisc.evaluation.protocol import best_sigma
from cdisc.networks import bundled

_FAR = 3.0
"""Novelty from which on a query is warned of; docs/results.md says what digits have, held-out ones and on white."""


def report(
    run: Run,
    params: Any,
    discoveries: Sequence[concepts.Discovery],
    samples: Sequence[dict[str, np.ndarray]],
    hierarchy: tuple[dict[str, Any], hierarchy_lib.Hierarchy] | None,
) -> None:
    """Writes `report/index.html` from what the other stages left."""
    results = results_lib.read(run.path("results.json"), workdir.identity(run.content, "figures"))
    results["seconds"] = read_seconds(run.path("seconds.json"))
    results_lib.write(run.path("results.json"), results)
    tree, levels = None, ()
    if hierarchy is not None:
        tree, followed = hierarchy
        levels = tuple(m[: len(level["modes"])] for m, level in zip(followed.m, tree["levels"], strict=True))
    folder, ways = run.path("report"), run.config.evaluate.methods
    html.write(
        folder,
        html.Page(
            title=f"cdisc on {run.dataset.name}",
            results=results,
            panels=panels(run, discoveries, samples, results),
            plane=plane_of(run, params),
            methods=descriptions(run, results),
            shown_first=(methods.COMPOSED, *ways, "poe", options.PRODUCT),
            dials=dials(ways),
            reference=REAL,
            hierarchy=tree,
            hierarchy_modes=levels,
        ),
    )
    console.say(f"report: {folder / 'index.html'}")


def panels(
    run: Run,
    discoveries: Sequence[concepts.Discovery],
    samples: Sequence[dict[str, np.ndarray]],
    results: dict[str, Any],
) -> Iterator[cards.Panel]:
    """What the page shows of each query, read when asked for: all of it may not fit in memory."""
    known = trained_likelihoods(run.config)
    for query, discovery, drawn, entry in zip(run.queries, discoveries, samples, results["queries"], strict=True):
        signals.obey()
        warning = ""
        if known is not None and "failed" not in entry:
            composed = novelty.composed_likelihoods(jnp.asarray(query.image), discovery, run.config.discover)
            score = float(novelty.novelty(composed, jnp.asarray(known)))
            entry = {**entry, "novelty": {"score": score, "trained_pictures": len(known)}}
            if score > _FAR:
                warning = (
                    f"The network's modes explain this picture worse than pictures of trained classes, by {score:.1f} "
                    f"standard deviations of {len(known)} of these: it lies outside of what they span, where the "
                    "method is known to fail."
                )
                console.warn(f"report: {query.name}: {warning}")
        yield cards.Panel(entry=entry, query=query.image, discovery=discovery, samples=drawn, warning=warning)


def trained_likelihoods(config: config_lib.Config) -> np.ndarray | None:
    """How likely pictures of trained classes are, as `tools/novelty.py` found; None under other weights or settings."""
    path = bundled.FOLDER / f"{config.pretrain.bundle}_novelty.json"
    if config.pretrain.from_scratch or config.pretrain.restore or not path.exists():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    alike = content["discover"] == storage.digest(dataclasses.asdict(config.discover))
    return np.asarray(content["likelihoods"], np.float32) if alike else None


def dials(ways: Mapping[str, options.Method]) -> dict[str, dict[float, str]]:
    """The methods that differ in their guidance alone, two or more, by growing guidance and by their first's name."""
    found: dict[options.Method, dict[float, str]] = {}
    for name, way in ways.items():
        found.setdefault(dataclasses.replace(way, guidance=1.0), {})[way.guidance] = name
    return {next(iter(dial.values())): dict(sorted(dial.items())) for dial in found.values() if len(dial) > 1}


def descriptions(run: Run, results: dict[str, Any]) -> dict[str, str]:
    """One sentence for each method, for the page's legend."""
    settings, measured = run.config.evaluate, results["methods"]
    learnt = {name: level.describe() for name, level in run.config.adapt.levels.items()}
    sentences = methods.sentences(settings, learnt) | {
        options.PRODUCT: "Draws of the product itself, without the network.",
        REAL: "Other real pictures of the composition in the place of samples: what a perfect method would reach.",
    }
    widths = {sigma: measured[methods.query_only_name(sigma)] for sigma in settings.query_only_sigmas}
    if widths and all(figures["joint_accuracy"] is not None for figures in widths.values()):
        sentences[methods.query_only_name(best_sigma(widths))] += " The best width of the grid."
    return {name: sentences[name] for name in measured}


def plane_of(run: Run, params: Any) -> html.Plane | None:
    """The trained and held-out cells of points in the plane; None for pictures."""
    if run.network is not None:
        return None
    data = run.config.data
    assert isinstance(data, planar.Options)  # the only points that there are
    held_out = planar.planar_mixture(data.levels, data.levels, data.stds, run.dataset.split, held_out=True)
    return html.Plane(trained=params, held_out=held_out)
