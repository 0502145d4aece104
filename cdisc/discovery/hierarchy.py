"""The hierarchy of modes: which of them merge as the noise grows (arXiv 2605.07078, section 3.1).

A mode at a fine noise level is a start at the next coarser one, where the ascent takes it to a mode again. Noise blurs
the density, so modes merge; paths that have met stay together and form a tree: pictures at its leaves, concepts above.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from cdisc.diffusion.parameterization import EpsFn
from cdisc.diffusion.schedule import Schedule
from cdisc.discovery import concepts, modes
from cdisc.discovery.sharding import varying_as
from cdisc.errors import require_array


@flax.struct.dataclass
class Hierarchy:
    """The paths of N points up through L noise levels, and the modes that they pass.

    Attributes:
      t: (L,) int32 timesteps, from fine to coarse.
      m: (L, N, *shape), the clean modes of each level, the present ones first; zero where absent.
      residual: (L, N), as in `modes.Chains`; infinite where absent.
      mode: (L, N) int32, which of the level's modes each point has reached; -1 before it enters. Points in one mode
        stay together from there on.
      nfe: () int32, evaluations of the network made.
    """

    t: jax.Array
    m: jax.Array
    residual: jax.Array
    mode: jax.Array
    nfe: jax.Array


def leaves(
    pools: Iterable[modes.ModePool], options: concepts.DiscoveryOptions
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What `follow` begins at: the modes of some pools, without the saddles and those coarser than all levels.

    Returns:
      The N modes (N, *shape), their timesteps, basins, and the numbers of the pools that they are of, each (N,).

    Examples:
      >>> points, level, basins, of = leaves([found.pool], options)
      >>> points.shape[1:], sorted(set(level.tolist()))
      ((2,), [100, 300])
    """
    kept = []
    for number, pool in enumerate(pools):
        rows = concepts.candidates(pool, options) & (pool.t <= max(options.hierarchy))
        kept.append((pool.m[rows], pool.t[rows], pool.basin[rows], np.full(np.sum(rows), number)))
    points, t, basins, of = (np.concatenate(arrays) for arrays in zip(*kept, strict=True))
    return points, t, basins, of


