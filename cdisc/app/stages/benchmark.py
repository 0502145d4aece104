"""The paper's protocol on all held-out classes under several seeds: its configuration, its tables and figures."""

import dataclasses
import json

from flax.traverse_util import flatten_dict

from cdisc import console, storage
from cdisc.app import config as config_lib
from cdisc.app import workdir
from cdisc.app.config import Config
from cdisc.app.report import results as results_lib
from cdisc.app.run import Run
from cdisc.evaluation import options, study


def expanded(config: Config) -> Config:
    """The configuration of a benchmark: every held-out class, three seeds, and methods that know the query alone.

    What the configuration says of `evaluate.per_class` and `evaluate.seeds` stays.
    """
    settings = config.evaluate
    levels, methods = options.with_baselines(config.adapt.levels, settings.methods)
    seeds = settings.seeds or tuple(config.seed + i for i in range(3))
    evaluate = dataclasses.replace(settings, methods=methods, per_class=settings.per_class or 1, seeds=seeds)
    return dataclasses.replace(config, adapt=dataclasses.replace(config.adapt, levels=levels), evaluate=evaluate)


def benchmark(run: Run) -> None:
    """Writes `benchmark/`, from `results.json` alone: a summary, its tables as Markdown and LaTeX, and its figures."""
    results = results_lib.read(run.path("results.json"), workdir.identity(run.content, "figures"))
    settings = flatten_dict(config_lib.as_dict(run.config), sep=".")
    summary = results_lib.json_safe(study.summarise(results, settings))
    folder = run.path("benchmark")
    storage.write_text(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    storage.write_text(folder / "tables.md", study.markdown(summary))
    storage.write_text(folder / "tables.tex", study.latex(summary))
    for figure in study.DIFFERENCES:
        storage.write_text(folder / f"{figure}.svg", study.chart(summary, figure))
    console.say(f"benchmark: {folder / 'tables.md'}")
