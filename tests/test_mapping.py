import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdisc.app import devices

# Runs in a process of its own, because the number of devices is fixed when JAX starts. Each query's work draws from its
# key and stops by its own count, as discovery does; `together` trains all queries side by side.
SCRIPT = """
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np

from cdisc.app import devices
from cdisc.diffusion import exact, schedule
from cdisc.discovery import concepts, hierarchy
from cdisc.learning import pretrain


def one(item, scale):
    x, key = item
    noise = jax.random.normal(key, x.shape)
    begin = (jnp.abs(x) + 0.01, jnp.zeros_like(x, shape=()))
    done = jax.lax.while_loop(lambda c: (c[0] < 1.0).all(), lambda c: (c[0] * 2.0, c[1] + 1), begin)
    return {"value": scale * x + noise, "steps": done[1]}


def advance(item, rate):
    state, x = item
    return state + rate * (x - state)


def add(total, state, pictures, drawn, mask):
    # Products, so that a picture which is given another's draw is seen; their sum by way of a gradient.
    loss = lambda w: jnp.where(mask[:, None], pictures * drawn * w[None], 0.0).sum()
    return {"sum": total["sum"] + jax.grad(loss)(state["w"]), "count": total["count"] + mask.sum()}


noise = schedule.linear_beta()
means = jnp.array([[0.5, 0.5], [-0.5, 0.5], [0.5, -0.5]])
mixture = exact.GaussianMixture(jnp.full(3, 1 / 3), means, jnp.full((3, 2), 0.01))
options = concepts.DiscoveryOptions(
    timesteps=(50, 150), starts_per_t=5, max_steps=30, lanes=4, capacity=6, curvature_iterations=2, probes=2,
    background_variance=9.0, hierarchy=(150, 300), ascent="adam", learning_rate=0.05, tolerance=0.05, max_residual=0.5
)


def discover(item, mixture, axis_name):
    eps_fn = exact.mixture_eps(mixture, noise)
    found = concepts.discover(eps_fn, noise, *item, options, axis_name)
    return found, hierarchy.follow(eps_fn, noise, found.pool.m, found.pool.t, options)


def answer():
    queries = jnp.linspace(0.1, 0.9, 5 * 3).reshape(5, 3)
    keys = jnp.stack([jax.random.key(i) for i in range(5)])
    out = devices.one_by_one(one, num_shared=1)((queries, keys), jnp.float32(3.0))
    step = devices.side_by_side(advance, num_shared=1)
    state, spread = devices.spread(jnp.zeros_like(queries)), devices.spread(queries)
    rate = devices.replicate(jnp.float32(0.25))
    with jax.transfer_guard_device_to_device("disallow"):
        for _ in range(3):
            state = step((state, spread), rate)
    out |= {"spread": spread.shape, "together": devices.gather(state, 5)}
    items = (jnp.array([[0.4, -0.4], [0.4, 0.4]]), jnp.stack([jax.random.key(5), jax.random.key(3)]))
    found, tree = devices.unstack(devices.divided(discover, num_shared=1)(items, mixture))[1]
    out |= {"nfe": found.info.nfe, "picks": found.selection.mask.sum(), "modes": tree.mode}
    leaves = jax.tree.leaves((found.replace(info=found.info.replace(nfe=0)), tree.m, tree.mode))
    out["found"] = np.concatenate([np.ravel(leaf) for leaf in leaves])
    step = pretrain.Step(
        draw=lambda state, key: jax.random.normal(jax.random.fold_in(key, state["step"]), (6, 3)),
        zero_total=lambda state: {"sum": jnp.zeros(3), "count": jnp.int32(0)},
        add=add,
        update=lambda state, total: ({"w": state["w"] + total["sum"], "step": state["step"] + 1}, total["count"]),
        batch_size=6,
        parts=2,
    )
    train = devices.training_step(step)
    state = devices.replicate({"w": jnp.zeros(3), "step": jnp.int32(0)})
    pictures = np.arange(18.0, dtype=np.float32).reshape(6, 3)[devices.batch_rows(6, 2)[0]]
    for _ in range(2):
        state, counted = train(state, pictures, jax.random.key(7))
    out |= {"trained": state["w"], "counted": counted}
    copy = devices.one_copy({"x": devices.replicate(queries)})["x"]
    out |= {"copy": copy, "copy_on": [device.id for device in copy.devices()], "devices": jax.local_device_count()}
    return {name: np.asarray(value, float).tolist() for name, value in out.items()}


answers = {}
for by in ("by_pmap", "by_shard_map"):
    importlib.reload(devices)
    devices.map_devices = getattr(devices, by)
    answers[by] = answer()
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers():
    """What 1, 2, 4 and 8 devices make of the same queries, and of the same batch, each in both ways to map them."""
    processes = {}
    for count in (1, 2, 4, 8):
        # On busy cores, devices wait for one another for longer than the 40 s after which XLA ends the process.
        waits = "--xla_cpu_collective_call_terminate_timeout_seconds=240"
        options = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count} {waits}"
        environment = os.environ | {"XLA_FLAGS": options, "JAX_PLATFORMS": "cpu"}
        processes[count] = subprocess.Popen(
            [sys.executable, "-c", SCRIPT], env=environment, stdout=subprocess.PIPE, text=True
        )
    return {count: json.loads(process.communicate(timeout=300)[0]) for count, process in processes.items()}


WAYS = [(count, by) for count in (1, 2, 4, 8) for by in ("by_pmap", "by_shard_map")]


@pytest.mark.parametrize(("count", "by"), WAYS)
def test_a_batch_is_divided_among_the_devices(answers, count, by):
    # Six pictures in two parts of three, which no other number of devices divides. Catches: padding that counts,
    # pictures that are left out or counted twice, draws or a sum that depend on the device, a gradient that is summed
    # over the devices twice.
    answer = answers[count][by]
    drawn = [jax.random.normal(jax.random.fold_in(jax.random.key(7), i), (6, 3)) for i in range(2)]
    pictures = np.arange(18.0).reshape(6, 3)
    np.testing.assert_allclose(answer["trained"], np.sum(pictures * np.asarray(drawn), axis=(0, 1)), rtol=1e-5)
    assert answer["counted"] == 6


@pytest.mark.parametrize(("count", "by"), WAYS)
def test_results_do_not_depend_on_the_devices(answers, count, by):
    # Catches: results in the order of the devices, or padding left in, or taken for a query.
    answer = answers[count][by]
    assert answer["devices"] == count
    assert answer["spread"] == [count, -(-5 // count), 3]
    queries = np.linspace(0.1, 0.9, 15, dtype=np.float32).reshape(5, 3)
    np.testing.assert_allclose(answer["copy"], queries, rtol=1e-6)
    assert answer["copy_on"] == [0]
    noise = np.stack([jax.random.normal(jax.random.key(i), (3,)) for i in range(5)])
    np.testing.assert_allclose(answer["value"], 3.0 * queries + noise, rtol=1e-5)
    np.testing.assert_allclose(answer["together"], queries * (1.0 - 0.75**3), rtol=1e-5)
    for name in ("value", "together", "steps"):
        np.testing.assert_array_equal(answer[name], answers[1]["by_pmap"][name])


@pytest.mark.parametrize(("count", "by"), WAYS)
def test_a_discovery_on_several_devices_is_that_on_one(answers, count, by):
    # The second of two queries. Catches: a loop under shard_map whose carry enters as the same on all devices and
    # leaves as different; queries that several devices share in turn, treated at once.
    alone, answer = answers[1]["by_pmap"], answers[count][by]
    np.testing.assert_allclose(answer["found"], alone["found"], rtol=1e-4, atol=1e-5)
    assert answer["nfe"] == answers[count]["by_pmap"]["nfe"]
    assert alone["picks"] >= 1 and np.max(alone["modes"]) >= 0


def test_spread_repeats_the_last_query_and_gather_removes_it(monkeypatch):
    # Catches: padding with zeros, which a score may answer with NaN, or padding in front.
    monkeypatch.setattr(devices.jax, "local_device_count", lambda: 4)
    tree = {"x": jnp.arange(6.0).reshape(6, 1), "y": jnp.arange(6)}
    spread = devices.spread(tree)
    np.testing.assert_array_equal(spread["y"], [[0, 1], [2, 3], [4, 5], [5, 5]])
    assert spread["x"].shape == (4, 2, 1)
    back = devices.gather(spread, 6)
    np.testing.assert_array_equal(back["x"], tree["x"])
    np.testing.assert_array_equal(back["y"], tree["y"])


def test_keys_are_spread_as_well():
    keys = jnp.stack([jax.random.key(3), jax.random.key(4)])
    assert keys.shape == (2,)
    back = devices.gather(devices.spread(keys), 2)
    np.testing.assert_array_equal(jax.random.key_data(back), jax.random.key_data(keys))


def test_groups():
    assert [list(group) for group in devices.groups([1, 2, 3, 4, 5], 2)] == [[1, 2], [3, 4], [5]]
    assert list(devices.groups([], 2)) == []


def test_stack_and_unstack():
    trees = [{"x": np.full(2, i), "nothing": {}} for i in range(3)]
    stacked = devices.stack(trees)
    assert devices.size(stacked) == 3
    np.testing.assert_array_equal(stacked["x"], [[0, 0], [1, 1], [2, 2]])
    for one, other in zip(devices.unstack(stacked), trees, strict=True):
        np.testing.assert_array_equal(one["x"], other["x"])
        assert isinstance(one["x"], np.ndarray)
