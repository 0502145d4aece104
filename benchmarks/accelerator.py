"""What is to be measured on an accelerator, a part in a process of its own each; `accelerator.sh` prepares and runs it.

A part that fails, or takes longer than it may, loses only what it had not recorded. `accelerator.json` is written anew
after each: the status and the seconds of every part, and what it measured.
"""

import contextlib
import dataclasses
import functools
import glob
import gzip
import importlib.util
import itertools
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import app, flags

from cdisc import console, runtime, storage

_OUT = flags.DEFINE_string("out", None, "A folder for the results.")
_SCRATCH = flags.DEFINE_string("scratch", None, "A folder for what is not kept.")
_TOY = flags.DEFINE_bool("toy", False, "Everything at toy size.")
_SECONDS = flags.DEFINE_integer("seconds", 480, "How long all parts together may take.")
_PART = flags.DEFINE_string("part", None, "Does one part in this process; used by itself.")

Record = Callable[..., None]
"""Keeps what a part has found so far, by name."""

TOLERANCES = {"float32": 1e-4, "default": 1e-2, "bfloat16": 5e-2}
"""The largest relative error of a network's output: products in full float32, in what the device takes by default
(TF32 on NVIDIA's cards: 10 bits), and activations in bfloat16 (7 bits)."""

TESTS = "exact gaussian schedule parameterization sampling guidance loss modes covariance selection poe concepts lora"
"""The files of oracle tests, in `tests/test_NAME.py`."""


def card(record: Record) -> None:
    """Which device this is, and its rates: what the other figures are shares of."""
    import jax
    import jax.numpy as jnp

    device = jax.devices()[0]
    record(platform=device.platform, kind=device.device_kind, devices=jax.device_count(), versions=runtime.versions())
    record(cores=os.cpu_count(), memory=(device.memory_stats() or {}).get("bytes_limit"))
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.sm,power.limit", "--format=csv"]
        record(nvidia_smi=subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines())
    side = 256 if _TOY.value else 8192
    for name, dtype, precision in (
        ("float32", jnp.float32, "highest"),
        ("default", jnp.float32, "default"),
        ("bfloat16", jnp.bfloat16, "default"),
    ):
        matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)
        product = jax.jit(functools.partial(jnp.matmul, precision=precision))
        record(**{f"TFLOP/s, {name}": 2e-12 * side**3 / median_seconds(product, matrix, matrix)})
    column = jax.random.normal(jax.random.key(0), (2**20 if _TOY.value else 2**29,))
    record(**{"copied, GB/s": 2e-9 * column.nbytes / median_seconds(jax.jit(jnp.negative), column)})


