"""What share of its peak rate the CPU here reaches in a training step: the error of `cdisc.learning.cost.EFFICIENCY`.

    python -m benchmarks.cost --config=configs/colormnist.py:small

The peaks are measured in the same run, in turns with the step: the rate of a large product of float32 matrices, and the
bandwidth of a copy that no cache holds. Seconds are the processor's, so other programs on the machine take none.
"""

import json
import statistics
import time

from absl import app, flags
from ml_collections import config_flags

from cdisc import console, runtime

_CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Steps that are timed.")


def main(_: list[str]) -> None:
    """Prints one line of JSON: the peaks, a step's operations, its seconds as predicted and as measured, the share."""
    import jax
    import jax.numpy as jnp

    from benchmarks.training import training
    from cdisc.app.config import read
    from cdisc.learning import cost

    network, model, options, schedule, state, advance = training(read(_CONFIG.value))

    def seconds(fn, *args) -> float:
        start = time.process_time()
        jax.block_until_ready(fn(*args))
        return time.process_time() - start

    side = 2048
    matrix = jnp.ones((side, side))
    product = jax.jit(jnp.matmul)
    column = jnp.ones(2**27)
    copy = jax.jit(jnp.negative)
    rates, bandwidths, steps = [], [], []
    for repeat in range(_REPEATS.value + 1):
        rates.append(2 * side**3 / seconds(product, matrix, matrix))
        bandwidths.append(2 * column.nbytes / seconds(copy, column))
        start = time.process_time()
        state, metrics = advance(state)
        jax.block_until_ready((state, metrics))
        steps.append(time.process_time() - start)
        if repeat == 0:  # compilation
            rates, bandwidths, steps = [], [], []
    account = cost.training(network, model, options, schedule, 1)
    chip = cost.Chip(
        flops={network.dtype: statistics.median(rates)},
        bandwidth=statistics.median(bandwidths),
        memory=0.0,
        interconnect=1.0,
    )
    measured = statistics.median(steps)
    found = {
        "GFLOP/s": chip.flops[network.dtype] / 1e9,
        "GB/s": chip.bandwidth / 1e9,
        "parameters": account.parameters,
        "GFLOP a step": account.flops / 1e9,
        "predicted, s": account.seconds(chip, network.dtype),
        "measured, s": measured,
        "share of the peak rate": account.flops / chip.flops[network.dtype] / measured,
    }
    console.say(json.dumps({name: float(f"{value:.4g}") for name, value in found.items()}))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    runtime.configure()  # before the configuration, which uses JAX
    app.run(main)
