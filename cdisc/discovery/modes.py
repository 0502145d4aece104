"""Local maxima of the noised density, found by following its score (arXiv 2605.07078, Eq. 3, 4, 6).

The network's null prediction gives `grad log p_t`. Chains climb it from many starts at many noise levels, chains that
meet are merged, and what is left is certified: a mode has a small residual and no direction of positive curvature.

All algorithms see the density through `eps_fn(x, t)` alone and call it on batches of a fixed size, `lanes`, so that
the memory they need does not depend on the number of chains.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import flax.struct
import jax
import jax.numpy as jnp
import optax

from cdisc.diffusion.parameterization import EpsFn, score_from_eps, x0_from_eps
from cdisc.diffusion.schedule import Schedule, alpha_bar_at, expand, sigma
from cdisc.discovery.sharding import varying_as
from cdisc.errors import require_array, require_known
from cdisc.keys import named

StartMode = Literal["query", "hybrid", "random"]
START_MODES: tuple[str, ...] = get_args(StartMode)


class Kernel(NamedTuple):
    """One rule for climbing `p_t`.

    Attributes:
      init: `init(x) -> state`, from points (B, *shape); every leaf of the state leads with B.
      step: `step(eps, x, t, state) -> (x, state)`, one move from `x`, at which `eps` was evaluated.
    """

    init: Callable[[jax.Array], Any]
    step: Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


@flax.struct.dataclass
class Chains:
    """Where N chains ended.

    Attributes:
      x: (N, *shape), end points in noisy space.
      residual: (N,), root mean square over the entries of `eps` at `x`; zero at a stationary point.
    """

    x: jax.Array
    residual: jax.Array


@flax.struct.dataclass
class AscentInfo:
    """What N chains took.

    Attributes:
      steps: (N,) int32, evaluations that each chain used, the one of its residual included; 0 where it was not run.
      converged: (N,) bool, whether its residual fell below the tolerance before its steps were used up.
      nfe: () int32, evaluations of single points actually made, idle lanes included.
    """

    steps: jax.Array
    converged: jax.Array
    nfe: jax.Array


@flax.struct.dataclass
class ModePool:
    """Distinct stationary points of `p_t`, at most N of them, the present ones first.

    Attributes:
      x: (N, *shape), stationary points in noisy space.
      m: (N, *shape), clean prototypes `x / sqrt(abar_t)` (Eq. 6): where the score is zero, this is `E[x_0 | x]`.
      t: (N,) int32.
      basin: (N,) int32, chains that ended here.
      residual: (N,), as in `Chains`; infinite where absent.
      curvature: (N,), the largest eigenvalue of the Hessian of `log p_t`, in units of `1 / (1 - abar_t)`; it is at
        least -1. Negative at a mode, positive at a saddle. Infinite where it was not measured
        (`covariance.linearise` does).
      mask: (N,) bool, which rows are points. The others hold harmless numbers.
    """

    x: jax.Array
    m: jax.Array
    t: jax.Array
    basin: jax.Array
    residual: jax.Array
    curvature: jax.Array
    mask: jax.Array


@flax.struct.dataclass
class MergeInfo:
    """What a merge left out.

    Attributes:
      dropped: () int32, chains whose residual was not finite, or too large to lead and that joined no leader.
      leaders_dropped: () int32, leaders for which the pool had no room; their chains are not counted as `dropped`.
    """

    dropped: jax.Array
    leaders_dropped: jax.Array


def starts(
    schedule: Schedule,
    key: jax.Array,
    query: jax.Array,
    t: jax.Array,
    per_t: int,
    mode: StartMode,
    part: int | jax.Array = 0,
    parts: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """Starting points: the query noised to each level, pure noise, or half of each.

    Args:
      schedule: The noise schedule.
      key: Random key.
      query: (*shape).
      t: (M,) int32 timesteps.
      per_t: Starts at each timestep.
      mode: "query": `sqrt(a) x_q + sqrt(1 - a) eps`; "random": `eps`; "hybrid": the first half of each timestep's
        starts (rounded up) from the query, the others from noise.
      part: Which part of each timestep's starts these are, in 0..parts - 1.
      parts: How many parts of `per_t` there are.

    Returns:
      Points (M * per_t, *shape) and their timesteps (M * per_t,), timestep by timestep.

    Raises:
      TypeError: if the query is not float32, the key is no key, or the timesteps are no integers.
      ValueError: for a query with a batch axis, or an unknown mode.

    Examples:
      >>> points, level = starts(schedule, key, query, jnp.array([100, 300]), per_t=2, mode="query")
      >>> points.shape, level.tolist()
      ((4, 2), [100, 100, 300, 300])
    """
    require_known("start_mode", mode, START_MODES)
    require_array("query", query, "float32", (1, 2, 3), "one float32 picture (H, W, C) or point (d,), without a batch")
    require_array("key", key, "key<", (0,), "one random key, such as jax.random.key(0)")
    require_array("t", t, "int", (1,), "integer timesteps (M,)")
    count = per_t * parts
    centred = {"query": count, "hybrid": (count + 1) // 2, "random": 0}[mode]
    repeated = jnp.repeat(t, per_t)
    noise = jax.random.normal(key, (repeated.shape[0], *query.shape), query.dtype)
    a = alpha_bar_at(schedule, repeated, noise)
    from_query = expand(jnp.tile(part * per_t + jnp.arange(per_t) < centred, t.shape[0]), noise)
    return jnp.where(from_query, jnp.sqrt(a) * query[None] + jnp.sqrt(1.0 - a) * noise, noise), repeated


def mean_shift(schedule: Schedule) -> Kernel:
    """The step `x <- sqrt(abar) E[x_0 | x]`: gradient ascent on `log p_t` with step `1 - abar_t`.

    For an exact score this is Gaussian mean shift: the density never falls, there is no step size to tune, and the
    fixed points are exactly the stationary points (Comaniciu & Meer 2002; Carreira-Perpinan 2007). Near a mode the
    error shrinks each step by the factor `1 + curvature` of `ModePool`.

    Examples:
      >>> kernel = mean_shift(schedule)
      >>> moved, _ = kernel.step(eps_fn(x, t), x, t, kernel.init(x))
      >>> moved
      Array([[ 0.91,  0.03],
             [-0.3 ,  0.01]], dtype=float32)
    """

    def init(x: jax.Array) -> tuple[()]:
        del x
        return ()

    def step(eps: jax.Array, x: jax.Array, t: jax.Array, state: tuple[()]) -> tuple[jax.Array, tuple[()]]:
        return jnp.sqrt(alpha_bar_at(schedule, t, x)) * x0_from_eps(schedule, x, eps, t), state

    return Kernel(init, step)


class _LastMove(NamedTuple):
    """What `barzilai_borwein` knows of a chain's last move: where it began, and its length in mean shifts."""

    x: jax.Array
    eps: jax.Array
    length: jax.Array
    overshot: jax.Array  # whether this move or one before it leapt across a mode


