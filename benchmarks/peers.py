"""What cdisc costs beside what one would use instead: PyTorch, diffusers, PEFT, apricot, submodlib.

    pip install '.[interop,peers]' && python -m benchmarks.peers

Each contest has sides that do the same work: a process of its own each, one call at a time in turns, so that whatever
else the machine does meets all of them alike. Printed are medians over the turns: wall seconds, the processor's
seconds, both of the first call too, which compiles, and the largest resident set; then the ratios to the best of the
other sides. `--only=greedy` does one contest. Where other programs keep the machine busy, PyTorch's threads spin while
they wait for each other, and its processor's seconds count that: compare the two on a quiet machine.

    training    a step of the small network on 64 pictures: noise, loss, gradient, clipping, AdamW, average
    prediction  an evaluation of the same
    sampling    64 pictures by DDIM in 16 steps
    adapters    ten steps of LoRA, rank 4, for each of 8 pictures
    greedy      8 of 10,000 experts that explain 1,024 entries
    discovery   the modes of an exact mixture: mean shift, and the paper's 1,920 chains of 150 steps of Adam
"""

import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import app, flags

from cdisc import console, runtime

_ROUNDS = flags.DEFINE_integer("rounds", 5, "How often each side is called after its first call.")
_BATCH = flags.DEFINE_integer("batch", 64, "Pictures of a step, an evaluation and a sampling.")
_SIDE = flags.DEFINE_string("side", None, "CONTEST/SIDE: answers calls on standard input; used by itself.")

_QUERIES, _STEPS, _RANK, _ALPHA = 8, 10, 4, 8.0
_EXPERTS, _ENTRIES, _PICKS = 10_000, 1024, 8

Call = Callable[[], Any]
"""Does the work once, until its end; a dict that it returns has facts to be printed."""


def pictures(count: int) -> np.ndarray:
    """Pictures (count, 32, 32, 3), the same for every side."""
    return np.random.default_rng(0).uniform(-1.0, 1.0, (count, 32, 32, 3)).astype(np.float32)


def small() -> Any:
    """The configuration of the small digits."""
    from cdisc.app.config import read
    from cdisc.configs import colormnist

    config = colormnist.get_config("small")
    config.pretrain.batch_size = _BATCH.value
    return read(config)


def cdisc_training() -> Call:
    """The step that `pretrain` makes."""
    import jax

    from benchmarks.training import training

    trained = training(small())
    carried = [trained.state]

    def advance() -> None:
        carried[0], _ = jax.block_until_ready(trained.advance(carried[0]))

    return advance


def cdisc_prediction() -> Call:
    """One evaluation under a class."""
    import jax
    import jax.numpy as jnp

    from cdisc.networks import denoiser

    network = small().network
    params = denoiser.init(network, jax.random.key(0))
    x, t = jnp.asarray(pictures(_BATCH.value)), jnp.full(_BATCH.value, 500)
    predict = jax.jit(
        lambda params, x: denoiser.apply(network, params, x, t, jnp.zeros((len(t), network.embedding_dim)))
    )
    return lambda: jax.block_until_ready(predict(params, x))


def cdisc_sampling() -> Call:
    """DDIM as one scan."""
    import jax
    import jax.numpy as jnp

    from cdisc.diffusion import sampling
    from cdisc.networks import backbone, denoiser

    config = small()
    network, schedule = config.network, config.scheduler().schedule()
    params = denoiser.init(network, jax.random.key(0))
    model = backbone.unet(network, schedule, "v_prediction")
    x = jnp.asarray(pictures(_BATCH.value))

    @jax.jit
    def draw(params: Any, x: jax.Array) -> jax.Array:
        return sampling.ddim(backbone.null_eps(model, params), schedule, x, num_steps=16, clip=1.0)

    return lambda: jax.block_until_ready(draw(params, x))


