"""Rows sharded over the devices of an axis, against the same computation on one; here `vmap` stands for devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdisc.discovery import selection, sharding


def on_devices(fn, devices: int):
    """What each of so many devices makes of `fn(axis_name)`: leaves (devices, ...)."""
    return jax.jit(jax.vmap(lambda _: fn("devices"), axis_name="devices"))(jnp.arange(devices))


@pytest.mark.parametrize(("count", "devices"), [(6, 3), (7, 3), (2, 5), (5, 1)])
def test_every_device_gets_all_rows_in_order_and_the_totals(count, devices):
    # Catches: rows joined device by device, padding that is counted or left in, totals of one device.
    rows = {"x": jnp.arange(2.0 * count).reshape(count, 2), "n": jnp.arange(count)}
    mask = jnp.arange(count) != 1  # the last row, which padding repeats, is computed
    seen = []

    def work(rows, mask):
        seen.append(mask.shape[0])
        return {"x": 10.0 * rows["x"], "n": rows["n"], "mask": mask}, jnp.sum(mask)

    found, total = on_devices(functools.partial(sharding.map_rows, work, rows, mask), devices)
    assert set(seen) == {-(-count // devices)}
    for device in range(devices):
        np.testing.assert_array_equal(found["x"][device], 10.0 * rows["x"])
        np.testing.assert_array_equal(found["n"][device], rows["n"])
        np.testing.assert_array_equal(found["mask"][device], mask)
    np.testing.assert_array_equal(total, np.full(devices, count - 1))


def brute_force(margin: np.ndarray, candidates: np.ndarray, t: np.ndarray | None, num: int) -> list[int]:
    """Greedy picks by trying every candidate, from the definition of F; the first one on a tie."""
    picks: list[int] = []
    for _ in range(num):
        reached = margin[picks].max(axis=0, initial=0.0)
        gains = np.full(len(margin), -1.0)
        for j in np.flatnonzero(candidates):
            if j not in picks and (t is None or t[j] not in t[picks]):
                gains[j] = np.maximum(reached, margin[j]).sum() - reached.sum()
        if gains.max() <= 0:
            break
        picks.append(int(np.argmax(gains)))
    return picks


@pytest.mark.parametrize("devices", [1, 4, 16])
@pytest.mark.parametrize("one_per_t", [False, True])
def test_a_sharded_greedy_picks_what_brute_force_picks(devices, one_per_t):
    # Whole numbers add up without rounding, so equal gains are equal; half of the rows are copies of others. Four
    # devices do not divide ten candidates, and of sixteen some have none. Catches: the lowest index of a
    # device instead of all, a device's own number in the place of the pool's, padding as a candidate.
    rng = np.random.default_rng(devices)
    count, times = 10, np.array([1, 1, 2, 2, 3, 3, 3, 4, 5, 6])
    t = jnp.asarray(times) if one_per_t else None

    @jax.jit
    def pick(fit, b, candidates):
        def sharded(axis_name):
            return selection.greedy(fit, b, num_experts=4, candidates=candidates, t=t, axis_name=axis_name)

        return sharded(None), jax.vmap(lambda _: sharded("devices"), axis_name="devices")(jnp.arange(devices))

    ties = 0
    for _ in range(40):
        fit = rng.integers(-2, 3, (count, 6)).astype(np.float32)
        fit[rng.permutation(count)[:5]] = fit[rng.permutation(count)[:5]]
        b, candidates = rng.integers(-2, 1, 6).astype(np.float32), rng.random(count) < 0.8
        fit[~candidates] = rng.choice([np.nan, np.inf, 100.0])
        alone, together = pick(fit, b, candidates)
        for device in range(devices):
            jax.tree.map(lambda one, many, i=device: np.testing.assert_array_equal(many[i], one), alone, together)
        expected = brute_force(fit - b, candidates, times if one_per_t else None, 4)
        assert np.asarray(alone.indices)[np.asarray(alone.mask)].tolist() == expected
        first = np.maximum(fit - b, 0.0)[candidates].sum(axis=1)
        ties += len(first) and (first == first.max()).sum() > 1
    assert ties > 5