def barzilai_borwein(schedule: Schedule, longest: float = 0.0) -> Kernel:
    """The mean shift, but shorter or longer where the curvature along the last move asks for it.

    The lengths are the two of Barzilai & Borwein (1988). The score of a weakly trained network may bend more than any
    density's, whose curvature is at least -1, and below -2 mean shift leaps from one side of a mode to the other for
    ever: a chain that overshot takes their shorter length from there on. Where the density is nearly flat, mean shift
    hardly moves: their longer length is Newton's along the last move, and leads uphill whatever the sign of the
    curvature. If the mean of the scores at its ends says that it lowered the density, the mean shift is taken instead.

    Args:
      schedule: The noise schedule.
      longest: Root mean square in clean space of a move that is longer than the mean shift; 0 for none.

    Examples:
      >>> kernel = barzilai_borwein(schedule, longest=0.5)
      >>> moved, state = kernel.step(eps_fn(x, t), x, t, kernel.init(x))
      >>> moved.shape
      (2, 2)
    """

    def init(x: jax.Array) -> _LastMove:
        return _LastMove(x, jnp.zeros_like(x), jnp.zeros(x.shape[0], x.dtype), jnp.zeros(x.shape[0], bool))

    def step(eps: jax.Array, x: jax.Array, t: jax.Array, last: _LastMove) -> tuple[jax.Array, _LastMove]:
        root = jnp.sqrt(1.0 - alpha_bar_at(schedule, t, x))
        move, bend = x - last.x, root * (eps - last.eps)
        squared, along = _inner(move, move), _inner(move, bend)  # the curvature along the move is -along / squared
        overshot = last.overshot | (along > 1.1 * squared)  # no density's, whatever the rounding
        length = jnp.where(overshot & (along > 0.0), jnp.minimum(_ratio(along, _inner(bend, bend)), 1.0), 1.0)
        if longest:
            lowered = (last.length > 1.0) & (_inner(move, eps + last.eps) > 0.0)
            x, eps = (jnp.where(expand(lowered, x), old, new) for old, new in ((last.x, x), (last.eps, eps)))
            most = _ratio(longest, sigma(schedule, t) * root_mean_square(eps))
            longer = jnp.maximum(jnp.minimum(_ratio(squared, jnp.abs(along)), most), 1.0)
            length = jnp.where(lowered, 1.0, jnp.where(overshot, length, longer))
        return x - expand(length, x) * root * eps, _LastMove(x, eps, length, overshot)

    return Kernel(init, step)