def cdisc_adapters(at_once: int) -> Call:
    """LoRA with an embedding, `at_once` queries in a program."""
    import jax
    import jax.numpy as jnp

    from cdisc.learning import adapt
    from cdisc.networks import backbone, denoiser

    config = small()
    network, schedule = config.network, config.scheduler().schedule()
    params = denoiser.init(network, jax.random.key(0))
    model = backbone.unet(network, schedule, "v_prediction")
    options = adapt.AdaptOptions(
        pool="query",
        start="normal",
        rank=_RANK,
        alpha=_ALPHA,
        steps=_STEPS,
        batch_size=16,
        learning_rate=2e-3,
        embedding_learning_rate=1e-2,
    )
    queries, keys = jnp.asarray(pictures(_QUERIES)), jax.random.split(jax.random.key(0), _QUERIES)

    def begin(query: jax.Array, key: jax.Array, params: Any) -> adapt.FitState:
        return adapt.init(model, params, adapt.Examples(query), key, options)

    def advance(state: adapt.FitState, query: jax.Array, key: jax.Array, params: Any) -> adapt.FitState:
        return adapt.step(state, model, params, schedule, adapt.Examples(query), None, key, options)[0]

    if at_once > 1:
        begin, advance = jax.vmap(begin, (0, 0, None)), jax.vmap(advance, (0, 0, 0, None))
    begin, advance = jax.jit(begin), jax.jit(advance)

    def fit() -> None:
        for i in range(0, _QUERIES, at_once):
            rows: Any = slice(i, i + at_once) if at_once > 1 else i
            state = begin(queries[rows], keys[rows], params)
            for _ in range(_STEPS):
                state = advance(state, queries[rows], keys[rows], params)
            jax.block_until_ready(state)

    return fit


def torch_network(layout: str = "") -> Any:
    """The network of the same shape in diffusers, and a prediction that folds pixels before it and unfolds them."""
    import diffusers
    import torch

    network = small().network
    fields = {field.name: getattr(network, field.name) for field in dataclasses.fields(network)}
    patch = fields.pop("patch_size")
    for name in ("dtype", "remat", "time_embedding_dim", "downsample_type", "upsample_type", "mid_block_scale_factor"):
        fields.pop(name)
    fields |= {"sample_size": 32 // patch, "in_channels": 3 * patch**2, "out_channels": 3 * patch**2}
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(**fields)
    if layout == "channels_last":
        model = model.to(memory_format=torch.channels_last)
    call = torch.compile(model) if layout == "compiled" else model

    def predict(x: Any, t: Any, labels: Any, model: Any = call) -> Any:
        folded = torch.nn.functional.pixel_unshuffle(x, patch)
        if layout == "channels_last":
            folded = folded.contiguous(memory_format=torch.channels_last)
        return torch.nn.functional.pixel_shuffle(model(folded, t, class_labels=labels).sample, patch)

    return model, predict


def torch_noise(x: Any, abar: Any) -> tuple[Any, Any, Any, Any]:
    """Timesteps spread over the batch, noise, noisy pictures and abar_t."""
    import torch

    count = len(x)
    t = (((torch.rand(()) + torch.arange(count) / count) % 1.0) * 1000).long().clamp(max=999)
    noise, a = torch.randn_like(x), abar[t][:, None, None, None]
    return t, noise, a.sqrt() * x + (1 - a).sqrt() * noise, a


def torch_abar() -> Any:
    """abar_1 to abar_T."""
    import torch

    return torch.tensor(np.asarray(small().scheduler().schedule().alpha_bar)[1:])


def diffusers_training(layout: str = "") -> Call:
    """The same step in PyTorch, as one would write it."""
    import torch

    model, predict = torch_network(layout)
    options, abar = small().pretrain, torch_abar()
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    averages = [parameter.detach().clone() for parameter in model.parameters()]
    x = torch.as_tensor(pictures(_BATCH.value)).permute(0, 3, 1, 2).contiguous()
    labels = torch.zeros(_BATCH.value, dtype=torch.long)

    def advance() -> None:
        t, noise, noisy, a = torch_noise(x, abar)
        dropped = torch.where(torch.rand(len(x)) < options.null_dropout, model.config.num_class_embeds - 1, labels)
        velocity = a.sqrt() * noise - (1 - a).sqrt() * x
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(predict(noisy, t, dropped), velocity).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm)
        optimizer.step()
        torch._foreach_lerp_(averages, list(model.parameters()), 1.0 - options.ema_decay)

    return advance


