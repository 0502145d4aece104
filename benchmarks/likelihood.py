"""What discovery knows of a class, by an exact measure: the likelihood of its other pictures.

    python -m benchmarks.likelihood --config=configs/colormnist.py:small --workdir=runs/likelihood

Three Gaussians are made of ONE picture: the product of the concepts found in it; N(query, s^2 I), Query-only; and
N(query, v), where v is the network's posterior variance at the query itself, which takes the network's Jacobian and
neither modes nor a selection. Each has a dial: the variances of the first and the last are multiplied by a temperature,
and the last one has its noise level, too. Dials are set on pictures that are not reported: `--each` of every held-out
class are, and as many others set them. Nats an entry, means over classes with intervals of the bootstrap over classes.
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

_SCALES = np.geomspace(1e-3, 1e3, 37)
"""What variances are multiplied by; those of Query-only are these, up to 1."""


def main(_: list[str]) -> None:
    """Prints each density's likelihood, and its difference to the product's."""
    import jax
    import jax.numpy as jnp

    from cdisc.app.config import read
    from cdisc.app.run import opened, prepare
    from cdisc.app.stages.pretrain import pretrain
    from cdisc.diffusion.gaussian import Gaussian
    from cdisc.discovery import concepts, covariance
    from cdisc.evaluation import metrics, statistics
    from cdisc.keys import named
    from cdisc.networks.backbone import null_eps

    config, workdir = _CONFIG.value, pathlib.Path(_WORKDIR.value)
    classes = len(prepare(read(config), workdir, []).dataset.split.held_out)
    config.evaluate.num_queries = 2 * _EACH.value * classes
    with opened(read(config), workdir, []) as run:
        params = pretrain(run, active=True)
    options, schedule = run.config.discover, run.schedule

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
    def likelihoods(mean, variance, pictures):
        scaled = jax.vmap(lambda scale: metrics.log_likelihood(Gaussian(mean, scale * variance), pictures))
        return scaled(jnp.asarray(_SCALES, jnp.float32))

    measured = []
    for query in console.progress(run.queries, "likelihood", len(run.queries)):
        pictures = jnp.asarray(run.dataset.references(query.composition, run.config.evaluate.references))
        image = jnp.asarray(query.image)
        product, variance = densities(params, image, run.key("evaluate", query))
        found = {"product": likelihoods(product.mean, product.variance, pictures)}
        found["query"] = jnp.where(_SCALES <= 1.0, likelihoods(image, jnp.ones_like(image), pictures), -jnp.inf)
        for t, level in zip(options.timesteps, variance, strict=True):
            found[f"variance at the query, t = {t}"] = likelihoods(image, level, pictures)
        measured.append(found)
    # Queries come turn by turn: (dials set or reported, pictures, classes, dials).
    tables = {
        name: np.stack([each[name] for each in measured]).reshape(2, _EACH.value, classes, -1).mean(axis=1)
        for name in measured[0]
    }
    best = {name: int(np.argmax(table[1].mean(axis=0))) for name, table in tables.items()}
    at_query = max((name for name in tables if " at " in name), key=lambda name: tables[name][1].mean(axis=0).max())
    results = {}
    for name in ("product", "query", at_query):
        reported, product = tables[name][0, :, best[name]], tables["product"][0, :, best["product"]]
        results[name] = {
            "scale": float(_SCALES[best[name]]),
            "nats": statistics.bootstrap(reported, np.random.default_rng(0)),
            "product minus it": statistics.paired_bootstrap(product, reported, np.random.default_rng(0)),
        }
        estimate, low, high = results[name]["product minus it"]
        console.say(
            f"{name}, variances x {results[name]['scale']:.3g}: {results[name]['nats'].estimate:.3f} nats an entry; "
            f"the product has {estimate:+.3f} [{low:+.3f}, {high:+.3f}] over {classes} classes"
        )
    storage.write_text(workdir / "likelihood.json", json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    runtime.configure()  # before the configuration, which uses JAX
    app.run(main)
