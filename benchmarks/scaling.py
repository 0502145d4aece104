"""Weak scaling of the training step on forced host devices: what dividing a batch costs, not what devices gain.

    python -m benchmarks.scaling --config=configs/colormnist.py:small

Every device has the same number of pictures, so the batch grows with the devices, but all devices are the threads of
one machine: where dividing costs nothing, the pictures a second stay what they are on one device. A process of its own
measures each number of devices.
"""

import json
import os
import statistics
import subprocess
import sys
import time

from absl import app, flags
from ml_collections import config_flags

from cdisc import console, runtime

_CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration.")
_EACH = flags.DEFINE_integer("pictures", 8, "Pictures of a device.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Steps that are timed.")
_DEVICES = flags.DEFINE_list("devices", ["1", "2", "4", "8"], "Numbers of devices.")
_HERE = flags.DEFINE_bool("here", False, "Measures in this process; used by itself.")


def measure() -> dict[str, float]:
    """The devices, and the median seconds of a step."""
    import jax

    from benchmarks.training import training
    from cdisc.app.config import read

    config, devices = _CONFIG.value, jax.device_count()
    config.pretrain.batch_size = _EACH.value * devices
    trained = training(read(config))
    state = trained.state
    taken = []
    for _ in range(_REPEATS.value + 1):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(trained.advance(state))
        taken.append(time.perf_counter() - start)
    return {"devices": devices, "seconds": statistics.median(taken[1:])}


def main(_: list[str]) -> None:
    """Prints a table: devices, seconds a step, pictures a second, and their share of those on the first number."""
    if _HERE.value:
        print(json.dumps(measure()))
        return
    console.say(f"{'devices':>8} {'s a step':>9} {'pictures/s':>11} {'share':>6}")
    first = 0.0
    for devices in _DEVICES.value:
        options = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        out = subprocess.run(
            [sys.executable, "-m", "benchmarks.scaling", "--here", *sys.argv[1:]],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": options.strip()},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        found = json.loads(out.splitlines()[-1])
        rate = _EACH.value * found["devices"] / found["seconds"]
        first = first or rate
        console.say(f"{found['devices']:>8} {found['seconds']:>9.3g} {rate:>11.3g} {rate / first:>6.0%}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    runtime.configure()  # before the configuration, which uses JAX
    app.run(main)
