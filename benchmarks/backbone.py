"""How well the backbone carries what it was trained on: do the samples of a class show it, and cover it?

    python -m benchmarks.backbone --config=configs/colormnist.py:small --workdir=runs/benchmark

Samples of every trained class, or with `--only="factor=value factor=value"`, which may be repeated, of those that agree
with one of these, at several guidance weights: judged by the classifier of the evaluation, and compared with reference
pictures where the class has some. Figures are means over classes, with their standard errors.
"""

import pathlib

from absl import app, flags
from ml_collections import config_flags

from cdisc import console, runtime

_CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration.")
_WORKDIR = flags.DEFINE_string("workdir", None, "A folder for the restored backbone and judge.")
_GUIDANCE = flags.DEFINE_multi_float("guidance", [1.0, 2.0, 3.0], "Guidance weights.")
_SAMPLES = flags.DEFINE_integer("samples", 4, "Samples of each class, more than config.evaluate.k.")
_ONLY = flags.DEFINE_multi_string("only", [], "A partial assignment of attributes; without any, all trained classes.")


def main(_: list[str]) -> None:
    """Prints the accuracies, precision and recall for each weight."""
    import jax
    import jax.numpy as jnp

    from cdisc.app.config import read
    from cdisc.app.run import opened
    from cdisc.app.stages.judge import load_judge
    from cdisc.app.stages.pretrain import pretrain
    from cdisc.data import compositions
    from cdisc.diffusion import guidance
    from cdisc.diffusion.sampling import ddim
    from cdisc.errors import UserError
    from cdisc.evaluation import protocol
    from cdisc.networks.backbone import null_eps

    with opened(read(_CONFIG.value), pathlib.Path(_WORKDIR.value), []) as run:
        split = run.dataset.split
        chosen = compositions.matching(split.factors, _ONLY.value) if _ONLY.value else split.trained
        labels = [compositions.label_of(split, composition) for composition in chosen]
        params = pretrain(run, active=True)
        judge = load_judge(run)
    embeddings = run.backbone.table(params)[jnp.asarray(labels)]
    settings = run.config.evaluate

    @jax.jit
    def draw(params, key, weight):
        # Every picture of a batch has a class of its own.
        classes = (lambda x, t: run.backbone.apply(params, x, t, embeddings), guidance.constant(weight))
        guided = guidance.guide(null_eps(run.backbone, params), [classes])
        noise = jax.random.normal(key, (len(chosen), *run.dataset.shape))
        return ddim(guided, run.schedule, noise, **run.config.sampling.ddim_options)

    def references_of(composition):
        try:
            return jnp.asarray(run.dataset.references(composition, settings.references))
        except UserError:  # CelebA has them of its held-out classes alone
            return None

    for weight in _GUIDANCE.value:
        images = jnp.stack([draw(params, jax.random.key(i), weight) for i in range(_SAMPLES.value)], axis=1)
        measured = []
        for composition, samples in zip(chosen, images, strict=True):
            # There is no query: the distance to the first sample stands in a place that is not shown.
            figures = protocol.score_samples(
                judge, samples, samples[0], composition, references_of(composition), k=settings.k
            )
            measured.append({"class": figures})
        found = protocol.aggregate(measured)["class"]
        single = ", ".join(f"{name} {value:.3f}" for name, value in found["attribute_accuracy"].items())
        means = ", ".join(
            f"{name.replace('_', ' ')} {found[name]:.3f}" + ("" if error is None else f" ± {error:.3f}")
            for name, error in found["standard_error"].items()
            if name in ("joint_accuracy", "precision", "recall") and found[name] is not None
        )
        console.say(f"guidance {weight:g}: {means} ({single}), {found['samples']} samples of {len(chosen)} classes")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    runtime.configure()  # before the configuration, which uses JAX
    app.run(main)