def diffusers_prediction(layout: str = "") -> Call:
    """The same evaluation."""
    import torch

    _, predict = torch_network(layout)
    x = torch.as_tensor(pictures(_BATCH.value)).permute(0, 3, 1, 2).contiguous()
    t, labels = torch.full((_BATCH.value,), 499), torch.zeros(_BATCH.value, dtype=torch.long)

    def evaluate() -> None:
        with torch.inference_mode():
            predict(x, t, labels)

    return evaluate


def diffusers_sampling() -> Call:
    """`DDIMPipeline`; it has no stem that folds pixels, so its pictures have the folded size."""
    import diffusers

    model, _ = torch_network()
    model.register_to_config(num_class_embeds=None)
    model.class_embedding = None
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", clip_sample=True)
    pipeline = diffusers.DDIMPipeline(model, scheduler)
    pipeline.set_progress_bar_config(disable=True)

    def draw() -> None:
        pipeline(batch_size=_BATCH.value, num_inference_steps=16, output_type="numpy", return_dict=False)

    return draw


def peft_adapters() -> Call:
    """Eight trainings one after the other; the network is wrapped once."""
    import peft
    import torch

    model, predict = torch_network()
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    targets = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=_RANK, lora_alpha=_ALPHA, target_modules=targets))
    abar, width = torch_abar(), model.time_embedding.linear_2.out_features
    queries = torch.as_tensor(pictures(_QUERIES)).permute(0, 3, 1, 2)
    learnt = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    begin = [parameter.detach().clone() for parameter in learnt]

    def fit() -> None:
        for query in queries:
            with torch.no_grad():
                for parameter, value in zip(learnt, begin, strict=True):
                    parameter.copy_(value)
            embedding = torch.nn.Parameter(0.01 * torch.randn(width))
            groups = [{"params": learnt, "lr": 2e-3}, {"params": [embedding], "lr": 1e-2}]
            optimizer = torch.optim.Adam(groups)
            # The new class takes the table's place.
            model.class_embedding = lambda labels, e=embedding: e.expand(len(labels), -1)
            for _ in range(_STEPS):
                t, noise, noisy, _ = torch_noise(query.expand(16, -1, -1, -1), abar)
                optimizer.zero_grad()
                labels = torch.zeros(16, dtype=torch.long)
                torch.nn.functional.mse_loss(predict(noisy, t, labels, wrapped), noise).backward()
                optimizer.step()

    return fit


def likelihoods() -> np.ndarray:
    """Log likelihoods (experts, entries) over the background, as a query's experts have them: few are positive."""
    rng = np.random.default_rng(0)
    means = rng.uniform(-1.0, 1.0, (_EXPERTS, _ENTRIES)).astype(np.float32)
    query, variance = means[0] + 0.1, np.float32(0.05)
    own = -0.5 * (np.square(query - means) / variance + np.log(2 * np.pi * variance))
    return own + 0.5 * (np.square(query) + np.log(2 * np.pi))


def cdisc_greedy() -> Call:
    """`selection.greedy`."""
    import jax
    import jax.numpy as jnp

    from cdisc.discovery import selection

    margins = jnp.asarray(likelihoods())
    pick = jax.jit(
        lambda margins: (
            selection.greedy(
                margins, jnp.zeros(_ENTRIES), num_experts=_PICKS, candidates=jnp.ones(_EXPERTS, bool)
            ).indices
        )
    )
    return lambda: {"picks": np.asarray(pick(margins)).tolist()}


def apricot_greedy(optimizer: str) -> Call:
    """The facility location of apricot on the same matrix."""
    import apricot

    margins = np.maximum(likelihoods(), 0.0).astype(np.float64)

    def pick() -> dict[str, Any]:
        # "precomputed" would insist on a square matrix.
        chosen = apricot.FacilityLocationSelection(_PICKS, metric="ignore", optimizer=optimizer)
        chosen.fit(margins)
        return {"picks": [int(i) for i in chosen.ranking]}

    return pick


def submodlib_greedy(optimizer: str) -> Call:
    """The facility location of submodlib on the same matrix, which it has read before."""
    import submodlib

    margins = np.maximum(likelihoods(), 0.0)
    function = submodlib.FacilityLocationFunction(
        n=_EXPERTS, mode="dense", separate_rep=True, n_rep=_ENTRIES, sijs=np.ascontiguousarray(margins.T)
    )

    def pick() -> dict[str, Any]:
        found = function.maximize(budget=_PICKS, optimizer=optimizer, show_progress=False)
        return {"picks": [int(i) for i, _ in found]}

    return pick