def oracles(record: Record) -> None:
    """Errors against known answers, in the precisions that the device has."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from cdisc.app.config import read
    from cdisc.app.devices import host_device
    from cdisc.configs import colormnist
    from cdisc.diffusion import exact, sampling
    from cdisc.diffusion.gaussian import Gaussian
    from cdisc.discovery import modes
    from cdisc.networks import denoiser, lora

    def error(found: Any, known: Any) -> float:
        pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(known), strict=True))
        squares = [np.sum(np.square(np.asarray(a, np.float64) - np.asarray(b, np.float64))) for a, b in pairs]
        return float(np.sqrt(sum(squares) / sum(np.sum(np.square(np.asarray(b, np.float64))) for _, b in pairs)))

    # Of float32 alone, since nothing in them is a product but what asks for the highest precision itself.
    config = read(colormnist.get_config("tiny" if _TOY.value else "small"))
    schedule = config.scheduler().schedule()
    rng = np.random.default_rng(0)
    means = jnp.asarray(rng.uniform(-1.0, 1.0, (12, 8, 8, 3)), jnp.float32)
    mixture = exact.empirical(means, bandwidth=0.1)
    at = jnp.full(12, 200, jnp.int32)
    known = np.stack(sorted(exact.modes(mixture, schedule, 200), key=lambda mode: mode.ravel().tolist()))
    starts = means * jnp.sqrt(schedule.alpha_bar[200]) + 0.01

    @jax.jit
    def climb(mixture: exact.GaussianMixture, x: jax.Array) -> jax.Array:
        eps_fn, kernel = exact.mixture_eps(mixture, schedule), modes.mean_shift(schedule)
        return modes.ascend(eps_fn, x, at, kernel=kernel, max_steps=200, tolerance=1e-6, lanes=12)[0].x

    reached = np.asarray(climb(mixture, starts), np.float64)
    apart = np.sqrt(np.mean(np.square(reached[:, None] - known[None]), axis=(2, 3, 4))).min(axis=1)
    record(**{"modes of a mixture": verdict(float(apart.max()), 1e-3)})

    density = Gaussian(means[0], jnp.abs(means[1]) + 0.1)
    noise = jnp.asarray(rng.standard_normal((4, 8, 8, 3)), jnp.float32)
    found = jax.jit(lambda x: sampling.ddim(density.eps(schedule), schedule, x, num_steps=20))(noise)
    a = np.asarray(schedule.alpha_bar, np.float64)[sampling.timesteps(schedule.num_timesteps, 20)]
    x, mean, variance = (np.asarray(array, np.float64) for array in (noise, density.mean, density.variance))
    for now, following in itertools.pairwise(a):
        eps = np.sqrt(1.0 - now) * (x - np.sqrt(now) * mean) / (now * variance + 1.0 - now)
        x = np.sqrt(following) * (x - np.sqrt(1.0 - now) * eps) / np.sqrt(now) + np.sqrt(1.0 - following) * eps
    record(**{"DDIM of a Gaussian": verdict(error(found, x), 1e-4)})

    experts, weights = Gaussian(means[:3], jnp.abs(means[3:6]) + 0.1), jnp.abs(means[6:9])
    product = jax.jit(Gaussian.product)(experts, weights)
    m, v, w = (np.asarray(array, np.float64) for array in (experts.mean, experts.variance, weights))
    known_product = ((w * m / v).sum(axis=0) / (w / v).sum(axis=0), 1.0 / (w / v).sum(axis=0))
    record(**{"product of experts": verdict(error((product.mean, product.variance), known_product), 1e-5)})

    network = config.network
    params = shaken(denoiser.init(network, jax.random.key(0)))
    adapter = lora.init(params, jax.random.key(1), 4, 8.0)
    adapter = dataclasses.replace(adapter, factors=shaken(adapter.factors))
    size, count = network.sample_size, 2 if _TOY.value else 16
    x = jnp.asarray(rng.standard_normal((count, size, size, 3)), jnp.float32)
    t = jnp.asarray(rng.integers(1, 1000, count), jnp.int32)

    def outputs(precision: str, dtype: str, params: Any, adapter: Any, x: Any, t: Any) -> dict[str, Any]:
        of = dataclasses.replace(network, dtype=dtype)

        def predict(params: Any, x: Any, adapter: Any = None) -> jax.Array:
            return denoiser.apply(of, params, x, t, None, adapter)

        @jax.jit
        def compute(params: Any, adapter: Any, x: Any) -> dict[str, Any]:
            return {
                "prediction": predict(params, x),
                "adapted prediction": predict(params, x, adapter),
                "merged prediction": predict(lora.merge(params, adapter), x),
                "Jacobian product": jax.jvp(lambda x: predict(params, x), (x,), (x,))[1],
                "gradient": jax.grad(lambda params: jnp.mean(jnp.square(predict(params, x) - x)))(params),
            }

        with jax.default_matmul_precision(precision):
            return jax.device_get(compute(params, adapter, x))

    # The same on the host's processor, in float32.
    with jax.default_device(host_device()):
        known_outputs = outputs("highest", "float32", *jax.device_get((params, adapter, x, t)))
    # Adapted and merged are one function: they share their known answer.
    known_outputs["merged prediction"] = known_outputs["adapted prediction"]
    for name, precision, dtype in (
        ("float32", "highest", "float32"),
        ("default", "default", "float32"),
        ("bfloat16", "default", "bfloat16"),
    ):
        of_name = outputs(precision, dtype, params, adapter, x, t)
        errors = {key: verdict(error(of_name[key], known_outputs[key]), TOLERANCES[name]) for key in known_outputs}
        record(**{f"network in {name}": errors})


def tests(record: Record) -> None:
    """The oracle tests themselves, with products in full float32, then in what the device takes by default."""
    files = [f"tests/test_{name}.py" for name in (TESTS.split()[1:3] if _TOY.value else TESTS.split())]
    command = [sys.executable, "-m", "pytest", "-v", "--tb=line", "-p", "no:cacheprovider", "-m", "not slow"]
    command += ["--no-summary", "-o", "addopts=", "-o", "filterwarnings=default"]
    if importlib.util.find_spec("xdist") and (os.cpu_count() or 1) > 2:
        command += ["-n", str(min(8, os.cpu_count() or 1))]
    for name, precision in (("float32", "highest"), ("default", "default")):
        # Several processes share the device's memory.
        environment = {"JAX_DEFAULT_MATMUL_PRECISION": precision, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        found: dict[str, list[str]] = {"PASSED": [], "FAILED": [], "ERROR": []}
        with subprocess.Popen(
            [*command, *files],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:  # as they come: what was seen before the time is up is kept
                print(line, end="", flush=True)
                said, place = re.search("PASSED|FAILED|ERROR", line), re.search(r"tests/\S+::\S+", line)
                if said and place:
                    found[said[0]].append(place[0])
                    record(**{name: {"passed": len(found["PASSED"]), "failed": found["FAILED"] + found["ERROR"]}})
        record(**{f"exit code, {name}": process.returncode})


def small(record: Record) -> None:
    """Whether the small digits' queries have the same prototypes here as on the host's processor, and how fast."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from cdisc.app.devices import host_device
    from cdisc.discovery import concepts
    from cdisc.networks import backbone

    config = small_config()
    options = config.discover
    if _TOY.value:
        options = dataclasses.replace(options, timesteps=(100, 400), starts_per_t=2, max_steps=3, probes=2, lanes=4)
        options = dataclasses.replace(options, max_residual=10.0, capacity=4)
    with opened(config) as (run, params):
        queries = [(jnp.asarray(query.image), run.key("discover", query)) for query in run.queries]

    def discoverer(precision: str, dtype: str) -> Callable[..., concepts.Discovery]:
        model = backbone.unet(
            dataclasses.replace(run.network, dtype=dtype), run.schedule, run.scheduler.prediction_type
        )

        @jax.jit
        def discover(params: Any, query: jax.Array, key: jax.Array) -> concepts.Discovery:
            with jax.default_matmul_precision(precision):
                return concepts.discover(backbone.null_eps(model, params), run.schedule, query, key, options)

        return discover

    def prototypes(found: concepts.Discovery, picked: bool) -> list[tuple[int, np.ndarray]]:
        rows = found.selection.indices[found.selection.mask] if picked else np.flatnonzero(found.pool.mask)
        return [(int(found.pool.t[row]), found.pool.m[row]) for row in rows]

    def shared(here: concepts.Discovery, there: concepts.Discovery, picked: bool) -> list[int]:
        """How many there, how many here, and how many of those there are also here."""
        ours, theirs = prototypes(here, picked), prototypes(there, picked)
        near = [
            any(t == s and np.sqrt(np.mean(np.square(m - n))) <= options.merge_radius for s, n in ours)
            for t, m in theirs
        ]
        return [len(theirs), len(ours), sum(near)]

    host = jax.device_put((params, queries), host_device())
    discover = discoverer("highest", "float32")
    known = [jax.device_get(discover(host[0], *query)) for query in host[1]]
    for name, precision, dtype in (
        ("float32", "highest", "float32"),
        ("default", "default", "float32"),
        ("bfloat16", "default", "bfloat16"),
    ):
        discover = discoverer(precision, dtype)
        first = seconds(discover, params, *queries[0])
        found = [jax.device_get(discover(params, *query)) for query in queries]
        both = list(zip(found, known, strict=True))
        away = [float(np.sqrt(np.mean(np.square(a.teacher.mean - b.teacher.mean)))) for a, b in both]
        record(
            **{
                name: {
                    "s, first": first,
                    "s": median_seconds(discover, params, *queries[0]),
                    "evaluations": [int(a.info.nfe) for a in found],
                    "modes there, here, shared": [shared(a, b, picked=False) for a, b in both],
                    "prototypes there, here, shared": [shared(a, b, picked=True) for a, b in both],
                    "distance of the teachers": away,
                }
            }
        )


