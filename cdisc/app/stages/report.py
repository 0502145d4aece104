"""The page that shows what the other stages found."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cdisc import console, signals
from cdisc.app.report import html
from cdisc.app.report import results as results_lib
from cdisc.app.run import Run
from cdisc.app.stages.evaluate import PRODUCT, REAL
from cdisc.app.stages.saved import read_seconds
from cdisc.data import planar
from cdisc.discovery import concepts
from cdisc.discovery import hierarchy as hierarchy_lib
from cdisc.evaluation.methods import query_only_name
from cdisc.evaluation.protocol import best_sigma


def report(
    run: Run,
    params: Any,
    discoveries: Sequence[concepts.Discovery],
    samples: Sequence[dict[str, np.ndarray]],
    hierarchy: tuple[dict[str, Any], hierarchy_lib.Hierarchy] | None,
) -> None:
    """Writes `report/index.html` from what the other stages left."""
    results = results_lib.read(run.path("results.json"))
    results["seconds"] = read_seconds(run.path("seconds.json"))
    results_lib.write(run.path("results.json"), results)
    title = f"cdisc on {run.dataset.name}"
    subtitle = f"config {results['config_hash'][:12]}, seed {run.config.seed}"
    tree, levels = None, ()
    if hierarchy is not None:
        tree, followed = hierarchy
        levels = tuple(m[: len(level["modes"])] for m, level in zip(followed.m, tree["levels"], strict=True))
    path = run.path("report", "index.html")
    html.write(
        path,
        html.Page(
            title=title,
            subtitle=subtitle,
            results=results,
            panels=panels(run, discoveries, samples, results),
            plane=plane_of(run, params),
            methods=descriptions(run, results),
            reference=REAL,
            hierarchy=tree,
            hierarchy_modes=levels,
        ),
    )
    console.say(f"report: {path}")


def panels(
    run: Run,
    discoveries: Sequence[concepts.Discovery],
    samples: Sequence[dict[str, np.ndarray]],
    results: dict[str, Any],
) -> Iterator[html.Panel]:
    """What the page shows of each query, read when asked for: all of it may not fit in memory."""
    for query, discovery, drawn, entry in zip(run.queries, discoveries, samples, results["queries"], strict=True):
        signals.obey()
        yield html.Panel(entry=entry, query=query.image, discovery=discovery, samples=drawn)


def descriptions(run: Run, results: dict[str, Any]) -> dict[str, str]:
    """One sentence for each method, for the page's legend."""
    settings = run.config.evaluate
    sentences = {
        "poe": "The null model guided towards the product of the experts (Eq. 13, 14).",
        PRODUCT: "Draws of the product itself, without the network.",
        "top1": "The trained class that denoises the query best, guided.",
        "top3": "The three best trained classes, composed.",
        REAL: "Other real pictures of the composition in the place of samples: what a perfect method would reach.",
    }
    widths = {sigma: query_only_name(sigma) for sigma in settings.query_only_sigmas}
    known = all(results["methods"][name]["joint_accuracy"] is not None for name in widths.values())
    best = best_sigma({s: results["methods"][name] for s, name in widths.items()}) if widths and known else None
    for sigma in {settings.query_only_sigma, *settings.query_only_sigmas}:
        which = "; the best width of the grid" if sigma == best else ""
        if sigma == settings.query_only_sigma:
            which += "; the paper publishes none: its text calls it small, its figures suggest a wide one"
        sentences[query_only_name(sigma)] = f"A Gaussian of this width around the query as the teacher{which}."
    for name, method in run.config.evaluate.methods.items():
        level = run.config.adapt.levels[method.level]
        space = {
            "free": "",
            "span": " in the span of the trained ones",
            "per_block": ", for each residual block its own",
        }
        learnt = f"a new class embedding{space[level.space]}"
        learnt += f" and LoRA of rank {level.rank}" if level.rank else ""
        nearest = f"one of the {level.candidates} nearest classes" if level.candidates > 1 else "the nearest class"
        start = f"what {level.after} learnt" if level.after else {"normal": "noise", "top1": nearest}[level.start]
        source = {
            "query": "the query",
            "teacher": "the teacher's samples",
            "both": "the query and the teacher's samples",
        }
        beside = f", the teacher beside it at weight {method.teacher_weight:g}" if method.teacher_weight > 0 else ""
        what = f"Learns {learnt} from {source[level.pool]}, starting at {start}"
        sentences[name] = f"{what}; guidance {method.guidance:g}{beside}."
    return {name: sentences[name] for name in results["methods"]}


def plane_of(run: Run, params: Any) -> html.Plane | None:
    """The trained and held-out cells of points in the plane; None for pictures."""
    if run.network is not None:
        return None
    data = run.config.data
    assert isinstance(data, planar.Options)  # the only points that there are
    held_out = planar.planar_mixture(data.levels, data.levels, data.std, run.dataset.split, held_out=True)
    return html.Plane(trained=params, held_out=held_out)