_TIMESTEPS = tuple(range(50, 401, 25))
_MEANS, _SIDE_LENGTH = 24, 8


def mixture() -> Any:
    """Blurred patterns, an exact density whose modes are known; its first mean is the query."""
    import jax.numpy as jnp

    from cdisc.diffusion import exact

    means = np.random.default_rng(0).uniform(-1.0, 1.0, (_MEANS, _SIDE_LENGTH, _SIDE_LENGTH, 3)).astype(np.float32)
    return exact.empirical(jnp.asarray(means), bandwidth=0.3)


def found_modes(points: dict[int, np.ndarray]) -> dict[str, Any]:
    """How many of the exact modes of each level are among the clean points found there."""
    from cdisc.diffusion import exact

    schedule, right, there = small().scheduler().schedule(), 0, 0
    for t, of_t in points.items():
        known = exact.modes(mixture(), schedule, t) / np.sqrt(float(schedule.alpha_bar[t]))
        apart = np.sqrt(np.mean(np.square(known[:, None] - of_t[None]), axis=(2, 3, 4)))
        right, there = right + int((apart.min(axis=1, initial=np.inf) < 0.1).sum()), there + len(known)
    return {"modes found": right, "modes there": there}


def cdisc_discovery() -> Call:
    """Mean shift with the defaults' steps and tolerance, and as many starts as the paper's at every level."""
    import jax

    from cdisc.diffusion import exact
    from cdisc.discovery import concepts

    schedule, density = small().scheduler().schedule(), mixture()
    options = concepts.DiscoveryOptions(
        timesteps=_TIMESTEPS, starts_per_t=128, lanes=128, capacity=len(_TIMESTEPS) * 40, probes=4
    )

    @jax.jit
    def discover(density: Any) -> concepts.Discovery:
        eps_fn = exact.mixture_eps(density, schedule)
        return concepts.discover(eps_fn, schedule, density.means[0], jax.random.key(0), options)

    def work() -> dict[str, Any]:
        found = jax.device_get(discover(density))
        pool, nfe = found.pool, int(found.info.nfe)
        points = {t: pool.m[pool.mask & (pool.t == t)] for t in _TIMESTEPS}
        return {"evaluations": nfe, "points": points}

    return work


def torch_discovery() -> Call:
    """The paper's: 128 hybrid chains a level, 150 steps of Adam, merging, four finite differences a mode."""
    import torch

    schedule, density = small().scheduler().schedule(), mixture()
    abar = torch.tensor(np.asarray(schedule.alpha_bar))
    means = torch.tensor(np.asarray(density.means)).flatten(1)
    variance, count = 0.3**2, 0

    def eps_fn(x: Any, a: Any) -> Any:
        nonlocal count
        count += len(x)
        spread = a * variance + 1 - a
        gamma = torch.softmax(-(torch.cdist(x, a.sqrt() * means) ** 2) / (2 * spread), dim=1)
        return (1 - a).sqrt() * (x - a.sqrt() * gamma @ means) / spread

    def work() -> dict[str, Any]:
        nonlocal count
        torch.manual_seed(0)
        points, count = {}, 0
        for t in _TIMESTEPS:
            a = abar[t]
            x = torch.randn(128, means.shape[1])
            x[:64] = a.sqrt() * means[0] + (1 - a).sqrt() * x[:64]
            x.requires_grad_(True)
            optimizer = torch.optim.Adam([x], lr=0.1)
            for _ in range(150):
                x.grad = eps_fn(x.detach(), a)
                optimizer.step()
            clean, kept = x.detach() / a.sqrt(), []
            residual = eps_fn(x.detach(), a).square().mean(1).sqrt()
            for i in residual.argsort():
                if all((clean[i] - clean[j]).square().mean().sqrt() > 0.1 for j in kept):
                    kept.append(int(i))
            at, h = clean[kept] * a.sqrt(), 5e-3
            for _ in range(4):
                v = torch.randint(0, 2, at.shape) * 2.0 - 1.0
                (v * (eps_fn(at + h * v, a) - eps_fn(at - h * v, a)) / (2 * h)).mean()
            points[t] = clean[kept].reshape(-1, _SIDE_LENGTH, _SIDE_LENGTH, 3).numpy()
        return {"evaluations": count, "points": points}

    return work


