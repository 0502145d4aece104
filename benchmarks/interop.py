"""What a published network costs here and in PyTorch: import, memory, a prediction, and a step of training.

    pip install '.[interop]' && python -m benchmarks.interop --network=google/ddpm-celebahq-256 --size=128

Random weights of the published shape are saved by diffusers; each side then runs in processes of its own, in turns, on
float32 and the same batch: it reads the folder, predicts, and takes the gradient of the denoising loss with AdamW's
update. Seconds are the processor's, so other programs on the machine take none; the memory is the largest resident set.
"""

import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from cdisc import console, runtime

_NETWORK = flags.DEFINE_string("network", "google/ddpm-celebahq-256", "A network of tests/published.py.")
_SIZE = flags.DEFINE_integer("size", 128, "Height and width of the pictures.")
_BATCH = flags.DEFINE_integer("batch", 1, "Pictures a step.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "How often each side is timed after its first, which compiles.")
_ROUNDS = flags.DEFINE_integer("rounds", 2, "Processes of each side.")
_SIDE = flags.DEFINE_enum("side", None, ["cdisc", "diffusers"], "Measures one side on --folder; used by itself.")
_FOLDER = flags.DEFINE_string("folder", None, "Where the network lies.")


def peak() -> float:
    """The largest resident set of this process, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def clock(fn, repeats: int) -> tuple[float, float]:
    """Seconds of the first call, and the median of the ones after it."""
    taken = []
    for _ in range(repeats + 1):
        start = time.process_time()
        fn()
        taken.append(time.process_time() - start)
    return taken[0], statistics.median(taken[1:])


def cdisc_side(folder: str) -> dict[str, float]:
    """Import, prediction and training step of cdisc."""
    runtime.configure()
    import jax
    import jax.numpy as jnp
    import optax

    from cdisc.networks import denoiser, interop

    x = jnp.ones((_BATCH.value, _SIZE.value, _SIZE.value, 3))
    t = jnp.full((_BATCH.value,), 500)
    start = time.process_time()
    here = interop.load(folder)
    params = jax.block_until_ready(jax.device_put(here.params))
    found = {"import, s": time.process_time() - start, "import, GB": peak()}
    predict = jax.jit(lambda params: denoiser.apply(here.network, params, x, t))
    found["first prediction, s"], found["prediction, s"] = clock(
        lambda: jax.block_until_ready(predict(params)), _REPEATS.value
    )
    found["prediction, GB"] = peak()
    optimizer = optax.adamw(1e-4)

    def step(params, state):
        gradient = jax.grad(lambda p: jnp.mean(jnp.square(denoiser.apply(here.network, p, x, t) - x)))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1))
    carried = [params, optimizer.init(params)]

    def advance():
        carried[:] = jax.block_until_ready(compiled(*carried))

    found["first step, s"], found["step, s"] = clock(advance, _REPEATS.value)
    return {**found, "step, GB": peak()}


def diffusers_side(folder: str) -> dict[str, float]:
    """The same of diffusers."""
    import diffusers
    import torch

    x = torch.ones((_BATCH.value, 3, _SIZE.value, _SIZE.value))
    t = torch.full((_BATCH.value,), 499)
    start = time.process_time()
    model = diffusers.UNet2DModel.from_pretrained(folder)
    found = {"import, s": time.process_time() - start, "import, GB": peak()}

    def predict():
        with torch.no_grad():
            model(x, t)

    found["first prediction, s"], found["prediction, s"] = clock(predict, _REPEATS.value)
    found["prediction, GB"] = peak()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def advance():
        optimizer.zero_grad()
        (model(x, t).sample - x).square().mean().backward()
        optimizer.step()

    found["first step, s"], found["step, s"] = clock(advance, _REPEATS.value)
    return {**found, "step, GB": peak()}


def main(_: list[str]) -> None:
    """Prints a table of medians with the ratio of the two sides."""
    if _SIDE.value:
        found = {"cdisc": cdisc_side, "diffusers": diffusers_side}[_SIDE.value](_FOLDER.value)
        print(json.dumps(found))
        return
    sys.path.append(str(pathlib.Path(__file__).parents[1] / "tests"))
    import diffusers
    import published

    options = {k: v for k, v in published.NETWORKS[_NETWORK.value].items() if k[0] != "_"}
    with tempfile.TemporaryDirectory() as folder:
        diffusers.UNet2DModel(**{**options, "sample_size": _SIZE.value}).save_pretrained(folder)
        diffusers.DDPMScheduler().save_pretrained(folder)
        sides: dict[str, list[dict[str, float]]] = {"cdisc": [], "diffusers": []}
        for _ in range(_ROUNDS.value):
            for side, rounds in sides.items():
                command = [sys.executable, "-m", "benchmarks.interop", f"--side={side}", f"--folder={folder}"]
                given = [f"--{flag.name}={flag.value}" for flag in (_SIZE, _BATCH, _REPEATS)]
                out = subprocess.run([*command, *given], check=True, stdout=subprocess.PIPE, text=True).stdout
                rounds.append(json.loads(out.splitlines()[-1]))
    table = {
        name: [statistics.median(found[name] for found in rounds) for rounds in sides.values()]
        for name in sides["cdisc"][0]
    }
    console.say(f"{'':>20} {'cdisc':>9} {'diffusers':>9} {'ratio':>6}")
    for name, (ours, theirs) in table.items():
        console.say(f"{name:>20} {ours:>9.3g} {theirs:>9.3g} {ours / theirs:>6.2f}")


if __name__ == "__main__":
    app.run(main)
