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
import json

import jax
import jax.numpy as jnp
import numpy as np

from cdisc.app import devices


def one(item, scale):
    x, key = item
    noise = jax.random.normal(key, x.shape)
    done = jax.lax.while_loop(lambda c: (c[0] < 1.0).all(), lambda c: (c[0] * 2.0, c[1] + 1), (jnp.abs(x) + 0.01, 0))
    return {"value": scale * x + noise, "steps": done[1]}


queries = jnp.linspace(0.1, 0.9, 5 * 3).reshape(5, 3)
keys = jnp.stack([jax.random.key(i) for i in range(5)])
out = devices.in_groups(devices.one_by_one(one, num_shared=1), (queries, keys), jnp.float32(3.0))


def advance(item, rate):
    state, x = item
    return state + rate * (x - state)


step = devices.side_by_side(advance, num_shared=1)
state, spread = devices.spread(jnp.zeros_like(queries)), devices.spread(queries)
rate = devices.replicate(jnp.float32(0.25))
with jax.transfer_guard_device_to_device("disallow"):
    for _ in range(3):
        state = step((state, spread), rate)
together = devices.gather(state, 5)
shared = jax.device_put(queries, jax.sharding.NamedSharding(jax.make_mesh((jax.device_count(),), ("d",)), jax.P()))
copy = devices.one_copy({"x": shared})["x"]
train = devices.training_step(
    draw=lambda state, key: jax.random.normal(jax.random.fold_in(key, state["step"]), (6, 3)),
    zero_total=lambda state: {"sum": jnp.zeros(3), "count": jnp.int32(0)},
    # Products, so that a picture which is given another's draw is seen.
    add=lambda total, state, pictures, drawn, mask: {
        "sum": total["sum"] + jnp.where(mask[:, None], pictures * drawn, 0.0).sum(axis=0),
        "count": total["count"] + mask.sum(),
    },
    update=lambda state, total: ({"w": state["w"] + total["sum"], "step": state["step"] + 1}, total["count"]),
    count=6,
    parts=2,
)
state = devices.replicate({"w": jnp.zeros(3), "step": jnp.int32(0)})
pictures = np.arange(18.0, dtype=np.float32).reshape(6, 3)[devices.share_of_batch(6, 2)[0]]
for _ in range(2):
    state, counted = train(state, pictures, jax.random.key(7))
out |= {"trained": state["w"], "counted": counted}
answer = {"devices": jax.local_device_count(), "spread": list(spread.shape), "together": together, **out}
answer |= {"copy": copy, "copy_on": [device.id for device in copy.devices()]}
print(json.dumps({name: np.asarray(value).tolist() for name, value in answer.items()}))
"""


@pytest.fixture(scope="module")
def answers():
    """What 1, 2, 4 and 8 devices make of the same five queries, and of the same batch."""
    processes = {}
    for count in (1, 2, 4, 8):
        options = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
        environment = os.environ | {"XLA_FLAGS": options, "JAX_PLATFORMS": "cpu"}
        processes[count] = subprocess.Popen(
            [sys.executable, "-c", SCRIPT], env=environment, stdout=subprocess.PIPE, text=True
        )
    return {count: json.loads(process.communicate(timeout=300)[0]) for count, process in processes.items()}


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_a_batch_is_divided_among_the_devices(answers, count):
    # Six pictures in two parts of three, which no other number of devices divides. Catches: padding that counts,
    # pictures that are left out or counted twice, draws or a sum that depend on the device.
    answer = answers[count]
    drawn = [jax.random.normal(jax.random.fold_in(jax.random.key(7), i), (6, 3)) for i in range(2)]
    pictures = np.arange(18.0).reshape(6, 3)
    np.testing.assert_allclose(answer["trained"], np.sum(pictures * np.asarray(drawn), axis=(0, 1)), rtol=1e-5)
    assert answer["counted"] == 6


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_results_do_not_depend_on_the_devices(answers, count):
    # Catches: results in the order of the devices, or padding left in, or taken for a query.
    answer = answers[count]
    assert answer["devices"] == count
    assert answer["spread"] == [count, -(-5 // count), 3]
    queries = np.linspace(0.1, 0.9, 15, dtype=np.float32).reshape(5, 3)
    np.testing.assert_allclose(answer["copy"], queries, rtol=1e-6)
    assert answer["copy_on"] == [0]
    noise = np.stack([jax.random.normal(jax.random.key(i), (3,)) for i in range(5)])
    np.testing.assert_allclose(answer["value"], 3.0 * queries + noise, rtol=1e-5)
    np.testing.assert_allclose(answer["together"], queries * (1.0 - 0.75**3), rtol=1e-5)
    for name in ("value", "together", "steps"):
        np.testing.assert_array_equal(answer[name], answers[1][name])


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


def test_select_best_picks_for_each_query():
    trees = [{"a": jnp.full((1, 3, 2), float(i)), "b": jnp.full((1, 3), i)} for i in range(2)]
    values = [jnp.asarray([[1.0, 5.0, 2.0]]), jnp.asarray([[3.0, 4.0, 2.0]])]
    best = devices.select_best(trees, values)
    np.testing.assert_array_equal(best["b"], [[0, 1, 0]])  # the first one on a tie
    np.testing.assert_array_equal(best["a"][..., 1], [[0.0, 1.0, 0.0]])