def adam(schedule: Schedule, learning_rate: float) -> Kernel:
    """Adam ascending the score in noisy space, the paper's rule (section 3.1; appendix D.1 has its steps: 0.1, 0.09).

    Each chain has moments and a step count of its own.

    Examples:
      >>> kernel = adam(schedule, learning_rate=0.1)
      >>> moved, state = kernel.step(eps_fn(x, t), x, t, kernel.init(x))
      >>> jnp.abs(moved - x)  # the first step of Adam is its rate
      Array([[0.1, 0.1],
             [0.1, 0.1]], dtype=float32)
    """
    optimizer = optax.adam(learning_rate)

    def init(x: jax.Array) -> Any:
        return jax.vmap(optimizer.init)(x)

    def step(eps: jax.Array, x: jax.Array, t: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        # optax descends, so it is handed the gradient of -log p_t.
        updates, state = jax.vmap(optimizer.update)(-score_from_eps(schedule, eps, t), state)
        return x + updates, state

    return Kernel(init, step)


class _Lanes(NamedTuple):
    """What the loop of `ascend` carries: L lanes at work, and the N results so far."""

    chain: jax.Array  # (L,) index of the chain in each lane; from the count on where idle
    x: jax.Array  # (L, *shape)
    t: jax.Array  # (L,)
    steps: jax.Array  # (L,)
    state: Any
    queued: jax.Array  # () index of the next chain to start
    iterations: jax.Array  # ()
    out_x: jax.Array  # (N, *shape)
    out_residual: jax.Array  # (N,)
    out_steps: jax.Array  # (N,)


def ascend(
    eps_fn: EpsFn,
    x: jax.Array,
    t: jax.Array,
    *,
    kernel: Kernel,
    max_steps: int | jax.Array,
    tolerance: float | jax.Array,
    lanes: int,
    count: int | jax.Array | None = None,
) -> tuple[Chains, AscentInfo]:
    """Runs every chain until its own residual is small, with continuous batching.

    `lanes` chains are evaluated together. A chain that is done is written out and its lane takes the next one from the
    queue, so that no evaluation is spent on a finished chain while others wait. A chain's result does not depend on
    the lanes. At most `ceil(N / lanes) * lanes * max_steps` evaluations are made.

    Args:
      eps_fn: The noise prediction whose density is climbed.
      x: (N, *shape) starting points.
      t: (N,) int32 their timesteps.
      kernel: `mean_shift(...)` or `adam(...)`.
      max_steps: Evaluations a chain may use; the last one measures its residual.
      tolerance: A chain is done when its residual is below this, one number or (N,). The unit is that of `eps`, 1 for
        pure noise.
      lanes: Points evaluated together.
      count: How many chains there are: rows after the first `count` are never climbed from, and come back as zeros.
        None for all N.

    Returns:
      Where the chains ended, and what they took.

    Raises:
      TypeError: for points that are not float32, or timesteps that are no integers.
      ValueError: for points without a batch axis, or another number of timesteps.

    Examples:
      >>> chains, info = ascend(eps_fn, x, t, kernel=mean_shift(schedule), max_steps=50, tolerance=1e-3, lanes=2)
      >>> bool(info.converged.all()), chains.x.shape
      (True, (2, 2))
    """
    require_array("x", x, "float32", (2, 3, 4), "float32 points (N, d) or pictures (N, H, W, C)")
    require_array("t", t, "int", (1,), "one integer timestep for each point, (N,)")
    n = x.shape[0]
    if t.shape[0] != n:
        raise ValueError(f"t has {t.shape[0]} timesteps and x {n} rows: give one timestep for each row.")
    count = n if count is None else count
    tolerance = jnp.broadcast_to(tolerance, n)
    lanes = min(lanes, n)
    first = jnp.arange(lanes, dtype=jnp.int32)

    def unfinished(c: _Lanes) -> jax.Array:
        return jnp.any(c.chain < count)

    def advance(c: _Lanes) -> _Lanes:
        eps = eps_fn(c.x, c.t)
        residual = root_mean_square(eps)
        steps = c.steps + 1
        busy = c.chain < count
        done = busy & ((residual < tolerance[jnp.minimum(c.chain, n - 1)]) | (steps >= max_steps))
        out = jnp.where(done, c.chain, n)  # n lies outside: those writes are dropped
        moved, state = kernel.step(eps, c.x, c.t, c.state)

        following = c.queued + jnp.cumsum(done, dtype=jnp.int32) - 1
        chain = jnp.where(done, jnp.minimum(following, n), c.chain)
        source = jnp.minimum(chain, n - 1)
        fresh_x = x[source]
        here = jnp.where(expand(busy, c.x), moved, c.x)
        return _Lanes(
            chain=chain,
            x=jnp.where(expand(done, c.x), fresh_x, here),
            t=jnp.where(done, t[source], c.t),
            steps=jnp.where(done, 0, steps),
            state=jax.tree.map(lambda new, old: jnp.where(expand(done, old), new, old), kernel.init(fresh_x), state),
            queued=jnp.minimum(c.queued + jnp.sum(done, dtype=jnp.int32), n),
            iterations=c.iterations + 1,
            out_x=c.out_x.at[out].set(c.x, mode="drop"),
            out_residual=c.out_residual.at[out].set(residual, mode="drop"),
            out_steps=c.out_steps.at[out].set(steps, mode="drop"),
        )

    begin = _Lanes(
        chain=first,
        x=x[:lanes],
        t=t[:lanes],
        steps=jnp.zeros(lanes, jnp.int32),
        state=kernel.init(x[:lanes]),
        queued=jnp.asarray(lanes, jnp.int32),
        iterations=jnp.asarray(0, jnp.int32),
        out_x=jnp.zeros_like(x),
        out_residual=jnp.zeros(n, x.dtype),
        out_steps=jnp.zeros(n, jnp.int32),
    )
    end = jax.lax.while_loop(unfinished, advance, varying_as(begin, x))
    converged = (end.out_steps > 0) & (end.out_residual < tolerance)
    return Chains(end.out_x, end.out_residual), AscentInfo(end.out_steps, converged, nfe=lanes * end.iterations)


def empty_pool(capacity: int, like: jax.Array) -> ModePool:
    """A pool without points, for points such as `like` (*shape).

    Examples:
      >>> empty_pool(3, like=query).mask
      Array([False, False, False], dtype=bool)
    """
    points = jnp.zeros((capacity, *like.shape), like.dtype)
    none, far = jnp.zeros(capacity, jnp.int32), jnp.full(capacity, jnp.inf, like.dtype)
    return ModePool(x=points, m=points, t=none + 1, basin=none, residual=far, curvature=far, mask=none > 0)


def merge(
    chains: Chains,
    schedule: Schedule,
    t: jax.Array,
    radius: float,
    capacity: int,
    *,
    max_residual: float | jax.Array = float("inf"),
    found: ModePool | None = None,
) -> tuple[ModePool, MergeInfo]:
    """Merges the chains of the same timestep that ended in the same place, and counts them.

    Leader clustering, best residual first: a chain joins the nearest leader within `radius`, or else leads. If more
    than `capacity` leaders remain, the largest basin of every timestep is kept first, then the second largest, and so
    on; among equals the larger basin, the smaller timestep, the smaller residual. All ties are broken by index.

    Args:
      chains: N chains.
      schedule: The noise schedule.
      t: (N,) int32, the chains' timesteps.
      radius: Root mean square distance between clean prototypes below which two are one.
      capacity: Rows of the pool.
      max_residual: A chain that ended with a larger residual joins a leader or is dropped; one whose residual is not
        finite is dropped. One number or (N,).
      found: What earlier chains reached; each point counts for all of its basin. Chains that come in parts are merged
        as if they had come together, as long as none was dropped, for lack of room or for its residual, and no two
        leaders are within `radius`.

    Returns:
      A pool ordered by timestep, then basin, its points first; and what was left out.

    Examples:
      >>> chains = Chains(x=jnp.array([[1.0, 0.0], [1.0, 0.001], [-1.0, 0.0]]), residual=jnp.zeros(3))
      >>> merged = jax.jit(merge, static_argnames=("radius", "capacity"))
      >>> pool, left_out = merged(chains, schedule, jnp.full(3, 100), radius=0.1, capacity=4)
      >>> pool.basin.tolist()  # how many chains each point stands for
      [2, 1, 0, 0]
    """
    x, residual, size = chains.x, chains.residual, jnp.ones(chains.x.shape[0], jnp.int32)
    leading = residual <= max_residual
    if found is not None:
        x, t = jnp.concatenate([found.x, x]), jnp.concatenate([found.t, t])
        residual = jnp.concatenate([jnp.where(found.mask, found.residual, jnp.nan), residual])
        size = jnp.concatenate([jnp.where(found.mask, found.basin, 0), size])
        leading = jnp.concatenate([found.mask, leading])
    n = x.shape[0]
    clean = x / jnp.sqrt(alpha_bar_at(schedule, t, x))
    finite = jnp.isfinite(residual)
    squared = _mean_squared_distances(jnp.where(expand(finite, clean), clean, 0.0))
    near = (squared <= radius * radius) & (t[:, None] == t[None, :]) & finite[:, None] & finite[None, :]
    order = jnp.argsort(residual)  # stable; NaN last

    def visit(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        leads, leader = carry
        chain = order[i]
        within = near[chain] & leads
        joins = jnp.any(within)
        may_lead = finite[chain] & leading[chain]
        nearest = jnp.argmin(jnp.where(within, squared[chain], jnp.inf)).astype(jnp.int32)
        # n lies outside: a dropped chain is counted nowhere.
        own = jnp.where(may_lead, chain.astype(jnp.int32), n)
        return leads.at[chain].set(~joins & may_lead), leader.at[chain].set(jnp.where(joins, nearest, own))

    begin = (jnp.zeros(n, bool), jnp.full(n, n, jnp.int32))
    leads, leader = jax.lax.fori_loop(0, n, visit, varying_as(begin, x))
    basin = jnp.zeros(n, jnp.int32).at[leader].add(size, mode="drop")

    # Rank of each leader among those of its timestep: larger basins first, then smaller residuals.
    by_size = jnp.lexsort((residual, -basin))
    position = jnp.zeros(n, jnp.int32).at[by_size].set(jnp.arange(n, dtype=jnp.int32))
    ahead = (position[None, :] < position[:, None]) & (t[:, None] == t[None, :]) & leads[None, :]
    rank = jnp.sum(ahead, axis=1)

    kept = jnp.lexsort((residual, t, -basin, rank, ~leads))[:capacity]
    kept = kept[jnp.lexsort((rank[kept], t[kept], ~leads[kept]))]
    index = jnp.concatenate([kept, jnp.zeros(max(capacity - n, 0), kept.dtype)])
    mask = jnp.concatenate([leads[kept], jnp.zeros(max(capacity - n, 0), bool)])

    def take(values: jax.Array, absent: float) -> jax.Array:
        taken = values[index]
        return jnp.where(expand(mask, taken), taken, jnp.asarray(absent, taken.dtype))

    info = MergeInfo(
        dropped=jnp.sum(jnp.where(leader == n, size, 0)),  # absent points of `found` have size zero
        leaders_dropped=jnp.maximum(jnp.sum(leads, dtype=jnp.int32) - capacity, 0),
    )
    pool = ModePool(
        x=take(x, 0.0),
        m=take(clean, 0.0),
        t=t[index],
        basin=take(basin, 0),
        residual=take(residual, jnp.inf),
        curvature=jnp.full_like(x, jnp.inf, shape=capacity),
        mask=mask,
    )
    return pool, info


def in_lanes(
    fn: Callable[..., Any], arrays: tuple[jax.Array, ...], mask: jax.Array, *, lanes: int, cost: int
) -> tuple[Any, jax.Array]:
    """Applies `fn` to batches of `lanes` rows, up to the last row that is present.

    Args:
      fn: A function of arrays that lead with a batch, to a tree of arrays that lead with the same batch. Rows must
        not depend on each other.
      arrays: Each (N, ...); under `jax.shard_map`, the first one differs between devices if the results do.
      mask: (N,) bool, which rows matter. Batches after the last one are not computed.
      lanes: Rows at a time.
      cost: Evaluations of the network that `fn` makes for each row.

    Returns:
      The tree of (N, ...), zero for the rows not computed; and the evaluations made, () int32, idle rows of a batch
      included.

    Examples:
      >>> squares, evaluations = in_lanes(jnp.square, (jnp.arange(5.0),), jnp.arange(5) < 3, lanes=2, cost=1)
      >>> squares.tolist(), int(evaluations)
      ([0.0, 1.0, 4.0, 9.0, 0.0], 4)
    """
    n = mask.shape[0]
    lanes = min(lanes, n)
    batches = -(-n // lanes)
    padded = [jnp.concatenate([a, jnp.repeat(a[-1:], batches * lanes - n, axis=0)]) for a in arrays]
    needed = jnp.max(jnp.where(mask, jnp.arange(1, n + 1), 0))
    needed_batches = (needed + lanes - 1) // lanes

    def rows(i: jax.Array | int) -> list[jax.Array]:
        return [jax.lax.dynamic_slice_in_dim(a, i * lanes, lanes) for a in padded]

    fn = jax.jit(fn)  # so that asking for the shape does not trace it a second time
    like = jax.eval_shape(fn, *rows(0))
    empty = jax.tree.map(lambda leaf: jnp.zeros((batches * lanes, *leaf.shape[1:]), leaf.dtype), like)

    def apply(i: jax.Array, out: Any) -> Any:
        return jax.tree.map(
            lambda leaf, new: jax.lax.dynamic_update_slice_in_dim(leaf, new, i * lanes, axis=0), out, fn(*rows(i))
        )

    out = jax.lax.fori_loop(0, needed_batches, apply, varying_as(empty, arrays[0]))
    return jax.tree.map(lambda leaf: leaf[:n], out), jnp.asarray(needed_batches * lanes * cost, jnp.int32)


def row_keys(key: jax.Array, count: int) -> jax.Array:
    """A key for each of `count` rows, (count,); that of row i depends on the key and i alone.

    Examples:
      >>> row_keys(key, 3).shape
      (3,)
    """
    return jax.vmap(lambda i: named(key, "row", i))(jnp.arange(count))


def normal_each(key: jax.Array, like: jax.Array) -> jax.Array:
    """Standard normal noise shaped as `like` (N, ...), whose row i depends on the key and i alone, not on N.

    Examples:
      >>> more = normal_each(key, jnp.zeros((3, 2)))
      >>> bool((normal_each(key, jnp.zeros((2, 2))) == more[:2]).all())
      True
    """
    return jax.vmap(lambda k: jax.random.normal(k, like.shape[1:], like.dtype))(row_keys(key, like.shape[0]))


def _mean_squared_distances(x: jax.Array) -> jax.Array:
    """(N, N) mean squared difference between the rows of `x` (N, ...)."""
    flat = x.reshape(x.shape[0], -1)
    # Distances do not see a common shift, and rounding is least around zero.
    flat = flat - jnp.mean(flat, axis=0, keepdims=True)
    norms = jnp.sum(jnp.square(flat), axis=1)
    inner = jnp.matmul(flat, flat.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(norms[:, None] + norms[None, :] - 2.0 * inner, 0.0) / flat.shape[1]


def root_mean_square(x: jax.Array) -> jax.Array:
    """Over the entries of each row of `x` (N, *shape): (N,).

    Examples:
      >>> root_mean_square(jnp.array([[3.0, 3.0], [0.0, 0.0]]))
      Array([3., 0.], dtype=float32)
    """
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=tuple(range(1, x.ndim))))


def _ratio(x: float | jax.Array, y: jax.Array) -> jax.Array:
    """`x / y` for `y >= 0`, large instead of infinite."""
    return x / jnp.maximum(y, jnp.finfo(y.dtype).tiny)


def _inner(x: jax.Array, y: jax.Array) -> jax.Array:
    """The inner products of the rows of `x` and `y`, both (N, *shape): (N,)."""
    return jnp.sum(x * y, axis=tuple(range(1, x.ndim)))