def chains(record: Record) -> None:
    """A discovery with the paper's 1,920 chains: with the small network, and with the paper's at its full cost."""
    import jax

    from cdisc.app.config import read
    from cdisc.configs import colormnist
    from cdisc.discovery import concepts
    from cdisc.networks import backbone, denoiser

    paper = read(colormnist.get_config("tiny" if _TOY.value else "paper"))
    options = paper.discover
    with opened(small_config()) as (run, params):
        query, key = run.queries[0].image, run.key("discover", run.queries[0])
    schedule = paper.scheduler().schedule()

    # Random weights lead to no mode: every chain takes all its steps.
    climbs = dataclasses.replace(options, tolerance=-1.0)
    random = shaken(denoiser.init(paper.network, jax.random.key(0)))
    for name, model, weights, chosen in (
        ("small network", run.backbone, params, options),
        ("paper's network, random", backbone.unet(paper.network, schedule), random, climbs),
    ):

        @jax.jit
        def discover(weights: Any, model: Any = model, chosen: Any = chosen) -> concepts.Discovery:
            return concepts.discover(backbone.null_eps(model, weights), schedule, query, key, chosen)

        start = time.perf_counter()
        found = jax.device_get(discover(weights))
        first = time.perf_counter() - start
        record(
            **{
                name: {
                    "chains": int(found.info.chains),
                    "evaluations": int(found.info.nfe),
                    "modes": int(found.pool.mask.sum()),
                    "unconverged": int(found.info.unconverged),
                    "s, first": first,
                    "s": seconds(discover, weights),
                    "bytes": peak_bytes(),
                }
            }
        )