def follow(
    eps_fn: EpsFn, schedule: Schedule, points: jax.Array, t: jax.Array, options: concepts.DiscoveryOptions
) -> Hierarchy:
    """Follows points through the noise levels `options.hierarchy`, each from its own level on.

    At every level the ascent begins at the modes of the level below and at the points that enter there; those that end
    within its radius are one mode from there on, so that the ascent starts only once from each mode. At most
    `L * ceil(N / lanes) * lanes * max_steps` evaluations are made.

    A pure function: jit a function of the parameters that builds `eps_fn` inside; `options` is static.

    Args:
      eps_fn: The unconditional noise prediction.
      schedule: The noise schedule.
      points: (N, *shape), clean: modes that were found, or pictures.
      t: (N,) int32, the timesteps at which they were found. A point enters at the first level that is not finer; one
        from a coarser timestep than all levels never does. For pictures, zero.
      options: The levels, the ascent, and the radius within which modes are one.

    Raises:
      TypeError: for points that are not float32, or timesteps that are no integers.
      ValueError: for points without a batch axis, and for levels beyond the schedule.

    Examples:
      >>> followed = jax.jit(follow, static_argnums=(0, 4))
      >>> hierarchy = followed(eps_fn, schedule, jnp.array([[1.0, 0.0], [-1.0, 0.0]]), jnp.zeros(2, int), options)
      >>> hierarchy.mode.tolist()  # by level: which mode each point has become
      [[0, 1], [0, 0]]
    """
    require_array("points", points, "float32", (2, 3, 4), "float32 points (N, d) or pictures (N, H, W, C)")
    require_array("t", t, "int", (1,), "one integer timestep for each point, (N,)")
    if t.shape[0] != points.shape[0]:
        raise ValueError(f"t has {t.shape[0]} timesteps and points {points.shape[0]} rows: give one for each row.")
    if max(options.hierarchy, default=0) > schedule.num_timesteps:
        raise ValueError(
            f"hierarchy has {max(options.hierarchy)}, but the schedule ends at {schedule.num_timesteps}: "
            "use timesteps up to that."
        )
    count = points.shape[0]
    levels = jnp.asarray(sorted(options.hierarchy), jnp.int32)

    def climb(
        carry: tuple[jax.Array, jax.Array, jax.Array], level: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]:
        below, present, mode = carry  # (N, *shape) modes, () how many of them there are, (N,)
        enters = (mode < 0) & (t <= level)
        chain = jnp.where(enters, present + jnp.cumsum(enters, dtype=jnp.int32) - 1, mode)
        begin = below.at[jnp.where(enters, chain, count)].set(points, mode="drop")
        chains = jnp.asarray(present + jnp.sum(enters, dtype=jnp.int32))
        at = jnp.full(count, level)
        root = jnp.sqrt(schedule.alpha_bar[level])
        ends, info = modes.ascend(
            eps_fn,
            root * begin,
            at,
            kernel=concepts.kernel(schedule, options),
            max_steps=options.max_steps,
            tolerance=options.tolerance,
            lanes=options.lanes,
            count=chains,
        )
        # `merge` drops chains whose residual is NaN.
        residual = jnp.where(jnp.arange(count) < chains, ends.residual, jnp.nan)
        pool, _ = modes.merge(
            dataclasses.replace(ends, residual=residual), schedule, at, options.merge_radius, capacity=count
        )

        def nearest(x: jax.Array) -> jax.Array:
            squared = jnp.mean(jnp.square(pool.m - (x / root)[None]), axis=tuple(range(1, pool.m.ndim)))
            return jnp.argmin(jnp.where(pool.mask, squared, jnp.inf)).astype(jnp.int32)

        reached = jnp.where(jnp.isfinite(residual), jax.lax.map(nearest, ends.x), -1)
        mode = jnp.where(chain >= 0, reached[chain], -1)
        return (pool.m, jnp.sum(pool.mask, dtype=jnp.int32), mode), (pool.m, pool.residual, mode, info.nfe)

    begin = (jnp.zeros_like(points), jnp.asarray(0, jnp.int32), jnp.full(count, -1, jnp.int32))
    _, (m, residual, mode, nfe) = jax.lax.scan(climb, varying_as(begin, points), levels)
    return Hierarchy(t=levels, m=m, residual=residual, mode=mode, nfe=jnp.sum(nfe))


def tree(hierarchy: Hierarchy, basins: np.ndarray, sources: list[str]) -> dict[str, Any]:
    """The hierarchy in the form of JSON, without the modes' arrays.

    Args:
      hierarchy: N points followed.
      basins: (N,) how many chains each of the points represents.
      sources: N names of what each point was found from, such as a picture.

    Returns:
      `nfe`, and `levels` from fine to coarse, each with its `t` and its `modes`. The mode at index i is `m[level, i]`;
      its `parent` is the index of the next level's mode that it becomes, null if there is none; `basin` counts the
      chains that reached it, `sources` names what they started from, and `residual` is as in `modes.Chains`.

    Examples:
      >>> became, ends, nfe = np.array([[0, 1], [0, 0]]), np.zeros((2, 2, 1)), np.int32(8)
      >>> merged = Hierarchy(t=np.array([100, 300]), m=ends, residual=np.zeros((2, 2)), mode=became, nfe=nfe)
      >>> levels = tree(merged, np.ones(2, int), ["right", "left"])["levels"]
      >>> levels[1]["t"], [mode["sources"] for mode in levels[1]["modes"]]
      (300, [['right', 'left']])
    """
    modes_of, t = np.asarray(hierarchy.mode), np.asarray(hierarchy.t)
    levels = []
    for level in range(len(t)):
        found = []
        for mode in range(modes_of[level].max() + 1):
            members = np.flatnonzero(modes_of[level] == mode)
            parent = int(modes_of[level + 1, members[0]]) if level + 1 < len(t) else -1
            found.append(
                {
                    "parent": None if parent < 0 else parent,
                    "basin": int(np.sum(basins[members])),
                    "residual": float(hierarchy.residual[level, mode]),
                    "sources": list(dict.fromkeys(sources[member] for member in members)),
                }
            )
        levels.append({"t": int(t[level]), "modes": found})
    return {"nfe": int(hierarchy.nfe), "levels": levels}
