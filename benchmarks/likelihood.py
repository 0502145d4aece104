"""What discovery knows of a class: the likelihood of its other pictures, and how draws cover them.

    python -m benchmarks.likelihood --config=configs/mixture.py:uneven --each=20 --workdir=runs/likelihood

Three Gaussians are made of ONE picture: the product of the concepts found in it; N(query, s^2 I), Query-only; and
N(query, v), where v is the network's posterior variance at the query itself, which takes the network's Jacobian and
neither modes nor a selection. Each has a dial: the variances of the first and the last are multiplied by a temperature,
and the last one has its noise level, too. Dials are set on pictures that are not reported: `--each` of every held-out
class are, and as many others set them. Means over classes with intervals of the bootstrap over classes.

The likelihood is exact, in nats an entry. Of draws, at the dial of the best coverage among those where `--accuracy` of
them are right, it says joint accuracy, recall of right samples and coverage, as `evaluation.protocol` does.
"""

import json
import pathlib

import numpy as np
from absl import app, flags
from ml_collections import config_flags

from cdisc import console, runtime, storage

_CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration.")
_WORKDIR = flags.DEFINE_string("workdir", None, "A folder for the backbone and `likelihood.json`.")
_EACH = flags.DEFINE_integer("each", 1, "Pictures of each held-out class that are reported.", lower_bound=1)
_ACCURACY = flags.DEFINE_float("accuracy", 0.95, "The share of draws that a dial must get right.", 0.0, 1.0)

_SCALES = np.geomspace(1e-3, 1e3, 37)
"""What variances are multiplied by; that of Query-only is 1."""

_FIGURES = ("nats", "accuracy", "recall of right", "coverage")


def main(_: list[str]) -> None:
    """Prints each density's likelihood, and its difference to the product's."""
    import jax
    import jax.numpy as jnp

    from cdisc.app.config import read
    from cdisc.app.run import opened, prepare
    from cdisc.app.stages.judge import load_judge
    from cdisc.app.stages.pretrain import pretrain
    from cdisc.diffusion.gaussian import Gaussian
    from cdisc.discovery import concepts, covariance
    from cdisc.evaluation import metrics, statistics
    from cdisc.evaluation.judge import verdict
    from cdisc.keys import named
    from cdisc.networks.backbone import null_eps

    config, workdir = _CONFIG.value, pathlib.Path(_WORKDIR.value)
    classes = len(prepare(read(config), workdir, []).dataset.split.held_out)
    config.evaluate.num_queries = 2 * _EACH.value * classes
    with opened(read(config), workdir, []) as run:
        params, judge = pretrain(run, active=True), load_judge(run)
    options, schedule, k = run.config.discover, run.schedule, run.config.evaluate.k

    @jax.jit
    def densities(params, query, key):
        eps_fn, t = null_eps(run.backbone, params), jnp.asarray(options.timesteps)
        product = concepts.discover(eps_fn, schedule, query, named(key, "discover"), options).teacher
        x = jnp.sqrt(schedule.alpha_bar[t]).reshape(-1, *(1,) * query.ndim) * query
        probes, estimator = options.probes, options.estimator
        u = covariance.jacobian_diagonal(
            eps_fn, schedule, x, t, named(key, "query"), probes=probes, estimator=estimator
        )
        kind, delta, floor = options.covariance, options.delta, options.floor
        variance, _ = covariance.variance(schedule, u, t, kind=kind, delta=delta, floor=floor)
        return product, variance

    @jax.jit
    def figures(mean, variance, pictures, composition, key):
        """(scales, 4): nats of the pictures; of draws, accuracy, recall of the right ones and coverage."""
        real, noise = judge.features(pictures), jax.random.normal(key, (run.config.evaluate.samples, *mean.shape))

        def at(scale):
            density = Gaussian(mean, scale * variance)
            draws = density.mean[None] + jnp.sqrt(density.variance)[None] * noise
            right, fake = metrics.all_right(verdict(judge, draws), composition), judge.features(draws)
            nats, recall = metrics.log_likelihood(density, pictures), metrics.right_recall(real, fake, right, k=k)
            return jnp.stack([nats, jnp.mean(right), recall, metrics.density_coverage(real, fake, k=k).coverage])

        return jax.lax.map(at, jnp.asarray(_SCALES, jnp.float32))

    measured = []
    for query in console.progress(run.queries, "likelihood", len(run.queries)):
        pictures = jnp.asarray(run.dataset.references(query.composition, run.config.evaluate.references))
        image, key = jnp.asarray(query.image), run.key("evaluate", query)
        product, variance = densities(params, image, key)
        made = {"product": (product.mean, product.variance), "query": (image, jnp.ones_like(image))}
        made |= {
            f"variance at the query, t = {t}": (image, v) for t, v in zip(options.timesteps, variance, strict=True)
        }
        wanted = jnp.asarray(query.composition)
        measured.append(
            {name: figures(*moments, pictures, wanted, named(key, "draws")) for name, moments in made.items()}
        )
    # Queries come turn by turn: (dials set or reported, pictures, classes, dials, figures).
    tables = {
        name: np.stack([each[name] for each in measured]).reshape(2, _EACH.value, classes, _SCALES.size, 4).mean(axis=1)
        for name in measured[0]
    }
    setting = {name: table[1].mean(axis=0) for name, table in tables.items()}
    results = {}
    for measure, names in (("likelihood", _FIGURES[:1]), ("draws", _FIGURES[1:])):
        aim = {name: _aim(table, measure) for name, table in setting.items()}
        at_query = max((name for name in aim if " at " in name), key=lambda name: aim[name].max())
        dial = {name: int(np.argmax(aim[name])) for name in ("product", "query", at_query)}
        reported = {name: tables[name][0][:, dial[name]] for name in dial}
        results[measure] = {name: {"scale": float(_SCALES[dial[name]])} for name in dial}
        for name, values in reported.items():
            for figure in names:
                column = _FIGURES.index(figure)
                found = statistics.bootstrap(values[:, column], np.random.default_rng(0))
                more = statistics.paired_bootstrap(
                    reported["product"][:, column], values[:, column], np.random.default_rng(0)
                )
                results[measure][name] |= {figure: found, f"product minus it, {figure}": more}
                console.say(
                    f"{name}, variances x {_SCALES[dial[name]]:.3g}: {figure} {found.estimate:.3f} "
                    f"[{found.low:.3f}, {found.high:.3f}]; the product has {more.estimate:+.3f} "
                    f"[{more.low:+.3f}, {more.high:+.3f}] over {classes} classes"
                )
    storage.write_text(workdir / "likelihood.json", json.dumps(results, indent=2) + "\n")


def _aim(table: np.ndarray, measure: str) -> np.ndarray:
    """What a dial is set by, of figures (scales, 4): the likelihood, or the coverage where enough draws are right."""
    if measure == "likelihood":
        return table[:, 0]
    return np.where(table[:, 1] >= _ACCURACY.value, table[:, 3], table[:, 1] - 1.0)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    runtime.configure()  # before the configuration, which uses JAX
    app.run(main)
