"""What discovery costs: network evaluations, seconds, and how many of them pass outside the network.

    python -m benchmarks.discovery --config=configs/colormnist.py:small --workdir=runs/benchmark

For each query: the evaluations made (`nfe`), the seconds of a compiled discovery, and the seconds of as many plain
evaluations of the null model in batches of the same size. Their difference is what mode ascent, merging, probes and
selection cost beside the network. A product with the Jacobian pushes one tangent through the linearised network; it is
counted as one evaluation.
"""

import pathlib
import statistics
import time

from absl import app, flags
from ml_collections import config_flags

from cdisc import console, runtime

_CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration.")
_WORKDIR = flags.DEFINE_string("workdir", None, "A folder for the restored backbone.")


def main(_: list[str]) -> None:
    """Prints one line a query, and the medians."""
    import jax
    import jax.numpy as jnp

    from cdisc.app.config import read
    from cdisc.app.run import opened
    from cdisc.app.stages.pretrain import pretrain
    from cdisc.discovery import concepts
    from cdisc.networks.backbone import null_eps

    with opened(read(_CONFIG.value), pathlib.Path(_WORKDIR.value), []) as run:
        params = pretrain(run, active=True)
    options = run.config.discover

    @jax.jit
    def discover(params, query, key):
        return concepts.discover(null_eps(run.backbone, params), run.schedule, query, key, options)

    @jax.jit
    def evaluate(params, x, t):
        return null_eps(run.backbone, params)(x, t)

    x = jnp.zeros((options.lanes, *run.dataset.shape))
    t = jnp.full((options.lanes,), options.timesteps[0])

    def seconds(fn, *args) -> float:
        start = time.perf_counter()
        jax.block_until_ready(fn(*args))
        return time.perf_counter() - start

    seconds(evaluate, params, x, t)
    outside, whole = [], []
    for i, query in enumerate(run.queries):
        args = (params, jnp.asarray(query.image), run.key("discover", query))
        if i == 0:
            seconds(discover, *args)
        nfe = int(discover(*args).info.nfe)
        total = min(seconds(discover, *args) for _ in range(2))
        single = statistics.median(seconds(evaluate, params, x, t) for _ in range(30))
        network = single * nfe / options.lanes
        outside.append(1.0 - network / total)
        whole.append(total)
        console.say(f"{query.name}: {nfe} evaluations, {total:.1f} s, of them {network:.1f} s in the network")
    console.say(
        f"median: {statistics.median(whole):.1f} s, {100 * statistics.median(outside):.0f}% outside the network"
    )


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    runtime.configure()  # before the configuration, which uses JAX
    app.run(main)
