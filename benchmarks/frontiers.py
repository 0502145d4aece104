"""How right and how varied each method is along its guidance, on the same queries, and which differences stand.

    python -m benchmarks.frontiers --config=configs/avatars.py:small --workdir=runs/frontiers \
        --methods=embedding,lora --guidance=1,1.5,2,3 --seeds=0,1,2

A method's dial is the guidance of its class, or the weight of its teacher where it has no class; `embedding@0.3:12` is
a method whose class guides only between these noise-to-signal ratios (`class_sigma_min`). Each query's figures go to
`seed_*/frontiers/` in the workdir as soon as they are there; the same command goes on from what it finds, also with
more methods, guidances or seeds. `frontiers.json` has the means over queries, seeds averaged first, the frontiers of
accuracy and recall of right samples (`evaluation.frontier`), and the differences of every two methods.

Choose settings on `--turn=2`, the second picture of each held-out class, and report `--turn=1`.
"""

import copy
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from cdisc import console, runtime, storage

_CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration.")
_WORKDIR = flags.DEFINE_string("workdir", None, "A folder for all that is measured.")
_METHODS = flags.DEFINE_list("methods", None, "Names of methods, as in the results of a run.")
_GUIDANCE = flags.DEFINE_list("guidance", ["1", "1.5", "2", "3"], "The dial's settings.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds of discovery, adaptation and samples.")
_TURN = flags.DEFINE_integer("turn", 1, "Which picture of each held-out class is the query.", lower_bound=1)
_QUERIES = flags.DEFINE_integer("queries", None, "How many of them; all held-out classes by default.", lower_bound=2)
_ACCURACIES = (0.91, 0.95)


def measure(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """For each query, by name: method name to the dial's settings to `protocol.Figures`; for one seed."""
    import jax.numpy as jnp

    from cdisc.app.config import read
    from cdisc.app.run import opened, prepare
    from cdisc.app.stages.adapt import adapt, draw
    from cdisc.app.stages.discover import discover
    from cdisc.app.stages.evaluate import densities_of
    from cdisc.app.stages.judge import load_judge
    from cdisc.app.stages.pretrain import pretrain
    from cdisc.errors import UserError, nearest
    from cdisc.evaluation import protocol

    classes = len(prepare(read(config), workdir, []).dataset.split.held_out)
    first, count = (_TURN.value - 1) * classes, _QUERIES.value or classes
    config.evaluate.num_queries = first + count
    found = {}
    with opened(read(config), workdir, []) as run:
        run = dataclasses.replace(run, queries=run.queries[first:])
        params = pretrain(run, active=True)
        judge = load_judge(run)
        models = adapt(run, params, discover(run, params, active=True), active=True)
        for i, query in enumerate(console.progress(run.queries, f"seed {config.seed}", len(run.queries))):
            path = run.path("frontiers", f"query_{i:04d}.json")
            figures = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            found[query.name] = figures
            wanted = [(m, g) for m in _METHODS.value for g in _GUIDANCE.value if g not in figures.get(m, {})]
            if not wanted:
                continue
            densities = densities_of(run, params, query, models[i])
            references = jnp.asarray(run.dataset.references(query.composition, config.evaluate.references))
            for method, setting in wanted:
                name, _, interval = method.partition("@")
                if name not in densities:
                    raise UserError(f"--methods has no {name!r}{nearest(name, densities)}: {', '.join(densities)}.")
                density, weight = densities[name], float(setting)
                least, most = map(float, (interval or "0:inf").split(":"))
                density = (
                    dataclasses.replace(
                        density,
                        weights=density.weights * (weight / jnp.sum(density.weights)),
                        class_sigma_min=least,
                        class_sigma_max=most,
                    )
                    if len(density.weights)
                    else dataclasses.replace(density, teacher_weight=weight)
                )
                [samples] = draw(run, params, [density], [run.key("evaluate", query)], config.evaluate.samples)
                figures.setdefault(method, {})[setting] = protocol.score_samples(
                    judge,
                    jnp.asarray(samples),
                    jnp.asarray(query.image),
                    query.composition,
                    references,
                    k=config.evaluate.k,
                )
            storage.write_text(path, json.dumps(figures))
    return found


def points(seeds: Sequence[dict[str, Any]], method: str) -> np.ndarray:
    """Accuracy and recall of right samples of one method, the mean over seeds: (queries, settings, 2)."""
    return np.mean(
        [
            [
                [
                    [query[method][setting][figure] for figure in ("joint_accuracy", "right_recall")]
                    for setting in _GUIDANCE.value
                ]
                for _, query in sorted(found.items())  # seeds have their own order
            ]
            for found in seeds
        ],
        axis=0,
    )


def compare(seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The methods' frontiers, and the differences of every two with their paired intervals."""
    from cdisc.evaluation import frontier, protocol, statistics

    def of(points: np.ndarray) -> frontier.Frontier:
        return frontier.frontier(*points.mean(axis=0).T)

    # A resample in which a dial never reaches the accuracy counts as no recall.
    figures = {"area": lambda points: frontier.area(of(points))} | {
        f"recall at {least:g}": lambda points, least=least: np.nan_to_num(frontier.recall_at(of(points), least))
        for least in _ACCURACIES
    }
    measured = {method: points(seeds, method) for method in _METHODS.value}
    table = {
        method: {
            setting: protocol.aggregate(
                [{method: query[method][setting]} for found in seeds for query in found.values()],
                [name for found in seeds for name in found],
            )[method]
            for setting in _GUIDANCE.value
        }
        for method in _METHODS.value
    }
    return {
        "points": table,
        "frontiers": {
            method: {name: float(statistic(values)) for name, statistic in figures.items()}
            for method, values in measured.items()
        },
        "differences": {
            f"{first} - {second}": {
                name: statistics.paired_bootstrap(
                    measured[first], measured[second], np.random.default_rng(0), statistic=statistic
                )._asdict()
                for name, statistic in figures.items()
            }
            for first, second in itertools.combinations(_METHODS.value, 2)
        },
    }


def main(_: list[str]) -> None:
    """Measures what is missing, and prints the frontiers and the differences."""
    workdir, seeds = pathlib.Path(_WORKDIR.value), []
    for seed in _SEEDS.value:
        config = copy.deepcopy(_CONFIG.value)
        config.seed = int(seed)
        seeds.append(measure(config, workdir / f"seed_{seed}"))
    found = compare(seeds)
    storage.write_text(workdir / "frontiers.json", json.dumps(found, indent=2) + "\n")
    for method, settings in found["points"].items():
        for setting, row in settings.items():
            shown = ", ".join(
                f"{name.replace('_', ' ')} {row[name]:.2f} ± {row['standard_error'][name]:.2f}"
                for name in ("joint_accuracy", "right_recall", "coverage", "precision", "vendi")
            )
            console.say(f"{method}, {setting}: {shown}")
    for method, figures in found["frontiers"].items():
        console.say(f"{method}: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    for pair, figures in found["differences"].items():
        ends = (f"{name} {d['estimate']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]" for name, d in figures.items())
        console.say(f"{pair}: " + ", ".join(ends))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir", "methods"])
    runtime.configure()  # before the configuration, which uses JAX
    app.run(main)
