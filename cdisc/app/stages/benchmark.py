"""The paper's protocol on all held-out classes under several seeds: its configuration, its tables and figures."""

import dataclasses
import json

from cdisc import console, storage
from cdisc.app import config as config_lib
from cdisc.app.config import Config
from cdisc.app.report import results as results_lib
from cdisc.app.run import Run
from cdisc.evaluation import study


def expanded(config: Config) -> Config:
    """The configuration of a benchmark: every held-out class, three seeds, and methods that know the query alone.

    What the configuration says of `evaluate.per_class` and `evaluate.seeds` stays. Beside every adaptation that learns
    from samples of the product stands the same one on the query alone (as DreamBooth does, Ruiz et al. 2023), and
    beside a class embedding that starts at a trained class one that starts at noise: textual inversion (Gal et al.
    2023). Both have the budget of what they stand beside.
    """
    levels, methods = dict(config.adapt.levels), dict(config.evaluate.methods)
    for name, level in config.adapt.levels.items():
        sampled = [method for method in config.evaluate.methods.values() if method.level == name]
        alone = dataclasses.replace(level, pool="query")
        if level.pool != "query" and alone not in levels.values():
            new = f"{name}_query"
        elif level.start == "top1" and level.rank == 0 and level.space == "free" and not level.after:
            alone, new = dataclasses.replace(level, start="normal", candidates=1), "inversion"
        else:
            continue
        if sampled and new not in levels:
            levels[new], methods[new] = alone, dataclasses.replace(sampled[0], level=new)
    settings = config.evaluate
    return dataclasses.replace(
        config,
        adapt=dataclasses.replace(config.adapt, levels=levels),
        evaluate=dataclasses.replace(
            settings,
            methods=methods,
            per_class=settings.per_class or 1,
            seeds=settings.seeds or tuple(config.seed + i for i in range(3)),
        ),
    )


def benchmark(run: Run) -> None:
    """Writes `benchmark/`, from `results.json` alone: a summary, its tables as Markdown and LaTeX, and its figures."""
    results = results_lib.read(run.path("results.json"))
    settings = config_lib.flatten(config_lib.as_dict(run.config))
    summary = results_lib.json_safe(study.summarise(results, settings))
    folder = run.path("benchmark")
    storage.write_text(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    storage.write_text(folder / "tables.md", study.markdown(summary))
    storage.write_text(folder / "tables.tex", study.latex(summary))
    for figure in study.DIFFERENCES:
        storage.write_text(folder / f"{figure}.svg", study.chart(summary, figure))
    console.say(f"benchmark: {folder / 'tables.md'}")
