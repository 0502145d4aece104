"""What can be told without a judge: a query that cannot be composed, its factors, and samples that went astray.

    python -m benchmarks.trust --config=configs/colormnist.py:small --out=trust.json

For a data set of coloured digits: the novelty of pictures of trained classes (on which it is calibrated), of held-out
ones, and of pictures outside of what was ever seen: on white, as in the paper's Figure 6, and upside down in
brightness. The factors that the losses of the trained classes tell. And how well the variance of a sample's own way
tells the product's samples that the judge finds wrong. Each with a bootstrap interval.
"""

import json
import pathlib

import numpy as np
from absl import app, flags
from ml_collections import config_flags

from cdisc import console, runtime

_CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration.")
_OUT = flags.DEFINE_string("out", None, "A file for what is measured.")
_TRAINED = flags.DEFINE_integer("trained", 20, "Pictures of trained classes to calibrate on.", lower_bound=2)
_QUERIES = flags.DEFINE_integer("queries", 20, "Queries of held-out classes.", lower_bound=2)
_SAMPLES = flags.DEFINE_integer("samples", 16, "Of the product for each of them.", lower_bound=1)
_LAST = flags.DEFINE_integer("last", 5, "Steps at whose predictions the variance looks.", lower_bound=2)


def main(_: list[str]) -> None:
    """Measures, and writes what was found."""
    import jax
    import jax.numpy as jnp

    from cdisc.app.config import read
    from cdisc.app.run import prepare
    from cdisc.app.stages.judge import load_judge
    from cdisc.app.stages.pretrain import pretrain
    from cdisc.discovery import concepts, novelty
    from cdisc.evaluation import baselines, composition, methods, statistics, trajectory
    from cdisc.evaluation.judge import verdict
    from cdisc.keys import named
    from cdisc.networks import backbone as backbone_lib

    workdir = pathlib.Path(_OUT.value).with_suffix(".work")
    config = read(_CONFIG.value)
    this = prepare(config, workdir, [])
    params, judge, split = pretrain(this, active=True), load_judge(this), this.dataset.split
    rng, key, options = np.random.default_rng(config.seed), jax.random.key(config.seed), config.discover

    @jax.jit
    def find(params, query, key):
        eps_fn = backbone_lib.null_eps(this.backbone, params)
        found = concepts.discover(eps_fn, this.schedule, query, key, options)
        return novelty.composed_likelihoods(query, found, options), found.teacher

    def chosen(classes, count):
        return [
            (classes[c], np.asarray(this.dataset.queries(classes[c], 1)[0]))
            for c in rng.permutation(len(classes))[:count]
        ]

    held_out = chosen(split.held_out, _QUERIES.value)
    # A digit's mask is where it is brighter than its ground: on white, the same strokes in the same colour.
    pictures = {
        "trained": [picture for _, picture in chosen(split.trained, _TRAINED.value)],
        "held out": [picture for _, picture in held_out],
    }
    lit = [(p, np.abs(p - p[:1, :1]).max(axis=-1, keepdims=True) > 0.3) for p in pictures["held out"]]
    pictures["on white"] = [np.where(mask, p, 1.0).astype(np.float32) for p, mask in lit]
    pictures["inverted"] = [-p for p in pictures["held out"]]
    composed, teachers = {}, []
    for name, of_kind in pictures.items():
        composed[name] = []
        for i, picture in enumerate(console.progress(of_kind, name, len(of_kind))):
            likelihoods, teacher = find(params, jnp.asarray(picture), named(key, name, i))
            composed[name].append(np.asarray(likelihoods))
            teachers += [teacher] if name == "held out" else []
    trained = jnp.asarray(np.stack(composed.pop("trained")))
    # Each picture of a trained class against the others.
    scores = {"trained": [novelty.novelty(t, jnp.delete(trained, i, axis=0)) for i, t in enumerate(trained)]}
    scores |= {name: [novelty.novelty(jnp.asarray(t), trained) for t in of] for name, of in composed.items()}
    scores = {name: np.asarray(of) for name, of in scores.items()}

    @jax.jit
    def sample(params, teacher, start):
        density = methods.teacher_density(teacher, config.guidance)
        eps_fn = methods.guided_eps(this.backbone, params, this.schedule, density)
        sampling = config.sampling
        return trajectory.ddim_with_variance(
            eps_fn,
            this.schedule,
            start,
            num_steps=sampling.num_steps,
            last=_LAST.value,
            clip=sampling.clip,
            use_clipped_model_output=sampling.use_clipped_model_output,
        )

    @jax.jit
    def losses_of(params, query, key):
        draws = config.adapt.class_draws
        return baselines.class_losses(this.backbone, params, this.schedule, query, key, num_draws=draws)

    variances, wrong, losses = [], [], []
    for i, ((shows, picture), teacher) in enumerate(zip(held_out, teachers, strict=True)):
        start = jax.random.normal(named(key, "start", i), (_SAMPLES.value, *this.dataset.shape))
        samples, variance = sample(params, teacher, start)
        variances.append(np.asarray(variance))
        wrong.append(np.asarray((verdict(judge, samples) != jnp.asarray(shows)).any(axis=1)))
        losses.append(np.asarray(losses_of(params, jnp.asarray(picture), named(key, "losses", i))))
    shown = np.asarray([composition for composition, _ in held_out])
    told = np.asarray(composition.factor_verdict(jnp.asarray(np.stack(losses)), split.trained, split.factors.sizes))
    nearest = np.asarray(split.trained)[np.stack(losses).argmin(axis=1)]
    known = ~np.concatenate(wrong)
    best = np.concatenate(variances) <= np.quantile(np.concatenate(variances), 0.5)
    failing = np.stack(wrong).mean(axis=1) > 0.5

    def auroc(scores, positive):
        return list(statistics.auroc_interval(scores, positive, rng)) if 0 < np.sum(positive) < len(positive) else None

    def against(name):
        both = np.concatenate([scores[name], scores["held out"]])
        return auroc(both, np.arange(len(both)) < len(scores[name]))

    def accuracy(right):
        return dict(zip(split.factors.names, [list(statistics.bootstrap(f, rng)) for f in right.T], strict=True))

    found = {
        "novelty": {name: [float(np.mean(of)), float(np.std(of, ddof=1))] for name, of in scores.items()},
        "novelty auroc": {name: against(name) for name in scores if name != "held out"},
        "novelty of failing queries": auroc(scores["held out"], failing),
        "factors by the sum of parts": accuracy(told == shown),
        "factors by the nearest class": accuracy(nearest == shown),
        "variance of wrong samples": auroc(np.concatenate(variances), ~known),
        "right": {"all": float(known.mean()), "of the half that moved least": float(known[best].mean())},
        "queries": len(held_out),
        "samples": int(known.size),
    }
    pathlib.Path(_OUT.value).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    console.say(json.dumps(found, indent=1))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "out"])
    runtime.configure()  # before the configuration, which uses JAX
    app.run(main)