def colormnist_step(record: Record) -> None:
    """A training step of the paper's ColorMNIST network: 256 pictures, bfloat16."""
    from cdisc.configs import colormnist

    _training_step(record, colormnist.get_config("tiny" if _TOY.value else "paper"), 50)


def celeba_step(record: Record) -> None:
    """A training step of the paper's CelebA network: 128 pictures, bfloat16."""
    from cdisc.configs import celeba

    _training_step(record, celeba.get_config("avatars" if _TOY.value else "paper"), 10)


def _training_step(record: Record, config: Any, count: int) -> None:
    import jax

    from benchmarks.training import training
    from cdisc.app.config import read
    from cdisc.learning import cost

    config.network.dtype = "bfloat16"
    trained = training(read(config))
    batch, dtype = trained.options.batch_size, trained.network.dtype
    forward, _ = cost.evaluation(trained.network, trained.model, batch)
    record(pictures=batch, **{"TFLOP, a gradient as three evaluations": 3e-12 * forward.flops})
    start = time.perf_counter()
    state, _ = jax.block_until_ready(trained.advance(trained.state))
    record(**{"s, first": time.perf_counter() - start})
    taken, count = [], 2 if _TOY.value else count
    for _ in range(3):  # steps of a round follow each other without waiting, as in training
        start = time.perf_counter()
        for _ in range(count):
            state, metrics = trained.advance(state)
        jax.block_until_ready((state, metrics))
        taken.append((time.perf_counter() - start) / count)
        step = statistics.median(taken)
        record(**{"steps/s": 1 / step, "TFLOP/s": 3e-12 * forward.flops / step, "bytes": peak_bytes()})
    record(loss=float(metrics["loss"]))
    predicted = {name: 3 * forward.flops / cost.EFFICIENCY / chip.flops[dtype] for name, chip in cost.CHIPS.items()}
    record(**{"steps/s at 40% of the peak rate": {name: 1 / of_chip for name, of_chip in predicted.items()}})


