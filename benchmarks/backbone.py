"""How well the backbone carries what it was trained on: the share of samples that show their class.

    python -m benchmarks.backbone --config=configs/colormnist.py:small --workdir=runs/benchmark

Samples of every trained class at several guidance weights, judged by the classifier of the evaluation.
"""

import pathlib

from absl import app, flags
from ml_collections import config_flags

from cdisc import console, runtime

_CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration.")
_WORKDIR = flags.DEFINE_string("workdir", None, "A folder for the restored backbone and judge.")
_GUIDANCE = flags.DEFINE_multi_float("guidance", [1.0, 2.0, 3.0], "Guidance weights.")
_SAMPLES = flags.DEFINE_integer("samples", 4, "Samples of each class.")


def main(_: list[str]) -> None:
    """Prints the joint and the single accuracies for each weight."""
    runtime.configure()
    import jax
    import jax.numpy as jnp

    from cdisc.diffusion import guidance, sampling
    from cdisc.evaluation import protocol
    from cdisc.networks.backbone import null_eps
    from cdisc.run import opened
    from cdisc.stages.evaluate import load_judge
    from cdisc.stages.pretrain import pretrain

    with opened(_CONFIG.value, pathlib.Path(_WORKDIR.value), []) as run:
        params = pretrain(run, active=True)
        judge = load_judge(run)
    table = run.backbone.table(params)
    wanted = jnp.asarray(run.dataset.split.trained)

    @jax.jit
    def draw(params, key, weight):
        # Every picture of a batch has a class of its own.
        classes = (lambda x, t: run.backbone.apply(params, x, t, table), guidance.constant(weight))
        guided = guidance.guide(null_eps(run.backbone, params), [classes])
        noise = jax.random.normal(key, (table.shape[0], *run.dataset.shape))
        settings = run.config.sampling
        return sampling.ddim(guided, run.schedule, noise, num_steps=settings.num_steps, clip=settings.clip)

    for weight in _GUIDANCE.value:
        images = [draw(params, jax.random.key(i), weight) for i in range(_SAMPLES.value)]
        found = protocol.accuracy(judge, jnp.concatenate(images), jnp.tile(wanted, (_SAMPLES.value, 1)))
        single = ", ".join(f"{name} {value:.3f}" for name, value in found["attribute_accuracy"].items())
        count = _SAMPLES.value * table.shape[0]
        console.say(f"guidance {weight:g}: joint {found['joint_accuracy']:.3f} ({single}), {count} samples")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