CONTESTS: dict[str, dict[str, Callable[[], Call]]] = {
    "training": {
        "cdisc": cdisc_training,
        "diffusers": diffusers_training,
        "channels_last": lambda: diffusers_training("channels_last"),
        "compiled": lambda: diffusers_training("compiled"),
    },
    "prediction": {
        "cdisc": cdisc_prediction,
        "diffusers": diffusers_prediction,
        "channels_last": lambda: diffusers_prediction("channels_last"),
        "compiled": lambda: diffusers_prediction("compiled"),
    },
    "sampling": {"cdisc": cdisc_sampling, "DDIMPipeline": diffusers_sampling},
    "adapters": {
        "cdisc": lambda: cdisc_adapters(1),
        "cdisc, side by side": lambda: cdisc_adapters(_QUERIES),
        "PEFT": peft_adapters,
    },
    "greedy": {
        "cdisc": cdisc_greedy,
        "apricot": lambda: apricot_greedy("naive"),
        "apricot, lazy": lambda: apricot_greedy("lazy"),
        "submodlib": lambda: submodlib_greedy("NaiveGreedy"),
        "submodlib, lazy": lambda: submodlib_greedy("LazyGreedy"),
    },
    "discovery": {"cdisc": cdisc_discovery, "PyTorch": torch_discovery},
}

_ONLY = flags.DEFINE_multi_enum("only", [], list(CONTESTS), "A contest, may be repeated; all by default.")


def answer(contest: str, side: str) -> None:
    """Does a side's work once for each line of standard input, and prints what it took."""
    call = CONTESTS[contest][side]()
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        result = call()
        facts = result if isinstance(result, dict) else {}
        taken = {"wall, s": time.perf_counter() - wall, "processor, s": time.process_time() - processor}
        if "points" in facts:
            facts |= found_modes(facts.pop("points"))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        print(json.dumps({**taken, "GB": memory, **facts}), flush=True)


def compete(contest: str) -> None:
    """Calls all sides of a contest in turns, and prints a table."""
    sides = {}
    for side in CONTESTS[contest]:
        command = [sys.executable, "-m", "benchmarks.peers", f"--side={contest}/{side}", f"--batch={_BATCH.value}"]
        sides[side] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    taken: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(_ROUNDS.value + 1):
        for side, process in list(sides.items()):
            assert process.stdin is not None and process.stdout is not None
            try:
                print("again", file=process.stdin, flush=True)
                line = process.stdout.readline()
            except BrokenPipeError:
                line = ""
            if line:
                taken[side].append(json.loads(line))
            else:  # it has said why
                console.warn(f"{contest}: {side} does not work here.")
                del sides[side], taken[side]
    for process in sides.values():
        process.communicate()
    rows = {}
    for side, calls in taken.items():
        rows[side] = {f"first, {name}": calls[0][name] for name in ("wall, s", "processor, s")}
        rows[side] |= {
            name: statistics.median(call[name] for call in calls[1:]) for name in ("wall, s", "processor, s")
        }
        rows[side]["GB"] = calls[-1]["GB"]
    console.say(f"{contest:>20} " + " ".join(f"{name:>20}" for name in rows["cdisc"]) + "  facts")
    for side, row in rows.items():
        facts = {name: value for name, value in taken[side][-1].items() if name not in row}
        console.say(f"{side:>20} " + " ".join(f"{value:>20.3g}" for value in row.values()) + f"  {facts or ''}")
    others = [row for side, row in rows.items() if not side.startswith("cdisc")]
    ours = [row for side, row in rows.items() if side.startswith("cdisc")]
    if others:
        ratios = [min(row[name] for row in ours) / min(row[name] for row in others) for name in rows["cdisc"]]
        console.say(f"{'ratio':>20} " + " ".join(f"{ratio:>20.2f}" for ratio in ratios))


def main(_: list[str]) -> None:
    """One contest after the other."""
    if _SIDE.value:
        answer(*_SIDE.value.split("/"))
        return
    for contest in _ONLY.value or CONTESTS:
        compete(contest)


if __name__ == "__main__":
    runtime.configure()  # before JAX is first used
    app.run(main)