def adapters(record: Record) -> None:
    """Up to 256 low-rank adapters that learn side by side in one program."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from cdisc.app import devices
    from cdisc.learning import adapt

    rng = np.random.default_rng(0)
    with opened(small_config()) as (run, params):
        options = run.config.adapt.levels["lora"]
        fit = adapt.fitter(run.backbone, options, devices.side_by_side)
    width = run.backbone.table(params).shape[1]
    for count in (1, 4) if _TOY.value else (1, 16, 64, 256):
        pictures = jnp.asarray(rng.standard_normal((count, 9, *run.dataset.shape)), jnp.float32)
        given = jnp.asarray(0.1 * rng.standard_normal((count, width)), jnp.float32)
        examples = adapt.Examples(query=pictures[:, 0], pool=pictures[:, 1:], given=given)
        item = devices.spread((examples, jax.random.split(jax.random.key(0), count)))
        first = seconds(fit, params, run.schedule, *item)
        step = seconds(fit, params, run.schedule, *item) / options.steps
        found = {"s, first": first, "s a step": step, "s a step and query": step / count, "bytes": peak_bytes()}
        record(**{f"{count} queries": found})


def mapping(record: Record) -> None:
    """The training step by `jax.pmap` and by `jax.shard_map`: the same losses?"""
    import jax

    from benchmarks.training import training
    from cdisc.app import devices
    from cdisc.app.config import read
    from cdisc.configs import colormnist

    config = read(colormnist.get_config("tiny" if _TOY.value else "small"))
    for name, how in (("pmap", devices.by_pmap), ("shard_map", devices.by_shard_map)):
        devices.map_devices = how
        trained = training(config)
        state, losses, taken = trained.state, [], []
        for _ in range(4):
            start = time.perf_counter()
            state, metrics = jax.block_until_ready(trained.advance(state))
            taken.append(time.perf_counter() - start)
            losses.append(float(metrics["loss"]))
        record(**{name: {"losses": losses, "s, first": taken[0], "s": statistics.median(taken[1:])}})


def command(record: Record) -> None:
    """The README's command: how long it takes here, and what it reaches."""
    workdir, variant = pathlib.Path(_SCRATCH.value, "command"), "tiny" if _TOY.value else "small"
    arguments = [f"--config=configs/colormnist.py:{variant}", f"--workdir={workdir}"]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "cdisc.main", *arguments], check=True)
    record(s=time.perf_counter() - start)
    results = json.loads((workdir / "results.json").read_text(encoding="utf-8"))
    record(stages=results["seconds"])
    record(**{"joint accuracy": {name: of["joint_accuracy"] for name, of in results["methods"].items()}})


def profile(record: Record) -> None:
    """A trace of the paper's ColorMNIST step, and the operations that take most of it."""
    import jax

    from benchmarks.training import training
    from cdisc.app.config import read
    from cdisc.configs import colormnist

    trained = training(read(colormnist.get_config("tiny" if _TOY.value else "paper")))
    state, _ = jax.block_until_ready(trained.advance(trained.state))
    folder, steps = pathlib.Path(_SCRATCH.value, "profile"), 3
    with jax.profiler.trace(str(folder)):
        for _ in range(steps):
            state, _ = jax.block_until_ready(trained.advance(state))
    with tarfile.open(pathlib.Path(_OUT.value, "profile.tar.gz"), "w:gz") as archive:
        archive.add(folder, "profile")
    record(**{"ms a step, by operation": {name: 1e3 * of / steps for name, of in operations(folder).items()}})


def operations(folder: pathlib.Path, most: int = 30) -> dict[str, float]:
    """The seconds of the operations in a trace, without the numbers in their names, the longest ones first."""
    total: dict[str, float] = {}
    for path in glob.glob(f"{folder}/**/*.trace.json.gz", recursive=True):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            events = json.load(file)["traceEvents"]
        for event in events:
            name = event.get("args", {}).get("hlo_op")
            if event.get("ph") == "X" and name:
                name = re.sub(r"[.\d]+$", "", name)
                total[name] = total.get(name, 0.0) + 1e-6 * event["dur"]
    return dict(sorted(total.items(), key=lambda item: -item[1])[:most])


PARTS: dict[str, tuple[Callable[[Record], None], int]] = {
    "card": (card, 60),
    "oracles": (oracles, 90),
    "colormnist_step": (colormnist_step, 90),
    "small": (small, 120),
    "celeba_step": (celeba_step, 150),
    "mapping": (mapping, 60),
    "chains": (chains, 120),
    "adapters": (adapters, 90),
    "profile": (profile, 60),
    "command": (command, 120),
    "tests": (tests, 150),
}
"""The parts and the most seconds of each, those first that would be missed most."""

_ONLY = flags.DEFINE_multi_enum("only", [], list(PARTS), "A part to do, may be repeated; all by default.")


def small_config() -> Any:
    """The configuration of the small digits."""
    from cdisc.app.config import read
    from cdisc.configs import colormnist

    return read(colormnist.get_config("small"))


@contextlib.contextmanager
def opened(config: Any) -> Iterator[Any]:
    """A run of a configuration with a bundled network, and its parameters on the device."""
    import jax

    from cdisc.app import run
    from cdisc.app.stages.pretrain import pretrain

    with run.opened(config, pathlib.Path(_SCRATCH.value, _PART.value), []) as prepared:
        yield prepared, jax.device_put(pretrain(prepared, active=True), jax.devices()[0])


def shaken(tree: Any) -> Any:
    """Random parameters without a zero, so that no layer is silent: kernels keep a product's size."""
    import jax
    import numpy as np

    rng = np.random.default_rng(0)

    def leaf(values: Any) -> Any:
        size = float(np.sqrt(np.prod(values.shape[:-1]))) if values.ndim > 1 else 10.0
        return values + np.asarray(rng.standard_normal(values.shape) / size, np.float32)

    return jax.tree.map(leaf, tree)


def verdict(error: float, tolerance: float) -> dict[str, Any]:
    """An error beside what it may be."""
    return {"error": error, "tolerance": tolerance, "holds": error <= tolerance}


def seconds(fn: Callable[..., Any], *args: Any) -> float:
    """The wall time of a call, with all of its results."""
    import jax

    start = time.perf_counter()
    jax.block_until_ready(fn(*args))
    return time.perf_counter() - start


def median_seconds(fn: Callable[..., Any], *args: Any) -> float:
    """The median wall time of five calls after the first."""
    return statistics.median([seconds(fn, *args) for _ in range(6)][1:])


def peak_bytes() -> int:
    """The most memory that this process has had on the device; on a CPU, its largest resident set."""
    import jax

    known = jax.devices()[0].memory_stats() or {}
    return known.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def run_part(name: str, file: pathlib.Path) -> None:
    """Does one part, and writes what it has found whenever it has found something."""
    found: dict[str, Any] = {}

    def record(**values: Any) -> None:
        found.update(values)
        storage.write_text(file, json.dumps(found))

    PARTS[name][0](record)


def main(_: list[str]) -> int:
    """Runs the parts one after the other; 1 if one of them failed."""
    out, scratch = pathlib.Path(_OUT.value), pathlib.Path(_SCRATCH.value)
    if _PART.value is not None:
        run_part(_PART.value, scratch / f"{_PART.value}.json")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part that runs is ended too
    deadline = time.monotonic() + _SECONDS.value
    results: dict[str, Any] = {"toy": _TOY.value}
    storage.writable(out)
    with (out / "accelerator.log").open("wb") as log:
        for name in _ONLY.value or PARTS:
            file, start = scratch / f"{name}.json", time.monotonic()
            left = max(deadline - start, 0.0)
            limit = left if _TOY.value else min(PARTS[name][1], left)
            arguments = [f"--{flag.name}={flag.value}" for flag in (_OUT, _SCRATCH, _TOY)]
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.accelerator", f"--part={name}", *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(timeout=limit)
                status = "done" if code == 0 else f"failed with exit code {code}"
            except subprocess.TimeoutExpired:
                status = f"stopped after {limit:.0f} s"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
            results[name] = {"status": status, "seconds": time.monotonic() - start, **found}
            storage.write_text(out / "accelerator.json", json.dumps(results, indent=1) + "\n")
            console.say(f"{name}: {status}, {results[name]['seconds']:.0f} s")
    failed = any(part["status"] != "done" for part in results.values() if isinstance(part, dict))
    return 1 if failed else 0


if __name__ == "__main__":
    flags.mark_flags_as_required(["out", "scratch"])
    runtime.configure()  # before JAX is first used
    app.run(main)
